"""What a run measured of its device besides latencies: ceilings, the time of the host, warm samples, energy."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bsa_bench.report.labels import Labels, percent, workload_label
from bsa_bench.report.markdown import code, words
from bsa_bench.store.derive import Row
from bsa_bench.store.reader import Run
from bsa_bench.units import format_bytes, format_flop, format_seconds

HEAD = ("Case", "Median", "Enqueued in", "Device waited", "Warm", "Other timer", "Energy per call", "Above idle")
ABOUT = """\
**Enqueued in**: until a call had given its work to the device and returned. **Device waited**: in most samples the
device began before all of it was enqueued, so that waiting for the host can be in the time. **Warm**: with nothing
evicted from the L2. **Other timer**: the median by another timer, in the same cache state. **Above idle**: the energy
without what the device takes at rest."""


def device_lines(run: Run, rows: Sequence[Row], labels: Labels) -> list[str]:
    """The section's Markdown; nothing where nothing of it was measured."""
    lines = [_ceiling_text(run)] if run.run_lines[-1].ceilings else []
    cells = [(row, _cells(row)) for row in rows if row.is_correct]
    told = [(row, found) for row, found in cells if any(found)]
    if told:
        lines += ["", f"| {' | '.join(HEAD)} |", f"|---|{'---:|' * (len(HEAD) - 1)}"]
    for row, found in told:
        case = row.result.case
        name = f"{code(labels.of(case))} {case.passes}, {words(workload_label(case))}"
        own = format_seconds(row.whole.median if row.whole else None)
        lines.append(f"| {name} | {own} | {' | '.join(each or '-' for each in found)} |")
    return [*lines, "", ABOUT] if told else lines


def _ceiling_text(run: Run) -> str:
    formats = {"FLOP/s": format_flop, "B/s": format_bytes}
    figures = [
        f"{words(each.name)} {formats[each.unit](each.value)}/s ({words(each.detail)})"
        for each in run.run_lines[-1].ceilings
    ]
    return f"Measured on this device before the first case: {'; '.join(figures)}."


def _cells(row: Row) -> list[str]:
    """Texts by the columns after the median; empty where nothing was measured."""
    host_s = [timing.host_s for timing in row.timings if timing.host_s is not None]
    others = [
        f"{timing.cross_check.timer} {format_seconds(timing.cross_check.median_s)} ({_signed(share)})"
        for timing in row.timings
        if timing.cross_check and (share := timing.timer_disagreement) is not None
    ]
    energy = [each.energy for each in row.processes if each.energy]
    whole = [each.joules_per_call for each in energy if each.joules_per_call is not None]
    above = [each.above_idle_joules_per_call for each in energy if each.above_idle_joules_per_call is not None]
    return [
        format_seconds(median(host_s)) if host_s else "",
        {True: "yes", False: "no", None: ""}[row.host_gaps],
        format_seconds(row.warm_median_s) if row.warm_median_s is not None else "",
        others[0] if others else "",
        f"{median(whole):.3g} J" if whole else "",
        f"{median(above):.3g} J" if above else "",
    ]


def _signed(share: float) -> str:
    return f"{'+' if share >= 0 else '-'}{percent(abs(share))}"
