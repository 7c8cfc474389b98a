"""The options of BSA, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

QueryRule = Literal["window", "block", "flat_half", "central_mean"]
KvRule = Literal["statistical", "topk", "mass", "softmax_stat"]
Fill = Literal["nearest", "similar", "flat", "zero"]
Triple = tuple[int, int, int]

#: The block softmax mass that the rule `mass` collects, and the least number of blocks it keeps.
MASS_TARGET = 0.9
MASS_FLOOR = 4


@dataclass(frozen=True)
class BsaOptions:
    """What `make_bsa_plan` is asked for; the meaning of each is in its docstring.

    Raises:
        ValueError: names the parameter, what was expected and what was given.
    """

    grid: Triple
    block: Triple = (4, 4, 4)
    query_block: Triple | None = None
    query_keep: float = 0.5
    kv_density: float = 0.1
    query_rule: QueryRule = "window"
    kv_rule: KvRule = "statistical"
    fill: Fill = "nearest"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("query_rule", get_args(QueryRule)),
            ("kv_rule", get_args(KvRule)),
            ("fill", get_args(Fill)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in ("query_keep", "kv_density"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and 0 < value <= 1):
                raise ValueError(f"{name}: expected a share above 0 and at most 1, got {value!r}")


def kept_count(num_real: int, keep: float) -> int:
    """Queries kept of `num_real` > 0 real tokens: max(1, floor(keep * m + 0.5)). Source: bsa-method section 3, D."""
    return max(1, math.floor(keep * num_real + 0.5))
