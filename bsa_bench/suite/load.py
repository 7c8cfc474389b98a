"""Read suites: a built-in one by its name (also from an installed wheel), or any TOML file."""

from __future__ import annotations

import hashlib
import os
import tomllib
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from bsa_bench.errors import SuiteError
from bsa_bench.files import decode_text, read_regular
from bsa_bench.suite.layers import Layer, at_home, make_layer, merge
from bsa_bench.suite.model import Suite, SuiteInfo, make_suite
from bsa_bench.suite.schema import DeviceKind, Part, nulls, validate, vocabulary
from bsa_bench.suite.suggest import did_you_mean, join_path, shorten
from bsa_bench.text import visible

MAX_BYTES = 1 << 20
_PACKAGE = "bsa_suites"


def load_suite(name_or_path: str, *, device_kind: DeviceKind) -> Suite:
    """Load and check a suite for one kind of device.

    Args:
        name_or_path: a built-in name (`quick`), or a path: whatever ends in `.toml` or holds a separator. Relative
            paths inside the file start at the file's folder.

    Raises:
        SuiteError: the name, the file or its content is wrong.
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path or os.sep in name_or_path:
        path = at_home(name_or_path)
        return _make(_read(path), visible(path.stem), device_kind, source=name_or_path, folder=path.parent)
    built_in = _built_in()
    if name_or_path not in built_in:
        raise SuiteError(
            f"suite: got {shorten(name_or_path)}, expected one of {', '.join(built_in)}, "
            f"or a path to a .toml file{did_you_mean(name_or_path, built_in)}"
        )
    source = f"{_PACKAGE}/{name_or_path}.toml"
    return _make(built_in[name_or_path].read_bytes(), name_or_path, device_kind, source=source, folder=None)


def list_suites(device_kind: DeviceKind = "cpu") -> list[SuiteInfo]:
    """Every built-in suite, by name, with the number of its cases on `device_kind`."""
    suites = (load_suite(name, device_kind=device_kind) for name in _built_in())
    return [SuiteInfo(suite.name, suite.title, suite.description, len(suite.cases())) for suite in suites]


def _built_in() -> dict[str, Any]:
    found = (item for item in resources.files(_PACKAGE).iterdir() if item.name.endswith(".toml"))
    return {item.name.removesuffix(".toml"): item for item in sorted(found, key=lambda item: item.name)}


def _read(path: Path) -> bytes:
    try:
        content = read_regular(path, most_bytes=MAX_BYTES)
    except FileNotFoundError:
        near = did_you_mean(path.name, (p.name for p in path.parent.glob("*.toml")))
        raise SuiteError(f"suite: no file at {path}, expected a suite in TOML{near}") from None
    except IsADirectoryError:
        raise SuiteError(f"suite: {path} is a folder, expected a file, a suite in TOML") from None
    except OSError as error:
        raise SuiteError(f"suite: cannot read {path} ({error.strerror}), expected a suite in TOML") from None
    if len(content) > MAX_BYTES:
        raise SuiteError(f"suite: {path} is too long, expected a suite in TOML of at most {MAX_BYTES:,} bytes")
    return content


def _make(content: bytes, name: str, device_kind: DeviceKind, *, source: str, folder: Path | None) -> Suite:
    try:
        raw = tomllib.loads(decode_text(content))
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{source}: not valid TOML: {error}") from None
    except ValueError as error:
        raise SuiteError(f"{source}: not valid TOML: it {error}") from None
    except RecursionError:
        raise SuiteError(f"{source}: not valid TOML: its values are nested deeper than Python reads") from None
    words = vocabulary()
    file = validate(words.file, nulls(raw), source=source)
    parts: dict[str, Part | None] = {kind: getattr(file, kind) for kind in ("cpu", "cuda")}
    base = words.part(**{key: value for key, value in file if key in file.model_fields_set - parts.keys()})
    lowest = make_layer(base, source=source, folder=folder)
    # Both parts are checked on every machine; one is used.
    uppers = {
        kind: make_layer(part, source=source, prefix=kind, folder=folder)
        for kind, part in parts.items()
        if part is not None
    }
    _check_names([layer.part for layer in (lowest, *uppers.values())], source)
    merged = merge(Layer(), lowest, source=source)
    layers = {kind: merge(merged, upper, source=source) for kind, upper in uppers.items()}
    layer, digest = layers.get(device_kind, merged), hashlib.sha256(content).hexdigest()
    return make_suite(name, device_kind=device_kind, layer=layer, source=source, sha256=digest)


def _check_names(parts: list[Part], source: str) -> None:
    """Refuse a limit or a variant for an implementation that is nowhere in the file: it is a typo."""
    names = {name for part in parts for name in part.implementations or ()}
    asked = [(join_path("limit", pattern), pattern) for part in parts for pattern in part.limit]
    for part in parts:
        for index, variant in enumerate(part.variant or ()):
            where = join_path("variant", index, "implementations")
            asked += [(where, name) for name in variant.implementations or ()]
    for where, pattern in asked:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = did_you_mean(pattern, names)
            raise SuiteError(f"{source}: {where}: {pattern!r} fits none of the suite's implementations{hint}")
