"""The fixture `bsa_case`, by pytest inside of pytest; what workers say is scripted, but for one real run."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from pytest_factory import SHAPE, Machine

import bsa_bench
from bsa_bench.errors import EXIT_INTERRUPTED
from bsa_bench.pytest_support import session as session_module
from bsa_bench.pytest_support import timed_case
from bsa_bench.pytest_support.settings import Comparison
from bsa_bench.result import Status
from bsa_bench.run import RunOutcome

pytest_plugins = ["pytester"]

SPEEDUP = f"""
def test_sparse_pays(bsa_case):
    sparse = bsa_case("bsa@gather", {SHAPE}, kv_density=0.4)
    dense = bsa_case("full@sdpa-flash", {SHAPE})
    assert sparse.is_correct
    speedup = sparse.speedup_over(dense)
    assert (round(speedup.value, 6), speedup.num_processes) == (4.0, 3)
    assert speedup.low > LEAST
"""


def asking(what, *, implementation="bsa@gather", name="test_it", keys=SHAPE):
    """A test of one expression about one case."""
    return f"""
def {name}(bsa_case):
    case = bsa_case("{implementation}", {keys})
    {what}
"""


@pytest.fixture
def machine(pytester, monkeypatch):
    return Machine(pytester, monkeypatch)


def with_two_cases(machine):
    machine.has("bsa@gather", kv_density=0.4, call_s=(0.050, 0.060, 0.040))
    machine.has("full@sdpa-flash", call_s=(0.200, 0.300, 0.140))


@pytest.mark.slow
def test_the_plugin_loads_nothing_but_itself():
    code = (
        "import sys, json, pytest; before = set(sys.modules); import bsa_bench.pytest_plugin; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["bsa_bench", "bsa_bench.pytest_plugin"]


@pytest.mark.slow
def test_a_speed_up_is_of_processes_that_ran_in_turn(machine):
    with_two_cases(machine)
    machine.run(SPEEDUP.replace("LEAST", "3.4")).assert_outcomes(passed=1)
    rounds = [set(machine.begun[i : i + 2]) for i in (0, 2, 4)]
    assert rounds == [{"bsa@gather", "full@sdpa-flash"}] * 3
    assert len(machine.questions) == 1


@pytest.mark.slow
def test_a_speed_up_that_is_too_small_fails_with_its_interval_and_the_cases(machine):
    with_two_cases(machine)
    result = machine.run(SPEEDUP.replace("LEAST", "4.5"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*assert 3.5* > 4.5", "E*where 3.5* = Ratio(value=4.0*high=4.99*num_processes=3*"])
    result.stdout.no_fnmatch_line("*timed_case.py*")


@pytest.mark.slow
def test_tests_share_a_measurement(machine):
    with_two_cases(machine)
    again = asking("assert round(case.latency.median, 9) == 0.05", name="test_again", keys=f"{SHAPE}, kv_density=0.4")
    result = machine.run(SPEEDUP.replace("LEAST", "2"), again)
    result.assert_outcomes(passed=2)
    assert len(machine.begun) == 6
    result.stdout.fnmatch_lines(["*= bsa-bench =*", "bsa@gather/*: OK 50.0 ms*, 3 processes", "results: *"])
    assert "\n".join(result.outlines).count("bsa@gather/4x8x8/1x32-float32/gaussian/d0.4-k0.5/forward: OK") == 1


@pytest.mark.slow
def test_a_ratio_over_two_runs_divides_the_far_ends(machine):
    with_two_cases(machine)
    first = asking("assert case.is_correct", name="test_a", implementation="full@sdpa-flash")
    second = f"""
def test_b(bsa_case):
    speedup = bsa_case("bsa@gather", {SHAPE}, kv_density=0.4).speedup_over(bsa_case("full@sdpa-flash", {SHAPE}))
    assert [round(x, 6) for x in (speedup.low, speedup.value, speedup.high)] == [round(0.14 / 0.06, 6), 4.0, 7.5]
"""
    machine.run(first, second).assert_outcomes(passed=2)


@pytest.mark.slow
def test_other_processes_or_profiles_are_another_measurement(machine):
    machine.has("bsa@gather")
    more = asking("assert case.latency.num_processes == 2", name="test_two", keys=f"{SHAPE}, processes=2")
    machine.run(asking("assert case.latency.num_processes == 3"), more).assert_outcomes(passed=2)
    assert len(machine.begun) == 5


@pytest.mark.slow
def test_what_cannot_run_here_is_skipped_with_the_reason(machine):
    machine.lacks("full@sdpa-cudnn", "cuDNN needs an NVIDIA GPU")
    tests = [
        asking(f"assert case.{what}", implementation="full@sdpa-cudnn", name=f"test_{i}")
        for i, what in enumerate(["is_correct", "latency", "density is None", "speedup_over(case)"])
    ]
    result = machine.run(*tests)
    result.assert_outcomes(skipped=4)
    result.stdout.fnmatch_lines(["SKIPPED*test_*.py*full@sdpa-cudnn/*UNSUPPORTED here: cuDNN needs an NVIDIA GPU"])
    assert machine.begun == []


@pytest.mark.slow
def test_a_wrong_case_is_not_correct_and_has_no_time(machine):
    machine.has("bsa@gather", status=Status.WRONG)
    correct, fast = asking("assert case.is_correct"), asking("assert case.latency.median < 1", name="test_fast")
    result = machine.run(correct, fast, asking("assert case.error.relative_l2 == 0.1", name="test_error"))
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["E*assert False", "E*where False = <bsa@gather/*: WRONG, scripted>*"])
    result.stdout.fnmatch_lines(["E*Failed: bsa@gather/* is WRONG: scripted"])


@pytest.mark.slow
def test_a_case_that_crashes_fails_its_test_with_the_workers_last_words(machine):
    machine.has("bsa@gather", action="raise:boom")
    result = machine.run(asking("assert case.is_correct"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E*Failed: bsa@gather/* is CRASHED: *", "E*RuntimeError: boom", "E*results and logs: *"]
    )


@pytest.mark.slow
def test_what_is_verified_without_a_time_is_correct_and_skips_questions_of_time(machine):
    machine.has("bsa@gather", status=Status.VERIFIED_ONLY)
    result = machine.run(asking("assert case.is_correct"), asking("assert case.latency", name="test_time"))
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*has no time here, it is VERIFIED_ONLY: *"])


@pytest.mark.slow
def test_a_disturbed_time_and_a_lone_process_are_warned_of(machine):
    machine.has("bsa@gather", other_cpu_share=0.3)
    machine.has("full@sdpa-flash")
    test = f"""
def test_it(bsa_case):
    assert bsa_case("bsa@gather", {SHAPE}).speedup_over(bsa_case("full@sdpa-flash", {SHAPE})).value == 1
"""
    result = machine.run(test, options=("--bsa-processes", "1"))
    result.assert_outcomes(passed=1, warnings=2)
    result.stdout.fnmatch_lines(["*BsaTimingWarning: bsa@gather/*: disturbed, 30% of the processor: *"])
    result.stdout.fnmatch_lines(["*BsaTimingWarning: bsa@gather/*: a speed-up of one process*bsa_processes"])


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (asking("", keys="tokns=64"), "*SuiteError: override: got 'tokns=64'*did you mean 'tokens'?"),
        (asking("", keys="tokens='64,128'"), "*UsageError: bsa_case: expected keys that name one case, got 2: *"),
        (asking("", keys="tokens=[64, 128]"), "*UsageError: bsa_case: tokens: got [[]64, 128], expected one value: *"),
        (asking("", keys="tokens=64, budget_s=3"), "*UsageError: bsa_case: budget_s is of a whole run*"),
        (
            asking("", keys="tokens=64, implementation='x@y'"),
            "*UsageError: bsa_case: implementation is given as*",
        ),
        (asking("", keys="tokens=64, topk=3"), "*UsageError: bsa_case: bsa has no option 'topk', expected one of *"),
        (asking("", keys="tokens=64", implementation="bsa@gathr"), "*UsageError: implementation 'bsa@gathr'*"),
        (asking("", keys="tokens=64, suite='quik'"), "*SuiteError: suite: got 'quik'*did you mean 'quick'?"),
        (asking("", keys="tokens=64, kind='captured', path='no.st'"), "*InputError: *no.st*"),
    ],
)
def test_a_wrong_declaration_is_told_at_the_line_of_the_test(machine, test, message):
    result = machine.run(test)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E{message}"])
    result.stdout.no_fnmatch_line("*override.py*")
    assert machine.questions == []


@pytest.mark.slow
def test_cases_that_are_not_comparable_have_no_speed_up(machine):
    machine.has("bsa@gather")
    machine.has("full@sdpa-flash", seed=1)
    test = f"""
def test_it(bsa_case):
    bsa_case("bsa@gather", {SHAPE}).speedup_over(bsa_case("full@sdpa-flash", {SHAPE}, seed=1))
"""
    result = machine.run(test)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*UsageError: speedup_over: bsa@gather/* differ in workload, expected the same"])


@pytest.mark.slow
def test_a_suite_and_its_keys_may_be_the_base(machine):
    test = """
def test_it(bsa_case):
    case = bsa_case("bsa@gather", suite="quick", grid=(8, 16, 16), processes=2, seed=None or 3)
    assert case.case_id == "bsa@gather/8x16x16/cpu-2x64-2x64-float32/video:bikes-s3/d0.1-k0.5/forward"
    assert bsa_case("vsa@gather", tokens=64, passes="backward", **{"vsa.topk": 2}).case_id.endswith("/backward")
"""
    machine.run(test).assert_outcomes(passed=1)
    assert machine.begun == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "ini", "message"),
    [
        (("--bsa-processes", "0"), "", "bsa_processes: got '0', expected a whole number from 1"),
        (("--bsa-device", "tpu"), "", "bsa_device: got 'tpu', expected auto, cpu or cuda"),
        ((), "bsa_threads = many", "bsa_threads: got 'many', expected a whole number from 1"),
        ((), "bsa_on_infra = pass", "bsa_on_infra: got 'pass', expected fail or skip"),
        ((), "bsa_paths = src ../other", "bsa_paths: got '../other', expected folders inside the repository*"),
    ],
)
def test_wrong_options_are_refused(machine, options, ini, message):
    machine.pytester.makeini(f"[pytest]\n{ini}\n")
    result = machine.run(asking("pass"), options=options)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"E*UsageError: {message}"])


@pytest.mark.slow
def test_a_flag_counts_more_than_the_ini_file_and_runs_are_kept_where_asked(machine):
    machine.has("bsa@gather")
    machine.pytester.makeini("[pytest]\nbsa_processes = 4\nbsa_results = kept\n")
    machine.run(asking("assert case.latency.num_processes == 4"), options=()).assert_outcomes(passed=1)
    machine.run(asking("assert case.latency.num_processes == 2"), options=("--bsa-processes=2",)).assert_outcomes(
        passed=1
    )
    frames = [bsa_bench.load(folder) for folder in sorted((machine.folder / "kept").glob("pytest-*"))]
    assert sorted(int(frame["num_processes"].iloc[0]) for frame in frames) == [2, 4]


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "outcome"), [("fail", {"failed": 1}), ("skip", {"skipped": 1})])
def test_nothing_is_timed_while_xdist_runs_other_tests(machine, monkeypatch, policy, outcome):
    machine.has("bsa@gather")
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    result = machine.run(asking("assert case.is_correct"), options=("--bsa-on-infra", policy))
    result.assert_outcomes(**outcome)
    result.stdout.fnmatch_lines(["*INFRA_ERROR: 2 processes of pytest-xdist run tests at once here*-n 0"])
    assert machine.begun == []


@pytest.mark.slow
def test_ctrl_c_ends_pytest(machine, monkeypatch):
    def stopped(*_, **__):
        return RunOutcome(EXIT_INTERRUPTED, {}, [], ["stopped by Ctrl-C; 1 cases are left"])

    monkeypatch.setattr(session_module, "execute", stopped)
    result = machine.run(asking("case.is_correct"), asking("pass", name="test_never"))
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*bsa_case: stopped by Ctrl-C; 1 cases are left*"])


@pytest.mark.slow
def test_reports_keep_the_figures(machine):
    case = machine.has("bsa@gather")
    options = ("-p", "pytest_benchmark.plugin", "--junitxml=junit.xml", "--benchmark-json=benchmark.json")
    test = asking("benchmark(case.is_correct.__bool__)").replace("(bsa_case)", "(bsa_case, benchmark)")
    machine.run(test, options=options).assert_outcomes(passed=1)
    found = {each.get("name"): each.get("value") for each in ET.parse("junit.xml").iter("property")}
    facts = json.loads(found[f"bsa-bench {case.case_id}"])
    assert (facts["status"], facts["median_s"], facts["num_processes"]) == ("OK", pytest.approx(0.05), 5)
    (benchmark,) = json.loads(Path("benchmark.json").read_text())["benchmarks"]
    assert benchmark["extra_info"]["bsa_bench"] == {case.case_id: facts}


@pytest.mark.slow
def test_a_real_case_is_measured(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    figures = "0 < case.latency.low <= case.latency.median < 1 and 0 < case.density < 1"
    keys = "tokens=256, model='cpu-1x32', kind='gaussian', kv_density=0.4"
    pytester.makepyfile(asking(f"assert case.is_correct and {figures}", keys=keys))
    arguments = ["-p", "bsa_bench.pytest_plugin", "--bsa-device=cpu", "--bsa-processes=1", "--bsa-threads=1"]
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["bsa@gather/256-*/forward: OK *, one process"])


@pytest.mark.slow
def test_the_examples_of_the_guide_run(machine, monkeypatch):
    guide = (Path(__file__).parents[2] / "docs" / "pytest.md").read_text()
    pays, slower = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    machine.has("bsa@gather", keys={"tokens": 4096}, kv_density=0.1)
    machine.has("full@sdpa-flash", keys={"tokens": 4096}, call_s=(0.2,))
    asked = []
    monkeypatch.setattr(timed_case, "judge", lambda *arguments, **_: asked.append(arguments[2]))
    machine.run(pays, slower).assert_outcomes(passed=2)
    assert asked == [Comparison(than="origin/main", limit=0.05)]


def test_the_guide_names_every_option():
    guide = (Path(__file__).parents[2] / "docs" / "pytest.md").read_text()
    assert set(re.findall(r"`--(bsa-[a-z-]+)", guide)) == {name.replace("_", "-") for name in options_of_the_plugin()}


def options_of_the_plugin():
    text = (Path(bsa_bench.__file__).parent / "pytest_plugin.py").read_text()
    return re.findall(r'^    "(bsa_\w+)": \(', text, re.MULTILINE)
