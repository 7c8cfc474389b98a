"""In which Python environment a side of a comparison runs, and what a result says of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import bsa_bench
from bsa_bench.child_process import own_paths
from bsa_bench.errors import UsageError
from bsa_bench.gate.dependencies import differences, own_dependencies, stated_dependencies
from bsa_bench.gate.own_environment import Builder, make_environment, versions_here, versions_of, versions_text
from bsa_bench.gate.pair_process import PairSide
from bsa_bench.gate.verdict import Check, TierResult

_PACKAGES = Path(bsa_bench.__file__).resolve().parents[1]
_COMPILERS = ("torch", "triton")
"""What makes the code that runs: with other versions of these, a change of speed may be theirs."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentChoice:
    """Which Python a side runs on.

    Args:
        own: a git revision gets an environment of its own, with its dependencies.
        python: of an environment that the user made, for the base.
        tell: told how an environment is made.
        builder: makes it; None for venv and pip.
    """

    own: bool = False
    python: Path | None = None
    tell: Callable[[str], None] = lambda _: None
    builder: Builder | None = None

    def check(self) -> None:
        """Raise UsageError if it contradicts itself."""
        if self.own and self.python is not None:
            raise UsageError("--base-python: got --own-environment too, expected one of them")

    def for_head(self) -> EnvironmentChoice:
        """The same without the base's Python."""
        return replace(self, python=None)


THIS_ENVIRONMENT = EnvironmentChoice()


@contextlib.contextmanager
def in_environment(
    side: PairSide, choice: EnvironmentChoice, *, revision: Path | None, here: Path
) -> Iterator[PairSide]:
    """The side with its Python and what is to be said of it, for as long as the context lasts.

    Args:
        side: as its sources are.
        choice: the Python.
        revision: the top of a git revision's files; None for the sources as they are.
        here: the top of the sources that the revision is compared with.

    Raises:
        UsageError: the revision states no dependencies, or the Python given is none.
        MachineError: its environment cannot be made.
        StoreError: the cache folder cannot be written.
    """
    if choice.python is not None:
        python = choice.python.absolute()
        with _on(side, python, versions_of(python, flag="--base-python "), f"on {choice.python}") as other:
            yield other
    elif revision is not None and choice.own:
        wanted = [str(each) for each in stated_dependencies(revision, label=side.label)]
        python = make_environment(wanted, label=side.label, tell=choice.tell, builder=choice.builder)
        where = f"in an environment of its own, {python.parents[1]}"
        with _on(side, python, versions_of(python), where) as other:
            yield other
    elif revision is not None:
        yield replace(side, notes=(_shared(side.label, revision, here),))
    else:
        yield side


@contextlib.contextmanager
def _on(side: PairSide, python: Path, packages: dict[str, str | None], where: str) -> Iterator[PairSide]:
    with contextlib.ExitStack() as stack:
        last_paths = side.last_paths
        if not own_paths():  # the packages that run are installed here, and that Python does not find them
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bsa-bench-packages-")))
            for package in ("bsa_bench", "bsa_kernels", "bsa_suites"):
                (folder / package).symlink_to(_PACKAGES / package)
            last_paths = (*last_paths, folder)
        note = f"{side.label} ran {where}: {versions_text(packages)}; here: {versions_text(versions_here())}"
        command = (str(python), *side.command[1:])
        yield replace(side, command=command, last_paths=last_paths, packages=packages, notes=(note,))


def _shared(label: str, revision: Path, here: Path) -> str:
    try:
        different = differences(stated_dependencies(revision, label=label), own_dependencies(here))
    except UsageError as error:
        return f"{error}; it ran in this environment"
    if not different:
        return f"{label} asks for the same packages as the code here, and ran in this environment"
    return (
        f"{label} asks for other packages: {', '.join(different)}; it ran in this environment all the same "
        "(--own-environment or --base-python give it another)"
    )


def with_environments(result: TierResult, base: PairSide, head: PairSide) -> TierResult:
    """The result with what there is to say of the sides' environments; checks say if the compilers differ."""
    notes = tuple(dict.fromkeys((*base.notes, *head.notes)))
    if base.packages is None and head.packages is None:
        return result.model_copy(update={"notes": (*result.notes, *notes)})
    ours = versions_here()
    before, after = (ours if side.packages is None else side.packages for side in (base, head))
    changed = [
        f"{name} {before.get(name) or 'none'} -> {after.get(name) or 'none'}"
        for name in _COMPILERS
        if before.get(name) != after.get(name)
    ]
    checks = result.checks
    if changed:
        checks = tuple(_marked(check, f"the toolchain differs: {', '.join(changed)}") for check in checks)
    return result.model_copy(update={"checks": checks, "notes": (*result.notes, *notes)})


def _marked(check: Check, why: str) -> Check:
    return check.model_copy(update={"reason": f"{check.reason}; {why}" if check.reason else why})
