"""What goes wrong with pairs, clocks, memory and controls, and what the gate makes of it."""

import math
from dataclasses import replace

import pytest
from gate_factory import (
    OUT_OF_MEMORY_ON_BASE,
    OUT_OF_MEMORY_ON_BOTH,
    OUT_OF_MEMORY_ON_HEAD,
    WRONG,
    Scripted,
    ScriptedBench,
    after,
    always,
    code,
    gate,
    in_pairs,
    one,
)

from bsa_bench.gate.two_stage import Policy, Problem
from bsa_bench.gate.verdict import Check, TierResult, Verdict, exit_code

DISTURBED = Problem(Verdict.INFRA_ERROR, "another process was on the device")


def nan(sample):
    return replace(sample, head=[math.nan, *sample.head[1:]])


def throttled(sample):
    return replace(sample, throttle_ns=5_000_000)


def empty(sample):
    return replace(sample, base=[], head=[])


def uneven(sample):
    return replace(sample, head=sample.head[1:])


@pytest.mark.parametrize(
    ("defect", "reason"),
    [
        (nan, "the timer gave a time that is no finite number above zero"),
        (throttled, "the device throttled for 5.0 ms meanwhile"),
        (uneven, "the sides did not sample in turn: 7 of the base and 6 of the head"),
        (lambda sample: DISTURBED, "another process was on the device"),
    ],
)
def test_a_case_whose_every_pair_is_disturbed_is_an_error_of_the_infrastructure_after_three_pairs(defect, reason):
    cases = {"case": Scripted(effect=0.1, sample=lambda number, sample: defect(sample)), "other": Scripted()}
    checks, bench = gate(cases)
    assert (checks["case"].verdict, checks["other"].verdict) == (Verdict.INFRA_ERROR, Verdict.SAME)
    assert checks["case"].reason == f"{reason}; 3 pairs were disturbed"
    assert bench.num_pairs("case") == 3
    assert code(checks) == 5


@pytest.mark.parametrize("defect", [nan, throttled, lambda sample: DISTURBED])
@pytest.mark.parametrize(("effect", "verdict"), [(0.0, Verdict.SAME), (0.1, Verdict.SLOWER)])
def test_a_case_outlives_two_disturbed_pairs_and_uses_none_of_them(defect, effect, verdict):
    disturbed = Scripted(effect=effect, between=0.001, sample=in_pairs({1, 4}, defect))
    checks, bench = gate({"case": disturbed, "other": Scripted(effect=effect, between=0.001)})
    assert {check.verdict for check in checks.values()} == {verdict}
    num_dropped = 1 if verdict is Verdict.SAME else 2
    assert bench.num_pairs("case") == bench.num_pairs("other") + num_dropped
    assert len(checks["case"].detail) == num_dropped
    assert all(line.startswith("pair dropped: ") for line in checks["case"].detail)
    assert checks["other"].detail == ()


def test_no_pair_may_be_disturbed_where_the_policy_has_no_spare_ones():
    script = Scripted(sample=in_pairs({2}, throttled))
    check, _ = one(script, policy=Policy(spare_pairs=0))
    assert (check.verdict, check.reason) == (Verdict.INFRA_ERROR, "the device throttled for 5.0 ms meanwhile")


def test_a_pair_that_gives_no_answer_for_one_case_loses_neither_the_others_nor_its_other_pairs():
    class Forgetful(ScriptedBench):
        def measure(self, names):
            answers = super().measure(names)
            if len(self.visits) == 2:
                del answers["case"]
            return answers

    cases = {name: Scripted(between=0.003) for name in ("case", "a", "b")}
    checks, bench = gate(cases, bench=Forgetful(cases))
    assert {check.verdict for check in checks.values()} == {Verdict.SAME}
    assert (bench.num_pairs("case"), bench.num_pairs("a")) == (4, 3)
    assert checks["case"].detail == ("pair dropped: the pair gave no answer for it",)


@pytest.mark.parametrize(
    ("sample", "verdict", "exit_status", "reason"),
    [
        (in_pairs(range(99), empty), Verdict.NOT_MEASURED, 4, "the pair took no sample"),
        (always(OUT_OF_MEMORY_ON_HEAD), Verdict.FAILED, 1, OUT_OF_MEMORY_ON_HEAD.reason),
        (always(OUT_OF_MEMORY_ON_BOTH), Verdict.NOT_MEASURED, 4, OUT_OF_MEMORY_ON_BOTH.reason),
        (always(OUT_OF_MEMORY_ON_BASE), Verdict.NOT_MEASURED, 4, OUT_OF_MEMORY_ON_BASE.reason),
        (always(WRONG), Verdict.WRONG, 3, WRONG.reason),
    ],
)
def test_a_case_that_cannot_run_is_tried_once_and_says_why(sample, verdict, exit_status, reason):
    cases = {"case": Scripted(sample=sample), "other": Scripted()}
    checks, bench = gate(cases)
    assert (checks["case"].verdict, checks["case"].reason, checks["case"].pairs) == (verdict, reason, None)
    assert bench.num_pairs("case") == 1
    assert checks["other"].verdict is Verdict.SAME
    assert code({"case": checks["case"]}) == exit_status


def test_a_wrong_result_in_any_pair_ends_the_case_and_decides_the_exit_code():
    cases = {"wrong": Scripted(effect=0.1, sample=in_pairs({5}, WRONG)), "slower": Scripted(effect=0.1)}
    checks, bench = gate(cases)
    assert (checks["wrong"].verdict, checks["slower"].verdict) == (Verdict.WRONG, Verdict.SLOWER)
    assert bench.num_pairs("wrong") == 6
    assert code(checks) == 3


def test_a_head_that_fails_once_where_it_ran_is_measured_again_and_worth_a_look():
    check, exit_status = one(Scripted(between=0.001, sample=in_pairs({1}, OUT_OF_MEMORY_ON_HEAD)))
    assert (check.verdict, exit_status) == (Verdict.WARNING, 0)
    assert check.reason == "the head failed in one pair; the other pairs: SAME"
    assert check.detail == (f"pair dropped: {OUT_OF_MEMORY_ON_HEAD.reason}",)
    assert len(check.pairs.log_ratios) == 3


def test_a_head_that_fails_twice_has_failed_though_it_ran_between():
    check, exit_status = one(Scripted(between=0.003, sample=in_pairs({1, 3}, OUT_OF_MEMORY_ON_HEAD)))
    assert (check.verdict, check.reason, exit_status) == (Verdict.FAILED, OUT_OF_MEMORY_ON_HEAD.reason, 1)


def test_a_base_that_runs_out_of_memory_in_one_pair_of_many_loses_that_pair_only():
    check, _ = one(Scripted(between=0.001, sample=in_pairs({1}, OUT_OF_MEMORY_ON_BASE)))
    assert (check.verdict, len(check.pairs.log_ratios)) == (Verdict.SAME, 3)


def test_times_that_differ_while_the_clocks_do_are_ambiguous():
    check, _ = one(Scripted(effect=0.1, between=0.003, head_clock=0.91))
    assert (check.verdict, check.reason) == (Verdict.AMBIGUOUS, "clock: the sides ran at different clocks")
    assert check.pairs.clock_ratio == pytest.approx(0.91)
    assert len(check.pairs.log_ratios) == 16  # looked at again on as many pairs more


def test_a_change_of_time_that_is_none_of_cycles_is_ambiguous():
    check, _ = one(Scripted(effect=0.03, between=0.003, head_clock=0.975))
    assert (check.verdict, check.reason) == (Verdict.AMBIGUOUS, "clock: the change is in time, not in cycles")


def test_equal_times_at_different_clocks_are_not_the_same():
    check, _ = one(Scripted(between=0.003, head_clock=1.05))
    assert (check.verdict, check.reason) == (Verdict.AMBIGUOUS, "clock: the sides ran at different clocks")


def test_a_change_of_time_and_of_cycles_counts():
    check, _ = one(Scripted(effect=0.06, between=0.003, head_clock=0.98))
    assert check.verdict is Verdict.SLOWER
    assert one(Scripted(between=0.003, head_clock=1.001))[0].verdict is Verdict.SAME


def test_clocks_that_change_in_one_pair_only_do_not_count():
    script = Scripted(
        between=0.003, head_clock=1.0, sample=in_pairs({1}, lambda sample: replace(sample, head_clock_hz=1e9))
    )
    assert one(script)[0].verdict is Verdict.SAME


@pytest.mark.parametrize(
    ("head_mib", "verdict"), [(1024, Verdict.SAME), (1024 + 60, Verdict.SAME), (1024 + 70, Verdict.FAILED)]
)
def test_peak_memory_may_grow_by_5_percent_or_64_mib_and_no_more(head_mib, verdict):
    check, exit_status = one(Scripted(between=0.003, head_memory_bytes=head_mib << 20))
    assert (check.verdict, exit_status) == (verdict, int(verdict is Verdict.FAILED))
    if verdict is Verdict.FAILED:
        assert check.reason == "peak memory above the inputs grew from 1024 to 1094 MiB; time: SAME"


def test_memory_that_grew_fails_a_faster_head_and_one_that_time_ran_out_for():
    script = Scripted(effect=-0.1, between=0.003, head_memory_bytes=2 << 30)
    faster, _ = one(script)
    assert (faster.verdict, faster.reason[-12:]) == (Verdict.FAILED, "time: FASTER")
    late, _ = one(script, time_left_s=after(5))
    assert (late.verdict, late.reason[-15:]) == (Verdict.FAILED, "time: AMBIGUOUS")


@pytest.mark.parametrize("effect", [0.1, -0.1])
def test_where_a_control_moves_nothing_is_decided_but_that_a_result_is_wrong(effect):
    cases = {
        "slower": Scripted(effect=0.1, between=0.003),
        "same": Scripted(between=0.003),
        "wrong": Scripted(sample=always(WRONG)),
        "gone": Scripted(sample=always(OUT_OF_MEMORY_ON_BOTH)),
        "control": Scripted(effect=effect, between=0.003),
        "control-2": Scripted(between=0.003),
    }
    checks, _ = gate(cases, controls=("control", "control-2"))
    told = [check.verdict for check in checks.values()]
    infrastructure = Verdict.INFRA_ERROR
    assert told == [infrastructure] * 2 + [Verdict.WRONG, Verdict.NOT_MEASURED] + [infrastructure] * 2
    word = "SLOWER (+" if effect > 0 else "FASTER (-"
    reason = checks["slower"].reason.replace(" although nothing of it has changed", "")
    assert reason.startswith(f"control came out {word}")
    assert checks["slower"].pairs.ratio == pytest.approx(1.1, abs=0.01)
    assert [check.is_control for check in checks.values()] == [False] * 4 + [True] * 2
    del checks["wrong"]
    assert code(checks) == 5


def test_a_control_whose_head_alone_runs_out_of_memory_accuses_the_machine():
    cases = {"case": Scripted(between=0.003), "control": Scripted(sample=always(OUT_OF_MEMORY_ON_HEAD))}
    checks, _ = gate(cases, controls=("control",))
    assert {check.verdict for check in checks.values()} == {Verdict.INFRA_ERROR}
    assert OUT_OF_MEMORY_ON_HEAD.reason in checks["case"].reason


def test_controls_that_hold_leave_the_verdicts():
    cases = {"slower": Scripted(effect=0.1), "control": Scripted(), "ill": Scripted(sample=always(DISTURBED))}
    checks, _ = gate(cases, controls=("control", "ill"))
    assert [check.verdict for check in checks.values()] == [Verdict.SLOWER, Verdict.SAME, Verdict.INFRA_ERROR]


def measured(verdict=Verdict.SAME, tier=2, number=1):
    return TierResult(tier=tier, checks=tuple(Check(tier=tier, name=str(n), verdict=verdict) for n in range(number)))


@pytest.mark.parametrize(("require_gpu", "exit_status"), [(False, 0), (True, 4)])
def test_a_missing_gpu_is_an_error_only_where_one_is_required(require_gpu, exit_status):
    tiers = [measured(), TierResult(tier=3, reason="no NVIDIA GPU here", is_absent=True)]
    assert exit_code(tiers, require_gpu=require_gpu) == exit_status
    assert exit_code([measured()], require_gpu=require_gpu) == exit_status
    assert exit_code([measured(), measured(tier=3)], require_gpu=require_gpu) == 0
    assert exit_code([TierResult(tier=3, reason="no NVIDIA GPU here", is_absent=True)], require_gpu=require_gpu) == 4


def test_a_gpu_on_which_nothing_came_out_is_not_a_missing_gpu():
    assert exit_code([measured(), measured(Verdict.NOT_MEASURED, tier=3)]) == 4
    assert exit_code([measured(), TierResult(tier=3, reason="the base cannot be started")]) == 4


@pytest.mark.parametrize(("num_missing", "exit_status"), [(1, 0), (2, 0), (3, 4)])
def test_a_tier_of_which_less_than_the_required_share_was_measured_is_not_passed(num_missing, exit_status):
    missing = measured(Verdict.NOT_MEASURED, number=num_missing).checks
    tier = TierResult(tier=2, checks=(*measured(number=2).checks, *missing))
    assert exit_code([tier]) == exit_status
    assert exit_code([tier], required_share=0.9) == 4
    assert exit_code([tier], required_share=0.1) == 0


def test_the_worst_verdict_decides_the_exit_code():
    order = [
        (Verdict.WRONG, 3),
        (Verdict.SLOWER, 1),
        (Verdict.INFRA_ERROR, 5),
        (Verdict.CALIBRATION_NEEDED, 6),
        (Verdict.SAME, 0),
    ]
    for place, (verdict, exit_status) in enumerate(order):
        tiers = [measured(other) for other, _ in order[place:]]
        assert exit_code(tiers) == exit_status, verdict
        assert exit_code([measured(), *tiers]) == exit_status
    assert exit_code([measured(Verdict.FAILED)]) == 1
    assert exit_code([]) == exit_code([TierResult(tier=0, reason="nothing to compile")]) == 4
