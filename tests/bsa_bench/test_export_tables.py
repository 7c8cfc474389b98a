"""The tables that leave the process: one schema for all runs, digests that stay text, and folders of one report."""

import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_factory as made

from bsa_bench.report import write_report
from bsa_bench.report.plots import FIGURES
from bsa_bench.result import Case, Status
from bsa_bench.store import export
from bsa_bench.store.columns import COLUMNS, DIGESTS


def foreign():
    """A method of a third party: an option of several types, phases that nobody announced."""
    rows = []
    for tokens, value in ((1024, 3), (2048, "three"), (4096, True), (8192, None)):
        of = made.measured(made.case(tokens=tokens), timing=made.timing(1.0, phases={"unpack": [0.5]}))
        case = of.case.model_copy(update={"options": of.case.options | {"wraps": value, "mode": value}})
        rows.append(of.model_copy(update={"case": case, "case_hash": case.case_hash}))
    return rows


RUNS = {
    "measured": lambda: made.quick_results((1024,)),
    "nothing": list,
    "failed": lambda: [made.result(made.case("full@xformers"), Status.UNSUPPORTED, reason="not here.")],
    "foreign": foreign,
}


def test_files_of_all_runs_have_the_declared_schema_and_are_read_as_one(tmp_path):
    (tmp_path / "out").mkdir()
    schemas, num_rows = [], 0
    for name, results in RUNS.items():
        run = made.write_run(tmp_path / name, made.renumber(results()))
        out = export(run, to="parquet", out=tmp_path / f"out/{name}.parquet")
        schemas.append(pq.read_schema(out))
        csv = pd.read_csv(export(run, to="csv", out=tmp_path / "run.csv"))
        assert list(csv.columns) == list(COLUMNS)
        num_rows += len(csv)
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)
    assert schemas[0].names == list(COLUMNS)
    assert not [field.name for field in schemas[0] if pa.types.is_null(field.type)]
    together = pd.read_parquet(tmp_path / "out")
    assert len(together) == num_rows > 20
    assert set(together.option_mode.dropna()) >= {"3", "three", "True"}
    assert str(together.tokens.dtype) == "Int64"
    assert together.phases.dropna().str.contains("unpack").sum() == 4


@pytest.mark.parametrize("digits", ["012345678901", "1234567e8901", "000000000000"])
def test_digests_of_digits_are_text_in_a_csv(tmp_path, monkeypatch, digits):
    monkeypatch.setattr(Case, "case_hash", property(lambda _: digits))
    result = made.measured()
    run = made.write_run(tmp_path / "run", [result])
    lines = run / "results.jsonl"
    lines.write_text(lines.read_text().replace(result.env_hash, digits))
    csv = export(run, to="csv", out=tmp_path / "run.csv").read_text()
    frame = pd.read_csv(io.StringIO(csv))
    assert frame.case_hash[0] == frame.env_hash[0] == f"sha256:{digits}"
    parquet = pd.read_parquet(export(run, to="parquet", out=tmp_path / "run.parquet"))
    assert parquet.case_hash[0] == digits
    assert set(DIGESTS) >= {name for name in COLUMNS if name.endswith(("hash", "digest", "commit"))}


@pytest.mark.slow
def test_a_report_over_an_earlier_one_leaves_its_own_figures_and_what_is_not_of_a_report(tmp_path):
    out = tmp_path / "out"
    first = write_report(made.write_run(tmp_path / "first", made.quick_results((1024, 2048))), out)
    assert {path.name for path in first.plots} <= set(FIGURES)
    own = out / "my-own.png"
    own.write_bytes(b"x")
    (out / "speedup-forward-paper.svg").write_text("of bsa-bench plot")
    dense = [made.measured(made.case("full@sdpa-flash", 2048))]
    second = write_report(made.write_run(tmp_path / "second", dense), out)
    names = {path.name for path in out.iterdir()}
    kept = {"my-own.png", "speedup-forward-paper.svg", "report.md"}
    assert names == {path.name for path in second.plots} | kept
    assert {path.name for path in first.plots} - names
    assert Path(second.markdown).read_text().count(".png)") == len(second.plots) // 2
