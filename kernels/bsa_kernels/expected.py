"""What a method says about its work before it runs: plain arithmetic, of one (batch, head), without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Expected:
    """Work of one (batch, head).

    `pairs` (query, key) attended to by the sparse attention; `density`, these over L squared, whatever is causal;
    `selection_flop`, what deciding costs; `is_exact`, whether the data can change `pairs`.
    """

    pairs: float
    density: float
    selection_flop: float
    is_exact: bool
