"""Overrides from the command line: `key=value[,value...]`, laid over a suite as its topmost layer."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bsa_bench.errors import SuiteError
from bsa_bench.suite.layers import make_layer, merge, shadowed
from bsa_bench.suite.model import Suite, make_suite
from bsa_bench.suite.schema import LENGTH_KEYS, Variant, nulls, validate, vocabulary
from bsa_bench.suite.suggest import did_you_mean, shorten
from bsa_bench.text import is_unicode, visible

_PART_LISTS = ("implementations", "passes")
_PART_VALUES = {"profile": str, "processes": int, "timer": str, "cache": str, "time_limit_s": float, "budget_s": float}
_ALIASES = {"implementation": "implementations", "pass": "passes", "input": "kind"}
_OTHERS = (*_ALIASES, *_PART_LISTS, *_PART_VALUES, "size", "video", "variant", "limit")


def keys() -> tuple[str, ...]:
    """Every key that a setting may have."""
    return (*vocabulary().types, *_OTHERS)


def override(suite: Suite, settings: Sequence[str]) -> Suite:
    """Lay settings such as `tokens=4096,16384` over a suite.

    A key is any of the suite file's `[workload]` and `[input]` keys, an option (`kv_density` of every method that has
    it, `vsa.topk` of one), or `implementation`, `pass`, `profile`, `processes`, `timer`, `cache`, `time_limit_s`,
    `budget_s`. Several values make an axis, crossed with the others. A value that starts with `[` or `{` is TOML:
    `kv_density={start=0.1, stop=0.5, step=0.1}`. Triples are written `16x32x32`. Besides:

    - `size=61x448x832,81x480x832`: frames, height and width together;
    - `video=clip.mp4`: the input is this file; `clip=bikes`: it is this sample clip;
    - `variant=name`: only these variants of the suite; `limit=off`: none of its limits.

    A setting replaces the key wherever the suite gives it, lengths of any kind included (`bsa_bench.suite.layers`). A
    variant keeps its place, but the options so replaced are taken from it and its condition on a replaced key is
    lifted. Where a length or an option is replaced it loses its `paper` figure, which is about what the paper ran.

    Raises:
        SuiteError: a setting is malformed, its key or value is wrong, or no case is left.
    """
    for setting in settings:
        if not is_unicode(setting):
            raise SuiteError(f"override: {visible(setting)}: bytes that are no UTF-8; rename the file, or link to it")
    pairs = [_split(setting) for setting in settings]
    names = [key for key, _ in pairs]
    for key in names:
        if names.count(key) > 1:
            raise SuiteError(f"override: {key} is given {names.count(key)} times, expected once, as {key}=a,b,c")
    if "video" in names and (clash := {"kind", "path", "clip"} & set(names)):
        raise SuiteError(f"override: video is given with {', '.join(sorted(clash))}, expected one of them")
    layer, source = suite.layer, "override"
    raw: dict[str, Any] = {"axes": {}, "zip": []}
    for key, text in pairs:
        if key == "limit":
            if text != "off":
                raise SuiteError(f"override: limit: got {text!r}, expected off")
            layer = replace(layer, part=layer.part.model_copy(update={"limit": {}}))
        elif key == "variant":
            layer = replace(layer, part=layer.part.model_copy(update={"variant": _chosen(suite, text)}))
        elif key == "size":
            raw["zip"].append(_sizes(text))
        elif key in _PART_LISTS:
            raw[key] = _values(key, text)
        elif key in _PART_VALUES:
            raw[key] = _scalar(text, _PART_VALUES[key])
        elif key == "video":
            raw["axes"] |= {"kind": ["video"], "path": _values(key, text)}
        else:
            raw["axes"][key] = _values(key, text)
    if "clip" in raw["axes"]:
        raw["axes"].setdefault("kind", ["video"])
    part = validate(vocabulary().part, nulls(raw), source=source)
    top = make_layer(part, source=source, axes="", folder=Path.cwd())
    variants = layer.part.variant and tuple(_changed(variant, top.keys) for variant in layer.part.variant)
    layer = replace(layer, part=layer.part.model_copy(update={"variant": variants}))
    return make_suite(
        suite.name,
        device_kind=suite.device_kind,
        layer=merge(layer, top, source=source),
        source=suite.source if not settings else f"{suite.source} with {' '.join(settings)}",
        sha256=suite.sha256,
    )


def _split(setting: str) -> tuple[str, str]:
    key, equals, text = setting.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not key or not text:
        raise SuiteError(f"override: got {setting!r}, expected key=value such as tokens=4096,16384")
    key = _ALIASES.get(key, key)
    known = keys()
    if key not in known:
        listed = ", ".join(sorted(name for name in known if "." not in name))
        raise SuiteError(
            f"override: got {setting!r}, unknown key {key!r}, expected one of {listed}{did_you_mean(key, known)}"
        )
    return key, text


def _values(key: str, text: str) -> Any:
    """The values of one key as a TOML file would hold them; what does not parse stays text, for the check to refuse."""
    if text[0] in "[{":
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError) as error:  # nested deeper than Python reads, or a number too long for it
            raise SuiteError(f"override: {key}: got {shorten(text)}, not valid TOML: {error}") from None
    words = vocabulary()
    is_key = key in words.types
    kinds = [
        kind
        for kind, holds in (
            (int, words.is_whole),
            (float, words.is_real),
            (_flag, words.is_flag),
            (_triple, words.is_tuple),
        )
        if is_key and holds(key)
    ]
    return [_scalar(item.strip(), *kinds) for item in text.split(",")]


def _scalar(text: str, *kinds: Callable[[str], Any]) -> Any:
    """The text as the first of these that it can be; what is none of them stays text, for the check to refuse."""
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError(text)
    return text == "true"


def _triple(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(x\d+)*", text):
        raise ValueError(text)
    return [int(part) for part in text.split("x")]


def _sizes(text: str) -> dict[str, list[int]]:
    sizes = [item.strip() for item in text.split(",")]
    for size in sizes:
        if not re.fullmatch(r"\d+x\d+x\d+", size):
            raise SuiteError(f"override: size: got {size!r}, expected frames x height x width such as 61x448x832")
    columns = zip(*(map(int, size.split("x")) for size in sizes), strict=True)
    return {key: list(column) for key, column in zip(("frames", "height", "width"), columns, strict=True)}


def _chosen(suite: Suite, text: str) -> tuple[Variant, ...]:
    known = {variant.name: variant for variant in suite.layer.part.variant or ()}
    names = _values("variant", text)
    for name in names:
        if not isinstance(name, str) or name not in known:
            expected = f"expected one of {', '.join(known)}" if known else "but this suite has no variants"
            raise SuiteError(f"override: variant: got {shorten(name)}, {expected}{did_you_mean(str(name), known)}")
    return tuple(known[name] for name in names)


def _changed(variant: Variant, keys: Iterable[str]) -> Variant:
    gone = shadowed(keys)
    if gone & LENGTH_KEYS:
        gone |= LENGTH_KEYS
    lost = gone & variant.options.keys()
    return replace(
        variant,
        name=f"{variant.name} (changed)" if lost else variant.name,
        options={key: value for key, value in variant.options.items() if key not in lost},
        when={key: value for key, value in variant.when.items() if key not in gone},
        paper=None if gone & (LENGTH_KEYS | vocabulary().options) else variant.paper,
    )
