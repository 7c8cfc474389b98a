"""The engine `triton` inside torch: compile, export, autocast, checkpointing, determinism, and a table of one's own."""

import pytest
import torch
from kernel_helpers import DEVICE, hand_plan, make_tiles, prepare_tables, qkv, random_mask, run_tiles
from torch.utils.checkpoint import checkpoint

from bsa_kernels import BlockGrid, bsa_attention, grid, make_bsa_plan, tile_permute, tile_restore
from bsa_kernels.block_sparse import lists, ops, triton_attend, triton_gradients
from bsa_kernels.block_sparse.tables import KernelTables, Layout
from bsa_kernels.block_sparse.tile_table import ENVIRONMENT, Tile
from bsa_kernels.engines import triton
from bsa_kernels.methods.bsa import ops as selection_ops
from bsa_kernels.methods.bsa import stages
from bsa_kernels.methods.bsa.options import BsaOptions

FP16, FP32 = torch.float16, torch.float32
GRID = (4, 4, 7)
OWN_TILE = """
[[tile]]
kernel = "{kernel}"
arch = "{arch}"
head_dim = 64
kept_rows = 32
rows = {rows}
keys = 16
group = {group}
num_warps = 4
num_stages = 2
is_default_backward = true
reason = "a test"
"""


def attend(q, k, v, **options):
    return bsa_attention(q, k, v, **{"grid": GRID, "kv_density": 0.6, "engine": "triton", **options})


def inputs_of(dtype=FP32, *, heads=1, grid=GRID):
    return qkv(grid, 16, dtype, heads=heads)


def results(function, inputs):
    """Output and gradients, by name."""
    leaves = (inputs.q, inputs.k, inputs.v)
    out = function(*leaves)
    found = (out.detach(), *torch.autograd.grad(out, leaves, inputs.do))
    return dict(zip(("o", "dq", "dk", "dv"), found, strict=True))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, result in found.items():
        assert torch.equal(result, expected[name]), name


@pytest.fixture(scope="module")
def eager():
    """Inputs, and the eager results."""
    inputs = inputs_of()
    return inputs, results(attend, inputs)


def watch(monkeypatch, module, name):
    """Note the calls of a launcher: their arguments, in a list."""
    calls, launch = [], getattr(module, name)

    def noted(*arguments, **options):
        calls.append((arguments, options))
        return launch(*arguments, **options)

    monkeypatch.setattr(module, name, noted)
    return calls


# Compilers


@pytest.mark.slow
def test_compile_traces_the_whole_operator_and_gives_the_same(eager):
    inputs, expected = eager
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert_equal(results(compiled, inputs), expected)


@pytest.mark.slow
def test_compile_takes_lists_whose_size_it_cannot_know(eager, monkeypatch):
    inputs, expected = eager
    monkeypatch.setattr(lists, "MAX_WORST_CASE", 2)
    torch._dynamo.reset()
    assert_equal(results(torch.compile(attend, fullgraph=True, backend="aot_eager"), inputs), expected)


@pytest.mark.slow
def test_a_compiled_model_around_the_operator_gives_the_same():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.project = torch.nn.Linear(16, 48, bias=False, device=DEVICE)

        def forward(self, x):
            q, k, v = self.project(x).unflatten(-1, (3, 1, 16)).unbind(-3)  # views of [B, L, H, D]
            q, k, v = (tile_permute(y.transpose(1, 2), grid=GRID) for y in (q, k, v))
            return tile_restore(attend(q, k, v, tiled=True), grid=GRID).transpose(1, 2).flatten(2)

    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, x = Layer(), torch.randn(1, 4 * 4 * 7, 16, device=DEVICE)
    found = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        out = function(x)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), layer.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_an_exported_program_gives_the_same(eager):
    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return attend(q, k, v)

    inputs, expected = eager
    q, k, v = (x.detach() for x in (inputs.q, inputs.k, inputs.v))
    program = torch.export.export(Attention(), (q, k, v))
    # What runs without gradients is a graph of its own.
    graphs = [each.graph for each in program.graph_module.modules() if isinstance(each, torch.fx.GraphModule)]
    targets = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}
    assert {f"bsa_kernels.{name}.default" for name in ("bsa_select", "make_tables", "attend")} <= targets
    assert torch.equal(program.module()(q, k, v), expected["o"])


def operator_plan():
    made = BlockGrid(GRID, (4, 4, 4))
    return hand_plan(made, made, random_mask(made, made, 0.6, heads=1))


def operator_case(dtype=FP32):
    tables = prepare_tables(operator_plan(), head_dim=16, dtype=dtype, tiles=make_tiles(32, group=2))
    return inputs_of(dtype), tables


@pytest.mark.slow
@pytest.mark.parametrize("to_tiles", [False, True])
def test_the_operator_of_permutation_keeps_torch_s_rules(to_tiles):
    made = BlockGrid(GRID, (4, 4, 4))
    length = made.num_tokens if to_tiles else made.num_slots
    x = torch.randn(2, length, 3, 8, device=DEVICE).transpose(1, 2).requires_grad_()
    torch.library.opcheck(grid._permute, (x, [*made.grid, *made.block], to_tiles))


@pytest.mark.slow
def test_the_operator_of_tables_keeps_torch_s_rules(monkeypatch):
    _, tables = operator_case()
    reserve = lists._reserve

    def cleared(*arguments):
        starts, items = reserve(*arguments)
        return starts, items.zero_()

    monkeypatch.setattr(lists, "_reserve", cleared)  # two runs are compared, also what stands past the lists
    plan = operator_plan()
    torch.library.opcheck(ops._make_walk, (plan.kept_slots, plan.block_bits, tables.code))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"query_keep": 1}, {"query_rule": "block"}, {"query_keep": 1, "kv_density": 1}]
)
def test_the_operator_of_selection_keeps_torch_s_rules(options):
    inputs = inputs_of()
    wanted = BsaOptions(**{"grid": GRID, "kv_density": 0.6, **options})
    torch.library.opcheck(selection_ops._select, (inputs.q.detach(), inputs.k.detach(), wanted.code, 0.25, False))


@pytest.mark.slow
def test_the_operator_of_attention_keeps_torch_s_rules():
    inputs, tables = operator_case()
    torch.library.opcheck(ops._attend, (inputs.q, inputs.k, inputs.v, tables.tensors, tables.code, 0.25))


@pytest.mark.slow
def test_the_operator_of_the_backward_keeps_torch_s_rules():
    inputs, tables = operator_case()
    q, k, v = (x.detach() for x in (inputs.q, inputs.k, inputs.v))
    o, lse = ops._attend(q, k, v, tables.tensors, tables.code, 0.25)
    arguments = (inputs.do, q, k, v, o, lse, tables.tensors, tables.code, 0.25)
    torch.library.opcheck(ops._attend_backward, arguments)
    torch.library.opcheck(ops._attend_backward, (*arguments, torch.ones_like(lse)))


@pytest.mark.parametrize("options", [{}, {"query_keep": 1}, {"query_block": (4, 4, 8)}, {"query_rule": "block"}])
@pytest.mark.parametrize("sides", [GRID, (8, 4, 4)])
def test_a_compiler_knows_the_shapes_of_selection_and_tables_without_running(sides, options):
    wanted = BsaOptions(grid=sides, **options)
    q = inputs_of(FP16, grid=sides).q.detach()
    selected = selection_ops.select(q, q, wanted, scale=0.25, is_tiled=False)
    plan = stages.build_plan(selected, wanted)
    tables = prepare_tables(plan, head_dim=16, dtype=FP16)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(q)
        traced = selection_ops.select(fake, fake, wanted, scale=0.25, is_tiled=False)
        traced_tables = ops.make_tables(stages.build_plan(traced, wanted), tables.code)
    for real, shape in zip((*selected, *tables.tensors), (*traced, *traced_tables.tensors), strict=True):
        assert (real.shape, real.dtype) == (shape.shape, shape.dtype)
        assert real.is_contiguous()


def test_what_crosses_an_operator_comes_out_as_it_went_in():
    wanted = BsaOptions(grid=GRID, query_block=(4, 4, 8), query_keep=0.3, kv_density=1 / 3, fill="zero")
    assert BsaOptions.decode(wanted.code) == wanted
    tables = prepare_tables(operator_plan(), head_dim=16, dtype=FP16, tiles=make_tiles(32, group=2, transposed=True))
    layout = tables.layout
    assert Layout.decode(layout.encode()) == layout == Layout.decode(tables.code)
    assert (layout.fills, layout.is_tiled, layout.tiles) == (True, False, make_tiles(32, group=2, transposed=True))
    again = KernelTables.of(tables.tensors, tables.code)
    assert all(getattr(again, name) is getattr(tables, name) for name in vars(tables) if name != "code")


# Autocast


@pytest.mark.slow
def test_autocast_converts_first_and_gradients_come_back_in_the_inputs_format():
    inputs = inputs_of()
    expected = results(attend, inputs.to(FP16))
    with torch.autocast(DEVICE.type, dtype=FP16):
        out = attend(inputs.q, inputs.k, inputs.v)
    assert out.dtype == FP16
    gradients = torch.autograd.grad(out, (inputs.q, inputs.k, inputs.v), inputs.do.half())
    assert torch.equal(out, expected["o"])
    for name, gradient in zip(("dq", "dk", "dv"), gradients, strict=True):
        assert gradient.dtype == FP32
        assert torch.equal(gradient, expected[name].float()), name


def test_autocast_to_bfloat16_is_what_the_engine_is_asked_for(monkeypatch):
    inputs = inputs_of()
    monkeypatch.setattr(triton.TritonEngine, "unsupported", lambda _, device, dtype, *__, **___: f"got {dtype}")
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16), pytest.raises(ValueError, match=r"got torch\.bfloat16"):
        attend(inputs.q, inputs.k, inputs.v)
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        attend(inputs.q, inputs.k, inputs.v)


def test_autocast_leaves_doubles_alone():
    inputs = inputs_of(torch.float64)
    with torch.autocast(DEVICE.type, dtype=FP16):
        assert attend(inputs.q, inputs.k, inputs.v, engine="reference").dtype == torch.float64


# Training


@pytest.mark.slow
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(use_reentrant, eager):
    inputs, expected = eager
    leaves = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    out = checkpoint(attend, *leaves, use_reentrant=use_reentrant)
    out.backward(inputs.do)  # reentrant checkpointing does not take `torch.autograd.grad`
    found = (out.detach(), *(x.grad for x in leaves))
    assert_equal(dict(zip(expected, found, strict=True)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("is_deterministic", [False, True])
def test_deterministic_algorithms_take_the_split_form_whatever_the_tiles_say(is_deterministic, monkeypatch):
    inputs = inputs_of()
    made = BlockGrid(GRID, (4, 4, 4))
    plan = hand_plan(made, made, random_mask(made, made, 0.6, heads=1))
    expected = run_tiles(inputs, plan, make_tiles(32, backward="split"))
    calls = watch(monkeypatch, triton_gradients, "launch_grad_kv")
    torch.use_deterministic_algorithms(is_deterministic)
    try:
        found = run_tiles(inputs, plan, make_tiles(32, backward="fused"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert [options["is_fused"] for _, options in calls] == [not is_deterministic]
    if is_deterministic:
        assert_equal(found, expected)


@pytest.mark.slow
def test_two_backwards_through_one_output_give_the_same():
    inputs = inputs_of()
    out = attend(inputs.q, inputs.k, inputs.v)
    first = torch.autograd.grad(out, inputs.v, inputs.do, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(out, inputs.v, inputs.do)[0])


# A table of one's own


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2])
def test_the_table_that_the_environment_names_is_launched(group, tmp_path, monkeypatch):
    inputs = inputs_of(FP16)
    plan = make_bsa_plan(inputs.q, inputs.k, grid=GRID, kv_density=0.6)
    arch = triton.arch_of(DEVICE)
    entries = [OWN_TILE.format(kernel=k, arch=arch, rows=32 * group, group=group) for k in ("attend", "grad_q")]
    entries += [OWN_TILE.format(kernel=k, arch=arch, rows=32, group=1) for k in ("grad_kv", "grad_fused")]
    (tmp_path / "tiles.toml").write_text("".join(entries))
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "tiles.toml"))
    walk, packed = Tile(32 * group, 16, 4, 2, group=group), Tile(32, 16, 4, 2)
    chosen = triton.TRITON.layout_for(plan, head_dim=16, dtype=FP16).tiles
    assert (chosen.attend, chosen.grad_q, chosen.grad_kv, chosen.grad_fused) == (walk, walk, packed, packed)
    calls = watch(monkeypatch, triton_attend, "launch_attend")
    backward = watch(monkeypatch, triton_gradients, "launch_grad_kv")
    found = results(attend, inputs)
    assert [arguments[3].layout.tiles for arguments, _ in calls] == [chosen]
    assert [(arguments[5].layout.tiles, options["is_fused"]) for arguments, options in backward] == [(chosen, True)]
    assert_equal(found, run_tiles(inputs, plan, chosen))
