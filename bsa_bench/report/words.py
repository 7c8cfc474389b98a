"""What a report says of a whole run, in Markdown: its title, its first paragraph, how to read the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bsa_bench.report.markdown import code, words
from bsa_bench.result import Status
from bsa_bench.store.derive import Row
from bsa_bench.store.reader import Run
from bsa_bench.text import visible

NOTES = """\
- **Median**: of the medians of the processes that a case was measured in; of one process, of its samples. ± is the
  wider half of the interval of that median, from order statistics (of 9 processes and more, a bootstrap of processes
  and samples), at 95% coverage where their number allows, 94% of five. † the interval covers less than 90%. ‡ the
  warm-up did not settle before its cap. § others took the processor meanwhile, or a CPU quota kept it from running, so
  that the time is too long. ¶ the processes fall into two groups. **CV**: standard deviation over mean, of the samples
  within a process and of the medians between processes.
- **One process**: the interval is of the samples within it, and says nothing of how far another process would be off.
- **Timers**: `host` is `perf_counter` around a synchronised call; `event` is a pair of CUDA events. **Cache**: `cold`
  flushes the L2 by its queried size before each sample; `warm` does nothing. A ratio never mixes two timers or caches.
- **Speed-up**: of the fastest correct dense row of the same workload and pass, over the row. Of several processes: the
  median of the ratios within rounds (of one process of each), and in brackets the order-statistic interval of that
  median. Of one process: the ratio of the two medians; its bars in plots divide the far ends of their intervals.
- **Ideal**: 1 / realised density, the method's work over dense attention's. **Achieved** is speed-up / ideal.
- **Attend only**, **attend + select**: sums of those phases, timed in a pass of their own; the ratio divides the whole
  of the fastest dense row by them. The headline is the whole operator, selection, permutation and fill included.
- **TFLOP/s exec**: FLOP of the tiles that the engine visits, padding included, over the median. A multiply-add is 2;
  softmax is not counted; backward is 2.5 x forward (5 matrix products against 2).
- **Peak memory above inputs**: in an untimed pass of its own. "-" is unknown or not measured, never zero.
- **Error / budget**: relative L2 error against the oracle of the very same mask, and what the number format itself
  costs. **Error against dense** is what the method changes. **Mass kept** is the mean share of the dense attention mass
  of a computed query row that its plan kept.
- **Lists that are walked**: KV blocks of a list. Query blocks that share one walk the union of what they asked for;
  **union efficiency** is the share of that work that they did ask for, 100% where nothing is shared."""


def title(run: Run) -> str:
    """The suite's title, or its name."""
    return run.run_lines[-1].suite_title or run.run_lines[-1].suite


def unique_names(runs: Sequence[Run]) -> list[str]:
    """The run ids; of runs of one id the later ones have a number: `quick`, `quick-2`."""
    names: list[str] = []
    for run in runs:
        number, name = 1, run.run_id
        while name in names:
            number += 1
            name = f"{run.run_id}-{number}"
        names.append(name)
    return names


def shown_path(path: Path) -> str:
    """The path relative to here, or its last three parts: a report must not name the machine that made it."""
    absolute, here = path.resolve(), Path.cwd().resolve()
    shown = absolute.relative_to(here) if absolute.is_relative_to(here) else Path(*absolute.parts[-3:])
    return visible(shown.as_posix().lstrip("/"))


def summary(run: Run, rows: Sequence[Row]) -> str:
    """What was run where, how its cases ended, and what is left: a paragraph of Markdown."""
    counts = {status: sum(r.result.status is status for r in rows) for status in Status}
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    where = f"Run {code(run.run_id)} on {words(run.environment.device_name)}"
    text = f"{where}: {len(rows)} cases ({', '.join(parts) or 'none'})"
    text += f", to be measured in {run.num_processes} processes each." if run.num_processes > 1 else "."
    if run.num_remaining:
        left = f"{run.num_remaining} of {run.run_lines[-1].num_cases}"
        text += f" **Unfinished**, cases left: {left}; --resume goes on."
    return text


def status_lines(rows: Sequence[Row]) -> list[str]:
    """A Markdown bullet for each status that a row has: what it means."""
    present = [status for status in Status if any(row.result.status is status for row in rows)]
    return [f"- **{status}**: {status.meaning}." for status in present]
