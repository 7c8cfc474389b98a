"""A plan as the attention kernels read it: tables of tokens, lists of KV blocks, launch orders.

Shape legend: `B` batch, `H` heads, `Nq`/`Nk` query and KV blocks, `MQ`/`MK` slots of each (`MK` padded to key tiles),
`K` kept rows a query block, `R` groups of query blocks that share a list.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bsa_kernels.block_sparse.groups import choose_groups
from bsa_kernels.block_sparse.lists import (
    Lists,
    TokenTables,
    covered_bits,
    launch_order,
    make_inverse,
    make_lists,
    token_tables,
)
from bsa_kernels.block_sparse.tile_table import Tile, Tiles
from bsa_kernels.grid import BlockGrid
from bsa_kernels.keys import KeySlots
from bsa_kernels.rules import FULL, ElementRule


@dataclass(frozen=True)
class Layout:
    """What is known of a plan without looking at its tensors: where tokens are, and how the kernels walk.

    Attributes:
        q_grid, kv_grid: the blocks.
        is_tiled: q, k, v and o are tile-major [B, H, N*M, D]; natural order [B, H, L, D] otherwise.
        fills: some slot takes the output of another, or zero.
        tiles: the tiles that lists are made for.
        rule, prefix: see `BlockPlan`.
    """

    q_grid: BlockGrid
    kv_grid: BlockGrid
    is_tiled: bool
    fills: bool
    tiles: Tiles
    rule: ElementRule = FULL
    prefix: int = 0

    @property
    def keys(self) -> KeySlots:
        """The blocks of keys, those of the prefix included."""
        return KeySlots(self.kv_grid, self.prefix)

    @cached_property
    def has_full(self) -> bool:
        """Whether blocks without padding are walked without a mask: key tiles divide them and follow each other evenly.

        Of these, blocks that the rule cuts for a query block have a mask for it and its group.

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
        return not (self.has_full and self.kv_grid.is_even and self.rule.is_full and not self.prefix)

    @property
    def pads_q(self) -> bool:
        """Whether q and o have padding among their tokens."""
        return self.is_tiled and not self.q_grid.is_even

    @property
    def pads_kv(self) -> bool:
        """Whether k and v have."""
        return self.is_tiled and not self.keys.is_even

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

    def q_positions(self, token: Tensor) -> Tensor:
        """Of tokens of q their numbers in natural order, int32; anything where there is no token."""
        if not self.is_tiled:
            return token
        positions = token_tables(self.q_grid, tiled=True, device=token.device).positions
        return positions.flatten()[token.clamp(min=0).long()]

    def kv_tables(self, device: torch.device) -> TokenTables:
        """Of KV blocks, padded to the longest key tile."""
        return token_tables(
            self.kv_grid, tiled=self.is_tiled, pad_to=self.tiles.max_keys, prefix=self.prefix, device=device
        )

    def full_bits(self, device: torch.device) -> Tensor:
        """The KV blocks that are walked without a mask in bits, [W] int32, or of each query block [Nq, W] by a rule."""
        full = self.kv_tables(device).full_bits
        if not self.has_full:
            return torch.zeros_like(full)
        return full if self.rule.is_full else full & covered_bits(self.q_grid, self.keys, self.rule, device)

    def encode(self) -> str:
        """As text, for an operator that torch knows; `decode` is the inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, code: str) -> Layout:
        """Make of what `encode` gave; the same object for the same text."""
        return _decoded(code)

    @cached_property
    def _offsets(self) -> list[int]:
        """Tokens of a KV block without padding, counted from its first."""
        if self.is_tiled:
            return list(range(self.kv_grid.block_size))
        _, height, width = self.kv_grid.grid
        t, h, w = self.kv_grid.block
        return [(i * height + j) * width + k for i in range(t) for j in range(h) for k in range(w)]


@lru_cache(maxsize=256)
def _decoded(code: str) -> Layout:
    values: dict[str, Any] = json.loads(code)
    tiles: dict[str, Any] = values.pop("tiles")
    q_grid, kv_grid = (_grid(values.pop(name)) for name in ("q_grid", "kv_grid"))
    rule = ElementRule(**values.pop("rule"))
    backward = tiles.pop("backward")
    made = Tiles(**{name: Tile(**tile) for name, tile in tiles.items()}, backward=backward)
    return Layout(q_grid, kv_grid, **values, rule=rule, tiles=made)


def _grid(values: dict[str, list[int]]) -> BlockGrid:
    (t, h, w), (bt, bh, bw) = values["grid"], values["block"]
    return BlockGrid((t, h, w), (bt, bh, bw))


class Walk(NamedTuple):
    """Who walks which list, in the first fields of `KernelTables`, which describes them."""

    kept_tokens: Tensor
    members: Tensor
    order: Tensor
    items: Tensor
    starts: Tensor
    num_full: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class KernelTables:
    """What the kernels read besides q, k, v.

    Attributes:
        kept_tokens: [B, H, Nq, K] int32, the token of each kept row, -1 past them.
        members: [B, H, R, G] int32, the query blocks that share a list, -1 where there are fewer.
        order: [B, H, R] int32, groups in the order of launch.
        items, starts, num_full, counts: the lists of groups, see `Lists`.
        fill: [B, H, Nq, MQ] int32, the kept row whose output a slot takes, -1 for zero.
        block_bits: [B, H, Nq, words] int32, see `BlockPlan`; the backward makes the inverse lists of them.
        code: of the layout, which is the same for all plans of a shape, as `Layout.encode` gives it.
    """

    kept_tokens: Tensor
    members: Tensor
    order: Tensor
    items: Tensor
    starts: Tensor
    num_full: Tensor
    counts: Tensor
    fill: Tensor
    block_bits: Tensor
    code: str

    @property
    def layout(self) -> Layout:
        """How the kernels walk."""
        return Layout.decode(self.code)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, Nq, K)."""
        b, h, n, k = self.kept_tokens.shape
        return b, h, n, k

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the fields; `of` is the inverse."""
        return [getattr(self, name) for name in _TENSORS]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], code: str) -> KernelTables:
        """Make of what `tensors` gave."""
        return cls(**dict(zip(_TENSORS, tensors, strict=True)), code=code)

    @cached_property
    def inverse(self) -> Lists:
        """For each KV block the query blocks that see it; made when a backward first asks."""
        return make_inverse(self.block_bits, self.layout.keys.num_blocks)

    @cached_property
    def kept_positions(self) -> Tensor:
        """[B, H, Nq, K] int32: the number of each kept row's token in natural order; anything past them."""
        return self.layout.q_positions(self.kept_tokens)

    @cached_property
    def inverse_order(self) -> Tensor:
        """[B, H, Nk] int32, KV blocks in the order of launch."""
        return launch_order(self.inverse.counts)


#: The fields of `KernelTables` that are tensors.
TENSORS = tuple(field.name for field in fields(KernelTables) if field.name != "code")


_TENSORS = tuple(field.name for field in fields(KernelTables) if field.name != "code")


def walk_of(kept_slots: Tensor, block_bits: Tensor, layout: Layout) -> Walk:
    """Make the lists of a plan's tensors; no synchronisation (but see `make_lists` for very large ones)."""
    device = block_bits.device
    kv = layout.kv_tables(device)
    members = choose_groups(block_bits, layout.q_grid, layout.tiles.attend.group)
    lists = make_lists(block_bits, members, kv.origins, layout.full_bits(device))
    tokens = layout.q_tokens(device).expand(*kept_slots.shape[:2], -1, -1)
    tokens = tokens.gather(-1, kept_slots.clamp(min=0).long())
    return Walk(
        kept_tokens=torch.where(kept_slots >= 0, tokens, -1).contiguous(),
        members=members,
        order=launch_order(lists.counts),
        items=lists.items,
        starts=lists.starts,
        num_full=lists.num_full,
        counts=lists.counts,
    )
