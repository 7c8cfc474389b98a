"""Attention as BitStopper computes it, bit plane by bit plane, with counters of what it fetches.

Keys are integers of `bits` bits in two's complement, stored as one-bit planes, most significant first. After plane r
(from 0) of a key, the planes not yet seen weigh m = 2^(bits-1-r) - 1 in all, so its score lies in

    [A + m sum_d min(q_d, 0),  A + m sum_d max(q_d, 0)]

where A is the score of the planes seen. A key stops when its upper bound is below the best lower bound of its query
minus alpha * radius. So exactly the keys with a score of at least the maximum minus alpha * radius survive.
Source: arXiv 2512.06457 by secondary notes; the maximum of lower bounds (not of partial scores) is our decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bsa_kernels.methods.bitstopper.counters import Counters
from bsa_kernels.methods.bitstopper.options import Mode, Options, check_shapes, quantisation_step, quantise

#: Pairs of a query and a key that are in work at a time, which bounds the memory beside the planes.
PAIRS_IN_WORK = 1 << 20
_INTEGER_OF_BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def simulate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    bits: int = 12,
    alpha: float = 0.6,
    radius: float = 5.0,
    causal: bool = False,
    mode: Mode = "adaptive",
    fixed_planes: int = 4,
    burst_bytes: int = 64,
) -> tuple[Tensor, Counters]:
    """Attend with early stopping of keys, and count.

    Args:
        q: [B, H, Lq, D], quantised whole.
        k: [B, H, Lk, D], fetched plane by plane.
        v: [B, H, Lk, Dv], used as it is; a row is fetched for survivors only.
        scale: of the logits, 1/sqrt(D) as a rule.
        bits: of the symmetric quantisation of q and k, one step for all of q and one for all of k.
        alpha: how much of the radius a key may lie below the best; infinity keeps all. The paper's range is 0 to 1.
        radius: in units of the logits.
        causal: a query sees the keys up to its own index; Lq must equal Lk.
        mode: `adaptive`: keys may stop after every plane. `fixed`: they may stop after `fixed_planes` planes, those
            that do not fetch all the others (a predictor of fixed width): same survivors, other counts. `exact`: every
            key fetches every plane and survives, a dense attention over integers.
        fixed_planes: planes before the only decision of `fixed`.
        burst_bytes: what one access to the modelled memory fetches.

    Returns:
        o [B, H, Lq, Dv] in v's dtype, softmax over the survivors' exact integer scores, and the counters. Not
        differentiable.

    Raises:
        ValueError: shapes that do not fit, options out of range, values that are not finite.
    """
    options = Options(scale=scale, bits=bits, alpha=alpha, radius=radius, mode=mode, fixed_planes=fixed_planes)
    check_shapes(q, k, v, causal=causal)
    if burst_bytes < 1:
        raise ValueError(f"burst_bytes: expected at least 1, got {burst_bytes}")
    q_step, k_step = quantisation_step(q, bits), quantisation_step(k, bits)
    count = _Count(bits, max(1, 8 * burst_bytes // k.shape[-1]), q.device)
    out = q.new_empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype)
    rows = max(1, PAIRS_IN_WORK // k.shape[-2])
    heads = zip(*(x.flatten(0, -3) for x in (q, k, v, out)), strict=True)
    for q_head, k_head, v_head, out_head in heads:
        planes = _bit_planes(quantise(k_head, k_step), bits)
        values = v_head if v.dtype == torch.float64 else v_head.float()
        for start in range(0, len(q_head), rows):
            block = quantise(q_head[start : start + rows], q_step)
            num_keys = start + len(block) if causal else len(k_head)
            partial = block.new_zeros(len(block), num_keys)
            if causal:
                partial.masked_fill_(_is_later(start, partial), -math.inf)
            live = _stop_keys(block, planes[:, :num_keys], partial, options, q_step * k_step, count)
            # Differences of integers first: exact, whatever the dtype of the weights.
            logits = (partial - partial.amax(-1, keepdim=True)) * (q_step * k_step * scale)
            weights = logits.to(values.dtype).masked_fill_(~live, -math.inf).softmax(-1)
            out_head[start : start + rows] = weights @ values[:num_keys]
    return out, count.counters(k.shape[-1], v.shape[-1], burst_bytes)


def _stop_keys(q: Tensor, planes: Tensor, partial: Tensor, options: Options, unit: float, count: _Count) -> Tensor:
    """Fetch planes until every key has stopped or has none left; bring `partial` to the score, and return survivors.

    q [R, D] and planes [bits, Lk, D] hold integers in fp64; partial [R, Lk] starts at 0, -inf where a key may not be
    seen; unit is what one of the integer score is worth before `scale`. The sums go on for keys that have stopped:
    their upper bound, which only falls, is below a lower bound that only rises, so they can never be the best.
    """
    live = partial == 0
    margin = options.alpha * options.radius / (unit * options.scale)
    low, high = q.clamp(max=0).sum(-1, keepdim=True), q.clamp(min=0).sum(-1, keepdim=True)
    for plane, bits in enumerate(planes):
        count.fetch(plane, live)
        weight = 2 ** (options.bits - 1 - plane)
        partial.addmm_(q, bits.mT, alpha=-weight if plane == 0 else weight)
        if options.decides_after(plane):
            unseen = weight - 1
            best = partial.amax(-1, keepdim=True) + unseen * low
            live &= partial >= best - margin - unseen * high
    count.survive(live)
    return live


def _bit_planes(k: Tensor, bits: int) -> Tensor:
    """Cut integers [L, D] into planes [bits, L, D] of zeros and ones in fp64, the sign's first."""
    k = k.long()
    return torch.stack([(k >> (bits - 1 - plane)) & 1 for plane in range(bits)]).double()


def _is_later(start: int, pairs: Tensor) -> Tensor:
    """Whether each key [Lk] comes after each query of a block that begins at `start`: [R, Lk]."""
    query = start + torch.arange(pairs.shape[0], device=pairs.device)
    return torch.arange(pairs.shape[1], device=pairs.device) > query.unsqueeze(-1)


@dataclass
class _Count:
    """Running counts, on the device: live pairs and touched bursts by plane, and survivors."""

    bits: int
    keys_per_burst: int
    device: torch.device

    def __post_init__(self) -> None:
        self.live = torch.zeros(self.bits, dtype=torch.int64, device=self.device)
        self.groups = torch.zeros_like(self.live)
        self.survivors = torch.zeros((), dtype=torch.int64, device=self.device)

    def fetch(self, plane: int, live: Tensor) -> None:
        """One more plane of the live keys; neighbouring keys' planes lie in one burst."""
        self.live[plane] += torch.count_nonzero(live)
        padded = functional.pad(live, (0, -live.shape[-1] % self.keys_per_burst))
        # Eight bools read as one integer are zero if none is set: far cheaper than `any` over so short an axis.
        width = math.gcd(self.keys_per_burst, 8)
        words = padded.view(_INTEGER_OF_BYTES[width])
        if width < self.keys_per_burst:
            words = words.unflatten(-1, (-1, self.keys_per_burst // width)).any(-1)
        self.groups[plane] += torch.count_nonzero(words)

    def survive(self, live: Tensor) -> None:
        """What is left after the last plane."""
        self.survivors += torch.count_nonzero(live)

    def counters(self, key_dim: int, value_dim: int, burst_bytes: int) -> Counters:
        """Close the books."""
        live = [*self.live.tolist(), 0]
        per_group = -(-key_dim * self.keys_per_burst // (8 * burst_bytes))
        return Counters(
            bits=self.bits,
            key_dim=key_dim,
            value_dim=value_dim,
            burst_bytes=burst_bytes,
            num_pairs=live[0],
            planes_histogram={planes: live[planes - 1] - live[planes] for planes in range(1, self.bits + 1)},
            bursts_per_plane=tuple(groups * per_group for groups in self.groups.tolist()),
            num_survivors=int(self.survivors),
        )
