"""The verbs of comparison and their flags: gate, compare, noise, bisect; what they do is imported when one runs."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from bsa_bench.cli.flags import with_flags
from bsa_bench.files import user_path

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUES]...", help="Override an axis or a key of the suite, as for `run`."),
]
Suite = Annotated[str, typer.Option("--suite", metavar="NAME|FILE", help="Whose cases are measured.")]
Threads = Annotated[
    int, typer.Option("--threads", min=1, help="CPU threads; one is least disturbed by other jobs on the machine.")
]
Limit = Annotated[
    str | None,
    typer.Option("--limit", metavar="SHARE", help="The least change that counts; default: 5% on a CPU, 2% on a GPU."),
]
Budget = Annotated[str, typer.Option(metavar="TIME", help="Start no pair that would not end within this time.")]
CallLimit = Annotated[
    str, typer.Option("--call-limit", metavar="TIME", help="Leave out cases whose call takes longer; they are listed.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of the order of cases and sides.")]
Noise = Annotated[
    Path, typer.Option("--noise", metavar="DIR", help="Folder of this machine's limits files.", parser=user_path)
]
OwnBench = Annotated[
    bool, typer.Option("--own-bench", help="Take the base's own benchmark code too, not only its kernels.")
]
OwnEnvironment = Annotated[
    bool,
    typer.Option(
        "--own-environment", help="Run git revisions on their own dependencies, installed once into the user's cache."
    ),
]
BasePython = Annotated[
    Path | None,
    typer.Option(
        "--base-python", metavar="FILE", help="Run the base on this Python, that of another venv.", parser=user_path
    ),
]
Paths = Annotated[
    list[Path] | None,
    typer.Option(
        "--path",
        metavar="DIR",
        help="In your own repository: a folder of packages of which each side has its own.",
        parser=user_path,
    ),
]
Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it is measured.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="List unchanged rows too.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Results = Annotated[
    Path,
    typer.Option("--results", metavar="DIR", help="Folder of the runs.", envvar="BSA_BENCH_RESULTS", parser=user_path),
]


@dataclass(frozen=True, kw_only=True)
class GateFlags:
    """The flags of `gate`, as they were given."""

    overrides: Overrides = None
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="REV", help="A git revision, or triton==VERSION; default: the committed baselines."
        ),
    ] = None
    tiers: Annotated[
        list[int] | None,
        typer.Option(
            "--tier", min=0, max=3, help="0 compiled code, 1 counters, 2 CPU, 3 GPU; repeatable; default: all."
        ),
    ] = None
    suite: Suite = "quick"
    archs: Annotated[
        list[str] | None, typer.Option("--arch", metavar="ARCH", help="Tier 0: compile for these alone; repeat it.")
    ] = None
    kernels: Annotated[
        list[str] | None,
        typer.Option("--kernel", metavar="PATTERN", help="Tier 0: configurations such as attend-*; repeat it."),
    ] = None
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", envvar="BSA_BENCH_CACHE", help="Where compiled code is kept.", parser=user_path
        ),
    ] = None
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Tier 0: compilers at a time.")] = None
    threads: Threads = 1
    limit: Limit = None
    budget: Budget = "7m"
    call_limit: CallLimit = "0.5s"
    measure_unchanged: Annotated[
        bool,
        typer.Option("--measure-unchanged", help="Time cases whose sources are the same, which tests the machine."),
    ] = False
    own_bench: OwnBench = False
    own_environment: OwnEnvironment = False
    base_python: BasePython = None
    paths: Paths = None
    require_gpu: Annotated[bool, typer.Option("--require-gpu", help="Exit with 4 where tier 3 is not measured.")] = (
        False
    )
    require_calibration: Annotated[
        bool, typer.Option("--require-calibration", help="Exit with 6 where bsa-bench noise was not run here.")
    ] = False
    ambiguous: Annotated[
        Literal["pass", "ambiguous", "fail"],
        typer.Option(help="What cases that stay ambiguous come to: exit code 0, 7 or 1."),
    ] = "pass"
    accept: Annotated[
        bool, typer.Option("--accept", help="Write the baselines anew from these sources, for review; needs --reason.")
    ] = False
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; kept in the baselines.")] = None
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Also write it for a pull request.", parser=user_path),
    ] = None
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML.", parser=user_path)
    ] = None
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also write the JSON document.", parser=user_path)
    ] = None
    github: Annotated[bool, typer.Option("--github", help="Annotations and a step summary, inside GitHub Actions.")] = (
        False
    )
    verbose: Verbose = False
    baselines: Annotated[
        Path, typer.Option("--baselines", metavar="DIR", help="Folder of the committed baselines.", parser=user_path)
    ] = Path("results/baselines")
    noise: Noise = Path("results/noise")
    seed: Seed = 0
    as_json: Json = False


@dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """The flags of `compare`, as they were given."""

    overrides: Overrides = None
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="A and B are implementations of this run, such as bsa@gather."),
    ] = None
    suite: Suite = "quick"
    device: Device = "cpu"
    threads: Threads = 1
    limit: Limit = None
    budget: Budget = "7m"
    call_limit: CallLimit = "0.5s"
    own_bench: OwnBench = False
    own_environment: OwnEnvironment = False
    base_python: BasePython = None
    paths: Paths = None
    allow_other_environment: Annotated[
        bool, typer.Option("--allow-other-environment", help="Show ratios of runs made elsewhere, without a verdict.")
    ] = False
    verbose: Verbose = False
    results: Results = Path("results")
    seed: Seed = 0
    as_json: Json = False


@dataclass(frozen=True, kw_only=True)
class NoiseFlags:
    """The flags of `noise`, as they were given."""

    overrides: Overrides = None
    suite: Suite = "quick"
    pairs: Annotated[int, typer.Option("--pairs", min=2, help="Pairs of processes of each case.")] = 8
    device: Device = "cpu"
    threads: Threads = 1
    limit: Limit = None
    call_limit: CallLimit = "0.5s"
    max_detectable: Annotated[
        str,
        typer.Option("--max-detectable", metavar="SHARE", help="A gate here must find slow-downs of this size."),
    ] = "15%"
    noise: Noise = Path("results/noise")
    seed: Seed = 0
    as_json: Json = False


@dataclass(frozen=True, kw_only=True)
class BisectFlags:
    """The flags of `bisect`, as they were given."""

    good: Annotated[str, typer.Option("--good", metavar="REV", help="A revision that is fast.")]
    bad: Annotated[str, typer.Option("--bad", metavar="REV", help="A later one that is slow.")] = "HEAD"
    overrides: Overrides = None
    suite: Suite = "quick"
    device: Device = "cpu"
    threads: Threads = 1
    limit: Limit = None
    as_json: Json = False


def add_gate_verbs(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command()(gate)
    app.command()(compare)
    app.command()(noise)
    app.command()(bisect)
    app.command(name="bisect-step", hidden=True)(bisect_step)


@with_flags(GateFlags)
def gate(flags: GateFlags) -> None:
    """Fail if these sources are slower, wrong, or compile to worse code than the base; most of it needs no GPU."""
    from bsa_bench.cli.gate_command import run_gate_command

    end_with(lambda: run_gate_command(flags))


@with_flags(CompareFlags)
def compare(
    base: Annotated[str, typer.Argument(metavar="A", help="A run, an implementation of --run, git:REV or `.`.")],
    head: Annotated[str, typer.Argument(metavar="B", help="The same kind; what is told is how B compares with A.")],
    flags: CompareFlags,
) -> None:
    """Compare two runs, two implementations of a run, or two revisions measured now, side by side."""
    from bsa_bench.cli.compare_command import run_compare_command

    end_with(lambda: run_compare_command(base, head, flags))


@with_flags(NoiseFlags)
def noise(flags: NoiseFlags) -> None:
    """Measure these sources against themselves: what noise this machine makes, and what a gate on it can find."""
    from bsa_bench.cli.noise_command import run_noise_command

    end_with(lambda: run_noise_command(flags))


@with_flags(BisectFlags)
def bisect(
    case: Annotated[str, typer.Argument(metavar="CASE", help="A case id of the suite, as the gate names it.")],
    flags: BisectFlags,
) -> None:
    """Find the first revision since which a case is slower, by `git bisect run`."""
    from bsa_bench.cli.bisect_command import run_bisect_command

    end_with(lambda: run_bisect_command(case, flags))


def bisect_step(
    state: Annotated[Path, typer.Argument(metavar="STATE", help="The file that `bisect` wrote.", parser=user_path)],
) -> None:
    """Judge the revision that is checked out here; `git bisect run` calls it."""
    from bsa_bench.cli.bisect_command import run_bisect_step

    end_with(lambda: run_bisect_step(state))


def end_with(command: Callable[[], int]) -> NoReturn:
    """End with the exit code of a command; SIGTERM and SIGHUP end it as Ctrl-C does: no process or folder is left."""
    is_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    ending = [signal.SIGTERM] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)
    before = {number: signal.signal(number, signal.default_int_handler) for number in ending if is_main}
    try:
        raise typer.Exit(command())
    except KeyboardInterrupt:
        print("bsa-bench: interrupted", file=sys.stderr)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
