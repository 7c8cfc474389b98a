"""Executed TFLOP/s under their ceilings: against tokens, and as a roofline where the bytes are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bsa_bench.report import axes as axis
from bsa_bench.report.kit import Kit, Plot, Point, panels
from bsa_bench.report.labels import timer_label
from bsa_bench.store.derive import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Dense matrix products accumulated in fp32, FLOP/s, by the vendor's datasheet (SXM; of B200 the HGX datasheet).
DATASHEET_FLOP_PER_S = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}
_OF_DTYPES = frozenset({"bfloat16", "float16"})
_LINES = ("-", (0, (6, 2)), (0, (6, 2, 1, 2)), (0, (1, 1)))


@dataclass(frozen=True)
class CeilingLine:
    """What a panel's rows cannot exceed: FLOP/s, or bytes/s of memory."""

    label: str
    value: float
    unit: str


def throughput(row: Row) -> Point | None:
    """TFLOP/s executed, with the ends of the latency's interval."""
    work, whole = row.result.work, row.whole
    if work is None or not work.flops_executed or whole is None or not whole.low:
        return None
    tflop = work.flops_executed / 1e12
    return Point(tflop / whole.median, tflop / whole.high, tflop / whole.low)


def tflops(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw TFLOP/s executed against tokens, with the ceilings of each panel's number format."""
    from matplotlib.lines import Line2D

    timed = [row for row in rows if throughput(row)]
    shown = panels(timed)
    if not shown:
        return None
    title = f"TFLOP/s executed, {kit.passes}"
    figure, all_axes = kit.page.figure(len(shown), title=title)
    for axes, each in zip(all_axes, shown, strict=True):
        kit.page.panel_title(axes, kit.shape(each[0]))
        ceilings = [line for line in ceilings_of(each, kit) if line.unit == "FLOP/s"]
        ends = [line.value / 1e12 for line in ceilings]
        for place, line in enumerate(ceilings):
            dash = _LINES[place % len(_LINES)]
            axes.axhline(
                line.value / 1e12, color=kit.page.grey, linestyle=dash, linewidth=1.2, label=line.label, zorder=2
            )
        for label, line_rows in kit.series(each).items():
            found = [point for row in line_rows if (point := throughput(row))]
            ends += [end for point in found for end in (point.low, point.high)]
            kit.draw_line(axes, [row.num_tokens for row in line_rows], found, line_rows, label=label)
        axis.tokens_axis(axes, [row.num_tokens for row in each])
        axis.plain_log_axis(axes, "y", ends)
        axes.set_ylabel(kit.page.words("TFLOP/s executed (log)", timer_label(each)))
    without = [each for each in shown if not any(line.unit == "FLOP/s" for line in ceilings_of(each, kit))]
    note = Line2D([], [], linestyle="none", label="no ceiling: the run measured none")
    kit.legend(figure, all_axes, timed, more=[note] if without else [])
    return kit.save(figure, "tflops", title)


def roofline(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw TFLOP/s over FLOP per byte under the run's own roof; of forwards, whose least bytes are known."""
    timed = [row for row in rows if kit.passes == "forward" and throughput(row)]
    shown = [each for each in panels(timed) if {"FLOP/s", "B/s"} <= {line.unit for line in ceilings_of(each, kit)}]
    if not shown:
        return None
    title = f"Roofline, {kit.passes}"
    figure, all_axes = kit.page.figure(len(shown), title=title)
    for axes, each in zip(all_axes, shown, strict=True):
        kit.page.panel_title(axes, kit.shape(each[0]))
        xs = [_intensity(row) for row in each]
        ends = _draw_roof(axes, min(xs), max(xs), ceilings_of(each, kit), kit)
        for label, line in kit.series(each).items():
            found = [point for row in line if (point := throughput(row))]
            ends += [end for point in found for end in (point.low, point.high)]
            kit.draw_line(axes, [_intensity(row) for row in line], found, line, label=label, joined=False)
        axis.plain_log_axis(axes, "y", ends)
        short = "FLOP executed / least bytes (log)"
        axes.set_xlabel(kit.page.words(short, "least bytes: q, k, v read and o written once"))
        axes.set_ylabel(kit.page.words("TFLOP/s executed (log)", timer_label(each)))
    kit.legend(figure, all_axes, [row for each in shown for row in each])
    return kit.save(figure, "roofline", title)


def ceilings_of(rows: Sequence[Row], kit: Kit) -> list[CeilingLine]:
    """The ceilings of a panel's number format: the device's datasheet, and what each run measured."""
    dtype, runs = rows[0].result.case.workload.dtype, {row.result.run_id for row in rows}
    sources = [source for source in kit.sources if source.run_id in runs]
    found: dict[str, CeilingLine] = {}
    for source in sources:
        known = next((name for name in DATASHEET_FLOP_PER_S if name in source.device_name), None)
        if known and dtype in _OF_DTYPES:
            label = f"{known} datasheet, {dtype} dense"
            found[label] = CeilingLine(label, DATASHEET_FLOP_PER_S[known], "FLOP/s")
        whose = f" ({source.run_id})" if len(sources) > 1 else ""
        for each in source.ceilings:
            if each.name in {f"GEMM {dtype}", "copy"}:
                label = f"{each.name}, measured{whose}"
                found[label] = CeilingLine(label, each.value, each.unit)
    return list(found.values())


def _intensity(row: Row) -> float:
    """FLOP executed over the bytes of q, k, v and o."""
    work = row.result.work
    assert work is not None
    assert work.flops_executed
    return work.flops_executed / (4 * row.result.case.workload.tensor_bytes)


def _draw_roof(axes: Axes, first: float, last: float, ceilings: Sequence[CeilingLine], kit: Kit) -> list[float]:
    """Draw the slope of the copy and the flat tops; returns the ends of the axis that they need."""
    bandwidth = max(line.value for line in ceilings if line.unit == "B/s")
    tops = [line for line in ceilings if line.unit == "FLOP/s"]
    ridge = max(line.value for line in tops) / bandwidth
    left, right = min(first, ridge) / 2, max(last, ridge) * 2
    axes.plot(
        [left, ridge],
        [left * bandwidth / 1e12, ridge * bandwidth / 1e12],
        color=kit.page.grey,
        linewidth=1.2,
        linestyle=":",
        label=next(line.label for line in ceilings if line.value == bandwidth),
        zorder=2,
    )
    for place, line in enumerate(tops):
        height, dash = line.value / 1e12, _LINES[place % len(_LINES)]
        start = line.value / bandwidth
        axes.plot(
            [start, right], [height] * 2, color=kit.page.grey, linewidth=1.2, linestyle=dash, label=line.label, zorder=2
        )
    axis.plain_log_axis(axes, "x", [left, right])
    return [left * bandwidth / 1e12, *(line.value / 1e12 for line in tops)]
