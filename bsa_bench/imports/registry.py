"""The formats that figures can be imported from, and the one way to do it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, cast, get_args

from bsa_bench.errors import EXIT_NOTHING_MEASURED, BenchError, UsageError

if TYPE_CHECKING:
    from bsa_bench.imports.reading import Reading, Readings, Source
    from bsa_bench.imports.record import Published
    from bsa_bench.result import PassName

ImportName = Literal["tritonbench", "cudnn-frontend", "nvbench", "flashinfer-bench", "pytest-benchmark"]


class NothingPublishedError(BenchError):
    """A file of a known format holds no figure that can be imported."""

    exit_code: ClassVar[int] = EXIT_NOTHING_MEASURED


class Format(Protocol):
    """What the module of a format has."""

    def recognises(self, source: Source) -> bool:
        """Whether the file is of this format, by its first lines."""

    def read(self, source: Source) -> Readings:
        """Read all figures, or raise UsageError."""


@dataclass(frozen=True)
class ImportFormat:
    """One format: what `--from` calls it, and one line of what is read of it."""

    name: ImportName
    about: str

    @property
    def module(self) -> Format:
        """The module that reads it."""
        return cast("Format", import_module(f"bsa_bench.imports.{self.name.replace('-', '_')}"))


FORMATS: dict[str, ImportFormat] = {
    each.name: each
    for each in (
        ImportFormat("tritonbench", "CSV with `;`, of its attention operators"),
        ImportFormat("cudnn-frontend", "CSV of its SDPA benchmarks"),
        ImportFormat("nvbench", "JSON of `--json`"),
        ImportFormat("flashinfer-bench", "traces, JSON lines"),
        ImportFormat("pytest-benchmark", "its JSON, or what `export` wrote"),
    )
}
assert list(FORMATS) == list(get_args(ImportName))


@dataclass(frozen=True)
class Imported:
    """What an import wrote: where, from which format, which figures, and how many it left out by reason."""

    target: Path
    format_name: str
    figures: list[Published]
    left_out: dict[str, int]

    @property
    def note(self) -> str:
        """One line of what was imported and what was left out."""
        devices = ", ".join(dict.fromkeys(each.device for each in self.figures))
        text = f"{len(self.figures)} figures from {self.format_name}, measured on {devices}"
        return f"{text}; left out: {_by_reason(self.left_out)}" if self.left_out else text


def import_file(
    path: str | Path,
    *,
    out: str | Path,
    source_format: str | None = None,
    label: str | None = None,
    device: str | None = None,
    passes: PassName | None = None,
) -> Imported:
    """Read another tool's result file and write its figures to `out`, as JSON lines of `Published`.

    Args:
        path: the file.
        out: where to write.
        source_format: of `FORMATS`; None guesses it from the content.
        label: names the figures in tables and legends in place of the tool.
        device: what they were measured on, for a file that does not say.
        passes: what was timed, for a file that does not say.

    Raises:
        UsageError: an unknown or wrong format, a file that cannot be read, or one that contradicts `device` or
            `passes`, or that names no device where none is given.
        NothingPublishedError: the file holds no figure.
        StoreError: `out` cannot be written.
    """
    from bsa_bench.imports.reading import clean, read_source
    from bsa_bench.imports.record import write_published
    from bsa_bench.store.whole_file import check_place

    source, target = read_source(Path(path)), Path(out)
    check_place(target, flag="--out")
    if target.resolve() == source.path.resolve():
        raise UsageError(f"--out: {target}: expected another file than the one that is read")
    for flag, text in (("--label", label), ("--device", device)):
        if text is not None and not clean(text):
            raise UsageError(f"{flag}: got {text!r}, expected a name")
    chosen = _choose(source, source_format)
    readings = chosen.module.read(source)
    if not readings.found:
        raise NothingPublishedError(
            f"{source.path}: no figure to import from {chosen.name} ({_by_reason(readings.left_out) or 'it has none'})"
        )
    given = _Given(chosen.name, label and clean(label), device and clean(device), passes)
    figures = [_published(source, reading, given) for reading in readings.found]
    write_published(figures, target)
    return Imported(target, chosen.name, figures, dict(readings.left_out))


@dataclass(frozen=True)
class _Given:
    tool: str
    label: str | None
    device: str | None
    passes: PassName | None


def _choose(source: Source, name: str | None) -> ImportFormat:
    if name is not None and name not in FORMATS:
        raise UsageError(f"import format: got {name!r}, expected one of {', '.join(FORMATS)}")
    recognised = [each for each in FORMATS.values() if each.module.recognises(source)]
    if name is None:
        if len(recognised) == 1:
            return recognised[0]
        raise UsageError(
            f"{source.path}: no known format, or a truncated file; name the format with --from, one of "
            f"{', '.join(FORMATS)}"
        )
    if recognised and FORMATS[name] not in recognised:
        raise UsageError(f"{source.path}: this is a file of {recognised[0].name}, not of {name}; leave out --from")
    return FORMATS[name]


def _published(source: Source, reading: Reading, given: _Given) -> Published:
    from bsa_bench.imports.record import Published

    axes, device = reading.axes, reading.device or given.device
    if device is None:
        raise UsageError(
            f"{source.path}: it does not say on which device {reading.implementation} was measured; name it with "
            "--device, such as --device 'NVIDIA H100 SXM'"
        )
    if given.device not in {None, device}:
        raise UsageError(f"--device: got {given.device!r}, but {source.path} says {device!r}; leave out --device")
    if given.passes and axes.passes not in {None, given.passes}:
        raise UsageError(f"--pass: got {given.passes}, but {source.path} says {axes.passes}; leave out --pass")
    return Published(
        tool=given.tool,
        implementation=reading.implementation,
        label=given.label,
        device=device,
        axes=axes.model_copy(update={"passes": axes.passes or given.passes}),
        metric=reading.metric,
        statistic=reading.statistic,
        value=reading.value,
        unit=reading.unit,
        source_file=source.name,
        source_sha256=source.sha256,
    )


def _by_reason(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
