"""The committed run of schema 1: it loads, reports, exports and resumes as one of today's."""

import json
import shutil
from pathlib import Path

import pytest
from run_factory import DEVICE

from bsa_bench.report import write_report
from bsa_bench.result import SCHEMA_VERSION, Case, Status
from bsa_bench.run import RunSettings, execute
from bsa_bench.run.progress import PlainProgress
from bsa_bench.store import export, load_frame, read_run
from bsa_bench.store.writer import RunWriter
from bsa_bench.suite import load_suite

NAME = "quick-amd-epyc-2-cores"
COMMITTED = Path(__file__).parents[2] / "results" / "reference" / NAME
#: Read off the stored lines; three more cases were verified and not timed.
NUM_CASES, NUM_OK = 105, 38


@pytest.fixture
def folder(tmp_path):
    """A copy that may be written to; its lines are of schema 1."""
    shutil.copytree(COMMITTED, tmp_path / NAME, ignore=shutil.ignore_patterns("report"))
    lines = [json.loads(line) for line in (tmp_path / NAME / "results.jsonl").read_text().splitlines()]
    if {line["schema_version"] for line in lines} != {1}:
        pytest.fail(f"{COMMITTED} is no run of schema 1 any more; keep one for this test")
    return tmp_path / NAME


def test_it_loads_with_its_cases_and_its_hashes(folder):
    run = read_run(folder)
    stored = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()][1:]
    assert len(run.results) == NUM_CASES
    for result, line in zip(run.results, stored, strict=True):
        assert result.schema_version == SCHEMA_VERSION
        assert result.case_hash == result.case.case_hash == line["case_hash"]
        assert result.case.options == (line["case"]["options"] or {})
        assert result.case.claims.is_dense == result.case.implementation.startswith("full@")
        assert result.status == line["status"]
        assert (result.timing.samples if result.timing else None) == (line["timing"] or {}).get("samples")
    assert len({result.case_id for result in run.results}) == NUM_CASES
    assert {r.case.label for r in run.results if r.case.options} == {"d0.1-k0.5"}


@pytest.mark.slow
def test_its_options_are_columns_and_its_speed_ups_are_those_of_its_report(folder, tmp_path):
    frame = load_frame(folder)
    assert frame["is_correct"].sum() == NUM_OK
    sparse = frame[frame["method"] == "bsa"]
    assert set(sparse["option_kv_density"]) == {0.1}
    assert set(sparse["option_block"]) == {"4x4x4"}
    assert frame[frame["method"] == "full"]["option_kv_density"].isna().all()
    best = frame["speedup_over_dense"].max()
    assert f"**{best:.1f}x faster than**" in (COMMITTED / "report" / "report.md").read_text()
    assert f"**{best:.1f}x faster than**" in write_report(folder, tmp_path / "report").markdown.read_text()
    assert len(export(folder, to="csv", out=tmp_path / "run.csv").read_text().splitlines()) >= NUM_CASES


def test_resuming_it_repeats_nothing_and_goes_on_in_todays_schema(folder, tmp_path):
    environment = read_run(folder).environment
    settings = RunSettings(suite="quick", device=DEVICE, case_limit_s=5.0, worker_command=("/bin/false",))
    measured = {result.case.case_hash for result in read_run(folder).results}
    # The suite has got implementations since.
    cases = [case for case in load_suite("quick", device_kind="cpu").cases() if case.case_hash in measured]
    assert len(cases) == NUM_CASES
    with RunWriter.resume(tmp_path, NAME) as writer, (tmp_path / "progress").open("w") as stream:
        outcome = execute(
            cases, settings, environment, unavailable=lambda _: None, writer=writer, progress=PlainProgress(stream)
        )
    assert outcome.exit_code == 0
    assert outcome.counts[Status.OK] == NUM_OK
    assert f"{NUM_CASES} of {NUM_CASES} cases are already done" in (tmp_path / "progress").read_text()
    run = read_run(folder)
    assert [line.schema_version for line in run.run_lines] == [SCHEMA_VERSION] * 2
    assert json.loads((folder / "results.jsonl").read_text().splitlines()[-1])["schema_version"] == SCHEMA_VERSION
    assert run.num_remaining == 0


def test_a_method_that_is_not_installed_is_read_like_any_other(folder):
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines()
    line = read_run(folder).results[-1].model_dump(mode="json")
    case = {
        **line["case"],
        "implementation": "theirs@gather",
        "options": {"reach": [2, 3], "mode": "a|b"},
        "label": "r2x3",
    }
    path.write_text(
        "\n".join([*lines, json.dumps({**line, "case": case, "case_hash": Case.model_validate(case).case_hash})]) + "\n"
    )
    frame = load_frame(folder)
    theirs = frame[frame["method"] == "theirs"].iloc[0]
    assert theirs["option_reach"] == "2x3"
    assert theirs["option_mode"] == "a|b"
    assert theirs["speedup_over_dense"] > 1
