"""What a workflow on GitHub shows: annotations at source lines, and the summary of the step."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.gate.show.markdown import markdown
from bsa_bench.gate.show.page import LEAST_BYTES
from bsa_bench.gate.show.rows import full_name, reason_text
from bsa_bench.gate.show.words import change_text, count_text, one_line, pairs_text, why_unmeasured
from bsa_bench.gate.verdict import TIER_TITLE, Change, Check, GateResult, Tier, Verdict, ordered

Level = Literal["error", "warning", "notice"]

MAX_PER_LEVEL = 10
"""GitHub shows no more of a step."""
SUMMARY_BYTES = 1_000_000
"""GitHub refuses the whole summary of a step above 1,048,576 bytes."""
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"

_MOST_ENTRIES = 5
_LEVELS: dict[Verdict, Level] = {
    Verdict.WRONG: "error",
    Verdict.SLOWER: "error",
    Verdict.FAILED: "error",
    Verdict.INFRA_ERROR: "error",
    Verdict.CALIBRATION_NEEDED: "error",
    Verdict.AMBIGUOUS: "warning",
    Verdict.WARNING: "warning",
}
_LINE = re.compile(r"(?P<path>.+?\.\w+):(?P<line>\d+)")


def workflow_commands(result: GateResult, *, root: Path | None = None) -> list[str]:
    """The annotations as commands, to be printed a line each: errors, then warnings, then notices, the worst first.

    What is wrong for the same reason at the same line is one annotation that names its checks. GitHub shows 10 of a
    level: of more, the last one says how many there are.

    Args:
        result: the whole of it.
        root: a folder of the checkout; without it the current one. A line is named only where its file is found there.
    """
    places = _Places(root or Path.cwd())
    notes: dict[_Note, list[str]] = {}
    for check in ordered(check for tier in result.tiers for check in tier.checks):
        if level := _LEVELS.get(check.verdict):
            for note, entry in _notes(check, level, places):
                notes.setdefault(note, []).append(entry)
    commands: dict[Level, list[str]] = {"error": [], "warning": [], "notice": []}
    for note, entries in notes.items():
        commands[note.level].append(note.command(entries))
    for tier in result.tiers:
        if not tier.is_measured:
            title = f"tier {tier.tier}, {tier.title}: {Verdict.NOT_MEASURED}"
            commands["notice"].append(_command("notice", title=title, message=why_unmeasured(tier)))
    return [command for level, found in commands.items() for command in _at_most(level, found)]


def write_step_summary(result: GateResult, *, environment: Mapping[str, str] = os.environ) -> None:
    """Append the result as Markdown to the summary of this step.

    Raises:
        UsageError: GITHUB_STEP_SUMMARY is not set.
        StoreError: the file cannot be written, or what it holds leaves no room.
    """
    name = environment.get(SUMMARY_VARIABLE)
    if not name:
        raise UsageError(f"{SUMMARY_VARIABLE}: is not set, expected the file that GitHub names to the steps of a job")
    path = Path(name)
    try:
        held = path.stat().st_size if path.exists() else 0
        room = SUMMARY_BYTES - held - 1
        if room < LEAST_BYTES:
            raise StoreError(f"{SUMMARY_VARIABLE}: {path}: holds {held:,} bytes, no room below {SUMMARY_BYTES:,}")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * bool(held) + markdown(result, limit_bytes=room))
    except OSError as error:
        raise StoreError(f"{SUMMARY_VARIABLE}: {path}: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Note:
    """What makes two annotations the same."""

    level: Level
    verdict: Verdict
    tier: Tier
    file: str | None
    line: int | None
    text: str

    def command(self, entries: Sequence[str]) -> str:
        lines = [self.text, *entries[:_MOST_ENTRIES]]
        if len(entries) > _MOST_ENTRIES:
            lines.append(f"and {count_text(len(entries) - _MOST_ENTRIES, 'more check')}")
        title = f"{self.verdict} in tier {self.tier}, {TIER_TITLE[self.tier]}"
        return _command(self.level, file=self.file, line=self.line, title=title, message="\n".join(lines))


def _notes(check: Check, level: Level, places: _Places) -> Iterator[tuple[_Note, str]]:
    """What is wrong, and what this check has of it."""
    severity = "fail" if level == "error" else "warn"
    changes = [change for change in check.changes if change.severity == severity]
    for change in changes:
        file, line = places.find(change)
        text = one_line(f"{change.metric} ({change.rule})" if change.rule else change.metric)
        yield _Note(level, check.verdict, check.tier, file, line, text), f"{full_name(check)}: {change_text(change)}"
    if not changes:
        entry = f"{full_name(check)}: {pairs_text(check.pairs)}" if check.pairs else full_name(check)
        yield _Note(level, check.verdict, check.tier, None, None, reason_text(check) or check.verdict.meaning), entry


class _Places:
    """Finds the file of the checkout that a source line belongs to."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: list[str] | None = None

    def find(self, change: Change) -> tuple[str | None, int | None]:
        """The file from the checkout's top and the line, or neither: none is better than a wrong one."""
        match = _LINE.match(one_line(change.line)) if change.line else None
        if match is None:
            return None, None
        if self._files is None:
            self._files = _files_of(self._root)
        wanted = PurePosixPath(match["path"])
        found = [file for file in self._files if _ends_with(file, wanted)]
        return (found[0], int(match["line"])) if len(found) == 1 else (None, None)


def _ends_with(file: str, wanted: PurePosixPath) -> bool:
    """Whether the path that is known is the file's end, or the file's is that of an absolute path."""
    ours, theirs = PurePosixPath(file).parts, wanted.parts
    if wanted.is_absolute():
        return len(theirs) > len(ours) and theirs[-len(ours) :] == ours
    return ours[-len(theirs) :] == theirs


def _files_of(root: Path) -> list[str]:
    """The files of the checkout, from its top; none outside of one."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--full-name", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run([*command, "--", ":/"], capture_output=True, check=False)
    except FileNotFoundError:
        return []
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name] if done.returncode == 0 else []


def _at_most(level: Level, commands: Sequence[str]) -> list[str]:
    if len(commands) <= MAX_PER_LEVEL:
        return list(commands)
    kept = list(commands[: MAX_PER_LEVEL - 1])
    more = f"{count_text(len(commands) - len(kept), 'more ' + level)}; the JSON document has all"
    return [*kept, _command(level, title="bsa-bench gate", message=more)]


def _command(level: Level, *, title: str, message: str, file: str | None = None, line: int | None = None) -> str:
    properties = {"file": file, "line": line, "title": title}
    told = ",".join(f"{name}={_property(str(value))}" for name, value in properties.items() if value is not None)
    return f"::{level} {told}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
