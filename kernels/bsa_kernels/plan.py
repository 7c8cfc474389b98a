"""The plan: which query rows are computed, what each query block attends to, how pruned rows are filled.

Shape legend: `B` batch, `H` heads, `Lq`/`Lk` tokens of the grids of queries and keys, `P` tokens of a prefix of keys,
`Nq`/`Nk` query and KV blocks, `Mq`/`Mk` slots of each, `K` kept rows a query block.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from bsa_kernels.bits import count_bits, lists_of_mask, pack_bits, unpack_bits
from bsa_kernels.grid import BlockGrid
from bsa_kernels.kept_rows import Fill, GatherKept
from bsa_kernels.keys import KeySlots
from bsa_kernels.rules import FULL, ElementRule

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """The one contract between a method, which says what is attended, and an engine, which computes it.

    Think of three tables, one entry for each (batch, head, query block):

    * *Which rows.* `kept_slots` [B, H, Nq, K] int32 lists the slots of the block whose query row is computed,
      ascending; the first `num_kept` [B, H, Nq] int32 entries are real and the rest -1.
    * *Which keys.* `block_bits` [B, H, Nq, ceil(Nk/32)] int32 is the block mask, a bit a KV block, as `pack_bits` has
      it: the rows attend to all real tokens of the KV blocks whose bit is set, as far as `rule` lets each see them by
      its position (see `ElementRule`; `FULL`: all). `block_mask`, `kv_counts` with
      `kv_indices`, and `inverse` derive the mask and its lists on first use; these are up to 32 times as large (a head
      of 1,000,000 tokens in blocks of 64: 31 MB of bits, 244 MB of mask, 977 MB of lists).
    * *Which fill.* `fill` [B, H, Nq, Mq] int32 says for each slot the entry of `kept_slots` whose output it takes (for
      a kept row: its own), or -1 for zero.

    Queries live in the slots of `q_grid`, keys and values in those of `kv_grid`; the two may have different blocks and,
    under the rule `FULL`, different tokens. The first `prefix` tokens of k and v [B, H, P + Lk, D], of text or context,
    precede those of `kv_grid`, and every computed row sees them, whatever the rule. They form ceil(P / Mk) further KV
    blocks behind the grid's (see `KeySlots`), whose bits are always set, so that `Nk` counts them and lists, unions and
    inverse lists hold them like others; `num_kv_blocks`, `kv_real_counts` and `kv_tiles` say how many blocks there are,
    how full they are, and how k and v come into them.

    Two flags tell without looking at the data: `has_zero_fill` that a real slot may be filled by zero, and
    `keeps_every_row` that no slot is pruned or padding, which saves copies. An engine returns the outputs of kept rows
    [B, H, Nq, K, D]; `fill_output` makes [B, H, Lq, D] in natural order of them.

    Raises:
        ValueError: `prefix` is below 0, or queries and keys have different grids under another rule than `FULL`.
    """

    q_grid: BlockGrid
    kv_grid: BlockGrid
    kept_slots: Tensor
    num_kept: Tensor
    fill: Tensor
    block_bits: Tensor
    has_zero_fill: bool = False
    keeps_every_row: bool = False
    rule: ElementRule = FULL
    prefix: int = 0

    def __post_init__(self) -> None:
        KeySlots(self.kv_grid, self.prefix)
        self.rule.check_grids(self.q_grid, self.kv_grid)

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
        rule: ElementRule = FULL,
        prefix: int = 0,
    ) -> BlockPlan:
        """Make a plan of a mask [B, H, Nq, blocks of kv_grid] bool; every row is kept unless both tables say otherwise.

        The blocks of a prefix are added to the mask.

        Raises:
            ValueError: one of `kept_slots` and `fill` without the other, or `rule` or `prefix` do not fit.
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
            block_bits=pack_bits(_with_prefix(block_mask, KeySlots(kv_grid, prefix))),
            has_zero_fill=has_zero_fill,
            keeps_every_row=keeps_all and q_grid.is_even,
            rule=rule,
            prefix=prefix,
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

    @property
    def keys(self) -> KeySlots:
        """Where the keys stand: the blocks of `kv_grid` and those of the prefix."""
        return KeySlots(self.kv_grid, self.prefix)

    @property
    def num_kv_blocks(self) -> int:
        """Nk, blocks of the prefix included."""
        return self.keys.num_blocks

    @property
    def is_plain(self) -> bool:
        """Whether it has no rule, no prefix and one grid of tokens, as every engine takes it."""
        return self.rule.is_full and not self.prefix and self.q_grid.grid == self.kv_grid.grid

    def kv_real_counts(self, device: torch.device) -> Tensor:
        """[Nk] int32: real keys of each KV block."""
        return self.keys.real_counts(device)

    def kv_tiles(self, x: Tensor) -> Tensor:
        """Bring k or v [B, H, P + Lk, D] into tile-major order [B, H, Nk*Mk, D], padding zero. Differentiable."""
        return self.keys.tiles(x)

    def check(self) -> None:
        """Verify the invariants above, all of them; for tests and for plans made by hand (synchronises).

        Raises:
            ValueError: names the table that is wrong.
        """
        b, h, nq, k = self.shape
        nk, mq = self.num_kv_blocks, self.q_grid.block_size
        if nq != self.q_grid.num_blocks:
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
        if self.prefix and not self.block_mask[..., self.kv_grid.num_blocks :].all():
            raise ValueError("plan.block_bits: expected every query block to see the blocks of the prefix")

    def check_once(self) -> None:
        """`check`, unless it passed before or `trusted` was called."""
        if "_is_checked" not in vars(self):
            self.check()
            self.trusted()

    def trusted(self) -> BlockPlan:
        """Spare the plan its check on first use, for code that makes plans as they must be; returns the plan."""
        vars(self)["_is_checked"] = True
        return self

    @cached_property
    def block_mask(self) -> Tensor:
        """[B, H, Nq, Nk] bool: query block i sees KV block j."""
        return unpack_bits(self.block_bits, self.num_kv_blocks)

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

    @cached_property
    def kept_positions(self) -> Tensor:
        """[B, H, Nq, K] int32: the token of each kept row; past `num_kept` that of the block's first slot."""
        tokens = self.q_grid.token_of_slot(self.device).int().expand(*self.shape[:2], -1, -1)
        return tokens.gather(-1, self.kept_slots.clamp(min=0).long())

    @cached_property
    def cut_blocks(self) -> Tensor:
        """[Nq, Nk] bool: pairs of blocks in which the rule may hide keys, so that an engine must mask them."""
        return ~_with_prefix(self.rule.covers(self.q_grid, self.kv_grid, self.device), self.keys)

    def gather_kept(self, q_tiles: Tensor) -> Tensor:
        """Take the kept rows [B, H, Nq, K, D] of tile-major queries [B, H, Nq*Mq, D]. Differentiable.

        Entries past `num_kept` repeat the block's first slot; nothing reads their output.
        """
        if self.keeps_every_row:
            return q_tiles.unflatten(2, (self.q_grid.num_blocks, self.q_grid.block_size))
        return GatherKept.apply(q_tiles, self)

    def fill_output(self, o_kept: Tensor) -> Tensor:
        """Fill every token from the outputs of kept rows: [B, H, Nq, K, D] -> natural [B, H, L, D]. Differentiable.

        The backward sums, for each kept row, the gradients of all tokens that took its output.
        """
        if self.keeps_every_row:
            return self.q_grid.restore(o_kept.flatten(2, 3))
        return Fill.apply(o_kept, self)

    def fill_lse(self, lse_kept: Tensor) -> Tensor:
        """Fill every token's log-sum-exp [B, H, Lq] from those of kept rows [B, H, Nq, K]; -inf where fill is zero.

        Differentiable, as `fill_output` is.
        """
        slot = self.q_grid.slot_of_token(self.device)
        entry = self.fill.flatten(2).index_select(2, slot)
        if torch.compiler.is_compiling():  # which cannot trace a function that takes a plan
            row = slot // self.q_grid.block_size * self.shape[3] + entry.clamp(min=0)
            lse = lse_kept.flatten(2).gather(2, row)
        else:
            lse = self.fill_output(lse_kept.unsqueeze(-1)).squeeze(-1)
        if not self.has_zero_fill:
            return lse
        return lse.masked_fill(entry < 0, -torch.inf)

    def source_of_token(self) -> Tensor:
        """[B, H, L] int64: the token whose output each token takes (a kept token: itself), -1 for zero."""
        slot = self.kept_slots.gather(-1, self.fill.clamp(min=0).long()).long()
        token_of_slot = self.q_grid.token_of_slot(self.device)
        token = token_of_slot.expand(*slot.shape[:2], -1, -1).gather(-1, slot)
        token = torch.where(self.fill >= 0, token, -1)
        return token.flatten(2).index_select(2, self.q_grid.slot_of_token(self.device))

    def num_pairs(self) -> Tensor:
        """[B, H] int64: the pairs of a computed row and a key that it sees, exactly. Does not synchronise.

        Under the rule `FULL` it is arithmetic on bits; under another the keys that a row sees in a block are counted in
        closed form, a few query blocks at a time (32,768 tokens in blocks of 64 under the rule `CAUSAL`, one head or
        twelve: 0.3 s on one core of an AMD EPYC, 2026-11-26).
        """
        if self.rule.is_full:
            return (self.num_kept.long() * self._listed_keys()).sum(-1)
        grid_mask = self.block_mask[..., : self.kv_grid.num_blocks]
        seen = self.rule.kept_pairs(self.kept_rank >= 0, grid_mask, self.q_grid, self.kv_grid)
        return seen + self.num_kept.sum(-1) * self.prefix

    def dense_mask(self) -> Tensor:
        """[B, H, Lq, P + Lk] bool in natural order: computed query row x attended key; pruned rows are False."""
        device = self.device
        slot_of_q, slot_of_k = self.q_grid.slot_of_token(device), self.keys.slot_of_key(device)
        sees = self.block_mask[:, :, slot_of_q // self.q_grid.block_size][..., slot_of_k // self.kv_grid.block_size]
        kept = (self.kept_rank >= 0).flatten(2).index_select(2, slot_of_q)
        if not self.rule.is_full:
            token = torch.arange(self.q_grid.num_tokens, device=device)
            sees = sees & functional.pad(self.rule.sees(token.unsqueeze(-1), token), (self.prefix, 0), value=True)
        return sees & kept.unsqueeze(-1)

    def to_flex(self) -> BlockMask:
        """Convert to FlexAttention's `BlockMask` over packed kept rows (Nq*K) and KV slots (Nk*Mk), without loss.

        Blocks without padding that the rule does not cut are `full` blocks, so that no mask function runs there; the
        others are partial blocks, masked by the number of their real tokens and by the rule. The mask function knows
        the listed blocks too, so that FlexAttention is right where it ignores the lists, as it does uncompiled.
        """
        from torch.nn.attention.flex_attention import BlockMask

        device, mk = self.device, self.kv_grid.block_size
        _, _, nq, k = self.shape
        real = self.kv_real_counts(device)
        mask, rule = self.block_mask, self.rule
        is_full = real == mk if rule.is_full else (real == mk) & ~self.cut_blocks
        full_counts, full_indices = lists_of_mask(mask & is_full)
        part_counts, part_indices = lists_of_mask(mask & ~is_full)

        def attends(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            return mask[b, h, q // k, kv // mk] & (kv % mk < real[kv // mk])

        def attends_by_rule(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            in_prefix = kv >= first_of_prefix
            return attends(b, h, q, kv) & (in_prefix | rule.sees(query_at[b, h, q], key_at[kv]))

        if not rule.is_full:
            first_of_prefix = self.kv_grid.num_slots
            query_at, key_at = self.kept_positions.flatten(2), self.keys.positions(device).flatten()
        return BlockMask.from_kv_blocks(
            part_counts,
            part_indices,
            full_counts,
            full_indices,
            BLOCK_SIZE=(k, mk),
            mask_mod=attends if rule.is_full else attends_by_rule,
            seq_lengths=(nq * k, self.keys.num_slots),
        )

    def digest(self) -> str:
        """Twelve hex digits over all tables; the same plan on two engines has the same digest (synchronises)."""
        sha = hashlib.sha256(repr((self.q_grid, self.kv_grid)).encode())
        if not self.rule.is_full or self.prefix:
            sha.update(repr((self.rule, self.prefix)).encode())
        for table in (self.kept_slots, self.fill, self.block_bits):
            sha.update(table.contiguous().cpu().numpy().tobytes())
        return sha.hexdigest()[:12]

    def _listed_keys(self) -> Tensor:
        """[B, H, Nq] int64: real keys of the listed blocks, by the binary digits of the blocks' counts."""
        counts = self.kv_real_counts(self.device)
        listed = torch.zeros(self.shape[:3], dtype=torch.int64, device=self.device)
        for digit in range(self.kv_grid.block_size.bit_length()):
            has_digit = pack_bits((counts >> digit & 1).bool())
            listed += count_bits(self.block_bits & has_digit).long() << digit
        return listed


def full_plan(
    batch: int,
    heads: int,
    grid: BlockGrid,
    *,
    device: torch.device,
    kv_grid: BlockGrid | None = None,
    rule: ElementRule = FULL,
    prefix: int = 0,
) -> BlockPlan:
    """The plan of dense attention under a rule: every row kept, every KV block seen that the rule touches.

    Args:
        batch, heads: B and H.
        grid: of the queries.
        device: where the tables are.
        kv_grid: of the keys, `grid` by default.
        rule, prefix: see `BlockPlan`.
    """
    kv_grid = kv_grid or grid
    kept = _every_row(grid, device).expand(batch, heads, -1, -1)
    every = torch.ones(kv_grid.num_blocks, dtype=torch.bool, device=device)
    touched = every if rule.is_full else rule.touches(grid, kv_grid, device)
    bits = pack_bits(_with_prefix(touched, KeySlots(kv_grid, prefix)))
    return BlockPlan(
        q_grid=grid,
        kv_grid=kv_grid,
        kept_slots=kept,
        num_kept=grid.real_counts(device).expand(batch, heads, -1),
        fill=kept,
        block_bits=bits.expand(batch, heads, grid.num_blocks, -1),
        keeps_every_row=grid.is_even,
        rule=rule,
        prefix=prefix,
    )


def _with_prefix(grid_mask: Tensor, keys: KeySlots) -> Tensor:
    """Append the blocks of the prefix to a mask [..., blocks of the grid] bool, all True."""
    return functional.pad(grid_mask, (0, keys.num_prefix_blocks), value=True) if keys.prefix else grid_mask


def _every_row(grid: BlockGrid, device: torch.device) -> Tensor:
    """[N, M] int32: the slots of real tokens, then -1; `kept_slots` and `fill` of blocks that keep every row."""
    slots = torch.arange(grid.block_size, dtype=torch.int32, device=device)
    return torch.where(slots < grid.real_counts(device).unsqueeze(-1), slots, -1)
