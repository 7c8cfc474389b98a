"""The compiled Triton kernels at real sizes, on a GPU: exact at sampled rows, and what only a device can show."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from kernel_helpers import (
    BUDGET_FACTOR,
    DEVICE,
    Inputs,
    assert_close_to_reference,
    assert_tiles_close,
    hand_plan,
    make_tiles,
    max_error,
    qkv,
    random_mask,
    run,
    run_tiles,
)

from bsa_kernels import BlockGrid, bsa_attention, make_bsa_plan
from bsa_kernels.bits import unpack_bits
from bsa_kernels.block_sparse import triton_gradients
from bsa_kernels.block_sparse.tile_table import DEFAULT_TABLE, Tile, Tiles, arch_of, load_tiles
from bsa_kernels.configurations import candidates
from bsa_kernels.methods.bsa import stages
from bsa_kernels.methods.bsa.options import BsaOptions

pytestmark = pytest.mark.gpu

ONE = (4, 4, 4)
WAN_480P = (21, 30, 52)  # 81 frames at 480x832
SMALL = (14, 32, 52)  # 23,296 tokens
LONG = (40, 48, 80)  # 153,600 tokens
HUGE = (16, 16, 3908)  # 1,000,448 tokens
SMOKE = pytest.mark.smoke
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
NAMES = ("o", "dq", "dk", "dv")


def made_here(grid, dtype, *, heads, head_dim=128, seed=0):
    """Gaussian inputs like those of `qkv`, drawn on the device: on the host so many take minutes."""
    make = torch.Generator(DEVICE).manual_seed(seed)
    shape = (1, heads, grid[0] * grid[1] * grid[2], head_dim)
    q, k, v, do = (torch.randn(shape, dtype=dtype, device=DEVICE, generator=make) for _ in range(4))
    return Inputs(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), do)


def operator(grid, engine="triton", **options):
    """The whole operator, as a function of inputs that gives its results by name."""

    def attend(inputs):
        leaves = (inputs.q, inputs.k, inputs.v)
        out = bsa_attention(*leaves, grid=grid, engine=engine, **options)
        return dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, leaves, inputs.do)), strict=True))

    return attend


def selected(inputs, grid, **options):
    """The plan that the operator makes for itself."""
    made = BsaOptions(grid=grid, **options)
    q, k = inputs.q.detach(), inputs.k.detach()
    return stages.build_plan(stages.select_tokens(q, k, made, scale=q.shape[-1] ** -0.5), made)


def real_case(dtype, head_dim, grid=WAN_480P):
    inputs = qkv(grid, head_dim, dtype)
    return inputs, make_bsa_plan(inputs.q, inputs.k, grid=grid, kv_density=0.1)


@contextmanager
def deterministic():
    """The split form, so that results compare to the bit; without filling memory, which a graph would keep."""
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fills


def assert_equal(found, expected):
    for name, result in found.items():
        assert torch.equal(result, expected[name]), name


# Numerics


def query_block(inputs, plan, head, block, dtype):
    """What one query block of a head gives and adds, in fp64, with the roundings of a kernel in `dtype` (fp64: none).

    Returns:
        Its kept tokens and the tokens it sees; `o` and `dq` of its rows; what it adds to `dk` and `dv`.
    """

    def rounded(x):
        return x.to(dtype).double()

    scale = inputs.q.shape[-1] ** -0.5
    slots, fill = plan.kept_slots[0, head, block], plan.fill[0, head, block]
    token_of_slot = plan.q_grid.token_of_slot(DEVICE)[block]
    tokens = token_of_slot[slots[slots >= 0]]
    listed = unpack_bits(plan.block_bits[0, head, block], plan.kv_grid.num_blocks)
    seen = plan.kv_grid.token_of_slot(DEVICE)[listed]
    seen = seen[seen >= 0]
    q, k, v = inputs.q[0, head, tokens], inputs.k[0, head, seen], inputs.v[0, head, seen]
    q, k, v = (x.detach().double() for x in (q, k, v))
    taken = inputs.do[0, head, token_of_slot[fill >= 0]].double()
    do = rounded(torch.zeros_like(q).index_add_(0, fill[fill >= 0], taken))
    weights = (scale * q @ k.T).softmax(-1)
    o = rounded(rounded(weights) @ v)
    dscores = rounded(weights * (do @ v.T - (o * do).sum(-1, keepdim=True)))
    adds = {"dk": scale * dscores.T @ q, "dv": rounded(weights).T @ do}
    return {"tokens": tokens, "seen": seen, "o": o, "dq": scale * dscores @ k, **adds}


def key_block(inputs, plan, head, block, dtype):
    """`dk` and `dv` of the tokens of a KV block, from all query blocks that see it."""
    words = plan.block_bits[0, head, :, block // 32]
    tokens = plan.kv_grid.token_of_slot(DEVICE)[block]
    tokens = tokens[tokens >= 0]
    sums = {name: torch.zeros(len(tokens), inputs.k.shape[-1], dtype=FP64, device=DEVICE) for name in ("dk", "dv")}
    for seeing in (words >> block % 32 & 1).nonzero().flatten().tolist():
        adds = query_block(inputs, plan, head, seeing, dtype)
        seen, order = adds["seen"].sort()
        at = order[torch.searchsorted(seen, tokens)]
        for name in sums:
            sums[name] += adds[name][at]
    return {"tokens": tokens, **sums}


def assert_exact_at(inputs, plan, results, heads, q_blocks, kv_blocks):
    """Compare rows and keys of blocks with the definition in fp64, inside what its roundings cost."""
    dtype = inputs.q.dtype
    for head in heads:
        cases = [(block, query_block, ("o", "dq")) for block in q_blocks]
        cases += [(block, key_block, ("dk", "dv")) for block in kv_blocks]
        for block, define, names in cases:
            exact, rounded = (define(inputs, plan, head, block, kind) for kind in (FP64, dtype))
            for name in names:
                budget = BUDGET_FACTOR * max_error(rounded[name], exact[name])
                budget += torch.finfo(dtype).eps * float(exact[name].abs().max())
                error = max_error(results[name][0, head, exact["tokens"]], exact[name])
                assert error <= budget, f"{name}, head {head}, block {block}: error {error:.3g}, budget {budget:.3g}"
        for block in q_blocks:
            assert_filled(plan, results, head, block)


def assert_filled(plan, results, head, block):
    """Pruned tokens have their source's output, to the bit, and no gradient."""
    fill, tokens = plan.fill[0, head, block], plan.q_grid.token_of_slot(DEVICE)[block]
    source = tokens[plan.kept_slots[0, head, block, fill[fill >= 0]]]
    tokens = tokens[fill >= 0]
    o, dq = results["o"][0, head], results["dq"][0, head]
    assert torch.equal(o[tokens], o[source])
    assert (dq[tokens[tokens != source]] == 0).all()


def assert_operator_is_exact(grid, dtype, *, heads, head_dim=128, kv_density=0.1, engine="triton"):
    """Run the whole operator and check the first, a middle and the last block of the first and the last head."""
    inputs = made_here(grid, dtype, heads=heads, head_dim=head_dim)
    plan = selected(inputs, grid, kv_density=kv_density)
    results = operator(grid, engine, kv_density=kv_density)(inputs)
    last = plan.q_grid.num_blocks - 1
    assert_exact_at(inputs, plan, results, {0, heads - 1}, (0, last // 3, last), (last // 2, last))
    assert all(torch.isfinite(result).all() for result in results.values())


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("head_dim", [64, pytest.param(128, marks=SMOKE)])
def test_a_short_video_is_exact_at_sampled_blocks(head_dim, dtype):
    assert_operator_is_exact(SMALL, dtype, heads=12, head_dim=head_dim)


hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a GPU of the Hopper kind"
)


@hopper
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("grid", [SMALL, WAN_480P, LONG])
def test_the_specialised_forward_is_exact_at_sampled_blocks(grid, head_dim, dtype):
    assert_operator_is_exact(grid, dtype, heads=4, head_dim=head_dim, engine="gluon")


@hopper
@pytest.mark.parametrize("keep", [pytest.param(0.5, marks=SMOKE), 1.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_specialised_forward_agrees_with_the_other_on_ragged_grids(head_dim, keep):
    for seed, grid in enumerate([(9, 14, 17), (5, 30, 52), (21, 7, 9), (1, 64, 64)] * 4):
        inputs = qkv(grid, head_dim, BF16, seed=seed)
        plan = make_bsa_plan(inputs.q, inputs.k, grid=grid, query_keep=keep, kv_density=0.2)
        assert_close_to_reference("gluon", inputs, plan, backward=False)


@hopper
def test_two_runs_of_the_specialised_forward_give_the_same_bits():
    inputs = made_here(LONG, BF16, heads=4)
    plan = selected(inputs, LONG)
    first, second = (run("gluon", inputs, plan, backward=False)["o"] for _ in range(2))
    assert torch.equal(first, second)


@hopper
def test_a_graph_of_the_specialised_forward_gives_what_a_call_gives():
    inputs = made_here(SMALL, BF16, heads=4)
    q, k, v = (x.detach() for x in (inputs.q, inputs.k, inputs.v))

    def attend():
        return bsa_attention(q, k, v, grid=SMALL, engine="gluon")

    expected = attend()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend()
    graph.replay()
    assert torch.equal(captured, expected)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_a_long_video_is_exact_at_sampled_blocks(dtype):
    assert_operator_is_exact(LONG, dtype, heads=12)


def test_tensors_of_more_than_two_to_the_31_numbers_are_exact_at_sampled_blocks():
    if torch.cuda.mem_get_info()[0] < 90 << 30:
        pytest.skip("needs 90 GiB of free GPU memory")
    assert 24 * 128 * HUGE[0] * HUGE[1] * HUGE[2] > 1 << 31
    assert_operator_is_exact(HUGE, BF16, heads=24, kv_density=0.01)


def assert_wide_strides_agree(grid, step, dtype, **form):
    """Tokens `step` numbers apart give what tokens side by side give."""
    inputs = qkv(grid, 64, dtype, heads=1)
    made = BlockGrid(grid, ONE)
    plan = hand_plan(made, made, random_mask(made, made, 0.6, heads=1))
    rows = torch.zeros(made.num_tokens, step, dtype=dtype, device=DEVICE)
    with torch.no_grad():
        rows[:, :64], rows[:, 64:128] = inputs.k[0, 0], inputs.v[0, 0]
    k, v = (rows[None, None, :, first : first + 64].detach().requires_grad_() for first in (0, 64))
    assert k.stride(2) == v.stride(2) == step
    tiles = make_tiles(32, **form)
    assert_equal(run_tiles(replace(inputs, k=k, v=v), plan, tiles), run_tiles(inputs, plan, tiles))


@pytest.mark.parametrize("form", [{"group": 2}, {"transposed": True, "keys": 32}])
def test_tokens_of_a_block_may_lie_more_than_two_to_the_31_numbers_apart(form):
    if torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs 8 GiB of free GPU memory")
    assert ((3 * 4 + 3) * 8 + 3) * 18_000_000 > 1 << 31
    assert_wide_strides_agree((4, 4, 8), 18_000_000, BF16, **form)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_real_video_errs_no_more_than_gathering_does(head_dim, dtype):
    inputs, plan = real_case(dtype, head_dim)
    exact = run("gather", inputs.to(FP64), plan)
    gathered = run("gather", inputs, plan)
    for name, result in run("triton", inputs, plan).items():
        floor = torch.finfo(dtype).eps * float(exact[name].abs().max())
        assert max_error(result, exact[name]) <= BUDGET_FACTOR * max_error(gathered[name], exact[name]) + floor, name


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("engine", ["triton", "gather", "flex"])
def test_every_engine_agrees_on_the_same_plan(engine, dtype):
    inputs, plan = real_case(dtype, 64, grid=(8, 14, 16))
    assert_close_to_reference(engine, inputs, plan)


# Tiles


def assert_tile_agrees(kernel, tile, *, head_dim, kept, kv_block, dtype, grid=(9, 8, 17)):
    """Run one kernel with a tile, the others with plain ones, on lists with and without padding."""

    def walk(side):
        rows = side * kept if side > 1 else min(kept, 64)
        return Tile(rows, 32, num_warps=8 if rows * head_dim > 64 * 128 else 4, num_stages=1, group=side)

    plain = Tile(min(kept, 32), 32, num_warps=8 if head_dim > 128 else 4, num_stages=1)
    each = {"attend": walk(tile.group), "grad_q": walk(tile.group), "grad_kv": plain, "grad_fused": plain, kernel: tile}
    tiles = Tiles(**each, backward="fused" if kernel == "grad_fused" else "split")
    q_grid = BlockGrid(grid, ONE if kept <= 64 else (4, 4, 8))
    kv_grid = BlockGrid(grid, kv_block)
    plan = hand_plan(q_grid, kv_grid, random_mask(q_grid, kv_grid, 0.5), keep=kept / q_grid.block_size)
    assert plan.shape[3] == kept
    assert_tiles_close(qkv(grid, head_dim, dtype), plan, tiles)


def shipped():
    return [entry for entry in load_tiles(DEFAULT_TABLE) if entry.arch == arch_of(DEVICE)]


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("entry", shipped(), ids=lambda e: f"{e.kernel}-d{e.head_dim}-k{e.kept_rows}-g{e.tile.group}")
def test_every_shipped_tile_agrees(entry, dtype):
    sizes = {"head_dim": entry.head_dim, "kept": entry.kept_rows}
    assert_tile_agrees(entry.kernel, entry.tile, **sizes, kv_block=ONE, dtype=dtype)


def tile_of(config):
    """The tile of a configuration, from what it is compiled for."""
    sizes, options = config.constexprs, (config.num_warps, config.num_stages)
    more = {"group": sizes.get("GROUP", 1), "pack": sizes.get("PACK", 1), "maxnreg": config.maxnreg}
    return Tile(sizes["ROWS"], sizes["KEYS"], *options, transposed=sizes.get("TRANSPOSED", False), **more)


@pytest.mark.parametrize("config", candidates(), ids=lambda config: config.name)
def test_every_candidate_agrees(config):
    if arch_of(DEVICE) != "sm_90":
        pytest.skip("the candidates were weighed for sm_90, and need its shared memory")
    sizes = {"head_dim": config.constexprs["D"], "kept": config.constexprs["K"]}
    kv_block = ONE if config.constexprs["MK"] == 64 else (4, 4, 8)
    assert_tile_agrees(config.name.split("-")[0], tile_of(config), **sizes, kv_block=kv_block, dtype=BF16)


# The device


def test_two_runs_of_the_split_form_give_the_same_bits_at_real_size():
    inputs = made_here(LONG, BF16, heads=4)
    plan = selected(inputs, LONG)
    first, second = (run_tiles(inputs, plan, make_tiles(32, group=2)) for _ in range(2))
    assert_equal(first, second)


@SMOKE
def test_deterministic_algorithms_run_the_whole_operator_in_split_form(monkeypatch):
    inputs, attend = made_here(SMALL, BF16, heads=4), operator(SMALL)
    launch, forms = triton_gradients.launch_grad_kv, []

    def noted(*arguments, is_fused, **options):
        forms.append(is_fused)
        return launch(*arguments, is_fused=is_fused, **options)

    monkeypatch.setattr(triton_gradients, "launch_grad_kv", noted)
    with deterministic():
        first, second = attend(inputs), attend(inputs)
    assert forms == [False, False]
    assert_equal(first, second)


@pytest.mark.parametrize("grid", [pytest.param(SMALL, marks=SMOKE), WAN_480P])
def test_the_whole_operator_never_waits_for_the_device(grid):
    inputs, attend = made_here(grid, BF16, heads=4), operator(grid)
    attend(inputs)  # compiles, and brings the tables of the grid over
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("grid", [pytest.param(SMALL, marks=SMOKE), WAN_480P])
def test_a_graph_of_the_whole_operator_gives_what_a_call_gives(grid):
    static, attend = made_here(grid, BF16, heads=4), operator(grid)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), deterministic():
        for _ in range(2):
            attend(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with deterministic(), torch.cuda.graph(graph):
        captured = attend(static)
    for seed in (1, 2):
        other = made_here(grid, BF16, heads=4, seed=seed)
        with deterministic():
            expected = attend(other)
        with torch.no_grad():
            for name, x in vars(other).items():
                getattr(static, name).copy_(x)
        graph.replay()
        assert_equal(captured, expected)


@pytest.mark.parametrize("grid", [(8, 16, 16), (5, 14, 15)])
def test_the_operator_compiled_by_inductor_gives_the_same(grid):
    def attend(q, k, v):
        return bsa_attention(q * 1.5, k + 1, v, grid=grid, engine="triton")

    inputs = qkv(grid, 64, BF16)
    leaves, found = (inputs.q, inputs.k, inputs.v), []
    torch._dynamo.reset()
    for function in (attend, torch.compile(attend, fullgraph=True)):
        with deterministic():
            out = function(*leaves)
            found.append(dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, leaves, inputs.do)), strict=True)))
    assert_equal(*found)


@SMOKE
def test_kernels_run_on_the_current_stream():
    grid = (8, 16, 16)
    inputs, plan = real_case(BF16, 64, grid=grid)
    tiles = make_tiles(32, group=2)
    expected = run_tiles(inputs, plan, tiles)
    late = qkv(grid, 64, BF16, scale=0, seed=1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        with torch.no_grad():
            for name in ("q", "k", "v", "do"):
                getattr(late, name).copy_(getattr(inputs, name))
        result = run_tiles(late, plan, tiles)
    stream.synchronize()
    assert_equal(result, expected)
