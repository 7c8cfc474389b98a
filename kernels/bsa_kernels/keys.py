"""Keys in slots: the blocks of a grid and, behind them, those of a dense prefix of text or context tokens.

Shape legend: `P` tokens of the prefix, `L` of the grid, `Nk` KV blocks of both, `Mk` slots a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bsa_kernels.grid import BlockGrid


@dataclass(frozen=True)
class KeySlots:
    """Where a key stands: `prefix` tokens come first in natural order, and last in the numbering of blocks.

    k and v are [B, H, P + L, D]: the prefix, then the grid's tokens. Tile-major, they are [B, H, Nk*Mk, D]: the grid's
    blocks, then ceil(P / Mk) blocks of the prefix in its own order, the last of them padded. So the number of a grid's
    block is the same with a prefix as without, and a prefix block is a block like others.

    Raises:
        ValueError: `prefix` is no integer of at least 0.
    """

    grid: BlockGrid
    prefix: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.prefix, bool) or not isinstance(self.prefix, int) or self.prefix < 0:
            raise ValueError(f"prefix: expected a number of tokens of at least 0, got {self.prefix!r}")

    @property
    def num_keys(self) -> int:
        """P + L."""
        return self.prefix + self.grid.num_tokens

    @property
    def num_prefix_blocks(self) -> int:
        """ceil(P / Mk)."""
        return -(-self.prefix // self.grid.block_size)

    @property
    def num_blocks(self) -> int:
        """Nk, those of the prefix included."""
        return self.grid.num_blocks + self.num_prefix_blocks

    @property
    def num_slots(self) -> int:
        """Nk * Mk: keys and padding."""
        return self.num_blocks * self.grid.block_size

    @property
    def is_even(self) -> bool:
        """Whether nothing is padded."""
        return self.num_slots == self.num_keys

    def real_counts(self, device: torch.device) -> Tensor:
        """[Nk] int32: real keys of each block."""
        counts = self.grid.real_counts(device)
        if not self.prefix:
            return counts
        size = self.grid.block_size
        first = torch.arange(0, self.prefix, size, dtype=torch.int32, device=device)
        return torch.cat((counts, (self.prefix - first).clamp(max=size)))

    def slot_of_key(self, device: torch.device) -> Tensor:
        """[P + L] int64: the flat slot (block * Mk + slot) of each key in natural order."""
        slots = self.grid.slot_of_token(device)
        if not self.prefix:
            return slots
        return torch.cat((torch.arange(self.prefix, device=device) + self.grid.num_slots, slots))

    def positions(self, device: torch.device) -> Tensor:
        """[Nk, Mk] int32: the grid's token in each slot; 0 for padding and for the prefix, which have none."""
        token = self.grid.token_of_slot(device).clamp(min=0).int()
        return functional.pad(token, (0, 0, 0, self.num_prefix_blocks))

    def tiles(self, x: Tensor) -> Tensor:
        """Bring k or v [B, H, P + L, D] into tile-major order [B, H, Nk*Mk, D], padding zero. Differentiable.

        Raises:
            ValueError: `x` has not this number of keys.
        """
        if not self.prefix:
            return self.grid.permute(x)
        if x.dim() != 4 or x.shape[2] != self.num_keys:
            raise ValueError(
                f"expected [B, H, {self.num_keys}, D] for {self.prefix} tokens of a prefix and grid {self.grid.grid}, "
                f"got {list(x.shape)}"
            )
        front = x[:, :, : self.prefix]
        padding = self.num_prefix_blocks * self.grid.block_size - self.prefix
        return torch.cat((self.grid.permute(x[:, :, self.prefix :]), functional.pad(front, (0, 0, 0, padding))), 2)
