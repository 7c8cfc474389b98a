import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from git_factory import Repository
from run_factory import case

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.gate import run, sides
from bsa_bench.gate.acceptance import read_acceptances
from bsa_bench.gate.execution import ExecutionRequest, Selection, run_execution_tier, select
from bsa_bench.gate.lockstep import PairSide
from bsa_bench.gate.policy import policy_for
from bsa_bench.gate.run import GateRequest, Outcome, accept
from bsa_bench.gate.sides import (
    ROOT,
    check_here,
    compute_the_same,
    describe_side,
    has_revision,
    not_held,
    open_pair_side,
    own_packages,
)
from bsa_bench.gate.verdict import Check, GateResult, Side, TierResult, Verdict
from bsa_bench.run.probe import Probe


@pytest.fixture
def repository(tmp_path, monkeypatch):
    made = Repository(tmp_path / "repository")
    monkeypatch.chdir(made.folder)
    made.commit("empty")
    made.commit("start", a__py="x = 1\n")
    return made


def test_a_revision_has_its_own_kernels_and_only_if_asked_its_own_bench(repository):
    with open_pair_side("git:HEAD") as side:
        (kernels,) = side.first_paths
        assert side.label == "git:HEAD"
        assert (kernels / "bsa_kernels" / "a.py").read_text() == "x = 1\n"
    assert not kernels.exists()
    with open_pair_side("main", own_bench=True) as side:
        names = [path.name for path in side.first_paths]
        assert names[1:] == ["suites", "kernels"]
        assert side.first_paths[0] == side.first_paths[2].parent
    with open_pair_side(".") as side:
        assert (side.first_paths, side.label) == ((), "the work tree")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HEAD~1", "revision 'HEAD~1': has no kernels/bsa_kernels, expected a revision of bsa-bench"),
        ("nowhere", "revision 'nowhere': no such commit, branch or tag here"),
    ],
)
def test_what_is_no_side_is_named(repository, name, message):
    with pytest.raises(UsageError, match=message), open_pair_side(name):
        pass


def test_a_side_is_stored_with_its_commit(repository):
    commit = repository.git("rev-parse", "HEAD")
    assert describe_side("git:HEAD") == Side(label="git:HEAD", commit=commit)
    assert describe_side("triton==3.6.0") == Side(label="triton==3.6.0")
    assert has_revision("HEAD")
    assert not has_revision("HEAD~9")
    assert not has_revision("--help")


def test_these_sources_are_dirty_with_a_file_that_git_does_not_know(tmp_path, monkeypatch):
    clone = tmp_path / "clone"
    repository = Repository(clone)
    repository.commit("start", a__py="x = 1\n")
    monkeypatch.setattr("bsa_bench.gate.sides.ROOT", clone)
    assert describe_side(".").dirty is False
    assert describe_side(".").commit == repository.git("rev-parse", "HEAD")
    (clone / "kernels" / "bsa_kernels" / "new.py").write_text("")
    assert describe_side(".").dirty is True
    shutil.rmtree(clone / ".git")
    assert describe_side(".") == Side(label="the work tree")


def test_another_checkout_is_no_place_to_measure_these_sources_from(repository):
    check_here()  # it has no bench of its own
    (repository.folder / "bsa_bench").mkdir()
    with pytest.raises(
        UsageError, match=f"the working directory is the checkout .*, the bsa-bench that runs is.*{ROOT}"
    ):
        check_here()


def test_a_folder_without_git_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_here()
    assert not has_revision("HEAD")


def test_the_cases_of_a_suite_are_sorted_by_what_can_be_learnt_here(tmp_path, monkeypatch):
    from test_gate_cli import SUITE, fake_probe

    def without_gather_backward(questions, **more):
        found = fake_probe(questions, **more)
        reasons = {q: "no backward" if q[0] == "bsa@gather" and q[3] else None for q in found.reasons}
        return Probe(found.environment, reasons | {q: "no" for q in reasons if q[0] == "full@flex"})

    monkeypatch.setattr("bsa_bench.gate.execution.probe", without_gather_backward)
    (tmp_path / "s.toml").write_text(SUITE)
    overrides = [
        "passes=forward,backward",
        "implementation=full@flex,full@sdpa-math,full@sdpa-flash,bsa@gather,bsa@triton",
    ]
    found = select(str(tmp_path / "s.toml"), overrides, "cpu", threads=1)
    assert isinstance(found, Selection)

    def names(cases):
        return [(each.implementation, each.passes) for each in cases.values()]

    assert names(found.timed) == [("bsa@gather", "forward")]
    assert names(found.controls) == [("full@sdpa-flash", "forward")]
    assert names(found.verified) == [("bsa@triton", "backward")]  # which has the forward's output too
    assert list(found.left_out.values()) == ["no backward"]


def test_what_a_gate_leaves_out_unless_it_is_named_is_told_with_the_reason(tmp_path, monkeypatch):
    from test_gate_cli import SUITE, fake_probe

    monkeypatch.setattr("bsa_bench.gate.execution.probe", fake_probe)
    text = SUITE.replace('"full@sdpa-flash", "bsa@gather", "bsa@triton"', '"bsa@gather", "bsa@flex"')
    (tmp_path / "s.toml").write_text(text.replace('["forward", ', '["forward", "backward", '))

    def timed(*overrides):
        found = select(str(tmp_path / "s.toml"), overrides, "cpu", threads=1)
        return [(each.implementation, each.passes) for each in found.timed.values()], list(found.left_out.values())

    names, reasons = timed()
    assert names == [("bsa@gather", "forward"), ("bsa@gather", "forward+backward")]
    assert [reason[:30] for reason in reasons] == [
        "a backward is timed within for",
        "flex compiles for seconds in e",
        "a backward is timed within for",
        "flex compiles for seconds in e",
    ]
    assert ("bsa@gather", "backward") in timed("passes=forward,backward,forward+backward")[0]
    assert ("bsa@flex", "forward") in timed("implementation=bsa@flex")[0]


def test_paths_are_the_sides_own_and_are_taken_from_each_revision(repository):
    (repository.folder / "src").mkdir()
    (repository.folder / "src" / "mine.py").write_text("x = 1\n")
    repository.commit("mine")
    (repository.folder / "src" / "mine.py").write_text("x = 2\n")
    with open_pair_side("HEAD", paths=[Path("src")]) as base, open_pair_side(".", paths=[Path("src")]) as head:
        assert [(side.first_paths[0] / "mine.py").read_text() for side in (base, head)] == ["x = 1\n", "x = 2\n"]
        assert head.first_paths == head.own_code == (repository.folder / "src",)
    for path, message in (
        (Path("lib"), r"--path lib: expected a folder relative to the top .*, in HEAD"),
        (Path("../lib"), r"--path: got '\.\./lib', expected folders inside the repository"),
        (repository.folder / "src", r"--path: got '/.*/src', expected folders inside the repository"),
    ):
        with pytest.raises(UsageError, match=message), open_pair_side("HEAD", paths=[path]):
            pass
    with (
        pytest.raises(UsageError, match="--own-bench: got --path too"),
        open_pair_side("HEAD", own_bench=True, paths=[Path("src")]),
    ):
        pass


def test_what_runs_nothing_of_the_paths_is_left_out_and_refused_where_nothing_else_is_left(tmp_path, monkeypatch):
    entry = EntryPoint("mine", "mine.engine:ENGINE", "bsa_bench.engines")
    monkeypatch.setattr(
        sides, "entry_points", lambda group, name: [entry] if (entry.group, entry.name) == (group, name) else []
    )
    (tmp_path / "mine.py").write_text("")
    cases = {each: case(each) for each in ("bsa@gather", "bsa@mine")}
    side = PairSide(label="HEAD", first_paths=(tmp_path,))
    reason = "--path: no folder in HEAD holds bsa_kernels, which bsa@gather runs"
    assert not_held(side, cases) == {"bsa@gather": f"{reason}; expected the folder that the package lies in"}
    assert not_held(side, {}) == not_held(PairSide(label="."), cases) == {}
    with pytest.raises(UsageError, match=reason):
        not_held(side, {"bsa@gather": cases["bsa@gather"]})
    (tmp_path / "bsa_kernels").mkdir()
    assert not_held(side, cases) == {}


def test_only_packages_that_both_sides_have_of_their_own_are_compared(repository, tmp_path):
    with open_pair_side("HEAD") as base, open_pair_side(".") as head:
        assert own_packages((base, head)) == {"bsa_kernels"}
    (repository.folder / "bsa_bench").mkdir()
    (repository.folder / "bsa_bench" / "a.py").write_text("x = 1\n")
    repository.commit("bench")
    head = PairSide(label="the work tree", own_code=(ROOT / "bsa_bench", ROOT / "suites"))
    with open_pair_side("HEAD", own_bench=True) as base:
        assert own_packages((base, head)) == {"bsa_kernels", "bsa_bench"}
    (tmp_path / "mine.py").write_text("")
    assert own_packages([PairSide(label="HEAD", first_paths=(tmp_path,))] * 2) == set()


def test_sides_compute_the_same_where_methods_and_engines_are_the_same(tmp_path):
    def side(name, **files):
        for path, text in files.items():
            target = tmp_path / name / (path.replace("__", "/") + ".py")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return PairSide(label=name, bench=tmp_path / name)

    base = side("base", engines__gather="x = 1\n", report__page="x = 1\n", catalog="x = 1\n")
    assert compute_the_same((base, side("same", engines__gather="x = 1  # so\n", catalog="x = 1\n")))
    assert not compute_the_same((base, side("engine", engines__gather="x = 2\n", catalog="x = 1\n")))
    assert not compute_the_same((base, side("catalog", engines__gather="x = 1\n", catalog="x = 2\n")))
    assert not compute_the_same((base, side("broken", engines__gather="x =\n", catalog="x = 1\n")))
    assert not compute_the_same((base, PairSide(label="none", bench=tmp_path / "none")))


def test_a_commit_is_called_by_its_first_digits(repository):
    commit = repository.git("rev-parse", "HEAD")
    with open_pair_side(commit) as side:
        assert side.label == commit[:12]


def test_a_gate_of_paths_that_nothing_runs_is_refused_before_it_measures(tmp_path, monkeypatch):
    from test_gate_cli import SUITE, fake_probe

    monkeypatch.setattr("bsa_bench.gate.execution.probe", fake_probe)
    (tmp_path / "s.toml").write_text(SUITE)
    side = PairSide(label="HEAD", first_paths=(tmp_path / "src",))
    request = ExecutionRequest(
        suite=str(tmp_path / "s.toml"), base=side, head=side, policy=policy_for("cpu"), logs=tmp_path / "logs"
    )
    with pytest.raises(UsageError, match="--path: no folder in HEAD holds bsa_kernels, which bsa@"):
        run_execution_tier(request)
    assert not (tmp_path / "logs").exists()


HEAD = Side(label="the work tree", commit="a" * 40, dirty=False)


def outcome(*checks, head=HEAD, counters=(), compiled=(), reason=None):
    tier = TierResult(tier=1, checks=checks, reason=reason)
    result = GateResult(
        utc="2026-11-26T10:00:00+00:00", command=(), base=HEAD, head=head, tiers=(tier,), exit_code=0, summary=""
    )
    return Outcome(result, compiled, counters, None)


def test_accepting_writes_what_was_run_and_records_the_commit(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(run, "write_counters", lambda path, counters, about: written.append((path, counters, about)))
    request = GateRequest(tiers=(1, 2), baselines=tmp_path / "new" / "baselines", accepting=True)
    slower = Check(tier=1, name="x", verdict=Verdict.SLOWER)
    paths = accept(outcome(slower, counters=("counted",)), request, "worth it")
    assert paths == [request.baselines / "counters.json", request.baselines / "accepted.jsonl"]
    ((path, counters, about),) = written
    assert (path, counters, about.commit, about.reason) == (paths[0], ("counted",), HEAD.commit, "worth it")
    (recorded,) = read_acceptances(request.baselines)
    assert (recorded.commit, recorded.reason, recorded.tiers) == (HEAD.commit, "worth it", (1,))


def test_what_is_wrong_unfinished_or_empty_is_not_accepted(tmp_path):
    request = GateRequest(tiers=(1,), baselines=tmp_path / "baselines", accepting=True)
    wrong = Check(tier=1, name="x", verdict=Verdict.WRONG, reason="output: 0.3")
    for found, message in (
        (outcome(wrong, counters=("counted",)), r"x is wrong \(output: 0.3\); no reason makes that a baseline"),
        (outcome(), "nothing to write: tiers 0 and 1 have no figures"),
        (outcome(reason="Triton is not installed"), "nothing to write: Triton is not installed"),
        (outcome(head=HEAD.model_copy(update={"dirty": True})), "these sources differ from their commit"),
    ):
        with pytest.raises(UsageError, match=f"--accept: {message}"):
            accept(found, request, "because")
    assert read_acceptances(request.baselines) == []
    (tmp_path / "file").write_text("")
    nowhere = GateRequest(tiers=(1,), baselines=tmp_path / "file" / "x", accepting=True)
    with pytest.raises(StoreError, match=r"--baselines .*file/x: Not a directory"):
        accept(outcome(counters=("counted",)), nowhere, "because")
