"""Methods and engines of other packages, loaded by their entry points. A broken one is named, and in nobody's way."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import GenericAlias
from typing import Any

from pydantic import create_model

from bsa_bench.contract import MethodOptions
from bsa_bench.result import Claims
from bsa_bench.text import shortened, visible

METHODS_GROUP, ENGINES_GROUP = "bsa_bench.methods", "bsa_bench.engines"
LIMIT_S = 60.0
"""How long an import may take."""
SLOW_S = 1.0
"""What `doctor` remarks on: every process that needs names of implementations waits for it."""
_MOST_LETTERS = 300
_NAME = re.compile(r"[a-z0-9-]+")
_ATTRIBUTES = {
    METHODS_GROUP: ("Options", "needs", "claims", "unsupported", "expected", "operator"),
    ENGINES_GROUP: ("offers", "unsupported"),
}
#: Keys of a suite file, where a method has a table of its options, and of a variant, where these stand beside others.
_SUITE_KEYS = frozenset(
    {"title", "description", "profile", "processes", "timer", "cache", "time_limit_s", "budget_s", "order", "limit"}
    | {"implementations", "passes", "variant", "workload", "input", "axes", "zip", "cpu", "cuda"}
)
_VARIANT_KEYS = frozenset({"name", "paper", "implementations", "when"})


@dataclass(frozen=True)
class Plugin:
    """What became of an entry point.

    Args:
        where: module and attribute, as its package gives them.
        loaded: the method or the engine; null where there is a reason.
        reason: why it cannot be used.
        seconds: that loading it took.
    """

    group: str
    name: str
    where: str
    loaded: Any
    reason: str | None
    seconds: float

    @property
    def remark(self) -> str | None:
        """What its user should know, broken or slow, as one sentence."""
        if self.reason is not None:
            return f"{self.where} {self.reason}; mend or uninstall that package"
        if self.seconds >= SLOW_S:
            return f"{self.where} takes {self.seconds:.1f} s to import, for which each process waits"
        return None


def load_plugins(entries: Iterable[EntryPoint], group: str, own: Mapping[str, object]) -> list[Plugin]:
    """Load entry points of a group.

    Args:
        own: the names that are taken.
    """
    found: list[Plugin] = []
    for entry in entries:
        plugin = _loaded(entry, group)
        if entry.name in {*own, *(each.name for each in found if each.reason is None)}:
            reason = "is not used: the name is taken by another one"
            plugin = Plugin(group, plugin.name, plugin.where, None, reason, plugin.seconds)
        found.append(plugin)
    return found


_CACHE: dict[tuple[str, EntryPoint], Plugin] = {}


def _loaded(entry: EntryPoint, group: str) -> Plugin:
    """Load an entry point once for the process."""
    if not isinstance(entry, EntryPoint):
        return _load(entry, group)
    if (group, entry) not in _CACHE:
        _CACHE[group, entry] = _load(entry, group)
    return _CACHE[group, entry]


def _load(entry: EntryPoint, group: str) -> Plugin:
    started = time.monotonic()
    loaded, reason = None, None
    try:
        # What it prints is no part of an answer or of a document on stdout.
        with _limited(LIMIT_S), contextlib.redirect_stdout(sys.stderr):
            loaded = entry.load()
            if fault := _fault(loaded, entry.name, group):
                loaded, reason = None, fault
    except (Exception, SystemExit) as error:  # noqa: BLE001  # it is somebody else's code, and may raise anything
        said = shortened(visible(str(error)), _MOST_LETTERS)
        reason = f"cannot be loaded: {type(error).__name__}: {said}"
    where = getattr(entry, "value", "a module without a name")
    return Plugin(group, entry.name, where, loaded, reason, time.monotonic() - started)


def _fault(loaded: Any, name: str, group: str) -> str | None:
    """What is wrong with a loaded object, as far as that can be seen without running it on anything."""
    kind = "a method" if group == METHODS_GROUP else "an engine"
    if not _NAME.fullmatch(name) or name in _SUITE_KEYS:
        return f"is registered as {name!r}, expected lower-case letters, digits and hyphens, and no key of a suite"
    if isinstance(loaded, type):
        return f"is a class, expected an object: {kind}"
    lacks = [each for each in _ATTRIBUTES[group] if not hasattr(loaded, each)]
    if lacks:
        return f"is of the type {type(loaded).__name__}, which lacks {', '.join(lacks)}; expected {kind}"
    words = loaded.needs if group == METHODS_GROUP else loaded.offers
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        return f"{'needs' if group == METHODS_GROUP else 'offers'} {words!r}, expected texts such as {{'dense'}}"
    return _fault_of_options(loaded) if group == METHODS_GROUP else None


def _fault_of_options(method: Any) -> str | None:
    """A suite has a table of the options, and its cases are made with their defaults too."""
    options = method.Options
    if not (isinstance(options, type) and issubclass(options, MethodOptions)):
        return f"has the Options {options!r}, expected a subclass of bsa_bench.contract.MethodOptions"
    if taken := _VARIANT_KEYS & options.model_fields.keys():
        return f"has an option {min(taken)!r}, which is a key of a variant in suites; give it another name"
    for key, field in options.model_fields.items():
        create_model("Option", **{key: (GenericAlias(tuple, (field.rebuild_annotation(), ...)), None)})  # type: ignore[call-overload]
    claims = method.claims(options())
    return None if isinstance(claims, Claims) else f"claims {claims!r}, expected a bsa_bench.result.Claims"


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer, where a signal can: in the main thread, if nobody else has set one."""
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def end(*_: object) -> None:
        raise TimeoutError(f"it was not imported within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
