"""Everything that `static` knows, as one JSON document; the tables show parts of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from bsa_bench.static.analyse import Analysis
from bsa_bench.static.architectures import ARCHITECTURES, Architecture, Figure
from bsa_bench.static.compile import Failure, Settings
from bsa_bench.static.devices import Device
from bsa_bench.static.figures import Figures
from bsa_bench.static.model import ASSUMPTIONS, LEFT_OUT, Ceiling
from bsa_bench.static.reading import Reading
from bsa_bench.static.regions import Region

SCHEMA_VERSION = 1


def document(
    analyses: Sequence[Analysis | Failure], settings: Settings, devices: Sequence[Device], figures: Figures
) -> dict[str, Any]:
    """All configurations with their sources, figures and assumptions.

    Seconds, bytes and FLOP everywhere; what is not known is null.
    """
    done = [each for each in analyses if isinstance(each, Analysis)]
    return {
        "schema_version": SCHEMA_VERSION,
        "toolchain": {
            "label": settings.toolchain.label,
            "triton": sorted({a.reading.compiled.record.triton for a in done}),
            "fp_fusion": settings.fp_fusion,
            "line_info": settings.line_info,
        },
        "architectures": {a: _architecture(ARCHITECTURES[a]) for a in dict.fromkeys(each.arch for each in done)},
        "devices": {device.name: asdict(device) for device in devices},
        "assumptions": list(ASSUMPTIONS),
        "left_out": list(LEFT_OUT),
        "design_figures_source": figures.source,
        "configurations": [_configuration(each, figures) for each in done],
        "failures": [
            {"name": f.config.name, "arch": f.arch, "kind": f.kind, "message": f.message, "log": f.log}
            for f in analyses
            if isinstance(f, Failure)
        ],
    }


def _configuration(analysis: Analysis, figures: Figures) -> dict[str, Any]:
    reading = analysis.reading
    record, config = reading.compiled.record, reading.compiled.config
    return {
        "name": analysis.name,
        "arch": analysis.arch,
        "target": reading.sass.target,
        "triton": record.triton,
        "kernel": config.kernel,
        "constexprs": config.constexprs,
        "options": {key: getattr(config, key) for key in ("num_warps", "num_stages", "num_ctas", "maxnreg")},
        "compile_s": record.compile_s,
        "was_cached": reading.compiled.was_cached,
        "registers": record.registers,
        "stack_bytes": record.stack_bytes,
        "shared_bytes": record.shared_bytes,
        "tensor_memory_columns": record.tensor_memory_columns,
        "cubin_bytes": record.cubin_bytes,
        "occupancy": asdict(reading.occupancy),
        "spill_loads": reading.spill_loads,
        "spill_stores": reading.spill_stores,
        "digest": reading.digest,
        "main_digest": reading.main_digest,
        "main_loop": reading.main.loop if reading.main else None,
        "flop_per_trip": reading.flop_per_trip,
        "traffic": asdict(reading.traffic),
        "optional_traffic": asdict(reading.optional_traffic),
        "pipeline": {
            "num_stages": reading.num_stages,
            "wanted_depth": reading.wanted_depth,
            "depth": reading.depth,
            "buffers": [
                {"name": b.name, "depth": b.depth, "tile": list(b.tile), "bytes": b.bytes, "lines": _lines(b.source)}
                for b in reading.buffers
            ],
        },
        "coalescing": [_plain(asdict(each)) for each in reading.coalescing],
        "outside": _region(reading.outside, reading),
        "loops": [_region(loop, reading) for loop in reading.loops],
        "findings": list(analysis.findings),
        "ceilings": [_ceiling(each) for each in analysis.ceilings],
        "no_ceiling": analysis.no_ceiling,
        "measured": [asdict(each) for each in analysis.measured],
        "design_figures": figures.of(analysis.name, analysis.arch),
    }


def _architecture(arch: Architecture) -> dict[str, Any]:
    """Its figures as nested objects; what a tuple names becomes one key."""
    nested = {
        "lanes_per_clock": dict(arch.lanes_per_clock),
        "tensor_flop_per_clock": {" ".join(key): figure for key, figure in arch.tensor_flop_per_clock.items()},
    }
    plain = {f.name: getattr(arch, f.name) for f in fields(arch)} | nested
    return {key: _as_dict(value) for key, value in plain.items()}


def _as_dict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_dict(each) for key, each in value.items()}
    return asdict(value) if isinstance(value, Figure) else value


def _region(region: Region, reading: Reading) -> dict[str, Any]:
    return {
        "loop": region.loop,
        "parent": region.parent,
        "is_main": region is reading.main,
        "is_wait": region.is_wait,
        "address": region.address,
        "num_instructions": region.num_instructions,
        "num_conditional": region.num_conditional,
        "num_optional": sum(each.num_optional for each in region.lines),
        "mix": dict(region.mix),
        "pipes": dict(region.pipes),
        "spill_loads": region.count("spill load"),
        "spill_stores": region.count("spill store"),
        "shared_bytes_per_warp": region.shared_bytes_per_warp,
        "tensor": [
            {
                "class": t.tensor_class,
                "shape": t.shape,
                "types": t.types,
                "a_source": t.a_source,
                "count": t.count,
                "lines": _lines(t.lines),
            }
            for t in region.tensor
        ],
        "accesses": [
            {
                "kind": a.kind,
                "opcode": a.opcode,
                "bytes_per_lane": a.bytes_per_lane,
                "count": a.count,
                "lines": _lines(a.lines),
            }
            for a in region.accesses
        ],
        "lines": [
            {
                "line": f"{each.line.file}:{each.line.line}" if each.line else None,
                "count": each.count,
                "mix": dict(each.mix),
            }
            for each in region.lines
        ],
    }


def _ceiling(ceiling: Ceiling) -> dict[str, Any]:
    return {**_plain(asdict(ceiling)), "limited_by": ceiling.limited_by}


def _lines(source: Iterable[object]) -> list[str]:
    return [f"{line.file}:{line.line}" for line in source]  # type: ignore[attr-defined]


def _plain(value: Any) -> Any:
    """Tuples become lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
