"""Find the revision since which a case is slower: `git bisect run` in a work tree of its own, judged by pairs.

The known effect tells what to look for: a revision is bad if it is slower than the good one by more than half of it.
Revisions whose sources are those of one that was judged before (comments aside) are judged without a measurement.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from bsa_bench.errors import BenchError, StoreError, UsageError
from bsa_bench.gate.lockstep import WORKER_COMMAND, LockstepBench, LockstepSettings, PairSide
from bsa_bench.gate.pair_process import own_paths
from bsa_bench.gate.policy import policy_for
from bsa_bench.gate.sides import revision_of
from bsa_bench.gate.two_stage import decide
from bsa_bench.gate.verdict import Check, Verdict, tier_of
from bsa_bench.result import Case, Line
from bsa_bench.run.job import DeviceKind
from bsa_bench.run.sources import sources_digest
from bsa_bench.static.toolchain import revision_sources
from bsa_bench.store.whole_file import write_whole

GOOD, BAD, SKIP, ABORT = 0, 1, 125, 255
"""What `git bisect run` makes of a step's exit code; anything else from 1 to 127 is bad too."""
_GRACE_S = 5.0
Judgement = Literal["good", "bad", "skipped"]
_JUDGEMENTS: dict[Verdict, Judgement] = {Verdict.SLOWER: "bad", Verdict.SAME: "good", Verdict.FASTER: "good"}
"""What else a revision comes to says nothing of its speed."""
_CODES: dict[Judgement, int] = {"good": GOOD, "bad": BAD, "skipped": SKIP}


class Step(Line):
    """What became of one revision.

    Args:
        sources: digest of its kernels, null where it has none.
        ratio: over the good revision; null where it was not measured.
        reason: why it was skipped, or judged without a measurement.
    """

    commit: str
    judgement: Judgement
    sources: str | None = None
    ratio: float | None = None
    reason: str | None = None


class State(Line):
    """What a step has to know; a file that the steps add to."""

    case: Case
    good_kernels: str
    bad_sources: str
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
        _git(here, "rev-parse", "--verify", f"{name}^{{commit}}", what=f"revision {name!r}") for name in (good, bad)
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
            bad_sources=digests[1],
            device=device,
            threads=threads,
            limit=limit,
            logs=str(Path(folder) / "logs"),
            worker_command=tuple(worker_command),
        )
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
        with _work_tree(here, Path(folder) / "tree", bad) as tree:
            _git(tree, "bisect", "start", bad, good, "--", what="git bisect")
            tell(f"{bad} is {ratio:.2f}x as slow as {good}; bisecting")
            text = _run_bisect(tree, place)
            first = _first_bad(tree, text)
            candidates = () if first else _candidates(text)
        steps = State.model_validate_json(place.read_text(encoding="utf-8")).steps
    if first is not None and first != bad_commit and not any(s.commit == first and s.judgement == "bad" for s in steps):
        raise BenchError(f"git bisect came to {first}, which no step judged:\n{text}")
    subject = _git(here, "log", "-1", "--format=%s", first, what=first) if first else None
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
    step = _judge(state, tree, _git(tree, "rev-parse", "HEAD", what="HEAD"))
    write_whole(place, state.model_copy(update={"steps": (*state.steps, step)}).model_dump_json())
    return _CODES[step.judgement]


def _judge(state: State, tree: Path, commit: str) -> Step:
    kernels = tree / "kernels"
    if not (kernels / "bsa_kernels").is_dir():
        return Step(commit=commit, judgement="skipped", reason="it has no kernels/bsa_kernels")
    try:
        sources = sources_digest(kernels / "bsa_kernels")
    except SyntaxError as error:
        return Step(commit=commit, judgement="skipped", reason=f"its sources do not parse: {error}")
    if sources == sources_digest(Path(state.good_kernels) / "bsa_kernels"):
        return Step(commit=commit, judgement="good", sources=sources, reason="its sources are those of the good one")
    if sources == state.bad_sources:
        return Step(commit=commit, judgement="bad", sources=sources, reason="its sources are those of the bad one")
    known = next((step for step in state.steps if step.sources == sources and step.judgement != "skipped"), None)
    if known is not None:
        why = f"its sources are those of {known.commit[:12]}"
        return known.model_copy(update={"commit": commit, "reason": why})
    check = _measure(state, kernels, commit[:12])
    judgement = _JUDGEMENTS.get(check.verdict, "skipped")
    return Step(
        commit=commit,
        judgement=judgement,
        sources=sources,
        ratio=check.pairs.ratio if check.pairs else None,
        reason=check.reason,
    )


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


@contextmanager
def _work_tree(repository: Path, tree: Path, revision: str) -> Iterator[Path]:
    try:
        _git(repository, "worktree", "add", "--quiet", "--detach", str(tree), revision, what=f"revision {revision!r}")
        yield tree
    finally:
        # The refs of a bisection are those of its work tree and go with it.
        command = ["git", "-C", str(repository), "worktree", "remove", "--force", "--force", str(tree)]
        subprocess.run(command, capture_output=True, check=False)


def _run_bisect(tree: Path, place: Path) -> str:
    # The judge is this code, whatever revision is checked out; its kernels are named by path.
    paths = os.pathsep.join([*map(str, own_paths()), *filter(None, [os.environ.get("PYTHONPATH")])])
    # LANGUAGE: what git says is read below. A session of its own: an interrupt reaches us alone, and we end all of it.
    process = subprocess.Popen(
        ["git", "bisect", "run", sys.executable, "-P", "-m", "bsa_bench", "bisect-step", str(place)],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "LANGUAGE": "en"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        text, _ = process.communicate()
    finally:
        if process.returncode is None:
            _end(process)
    if process.returncode and "cannot bisect more" not in text:
        last = "\n".join(text.strip().splitlines()[-6:])
        raise BenchError(f"git bisect run ended with exit code {process.returncode}:\n{last}")
    return text


def _end(process: subprocess.Popen[str]) -> None:
    """End git and the step that it runs, which ends its workers if it is given the time."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _first_bad(tree: Path, text: str) -> str | None:
    if "is the first" not in text:
        return None
    return _git(tree, "rev-parse", "refs/bisect/bad", what="git bisect")


def _candidates(text: str) -> tuple[str, ...]:
    return tuple(line for line in text.splitlines() if len(line) == 40 and all(c in "0123456789abcdef" for c in line))


def _digest(folder: Path, name: str) -> str:
    """The digest of a revision's kernels."""
    if not (folder / "kernels" / "bsa_kernels").is_dir():
        raise UsageError(f"revision {name!r}: has no kernels/bsa_kernels, expected a revision of bsa-bench")
    try:
        return sources_digest(folder / "kernels" / "bsa_kernels")
    except SyntaxError as error:
        raise UsageError(f"revision {name!r}: its kernels do not parse: {error}") from error


def _git(folder: Path, *arguments: str, what: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise StoreError(f"git cannot be started: {error}") from error
    if done.returncode != 0:
        raise UsageError(f"{what}: {done.stderr.strip() or 'not known to git here'}")
    return done.stdout.strip()
