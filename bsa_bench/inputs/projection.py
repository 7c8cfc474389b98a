"""Project token features to per-head q, k, v with qk-norm and 3D RoPE, as Wan2.1's self-attention, on random weights.

Legend: F token features, C hidden, E = H*D, P = D/2 complex pairs of a head; M tokens of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bsa_bench.errors import InputError
from bsa_bench.inputs.seeding import make_generator

if TYPE_CHECKING:
    import torch

HIDDEN = 256
QK_SHARE = 0.7
"""Share of the variance of the q and k weights that is common to both, so that like attends to like."""
ROPE_THETA = 10_000.0
NORM_EPS = 1e-6
_MAX_CHUNK = 8192


@dataclass(frozen=True)
class Projection:
    """Random weights of one attention layer.

    A token's features pass `embed_FC` and an RMS norm; `q_CE`, `k_CE`, `v_CE` give all heads at once. q and k are
    RMS-normed over the whole width E, not per head, and rotated by their place in the (T, H, W) grid. There is no
    learned gain, so trained attention is sharper than this.
    Source: Wan2.1 wan/modules/model.py, WanSelfAttention, WanRMSNorm (eps 1e-6), rope_apply.
    """

    embed_FC: torch.Tensor
    q_CE: torch.Tensor
    k_CE: torch.Tensor
    v_CE: torch.Tensor
    rope_LP: torch.Tensor

    @classmethod
    def draw(cls, *, num_features: int, heads: int, head_dim: int, grid: tuple[int, int, int], seed: int) -> Projection:
        """Draw the weights of `seed`; they keep unit variance from features to q, k and v."""
        import torch

        def weight(name: str, fan_in: int, fan_out: int) -> torch.Tensor:
            return torch.randn(fan_in, fan_out, generator=make_generator(seed, "weight", name)) / fan_in**0.5

        width = heads * head_dim
        shared = QK_SHARE**0.5 * weight("qk", HIDDEN, width)
        own = (1 - QK_SHARE) ** 0.5
        return cls(
            embed_FC=weight("embed", num_features, HIDDEN),
            q_CE=shared + own * weight("q", HIDDEN, width),
            k_CE=shared + own * weight("k", HIDDEN, width),
            v_CE=weight("v", HIDDEN, width),
            rope_LP=rope_table(grid, head_dim),
        )

    def write(
        self, chunks_MF: Iterable[torch.Tensor], q_HLD: torch.Tensor, k_HLD: torch.Tensor, v_HLD: torch.Tensor
    ) -> None:
        """Project the chunks, which follow each other in token order, into q, k and v of any dtype and device.

        Working memory is that of a chunk, so long videos need little more than their outputs.
        """
        heads, num_tokens, head_dim = q_HLD.shape
        start = 0
        for chunk_MF in chunks_MF:
            for rows_MF in chunk_MF.split(_MAX_CHUNK):
                stop = start + len(rows_MF)
                hidden_MC = rms_norm(rows_MF @ self.embed_FC)
                rope_MP = self.rope_LP[start:stop]
                q_MHD = rms_norm(hidden_MC @ self.q_CE).unflatten(1, (heads, head_dim))
                k_MHD = rms_norm(hidden_MC @ self.k_CE).unflatten(1, (heads, head_dim))
                v_MHD = (hidden_MC @ self.v_CE).unflatten(1, (heads, head_dim))
                for out_HLD, rows_MHD in (
                    (q_HLD, apply_rope(q_MHD, rope_MP)),
                    (k_HLD, apply_rope(k_MHD, rope_MP)),
                    (v_HLD, v_MHD),
                ):
                    out_HLD[:, start:stop] = rows_MHD.to(out_HLD.dtype).transpose(0, 1)
                start = stop
        assert start == num_tokens, (start, num_tokens)


def check_head_dim(head_dim: int) -> None:
    """Raise InputError unless RoPE can rotate a head of this size."""
    if head_dim % 2:
        raise InputError(
            f"head_dim: got {head_dim}, expected an even size, because RoPE rotates pairs; "
            "take an even size or input kind gaussian"
        )


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """Scale the last axis to a root mean square of one (zero stays zero)."""
    return x * (x.square().mean(dim=-1, keepdim=True) + NORM_EPS).rsqrt()


def rope_table(grid: tuple[int, int, int], head_dim: int) -> torch.Tensor:
    """Return the unit complex factor of every token and pair, [L, D/2].

    Of the P = D/2 pairs P//3 turn with the height, P//3 with the width and the rest with time; pair i of the n pairs of
    an axis turns by position * theta^(-i/n). Source: Wan2.1 wan/modules/model.py, rope_params and rope_apply.
    """
    import torch

    third = head_dim // 2 // 3
    parts = []
    for axis, num_pairs in enumerate((head_dim // 2 - 2 * third, third, third)):
        rates = ROPE_THETA ** (-torch.arange(num_pairs, dtype=torch.float64) / max(num_pairs, 1))
        angles = torch.outer(torch.arange(grid[axis], dtype=torch.float64), rates)
        shape = [1, 1, 1, num_pairs]
        shape[axis] = grid[axis]
        parts.append(angles.view(shape).expand(*grid, num_pairs))
    angles_LP = torch.cat(parts, dim=-1).flatten(0, 2)
    return torch.complex(angles_LP.cos().float(), angles_LP.sin().float())


def apply_rope(x_MHD: torch.Tensor, rope_MP: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs (0, 1), (2, 3), ... of every head of fp32 `x_MHD`."""
    import torch

    pairs_MHP = torch.view_as_complex(x_MHD.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs_MHP * rope_MP[:, None]).flatten(-2)
