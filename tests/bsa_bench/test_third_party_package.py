"""The package of docs/examples/third_party, installed for one run as a user's would be, and then gone."""

import itertools
import json
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from cli_factory import command

import bsa_bench
from bsa_bench import catalog
from bsa_bench.errors import UsageError
from bsa_bench.store import read_run

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[2] / "docs/examples/third_party"
SUITE = """
title = "Windows"
implementations = ["full@dense-mask", "window-tiles@dense-mask", "window-tiles@gather"]
passes = ["forward", "forward+backward"]

[workload]
grid = [4, 4, 16]
heads = 2
head_dim = 16

[input]
kind = "gaussian"

[window-tiles]
tile = [2, 4, 4]

[axes]
window-tiles.tile_window = [[1, 1, 3]]
window-tiles.wraps = [true]

[limit."window-tiles@dense-mask"]
passes = ["forward+backward"]

[limit."window-tiles@gather"]
passes = ["forward"]

[limit."full@dense-mask"]
passes = ["forward"]
"""
#: 2 x 1 x 4 tiles; a tile sees those of its own time that are at most one further along the width, or round the end.
TILES = list(itertools.product(range(2), range(4)))
SEEN = [t == u and abs(w - x) in {0, 1, 3} for (t, w) in TILES for (u, x) in TILES]
DENSITY = sum(SEEN) / len(SEEN)
DENSE_FLOP = 4 * 2 * 16 * 256**2


def install(folder):
    """Register what the package's pyproject.toml says, for processes with the path that this returns."""
    package = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    info = folder / f"{package['name'].replace('-', '_')}-{package['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package['name']}\nVersion: {package['version']}\n")
    lines = [
        line
        for group, entries in package["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {where}" for name, where in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return [str(folder), str(SOURCE), *sys.path]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Where a run with the package is stored, under results/r; this process never sees the package."""
    where = tmp_path_factory.mktemp("third_party")
    (where / "mine.toml").write_text(SUITE)
    done = command(
        "run", "--suite", "mine.toml", "--run-id", "r", "--threads", "1", "--device", "cpu", "--no-report", "--plain",
        cwd=where, path=install(where / "site"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return where


@pytest.fixture(scope="module")
def results(stored):
    """Its results by implementation."""
    return {result.case.implementation: result for result in read_run(stored / "results/r").results}


def test_every_case_of_the_package_is_measured_and_correct(results):
    passes = {name: (result.status.value, result.case.passes) for name, result in results.items()}
    assert passes == {
        "full@dense-mask": ("OK", "forward"),
        "window-tiles@dense-mask": ("OK", "forward+backward"),
        "window-tiles@gather": ("OK", "forward"),
    }
    both = results["window-tiles@dense-mask"].correctness
    assert set(both.checked) == {"output", "grad_q", "grad_k", "grad_v"}
    assert both.rows == 256


def test_its_cases_are_named_by_its_options_and_store_its_claims(results):
    case = results["window-tiles@gather"].case
    assert case.options == {"tile": [2, 4, 4], "tile_window": [1, 1, 3], "wraps": True}
    assert case.case_id == "window-tiles@gather/4x4x16/2x16-float32/gaussian/w1x1x3-tile=2x4x4-wraps=yes/forward"
    assert case.claims.source == "an example of how to add a method"
    assert case.claims.trains
    assert not case.claims.is_dense


@pytest.mark.parametrize(("name", "factor"), [("window-tiles@gather", 1.0), ("window-tiles@dense-mask", 3.5)])
def test_its_density_and_sparsity_are_those_of_tiles_counted_one_by_one(results, name, factor):
    work = results[name].work
    assert work.density_realised == pytest.approx(DENSITY)
    assert work.sparsity_nominal == pytest.approx(1 - DENSITY)
    assert work.flops_nominal == pytest.approx(factor * DENSITY * DENSE_FLOP)
    assert work.flops_dense_equiv == factor * DENSE_FLOP
    assert work.flops_selection == 0


def test_executed_flop_is_what_each_engine_says_of_each_pass(results):
    # Its own engine multiplies all pairs, whatever the plan: two products forward, and four backward.
    assert results["full@dense-mask"].work.flops_executed == DENSE_FLOP
    assert results["window-tiles@dense-mask"].work.flops_executed == 3 * DENSE_FLOP
    # Listed tiles are full, so that the engine gather executes what was asked for.
    assert results["window-tiles@gather"].work.flops_executed == DENSITY * DENSE_FLOP


def test_its_sparse_row_is_compared_with_dense_attention_in_time_and_in_output(stored, results):
    assert results["window-tiles@gather"].correctness.dense.relative_l2 > 0.1
    row = bsa_bench.load(stored / "results/r").set_index("implementation").loc["window-tiles@gather"]
    assert row["dense_baseline"] == "full@dense-mask"
    assert row["speedup_over_dense"] > 0


def test_a_stored_run_is_read_reported_and_exported_where_the_package_is_not_installed(stored, bench, monkeypatch):
    monkeypatch.chdir(stored)
    with pytest.raises(UsageError, match="not registered"):
        catalog.load_method("window-tiles")
    frame = bsa_bench.load("results/r").set_index("implementation")
    assert frame.loc["window-tiles@gather", "option_wraps"] is True
    assert bench("export", "r", "--to", "csv", "--out", "r.csv")[0] == 0
    assert list(pd.read_csv("r.csv")["implementation"]) == list(frame.index)
    code, out, _ = bench("report", "r", "--json")
    assert code == 0
    report = Path(json.loads(out)["markdown"][0]).read_text()
    assert "`window-tiles@gather`" in report
    assert "`window-tiles@dense-mask`" in report


def test_a_suite_that_names_it_is_refused_where_the_package_is_not_installed(stored, bench, monkeypatch):
    monkeypatch.chdir(stored)
    code, _, err = bench("run", "--suite", "mine.toml", "--dry-run")
    assert code == 2
    assert "mine.toml: window-tiles: unknown key" in err
