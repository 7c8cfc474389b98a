"""Verify a tile at a small size, then time its kernel alone at real ones. The timer is an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from bsa_bench.inputs import make_qkv, random_like_output
from bsa_bench.measure.sampling import Protocol, collect, warm_up
from bsa_bench.measure.timer import Timer
from bsa_bench.tune.candidates import Question
from bsa_bench.verify import judged, verify
from bsa_bench.verify.oracle import plan_reference
from bsa_bench.workload import DType, InputSpec, Workload
from bsa_kernels import BlockGrid, BlockPlan, make_bsa_plan
from bsa_kernels.block_sparse.tile_table import Kernel, Tile, Tiles, arch_of, tiles_for
from bsa_kernels.engines.triton import TritonEngine
from bsa_kernels.operator import Operator, Stage

BLOCK_SIZE = 64
HEADS = 12
KV_DENSITY = 0.1
#: Token grids of videos; other lengths become their most cubic factorisation.
VIDEO_GRIDS = {23_296: (16, 28, 52), 32_760: (21, 30, 52), 75_600: (21, 45, 80), 153_600: (40, 48, 80)}
PROTOCOL = Protocol(
    warmup_cap_s=0.2,
    min_samples=7,
    max_samples=30,
    seconds=0.2,
    verify_after=False,
    settle_windows=3,
    window_s=0.03,
    settle_within=0.03,
)
#: Twelve blocks, an odd number along h: some groups of four have two members.
_SMALL = (8, 12, 8)
_SMALL_HEADS, _SMALL_DENSITY = 2, 0.4
_CHECKED: dict[Kernel, tuple[str, ...]] = {
    "attend": ("output",),
    "grad_q": ("output", "grad_q"),
    "grad_kv": ("output", "grad_k", "grad_v"),
    "grad_fused": ("output", "grad_q", "grad_k", "grad_v"),
}


@dataclass(frozen=True, eq=False)
class _Problem:
    """What the kernels work on at one length: inputs, a gradient of the output, the plan, what the forward gave."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    plan: BlockPlan
    o: Tensor
    lse: Tensor


class Bench:
    """Verifies and times tiles on one device, with smooth fields as inputs, which have lists of realistic likeness."""

    def __init__(self, device: torch.device, timer: Timer, *, dtype: DType = "bfloat16", heads: int = HEADS) -> None:
        self._device, self._timer, self._heads = device, timer, heads
        self._dtype_name: DType = dtype
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._problems: dict[tuple[int, int, int], _Problem] = {}

    def fault(self, question: Question, tile: Tile) -> str | None:
        """What is wrong with the kernel's results at a small size; None if nothing is."""
        make = torch.Generator().manual_seed(0)
        grid, head_dim = BlockGrid(_SMALL, (4, 4, 4)), question.head_dim
        shape = (1, _SMALL_HEADS, BLOCK_SIZE * grid.num_blocks, head_dim)
        q, k, v, do = (torch.randn(shape, generator=make).to(self._device, self._dtype) for _ in range(4))
        keep = question.kept_rows / BLOCK_SIZE
        plan = make_bsa_plan(q, k, grid=_SMALL, query_keep=keep, kv_density=_SMALL_DENSITY)
        scale, tiles = head_dim**-0.5, self._tiles(question, tile)
        engine = _engine(tiles)
        tables = engine.prepare(plan, q)
        operator = Operator(
            (
                Stage("plan", (), ("plan", "prepared"), lambda: (plan, tables), differentiable=False),
                Stage(
                    "attend",
                    ("q", "k", "v"),
                    ("o",),
                    lambda q, k, v, plan, prepared: (engine.attend(q, k, v, plan, prepared, scale=scale),),
                    constants=("plan", "prepared"),
                ),
            )
        )
        found, _ = verify(
            operator,
            {"q": q, "k": k, "v": v},
            None if question.kernel == "attend" else do,
            oracle=lambda tensors, _, rows, head: plan_reference(tensors, plan, rows, head, scale=scale),
            grid=grid,
            scale=scale,
            seed=0,
        )
        return judged(found, _CHECKED[question.kernel]).reason

    @torch.no_grad()
    def seconds(self, question: Question, tile: Tile, tokens: int) -> float:
        """Median time of the kernel at a length; what the fused backward adds to it (zeros, its last step) included."""
        call = self._call(question, tile, self._problem(question, tokens))

        def sample() -> float:
            return self._timer.sample(call)

        sample()  # compiles, and would use up the warm-up
        warm_up(sample, PROTOCOL)
        return median(collect(sample, PROTOCOL))

    def _tiles(self, question: Question, tile: Tile) -> Tiles:
        """The tiles in force with one in its place; the two kernels that share groups follow it."""
        base = self._in_force(question)
        if question.kernel in {"attend", "grad_q"}:
            plain = replace(tile, transposed=False)
            return replace(base, attend=tile if question.kernel == "attend" else plain, grad_q=plain, backward="split")
        if question.kernel == "grad_kv":
            return replace(base, grad_kv=tile, backward="split")
        return replace(base, grad_fused=tile, backward="fused")

    def _in_force(self, question: Question) -> Tiles:
        return tiles_for(
            arch=arch_of(self._device),
            head_dim=question.head_dim,
            kept_rows=question.kept_rows,
            block_keys=BLOCK_SIZE,
            dtype=self._dtype,
        )

    def _call(self, question: Question, tile: Tile, on: _Problem) -> Callable[[], object]:
        from bsa_kernels.block_sparse.triton_attend import launch_attend
        from bsa_kernels.block_sparse.triton_gradients import launch_grad_kv, launch_grad_q, launch_pack_rows

        scale, tiles = question.head_dim**-0.5, self._tiles(question, tile)
        tables = _engine(tiles).prepare(on.plan, on.q)
        if question.kernel == "attend":
            return lambda: launch_attend(on.q, on.k, on.v, tables, scale=scale)
        rows = launch_pack_rows(on.q, on.o, on.do, tables)
        if question.kernel == "grad_q":
            return lambda: launch_grad_q(on.q, on.k, on.v, rows, on.lse, tables, scale=scale)
        is_fused = question.kernel == "grad_fused"
        return lambda: launch_grad_kv(on.q, on.k, on.v, rows, on.lse, tables, scale=scale, is_fused=is_fused)

    def _problem(self, question: Question, tokens: int) -> _Problem:
        key = (tokens, question.head_dim, question.kept_rows)
        if key not in self._problems:
            self._problems[key] = self._made(question, tokens)
        return self._problems[key]

    def _made(self, question: Question, tokens: int) -> _Problem:
        from bsa_kernels.block_sparse.triton_attend import launch_attend

        workload = workload_of(tokens, head_dim=question.head_dim, heads=self._heads, dtype=self._dtype_name)
        same = next((p for (n, d, _), p in self._problems.items() if (n, d) == (tokens, question.head_dim)), None)
        if same is None:
            inputs = make_qkv(workload, device=self._device.type)
            q, k, v, do = inputs.q, inputs.k, inputs.v, random_like_output(workload, self._device.type)
        else:
            q, k, v, do = same.q, same.k, same.v, same.do
        keep = question.kept_rows / BLOCK_SIZE
        plan = make_bsa_plan(q, k, grid=workload.token_grid, query_keep=keep, kv_density=KV_DENSITY)
        tables = _engine(self._in_force(question)).prepare(plan, q)
        o, lse = launch_attend(q, k, v, tables, scale=question.head_dim**-0.5)
        return _Problem(q, k, v, do, plan, o, lse)


def _engine(tiles: Tiles) -> TritonEngine:
    return TritonEngine(change_tiles=lambda *_: tiles)


def workload_of(tokens: int, *, head_dim: int, heads: int, dtype: DType) -> Workload:
    """What is timed at a length."""
    grid = VIDEO_GRIDS.get(tokens)
    length = {"grid": grid} if grid else {"tokens": tokens}
    return Workload(**length, heads=heads, head_dim=head_dim, dtype=dtype, input=InputSpec(kind="smooth"))
