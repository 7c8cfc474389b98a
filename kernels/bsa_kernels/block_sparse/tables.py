"""A plan as the attention kernels read it: tables of tokens, lists of KV blocks, launch orders.

Shape legend: `B` batch, `H` heads, `Nq`/`Nk` query and KV blocks, `MQ`/`MK` slots of each (`MK` padded to key tiles),
`K` kept rows a query block, `R` groups of query blocks that share a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from bsa_kernels.block_sparse.groups import choose_groups
from bsa_kernels.block_sparse.lists import (
    Lists,
    TokenTables,
    launch_order,
    make_inverse,
    make_lists,
    token_tables,
)
from bsa_kernels.block_sparse.tile_table import Tile, Tiles, arch_of, tiles_for
from bsa_kernels.grid import BlockGrid
from bsa_kernels.plan import BlockPlan


@dataclass(frozen=True)
class Layout:
    """What is known of a plan without looking at its tensors: where tokens are, and how the kernels walk.

    Attributes:
        q_grid, kv_grid: the blocks.
        is_tiled: q, k, v and o are tile-major [B, H, N*M, D]; natural order [B, H, L, D] otherwise.
        fills: some slot takes the output of another, or zero.
        tiles: the tiles that lists are made for.
    """

    q_grid: BlockGrid
    kv_grid: BlockGrid
    is_tiled: bool
    fills: bool
    tiles: Tiles

    @cached_property
    def has_full(self) -> bool:
        """Whether blocks without padding are walked without a mask: key tiles divide them and follow each other evenly.

        Otherwise all blocks take the way of those with padding, through the table of tokens.
        """
        size, offsets = self.kv_grid.block_size, self._offsets
        for keys in {self.tiles.attend.keys, self.tiles.grad_q.keys}:
            if size % keys:
                return False
            step = offsets[keys] if keys < size else 0
            if any(offsets[i] != offsets[i % keys] + i // keys * step for i in range(size)):
                return False
        return all(g >= b for g, b in zip(self.kv_grid.grid, self.kv_grid.block, strict=True))

    @property
    def has_partial(self) -> bool:
        """Whether some KV block is walked with a mask."""
        return not (self.has_full and self.kv_grid.is_even)

    @property
    def pads_q(self) -> bool:
        """Whether q and o have padding among their tokens."""
        return self.is_tiled and not self.q_grid.is_even

    @property
    def pads_kv(self) -> bool:
        """Whether k and v have."""
        return self.is_tiled and not self.kv_grid.is_even

    @property
    def furthest_offset(self) -> int:
        """Tokens from the first of a block without padding to its last."""
        return self._offsets[-1]

    def part_offset(self, tile: Tile) -> int:
        """Tokens from one key tile of a block without padding to the next."""
        return self._offsets[tile.keys] if self.has_full and tile.keys < self.kv_grid.block_size else 0

    def q_tokens(self, device: torch.device) -> Tensor:
        """[Nq, MQ] int32: the token of each slot of a query block, -1 for padding."""
        return token_tables(self.q_grid, tiled=self.is_tiled, device=device).tokens

    def kv_tables(self, device: torch.device) -> TokenTables:
        """Of KV blocks, padded to the longest key tile."""
        return token_tables(self.kv_grid, tiled=self.is_tiled, pad_to=self.tiles.max_keys, device=device)

    def encode(self) -> list[int]:
        """As integers, for an operator that takes nothing else; `decode` is the inverse."""
        shape = encode_shape(self.q_grid, self.kv_grid, is_tiled=self.is_tiled, fills=self.fills)
        return [*shape, *self.tiles.encode()]

    @classmethod
    def decode(cls, numbers: Sequence[int], q: Tensor, *, kept_rows: int) -> Layout:
        """Make of what `encode` gave; of what `encode_shape` gave with the tiles that the table in force has."""
        sides = tuple(numbers)
        q_grid = BlockGrid((sides[0], sides[1], sides[2]), (sides[3], sides[4], sides[5]))
        kv_grid = BlockGrid(q_grid.grid, (sides[6], sides[7], sides[8]))
        is_tiled, fills, expected_list = numbers[9:12]
        tiles = (
            Tiles.decode(numbers[12:])
            if len(numbers) > 12
            else tiles_for(
                arch=arch_of(q.device),
                head_dim=q.shape[-1],
                kept_rows=kept_rows,
                block_keys=kv_grid.block_size,
                dtype=q.dtype,
                expected_list=expected_list,
            )
        )
        return cls(q_grid, kv_grid, bool(is_tiled), bool(fills), tiles)

    @cached_property
    def _offsets(self) -> list[int]:
        """Tokens of a KV block without padding, counted from its first."""
        if self.is_tiled:
            return list(range(self.kv_grid.block_size))
        _, height, width = self.kv_grid.grid
        t, h, w = self.kv_grid.block
        return [(i * height + j) * width + k for i in range(t) for j in range(h) for k in range(w)]


def encode_shape(
    q_grid: BlockGrid, kv_grid: BlockGrid, *, is_tiled: bool, fills: bool, expected_list: int = 0
) -> list[int]:
    """What a layout is made of but its tiles, as integers; `expected_list` is what tiles may be chosen by."""
    return [*q_grid.grid, *q_grid.block, *kv_grid.block, int(is_tiled), int(fills), expected_list]


@dataclass(frozen=True, eq=False)
class KernelTables:
    """What the kernels read besides q, k, v.

    Attributes:
        kept_tokens: [B, H, Nq, K] int32, the token of each kept row, -1 past them.
        members: [B, H, R, G] int32, the query blocks that share a list, -1 where there are fewer.
        fill: [B, H, Nq, MQ] int32, the kept row whose output a slot takes, -1 for zero.
        order: [B, H, R] int32, groups in the order of launch.
        items, starts, num_full, counts: the lists of groups, see `Lists`.
        block_bits: [B, H, Nq, words] int32, see `BlockPlan`; the backward makes the inverse lists of them.
        layout: the rest, which is the same for all plans of a shape.
    """

    kept_tokens: Tensor
    fill: Tensor
    members: Tensor
    order: Tensor
    items: Tensor
    starts: Tensor
    num_full: Tensor
    counts: Tensor
    block_bits: Tensor
    layout: Layout

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, Nq, K)."""
        b, h, n, k = self.kept_tokens.shape
        return b, h, n, k

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the fields; `of` is the inverse."""
        return [getattr(self, field.name) for field in fields(self) if field.name != "layout"]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], layout: Layout) -> KernelTables:
        """Make of what `tensors` gave."""
        names = [field.name for field in fields(cls) if field.name != "layout"]
        return cls(**dict(zip(names, tensors, strict=True)), layout=layout)

    @cached_property
    def inverse(self) -> Lists:
        """For each KV block the query blocks that see it; made when a backward first asks."""
        return make_inverse(self.block_bits, self.layout.kv_grid.num_blocks)

    @cached_property
    def inverse_order(self) -> Tensor:
        """[B, H, Nk] int32, KV blocks in the order of launch."""
        return launch_order(self.inverse.counts)


def tables_of(plan: BlockPlan, tiles: Tiles, *, is_tiled: bool = False) -> KernelTables:
    """Bring a plan into the kernels' form; no synchronisation (but see `make_lists` for very large ones)."""
    layout = Layout(plan.q_grid, plan.kv_grid, is_tiled, not plan.keeps_every_row, tiles)
    kv = layout.kv_tables(plan.device)
    bits = plan.block_bits.contiguous()
    full_bits = kv.full_bits if layout.has_full else torch.zeros_like(kv.full_bits)
    members = choose_groups(bits, plan.q_grid, tiles.attend.group)
    lists = make_lists(bits, members, kv.origins, full_bits)
    return KernelTables(
        kept_tokens=_kept_tokens(plan, layout),
        fill=plan.fill.contiguous(),
        members=members,
        order=launch_order(lists.counts),
        items=lists.items,
        starts=lists.starts,
        num_full=lists.num_full,
        counts=lists.counts,
        block_bits=bits,
        layout=layout,
    )


def _kept_tokens(plan: BlockPlan, layout: Layout) -> Tensor:
    slots = plan.kept_slots
    tokens = layout.q_tokens(plan.device).expand(*slots.shape[:2], -1, -1).gather(-1, slots.clamp(min=0).long())
    return torch.where(slots >= 0, tokens, -1).contiguous()
