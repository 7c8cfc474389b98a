"""The block grid: which token of a (T, H, W) video stands in which slot of which block.

Shape legend: `L` tokens in natural (t, h, w) order, `N` blocks, `M` slots a block, `B` batch, `H` heads, `D` head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bsa_kernels.torch_operator import fake_of, gradient_of, torch_operator

# Slots are at most so many times the tokens, or so many, as for one picture in blocks of (8, 8, 8).
_MAX_PADDING = 16
_SLOTS_OF_ANY_GRID = 4096


@dataclass(frozen=True)
class BlockGrid:
    """A (T, H, W) token grid cut into blocks of (bt, bh, bw) tokens.

    Blocks are numbered in (t, h, w) order, and so are the tokens inside a block. An axis that the block does not divide
    is padded at its end: the last blocks then hold fewer than `M` real tokens. Inside a block *the real tokens come
    first*, in (t, h, w) order, and padding fills the tail, so that a block is described by one number, its count of
    real tokens. `permute` brings [B, H, L, D] into this tile-major order [B, H, N*M, D] with zeros in the padding,
    `restore` brings it back; one is the other's inverse on real tokens.

    Raises:
        ValueError: an axis of the grid or the block is below one, or nearly all of a block would be padding.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]

    def __post_init__(self) -> None:
        for name, value in (("grid", self.grid), ("block", self.block)):
            if len(value) != 3 or any(not isinstance(v, int) or v < 1 for v in value):
                raise ValueError(f"{name}: expected three integers (t, h, w) of at least 1, got {value!r}")
        if self.num_slots > max(_MAX_PADDING * self.num_tokens, _SLOTS_OF_ANY_GRID):
            raise ValueError(
                f"block: expected one that fits the grid {self.grid}, got {self.block}, which makes {self.num_slots} "
                f"slots of {self.num_tokens} tokens"
            )

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Blocks along each axis."""
        t, h, w = (math.ceil(g / b) for g, b in zip(self.grid, self.block, strict=True))
        return t, h, w

    @property
    def num_tokens(self) -> int:
        """L."""
        return math.prod(self.grid)

    @property
    def num_blocks(self) -> int:
        """N."""
        return math.prod(self.blocks)

    @property
    def block_size(self) -> int:
        """M, slots a block."""
        return math.prod(self.block)

    @property
    def num_slots(self) -> int:
        """N * M: tokens and padding."""
        return self.num_blocks * self.block_size

    @property
    def is_even(self) -> bool:
        """Whether the block divides the grid, so that nothing is padded."""
        return self.num_slots == self.num_tokens

    def token_of_slot(self, device: torch.device) -> Tensor:
        """[N, M] int64: the token in each slot, -1 for padding."""
        return _tables(self, device)[0]

    def slot_of_token(self, device: torch.device) -> Tensor:
        """[L] int64: the flat slot (block * M + slot) of each token."""
        return _tables(self, device)[1]

    def real_counts(self, device: torch.device) -> Tensor:
        """[N] int32: real tokens of each block."""
        return _tables(self, device)[2]

    def local_coords(self, device: torch.device) -> Tensor:
        """[N, M, 3] int64: (t, h, w) of each slot inside its block; of a padding slot too."""
        return _tables(self, device)[3]

    def permute(self, x: Tensor) -> Tensor:
        """Bring [B, H, L, D] into tile-major order [B, H, N*M, D], padding zero. Differentiable.

        Raises:
            ValueError: `x` has not this grid's L.
        """
        if x.dim() != 4 or x.shape[2] != self.num_tokens:
            raise ValueError(
                f"expected [B, H, {self.num_tokens}, D] for grid {self.grid} ({self.num_tokens} tokens), got "
                f"{list(x.shape)}"
            )
        return _permute(x, [*self.grid, *self.block], True)

    def restore(self, x: Tensor) -> Tensor:
        """Bring tile-major [B, H, N*M, D] back to natural order [B, H, L, D]; padding is dropped. Differentiable.

        Raises:
            ValueError: `x` has not this grid's number of slots.
        """
        if x.dim() != 4 or x.shape[2] != self.num_slots:
            raise ValueError(f"expected [B, H, {self.num_slots}, D] for {self}, got {list(x.shape)}")
        return _permute(x, [*self.grid, *self.block], False)

    def _to_tiles(self, x: Tensor) -> Tensor:
        token = self.token_of_slot(x.device).view(-1)
        if self.is_even:
            return take_rows(x, token)
        return take_rows(x, token.clamp(min=0)).masked_fill_((token < 0).unsqueeze(-1), 0)

    def _to_natural(self, x: Tensor) -> Tensor:
        return take_rows(x, self.slot_of_token(x.device))


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [..., R] of x [B, H, S, D] -> [B, H, R, D]; `index` broadcasts over (B, H).

    One gather of whole rows from a flat [B*H*S, D]: `index_select` along an inner dimension copies far slower on CPUs.
    """
    b, h, s, d = x.shape
    base = torch.arange(b * h, device=x.device).view(b, h, 1) * s
    return x.reshape(-1, d).index_select(0, (index + base).view(-1)).view(b, h, index.shape[-1], d)


@torch_operator("permute")
def _permute(x: Tensor, sides: Sequence[int], to_tiles: bool) -> Tensor:
    """Permute or restore; an operator, so that a compiler does not trace how a grid's tables are made."""
    grid = _known_grid(tuple(sides))
    return grid._to_tiles(x) if to_tiles else grid._to_natural(x)  # noqa: SLF001


@fake_of(_permute)
def _(x: Tensor, sides: Sequence[int], to_tiles: bool) -> Tensor:
    grid = _grid_of(sides)
    return x.new_empty(*x.shape[:2], grid.num_slots if to_tiles else grid.num_tokens, x.shape[3])


def _save(ctx, inputs: tuple[Tensor, list[int], bool], output: Tensor) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001, ARG001
    _, ctx.sides, ctx.to_tiles = inputs


def _backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    return _permute(grad, ctx.sides, not ctx.to_tiles), None, None


gradient_of(_permute, _backward, _save)


@lru_cache(maxsize=256)
def _known_grid(sides: tuple[int, ...]) -> BlockGrid:
    return _grid_of(sides)


def _grid_of(sides: Sequence[int]) -> BlockGrid:
    t, h, w, *block = sides
    return BlockGrid((t, h, w), (block[0], block[1], block[2]))


@lru_cache(maxsize=64)
def _tables(grid: BlockGrid, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Build the four index tables of a grid once for each device."""
    if device.type != "cpu":
        token, slot, real, local = _tables(grid, torch.device("cpu"))
        return token.to(device), slot.to(device), real.to(device), local.to(device)
    steps = torch.cartesian_prod(*(torch.arange(n) for n in grid.blocks)).view(-1, 1, 3)
    inside = torch.cartesian_prod(*(torch.arange(b) for b in grid.block)).view(1, -1, 3)
    size = torch.tensor(grid.grid)
    coords = steps * torch.tensor(grid.block) + inside  # [N, M, 3]
    is_real = (coords < size).all(-1)
    order = (~is_real).to(torch.uint8).argsort(dim=1, stable=True)
    flat = (coords[..., 0] * size[1] + coords[..., 1]) * size[2] + coords[..., 2]
    token_of_slot = torch.where(is_real, flat, -1).gather(1, order)
    slot_of_token = torch.empty(grid.num_tokens, dtype=torch.int64)
    slots = torch.arange(grid.num_slots).view_as(token_of_slot)
    slot_of_token[token_of_slot[token_of_slot >= 0]] = slots[token_of_slot >= 0]
    local = inside.expand(grid.num_blocks, -1, -1).gather(1, order.unsqueeze(-1).expand(-1, -1, 3))
    return token_of_slot, slot_of_token, is_real.sum(1, dtype=torch.int32), local
