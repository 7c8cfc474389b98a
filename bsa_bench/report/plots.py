"""Which plots a run has: correct rows only, a figure for each pass, a panel for each shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bsa_bench.imports.record import Published
from bsa_bench.report import style
from bsa_bench.report.kit import Kit, Plot, looks
from bsa_bench.report.labels import Labels
from bsa_bench.report.level_plots import latency, memory
from bsa_bench.report.phases import phase_stack
from bsa_bench.report.published_plot import throughput_among_published
from bsa_bench.report.speedup_plots import error_against_speedup, speedup_by_density, speedup_by_tokens
from bsa_bench.result import PASSES
from bsa_bench.store.derive import Row


def draw_plots(rows: Sequence[Row], labels: Labels, folder: Path, published: Sequence[Published] = ()) -> list[Plot]:
    """Draw every plot for which there are correct rows into `folder`, which exists."""
    import matplotlib as mpl

    correct = [row for row in rows if row.is_correct]
    plots: list[Plot | None] = []
    with mpl.rc_context(style.RC):
        for passes in PASSES:
            of_pass = [row for row in correct if row.result.case.passes == passes]
            sparse = [row for row in of_pass if not row.is_dense]
            compared = [row for row in sparse if row.speedup and row.ideal_speedup]
            phased = [row for row in sparse if row.phases]
            kit = Kit(passes, labels, looks(correct, labels), folder)
            plots += [draw(compared, kit) for draw in (speedup_by_tokens, speedup_by_density) if compared]
            plots += [draw(of_pass, kit) for draw in (latency, memory) if of_pass]
            plots += [throughput_among_published(of_pass, kit, published)]
            plots += [error_against_speedup(compared, kit)] if compared else []
            plots += [phase_stack(phased, kit)] if phased else []
    return [plot for plot in plots if plot]
