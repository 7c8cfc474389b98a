import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from run_factory import case

from bsa_bench import catalog
from bsa_bench.errors import UsageError
from bsa_bench.result import Claims
from bsa_kernels.operator import Operator

#: Of each contract an engine that runs here.
ENGINE_OF = {"dense": "sdpa-math", "causal-dense": "sdpa-math", "blocks": "gather", "delta-rule": "chunked"}


@pytest.mark.parametrize("name", catalog.ENGINES)
def test_every_engine_loads_under_its_name_and_offers_what_the_catalogue_says(name):
    engine = catalog.load_engine(name)
    assert engine.name == name
    assert engine.offers == catalog.offers(name)
    everywhere = {"sdpa-math", "sdpa-flash", "gather", "cpu", "flex", "recurrence", "chunked", "simulator"}
    reason = engine.unsupported(torch.device("cpu"), torch.float32, 32, backward=False)
    assert reason is None or name not in everywhere


@pytest.mark.parametrize("name", catalog.METHODS)
def test_every_method_says_who_it_is_and_builds_an_operator_that_ends_in_o(name):
    method = catalog.load_method(name)
    assert method.name == name
    one = case(f"{name}@{ENGINE_OF.get(method.needs[0], 'simulator')}")
    assert isinstance(one.claims, Claims)
    assert catalog.expected_cost(one).flop > 0
    operator = catalog.build_operator(one, scale=1.0)
    assert isinstance(operator, Operator)
    assert "o" in operator.stages[-1].outputs


@pytest.mark.slow
def test_no_method_loads_torch_until_its_operator_is_built():
    code = (
        "import sys; from bsa_bench import catalog; from bsa_bench.workload import Workload\n"
        "w = Workload(grid=(8, 16, 16))\n"
        "for name in catalog.METHODS:\n"
        "    m = catalog.load_method(name); o = m.Options()\n"
        "    m.expected(w, o), m.claims(o), o.label(), m.tensors(w, o), m.unsupported(w, o)\n"
        "assert not {'torch', 'triton', 'numpy'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": os.pathsep.join(sys.path)})


def test_a_pair_exists_where_the_engine_offers_what_the_method_needs():
    names = catalog.implementations()
    assert {"full@sdpa-flash", "bsa@gather", "vsa@triton", "moba@triton", "gated-delta-rule@fla"} <= set(names)
    assert not {"bsa@sdpa-flash", "full@fla", "moba@gluon", "bitstopper@gather"} & set(names)
    catalog.check_implementations(names)


def test_dense_attention_of_an_engine_exists_once():
    assert "full@triton" in catalog.implementations()
    assert "full@triton-tiled" not in catalog.implementations()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("full@sdpa-flsh", "'full@sdpa-flsh' does not exist; did you mean 'full@sdpa-flash'?"),
        ("bsa@sdpa-flash", "bsa needs an engine that offers blocks, sdpa-flash does not; use one of bsa@flex, "),
        ("nothing@at-all", "there are: full@sdpa-math, "),
        ("full", "'full' does not exist; "),
    ],
)
def test_an_implementation_that_does_not_exist_is_refused_with_what_there_is(name, message):
    with pytest.raises(UsageError) as caught:
        catalog.check_implementations(["full@sdpa-math", name])
    assert message in str(caught.value)


def test_a_third_party_engine_is_found_by_its_entry_point(monkeypatch):
    theirs = SimpleNamespace(
        name="mine", offers=frozenset({"dense", "blocks"}), unsupported=lambda *_, **__: "needs a TPU; buy one."
    )
    entry = SimpleNamespace(name="mine", load=lambda: theirs)
    monkeypatch.setattr(catalog, "entry_points", lambda group: [entry] if group == "bsa_bench.engines" else [])
    assert {"full@mine", "bsa@mine"} <= set(catalog.implementations())
    catalog.check_implementations(["bsa@mine"])
    assert catalog.load_engine("mine") is theirs
    asked = catalog.unsupported("bsa@mine", torch.device("cpu"), torch.float32, 64, backward=True)
    assert asked == "needs a TPU; buy one."
    theirs.offers = frozenset({"dense"})
    asked = catalog.unsupported("bsa@mine", torch.device("cpu"), torch.float32, 64, backward=True)
    assert asked == "mine does not offer blocks, which bsa needs."


def test_loading_an_unknown_engine_names_those_that_there_are():
    with pytest.raises(UsageError, match="'warp' is not registered; there are: sdpa-math, "):
        catalog.load_engine("warp")
