"""The options of BSA, checked once."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from bsa_kernels.tracing import ask_once

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

    @property
    def code(self) -> str:
        """As text, for an operator that torch knows; `decode` is the inverse."""
        shares = (self.query_keep, self.kv_density)
        return _code(self.grid, self.block, self.query_block, *shares, self.query_rule, self.kv_rule, self.fill)

    @classmethod
    def decode(cls, code: str) -> BsaOptions:
        """Make of what `code` gave; the same object for the same text."""
        return _decoded(code)


@ask_once
def _code(
    grid: Triple,
    block: Triple,
    query_block: Triple | None,
    query_keep: float,
    kv_density: float,
    query_rule: QueryRule,
    kv_rule: KvRule,
    fill: Fill,
) -> str:
    return _encoded(BsaOptions(grid, block, query_block, query_keep, kv_density, query_rule, kv_rule, fill))


@lru_cache(maxsize=256)
def _encoded(options: BsaOptions) -> str:
    return json.dumps(asdict(options))


@lru_cache(maxsize=256)
def _decoded(code: str) -> BsaOptions:
    values: dict[str, Any] = json.loads(code)
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return BsaOptions(**values)


def kept_count(num_real: int, keep: float) -> int:
    """Queries or blocks kept of `num_real` > 0: max(1, floor(keep * m + 0.5)). Source: bsa-method section 3, D."""
    return max(1, math.floor(keep * num_real + 0.5))
