import os
import re
import signal
import subprocess
import sys
import textwrap
from functools import partial

import pytest
from git_factory import Repository
from pair_factory import Workers, all_gone, kernels
from report_factory import case, measured, write_run
from run_factory import environment

from bsa_bench.cli import main
from bsa_bench.errors import StoreError, UsageError
from bsa_bench.gate.bisect import Found, Step
from bsa_bench.gate.calibration import calibration_path, read_calibration, write_calibration
from bsa_bench.gate.host_cases import HOST_CASES
from bsa_bench.gate.lockstep import PairSide
from bsa_bench.gate.verdict import GateResult, Verdict
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.run.probe import Probe

SUITE = """
title = "Made up"
implementations = ["full@sdpa-flash", "bsa@gather", "bsa@triton"]
passes = ["forward", "forward+backward"]

[workload]
model = "cpu-1x32"
grid = [4, 8, 8]

[input]
kind = "gaussian"

[bsa]
kv_density = 0.4
"""
SCRIPT = {"call_s": 0.3, "noise": 0.003, "none": {"prepare bsa@triton": "status=VERIFIED_ONLY"}}


def fake_probe(questions, *, device, threads, **_):
    """A machine without a GPU where all else runs."""
    if device == "cuda":
        raise UsageError("--device cuda: there is no GPU here")
    asked = {question for group in questions.values() for question in group}
    return Probe(environment(), dict.fromkeys(asked))


def inject(monkeypatch, command):
    """Scripted workers in place of real ones."""
    monkeypatch.setattr("bsa_bench.gate.sides.PairSide", partial(PairSide, command=command))
    for module in ("execution", "run"):
        monkeypatch.setattr(f"bsa_bench.gate.{module}.probe", fake_probe)
    # The revisions here have no benchmark of their own, and what runs on the host is one operation.
    monkeypatch.setattr("bsa_bench.gate.execution.compute_the_same", lambda sides: True)
    only = {"token-tables": HOST_CASES["token-tables"], "suite": HOST_CASES["suite"]}
    monkeypatch.setattr("bsa_bench.gate.execution.HOST_CASES", only)


class Place:
    """A repository to stand in, whose only revision has kernels of speed 1; the head's kernels are beside it."""

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        self.repository = Repository(folder / "repository")
        self.repository.commit("start", SPEED="1\n")
        monkeypatch.chdir(self.repository.folder)
        (self.repository.folder / "s.toml").write_text(SUITE)
        self.workers = Workers(folder, **SCRIPT)
        inject(monkeypatch, self.workers.command)
        monkeypatch.setenv("PYTHONPATH", str(folder / "head"))
        monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
        monkeypatch.delenv("BSA_BENCH_RESULTS", raising=False)
        self.head(1)

    def head(self, speed, action=None):
        """Write the head's kernels."""
        kernels(self.folder / "head", speed)
        if action:
            (self.folder / "head" / "bsa_kernels" / "ACTION").write_text(action)

    def run(self, *arguments):
        """Exit code, stdout and stderr of a command."""
        self._monkeypatch.setattr(sys, "argv", ["bsa-bench", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            main()
        assert signal.getsignal(signal.SIGTERM) is before
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return ended.value.code or 0, out, err

    def gate(self, *arguments):
        """The gate of tier 2 against the only revision: exit code and result."""
        code, out, err = self.run("gate", "--tier", 2, "--base", "HEAD", "--suite", "s.toml", "--json", *arguments)
        assert out, err
        result = GateResult.model_validate_json(out)
        assert result.exit_code == code
        return code, result


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    made = Place(tmp_path, monkeypatch, capsys)
    yield made
    assert all_gone(made.workers.pids) is True
    assert made.repository.git("worktree", "list").count("\n") == 0


def verdicts(result):
    return {
        check.name.split("/")[0] + " " + check.name.rpartition("/")[2]: check.verdict
        for check in result.tiers[0].checks
    }


@pytest.mark.slow
def test_the_same_sources_are_unchanged_without_a_measurement(place):
    place.head("1")  # as the revision's, but for the end of a line
    code, result = place.gate()
    assert code == 0
    names = ("bsa@gather forward", "bsa@gather forward+backward", "bsa@triton forward+backward")
    assert verdicts(result) == dict.fromkeys(names, Verdict.UNCHANGED)
    assert {each[2] for each in place.workers.asked} == {"set up"}


@pytest.mark.slow
def test_sources_that_are_as_fast_are_the_same_and_what_has_no_time_is_verified(place):
    code, result = place.gate("--measure-unchanged")
    assert code == 0
    assert verdicts(result) == {
        "bsa@gather forward": Verdict.SAME,
        "bsa@gather forward+backward": Verdict.SAME,
        "full@sdpa-flash forward": Verdict.SAME,
        "bsa@triton forward+backward": Verdict.VERIFIED,
        "host token-tables": Verdict.SAME,  # of the benchmark's own operations both sides run the head's
    }
    assert [check.name.split("/")[0] for check in result.tiers[0].checks if check.is_control] == ["full@sdpa-flash"]
    assert result.environment["hash"] == "env-a"
    assert any("no limits file of this machine" in note for note in result.tiers[0].notes)
    assert (place.repository.folder / "results" / "gate" / "tier2" / "head.log").is_file()


@pytest.mark.slow
def test_what_a_wrong_or_broken_head_comes_to(place):
    for action, verdict, code, reason in (
        ("set up raise=no such op", Verdict.FAILED, 1, "the work tree cannot be started: its process ended with exit"),
        ("sample signal=SIGSEGV", Verdict.FAILED, 1, "the work tree came to CRASHED, the base did not: its process"),
        ("finish status=WRONG", Verdict.WRONG, 3, "the work tree: scripted WRONG"),
    ):
        place.head("1", action)
        found, result = place.gate("passes=forward", "implementation=bsa@gather")
        (check,) = result.tiers[0].checks
        assert (found, check.verdict) == (code, verdict)
        assert check.reason.startswith(reason)


@pytest.mark.slow
def test_a_base_that_cannot_start_is_no_fault_of_the_head(place):
    place.repository.commit("broken", ACTION="set up raise=old torch")
    code, result = place.gate()
    assert code == 4
    assert (
        result.tiers[0].reason == "HEAD cannot be started: its process ended with exit code 1: RuntimeError: old torch"
    )


def test_logs_that_cannot_be_written_are_the_machines_fault(place):
    (place.repository.folder / "results").write_text("")
    code, out, err = place.run("gate", "--tier", 2, "--base", "HEAD", "--suite", "s.toml", "--noise", "nowhere")
    assert code == 5, err
    assert re.search(r"^INFRA_ERROR +machine .*base.log: cannot write the worker's log: ", out, re.MULTILINE)


@pytest.mark.slow
def test_a_change_of_methods_or_engines_alone_is_verified_and_not_timed(place, monkeypatch):
    monkeypatch.setattr("bsa_bench.gate.execution.compute_the_same", lambda sides: False)
    code, result = place.gate()
    assert code == 0
    assert set(verdicts(result).values()) == {Verdict.VERIFIED}
    assert len(result.tiers[0].checks) == 3
    place.head("1", "prepare status=WRONG")
    monkeypatch.setattr("bsa_bench.gate.execution.run_the_same", lambda sides, told: True)
    code, result = place.gate()
    assert code == 3
    assert set(verdicts(result).values()) == {Verdict.WRONG}


def test_a_case_that_the_base_runs_and_the_head_refuses_has_failed(place, monkeypatch):
    def refuse_at_head(questions, *, environment=None, **more):
        found = fake_probe(questions, **more)
        refused = {q: "no fp32 here" if q[0] == "bsa@gather" and q[3] else None for q in found.reasons}
        return Probe(found.environment, found.reasons if environment else refused)

    monkeypatch.setattr("bsa_bench.gate.execution.probe", refuse_at_head)
    code, result = place.gate("--measure-unchanged", "implementation=bsa@gather,full@sdpa-flash")
    assert code == 1
    (failed,) = [check for check in result.tiers[0].checks if check.verdict is Verdict.FAILED]
    assert failed.name.startswith("bsa@gather/")
    assert failed.name.endswith("/forward+backward")
    assert failed.reason == "HEAD runs it, the work tree does not: no fp32 here"
    assert not any("no fp32 here" in note for note in result.tiers[0].notes)


def test_what_both_sides_refuse_is_a_note(place, monkeypatch):
    def refuse(questions, **more):
        found = fake_probe(questions, **{key: value for key, value in more.items() if key != "environment"})
        return Probe(found.environment, {q: "no" if q[3] else None for q in found.reasons})

    monkeypatch.setattr("bsa_bench.gate.execution.probe", refuse)
    code, result = place.gate("--measure-unchanged", "implementation=bsa@gather,full@sdpa-flash")
    assert code == 0
    assert "1 of the suite's cases are not measured here: no" in result.tiers[0].notes


def test_a_base_that_cannot_be_asked_leaves_open_whether_a_case_was_lost(place, monkeypatch):
    def fail_at_base(questions, *, environment=None, **more):
        if environment:
            raise StoreError("the probe of this machine failed with exit code 1")
        found = fake_probe(questions, **more)
        return Probe(found.environment, {q: "no" if q[3] else None for q in found.reasons})

    monkeypatch.setattr("bsa_bench.gate.execution.probe", fail_at_base)
    _, result = place.gate("--measure-unchanged", "implementation=bsa@gather,full@sdpa-flash")
    (asked,) = [check for check in result.tiers[0].checks if check.name == "refused cases"]
    assert asked.verdict is Verdict.NOT_MEASURED
    assert asked.reason.endswith("is not known: the probe of this machine failed with exit code 1")


@pytest.mark.slow
def test_a_tier_without_a_device_or_a_base_is_not_measured(place):
    code, result = place.gate("--tier", 3)
    assert code == 0
    assert [tier.reason for tier in result.tiers] == [None, "no GPU"]
    assert place.gate("--tier", 3, "--require-gpu")[0] == 4
    code, out, _ = place.run("gate", "--tier", 2, "--suite", "s.toml")
    assert code == 4
    assert "no revision was accepted in results/baselines yet; give --base REV" in " ".join(out.split())
    code, out, _ = place.run("gate", "--tier", 2, "--base", "triton==3.6.0")
    assert code == 4
    assert "triton==3.6.0 is a base for compiled code alone" in " ".join(out.split())


def test_a_suite_of_which_nothing_runs_here_ends_its_tier_and_no_other(place, monkeypatch):
    code, result = place.gate("implementation=full@sdpa-flash")
    assert code == 4
    assert result.tiers[0].reason == "suite s.toml: none of its sparse cases can be measured here"


@pytest.mark.slow
def test_noise_writes_the_limits_file_that_the_gate_goes_by(place):
    code, out, _ = place.run("noise", "--suite", "s.toml", "--pairs", 2, "passes=forward", "--device", "cpu")
    assert code == 0
    path = calibration_path(place.repository.folder / "results" / "noise", environment(), 2)
    calibration = read_calibration(path)
    assert "This machine may gate." in out
    assert f"limits file: results/noise/{path.name}" in out
    assert [found.case_id.split("/")[0] for found in calibration.cases] == ["bsa@gather", "full@sdpa-flash"]
    code, result = place.gate("--require-calibration")
    assert code == 0
    assert result.tiers[0].notes[-1].startswith("noise of a pair as calibrated 20")
    write_calibration(path, calibration.model_copy(update={"detectable": {5: 0.6, 8: 0.4}, "may_gate": False}))
    code, result = place.gate()
    assert code == 6
    assert result.tiers[0].reason == "this machine finds slow-downs of 40 % and more, the policy asks for 15 %"
    path.write_text("{}")
    code, _, err = place.run("gate", "--tier", 2, "--base", "HEAD", "--suite", "s.toml")
    assert code == 2
    assert "expected what `bsa-bench noise` wrote" in err


def test_a_machine_without_limits_may_not_gate_where_they_are_required(place):
    code, result = place.gate("--require-calibration")
    assert code == 6
    assert result.tiers[0].reason == "no limits file of this machine and environment; run bsa-bench noise"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gate", "--base", "nowhere"], "--base nowhere: no such commit, branch or tag in the repository here"),
        (["gate", "--accept"], "--accept: needs --reason TEXT"),
        (["gate", "--accept", "--reason", " "], "--accept: needs --reason TEXT"),
        (["gate", "--reason", "x"], "--reason: got it without --accept"),
        (["gate", "--tier", "2", "--require-gpu"], "--require-gpu: tier 3 is not among --tier"),
        (["gate", "--tier", "0", "--require-calibration"], "--require-calibration: only tiers 2 and 3 are calibrated"),
        (["gate", "--github"], "--github: GITHUB_STEP_SUMMARY is not set"),
        (["gate", "--arch", "sm_91"], "--arch: got 'sm_91', expected one of sm_80, sm_90, sm_100"),
        (["gate", "--limit", "-5%"], "share: got '-5%', expected a number above zero"),
        (["gate", "--budget", "soon"], "duration: got 'soon', expected a time above zero"),
        (["gate", "--call-limit", "0s"], "duration: got '0s'"),
        (["gate", "--out", "x", "--junit", "x"], "got x for both, expected a file for each"),
        (["gate", "--tier", "2", "--base", "HEAD", "--suite", "nosuch"], "nosuch"),
        (["gate", "--tier", "2", "--base", "HEAD", "--suite", "s.toml", "tokenz=3"], "tokenz"),
        (["compare", "git:nowhere", "."], "git:nowhere: no such commit, branch or tag in the repository here"),
        (["compare", "git:HEAD", "run-1"], "git:HEAD is measured now, run-1 is not; expected two runs, two revisions"),
        (["compare", "run-1", "run-2"], "a revision is written git:run-1, an implementation needs --run RUN"),
        (["compare", "run-1", "run-2", "tokens=64"], "tokens=64: is for revisions (git:REV or `.`)"),
        (["compare", "run-1", "run-2", "--own-bench"], "--own-bench: is for revisions"),
        (["compare", "git:HEAD", ".", "--allow-other-environment"], "--allow-other-environment: is for two runs"),
        (["compare", "a@b", "c@d", "--run", "x", "--allow-other-environment"], "--allow-other-environment: is for two"),
        (["compare", "git:HEAD", ".", "--device", "cuda"], "--device cuda: there is no GPU here"),
        (["noise", "--max-detectable", "much", "--suite", "s.toml"], "share: got 'much'"),
        (["noise", "--device", "cuda"], "--device cuda: there is no GPU here"),
        (
            ["bisect", "bsa@gather/x", "--good", "HEAD", "--suite", "s.toml"],
            "case 'bsa@gather/x': suite s.toml has none",
        ),
    ],
)
def test_wrong_flags_are_named_before_anything_is_measured(place, arguments, message):
    code, out, err = place.run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not place.workers.asked


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_told_before_the_noise_is_measured(place):
    (place.folder / "file").write_text("")
    code, _, err = place.run("noise", "--suite", "s.toml", "--noise", place.folder / "file" / "x")
    assert code == 5
    assert "file/x: Not a directory" in err
    assert not place.workers.asked


@pytest.mark.slow
def test_sources_that_differ_from_their_commit_are_not_accepted(place, monkeypatch):
    from bsa_bench.gate.verdict import Side

    for side, message in (
        (Side(label=".", commit="a" * 40, dirty=True), "these sources differ from their commit; commit them first"),
        (Side(label="."), "these sources are in no commit; commit them first"),
    ):
        monkeypatch.setattr("bsa_bench.gate.run.describe_side", lambda _, side=side: side)
        code, _, err = place.run("gate", "--accept", "--reason", "x", "--tier", 1, "--base", "HEAD")
        assert code == 2
        assert message in err
    clean = Side(label=".", commit="a" * 40, dirty=False)
    monkeypatch.setattr("bsa_bench.gate.run.describe_side", lambda _: clean)
    for flags, message in (
        (["--tier", 2], "--accept: baselines are of tiers 0 and 1, expected at least one of them among --tier"),
        (
            ["--tier", 0, "--kernel", "x*"],
            "--accept: the baseline has all kernels and architectures, expected no --kern",
        ),
        (
            ["--tier", 0, "--arch", "sm_90"],
            "--accept: the baseline has all kernels and architectures, expected no --ker",
        ),
    ):
        code, _, err = place.run("gate", "--accept", "--reason", "x", "--base", "HEAD", *flags)
        assert code == 2
        assert message in err


@pytest.mark.slow
def test_revisions_are_compared_now_and_one_line_says_the_result(place):
    place.head("1", "sample slow=1.25")
    code, out, _ = place.run(
        "compare", "git:HEAD", ".", "--suite", "s.toml", "passes=forward", "implementation=bsa@gather"
    )
    assert code == 1
    assert re.search(r"\. is 1\.2\d \+- 0\.\d\d times slower than git:HEAD|the work tree is 1\.2\d", out), out
    assert "SLOWER" in out


@pytest.mark.slow
def test_runs_and_implementations_are_compared(place):
    sparse = case("bsa@gather", options=BsaOptions(kv_density=0.1))
    dense = case("full@sdpa-flash")
    results = place.repository.folder / "results"
    for name, factor in (("run-1", 1), ("run-2", 2)):
        medians = {sparse: 0.01 * factor, dense: 0.04}
        rows = [
            measured(of, median=m * (1 + 0.002 * i), process_index=i) for of, m in medians.items() for i in range(6)
        ]
        write_run(results / name, rows, run_id=name)
    code, out, _ = place.run("compare", "run-1", "run-2", "--json")
    assert code == 1
    result = GateResult.model_validate_json(out)
    assert [check.verdict for check in result.tiers[0].checks] == [Verdict.SLOWER, Verdict.SAME]
    assert result.summary.startswith("run-2 is 1.41")
    code, out, _ = place.run("compare", "full@sdpa-flash", "bsa@gather", "--run", "run-1")
    assert code == 0
    assert "bsa@gather is 4.0" in out
    assert "times faster than full@sdpa-flash" in out
    code, _, err = place.run("compare", "bsa@gather", "bsa@flex", "--run", "run-1")
    assert code == 2
    assert "implementation 'bsa@flex': run run-1 has none of it" in err


@pytest.mark.slow
def test_what_bisect_found_is_told(place, monkeypatch):
    steps = (
        Step(commit="a" * 40, judgement="good", ratio=1.002),
        Step(commit="b" * 40, judgement="bad", ratio=1.4, reason=f"its sources are those of {'c' * 12}"),
        Step(commit="d" * 40, judgement="skipped", reason="it has no kernels/bsa_kernels"),
    )
    found = Found(commit="b" * 40, subject="a [better] kernel", candidates=(), ratio=1.4, steps=steps)
    open_ = found.model_copy(update={"commit": None, "subject": None, "candidates": ("b" * 40, "d" * 40)})
    answers = [found, open_, found]
    asked = []

    def answer(case, **more):
        asked.append(case)
        return answers.pop(0)

    monkeypatch.setattr("bsa_bench.cli.bisect_command.find_slower_revision", answer)
    name = "bsa@gather/4x8x8/cpu-1x32-1x32-float32/gaussian/d0.4-k0.5/forward"
    arguments = ("bisect", name, "--good", "HEAD", "--suite", "s.toml")
    code, out, _ = place.run(*arguments)
    assert code == 0
    assert asked[0].case_id == name
    lines = out.splitlines()
    assert lines[0] == "aaaaaaaaaaaa  good: 1.002x the time"
    assert lines[1] == "bbbbbbbbbbbb  bad: 1.400x the time, its sources are those of cccccccccccc"
    assert lines[2] == "dddddddddddd  skipped: not measured, it has no kernels/bsa_kernels"
    assert lines[3] == "3 revisions judged, 1 of them measured"
    assert lines[4] == f"{name} takes 1.40 times as long since bbbbbbbbbbbb a [better] kernel"
    code, out, _ = place.run(*arguments)
    assert code == 7
    assert out.splitlines()[-1] == f"{name} got slower in one of: bbbbbbbbbbbb, dddddddddddd"
    code, out, _ = place.run(*arguments, "--json")
    assert Found.model_validate_json(out) == found


@pytest.mark.slow
def test_sigterm_ends_the_gate_as_an_interrupt_does_and_leaves_nothing(place):
    place.head("1", "sample hang")
    temporary = place.folder / "tmp"
    temporary.mkdir()
    program = textwrap.dedent(f"""
        import sys
        sys.path[:0] = {sys.path!r}
        import pytest
        from test_gate_cli import inject, main
        inject(pytest.MonkeyPatch(), {place.workers.command!r})
        sys.argv[1:] = ["gate", "--tier", "2", "--base", "HEAD", "--suite", "s.toml", "implementation=bsa@gather"]
        main()
    """)
    env = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen([sys.executable, "-c", program], env=env, stderr=subprocess.PIPE, text=True)
    try:
        place.workers.wait_until_asked("sample", process)
        process.terminate()
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert err.endswith("bsa-bench: interrupted\n")
    assert list(temporary.iterdir()) == []
