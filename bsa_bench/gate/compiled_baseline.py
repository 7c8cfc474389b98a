"""The reviewed file of what kernels compiled to: one configuration on a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from bsa_bench.errors import UsageError
from bsa_bench.gate.baseline_file import Origin, read_items, write_items
from bsa_bench.gate.compiled_figures import CompiledFigures
from bsa_bench.result import Line
from bsa_bench.static.config import ARCH_NAMES


class Provenance(Origin):
    """Where a baseline comes from.

    Args:
        triton: the version that compiled; figures of another do not compare with it.
    """

    triton: str


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
    write_items(path, lambda: Baseline(provenance=provenance, configurations=ordered), items="configurations")


def read_baseline(path: Path) -> Baseline:
    """Read such a file.

    Raises:
        UsageError: it is not there or is none; names what was expected.
    """
    return read_items(path, Baseline, what="compiled code")
