"""Read a run's `results.jsonl` back into its models; the only place that parses stored lines."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bsa_bench.errors import StoreError
from bsa_bench.files import is_regular
from bsa_bench.result import SCHEMA_VERSION, Environment, Result, RunLine, Status, missing_processes
from bsa_bench.store import schema1
from bsa_bench.store.line_digest import without_digest

RESULTS_FILE = "results.jsonl"
_REMEDY = "restore the file from a copy, or measure again"


@dataclass(frozen=True)
class Run:
    """A stored run, as read.

    A run has a line for each time it was started or resumed, and a result line for each attempt at a case in a process;
    a case that is measured in several processes, or was resumed, has several. `path` is the results file. `torn_line`
    is the number of an unfinished last line, which was left out: its writer was killed in the middle of it.
    `num_without_digest` counts lines of before digests were written, of which nothing says that they are as written.
    """

    path: Path
    run_lines: list[RunLine]
    results: list[Result]
    torn_line: int | None = None
    num_without_digest: int = 0

    @property
    def run_id(self) -> str:
        """The name of the run."""
        return self.run_lines[0].run_id

    @property
    def environment(self) -> Environment:
        """The environment of the last start or resumption."""
        return self.run_lines[-1].environment

    @property
    def num_processes(self) -> int:
        """In how many processes each case was to be measured, when the run was last started or resumed."""
        return self.run_lines[-1].num_processes

    @property
    def num_remaining(self) -> int:
        """How many of the cases asked for have processes without a final status that are yet to be measured."""
        known: dict[str, dict[int, Status]] = {}
        for result in self.latest():
            known.setdefault(result.case_hash, {})[result.process_index] = result.status
        num_done = sum(not missing_processes(statuses, self.num_processes) for statuses in known.values())
        return max(self.run_lines[-1].num_cases - num_done, 0)

    def latest(self) -> list[Result]:
        """One result for each process of a case, in the order of execution: the last final one, else the last.

        All results of one case are of one environment: that of its last final result, else of its last.
        """
        newest: dict[str, Result] = {}
        chosen: dict[tuple[str, int], int] = {}
        for result in self.results:
            before = newest.get(result.case_hash)
            if before is None or _replaces(result, before):
                newest[result.case_hash] = result
        for index, result in enumerate(self.results):
            place = chosen.get((result.case_hash, result.process_index))
            is_here = result.env_hash == newest[result.case_hash].env_hash
            if is_here and (place is None or _replaces(result, self.results[place])):
                chosen[result.case_hash, result.process_index] = index
        return [self.results[index] for index in sorted(chosen.values())]


def _replaces(result: Result, before: Result) -> bool:
    return result.status.is_final or not before.status.is_final


def read_run(path: str | Path) -> Run:
    """Read a run from its folder or its `results.jsonl`.

    A last line that is torn (without its newline, or not JSON) is left out.

    Raises:
        StoreError: there is no run at `path`, a line is invalid, or a newer bsa-bench wrote it. The message names the
            file and the line.
    """
    file = _results_file(Path(path))
    try:
        lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise StoreError(f"{file}: cannot be read: {error.strerror}") from error
    unfinished = lines.pop()
    torn_line = len(lines) + 1 if unfinished.strip() else None
    run_lines: list[RunLine] = []
    results: list[Result] = []
    num_without = 0
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        where = f"{file}, line {number}"
        plain, fits = without_digest(raw)
        num_without += fits is None
        if fits is False:
            raise StoreError(f"{where}: its digest does not fit: it was changed after it was written; {_REMEDY}")
        try:
            fields = json.loads(plain)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and torn_line is None:
                torn_line = number
                continue
            raise StoreError(f"{where}: expected a JSON object, got {raw[:60]!r}: {error}") from error
        line = _parse(fields, where)
        if isinstance(line, RunLine):
            run_lines.append(line)
        else:
            results.append(line)
    if not run_lines:
        raise StoreError(f"{file}: holds no run line, expected one at its start; the run ended before it began")
    return Run(file, run_lines, results, torn_line, num_without)


def _results_file(path: Path) -> Path:
    file = path / RESULTS_FILE if path.is_dir() else path
    if not is_regular(file):
        raise StoreError(f"{path}: no run there, expected a run's folder with {RESULTS_FILE} in it, or that file")
    return file


def _parse(fields: object, where: str) -> RunLine | Result:
    if not isinstance(fields, dict):
        raise StoreError(f"{where}: expected a JSON object, got {type(fields).__name__}")
    version = fields.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StoreError(
            f"{where}: schema_version {version}, this bsa-bench reads up to {SCHEMA_VERSION}; "
            "read it with the bsa-bench that wrote it, or a newer one"
        )
    kind = fields.get("kind")
    if kind not in {"run", "result"}:
        raise StoreError(f"{where}: kind {kind!r}, expected 'run' or 'result'")
    try:
        if version == 1:
            fields = schema1.upgrade(fields)
        if kind == "run":
            return RunLine.model_validate(fields)
        result = Result.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "line"
        raise StoreError(f"{where}: {key}: {first['msg']}, got {str(first['input'])[:80]!r}") from error
    if reason := _contradiction(result, is_old=version == 1):
        raise StoreError(f"{where}: {reason}; {_REMEDY}")
    return result


def _contradiction(result: Result, *, is_old: bool) -> str | None:
    """What a stored result says of itself that does not follow from the rest of it, or None."""
    if result.case_hash != result.case.case_hash and not is_old:
        return f"case_hash {result.case_hash} is not that of its case, {result.case.case_hash}"
    if result.correctness is not None and result.correctness.passed and (found := result.correctness.excess()):
        return f"correctness: passed, though {found}"
    return None
