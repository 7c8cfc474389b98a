"""The plan: which query rows are computed, what each query block attends to, how pruned rows are filled.

Shape legend: `B` batch, `H` heads, `Nq`/`Nk` query and KV blocks, `Mq`/`Mk` slots of each, `K` kept rows a query block.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bsa_kernels.bits import count_bits, lists_of_mask, pack_bits, unpack_bits
from bsa_kernels.grid import BlockGrid, take_rows

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """The one contract between a method, which says what is attended, and an engine, which computes it.

    Think of three tables, one entry for each (batch, head, query block):

    * *Which rows.* `kept_slots` [B, H, Nq, K] int32 lists the slots of the block whose query row is computed,
      ascending; the first `num_kept` [B, H, Nq] int32 entries are real and the rest -1.
    * *Which keys.* `block_bits` [B, H, Nq, ceil(Nk/32)] int32 is the block mask, a bit a KV block, as `pack_bits` has
      it: the rows attend to all real tokens of the KV blocks whose bit is set. `block_mask`, `kv_counts` with
      `kv_indices`, and `inverse` derive the mask and its lists on first use; these are up to 32 times as large (a head
      of 1,000,000 tokens in blocks of 64: 31 MB of bits, 244 MB of mask, 977 MB of lists).
    * *Which fill.* `fill` [B, H, Nq, Mq] int32 says for each slot the entry of `kept_slots` whose output it takes (for
      a kept row: its own), or -1 for zero.

    Queries live in the slots of `q_grid`, keys and values in those of `kv_grid`; the two may have different blocks.
    Two flags tell without looking at the data: `has_zero_fill` that a real slot may be filled by zero, and
    `keeps_every_row` that no slot is pruned or padding, which saves copies. An engine returns the outputs of kept rows
    [B, H, Nq, K, D]; `fill_output` makes [B, H, L, D] in natural order of them.
    """

    q_grid: BlockGrid
    kv_grid: BlockGrid
    kept_slots: Tensor
    num_kept: Tensor
    fill: Tensor
    block_bits: Tensor
    has_zero_fill: bool = False
    keeps_every_row: bool = False

    @classmethod
    def from_mask(
        cls,
        q_grid: BlockGrid,
        kv_grid: BlockGrid,
        block_mask: Tensor,
        *,
        kept_slots: Tensor | None = None,
        fill: Tensor | None = None,
        has_zero_fill: bool = False,
    ) -> BlockPlan:
        """Make a plan of a block mask [B, H, Nq, Nk] bool, which keeps every row unless it is told which and the fill.

        Raises:
            ValueError: one of `kept_slots` and `fill` without the other.
        """
        if (kept_slots is None) != (fill is None):
            raise ValueError("from_mask: expected kept_slots and fill together, or neither, got one of them")
        keeps_all = kept_slots is None
        if kept_slots is None or fill is None:
            kept_slots = fill = _every_row(q_grid, block_mask.device).expand(*block_mask.shape[:2], -1, -1)
        return cls(
            q_grid=q_grid,
            kv_grid=kv_grid,
            kept_slots=kept_slots.to(torch.int32),
            num_kept=(kept_slots >= 0).sum(-1, dtype=torch.int32),
            fill=fill.to(torch.int32),
            block_bits=pack_bits(block_mask),
            has_zero_fill=has_zero_fill,
            keeps_every_row=keeps_all and q_grid.is_even,
        )

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.block_bits.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, Nq, K)."""
        b, h, n, k = self.kept_slots.shape
        return b, h, n, k

    def check(self) -> None:
        """Verify the invariants above, all of them; for tests and for plans made by hand (synchronises).

        Raises:
            ValueError: names the table that is wrong.
        """
        b, h, nq, k = self.shape
        nk, mq = self.kv_grid.num_blocks, self.q_grid.block_size
        if self.q_grid.grid != self.kv_grid.grid or nq != self.q_grid.num_blocks:
            raise ValueError(f"plan: grids {self.q_grid} and {self.kv_grid} do not fit {nq} query blocks")
        for name, shape in (
            ("kept_slots", (b, h, nq, k)),
            ("num_kept", (b, h, nq)),
            ("fill", (b, h, nq, mq)),
            ("block_bits", (b, h, nq, -(-nk // 32))),
        ):
            table = getattr(self, name)
            if tuple(table.shape) != shape or table.dtype != torch.int32:
                raise ValueError(f"plan.{name}: expected torch.int32 {shape}, got {table.dtype} {tuple(table.shape)}")
        if ((self.num_kept < 1) | (self.num_kept > k)).any():
            raise ValueError(f"plan.num_kept: expected counts between 1 and {k}")
        entry = torch.arange(k, device=self.device)
        is_kept = entry < self.num_kept.unsqueeze(-1)
        slots = self.kept_slots
        ascending = (slots[..., 1:] > slots[..., :-1]) | ~is_kept[..., 1:]
        real = self.q_grid.real_counts(self.device).view(1, 1, -1, 1)
        if not torch.where(is_kept, (slots >= 0) & (slots < real), slots == -1).all() or not ascending.all():
            raise ValueError("plan.kept_slots: expected num_kept ascending slots of real tokens, then -1")
        may_be_zero = (torch.arange(mq, device=self.device) >= real) | self.has_zero_fill
        lower = torch.where(may_be_zero, -1, 0)
        if ((self.fill < lower) | (self.fill >= self.num_kept.unsqueeze(-1))).any():
            raise ValueError(
                "plan.fill: expected an entry below num_kept, or -1 for padding, and for others with has_zero_fill"
            )
        own = self.fill.gather(-1, slots.clamp(min=0).long())
        if not torch.where(is_kept, own == entry, True).all():
            raise ValueError("plan.fill: a kept row must take its own output")
        if self.keeps_every_row and not (self.q_grid.is_even and (self.num_kept == mq).all()):
            raise ValueError("plan.keeps_every_row: expected False, for a slot is pruned or padding")
        if nk % 32 and (self.block_bits[..., -1] >> nk % 32).any():
            raise ValueError(f"plan.block_bits: expected zeros past the {nk} KV blocks")

    @cached_property
    def block_mask(self) -> Tensor:
        """[B, H, Nq, Nk] bool: query block i sees KV block j."""
        return unpack_bits(self.block_bits, self.kv_grid.num_blocks)

    @cached_property
    def kv_counts(self) -> Tensor:
        """[B, H, Nq] int32: how many KV blocks a query block sees."""
        return count_bits(self.block_bits)

    @cached_property
    def kv_indices(self) -> Tensor:
        """[B, H, Nq, Nk] int32: the KV blocks that a query block sees, ascending, zeros past `kv_counts`."""
        return lists_of_mask(self.block_mask)[1]

    @cached_property
    def inverse(self) -> tuple[Tensor, Tensor]:
        """The transposed lists: `q_counts` [B, H, Nk] and `q_indices` [B, H, Nk, Nq] int32, ascending."""
        return lists_of_mask(self.block_mask.transpose(-1, -2))

    @cached_property
    def kept_rank(self) -> Tensor:
        """[B, H, Nq, Mq] int32: the entry of `kept_slots` that holds a slot, -1 where it is pruned or padding."""
        b, h, nq, k = self.shape
        mq = self.q_grid.block_size
        target = torch.where(self.kept_slots >= 0, self.kept_slots, mq).long()
        rank = torch.full((b, h, nq, mq + 1), -1, dtype=torch.int32, device=self.device)
        entry = torch.arange(k, dtype=torch.int32, device=self.device)
        return rank.scatter_(-1, target, entry.expand_as(target))[..., :mq]

    def gather_kept(self, q_tiles: Tensor) -> Tensor:
        """Take the kept rows [B, H, Nq, K, D] of tile-major queries [B, H, Nq*Mq, D]. Differentiable.

        Entries past `num_kept` repeat the block's first slot; nothing reads their output.
        """
        if self.keeps_every_row:
            return q_tiles.unflatten(2, (self.q_grid.num_blocks, self.q_grid.block_size))
        return _GatherKept.apply(q_tiles, self)

    def fill_output(self, o_kept: Tensor) -> Tensor:
        """Fill every token from the outputs of kept rows: [B, H, Nq, K, D] -> natural [B, H, L, D]. Differentiable.

        The backward sums, for each kept row, the gradients of all tokens that took its output.
        """
        if self.keeps_every_row:
            return self.q_grid.restore(o_kept.flatten(2, 3))
        return _Fill.apply(o_kept, self)

    def source_of_token(self) -> Tensor:
        """[B, H, L] int64: the token whose output each token takes (a kept token: itself), -1 for zero."""
        slot = self.kept_slots.gather(-1, self.fill.clamp(min=0).long()).long()
        token_of_slot = self.q_grid.token_of_slot(self.device)
        token = token_of_slot.expand(*slot.shape[:2], -1, -1).gather(-1, slot)
        token = torch.where(self.fill >= 0, token, -1)
        return token.flatten(2).index_select(2, self.q_grid.slot_of_token(self.device))

    def dense_mask(self) -> Tensor:
        """[B, H, L, L] bool in natural order: computed query row x attended key. Rows of pruned queries are False."""
        device = self.device
        block_of_q = self.q_grid.slot_of_token(device) // self.q_grid.block_size
        block_of_k = self.kv_grid.slot_of_token(device) // self.kv_grid.block_size
        sees = self.block_mask[:, :, block_of_q][..., block_of_k]
        kept = (self.kept_rank >= 0).flatten(2).index_select(2, self.q_grid.slot_of_token(device))
        return sees & kept.unsqueeze(-1)

    def to_flex(self) -> BlockMask:
        """Convert to FlexAttention's `BlockMask` over packed kept rows (Nq*K) and KV slots (Nk*Mk), without loss.

        Blocks without padding are `full` blocks, so that no mask function runs there; KV blocks with padding are
        partial blocks, masked by the number of their real tokens. The mask function knows the listed blocks too, so
        that FlexAttention is right where it ignores the lists, as it does uncompiled.
        """
        from torch.nn.attention.flex_attention import BlockMask

        device, mk = self.device, self.kv_grid.block_size
        _, _, nq, k = self.shape
        real = self.kv_grid.real_counts(device)
        is_full = real == mk
        mask = self.block_mask
        full_counts, full_indices = lists_of_mask(mask & is_full)
        part_counts, part_indices = lists_of_mask(mask & ~is_full)

        def attends(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            return mask[b, h, q // k, kv // mk] & (kv % mk < real[kv // mk])

        return BlockMask.from_kv_blocks(
            part_counts,
            part_indices,
            full_counts,
            full_indices,
            BLOCK_SIZE=(k, mk),
            mask_mod=attends,
            seq_lengths=(nq * k, self.kv_grid.num_slots),
        )

    def digest(self) -> str:
        """Twelve hex digits over all tables; the same plan on two engines has the same digest (synchronises)."""
        sha = hashlib.sha256(repr((self.q_grid, self.kv_grid)).encode())
        for table in (self.kept_slots, self.fill, self.block_bits):
            sha.update(table.contiguous().cpu().numpy().tobytes())
        return sha.hexdigest()[:12]


def full_plan(batch: int, heads: int, grid: BlockGrid, *, device: torch.device) -> BlockPlan:
    """The plan of dense attention: every row kept, every KV block seen."""
    n = grid.num_blocks
    kept = _every_row(grid, device).expand(batch, heads, -1, -1)
    return BlockPlan(
        q_grid=grid,
        kv_grid=grid,
        kept_slots=kept,
        num_kept=grid.real_counts(device).expand(batch, heads, -1),
        fill=kept,
        block_bits=pack_bits(torch.ones(n, dtype=torch.bool, device=device)).expand(batch, heads, n, -1),
        keeps_every_row=grid.is_even,
    )


def _every_row(grid: BlockGrid, device: torch.device) -> Tensor:
    """[N, M] int32: the slots of real tokens, then -1; `kept_slots` and `fill` of blocks that keep every row."""
    slots = torch.arange(grid.block_size, dtype=torch.int32, device=device)
    return torch.where(slots < grid.real_counts(device).unsqueeze(-1), slots, -1)


class _GatherKept(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_tiles: Tensor, plan: BlockPlan) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        ctx.plan = plan
        return _rows(q_tiles.unflatten(2, (plan.q_grid.num_blocks, -1)), plan.kept_slots.clamp(min=0))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        rank = ctx.plan.kept_rank
        rows = _rows(grad, rank.clamp(min=0))
        return rows.masked_fill_((rank < 0).unsqueeze(-1), 0).flatten(2, 3), None


class _Fill(torch.autograd.Function):
    @staticmethod
    def forward(ctx, o_kept: Tensor, plan: BlockPlan) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        ctx.plan = plan
        slot_of_token = plan.q_grid.slot_of_token(plan.device)
        entry = plan.fill.flatten(2).index_select(2, slot_of_token)  # [B, H, L]
        first = (slot_of_token // plan.q_grid.block_size) * plan.shape[3]
        out = take_rows(o_kept.flatten(2, 3), entry.clamp(min=0) + first)
        return out.masked_fill_((entry < 0).unsqueeze(-1), 0) if plan.has_zero_fill else out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        plan: BlockPlan = ctx.plan
        _, _, nq, k = plan.shape
        tiles = plan.q_grid._to_tiles(grad).unflatten(2, (nq, -1))  # noqa: SLF001  # [B, H, Nq, Mq, D]
        # The segment sum as a product with the 0/1 matrix [K, Mq]: no atomics, fp32 accumulation in half precision.
        takes = plan.fill.unsqueeze(-2) == torch.arange(k, device=plan.device).unsqueeze(-1)
        return takes.to(grad.dtype) @ tiles, None


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, H, N, R] of blocks x [B, H, N, S, D] -> [B, H, N, R, D]."""
    n, s = x.shape[2:4]
    first = torch.arange(n, device=x.device).unsqueeze(-1) * s
    return take_rows(x.flatten(2, 3), (index + first).flatten(2)).unflatten(2, (n, -1))
