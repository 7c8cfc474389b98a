"""What a revision depends on, by its pyproject.toml, and how that differs from what the code that runs depends on."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from bsa_bench.errors import UsageError

PROJECT_FILE = "pyproject.toml"


def stated_dependencies(folder: Path, *, label: str) -> tuple[Requirement, ...]:
    """The `[project] dependencies` of sources.

    Args:
        folder: the top of the sources.
        label: what to call them in errors.

    Raises:
        UsageError: there is no such file, it is no TOML, one is no requirement, or it states none; an empty list is
            stated.
    """
    path = folder / PROJECT_FILE
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("project")
    except OSError as error:
        raise UsageError(f"{label}: {PROJECT_FILE}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{label}: {PROJECT_FILE} is no TOML: {error}") from error
    found = project.get("dependencies") if isinstance(project, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise UsageError(f"{label}: {PROJECT_FILE} states no list of dependencies under [project]")
    return _parsed(found, where=f"{label}: {PROJECT_FILE}")


def own_dependencies(top: Path) -> tuple[Requirement, ...]:
    """Those of the code that runs: of its checkout, or as it was installed.

    Args:
        top: what holds the `bsa_bench` that runs.

    Raises:
        UsageError: it is neither.
    """
    if (top / PROJECT_FILE).is_file():
        return stated_dependencies(top, label=str(top))
    try:
        installed = requires("bsa-bench") or []
    except PackageNotFoundError as error:
        raise UsageError(f"{top}: has no {PROJECT_FILE}, and bsa-bench is not installed") from error
    found = _parsed(installed, where="bsa-bench as installed")
    return tuple(each for each in found if each.marker is None or "extra ==" not in str(each.marker))


def differences(theirs: Sequence[Requirement], ours: Sequence[Requirement]) -> list[str]:
    """In words, package by package: what a revision asks for, and what the code that runs asks for instead.

    Returns:
        Empty where both ask for the same, in whatever order.
    """
    before, after = _by_package(theirs), _by_package(ours)
    words = []
    for name in sorted(before.keys() | after.keys()):
        their, our = before.get(name, set()), after.get(name, set())
        if their != our:
            words.append(f"{_text(their) or f'no {name}'} (here {_text(our) or f'no {name}'})")
    return words


def _parsed(texts: Sequence[str], *, where: str) -> tuple[Requirement, ...]:
    found = []
    for text in texts:
        try:
            found.append(Requirement(text))
        except InvalidRequirement as error:
            raise UsageError(f"{where}: got the dependency {text!r}: {error}") from error
    return tuple(found)


def _by_package(requirements: Sequence[Requirement]) -> dict[str, set[Requirement]]:
    found: dict[str, set[Requirement]] = {}
    for each in requirements:
        found.setdefault(canonicalize_name(each.name), set()).add(each)
    return found


def _text(requirements: set[Requirement]) -> str:
    return " and ".join(sorted(map(str, requirements)))
