from types import SimpleNamespace

import pytest
import torch
from run_factory import case

from bsa_bench import catalog
from bsa_bench.errors import UsageError
from bsa_bench.operator import Operator


@pytest.mark.parametrize("name", catalog.ENGINES)
def test_every_engine_loads_under_its_name_and_says_whether_it_runs_plans(name):
    engine = catalog.load_engine(name)
    assert engine.name == name
    assert engine.runs_plans == (name not in catalog.DENSE_ONLY)
    assert engine.backward_factor >= 2
    assert engine.unsupported(torch.device("cpu"), torch.float32, 32, backward=False) is None or name not in {
        "sdpa-math",
        "sdpa-flash",
        "gather",
        "triton",
        "flex",
    }


@pytest.mark.parametrize("name", catalog.METHODS)
def test_every_method_builds_an_operator_that_ends_in_o(name):
    operator = catalog.build_operator(case(f"{name}@gather"), scale=1.0)
    assert isinstance(operator, Operator)
    assert operator.stages[-1].outputs == ("o",)


def test_dense_engines_are_offered_for_full_only():
    names = catalog.implementations()
    assert "full@sdpa-flash" in names
    assert "bsa@gather" in names
    assert not [n for n in names if n.startswith("bsa@") and n.removeprefix("bsa@") in catalog.DENSE_ONLY]
    catalog.check_implementations(names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("full@sdpa-flsh", "'full@sdpa-flsh' does not exist; did you mean 'full@sdpa-flash'?"),
        ("bsa@sdpa-flash", "sdpa-flash takes no block mask, so it cannot run the plan of bsa; use one of bsa@flex, "),
        ("nothing@at-all", "there are: full@sdpa-math, "),
        ("full", "'full' does not exist; "),
    ],
)
def test_an_implementation_that_does_not_exist_is_refused_with_what_there_is(name, message):
    with pytest.raises(UsageError) as caught:
        catalog.check_implementations(["full@sdpa-math", name])
    assert message in str(caught.value)


def test_a_third_party_engine_is_found_by_its_entry_point(monkeypatch):
    theirs = SimpleNamespace(name="mine", runs_plans=True, unsupported=lambda *_, **__: "needs a TPU; buy one.")
    entry = SimpleNamespace(name="mine", load=lambda: theirs)
    monkeypatch.setattr(catalog, "entry_points", lambda group: [entry] if group == "bsa_bench.engines" else [])
    assert {"full@mine", "bsa@mine"} <= set(catalog.implementations())
    catalog.check_implementations(["bsa@mine"])
    assert catalog.load_engine("mine") is theirs
    asked = catalog.unsupported("bsa@mine", torch.device("cpu"), torch.float32, 64, backward=True)
    assert asked == "needs a TPU; buy one."
    theirs.runs_plans = False
    asked = catalog.unsupported("bsa@mine", torch.device("cpu"), torch.float32, 64, backward=True)
    assert asked == "mine takes no block mask, so it cannot run the plan of bsa; run full@mine."


def test_loading_an_unknown_engine_names_those_that_there_are():
    with pytest.raises(UsageError, match="'warp' is not registered; there are: sdpa-math, "):
        catalog.load_engine("warp")
