"""The files that flags of the gate name: JSON, Markdown, JUnit XML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bsa_bench.errors import UsageError
from bsa_bench.gate.document import document
from bsa_bench.gate.show.junit import junit
from bsa_bench.gate.show.markdown import markdown
from bsa_bench.gate.verdict import GateResult
from bsa_bench.store.whole_file import check_place, write_whole

_WRITERS: dict[str, Callable[[GateResult], str]] = {"--out": document, "--markdown": markdown, "--junit": junit}


def check_outputs(*, json_path: Path | None, markdown_path: Path | None, junit_path: Path | None) -> None:
    """See that the files can be written, before anything is measured.

    Raises:
        UsageError: two are the same file.
        StoreError: one cannot be written there.
    """
    paths = _paths(json_path, markdown_path, junit_path)
    for flag, path in paths.items():
        twins = [other for other, there in paths.items() if there.resolve() == path.resolve()]
        if len(twins) > 1:
            raise UsageError(f"{' and '.join(twins)}: got {path} for both, expected a file for each")
        check_place(path, flag=flag)


def write_outputs(
    result: GateResult, *, json_path: Path | None, markdown_path: Path | None, junit_path: Path | None
) -> None:
    """Write those that are asked for, each whole or not at all.

    Raises:
        UsageError: two are the same file.
        StoreError: one cannot be written; those before it are.
    """
    check_outputs(json_path=json_path, markdown_path=markdown_path, junit_path=junit_path)
    for flag, path in _paths(json_path, markdown_path, junit_path).items():
        write_whole(path, _WRITERS[flag](result), flag=flag)


def _paths(json_path: Path | None, markdown_path: Path | None, junit_path: Path | None) -> dict[str, Path]:
    paths = zip(_WRITERS, (json_path, markdown_path, junit_path), strict=True)
    return {flag: path for flag, path in paths if path is not None}
