"""`bsa-bench tune`: from candidates to a table of tiles that was measured on this GPU."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bsa_bench.errors import EXIT_INTERRUPTED, EXIT_NOTHING_MEASURED, EXIT_OK, EXIT_WRONG, UsageError
from bsa_bench.result import Environment
from bsa_bench.run.probe import probe
from bsa_bench.static.compile import Settings, default_cache
from bsa_bench.static.config import ArchName
from bsa_bench.store.whole_file import check_place, write_whole
from bsa_bench.suite.suggest import did_you_mean, shorten
from bsa_bench.tune.candidates import KERNELS, Dismissed, Prospect, dismiss, in_order, list_candidates
from bsa_bench.tune.choose import Origin, tuned_table
from bsa_bench.tune.process import WORKER_COMMAND, Worker
from bsa_bench.tune.search import Outcome, Search, search
from bsa_bench.tune.table import format_table
from bsa_bench.units import format_seconds, parse_duration, three_digits
from bsa_bench.workload import MAX_TOKENS
from bsa_kernels.block_sparse.tile_table import ENVIRONMENT, Entry, table_in_force
from bsa_kernels.configurations import KEPT_ROWS

HEAD_DIMS = (64, 128)
MIN_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """The flags of `bsa-bench tune`, as they were given; `worker_command` is an argument so that tests need no GPU."""

    budget: str
    arch: ArchName | None
    kernels: str
    head_dims: str
    kept_rows: str
    tokens: str
    out: Path
    dry_run: bool
    cache: Path | None
    worker_command: Sequence[str] = WORKER_COMMAND


def tune(request: TuneRequest, *, look: Callable[[], Environment] | None = None) -> int:
    """List, dismiss, measure, choose, write; returns the exit code.

    Args:
        request: the flags.
        look: says what this machine is; by default a process that asks torch.

    Raises:
        UsageError: a flag is wrong.
        StoreError: the table cannot be written.
    """
    start = time.monotonic()
    budget_s = parse_duration(request.budget)
    kernels = _names(request.kernels)
    head_dims = _numbers("--head-dim", request.head_dims, HEAD_DIMS)
    kept_rows = _numbers("--kept-rows", request.kept_rows, KEPT_ROWS)
    tokens = _numbers("--tokens", request.tokens, None)
    if not request.dry_run:
        check_place(request.out, flag="--out")
    environment = look() if look else probe({}, device=None, threads=None).environment
    own = _arch_of(environment)
    if own is None and not request.dry_run:
        print(
            "there is no NVIDIA GPU of compute capability 8.0 or more that torch can use here, so nothing can be timed "
            "and no table is written; --dry-run lists what such a GPU would measure"
        )
        return EXIT_NOTHING_MEASURED
    if own and request.arch and own != request.arch and not request.dry_run:
        raise UsageError(f"--arch: got {request.arch}, but {environment.device_name} takes the entries of {own}")
    arch: ArchName = request.arch or own or "sm_90"
    settings = Settings(request.cache or default_cache())
    candidates = list_candidates(arch, settings, kernels=kernels, head_dims=head_dims, kept_rows=kept_rows)
    print(f"compiling {len(candidates)} candidates for {arch}", flush=True)
    prospects, dismissed = dismiss(candidates, arch, settings)
    if request.dry_run:
        return _list(prospects, dismissed, tokens)
    for each in dismissed:
        print(f"not measured: {each.candidate.name}: {each.reason}")
    log = request.out.with_suffix(".log")
    with Worker(tokens, log, command=request.worker_command) as worker:
        left_s = budget_s - (time.monotonic() - start)
        order = [each.candidate for each in in_order(prospects)]
        found = search(order, worker.measure, budget_s=left_s, on_done=_tell)
    triton = environment.packages.get("triton") or "of an unknown version"
    origin = Origin(environment.device_name, datetime.now(UTC).date().isoformat(), triton)
    return _finish(request.out, found, arch, origin, tokens)


def _finish(out: Path, found: Search, arch: ArchName, origin: Origin, tokens: Sequence[int]) -> int:
    """Write what is known, say what is not."""
    for candidate in found.left[:20]:
        print(f"not reached: {candidate.name}")
    if len(found.left) > 20:
        print(f"not reached: {len(found.left) - 20} more")
    counts = Counter(outcome.status for outcome in found.outcomes)
    if counts["OK"]:
        before = table_in_force()
        after = tuned_table(found.outcomes, before, arch=arch, origin=origin)
        write_whole(out, format_table(after.entries, head=_head(found, arch, origin, tokens)), flag="--out")
        _print_changes(before, after.entries)
        print("".join(f"{note}\n" for note in after.notes), end="")
        print(f"table: {out}; use it with {ENVIRONMENT}={out.absolute()}")
    else:
        print("nothing was measured, so no table is written")
    if found.was_interrupted:
        return EXIT_INTERRUPTED
    if counts["WRONG"]:
        return EXIT_WRONG
    return EXIT_OK if counts["OK"] else EXIT_NOTHING_MEASURED


def _head(found: Search, arch: ArchName, origin: Origin, tokens: Sequence[int]) -> list[str]:
    lengths = ", ".join(f"{n:,}" for n in tokens)
    measured = sum(outcome.status == "OK" for outcome in found.outcomes)
    how = f"measured on {origin.device}, {origin.date}, Triton {origin.triton}, bf16, at {lengths} tokens, L2 cold"
    return [
        "The default tile of each kernel; bsa_kernels/block_sparse/tile_table.py says what the keys mean.",
        f"Written by `bsa-bench tune`: {measured} tiles of {arch} {how}.",
        "Entries whose reason does not begin with `measured` are those that were in force before.",
    ]


def _print_changes(before: Sequence[Entry], after: Sequence[Entry]) -> None:
    known = set(before)
    for entry in after:
        if entry not in known:
            print(f"{entry.kernel} {entry.arch} d{entry.head_dim} k{entry.kept_rows}: {entry.tile}; {entry.reason}")


def _tell(outcome: Outcome) -> None:
    if outcome.status == "OK":
        times = ", ".join(f"{format_seconds(s)} at {tokens:,}" for tokens, s in outcome.seconds.items())
        print(f"{outcome.candidate.name}: {times}", flush=True)
    else:
        print(f"{outcome.candidate.name}: {outcome.status}: {outcome.reason}", flush=True)


def _list(prospects: Sequence[Prospect], dismissed: Sequence[Dismissed], tokens: Sequence[int]) -> int:
    lengths = " and ".join(f"{n:,}" for n in tokens)
    print(f"would be measured at {lengths} tokens, in this order (name; TFLOP/s that the main loop allows in order):")
    for each in in_order(prospects):
        rate = three_digits(each.predicted_flop_per_s / 1e12) if each.predicted_flop_per_s else "-"
        print(f"  {each.candidate.name:44} {rate:>6}" + "  in force" * each.candidate.is_in_force)
    if dismissed:
        print("would not be measured:")
    for gone in dismissed:
        print(f"  {gone.candidate.name}: {gone.reason}")
    return EXIT_OK


def _arch_of(environment: Environment) -> ArchName | None:
    """The entries that serve this machine's GPU, as `bsa_kernels` has it; None without one that our kernels run on."""
    capability = environment.device_details.get("compute_capability")
    if environment.device_kind != "cuda" or not isinstance(capability, str):
        return None
    major = int(capability.partition(".")[0])
    if major < 8:
        return None
    return "sm_90" if major == 9 else "sm_100" if major == 10 else "sm_80"


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in KERNELS:
            raise UsageError(
                f"--kernel: got {name!r}, expected some of {', '.join(KERNELS)}{did_you_mean(name, KERNELS)}"
            )
    return names


def _numbers(flag: str, text: str, allowed: Collection[int] | None) -> list[int]:
    """Whole numbers with commas between: some of `allowed`, or lengths."""
    expected = (
        f"some of {', '.join(map(str, sorted(allowed)))}" if allowed else f"lengths of {MIN_TOKENS} to {MAX_TOKENS:,}"
    )
    found = []
    for item in text.split(","):
        number = int(item) if item.strip().isdecimal() and len(item) < 20 else -1
        if number not in allowed if allowed else not MIN_TOKENS <= number <= MAX_TOKENS:
            raise UsageError(f"{flag}: got {shorten(item.strip())}, expected {expected}")
        found.append(number)
    return list(dict.fromkeys(found))
