"""How many FLOP the gated delta rule costs: as `chunked` executes it, and nominally.

One multiply-add is two FLOP. Per token and head, with chunks of C tokens, key dim K and value dim V:

| product | forward | backward |
|---|---|---|
| K K^T, Q K^T | 2 * 2CK | twice |
| W S, Q S, K^T U | 3 * 2KV | twice |
| P U | 2CV | twice |
| triangular solve for [U0, W] | (C - 1)(K + V) | the same, and 2C(K + V) for the gradient of A |

Elementwise work, exponentials and normalisation are not counted.
"""

from __future__ import annotations

from typing import NamedTuple


class Flop(NamedTuple):
    """FLOP of one pass: in matmuls, and in triangular solves (which torch's FLOP counter does not count)."""

    matmul: int
    solve: int

    @property
    def total(self) -> int:
        """Both."""
        return self.matmul + self.solve


def chunked_forward_flop(*, batch: int, heads: int, tokens: int, key_dim: int, value_dim: int, chunk: int = 64) -> Flop:
    """Count the forward of `chunked`, the padding of the last chunk included."""
    chunks = batch * heads * -(-tokens // chunk)
    inside, state, values = _products(key_dim, value_dim, chunk)
    return Flop(chunks * (2 * inside + 3 * state + values), chunks * _solve(key_dim, value_dim, chunk))


def chunked_backward_flop(
    *, batch: int, heads: int, tokens: int, key_dim: int, value_dim: int, chunk: int = 64, state_trains: bool = False
) -> Flop:
    """Count the backward of `chunked` when q, k, v, g and beta train and the loss reads o alone.

    Autograd does nothing for the last chunk's step of the state, which no output reads, and computes the gradient of
    the first chunk's state only if `initial_state` trains (`state_trains`).
    """
    sequences, per_sequence = batch * heads, -(-tokens // chunk)
    inside, state, values = _products(key_dim, value_dim, chunk)
    reads_of_state = per_sequence - (not state_trains)
    # Q S: the gradient of all states is one batched matmul, which runs as soon as one of them needs it.
    batched_reads = per_sequence if reads_of_state else 0
    per_chunk = 4 * inside + 2 * values + 2 * chunk * chunk * (key_dim + value_dim) + 2 * state
    matmul = per_sequence * per_chunk + (2 * (per_sequence - 1) + reads_of_state + batched_reads) * state
    return Flop(sequences * matmul, sequences * per_sequence * _solve(key_dim, value_dim, chunk))


def nominal_forward_flop(*, batch: int, heads: int, tokens: int, key_dim: int, value_dim: int, chunk: int = 64) -> int:
    """Count the forward of the published chunked algorithm: 6KV + 6CK + 4CV per token, and C^2/3 for the inverse.

    The published form inverts I + A [C, C] (C^3/3 FLOP per chunk) and multiplies [V, K] by it (2CV + 2CK per token)
    where `chunked` solves; the rest is the table above. A ragged chunk counts its real tokens.
    """
    per_token = 6 * key_dim * value_dim + 6 * chunk * key_dim + 4 * chunk * value_dim
    return batch * heads * (tokens * per_token + tokens * chunk * chunk // 3)


def nominal_backward_flop(*, batch: int, heads: int, tokens: int, key_dim: int, value_dim: int, chunk: int = 64) -> int:
    """Count the backward of the published algorithm: two matmuls for each of the forward's, 4C^2 for the inverse.

    The gradient of an inverse T is -T^T dT T^T, two products of [C, C]. Nothing is recomputed in this count;
    flash-linear-attention recomputes W, U0 and the states.
    """
    per_token = 6 * key_dim * value_dim + 6 * chunk * key_dim + 4 * chunk * value_dim
    return batch * heads * tokens * (2 * per_token + 4 * chunk * chunk)


def _products(key_dim: int, value_dim: int, chunk: int) -> tuple[int, int, int]:
    """FLOP per chunk of a product [C, K] [K, C], of one with the state [C, K] [K, V], and of one [C, C] [C, V]."""
    return 2 * chunk * chunk * key_dim, 2 * chunk * key_dim * value_dim, 2 * chunk * chunk * value_dim


def _solve(key_dim: int, value_dim: int, chunk: int) -> int:
    """FLOP per chunk to solve a unit triangular system [C, C] for K + V right-hand sides."""
    return chunk * (chunk - 1) * (key_dim + value_dim)
