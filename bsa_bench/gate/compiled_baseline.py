"""The reviewed file of what kernels compiled to: one configuration on a line, so that a diff of it reads well."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.gate.compiled_figures import CompiledFigures
from bsa_bench.result import Line
from bsa_bench.static.config import ARCH_NAMES
from bsa_bench.store.whole_file import write_whole

BASELINE = Path("results/baselines/compiled.json")


class Provenance(Line):
    """Where a baseline comes from.

    Args:
        commit, dirty: of the sources, and whether they differed from it; null outside a checkout.
        utc: when it was accepted.
        triton: the version that compiled; figures of another do not compare with it.
        reason: why it was accepted, for who reads the file later.
    """

    commit: str | None
    dirty: bool | None
    utc: str
    triton: str
    reason: str = Field(min_length=1)


class Baseline(Line):
    """What the file holds; configurations are sorted by name and architecture."""

    schema_version: Literal[1] = 1
    kind: Literal["compiled-baseline"] = "compiled-baseline"
    provenance: Provenance
    configurations: tuple[CompiledFigures, ...]

    @model_validator(mode="after")
    def _is_of_one_triton(self) -> Self:
        for each in self.configurations:
            if each.code is not None and each.code.triton != self.provenance.triton:
                raise ValueError(
                    f"{each.name}, {each.arch}: compiled by Triton {each.code.triton}, expected "
                    f"{self.provenance.triton} as the provenance says"
                )
        counts = Counter(each.key for each in self.configurations)
        for key, count in counts.items():
            if count > 1:
                raise ValueError(f"{', '.join(key)}: expected each configuration once, got it {count} times")
        return self


def write_baseline(path: Path, figures: Sequence[CompiledFigures], provenance: Provenance) -> None:
    """Write what was compiled as the baseline from now on; the same figures give the same text.

    Raises:
        UsageError: nothing was compiled, figures are of another Triton than the provenance says, or some come twice.
        StoreError: the file cannot be written.
    """
    if not any(each.code for each in figures):
        raise UsageError(f"baseline: {path}: expected compiled configurations, got none")
    ordered = tuple(sorted(figures, key=lambda each: (each.name, ARCH_NAMES.index(each.arch))))
    try:
        baseline = Baseline(provenance=provenance, configurations=ordered)
    except ValidationError as error:
        raise UsageError(f"baseline: {path}: {_first(error)}") from error
    content = baseline.model_dump(mode="json")
    rows = content.pop("configurations")
    head = "".join(f"{json.dumps(key)}: {_line(value)},\n" for key, value in content.items())
    body = ",\n".join(map(_line, rows))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"baseline: {path.parent}: {error.strerror}") from error
    write_whole(path, f'{{\n{head}"configurations": [\n{body}\n]\n}}\n')


def read_baseline(path: Path) -> Baseline:
    """Read such a file.

    Raises:
        UsageError: it is not there or is none; names what was expected.
    """
    try:
        return Baseline.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"baseline: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"baseline: {path}: expected JSON in UTF-8, got: {error}") from error
    except ValidationError as error:
        raise UsageError(f"baseline: {path}: expected a baseline of compiled code, got: {_first(error)}") from error


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
