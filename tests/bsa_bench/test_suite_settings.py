"""A case as settings of its suite: they ask for that case and no other."""

import pytest
from report_factory import case

from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.result import Case
from bsa_bench.suite import list_suites, load_suite, override
from bsa_bench.suite.settings import settings_of
from bsa_bench.workload import InputSpec, Workload

PLAIN = """
title = "Axes of everything"
implementations = ["full@sdpa-flash", "bsa@gather"]

[axes]
tokens = [64, 128]
heads = [1, 2]
batch = [1, 2]
seed = [0, 1]
"""
SUITES = [info.name for info in list_suites()]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("name", SUITES)
def test_the_settings_of_a_case_of_a_suite_leave_that_case_alone(name, kind):
    suite = load_suite(name, device_kind=kind)
    cases = suite.cases()
    for each in cases[:: max(1, len(cases) // 12)]:
        assert [found.case_hash for found in override(suite, settings_of(each)).cases()] == [each.case_hash]


@pytest.mark.parametrize(
    "workload",
    [
        Workload(tokens=1000, heads=3, head_dim=32, batch=2, dtype="float16"),
        Workload(grid=(2, 4, 6), vae=(8, 8, 8), patch=(1, 1, 1)),
        Workload(frames=5, height=64, width=96, input=InputSpec(kind="video", path="/clips/a, b [1].mp4", seed=3)),
        Workload(tokens=64, model="cpu-2x64", heads=7, head_dim=64),
    ],
    ids=["tokens", "grid", "path", "model with other heads"],
)
def test_settings_read_back_whatever_the_workload_holds(workload, tmp_path):
    # A suite that gives a model gives all its cases one.
    (tmp_path / "plain.toml").write_text(PLAIN)
    suite = load_suite(str(tmp_path / "plain.toml"), device_kind="cpu")
    of = case("full@sdpa-flash").model_copy(update={"workload": workload})
    (found,) = override(suite, settings_of(of)).cases()
    assert found.workload == workload


def test_options_that_look_like_other_things_are_written_as_what_they_are():
    options = BsaOptions(query_block=(4, 4, 8), kv_density=0.1, query_rule="block")
    settings = settings_of(case(options=options))
    assert {"query_block=4x4x8", "kv_density=0.1", "query_rule=block"} < set(settings)
    assert "query_block=none" in settings_of(case(options=BsaOptions(query_block=None)))
    odd = Case.model_validate(case().model_dump() | {"options": {"mine": "1", "flag": True, "list": [1, "x"]}})
    assert settings_of(odd)[-3:] == ['bsa.mine=["1"]', "bsa.flag=true", 'bsa.list=[[1, "x"]]']
