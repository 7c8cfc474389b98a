"""`assert_not_slower`, by pytest inside of pytest: verdicts on a scripted machine, and the sides of real revisions."""

import contextlib
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from gate_factory import OUT_OF_MEMORY_ON_BASE, WRONG, Scripted, ScriptedBench, always
from git_factory import Repository
from pair_factory import Workers, kernels
from pytest_factory import SHAPE, Machine
from run_factory import case

from bsa_bench.errors import UsageError
from bsa_bench.gate import sides
from bsa_bench.gate.lockstep import PairSide
from bsa_bench.gate.pair_job import Reply
from bsa_bench.gate.sides import run_the_same
from bsa_bench.gate.two_stage import Problem
from bsa_bench.gate.verdict import Verdict
from bsa_bench.pytest_support import not_slower
from bsa_bench.pytest_support.not_slower import open_sides
from bsa_bench.pytest_support.settings import Comparison
from bsa_bench.result import Status

pytest_plugins = ["pytester"]

DISTURBED = always(Problem(Verdict.INFRA_ERROR, "the GPU throttled"))


def a_test(arguments="", implementation="bsa@gather", *, name="test_it", then=""):
    return f"""
def {name}(bsa_case):
    check = bsa_case("{implementation}", {SHAPE}).assert_not_slower(than="main"{arguments})
    {then}
"""


@pytest.fixture
def machine(pytester, monkeypatch):
    return Machine(pytester, monkeypatch)


@pytest.fixture
def scripted(machine, monkeypatch):
    """Let pairs come to what a script says; `scripted(Scripted(effect=0.3))`, with another script for the control."""
    benches = []

    class Bench(ScriptedBench):
        def __init__(self, cases, *, settings, **_):
            first, *controls = cases
            own, control = benches[0]
            super().__init__({first: own} | dict.fromkeys(controls, control))
            self.settings = settings
            benches.append(self)

        def probe(self):
            own = benches[0][0].__dict__
            return Reply(sources="old"), own.get("head", Reply(sources=own.get("sources", "new")))

    @contextlib.contextmanager
    def no_sides(than, paths, case):
        assert (than, paths) == ("main", ())
        yield PairSide(label="main"), PairSide(label="the work tree")

    monkeypatch.setattr(not_slower, "LockstepBench", Bench)
    monkeypatch.setattr(not_slower, "open_sides", no_sides)

    def script(own, control=None):
        benches.insert(0, (own, control or Scripted()))
        return benches

    return script


def run(machine, *tests):
    return machine.run(*tests, options=("--bsa-device", "cpu"))


@pytest.mark.parametrize(("effect", "verdict"), [(0.0, "SAME"), (-0.3, "FASTER")])
def test_a_case_that_is_no_slower_passes_and_gives_its_check(machine, scripted, effect, verdict):
    benches = scripted(Scripted(effect=effect))
    result = run(machine, a_test(then=f"assert check.verdict == '{verdict}' and check.tier == 2 and check.pairs"))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"bsa@gather/*/forward is {verdict} against main: *x [[]*], *, detectable *, * pairs"])
    assert list(benches[1].cases)[1].startswith("full@sdpa-flash/")


def test_a_slower_case_fails_with_ratio_interval_pairs_and_what_they_find(machine, scripted):
    scripted(Scripted(effect=0.3))
    result = run(machine, a_test())
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*Failed: bsa@gather/* is SLOWER against main: 1.*x [[]1.*, 1.*], 50* ms -> 6* ms, limit 5%*, 4 pairs",
            "E*at this machine's noise, slow-downs from *% on are found 8 times in 10",
            "E*control full@sdpa-flash/* is SAME against main: *",
        ]
    )
    result.stdout.no_fnmatch_line("*not_slower.py*")


def test_a_larger_limit_lets_the_same_change_pass(machine, scripted):
    scripted(Scripted(effect=0.08, between=0.002), Scripted(between=0.002))
    run(machine, a_test(", limit=0.2")).assert_outcomes(passed=1)


def test_a_limit_that_noise_has_raised_is_warned_of(machine, scripted):
    scripted(Scripted(between=0.06), Scripted(between=0.06))
    result = run(machine, a_test())
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*BsaTimingWarning: bsa@gather/*: the limit came to *%, asked for was 5.0%: *"])


def test_a_wrong_case_fails(machine, scripted):
    scripted(Scripted(sample=always(WRONG)))
    result = run(machine, a_test())
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*Failed: bsa@gather/* is WRONG against main: head: outside the error budget"])


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [("", {"failed": 1}), (", on_ambiguous='skip'", {"skipped": 1}), (", on_ambiguous='pass'", {"passed": 1})],
)
def test_an_ambiguous_case_comes_to_what_the_test_says(machine, scripted, arguments, outcome):
    scripted(Scripted(between=0.002, slow_modes=(0.0, 0.3), slow_share=(False, True)))
    result = run(machine, a_test(arguments))
    result.assert_outcomes(**outcome)
    result.stdout.fnmatch_lines(["*bsa@gather/* is AMBIGUOUS against main: *, detectable *%, * pairs*"])


@pytest.mark.parametrize(("arguments", "outcome"), [("", {"failed": 1}), (", on_infra='skip'", {"skipped": 1})])
@pytest.mark.parametrize(
    "scripts", [(Scripted(sample=DISTURBED),), (Scripted(), Scripted(effect=0.5))], ids=["own", "control"]
)
def test_a_disturbed_measurement_never_passes(machine, scripted, arguments, outcome, scripts):
    scripted(*scripts)
    result = run(machine, a_test(arguments))
    result.assert_outcomes(**outcome)
    result.stdout.fnmatch_lines(["*INFRA_ERROR: bsa@gather/* is INFRA_ERROR against main: *"])


def test_what_the_base_cannot_run_is_skipped(machine, scripted):
    scripted(Scripted(sample=always(OUT_OF_MEMORY_ON_BASE)))
    result = run(machine, a_test())
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*bsa@gather/* is NOT_MEASURED against main: base came to OOM"])


def test_a_head_that_failed_once_passes_with_a_warning(machine, scripted):
    failed = Problem(Verdict.FAILED, "head came to CRASHED, the base did not")
    scripted(Scripted(sample=lambda number, sample: failed if number == 1 else sample))
    result = run(machine, a_test())
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*is WARNING against main: *", "*the head failed in one pair*"])


def test_equal_sources_pass_untimed(machine, scripted):
    same = Scripted()
    same.sources = "old"
    benches = scripted(same)
    result = run(machine, a_test(then="assert check.verdict == 'UNCHANGED'"))
    result.assert_outcomes(passed=1)
    assert benches[1].visits == []


def test_sources_that_cannot_be_started_fail(machine, scripted):
    broken = Scripted()
    broken.head = Reply(status=Status.CRASHED, reason="its process ended with exit code 1: ImportError")
    benches = scripted(broken)
    result = run(machine, a_test())
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*is FAILED against main: the work tree cannot be started: its process ended with*"])
    assert benches[1].visits == []


def test_the_sources_as_they_are_are_no_revision_to_compare_with():
    with pytest.raises(UsageError, match=r"assert_not_slower: than: got '\.', .*, expected a revision"):
        Comparison(than=".")


@pytest.mark.slow
def test_tests_share_a_comparison_unless_it_asks_for_something_else(machine, scripted):
    benches = scripted(Scripted())
    run(machine, a_test(), a_test(name="test_b"), a_test(", limit=0.5", name="test_c")).assert_outcomes(passed=3)
    assert len(benches) == 3  # the scripts, and two benches


@pytest.mark.parametrize(
    ("implementation", "reason"),
    [("full@sdpa-cudnn", "is UNSUPPORTED here: no GPU"), ("bsa@triton", "has no time here that could be compared")],
)
def test_what_cannot_be_timed_here_is_skipped(machine, scripted, implementation, reason):
    benches = scripted(Scripted())
    machine.lacks("full@sdpa-cudnn", "no GPU")
    result = run(machine, a_test(implementation=implementation))
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED*{implementation}/*{reason}"])
    assert len(benches) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (", limit=0", "assert_not_slower: limit: got 0, expected a number above 0"),
        (", budget_s=-1", "assert_not_slower: budget_s: got -1, expected a number above 0"),
        (", on_ambiguous='warn'", "on_ambiguous: got 'warn', expected fail, skip or pass"),
        (", on_infra='pass'", "on_infra: got 'pass', expected fail or skip"),
    ],
)
def test_wrong_arguments_are_refused(machine, scripted, arguments, message):
    scripted(Scripted())
    result = run(machine, a_test(arguments))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E*UsageError: {message}"])


def test_time_that_is_over_leaves_nothing_measured(machine, scripted):
    scripted(Scripted())
    result = run(machine, a_test(", budget_s=1e-9"))
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*is NOT_MEASURED against main: no time was left for it"])


@pytest.mark.slow
def test_pairs_of_processes_find_kernels_that_are_slower(machine, monkeypatch, tmp_path):
    workers = Workers(tmp_path, call_s=0.05)
    base, head = (
        workers.side(role, first_paths=(kernels(tmp_path / role, speed),))
        for role, speed in (("base", 1), ("head", 1.5))
    )

    @contextlib.contextmanager
    def toy_sides(than, paths, case):
        yield base, head

    monkeypatch.setattr(not_slower, "open_sides", toy_sides)
    monkeypatch.setattr(not_slower, "CONTROL_ENGINES", ())  # the toy kernels would slow a control down too
    result = run(machine, a_test())
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E*Failed: bsa@gather/* is SLOWER against main: 1.[45]*x [[]*], * ms -> 7* ms, *, 4 pairs"]
    )


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of somebody's own with the package `mine` under src."""
    made = Repository(tmp_path / "repo")
    (made.folder / "src" / "mine").mkdir(parents=True)
    (made.folder / "src" / "mine" / "__init__.py").write_text("SPEED = 1\n")
    made.commit("first")
    monkeypatch.chdir(made.folder)
    entry = EntryPoint("mine", "mine.engine:ENGINE", "bsa_bench.engines")
    monkeypatch.setattr(
        sides, "entry_points", lambda group, name: [entry] if (entry.group, entry.name) == (group, name) else []
    )
    return made


@pytest.fixture
def mine():
    return case().model_copy(update={"implementation": "full@mine"})


def test_the_sides_of_somebodys_own_packages(repository, mine):
    kernels = [Reply(sources="installed")] * 2
    module = repository.folder / "src" / "mine" / "__init__.py"
    with open_sides("main", [Path("src")], mine) as same:
        assert run_the_same(same, kernels)
    module.write_text("SPEED = 2  # faster\n")
    with open_sides("main", [Path("src")], mine) as (base, head):
        assert not run_the_same((base, head), kernels)
        texts = [(side.first_paths[0] / "mine" / "__init__.py").read_text() for side in (base, head)]
        assert texts == ["SPEED = 1\n", "SPEED = 2  # faster\n"]
        assert (base.label, head.label) == ("main", "the work tree")
    assert not base.first_paths[0].exists()
    module.write_text("SPEED = \n")
    with open_sides("main", [Path("src")], mine) as broken:
        assert not run_the_same(broken, kernels)


def test_sides_that_would_be_the_same_by_mistake_are_refused(repository, mine):
    (repository.folder / "other").mkdir()
    for revision, path, of, message in (
        ("main", None, mine, r"expected a revision of bsa-bench; of another repository, .* packages with bsa_paths"),
        ("main", "lib", mine, r"bsa_paths lib: expected a folder relative to the top of the repository, in main"),
        ("HEAD", "other", mine, r"bsa_paths other: expected a folder .*, in HEAD"),
        # One level too deep, the package would be found where it is installed.
        ("main", "src/mine", mine, r"bsa_paths: no folder in main holds bsa_kernels or mine, which full@mine runs"),
        ("main", "src", case(), r"bsa_paths: no folder in main holds bsa_kernels, which full@sdpa-flash runs"),
        ("main", "../repo/src", mine, r"bsa_paths: got '\.\./repo/src', expected folders inside the repository"),
        ("no-such", "src", mine, r"revision 'no-such': no such commit, branch or tag here"),
    ):
        paths = [Path(path)] if path else []
        with pytest.raises(UsageError, match=message), open_sides(revision, paths, of):
            pass


def test_a_side_without_the_package_and_a_place_without_a_repository_are_refused(
    repository, mine, tmp_path, monkeypatch
):
    (repository.folder / "src" / "other.py").write_text("")
    repository.commit("second")
    shutil.rmtree(repository.folder / "src" / "mine")
    with (
        pytest.raises(UsageError, match="bsa_paths: no folder in the work tree holds bsa_kernels or mine, which"),
        open_sides("main", [Path("src")], mine),
    ):
        pass
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(UsageError, match=r"revision 'main': .*not a git repository"), open_sides("main", [], mine):
        pass
