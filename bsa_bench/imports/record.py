"""A published figure: a number that someone else measured, elsewhere, as one JSON line of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationError

from bsa_bench.errors import UsageError
from bsa_bench.files import read_regular
from bsa_bench.result import Line, PassName
from bsa_bench.store.whole_file import write_whole

Metric = Literal["latency", "throughput", "memory"]
Statistic = Literal["median", "mean"]
Text = Annotated[str, Field(min_length=1)]
SI_UNITS: dict[Metric, str] = {"latency": "s", "throughput": "FLOP/s", "memory": "B"}
REMEDY = "expected a file that bsa-bench import wrote"


class PublishedAxes(Line):
    """What a figure is of, as far as its file says; null where it does not.

    Args:
        length: query tokens of one sequence.
        length_kv: key and value tokens of one sequence.
        batch: sequences.
        heads: query heads.
        heads_kv: key and value heads.
        head_dim: of queries and keys.
        dtype: by torch's name where it has one.
        passes: what was timed.
        density: computed pairs over all pairs.
        mask: `none`, `causal`, or the tool's own word.
        other: what else the file tells apart, by the names that it uses.
    """

    length: PositiveInt | None = None
    length_kv: PositiveInt | None = None
    batch: PositiveInt | None = None
    heads: PositiveInt | None = None
    heads_kv: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    dtype: Text | None = None
    passes: PassName | None = None
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    mask: Text | None = None
    other: dict[str, str] = Field(default_factory=dict)


class Published(Line):
    """One published figure.

    Args:
        tool: that wrote the file.
        implementation: by the name that the file uses.
        label: a name that the user gave the figures of one file.
        device: that it was measured on, as the file or the user names it.
        axes: what it is of.
        metric: what it is; its unit is in `SI_UNITS`.
        statistic: of what samples; null where the tool does not say.
        value: in SI units: s, FLOP/s, B.
        unit: in which the file has it.
        source_file: name of the file, without its folder.
        source_sha256: of the file.
    """

    kind: Literal["published"] = "published"
    schema_version: Literal[1] = 1
    tool: Text
    implementation: Text
    label: Text | None = None
    device: Text
    axes: PublishedAxes
    metric: Metric
    statistic: Statistic | None = None
    value: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    unit: Text
    source_file: Text
    source_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @property
    def name(self) -> str:
        """`cudnn (cudnn-frontend)`, or `cudnn (LABEL)`."""
        return f"{self.implementation} ({self.label or self.tool})"

    @property
    def origin(self) -> str:
        """`published, NVIDIA GB200`: what every table and legend says of it."""
        return f"published, {self.device}"


def write_published(figures: Sequence[Published], target: Path) -> None:
    """Write figures as JSON lines, whole or not at all.

    Raises:
        StoreError: the file cannot be written.
    """
    write_whole(target, "".join(f"{each.model_dump_json()}\n" for each in figures), flag="--out")


def read_published(path: Path) -> list[Published]:
    """Read what `write_published` wrote.

    Raises:
        UsageError: there is no such file, or one of its lines is not a published figure.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"published figures: {path}: {reason}; {REMEDY}") from error
    figures = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            fields = json.loads(line)
            version = fields.get("schema_version") if isinstance(fields, dict) else None
            if isinstance(version, int) and version > 1:
                raise UsageError(
                    f"{path}, line {number}: schema_version {version}, this bsa-bench reads 1; use a newer bsa-bench"
                )
            figures.append(Published.model_validate(fields))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the line"
            raise UsageError(f"{path}, line {number}: {where}: {first['msg']}; {REMEDY}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not JSON; {REMEDY}") from error
    if not figures:
        raise UsageError(f"{path}: no published figures in it; {REMEDY}")
    return figures
