"""Bytes of a pass, by arithmetic on the tensors and the lists of its plan. Everything here synchronises.

Shape legend: `B` batch, `H` heads, `Nq`/`Nk` query and KV blocks, `R` groups of `G` query blocks that share a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bsa_bench.contract import by_pass
from bsa_bench.gate.counters_record import Traffic
from bsa_bench.result import PassName

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.contract import Engine
    from bsa_kernels import BlockPlan

_INT32_BYTES = 4


@dataclass(frozen=True)
class TileWalk:
    """How an engine's tiles walk the lists of a plan.

    Args:
        members: [B, H, R, G] query blocks that share a list, -1 where there are fewer.
        forward_tiles, backward_tiles: tiles of rows that walk each list, in the forward and for dq.
        key_tiles: tiles of keys that walk each inverse list, for dk and dv.
        is_fused: dq is made with dk and dv, so that the backward walks no list of query blocks.
    """

    members: Tensor
    forward_tiles: int = 1
    backward_tiles: int = 1
    key_tiles: int = 1
    is_fused: bool = False


def traffic_of(
    tensors: Mapping[str, Tensor], trained: Sequence[str], plan: BlockPlan | None, engine: Engine, which: PassName
) -> Traffic:
    """The bytes of a pass of one case.

    Args:
        tensors: all inputs, `q`, `k` and `v` [B, H, L, D] among them, in the dtype of the case.
        trained: names of those that a backward owes gradients of.
        plan: what the engine attends by; None for what attends by none.
        engine: whose tiles walk the lists.
        which: the pass.
    """
    if plan is None:
        return Traffic(compulsory_bytes=compulsory_bytes(tensors, trained, which))
    lists, q = list_bytes(plan), tensors["q"]
    return Traffic(
        compulsory_bytes=compulsory_bytes(tensors, trained, which, lists=lists),
        list_bytes=lists,
        tile_bytes=tile_bytes(plan, tile_walk(plan, engine, q), which, row_bytes=q.shape[-1] * q.element_size()),
        query_padding_share=1 - plan.q_grid.num_tokens / plan.q_grid.num_slots,
        key_padding_share=1 - plan.keys.num_keys / plan.keys.num_slots,
    )


def compulsory_bytes(tensors: Mapping[str, Tensor], trained: Sequence[str], which: PassName, *, lists: int = 0) -> int:
    """Bytes that a pass has to move between HBM and the chip: each tensor once, and its lists.

    Forward: all inputs, o, the lists. Backward: all inputs, o, do, the gradients, the lists; the log-sum-exp, a D-th of
    o, is left out.
    """
    inputs, out = sum(x.nbytes for x in tensors.values()), tensors["q"].nbytes
    gradients = sum(tensors[name].nbytes for name in trained)
    return int(by_pass(inputs + out + lists, inputs + 2 * out + gradients + lists, which))


def list_bytes(plan: BlockPlan) -> int:
    """Bytes of a plan as lists of int32: the listed KV blocks, and, where rows are pruned, kept rows and fill."""
    entries = int(plan.kv_counts.sum())
    if not plan.keeps_every_row:
        entries += int(plan.num_kept.sum()) + plan.fill.numel()
    return _INT32_BYTES * entries


def tile_bytes(plan: BlockPlan, walk: TileWalk, which: PassName, *, row_bytes: int) -> int:
    """Bytes that all tiles read while they walk their lists, each tile for itself: the traffic with L2.

    Forward: each tile of queries reads K and V of the real keys of every block in the union of its members' lists.
    Backward: the same for dq, unless that is fused; and for dk and dv each tile of keys reads q and do of the kept rows
    of every query block that lists it.

    Args:
        plan, walk: what is walked.
        which: the pass.
        row_bytes: of one row of q, k, v or do, D times the size of a number.
    """
    keys, rows = listed_keys(plan, walk.members), listed_rows(plan)
    forward = keys * walk.forward_tiles
    backward = rows * walk.key_tiles + (0 if walk.is_fused else keys * walk.backward_tiles)
    return 2 * row_bytes * int(by_pass(forward, backward, which))


def listed_keys(plan: BlockPlan, members: Tensor) -> int:
    """Real keys in the lists of all groups, each group's the union of its members' blocks."""
    from bsa_kernels.bits import unpack_bits
    from bsa_kernels.block_sparse.groups import words_of

    listed = unpack_bits(words_of(plan.block_bits, members), plan.num_kv_blocks).any(-2)  # [B, H, R, Nk]
    return int((listed * plan.kv_real_counts(plan.device)).sum())


def listed_rows(plan: BlockPlan) -> int:
    """Kept rows in the inverse lists of all KV blocks: those of a query block once for each block that it lists."""
    return int((plan.kv_counts.long() * plan.num_kept).sum())


def tile_walk(plan: BlockPlan, engine: Engine, like: Tensor) -> TileWalk:
    """How an engine walks a plan for tensors like `like` [B, H, L, D].

    Without tiles of its own that it tells about, each query block is one tile and walks its own list.
    """
    from bsa_kernels.block_sparse.constants import padded_block
    from bsa_kernels.block_sparse.groups import choose_groups_reference

    block: Any = getattr(engine, "block", None)
    if not hasattr(block, "layout_for"):
        return TileWalk(choose_groups_reference(plan.block_bits, plan.q_grid, 1))
    sizes = {"head_dim": like.shape[-1], "dtype": like.dtype}
    layout = block.layout_for(plan, **sizes)
    tiles, kept = layout.tiles, plan.shape[3]
    is_fused = tiles.backward == "fused"
    return TileWalk(
        members=block.list_members(plan, **sizes),
        forward_tiles=-(-kept // tiles.attend.rows) if tiles.attend.group == 1 else 1,
        backward_tiles=-(-kept // tiles.grad_q.rows) if tiles.grad_q.group == 1 else 1,
        key_tiles=padded_block(layout) // (tiles.grad_fused if is_fused else tiles.grad_kv).keys,
        is_fused=is_fused,
    )
