"""Which files a run was measured with: their content is part of what a case is, not only their names."""

import importlib.metadata
from types import SimpleNamespace

import pytest
import report_factory as made
from rich.console import Console
from run_factory import Bench, case

from bsa_bench.errors import InputError, SuiteError, UsageError
from bsa_bench.file_digest import file_digest
from bsa_bench.inputs import check_input, find_sample_clip
from bsa_bench.measure.process_start import ProcessStart, is_hashed
from bsa_bench.report import print_table, write_report
from bsa_bench.report.html.behind import behind
from bsa_bench.report.tables import environment_facts
from bsa_bench.result import Case, Footage, InputFacts, Status
from bsa_bench.store.derive import derive
from bsa_bench.store.reader import read_run
from bsa_bench.suite import load_suite, override
from bsa_bench.workload import InputSpec, Workload

SUITE = """
title = "t"
implementations = ["full@sdpa-flash"]
passes = ["forward"]
[workload]
grid = [2, 4, 4]
heads = 1
head_dim = 32
[input]
kind = "captured"
path = "in.safetensors"
"""


def captured(path, sha256=None):
    spec = InputSpec(kind="captured", path=str(path), sha256=sha256 or file_digest(path))
    return case().model_copy(update={"workload": Workload(grid=(2, 4, 4), heads=1, head_dim=32, input=spec)})


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("change", [(), ("kind=captured", "path=in.safetensors"), ("video=in.safetensors",)])
def test_a_case_of_a_suite_is_another_one_when_its_file_is(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    suite, file = write(tmp_path / "s.toml", SUITE.encode()), tmp_path / "in.safetensors"
    found = []
    for content in (b"first", b"other", b"first"):
        write(file, content)
        found += override(load_suite(str(suite), device_kind="cpu"), change).cases()
    assert found[0].workload.input.sha256 == file_digest(file)
    for identity in (lambda c: c.case_hash, lambda c: c.group, lambda c: c.case_id, lambda c: c.workload.digest):
        assert identity(found[0]) == identity(found[2]) != identity(found[1])
    assert Case.model_validate_json(found[1].model_dump_json()) == found[1]


def test_what_reads_no_file_is_the_case_that_it_was():
    assert "sha256" not in case().workload.model_dump(mode="json")["input"]
    assert case().case_hash == "245d7a7779b7"


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path):
    assert file_digest(tmp_path) is None
    assert file_digest(tmp_path / "none") is None
    assert file_digest("~nobody-of-that-name/x") is None


@pytest.mark.parametrize("again", [True, False])
def test_resume_refuses_another_input_file_and_measures_nothing(tmp_path, again):
    bench, file = Bench(tmp_path), write(tmp_path / "in.safetensors", b"first")
    bench.run([captured(file)])
    if again:
        bench.run([captured(file)], resume=True)
    write(file, b"other")
    with pytest.raises(
        UsageError, match=f"run r: {file} is not the file that was measured, its SHA-256 is d9298a10d1b0"
    ):
        bench.run([captured(file)], resume=True)
    assert len(bench.pids) == 1
    assert read_run(bench.results / "r").run_lines[0].files == {
        str(file): captured(write(file, b"first")).workload.input.sha256
    }


def test_resume_refuses_an_edited_suite_and_names_it(tmp_path):
    bench = Bench(tmp_path)
    bench.run([case()], suite_sha256="a" * 64)
    assert bench.run([case()], resume=True, suite_sha256="a" * 64).counts == {Status.OK: 1}
    with pytest.raises(UsageError, match=r"suite ./my/made-up.toml is not the file that was measured, its .* bbbbbb"):
        bench.run([case()], resume=True, suite_sha256="b" * 64, suite_source="./my/made-up.toml")
    assert bench.run([case()], resume=True).counts == {Status.OK: 1}  # asked for by a program, not a file


def test_a_suite_knows_its_file(tmp_path):
    suite = write(
        tmp_path / "s.toml", SUITE.replace("captured", "smooth").encode().replace(b'path = "in.safetensors"', b"")
    )
    loaded = load_suite(str(suite), device_kind="cpu")
    assert loaded.sha256 == override(loaded, ["grid=4x4x4"]).sha256 == file_digest(suite)
    assert load_suite("quick", device_kind="cpu").sha256


@pytest.mark.parametrize("kind", ["video", "captured"])
def test_a_worker_refuses_a_file_that_was_replaced_since_the_run_began(tmp_path, kind, monkeypatch):
    file = write(tmp_path / "in", b"first")
    spec = InputSpec(kind=kind, path=str(file), sha256=file_digest(file))
    workload = Workload(grid=(2, 4, 4), heads=1, head_dim=32, input=spec)
    monkeypatch.setattr(f"bsa_bench.inputs.make.check_{'clip' if kind == 'video' else 'captured'}", lambda *_: None)
    monkeypatch.setattr("bsa_bench.inputs.make.check_values", lambda *_: None)
    check_input(workload)
    write(file, b"other")
    with pytest.raises(InputError, match=f"{kind} {file}: another file lies there now"):
        check_input(workload)


def test_a_sample_clip_is_the_clip_that_its_name_means(tmp_path, monkeypatch):
    file = write(tmp_path / "bikes.mp4", b"another film")
    found = SimpleNamespace(name="bikes.mp4", locate=lambda: file)
    monkeypatch.setattr(importlib.metadata, "files", lambda _: [found])
    with pytest.raises(InputError, match=f"clip 'bikes': {file} is not the clip that this name means"):
        find_sample_clip("bikes")


def test_a_table_of_tiles_counts_by_its_content(tmp_path, monkeypatch):
    def hashed():
        return {name: value for name, value in ProcessStart.now().variables.items() if is_hashed(name)}

    monkeypatch.setenv("BSA_KERNELS_TILES", str(write(tmp_path / "a.toml", b"one")))
    before = hashed()
    monkeypatch.setenv("BSA_KERNELS_TILES", str(write(tmp_path / "b.toml", b"one")))
    assert hashed() == before
    write(tmp_path / "b.toml", b"two")
    assert hashed() != before
    assert ProcessStart.now().variables["BSA_KERNELS_TILES"] == str(tmp_path / "b.toml")


def test_a_report_names_the_files_and_what_was_in_them(tmp_path):
    bench, file = Bench(tmp_path), write(tmp_path / "in.safetensors", b"first")
    bench.run([captured(file)], suite_sha256="a" * 64)
    facts = environment_facts(read_run(bench.results / "r"))
    assert facts["Suite file"] == f"SHA-256 `{'a' * 64}`"
    assert facts["Input files"] == f"`in.safetensors`: SHA-256 `{file_digest(file)}`"


def test_what_a_clip_became_stands_in_results_reports_and_terminal(tmp_path, capsys):
    footage = Footage(num_pictures=1, num_needed=9, source=(96, 256), crop=(96, 96), size=(192, 192))
    facts = InputFacts(description="clip a`b.mp4: first 1 frames", footage=footage)
    result = made.measured(made.case("full@sdpa-flash", 4096), input=facts)
    run = made.write_run(tmp_path / "run", [result])
    assert read_run(run).results[0].input == facts
    text = write_report(run, tmp_path / "report").markdown.read_text()
    assert "\nInput: `clip a'b.mp4: first 1 frames`.\n" in text

    print_table(read_run(run), Console(width=200))
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "at 4,096 tokens is a still picture: 1 frame was decoded where 9 are asked for",
        "at 4,096 tokens is cropped: 62% of each picture was cut away for the proportions asked for",
        "at 4,096 tokens is enlarged 2.00 times, so that neighbours are alike by interpolation",
    ):
        assert words in " ".join(text.split())
        assert words in said
    shown = behind(derive([result])[0], read_run(run).run_lines[0], every=1)
    assert shown["sections"]["Identity"]["Input"] == "clip a`b.mp4: first 1 frames"


@pytest.mark.parametrize("name", ["~nobody-of-that-name/s.toml", "tilde.toml"])
def test_a_home_that_is_not_there_is_named(tmp_path, name):
    write(tmp_path / "tilde.toml", SUITE.replace("in.safetensors", "~nobody-of-that-name/x.safetensors").encode())
    with pytest.raises(SuiteError, match=r"path: '~nobody-of-that-name/.*`~` is no folder here.*write the whole path"):
        load_suite(name if name.startswith("~") else str(tmp_path / name), device_kind="cpu")
