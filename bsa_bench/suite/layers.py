"""Layers of a suite: the file, its `[cpu]` or `[cuda]` part, and the command line, each laid over the one before.

A layer is its `Part` (title, implementations, limits, variants, ...) and its *groups*. A group maps keys to lists of
values that advance together; groups are crossed. A fixed key is a group of one key and one value, an axis is a group of
one key, a `[[zip]]` is a group of several: so one rule serves all, whatever way a key was given below.

**The rule.** A key given in an upper layer is taken out of all groups below. Besides:

- `tokens` or `grid` takes out every key of length, and one of frames, height, width takes out `tokens` and `grid`;
- `model` takes out heads, head_dim, vae and patch, which the preset fills;
- `clip` takes out `path`, and `path` takes out `clip`;
- an option without a method, `kv_density`, takes out that of every method, `bsa.kv_density`.

Lists (implementations, passes, variants) replace those below whole; limits are replaced name by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bsa_bench.errors import SuiteError, UsageError
from bsa_bench.files import user_path
from bsa_bench.suite.ranges import Range
from bsa_bench.suite.schema import (
    INPUT_NEEDS,
    LENGTH_KEYS,
    MODEL_KEYS,
    VIDEO_KEYS,
    Part,
    Value,
    Variant,
    flat_axes,
    given,
    reach,
    validate,
    vocabulary,
)
from bsa_bench.suite.suggest import join_path, shorten

Group = Mapping[str, tuple[Value, ...]]


@dataclass(frozen=True)
class Layer:
    """One layer, or several merged."""

    part: Part = field(default_factory=Part)
    groups: tuple[Group, ...] = ()

    @property
    def keys(self) -> set[str]:
        """Every key that it gives a value."""
        return {key for group in self.groups for key in group}

    def values(self, key: str, default: tuple[Value, ...] = ()) -> tuple[Value, ...]:
        """All values of one key."""
        return next((group[key] for group in self.groups if key in group), default)


def shadowed(keys: Iterable[str]) -> set[str]:
    """The keys that are taken out below when `keys` are given above."""
    keys = set(keys)
    out = reach(keys)
    if keys & {"tokens", "grid"}:
        out |= LENGTH_KEYS
    if keys & VIDEO_KEYS:
        out |= {"tokens", "grid"}
    if "model" in keys:
        out |= MODEL_KEYS
    if keys & set(INPUT_NEEDS):
        out |= set(INPUT_NEEDS)
    return out


def merge(lower: Layer, upper: Layer, *, source: str) -> Layer:
    """Lay `upper` over `lower`.

    Raises:
        SuiteError: `upper` gives a clip or a path, and no input kind of the whole takes one.
    """
    gone = shadowed(upper.keys)
    kept = ({key: values for key, values in group.items() if key not in gone} for group in lower.groups)
    groups = (*(group for group in kept if group), *upper.groups)
    part = lower.part.model_copy(update=given(upper.part) | {"limit": lower.part.limit | upper.part.limit})
    merged = Layer(part, groups)
    kinds = merged.values("kind", ("smooth",))
    for key, takers in INPUT_NEEDS.items():
        if key in upper.keys and not takers & set(kinds):
            raise SuiteError(
                f"{source}: input.{key}: got {shorten(upper.values(key)[0])} with kind = {kinds[0]!r}, "
                f"expected kind = {' or '.join(repr(kind) for kind in sorted(takers, reverse=True))} with it"
            )
    return merged


def make_layer(part: Part, *, source: str, prefix: str = "", axes: str = "axes", folder: Path | None = None) -> Layer:
    """Check the tables of a part and turn them into groups; paths become absolute, from `folder` on.

    `prefix` and `axes` are what messages put before a key.

    Raises:
        SuiteError: a key is unknown, a value wrong, a key is given twice, or two kinds of length are.
    """
    groups: dict[str, Group] = {}
    words = vocabulary()
    for section, model in words.sections.items():
        where = join_path(prefix, section)
        raw = getattr(part, section)
        _home(raw, section, source, where)
        owner = f"{section}." if section in words.methods else ""
        groups |= {
            join_path(where, key): {f"{owner}{key}": (value,)}
            for key, value in given(validate(model, raw, source=source, prefix=where)).items()
        }
    for key, raw_axis in flat_axes(part.axes).items():
        where = join_path(prefix, axes)
        groups[join_path(where, key)] = _group({key: raw_axis}, source, where)
    for index, raw in enumerate(part.zip):
        where = join_path(prefix, "zip", index)
        group = _group(flat_axes(raw), source, where)
        lengths = {key: len(values) for key, values in group.items()}
        if len(set(lengths.values())) != 1:
            found = ", ".join(f"{key} has {n}" for key, n in lengths.items()) or "the table is empty"
            raise SuiteError(f"{source}: {where}: {found}; expected lists of one length")
        groups[where] = group
    _once(groups, source)
    rest = {key: value for key, value in given(part).items() if key not in type(part).TABLES}
    if part.variant is not None:
        rest["variant"] = _variants(part.variant, source, prefix)
    return Layer(Part(**rest), tuple(_absolute(group, folder) for group in groups.values()))


def _group(raw: Mapping[str, Any], source: str, where: str) -> Group:
    ready = {key: _listed(value, key, source, join_path(where, key)) for key, value in raw.items()}
    return given(validate(vocabulary().axes, ready, source=source, prefix=where))


def _listed(raw: Any, key: str, source: str, where: str) -> Any:
    """Expand a range; leave the rest for the check to accept or refuse."""
    if isinstance(raw, dict):
        words = vocabulary()
        if key not in words.types or not (words.is_whole(key) or words.is_real(key)):
            raise SuiteError(f"{source}: {where}: got a range, expected a list (only numbers have ranges)")
        return validate(Range, raw, source=source, prefix=where).values(whole=words.is_whole(key))
    return raw


def _home(raw: Mapping[str, Any], section: str, source: str, where: str) -> None:
    sections = vocabulary().sections
    for key in raw:
        others = [f"[{other}]" for other, model in sections.items() if key in model.model_fields]
        if others and key not in sections[section].model_fields:
            raise SuiteError(f"{source}: {join_path(where, key)}: unknown key; {key} belongs in {' or '.join(others)}")


def _once(groups: Mapping[str, Group], source: str) -> None:
    """No key twice in one layer, and one kind of length."""
    seen: dict[str, str] = {}
    for where, group in groups.items():
        for key in group:
            for name in reach([key]):
                if name in seen:
                    raise SuiteError(
                        f"{source}: {key} is given twice, at {seen[name]} and at {where}; expected it once"
                    )
            seen |= dict.fromkeys(reach([key]), where)
    kinds = {("frames, height, width" if key in VIDEO_KEYS else key): seen[key] for key in seen if key in LENGTH_KEYS}
    if len(kinds) > 1:
        found = " and ".join(f"{kind} (at {where})" for kind, where in kinds.items())
        raise SuiteError(
            f"{source}: two kinds of length, {found}; expected frames, height and width, or grid, or tokens"
        )


def _variants(variants: Iterable[Any], source: str, prefix: str) -> tuple[Variant, ...]:
    names: set[str] = set()
    checked = []
    for index, table in enumerate(variants):
        where = join_path(prefix, "variant", index)
        if isinstance(table, Variant):  # of a layer below, under an override
            checked.append(table)
            continue
        variant = Variant.of(validate(vocabulary().variant, table, source=source, prefix=where))
        if variant.name in names:
            raise SuiteError(f"{source}: {where}.name: {variant.name!r} is given twice; expected a name of its own")
        names.add(variant.name)
        raw = {key: value if _is_list(value, key) else [value] for key, value in variant.when.items()}
        when = given(validate(vocabulary().when, raw, source=source, prefix=join_path(where, "when")))
        checked.append(replace(variant, when=when))
    return tuple(checked)


def _is_list(value: Any, key: str) -> bool:
    """Whether a condition gives several values; one triple is one value."""
    words = vocabulary()
    is_one = key in words.types and words.is_tuple(key) and isinstance(value, list)
    return isinstance(value, list) and not (is_one and all(isinstance(x, int) for x in value))


def _absolute(group: Group, folder: Path | None) -> Group:
    if folder is None or "path" not in group:
        return group
    return {**group, "path": tuple(str((folder / at_home(str(path))).absolute()) for path in group["path"])}


def at_home(path: str) -> Path:
    """A path with the home folder in the place of `~`.

    Raises:
        SuiteError: there is no such home, or no file can have that path.
    """
    try:
        return user_path(path)
    except UsageError as error:
        raise SuiteError(str(error)) from None
