import json
import math
import time
from pathlib import Path

import pytest
from gate_factory import Scripted, ScriptedBench, always, in_pairs
from pair_factory import Workers, some_cases
from run_factory import environment

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.gate.calibration import (
    CaseNoise,
    calibrate,
    calibration_path,
    false_alarm_rate,
    read_calibration,
    write_calibration,
)
from bsa_bench.gate.policy import Policy
from bsa_bench.gate.two_stage import PairSample, Problem
from bsa_bench.gate.verdict import Verdict

POLICY = Policy(limit=0.05)
QUIET = {"a": Scripted(between=0.01), "b": Scripted(between=0.01), "c": Scripted(between=0.01)}


def calibrated(cases=None, *, bench=None, num_pairs=8, policy=POLICY, **fields):
    """What a scripted machine comes to; returns the calibration and the bench."""
    bench = bench or ScriptedBench(dict(cases or QUIET), seed=3)
    about = {"environment": environment(), "suite": "made-up", "threads": 1, "max_detectable": 0.15, "num_trials": 10}
    names = list(cases or QUIET)
    return calibrate(names, bench, policy, num_pairs=num_pairs, **(about | fields)), bench


def test_the_noise_of_a_machine_is_what_it_was_made_with():
    found, bench = calibrated(num_pairs=40)
    assert found.num_freedoms == 3 * 39
    assert found.pair_sd == pytest.approx(0.01 * math.sqrt(2), rel=0.25)
    assert [case.case_id for case in found.cases] == ["a", "b", "c"]
    for case in found.cases:
        assert case.call_s == pytest.approx(0.05, rel=0.02)
        assert case.within == pytest.approx(0.005, rel=0.4)
        assert case.between == pytest.approx(0.01, rel=0.4)
        assert case.pair_sd == pytest.approx(0.014, rel=0.5)
        assert abs(case.bias) < 0.01
        assert abs(case.drift) < 0.02
        assert case.clock_spread is None
        assert case.num_pairs == 40
    assert found.limit == POLICY.limit
    assert found.may_gate
    assert {tuple(names) for names in bench.visits} - {("a", "b", "c")}  # the order is drawn anew for each pair


def test_more_pairs_find_smaller_slow_downs_and_noise_hides_them():
    quiet, _ = calibrated()
    noisy, _ = calibrated({name: Scripted(between=0.1) for name in "abc"})
    for found in (quiet, noisy):
        assert list(found.detectable) == [5, 8, 16]
        assert found.limit < found.detectable[8] < found.detectable[5]
    assert noisy.limit > 0.1 > quiet.limit
    assert noisy.detectable[16] > 0.15 > quiet.detectable[16]
    assert (quiet.may_gate, noisy.may_gate) == (True, False)
    assert calibrated({name: Scripted(between=0.1) for name in "abc"}, max_detectable=0.9)[0].may_gate


def test_drift_and_bias_are_told():
    bench = ScriptedBench({name: Scripted(effect=0.1) for name in "abc"}, seed=3, drift=0.5, drift_pairs=7)
    found, _ = calibrated(bench=bench)
    for case in found.cases:
        assert case.bias == pytest.approx(math.log(1.1), abs=0.02)
        assert case.drift == pytest.approx(0.5, abs=0.1)


def test_the_spread_of_clocks_is_told_where_it_is_known():
    found, _ = calibrated({"a": Scripted(head_clock=0.9), "b": Scripted(), "c": Scripted()})
    assert found.cases[0].clock_spread == pytest.approx(1 / 0.9 - 1)
    assert found.cases[1].clock_spread is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (Scripted(sample=always(Problem(Verdict.NOT_MEASURED, "a call takes 3 s"))), "a call takes 3 s"),
        (Scripted(sample=in_pairs({2}, Problem(Verdict.FAILED, "head died"))), "head died"),
        (Scripted(sample=in_pairs({1}, PairSample(base=[0.0], head=[0.1]))), "the timer gave a time that is no finite"),
        (Scripted(sample=in_pairs({1}, PairSample(base=[], head=[]))), "the pair took no sample"),
        (Scripted(sample=in_pairs({1}, PairSample(base=[0.1], head=[0.1] * 2))), "the sides did not sample in turn"),
    ],
)
def test_a_case_that_cannot_be_measured_is_left_out_with_its_reason_and_asked_for_no_more(script, reason):
    found, bench = calibrated({**QUIET, "bad": script})
    assert [case.case_id for case in found.cases] == ["a", "b", "c"]
    assert list(found.left_out) == ["bad"]
    assert found.left_out["bad"].startswith(reason)
    assert bench.num_pairs("bad") <= 3


def test_nothing_measured_and_too_few_pairs_are_refused():
    with pytest.raises(UsageError, match="noise: nothing could be measured: no memory"):
        calibrated({"bad": Scripted(sample=always(Problem(Verdict.NOT_MEASURED, "no memory")))})
    with pytest.raises(UsageError, match="noise: nothing could be measured: there are no cases"):
        calibrate([], ScriptedBench({}), POLICY, num_pairs=2, environment=environment(), suite="s", threads=1,
                  max_detectable=0.1)  # fmt: skip
    with pytest.raises(UsageError, match="pairs: got 1, expected at least 2"):
        calibrated(num_pairs=1)


def test_two_pairs_are_enough():
    found, _ = calibrated({"a": Scripted()}, num_pairs=2)
    assert found.num_freedoms == 1
    assert found.pair_sd > 0


def test_false_alarms_are_rare_on_a_steady_machine_and_seeded():
    quiet = [[0.01 * math.sin(7 * i + j) for i in range(8)] for j in range(3)]
    started = time.process_time()
    rate = false_alarm_rate(quiet, POLICY, num_trials=200)
    assert time.process_time() - started < 10
    assert rate == false_alarm_rate(quiet, POLICY, num_trials=200) <= 0.01


def test_false_alarms_are_found_where_the_rule_lets_noise_through():
    # Two alike values alternate, so that three equal ones in a row flag a case, and a lax rule confirms it.
    lax = Policy(limit=0.01, significance=0.49, screen_pairs=1, confirm_pairs=2, max_confirm_pairs=2, noise_factor=0)
    assert false_alarm_rate([[0.1, 0.1001, 0.0999]], lax, num_trials=100) > 0.03


def test_the_limits_file_comes_back_equal_and_is_named_by_tier_and_environment(tmp_path):
    found, _ = calibrated()
    path = calibration_path(tmp_path / "noise", environment("env-b"), 2)
    assert path == tmp_path / "noise" / "tier2-env-b.json"
    assert calibration_path(Path(), environment(), 3) == Path("tier3-env-a.json")
    assert read_calibration(path) is None
    write_calibration(path, found)
    assert read_calibration(path) == found
    assert json.loads(path.read_text())["detectable"].keys() == {"5", "8", "16"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda fields: fields.pop("pair_sd"), "pair_sd: Field required"),
        (lambda fields: fields.update(pair_sd=-1), "pair_sd: Input should be greater than or equal to 0"),
        (lambda fields: fields.update(detectable={}), "detectable: Dictionary should have at least 1 item"),
        (lambda fields: fields.update(detectable={"many": 0.1}), "detectable.many"),
        (lambda fields: fields.update(kind="gate"), "kind: Input should be 'noise'"),
        (lambda fields: fields.update(schema_version=2), "schema_version: Input should be 1"),
    ],
)
def test_a_file_that_is_no_limits_file_is_refused_with_what_is_wrong(tmp_path, change, what):
    path = tmp_path / "x.json"
    fields = json.loads(calibrated()[0].model_dump_json())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(UsageError, match=rf"x.json: expected what `bsa-bench noise` wrote, got {what}"):
        read_calibration(path)


@pytest.mark.parametrize("content", [b"{not json", b"\xff\xfe", b""])
def test_bytes_that_are_no_document_are_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x.json: expected what `bsa-bench noise` wrote, got "):
        read_calibration(path)


def test_what_cannot_be_read_or_written_is_told(tmp_path):
    with pytest.raises(StoreError, match="cannot be read: Is a directory"):
        read_calibration(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="File exists"):
        write_calibration(tmp_path / "file" / "x.json", calibrated()[0])


@pytest.mark.slow
def test_processes_of_two_equal_sides_are_calibrated(tmp_path):
    script = Workers(tmp_path, noise=0.004, head={"prepare 192": "status=OOM"})
    cases = some_cases(64, 128, 192)
    found, _ = calibrated(cases, bench=script.bench(cases), num_pairs=3)
    assert {case.case_id for case in found.cases} == {"64", "128"}
    assert found.left_out == {"192": "head came to OOM, the base did not: scripted OOM"}
    assert found.pair_sd < 0.01
    assert all(isinstance(case, CaseNoise) and case.within < 0.01 for case in found.cases)
    assert len(script.pids) == 6
