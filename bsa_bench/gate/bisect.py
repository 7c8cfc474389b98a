"""Find the revision since which a case is slower: `git bisect run` in a work tree of its own, judged by pairs.

The known effect tells what to look for: a revision is bad if it is slower than the good one by more than half of it.
Revisions that run the same code as one that was judged before are judged without a measurement: the same sources
(comments aside), or sources that differ in jitted functions alone, where the case runs none of these or they compile to
the same machine code. A change of host code is always measured: it is part of a case's time.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from bsa_bench.errors import BenchError, UsageError
from bsa_bench.gate.git_bisect import candidates_in, first_bad, git, run_bisect, work_tree
from bsa_bench.gate.lockstep import WORKER_COMMAND, LockstepBench, LockstepSettings, PairSide
from bsa_bench.gate.machine_code import Target, host_digest, runs_jitted, same_machine_code, target_of
from bsa_bench.gate.policy import policy_for
from bsa_bench.gate.sides import revision_of
from bsa_bench.gate.two_stage import decide
from bsa_bench.gate.verdict import Check, Verdict, tier_of
from bsa_bench.result import Case, Line
from bsa_bench.run.job import DeviceKind
from bsa_bench.run.probe import probe
from bsa_bench.run.sources import sources_digest
from bsa_bench.static.compile import default_cache
from bsa_bench.static.toolchain import revision_sources
from bsa_bench.store.whole_file import write_whole

GOOD, BAD, SKIP, ABORT = 0, 1, 125, 255
"""What `git bisect run` makes of a step's exit code; anything else from 1 to 127 is bad too."""
Judgement = Literal["good", "bad", "skipped"]
_JUDGEMENTS: dict[Verdict, Judgement] = {Verdict.SLOWER: "bad", Verdict.SAME: "good", Verdict.FASTER: "good"}
"""What else a revision comes to says nothing of its speed."""
_CODES: dict[Judgement, int] = {"good": GOOD, "bad": BAD, "skipped": SKIP}


class Step(Line):
    """What became of one revision.

    Args:
        sources: digest of its kernels, null where it has none.
        host: digest of these without the bodies of jitted functions.
        ratio: over the good revision; null where it was not measured.
        reason: why it was skipped, or judged without a measurement.
    """

    commit: str
    judgement: Judgement
    sources: str | None = None
    host: str | None = None
    ratio: float | None = None
    reason: str | None = None


class State(Line):
    """What a step has to know; a file that the steps add to.

    Args:
        good_kernels, bad_kernels: the folders `kernels` of the two ends.
        runs_jitted: whether the case runs jitted functions of theirs.
        target: what these are compiled for; null where that does not tell what the case runs.
        limit: how much slower than the good revision a bad one is at least.
        logs: a folder for what workers write.
        worker_command: starts a worker.
    """

    case: Case
    good_kernels: str
    bad_kernels: str
    runs_jitted: bool
    target: Target | None
    device: DeviceKind
    threads: PositiveInt
    limit: float
    logs: str
    worker_command: tuple[str, ...]
    steps: tuple[Step, ...] = ()


class Found(Line):
    """Where the bisection ended.

    Args:
        commit, subject: the first bad revision; null where skipped ones leave it open.
        candidates: the revisions among which it is, where it is open.
        ratio: of the bad revision over the good one, as measured at the start.
        steps: the revisions that were judged, in order.
    """

    commit: str | None
    subject: str | None
    candidates: tuple[str, ...]
    ratio: float
    steps: tuple[Step, ...]


def find_slower_revision(
    case: Case,
    *,
    good: str,
    bad: str,
    device: DeviceKind,
    threads: int,
    limit: float,
    worker_command: Sequence[str] = WORKER_COMMAND,
    tell: Callable[[str], None] = lambda _: None,
) -> Found:
    """Bisect between a fast and a slow revision.

    Args:
        case: what got slower.
        good, bad: revisions of the repository around the working directory, the good one an ancestor of the bad one.
        device, threads: where it is measured.
        limit: the least relative change that counts.
        worker_command: starts the worker of a pair.
        tell: told what happens.

    Raises:
        UsageError: a revision is not there or has no kernels, good is no ancestor of bad, both have the same kernels,
            or bad is not slower than good.
        BenchError: git cannot bisect, or a step failed.
    """
    here = Path.cwd()
    good, bad = revision_of(good), revision_of(bad)
    _, bad_commit = (
        git(here, "rev-parse", "--verify", f"{name}^{{commit}}", what=f"revision {name!r}") for name in (good, bad)
    )
    if subprocess.run(["git", "-C", str(here), "merge-base", "--is-ancestor", good, bad], check=False).returncode:
        raise UsageError(f"--good {good}: is no ancestor of {bad}, expected an earlier revision of the same line")
    with (
        tempfile.TemporaryDirectory(prefix="bsa-bench-bisect-") as folder,
        revision_sources(good, here) as good_sources,
        revision_sources(bad, here) as bad_sources,
    ):
        digests = [_digest(folder, name) for folder, name in ((good_sources, good), (bad_sources, bad))]
        if digests[0] == digests[1]:
            raise UsageError(f"{bad} against {good}: have the same kernels, comments aside; there is nothing to find")
        state = State(
            case=case,
            good_kernels=str(good_sources / "kernels"),
            bad_kernels=str(bad_sources / "kernels"),
            runs_jitted=runs_jitted(case, device),
            target=_target(case, device, threads),
            device=device,
            threads=threads,
            limit=limit,
            logs=str(Path(folder) / "logs"),
            worker_command=tuple(worker_command),
        )
        has_same_host = host_digest(good_sources) == host_digest(bad_sources)
        if has_same_host and (why := _why_same(state, bad_sources, good_sources, good)):
            raise UsageError(f"{bad} against {good}: {why}; there is nothing to find")
        tell(f"measuring {bad} against {good}")
        check = _measure(state, bad_sources / "kernels", bad)
        if check.verdict is not Verdict.SLOWER or check.pairs is None:
            reason = f" ({check.reason})" if check.reason else ""
            raise UsageError(
                f"{bad} against {good}: {case.case_id} is {check.verdict}{reason}, there is nothing to find"
            )
        ratio = check.pairs.ratio
        state = state.model_copy(update={"limit": math.expm1(math.log(ratio) / 2)})
        place = Path(folder) / "state.json"
        write_whole(place, state.model_dump_json())
        with work_tree(here, Path(folder) / "tree", bad) as tree:
            git(tree, "bisect", "start", bad, good, "--", what="git bisect")
            tell(f"{bad} is {ratio:.2f}x as slow as {good}; bisecting")
            text = run_bisect(tree, place)
            first = first_bad(tree, text)
            candidates = () if first else candidates_in(text)
        steps = State.model_validate_json(place.read_text(encoding="utf-8")).steps
    if first is not None and first != bad_commit and not any(s.commit == first and s.judgement == "bad" for s in steps):
        raise BenchError(f"git bisect came to {first}, which no step judged:\n{text}")
    subject = git(here, "log", "-1", "--format=%s", first, what=first) if first else None
    return Found(commit=first, subject=subject, candidates=candidates, ratio=ratio, steps=steps)


def judge_here(place: Path) -> int:
    """Judge the revision checked out in the working directory; the exit code for `git bisect run`.

    Raises:
        UsageError: the file is no state of a bisection.
    """
    try:
        state = State.model_validate_json(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{place}: expected what `bsa-bench bisect` wrote: {error}") from error
    tree = Path.cwd()
    step = _judge(state, tree, git(tree, "rev-parse", "HEAD", what="HEAD"))
    write_whole(place, state.model_copy(update={"steps": (*state.steps, step)}).model_dump_json())
    return _CODES[step.judgement]


def _judge(state: State, tree: Path, commit: str) -> Step:
    kernels = tree / "kernels"
    if not _package(tree).is_dir():
        return Step(commit=commit, judgement="skipped", reason="it has no kernels/bsa_kernels")
    try:
        sources = sources_digest(_package(tree))
    except SyntaxError as error:
        return Step(commit=commit, judgement="skipped", reason=f"its sources do not parse: {error}")
    host = host_digest(tree)
    step = partial(Step, commit=commit, sources=sources, host=host)
    ends: tuple[tuple[Path, Judgement], ...] = (
        (Path(state.good_kernels).parent, "good"),
        (Path(state.bad_kernels).parent, "bad"),
    )
    for folder, end in ends:
        if sources == sources_digest(_package(folder)):
            return step(judgement=end, reason=f"its sources are those of the {end} one")
    judged = [step for step in state.steps if step.judgement != "skipped"]
    for known in judged:
        if sources == known.sources:
            reason = f"its sources are those of {known.commit[:12]}"
            return step(judgement=known.judgement, ratio=known.ratio, reason=reason)
    for folder, end in ends:
        if host == host_digest(folder) and (why := _why_same(state, tree, folder, f"the {end} one")):
            return step(judgement=end, reason=why)
    for known in judged:
        if host != known.host:
            continue
        with revision_sources(known.commit, tree) as folder:
            if why := _why_same(state, tree, folder, known.commit[:12]):
                return step(judgement=known.judgement, ratio=known.ratio, reason=why)
    check = _measure(state, kernels, commit[:12])
    judgement = _JUDGEMENTS.get(check.verdict, "skipped")
    ratio = check.pairs.ratio if check.pairs else None
    return step(judgement=judgement, ratio=ratio, reason=check.reason)


def _why_same(state: State, revision: Path, other: Path, name: str) -> str | None:
    """Why a revision need not be measured where another of the same host code was; None where it has to be."""
    if not state.runs_jitted:
        return f"differs from {name} in jitted functions alone, which the case does not run"
    if state.target is not None and same_machine_code(revision, other, state.target):
        return f"the same machine code as {name}"
    return None


def _target(case: Case, device: DeviceKind, threads: int) -> Target | None:
    if device == "cpu":
        return None
    return target_of(case, probe({}, device=device, threads=threads).environment, default_cache())


def _measure(state: State, kernels: Path, label: str) -> Check:
    policy = policy_for(state.device, limit=state.limit)
    bench = LockstepBench(
        {state.case.case_id: state.case},
        base=PairSide(label="good", first_paths=(Path(state.good_kernels),), command=state.worker_command),
        head=PairSide(label=label, first_paths=(kernels,), command=state.worker_command),
        settings=LockstepSettings(
            device=state.device, threads=state.threads, logs=Path(state.logs), turn_error=policy.turn_error
        ),
    )
    (check,) = decide([state.case.case_id], bench, policy, tier=tier_of(state.device))
    return check


def _package(revision: Path) -> Path:
    return revision / "kernels" / "bsa_kernels"


def _digest(folder: Path, name: str) -> str:
    """The digest of a revision's kernels."""
    if not _package(folder).is_dir():
        raise UsageError(f"revision {name!r}: has no kernels/bsa_kernels, expected a revision of bsa-bench")
    try:
        return sources_digest(_package(folder))
    except SyntaxError as error:
        raise UsageError(f"revision {name!r}: its kernels do not parse: {error}") from error
