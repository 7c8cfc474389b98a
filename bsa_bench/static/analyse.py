"""Put together what is known of each compiled configuration: reading, findings, ceilings, measured rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bsa_bench.static.architectures import ARCHITECTURES
from bsa_bench.static.compile import Compiled, Failure
from bsa_bench.static.config import ArchName
from bsa_bench.static.devices import DEVICES, Device
from bsa_bench.static.findings import findings
from bsa_bench.static.measured import Measured
from bsa_bench.static.model import Ceiling, predict
from bsa_bench.static.reading import Reading, read

DEFAULT_DEVICES = ("A100-SXM-80GB", "H200-SXM", "B200")


@dataclass(frozen=True)
class Analysis:
    """One configuration on one architecture.

    `ceilings` has one entry for each device of the architecture; `no_ceiling` says why there is none.
    """

    reading: Reading
    findings: tuple[str, ...]
    ceilings: tuple[Ceiling, ...]
    no_ceiling: str | None
    measured: tuple[Measured, ...]

    @property
    def name(self) -> str:
        """The configuration's name."""
        return self.reading.compiled.config.name

    @property
    def arch(self) -> ArchName:
        """The architecture it was compiled for."""
        return self.reading.compiled.arch


def analyse(
    compiled: Iterable[Compiled | Failure], devices: Sequence[Device], measured: Sequence[Measured] = ()
) -> list[Analysis | Failure]:
    """Read and judge what was compiled; failures pass through."""
    return [each if isinstance(each, Failure) else _analyse(each, devices, measured) for each in compiled]


def devices_for(archs: Sequence[str], names: Sequence[str]) -> list[Device]:
    """The devices to predict for: those named, else one of each architecture."""
    chosen = [DEVICES[name] for name in names or DEFAULT_DEVICES]
    return [device for device in chosen if device.arch in archs]


def _analyse(compiled: Compiled, devices: Sequence[Device], measured: Sequence[Measured]) -> Analysis | Failure:
    try:
        reading = read(compiled)
    except ValueError as error:
        return Failure(compiled.config, compiled.arch, "unread", str(error), f"its files are in {compiled.folder}")
    ours = [device for device in devices if device.arch == compiled.arch]
    ceilings: list[Ceiling] = []
    no_ceiling = None if reading.main and reading.flop_per_trip else "no dots in a loop"
    if reading.main and not no_ceiling:
        try:
            ceilings = [_ceiling(reading, device) for device in ours]
        except ValueError as error:
            no_ceiling = str(error)
    names = {device.name for device in ours}
    return Analysis(
        reading=reading,
        findings=tuple(findings(reading)),
        ceilings=tuple(ceilings),
        no_ceiling=no_ceiling,
        measured=tuple(m for m in measured if m.device in names and m.is_of(compiled.config)),
    )


def _ceiling(reading: Reading, device: Device) -> Ceiling:
    assert reading.main is not None
    return predict(
        reading.main,
        flop_per_trip=reading.flop_per_trip,
        half_rate_flop=reading.half_rate_flop,
        traffic=reading.traffic,
        optional_traffic=reading.optional_traffic,
        num_warps=reading.crew.all_warps,
        depth=reading.depth,
        arch=ARCHITECTURES[reading.compiled.arch],
        device=device,
        work=reading.compiled.config.work,
    )
