"""From the groups of a suite to its cases: cross them, resolve each point, leave out what limits say, never repeat."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, cast

from pydantic import ValidationError

from bsa_bench.catalog import check_options, load_method, make_case
from bsa_bench.contract import MethodOptions
from bsa_bench.errors import SuiteError, UsageError
from bsa_bench.file_digest import file_digest
from bsa_bench.result import PASSES, Case, PassName
from bsa_bench.suite.layers import Layer
from bsa_bench.suite.schema import INPUT_NEEDS, MODEL_KEYS, DeviceKind, Limit, Value, Variant, vocabulary
from bsa_bench.suite.suggest import shorten
from bsa_bench.workload import PRESETS, InputSpec, Workload

MAX_POINTS = 100_000
MAX_TRIED = 300_000
"""Combinations of the axes times implementations and variants."""
MAX_CASES = 100_000
AUTO_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
#: The settings that a workload is measured with: (implementation, options) -> the variant that asked for them first.
Offer = dict[tuple[str, MethodOptions], Variant | None]


@dataclass(frozen=True)
class Dropped:
    """A combination that the suite names and does not measure, and why."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True)
class Expansion:
    """What a suite comes to on one kind of device."""

    cases: tuple[Case, ...]
    dropped: tuple[Dropped, ...]


def expand(layer: Layer, *, suite: str, device_kind: DeviceKind, source: str) -> Expansion:
    """Make the cases: by tokens, then by implementation in the suite's order, then by options, then by pass.

    A method without options is made once per workload. No measurement (`Case.case_hash`) is made twice: of variants
    that come to the same options the first one stays.

    Raises:
        SuiteError: no implementations, no length, too many combinations, or nothing left.
    """
    part = layer.part
    if part.implementations is None:
        raise SuiteError(
            f"{source}: implementations: is missing, expected a list such as ['full@sdpa-flash', 'bsa@gather']"
        )
    implementations = tuple(dict.fromkeys(part.implementations))
    methods = {name: name.partition("@")[0] for name in implementations}
    dropped: dict[Dropped, None] = {}
    offers: dict[Workload, Offer] = {}
    each = len(implementations) * max(len(part.variant or ()), 1)
    for point in _points(layer, source, each=each):
        workload = _workload(point, device_kind, source)
        offer = offers.setdefault(workload, {})
        for name, method in methods.items():
            for variant in _variants_of(method, part.variant, source):
                if reason := _not_for(variant, name, workload):
                    dropped[reason] = None
                    continue
                options = _options(point, variant, method, source)
                first = offer.setdefault((name, options), variant)
                if variant and first and first.name != variant.name:
                    what = f"variant {variant.name!r} of {name} at {workload.label}"
                    dropped[Dropped(what, f"the same options as variant {first.name!r}")] = None
    cases = []
    for workload in sorted(offers, key=lambda w: w.num_tokens):
        for name in implementations:
            for options, variant in ((o, v) for (who, o), v in offers[workload].items() if who == name):
                for passes in dict.fromkeys(part.passes or PASSES):
                    found = _case(suite, workload, name, options, variant, passes, part.limit)
                    if isinstance(found, Dropped):
                        dropped[found] = None
                    else:
                        cases.append(found)
        if len(cases) > MAX_CASES:
            raise SuiteError(f"{source}: comes to more than {MAX_CASES:,} cases, expected at most as many")
    if not cases:
        reasons = "".join(f"\n  {item}" for item in list(dropped)[:5])
        raise SuiteError(f"{source}: no case is left, expected at least one{':' if reasons else ''}{reasons}")
    return Expansion(tuple(cases), tuple(dropped))


def _case(
    suite: str,
    workload: Workload,
    name: str,
    options: MethodOptions,
    variant: Variant | None,
    passes: PassName,
    limits: Mapping[str, Limit],
) -> Case | Dropped:
    if over := _over_limit(limits, name, passes, workload):
        return over
    case = make_case(
        suite=suite,
        workload=workload,
        implementation=name,
        passes=passes,
        options=options,
        variant=variant.name if variant else None,
        paper=variant.paper if variant and passes == "forward+backward" else None,
    )
    if passes != "forward" and not case.claims.trains:
        return Dropped(f"{name} {passes}", f"{case.method} has no backward")
    return case


def _variants_of(method: str, variants: Sequence[Variant] | None, source: str) -> Sequence[Variant | None]:
    """The variants that are about a method; one without any stands for the suite's own options."""
    try:
        has_options = bool(load_method(method).Options.model_fields)
    except UsageError as error:
        raise SuiteError(f"{source}: implementations: {error}") from None
    about = [variant for variant in variants or () if has_options and variant.reaches(method)]
    return about or (None,)


def _not_for(variant: Variant | None, name: str, workload: Workload) -> Dropped | None:
    """Why a variant is left out."""
    if variant is None:
        return None
    if reason := _not_when(variant, workload):
        return Dropped(f"variant {variant.name!r} at {workload.label}", reason)
    if variant.implementations is not None and name not in variant.implementations:
        return Dropped(f"variant {variant.name!r} of {name}", f"only for {' and '.join(variant.implementations)}")
    return None


def _points(layer: Layer, source: str, *, each: int) -> Iterator[dict[str, Value]]:
    rows = [
        [dict(zip(group, values, strict=True)) for values in zip(*group.values(), strict=True)]
        for group in layer.groups
    ]
    if (count := math.prod(map(len, rows))) > MAX_POINTS:
        raise SuiteError(f"{source}: the axes cross to {count:,} combinations, expected at most {MAX_POINTS:,}")
    if count * each > MAX_TRIED:
        raise SuiteError(
            f"{source}: the axes cross with implementations and variants to {count * each:,} combinations, "
            f"expected at most {MAX_TRIED:,}"
        )
    for choice in product(*rows):
        yield {key: value for row in choice for key, value in row.items()}


def _workload(point: Mapping[str, Value], device_kind: DeviceKind, source: str) -> Workload:
    preset = PRESETS.get(str(point.get("model")))
    values: dict[str, Any] = {key: getattr(preset, key) for key in MODEL_KEYS} if preset else {}
    values |= {key: point[key] for key in vocabulary().sections["workload"].model_fields if key in point}
    if values.get("dtype", "auto") == "auto":
        values["dtype"] = AUTO_DTYPE[device_kind]
    spec: dict[str, Any] = {key: point[key] for key in vocabulary().sections["input"].model_fields if key in point}
    for key, takers in INPUT_NEEDS.items():  # `kind` is an axis and not each of its values takes a clip
        if spec.get("kind", "smooth") not in takers:
            spec.pop(key, None)
    try:
        return Workload(**values, input=InputSpec(**spec, sha256=file_digest(spec["path"]) if "path" in spec else None))
    except ValidationError as error:
        what = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        combination = f" (in the combination {shorten(dict(point))})" if point else ""
        raise SuiteError(f"{source}: {what}{combination}") from None


def _options(point: Mapping[str, Value], variant: Variant | None, method: str, source: str) -> MethodOptions:
    """The options of a method: a variant's stand above the suite's, and those for it alone above those for all."""
    values: dict[str, Any] = {}
    for given_options in (point, variant.options if variant else {}):
        for prefix in ("", f"{method}."):
            for key in load_method(method).Options.model_fields:
                if f"{prefix}{key}" in given_options and (prefix or key in vocabulary().options):
                    values[key] = given_options[f"{prefix}{key}"]
    try:
        return check_options(method, values)
    except UsageError as error:
        combination = f" (in the combination {shorten(dict(point))})" if point else ""
        raise SuiteError(f"{source}: {error}{combination}") from None


def _not_when(variant: Variant | None, workload: Workload) -> str | None:
    """Why a variant does not apply to a workload."""
    for key, allowed in variant.when.items() if variant else ():
        if _fact(workload, key) not in allowed:
            return f"only when {key} = {' or '.join(map(str, allowed))}"
    return None


def _fact(workload: Workload, key: str) -> Value:
    computed: dict[str, Value] = {"tokens": workload.num_tokens, "grid": workload.token_grid}
    holder = workload.input if key in InputSpec.model_fields else workload
    return computed[key] if key in computed else cast("Value", getattr(holder, key))


def _over_limit(limits: Mapping[str, Limit], name: str, passes: PassName, workload: Workload) -> Dropped | None:
    """What a limit of the suite leaves out, if it leaves this case out."""
    for pattern, limit in limits.items():
        if not fnmatchcase(name, pattern):
            continue
        because = f" ({limit.reason})" if limit.reason else ""
        if limit.max_tokens is not None and workload.num_tokens > limit.max_tokens:
            return Dropped(f"{name} at {workload.label}", f"the suite's limit is {limit.max_tokens:,} tokens{because}")
        if limit.passes is not None and passes not in limit.passes:
            return Dropped(f"{name} {passes}", f"the suite's limit is {', '.join(limit.passes)}{because}")
    return None
