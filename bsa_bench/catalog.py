"""The catalogue: every method and engine by name, loaded when first used.

A new one is one file and one line here; a third party registers its own through the entry-point groups
`bsa_bench.methods` and `bsa_bench.engines`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from bsa_bench.engines.forms import parse_forms
from bsa_bench.errors import UsageError

if TYPE_CHECKING:
    import torch

    from bsa_bench.engines.base import Engine
    from bsa_bench.operator import Operator
    from bsa_bench.result import Case

METHODS: dict[str, str] = {
    "full": "bsa_bench.methods.full:build",
    "bsa": "bsa_bench.methods.bsa:build",
}

ENGINES: dict[str, str] = {
    "sdpa-math": "bsa_bench.engines.dense:SDPA_MATH",
    "sdpa-flash": "bsa_bench.engines.dense:SDPA_FLASH",
    "sdpa-efficient": "bsa_bench.engines.dense:SDPA_EFFICIENT",
    "sdpa-cudnn": "bsa_bench.engines.dense:SDPA_CUDNN",
    "flash-attn": "bsa_bench.engines.dense:FLASH_ATTN",
    "xformers": "bsa_bench.engines.dense:XFORMERS",
    "flex": "bsa_bench.engines.plan:FLEX",
    "gather": "bsa_bench.engines.plan:GATHER",
    "triton": "bsa_bench.engines.plan:TRITON",
    "triton-tiled": "bsa_bench.engines.plan:TRITON_TILED",
    "gluon": "bsa_bench.engines.plan:GLUON",
}

#: Engines without block plans: they run `full` only. Kept beside the names, so that listing loads nothing.
DENSE_ONLY = frozenset({"sdpa-math", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "flash-attn", "xformers"})

#: Engines that take forms, see `bsa_bench.engines.forms`.
FORMED = frozenset({"triton", "triton-tiled"})


def method_names() -> list[str]:
    """All methods, third parties' included."""
    return [*METHODS, *(e.name for e in entry_points(group="bsa_bench.methods"))]


def engine_names() -> list[str]:
    """All engines, third parties' included."""
    return [*ENGINES, *(e.name for e in entry_points(group="bsa_bench.engines"))]


def implementations() -> list[str]:
    """All `method@engine` pairs that exist, without forms; whether one runs here is another question."""
    return [f"{m}@{e}" for m in method_names() for e in engine_names() if m == "full" or e not in DENSE_ONLY]


def check_implementations(names: Iterable[str]) -> None:
    """Refuse names that do not exist.

    Raises:
        UsageError: names the unknown ones, the nearest known one, and all that there are.
    """
    known = implementations()
    for name in names:
        plain, colon, forms = name.partition(":")
        method, _, engine = plain.partition("@")
        if plain in known and colon:
            check_forms(engine, forms)
        if plain in known:
            continue
        if method in method_names() and engine in engine_names():
            raise UsageError(
                f"implementation {name!r}: {engine} takes no block mask, so it cannot run the plan of {method}; "
                f"use one of {', '.join(f'{method}@{e}' for e in engine_names() if e not in DENSE_ONLY)}"
            )
        near = difflib.get_close_matches(plain, known, n=1)
        hint = f"did you mean {near[0] + colon + forms!r}? " if near else ""
        raise UsageError(f"implementation {name!r} does not exist; {hint}there are: {', '.join(known)}")


def check_forms(engine: str, forms: str) -> None:
    """Refuse forms that an engine does not have.

    Raises:
        UsageError: the engine has none, or as `parse_forms`.
    """
    if engine not in FORMED:
        raise UsageError(f"engine {f'{engine}:{forms}'!r}: {engine} has no forms, only {' and '.join(sorted(FORMED))}")
    parse_forms(forms, engine=f"{engine}:{forms}")


def load_engine(name: str) -> Engine:
    """Load an engine by name, in its forms if the name has some.

    Raises:
        UsageError: there is no such engine or form.
    """
    base, colon, forms = name.partition(":")
    engine = _load(base, ENGINES, "bsa_bench.engines")
    if colon:
        check_forms(base, forms)
        engine = engine.in_forms(forms)
    return cast("Engine", engine)


def build_operator(case: Case, *, scale: float) -> Operator:
    """The operator of a case."""
    build = _load(case.method, METHODS, "bsa_bench.methods")
    return cast("Operator", build(load_engine(case.engine), case.workload.token_grid, case.options, scale=scale))


def unsupported(
    implementation: str, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool
) -> str | None:
    """Why an implementation cannot run that on this device, or None."""
    method, _, name = implementation.partition("@")
    engine = load_engine(name)
    if method != "full" and not engine.runs_plans:
        return f"{name} takes no block mask, so it cannot run the plan of {method}; run full@{name}."
    return engine.unsupported(device, dtype, head_dim, backward=backward)


def _load(name: str, table: dict[str, str], group: str) -> Any:
    if name in table:
        module, _, attribute = table[name].partition(":")
        return getattr(import_module(module), attribute)
    for entry in entry_points(group=group):
        if entry.name == name:
            return entry.load()
    raise UsageError(f"{name!r} is not registered; there are: {', '.join(table)}")
