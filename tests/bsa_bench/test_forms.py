"""Forms of our kernels: what their names mean, and that each computes the same."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from run_factory import case

from bsa_bench import catalog
from bsa_bench.catalog import make_case
from bsa_bench.engines.forms import FORMS, Extent, parse_forms
from bsa_bench.errors import UnsupportedError, UsageError
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.prepare import failure
from bsa_bench.result import Case, Status
from bsa_bench.run.estimate import ENGINE_COST, OTHER_ENGINE, DeviceModel, engine_cost, is_interpreted, predict
from bsa_bench.suite import override
from bsa_bench.suite.load import load_suite
from bsa_bench.verify import verify_case
from bsa_bench.workload import Workload
from bsa_kernels.block_sparse.tile_table import tiles_for

GRID = (8, 8, 4)


def tiles(kept_rows, head_dim=128):
    return tiles_for(arch="sm_90", head_dim=head_dim, kept_rows=kept_rows, block_keys=64, dtype=torch.bfloat16)


def formed(name, kept_rows=32, head_dim=128):
    found = tiles(kept_rows, head_dim)
    for form in parse_forms(name, engine="triton"):
        found = form.change_tiles(found, Extent(kept_rows, head_dim))
    return found


def operator(implementation, **options):
    workload = Workload(grid=GRID, heads=1, head_dim=16, dtype="float16")
    one = make_case(
        suite="s",
        workload=workload,
        implementation=implementation,
        passes="forward",
        options=BsaOptions(kv_density=0.5, **options),
    )
    return one, catalog.build_operator(one, scale=0.25)


def inputs():
    make = torch.Generator().manual_seed(3)
    q, k, v, grad = (torch.randn(1, 1, 256, 16, generator=make).half() for _ in range(4))
    return {"q": q, "k": k, "v": v}, grad


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        *(f"triton:{form}" for form in FORMS),
        *("triton:fused+pack", "triton:quad+s3+fused+random-lists", "triton-tiled:quad+fused+random-lists"),
    ],
)
def test_every_form_gives_output_and_gradients_within_their_budget(engine):
    one, built = operator(f"bsa@{engine}")
    method, options = catalog.load_method("bsa"), catalog.options_of(one)
    found, _ = verify_case(one, method, built, *inputs(), options=options, scale=0.25, seed=0)
    assert found.passed, found.reason
    assert found.checked.keys() == {"output", "grad_q", "grad_k", "grad_v"}


def test_dense_attention_has_forms_too():
    tensors, _ = inputs()
    plain, pairs = (catalog.load_engine(name).dense(**tensors, scale=0.25) for name in ("gather", "triton:pair"))
    torch.testing.assert_close(pairs, plain, atol=2e-3, rtol=2e-3)


def test_forms_change_the_aspect_that_they_name_and_no_other():
    base = tiles(32)
    pair, quad = formed("pair"), formed("quad")
    assert (pair.attend.rows, pair.attend.group, pair.grad_q.group, pair.attend.num_warps) == (64, 2, 2, 4)
    assert (quad.attend.rows, quad.attend.group, quad.attend.num_warps) == (128, 4, 8)
    assert (quad.grad_kv, quad.grad_fused, quad.backward) == (base.grad_kv, base.grad_fused, base.backward)
    flat = formed("t32")
    assert flat.attend == replace(formed("m32").attend, transposed=True)
    assert (flat.attend.rows, flat.attend.group, flat.grad_q.transposed) == (32, 1, False)
    staged = formed("s3")
    assert {each.num_stages for each in (staged.attend, staged.grad_q, staged.grad_kv, staged.grad_fused)} == {3}
    assert formed("fused") == replace(base, backward="fused")
    assert formed("split+s2").backward == "split"
    packed = formed("pack")
    assert (packed.grad_kv.pack, packed.grad_kv.rows, packed.grad_fused.pack) == (2, 64, 2)
    assert packed.attend == base.attend


@pytest.mark.parametrize(("form", "kept_rows"), [("quad", 64), ("pack", 64), ("pair", 128)])
def test_a_form_without_a_tile_for_so_many_rows_is_unsupported_and_says_so(form, kept_rows):
    with pytest.raises(UnsupportedError, match=f"kept rows have {kept_rows * (4 if form == 'quad' else 2)} rows, "):
        formed(form, kept_rows)


@pytest.mark.slow
def test_a_case_that_only_its_own_sizes_rule_out_is_recorded_as_unsupported():
    with pytest.raises(UnsupportedError) as caught:
        operator("bsa@triton:quad", query_keep=1.0)[1].forward(inputs()[0])
    outcome = failure(caught.value)
    assert outcome["status"] is Status.UNSUPPORTED
    assert outcome["reason"].startswith("groups of 4 blocks with 64 kept rows have 256 rows, expected at most 128")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bsa@triton:quadd", "engine 'triton:quadd': there is no form 'quadd', expected some of pair, quad, "),
        ("bsa@triton:quadd", "; did you mean 'quad'?"),
        ("bsa@triton:fused+s9", "there is no form 's9'"),
        ("bsa@triton:quad+fused+pair", "'triton:quad+fused+pair': quad and pair both say the tile, expected one"),
        ("bsa@gather:quad", "gather has no forms, only triton and triton-tiled"),
        ("bsa@tritn:quad", "'bsa@tritn:quad' does not exist; did you mean 'bsa@triton:quad'?"),
        ("bsa@sdpa-flash:quad", "bsa needs an engine that offers blocks"),
    ],
)
def test_a_form_that_does_not_exist_is_refused_with_what_there_is(name, message):
    with pytest.raises(UsageError) as caught:
        catalog.check_implementations(["bsa@triton", name])
    assert message in str(caught.value)


def test_engines_load_in_their_forms_and_keep_the_whole_name():
    engine = catalog.load_engine("triton-tiled:quad+fused")
    assert engine.name == "triton-tiled:quad+fused"
    assert engine.layout == "tiled"
    assert [form.aspect for form in engine.forms] == ["tile", "backward"]
    catalog.check_implementations(["bsa@triton:quad", "full@triton:fused+pack", "bsa@triton-tiled:s1"])
    with pytest.raises(UsageError, match="there is no form 'nothing'"):
        catalog.load_engine("triton:nothing")
    with pytest.raises(UsageError, match="flex has no forms"):
        catalog.load_engine("flex:quad")


def test_a_case_keeps_the_form_in_its_names_and_is_another_measurement():
    plain, form = case("bsa@triton"), case("bsa@triton:fused+pack")
    assert (form.engine, form.base_engine, form.method) == ("triton:fused+pack", "triton", "bsa")
    assert plain.base_engine == plain.engine == "triton"
    assert form.case_id.startswith("bsa@triton:fused+pack/")
    assert form.case_hash != plain.case_hash
    assert form.group.isalnum()
    assert Case.model_validate_json(form.model_dump_json()) == form
    for wrong in ("bsa@triton:", "bsa@triton:a+", "bsa@triton:a/b"):
        with pytest.raises(ValidationError):
            case(wrong)


def test_predictions_take_a_form_for_its_engine():
    cpu = DeviceModel("cpu", flop_per_s=1e12, bytes_per_s=1e11, memory_bytes=8 << 30)
    plain, form, tiled = case("bsa@triton"), case("bsa@triton:quad"), case("bsa@triton-tiled")
    assert engine_cost(form) is engine_cost(plain) is engine_cost(tiled) is ENGINE_COST["triton"]
    assert engine_cost(case("bsa@theirs")) is OTHER_ENGINE
    assert predict(form, cpu) == predict(plain, cpu)
    assert [name for name in ("triton", "triton:quad", "triton-tiled", "gather", "x:y") if is_interpreted(name)] == [
        "triton",
        "triton:quad",
        "triton-tiled",
    ]


def test_forms_are_chosen_on_the_command_line_and_by_patterns_of_limits(tmp_path):
    quick = load_suite("quick", device_kind="cuda")
    chosen = override(quick, ["implementation=bsa@triton:quad,bsa@triton:fused+pack"])
    assert chosen.implementations == ("bsa@triton:quad", "bsa@triton:fused+pack")
    (tmp_path / "mine.toml").write_text(
        'title = "T"\nimplementations = ["bsa@triton", "bsa@triton:fused", "bsa@triton:fused+pack"]\n'
        '[workload]\ntokens = 64\n[limit."bsa@triton:fused*"]\npasses = ["backward"]\n'
    )
    cases = load_suite(str(tmp_path / "mine.toml"), device_kind="cpu").cases()
    assert [c.passes for c in cases if ":" in c.implementation] == ["backward"] * 2


@pytest.mark.slow
def test_launch_and_list_orders_are_permutations():
    tensors, _ = inputs()
    tables = {
        form: operator(f"bsa@triton:pair+{form}" if form else "bsa@triton:pair")[1].run(tensors)["prepared"]
        for form in ("", "unordered", "random-order", "random-lists")
    }
    groups = torch.arange(tables[""].order.shape[-1], dtype=torch.int32)
    assert torch.equal(tables["unordered"].order[0, 0], groups)
    assert torch.equal(tables["random-order"].order[0, 0].sort().values, groups)
    plain, shuffled = tables[""], tables["random-lists"]
    for row, start in enumerate(plain.starts.flatten().tolist()):
        full, count = (int(x.flatten()[row]) for x in (plain.num_full, plain.counts))
        for part in (slice(start, start + full), slice(start + full, start + count)):
            assert sorted(plain.items[part].tolist()) == sorted(shuffled.items[part].tolist())
