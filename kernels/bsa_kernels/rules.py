"""Element rules: which keys of its listed blocks a query sees by position alone - all, earlier ones, those of a band.

Shape legend: `L` tokens in natural order, `Nq`/`Nk` query and KV blocks, `Mq`/`Mk` slots of each, `R` query positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bsa_kernels.grid import BlockGrid

#: Counts of keys in memory at a time: 1 MiB in fp32, which an L2 cache holds.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class ElementRule:
    """A query at position i sees key position j only if i - before <= j <= i + after.

    Positions are natural token numbers, whatever the blocks. None is no bound, and a negative one leaves out the
    query's own position: `ElementRule(after=-1)` is all earlier keys. A rule narrows the listed blocks of a plan and
    adds nothing to them. A query block and a KV block are *touched* where some pair of their tokens obeys the rule, and
    *covered* where all pairs do: a method need list only touched blocks, and an engine need mask only those which are
    touched and not covered. The tokens of a three-dimensional block are not contiguous, and both answers are exact.

    Raises:
        ValueError: a bound that is no integer, or bounds that no position obeys.
    """

    before: int | None = None
    after: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("before", self.before), ("after", self.after)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{name}: expected an integer or None, got {value!r}")
        if self.before is not None and self.after is not None and self.before + self.after < 0:
            raise ValueError(f"before + after: expected at least 0, got before={self.before} and after={self.after}")

    @classmethod
    def band(cls, before: int, after: int) -> ElementRule:
        """The rule of a sliding window: `before` keys before the query, itself, and `after` keys after it."""
        return cls(before=before, after=after)

    @property
    def is_full(self) -> bool:
        """Whether it lets every pair through."""
        return self.before is None and self.after is None

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether queries at these positions see keys at those; the two broadcast against each other."""
        offset = key - query
        if self.after is None:
            return torch.ones_like(offset, dtype=torch.bool) if self.before is None else offset >= -self.before
        seen = offset <= self.after
        return seen if self.before is None else seen & (offset >= -self.before)

    def covers(self, q_grid: BlockGrid, kv_grid: BlockGrid, device: torch.device) -> Tensor:
        """[Nq, Nk] bool: every query of block i sees every key of block j."""
        first_q, last_q = _ends(q_grid, device)
        first_k, last_k = _ends(kv_grid, device)
        covered = torch.ones(q_grid.num_blocks, kv_grid.num_blocks, dtype=torch.bool, device=device)
        if self.after is not None:
            covered &= last_k - first_q.unsqueeze(-1) <= self.after
        if self.before is not None:
            covered &= first_k - last_q.unsqueeze(-1) >= -self.before
        return covered

    def touches(self, q_grid: BlockGrid, kv_grid: BlockGrid, device: torch.device) -> Tensor:
        """[Nq, Nk] bool: some query of block i sees some key of block j.

        Raises:
            ValueError: the grids differ, and the rule is not that of every pair.
        """
        self.check_grids(q_grid, kv_grid)
        if self.before is not None and self.after is not None:
            return self._touches_band(q_grid, kv_grid, device)
        first_q, last_q = _ends(q_grid, device)
        first_k, last_k = _ends(kv_grid, device)
        if self.after is not None:
            return first_k - last_q.unsqueeze(-1) <= self.after
        if self.before is not None:
            return last_k - first_q.unsqueeze(-1) >= -self.before
        return torch.ones(q_grid.num_blocks, kv_grid.num_blocks, dtype=torch.bool, device=device)

    def check_grids(self, q_grid: BlockGrid, kv_grid: BlockGrid) -> None:
        """Verify that queries and keys have common positions, unless the rule is that of every pair.

        Raises:
            ValueError: the grids differ.
        """
        if not self.is_full and q_grid.grid != kv_grid.grid:
            raise ValueError(
                f"rule: expected FULL where queries and keys have different grids, {q_grid.grid} and {kv_grid.grid}, "
                f"got {self}"
            )

    def kept_pairs(self, kept: Tensor, block_mask: Tensor, q_grid: BlockGrid, kv_grid: BlockGrid) -> Tensor:
        """[B, H] int64: the pairs of kept rows [B, H, Nq, Mq] bool and keys of listed blocks [B, H, Nq, Nk] bool.

        Counted in closed form for a few query blocks at a time, in memory of B * H * Nk numbers for each of them.
        """
        b, h, nq, mq = kept.shape
        total = torch.zeros(b * h, dtype=torch.float64, device=kept.device)
        token = q_grid.token_of_slot(kept.device).clamp(min=0).int()
        step = max(1, _CHUNK // (mq * kv_grid.num_blocks))
        for first in range(0, nq, step):
            few = slice(first, first + step)
            seen = self._seen_keys(token[few].flatten(), kv_grid).unflatten(0, (-1, mq)).double()  # [c, Mq, Nk]
            rows = kept[:, :, few].flatten(0, 1).transpose(0, 1).double()  # [c, B*H, Mq]
            listed = block_mask[:, :, few].flatten(0, 1).transpose(0, 1)
            total += ((rows @ seen) * listed).sum((0, 2))  # whole numbers below 2^53: exact
        return total.long().view(b, h)

    def _seen_keys(self, query: Tensor, kv_grid: BlockGrid) -> Tensor:
        """[R, Nk] fp32: how many keys of each block queries at positions [R] int32 see."""
        length = kv_grid.num_tokens
        end = torch.full_like(query, length) if self.after is None else (query + self.after + 1).clamp(0, length)
        seen = _keys_below(end, kv_grid)
        return seen if self.before is None else seen - _keys_below((query - self.before).clamp(0, length), kv_grid)

    def _touches_band(self, q_grid: BlockGrid, kv_grid: BlockGrid, device: torch.device) -> Tensor:
        """Differences of positions are dt*H*W + dh*W + dw for (dt, dh, dw) of a box: is one inside the band?"""
        assert self.before is not None
        assert self.after is not None
        _, height, width = kv_grid.grid
        t, h, w = _differences(q_grid, kv_grid, device)
        steps = range(q_grid.block[0] + kv_grid.block[0] - 1)
        planes = []
        for i in range(q_grid.blocks[0]):
            first_t, last_t = t[0][i].view(1, 1, -1, 1, 1), t[1][i].view(1, 1, -1, 1, 1)
            first_h, last_h = (x.view(x.shape[0], 1, 1, -1, 1) for x in h)
            first_w, last_w = (x.view(1, x.shape[0], 1, 1, -1) for x in w)
            touched = torch.zeros((), dtype=torch.bool, device=device)
            for step in steps:
                offset = (first_t + step) * (height * width)
                # The dh whose interval of dw, shifted by dh*W, meets the band.
                low = ((-self.before - offset - last_w + width - 1) // width).maximum(first_h)
                high = ((self.after - offset - first_w) // width).minimum(last_h)
                touched = touched | ((low <= high) & (first_t + step <= last_t))
            planes.append(touched.flatten(0, 1).flatten(1))
        return torch.cat(planes)


#: Every pair.
FULL = ElementRule()
#: A query sees itself and what comes before it.
CAUSAL = ElementRule(after=0)


def _ends(grid: BlockGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """[N] each: the first and the last token of a block; slots hold real tokens first, ascending."""
    token = grid.token_of_slot(device)
    return token[:, 0], token.amax(-1)


def _axes(grid: BlockGrid, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """For each axis [blocks along it]: the first coordinate of a block, and how many it has inside the grid."""
    for size, block in zip(grid.grid, grid.block, strict=True):
        first = torch.arange(0, size, block, device=device)
        yield first, (size - first).clamp(max=block)


def _differences(q_grid: BlockGrid, kv_grid: BlockGrid, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each axis: the least and the greatest difference of a key's and a query's coordinate, [Nq_axis, Nk_axis]."""
    pairs = []
    for (first_q, num_q), (first_k, num_k) in zip(_axes(q_grid, device), _axes(kv_grid, device), strict=True):
        least = first_k - (first_q + num_q - 1).unsqueeze(-1)
        greatest = (first_k + num_k - 1) - first_q.unsqueeze(-1)
        pairs.append((least, greatest))
    return pairs


def _keys_below(bound: Tensor, grid: BlockGrid) -> Tensor:
    """[R, N] fp32: how many tokens of each block have a position below `bound` [R]: whole planes, then rows, then one.

    Exact for blocks of up to 2^24 tokens.
    """
    _, height, width = grid.grid
    row = bound // width
    places = (row // height, row % height, bound % width)
    offset, num = [], []
    for place, (first, count) in zip(places, _axes(grid, bound.device), strict=True):
        offset.append(place.unsqueeze(-1) - first.int())  # [R, blocks of this axis]
        num.append(count.int())
    t, h, w = (x.clamp(min=0).minimum(n).float() for x, n in zip(offset, num, strict=True))
    in_plane, in_row = (((x >= 0) & (x < n)).float() for x, n in zip(offset[:2], num[:2], strict=True))
    rows = h.unsqueeze(-1) * num[2] + in_row.unsqueeze(-1) * w.unsqueeze(1)  # [R, N_h, N_w]
    planes = t[:, :, None, None] * (num[1].unsqueeze(-1) * num[2])
    return (planes + in_plane[:, :, None, None] * rows.unsqueeze(1)).flatten(1)
