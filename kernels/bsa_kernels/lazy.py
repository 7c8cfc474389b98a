"""Names of a package that load their module on first use, so that what needs no torch loads none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, names: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package: `names` gives, for each of its modules, the names to take from there.

    The function raises AttributeError on any other name, as a module does.
    """
    homes = {name: module for module, taken in names.items() for name in taken}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load
