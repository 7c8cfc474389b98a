"""From the arguments of `bsa_case` to the one case that they name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath

from bsa_bench.catalog import check_implementations
from bsa_bench.errors import UsageError
from bsa_bench.inputs import check_input
from bsa_bench.result import Case
from bsa_bench.run.job import DeviceKind, Profile
from bsa_bench.suite import Suite, load_suite, override
from bsa_bench.suite.layers import make_layer
from bsa_bench.suite.schema import split_option, validate, vocabulary

NAME = "pytest"
"""The suite that the cases are of, unless a test names one."""
_IMPLEMENTATION_KEYS = frozenset({"implementation", "implementations"})
_PASS_KEYS = frozenset({"pass", "passes"})
_SOURCE = "bsa_case"


@dataclass(frozen=True)
class Declared:
    """A case on one kind of device, and how it is measured.

    Args:
        num_processes: in how many; null leaves it to the session.
        time_limit_s: of one process of the case.
    """

    case: Case
    profile: Profile
    num_processes: int | None
    time_limit_s: float


def declare(
    implementation: str, keys: Mapping[str, object], *, device_kind: DeviceKind, suite: str | None = None
) -> Declared:
    """Make the one case that an implementation and the keys of `bsa-bench run` name.

    Args:
        implementation: `method@engine`.
        keys: any key of `bsa_bench.suite.override`. A text is read as on the command line; other values stand for
            themselves, a tuple of whole numbers for `16x32x32`. The pass is `forward` unless they say otherwise.
        device_kind: whose defaults it takes.
        suite: a built-in suite's name or a TOML file that the keys are laid over; without one, nothing is set.

    Raises:
        UsageError: the implementation, a key or a value is wrong, the method has no such option, the input is missing,
            or the keys name no case or several.
    """
    if clash := sorted(_IMPLEMENTATION_KEYS & keys.keys()):
        raise UsageError(f"{_SOURCE}: {clash[0]} is given as a key, expected it as the first argument alone")
    if "budget_s" in keys:
        raise UsageError(f"{_SOURCE}: budget_s is of a whole run, expected time_limit_s, which ends one case")
    check_implementations([implementation])
    _check_options(implementation, keys)
    base = load_suite(suite, device_kind=device_kind) if suite else _empty_suite(device_kind)
    passes = {} if _PASS_KEYS & keys.keys() else {"passes": "forward"}
    settings = {"implementations": implementation} | passes | dict(keys)
    made = override(base, [f"{key}={_text(key, value)}" for key, value in settings.items()])
    cases = made.cases()
    if len(cases) > 1:
        shown = ", ".join(case.case_id for case in cases[:3]) + ", ..." * (len(cases) > 3)
        raise UsageError(f"{_SOURCE}: expected keys that name one case, got {len(cases)}: {shown}")
    check_input(cases[0].workload)
    return Declared(cases[0], made.profile, made.num_processes, made.limits.time_limit_s)


def _empty_suite(device_kind: DeviceKind) -> Suite:
    """A suite that sets nothing and is made a whole one by what is laid over it."""
    part = validate(vocabulary().part, {"title": "Cases of pytest"}, source=_SOURCE)
    return Suite(NAME, device_kind, make_layer(part, source=_SOURCE), _SOURCE)


def _check_options(implementation: str, keys: Mapping[str, object]) -> None:
    """Refuse options that would reach nothing; a suite of several methods ignores them for those without."""
    words, method = vocabulary(), implementation.partition("@")[0]
    own = words.sections[method].model_fields if method in words.methods else {}
    for key in keys:
        owner, name = split_option(key)
        if key in words.options and (name not in own or owner not in {"", method}):
            has = f"expected one of {', '.join(own)}" if own else "it has none"
            raise UsageError(f"{_SOURCE}: {method} has no option {key!r}, {has}")


def _text(key: str, value: object) -> str:
    """A value as the command line has it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, PathLike):  # as TOML, for it may hold commas
        return json.dumps([fspath(value)])
    if isinstance(value, tuple | list) and (key == "size" or _is_tuple(key)):
        return "x".join(map(str, value))
    raise UsageError(
        f"{_SOURCE}: {key}: got {value!r}, expected one value: a text, a number, true or false, None, a path, "
        "or a tuple of whole numbers where a key takes several"
    )


def _is_tuple(key: str) -> bool:
    words = vocabulary()
    return key in words.types and words.is_tuple(key)
