"""The catalogue: every method and engine by name, loaded when first used.

A new one is one file and one line here; a third party registers its own through the entry-point groups
`bsa_bench.methods` and `bsa_bench.engines`. What they have to say of themselves is in `bsa_bench.contract`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from bsa_bench.contract import (
    BLOCKS,
    CAUSAL_DENSE,
    DELTA_RULE,
    DENSE,
    ELEMENT_RULES,
    SIMULATION,
    Cost,
    Engine,
    Method,
    MethodOptions,
)
from bsa_bench.errors import UsageError
from bsa_bench.plugins import ENGINES_GROUP, METHODS_GROUP, Plugin, load_plugins
from bsa_bench.result import Case, PaperClaim, PassName
from bsa_bench.text import shortened, visible

if TYPE_CHECKING:
    import torch

    from bsa_bench.workload import Workload
    from bsa_kernels.operator import Operator

METHODS: dict[str, str] = {
    "full": "bsa_bench.methods.full:FULL",
    "full-causal": "bsa_bench.methods.full:FULL_CAUSAL",
    "bsa": "bsa_bench.methods.bsa:BSA",
    "vsa": "bsa_bench.methods.vsa:VSA",
    "vmoba": "bsa_bench.methods.vmoba:VMOBA",
    "moba": "bsa_bench.methods.moba:MOBA",
    "sliding-tile": "bsa_bench.methods.sliding_tile:SLIDING_TILE",
    "swa": "bsa_bench.methods.swa:SWA",
    "gated-delta-rule": "bsa_bench.methods.gated_delta_rule:GATED_DELTA_RULE",
    "bitstopper": "bsa_bench.methods.bitstopper:BITSTOPPER",
}

_DENSE = frozenset({DENSE, CAUSAL_DENSE})
_BLOCKS = frozenset({DENSE, CAUSAL_DENSE, BLOCKS, ELEMENT_RULES})
#: Where each engine is, and what it offers: here too, so that names are checked and listed without loading torch.
ENGINES: dict[str, tuple[str, frozenset[str]]] = {
    "sdpa-math": ("bsa_bench.engines.dense:SDPA_MATH", _DENSE),
    "sdpa-flash": ("bsa_bench.engines.dense:SDPA_FLASH", _DENSE),
    "sdpa-efficient": ("bsa_bench.engines.dense:SDPA_EFFICIENT", _DENSE),
    "sdpa-cudnn": ("bsa_bench.engines.dense:SDPA_CUDNN", _DENSE),
    "flash-attn": ("bsa_bench.engines.dense:FLASH_ATTN", _DENSE),
    "xformers": ("bsa_bench.engines.dense:XFORMERS", _DENSE),
    "flex": ("bsa_bench.engines.blocks:FLEX", _BLOCKS),
    "gather": ("bsa_bench.engines.blocks:GATHER", _BLOCKS),
    "cpu": ("bsa_bench.engines.blocks:CPU", _BLOCKS),
    "triton": ("bsa_bench.engines.blocks:TRITON", _BLOCKS),
    # Its dense attention would be `full@triton` under a second name.
    "triton-tiled": ("bsa_bench.engines.blocks:TRITON_TILED", frozenset({BLOCKS, ELEMENT_RULES})),
    "gluon": ("bsa_bench.engines.blocks:GLUON", frozenset({DENSE, BLOCKS})),
    "recurrence": ("bsa_bench.engines.delta_rule:RECURRENCE", frozenset({DELTA_RULE})),
    "chunked": ("bsa_bench.engines.delta_rule:CHUNKED", frozenset({DELTA_RULE})),
    "fla": ("bsa_bench.engines.delta_rule:FLA", frozenset({DELTA_RULE})),
    "simulator": ("bsa_bench.engines.simulator:SIMULATOR", frozenset({SIMULATION})),
}

#: Engines that take forms, and where these are.
FORMED = frozenset({"triton", "triton-tiled"})
_FORMS = "bsa_bench.engines.forms:parse_forms"


def method_names() -> list[str]:
    """All methods, third parties' included."""
    return _names(METHODS, METHODS_GROUP)


def engine_names() -> list[str]:
    """All engines, third parties' included."""
    return _names(ENGINES, ENGINES_GROUP)


def load_method(name: str) -> Method:
    """Load a method by name; loads no torch.

    Raises:
        UsageError: there is no such method, or a third party's cannot be loaded.
    """
    path = METHODS.get(name)
    return cast("Method", _resolve(path) if path else _third_party(name, METHODS, METHODS_GROUP))


def load_engine(name: str) -> Engine:
    """Load an engine by name, in its forms if the name has some.

    Raises:
        UsageError: there is no such engine or form, or a third party's cannot be loaded.
    """
    base, colon, forms = name.partition(":")
    engine = _resolve(ENGINES[base][0]) if base in ENGINES else _third_party(base, ENGINES, ENGINES_GROUP)
    if colon:
        check_forms(base, forms)
        engine = engine.in_forms(forms)
    return cast("Engine", engine)


def offers(engine: str) -> frozenset[str]:
    """What an engine offers; loads only third parties'."""
    base = engine.partition(":")[0]
    return ENGINES[base][1] if base in ENGINES else frozenset(load_engine(base).offers)


def implementations() -> list[str]:
    """All `method@engine` pairs that exist, without forms; whether one runs here is another question."""
    offered = {engine: offers(engine) for engine in engine_names()}
    return [
        f"{method}@{engine}"
        for method in method_names()
        for engine, has in offered.items()
        if set(load_method(method).needs) <= has
    ]


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
            lacks = " and ".join(sorted(set(load_method(method).needs) - offers(engine)))
            able = [pair for pair in known if pair.startswith(f"{method}@")]
            raise UsageError(
                f"implementation {name!r}: {method} needs an engine that offers {lacks}, {engine} does not; "
                f"use one of {', '.join(able)}"
            )
        for word, table, group in ((method, METHODS, METHODS_GROUP), (engine, ENGINES, ENGINES_GROUP)):
            if any(plugin.name == word and plugin.reason for plugin in _plugins(table, group)) and word not in table:
                _third_party(word, table, group)  # raises, with the reason
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
    _resolve(_FORMS)(forms, engine=f"{engine}:{forms}")


@lru_cache(maxsize=1)
def options_by_method() -> Mapping[str, type[MethodOptions]]:
    """The options of each method that has some; read once for the process."""
    found = {name: load_method(name).Options for name in method_names()}
    return {name: options for name, options in found.items() if options.model_fields}


def make_case(
    *,
    suite: str,
    workload: Workload,
    implementation: str,
    passes: PassName,
    options: Mapping[str, Any] | MethodOptions | None = None,
    variant: str | None = None,
    paper: PaperClaim | None = None,
) -> Case:
    """A case, with what its method says of these options.

    Raises:
        UsageError: there is no such method, or its options are wrong.
    """
    name = implementation.partition("@")[0]
    method = load_method(name)
    made = check_options(name, options or {})
    return Case(
        suite=suite,
        workload=workload,
        implementation=implementation,
        passes=passes,
        options=made.model_dump(mode="json"),
        label=made.label(),
        claims=method.claims(made),
        variant=variant,
        paper=paper,
    )


def check_options(method: str, options: Mapping[str, Any] | MethodOptions) -> MethodOptions:
    """The options of a method from plain values.

    Raises:
        UsageError: names the method, the option, what was given and what was expected.
    """
    if isinstance(options, MethodOptions):
        return options
    try:
        return load_method(method).Options.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([method, *map(str, first["loc"])])
        said = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {said}" + (f", got {first['input']!r}" if first["loc"] else "")) from None


def is_dense(implementation: str) -> bool:
    """Whether an implementation, with its method's default options, is dense attention."""
    method = load_method(implementation.partition("@")[0])
    return method.claims(method.Options()).is_dense


def options_of(case: Case) -> MethodOptions:
    """The options of a case as its method has them."""
    return check_options(case.method, case.options)


def expected_cost(case: Case) -> Cost:
    """What a case is expected to cost; loads no torch.

    Of one that its method is not defined on, and that therefore never runs, what dense attention costs.
    """
    method, options = load_method(case.method), options_of(case)
    if method.unsupported(case.workload, options) is not None:
        method, options = load_method("full"), check_options("full", {})
    return method.expected(case.workload, options)


def unsupported_case(case: Case) -> str | None:
    """Why a case cannot run anywhere: its method is not defined on its workload, or has no backward."""
    if case.passes != "forward" and not case.claims.trains:
        return f"{case.method} has no backward; run its forward."
    return load_method(case.method).unsupported(case.workload, options_of(case))


def build_operator(case: Case, *, scale: float) -> Operator:
    """The operator of a case."""
    method, engine = load_method(case.method), load_engine(case.engine)
    return method.operator(case.workload, options_of(case), engine, scale=scale)


def unsupported(
    implementation: str, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool
) -> str | None:
    """Why an implementation cannot run that on this device, or None."""
    method, _, name = implementation.partition("@")
    try:
        lacks = set(load_method(method).needs) - offers(name)
        if lacks:
            return f"{name} does not offer {' and '.join(sorted(lacks))}, which {method} needs."
        said = load_engine(name).unsupported(device, dtype, head_dim, backward=backward)
    except UsageError as error:
        return str(error)
    except (Exception, SystemExit) as error:
        if name.partition(":")[0] in ENGINES:
            raise  # a defect of ours
        told = shortened(visible(str(error)), 200)
        return f"{name} of another package raised {type(error).__name__} when it was asked: {told}"
    return said if said is None else str(said)


def plugins() -> list[Plugin]:
    """All entry points of other packages, broken ones included."""
    return [*_plugins(METHODS, METHODS_GROUP), *_plugins(ENGINES, ENGINES_GROUP)]


def _plugins(table: Mapping[str, object], group: str) -> list[Plugin]:
    return load_plugins(entry_points(group=group), group, table)


def _names(table: Mapping[str, object], group: str) -> list[str]:
    """Those that can be used."""
    return [*table, *(plugin.name for plugin in _plugins(table, group) if plugin.reason is None)]


def _third_party(name: str, table: Mapping[str, object], group: str) -> Any:
    entries = [entry for entry in entry_points(group=group) if entry.name == name]  # the others stay unloaded
    for plugin in sorted(load_plugins(entries, group, table), key=lambda each: each.reason is not None):
        if plugin.reason is None:
            return plugin.loaded
        raise UsageError(f"entry point {name!r} of {group}: {plugin.remark}")
    raise UsageError(f"{name!r} is not registered; there are: {', '.join(_names(table, group))}")


@lru_cache(maxsize=64)
def _resolve(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
