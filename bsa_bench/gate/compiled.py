"""Tier 0 of the gate: did anything compile to worse code? Needs Triton and no GPU."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bsa_bench.gate.compiled_baseline import Baseline, read_baseline
from bsa_bench.gate.compiled_compare import compare_compiled
from bsa_bench.gate.compiled_figures import CompiledFigures, Key, figures_of
from bsa_bench.gate.verdict import TierResult
from bsa_bench.static.analyse import Analysis, analyse
from bsa_bench.static.compile import Compiled, Failure, Settings, Workers, compile_all, default_cache
from bsa_bench.static.config import ARCH_NAMES, ArchName, KernelConfig
from bsa_bench.static.sides import HERE, Choice, configurations, fits, open_side, pick_jobs

_NO_LINES = "the baseline keeps figures alone: compare with a revision to see changed instructions"

Progress = Callable[[int, int], None]
"""Told how many compilations are done, and of how many."""


@dataclass
class _Built:
    """One side. Texts and readings are large: they are read again where they are wanted."""

    label: str
    figures: list[CompiledFigures] = field(default_factory=list)
    compiled: dict[Key, Compiled] = field(default_factory=dict)

    def look(self, key: Key) -> Analysis | None:
        found = self.compiled.get(key)
        (analysis,) = analyse([replace(found)], []) if found else (None,)
        return None if isinstance(analysis, Failure) else analysis

    @property
    def triton(self) -> str | None:
        return next((each.code.triton for each in self.figures if each.code), None)


def run_compiled_tier(
    base: str | Path,
    *,
    head: str = HERE,
    archs: Sequence[ArchName] = ARCH_NAMES,
    only: Sequence[str] = (),
    config: Path | None = None,
    kernel: str | None = None,
    cache: Path | None = None,
    use_cache: bool = True,
    jobs: int | None = None,
    progress: Progress = lambda _done, _total: None,
) -> tuple[TierResult, list[CompiledFigures]]:
    """Compile the project's kernels, or a user's, and compare what they compile to with the base.

    Args:
        base: a baseline file (a Path), or a side that is compiled now as the head is (a str): a git revision or
            `triton==VERSION`.
        head: a side: these sources, unless another is named.
        archs: to compile for.
        only: patterns of configuration names; all without one.
        config, kernel: a user's file of configurations, and the kernel that takes the place of the file's own.
        cache: where compiled code is kept, by default the user's cache.
        use_cache: take from there what it has.
        jobs: compilations at a time, by default one a core.
        progress: told about each compilation of either side.

    Returns:
        The tier, not measured where it cannot be, with the reason; and the head's figures, to accept as a baseline.

    Raises:
        UsageError: a side, a pattern or the baseline is wrong.
        StoreError: the cache cannot be written.
    """
    started = time.monotonic()
    if importlib.util.find_spec("triton") is None:
        return TierResult(tier=0, reason="Triton is not installed, and nothing compiles without it"), []
    settings = Settings(cache or default_cache(), use_cache=use_cache)
    settings = replace(settings, processes=jobs) if jobs else settings
    baseline = read_baseline(base) if isinstance(base, Path) else None
    choice = Choice(only=only, archs=archs, config=config, kernel=kernel)
    before, after = _build(base, head, choice, settings, baseline, progress)
    result = _compare(before, after, baseline)
    return result.model_copy(update={"wall_s": time.monotonic() - started}), after.figures


def _build(
    base: str | Path,
    head: str,
    choice: Choice,
    settings: Settings,
    baseline: Baseline | None,
    progress: Progress,
) -> tuple[_Built, _Built]:
    with contextlib.ExitStack() as stack:
        sides = {"head": stack.enter_context(open_side(head, choice, settings))}
        if isinstance(base, str):
            sides["base"] = stack.enter_context(open_side(base, choice, settings))
        workers = {side: stack.enter_context(Workers(how.toolchain)) for side, (_, how) in sides.items()}
        listed = {side: configurations(own, workers[side]) for side, (own, _) in sides.items()}
        names = {side: {c.name for configs in by_arch.values() for c in configs} for side, by_arch in listed.items()}
        if baseline:
            names["base"] = {each.name for each in baseline.configurations}
        jobs = {
            side: pick_jobs(by_arch, choice.only, elsewhere=names["base" if side == "head" else "head"])
            for side, by_arch in listed.items()
        }
        total, done = sum(map(len, jobs.values())), 0

        def on_done(_: object) -> None:
            nonlocal done
            done += 1
            progress(done, total)

        after = _compile(head, jobs["head"], sides["head"][1], workers["head"], on_done)
        if baseline is None:
            return _compile(str(base), jobs["base"], sides["base"][1], workers["base"], on_done), after
    kept = [e for e in baseline.configurations if e.arch in choice.archs and fits(e.name, choice.only)]
    return _Built(str(base), kept), after


def _compile(
    label: str,
    jobs: Sequence[tuple[KernelConfig, ArchName]],
    settings: Settings,
    workers: Workers,
    on_done: Callable[[Compiled | Failure], None],
) -> _Built:
    built = _Built(label)
    with workers:  # which end before the other side's take their place
        done = compile_all(jobs, settings, workers=workers, on_done=on_done) if jobs else []
    for each in done:
        if isinstance(each, Compiled):
            built.compiled[each.config.name, each.arch] = each
            (read,) = analyse([replace(each)], [])
            built.figures.append(figures_of(read))
        else:
            built.figures.append(figures_of(each))
    return built


def _compare(base: _Built, head: _Built, baseline: Baseline | None) -> TierResult:
    if baseline is not None and head.triton not in {None, baseline.provenance.triton}:
        reason = (
            f"baseline is of triton {baseline.provenance.triton}, this is {head.triton}; compare with a base revision, "
            "or accept a new one"
        )
        return TierResult(tier=0, reason=reason)
    checks = compare_compiled(base.figures, head.figures, base_code=base.look, head_code=head.look)
    return TierResult(tier=0, checks=tuple(checks), notes=_notes(base, head, baseline))


def _notes(base: _Built, head: _Built, baseline: Baseline | None) -> tuple[str, ...]:
    if baseline is not None:
        made = baseline.provenance
        commit = (
            f"of commit {made.commit[:12]}{' with changes' if made.dirty else ''}" if made.commit else "of no commit"
        )
        what = f"{base.label}, {commit}, Triton {made.triton}, accepted {made.utc}: {made.reason}"
        return (f"base: {what}", f"head: {head.label}, Triton {head.triton or 'unknown'}", _NO_LINES)
    return tuple(f"{s}: {b.label}, Triton {b.triton or 'unknown'}" for s, b in (("base", base), ("head", head)))
