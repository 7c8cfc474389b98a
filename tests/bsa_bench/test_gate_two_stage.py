"""The gate's own promises: what a machine that behaves so comes to, as a verdict and as an exit code."""

import math
from dataclasses import replace

import pytest
from gate_factory import (
    CALL_S,
    Scripted,
    ScriptedBench,
    after,
    code,
    gate,
    one,
)

from bsa_bench.errors import UsageError
from bsa_bench.gate.two_stage import PairSample, Policy, decide
from bsa_bench.gate.verdict import Verdict


@pytest.mark.parametrize("between", [0.003, 0.01])
@pytest.mark.parametrize(
    ("effect", "policy", "verdict", "exit_status"),
    [
        (0.0, Policy(), Verdict.SAME, 0),
        (0.05, Policy(), Verdict.SLOWER, 1),
        (0.1, Policy(), Verdict.SLOWER, 1),
        (-0.1, Policy(), Verdict.FASTER, 0),
        (0.03, Policy(limit=0.05), Verdict.SAME, 0),
        (-0.03, Policy(limit=0.05), Verdict.SAME, 0),
    ],
)
def test_a_true_change_beyond_the_limit_is_found_and_one_within_it_is_the_same(
    effect, policy, verdict, exit_status, between
):
    cases = {name: Scripted(effect=effect, between=between) for name in "abcd"}
    checks, _ = gate(cases, policy=policy, seed=5)
    assert {check.verdict for check in checks.values()} == {verdict}
    assert code(checks) == exit_status
    for check in checks.values():
        assert check.pairs.stage == "confirm" or verdict is Verdict.SAME
        assert check.pairs.ratio == pytest.approx(1 + effect, abs=0.02)


@pytest.mark.parametrize("between", [0.003, 0.01])
def test_3_percent_are_slower_than_a_limit_of_2_percent_allows(between):
    check, exit_status = one(Scripted(effect=0.03, between=between), seed=3)
    assert (check.verdict, exit_status) == (Verdict.SLOWER, 1)
    assert check.pairs.p < 0.01
    assert check.pairs.low < 1.03 < check.pairs.high


@pytest.mark.parametrize("drift", [0.02, 0.5, -0.3])
def test_a_machine_that_drifts_under_both_sides_leaves_them_the_same(drift):
    cases = {name: Scripted(between=0.003) for name in "abc"}
    checks, bench = gate(cases, bench=ScriptedBench(cases, drift=drift))
    assert {check.verdict for check in checks.values()} == {Verdict.SAME}
    assert bench.num_pairs("a") == 3


def test_a_drifting_machine_does_not_hide_a_slow_down():
    cases = {"same": Scripted(between=0.003), "slower": Scripted(effect=0.05, between=0.003)}
    checks, _ = gate(cases, bench=ScriptedBench(cases, drift=0.5))
    assert (checks["same"].verdict, checks["slower"].verdict) == (Verdict.SAME, Verdict.SLOWER)


@pytest.mark.parametrize(("setting", "exit_status"), [("pass", 0), ("ambiguous", 7), ("fail", 1)])
def test_a_head_whose_processes_are_in_two_modes_is_ambiguous(setting, exit_status):
    script = Scripted(between=0.003, slow_modes=(0.0, 0.1), slow_share=(False, True))
    check, _ = one(script)
    assert check.verdict is Verdict.AMBIGUOUS
    assert "two groups of pairs" in check.reason
    assert check.pairs.modes == pytest.approx((1.0, 1.1), abs=0.01)
    assert code({"case": check}, ambiguous=setting) == exit_status


def test_processes_of_both_sides_in_two_modes_are_not_called_the_same_nor_slower():
    script = Scripted(between=0.003, slow_modes=(0.1, 0.1))
    verdicts = [one(script, seed=seed)[0].verdict for seed in range(30)]
    assert not {Verdict.SLOWER, Verdict.FASTER} & set(verdicts)
    # Three pairs may all be of one mode by chance, and are then the same for all that anyone can see.
    assert verdicts.count(Verdict.AMBIGUOUS) > 20


def test_two_modes_that_are_both_slower_are_slower():
    check, _ = one(Scripted(effect=0.1, between=0.003, slow_modes=(0.0, 0.1), slow_share=(False, True)))
    assert check.verdict is Verdict.SLOWER
    assert len(check.pairs.modes) == 2


@pytest.mark.parametrize(
    ("slow_share", "verdict"),
    [
        ((True, True, False, True, True, False, True, False), Verdict.AMBIGUOUS),
        ((True,) * 7 + (False,), Verdict.SLOWER),
    ],
)
def test_a_head_that_is_slow_in_most_processes_is_slower_only_if_hardly_any_is_not(slow_share, verdict):
    check, _ = one(Scripted(between=0.003, slow_modes=(0.0, 0.1), slow_share=slow_share))
    assert check.verdict is verdict
    # The test alone would have called both slower.
    assert check.pairs.p < 0.005
    assert check.pairs.ratio - 1 > check.pairs.limit


def test_one_case_in_two_modes_hides_no_slow_down_of_the_others():
    cases = {name: Scripted(effect=0.05, between=0.003) for name in "abcd"}
    cases |= {"bimodal": Scripted(slow_modes=(0.0, 0.5), slow_share=(True, False))}
    checks, _ = gate(cases)
    assert {checks[name].verdict for name in "abcd"} == {Verdict.SLOWER}
    assert checks["bimodal"].verdict is Verdict.AMBIGUOUS
    assert checks["a"].pairs.limit == 0.02


def test_a_case_that_scatters_far_more_than_the_others_is_not_the_same_within_its_own_scatter():
    check, _ = one(Scripted(between=0.15), seed=2)
    assert check.verdict is Verdict.AMBIGUOUS
    assert check.pairs.limit > 0.1


def test_without_any_time_nothing_is_measured():
    check, exit_status = one(Scripted(), time_left_s=after(0))
    assert (check.verdict, check.reason, exit_status) == (Verdict.NOT_MEASURED, "no time was left for it", 4)


def test_four_pairs_far_beyond_noise_and_limit_confirm_and_where_one_does_not_show_it_there_are_more():
    check, _ = one(Scripted(effect=0.1, between=0.003))
    assert (check.verdict, len(check.pairs.log_ratios)) == (Verdict.SLOWER, 4)
    assert check.pairs.p < 1e-4
    faster, _ = one(Scripted(effect=-0.1, between=0.003))
    assert (faster.verdict, len(faster.pairs.log_ratios)) == (Verdict.FASTER, 4)

    def weak_once(number, sample):
        return replace(sample, head=[1.01 * time for time in sample.base]) if number == 5 else sample

    check, _ = one(Scripted(effect=0.1, between=0.003, sample=weak_once))
    assert (check.verdict, len(check.pairs.log_ratios)) == (Verdict.SLOWER, 8)
    noisy, _ = one(Scripted(effect=0.05, between=0.02))
    assert len(noisy.pairs.log_ratios) >= 8


@pytest.mark.parametrize(("pairs", "told"), [(1, "1 pair"), (2, "2 pairs")])
def test_time_that_runs_out_in_the_screen_leaves_what_it_measured_ambiguous(pairs, told):
    check, _ = one(Scripted(effect=0.1), time_left_s=after(pairs))
    assert (check.verdict, check.reason) == (Verdict.AMBIGUOUS, f"no time was left for more than {told}")
    assert len(check.pairs.log_ratios) == pairs


@pytest.mark.parametrize("pairs", [3, 4, 6])
def test_time_that_runs_out_in_the_confirmation_leaves_the_screens_pairs_and_no_verdict(pairs):
    check, exit_status = one(Scripted(effect=0.1, between=0.003), time_left_s=after(pairs))
    assert (check.verdict, check.is_suspect, exit_status) == (Verdict.AMBIGUOUS, True, 7)  # never a pass
    faster, exit_status = one(Scripted(effect=-0.1, between=0.003), time_left_s=after(pairs))
    assert (faster.verdict, faster.is_suspect, exit_status) == (Verdict.AMBIGUOUS, False, 0)
    assert check.reason == "flagged by the screen; no time was left for 4 pairs to confirm it"
    assert (check.pairs.stage, len(check.pairs.log_ratios), check.pairs.p) == ("screen", 3, None)
    assert one(Scripted(effect=0.1, between=0.003), time_left_s=after(7))[0].verdict is Verdict.SLOWER


def test_time_that_runs_out_between_the_looks_leaves_the_confirmation_ambiguous():
    script = Scripted(between=0.003, slow_modes=(0.0, 0.1), slow_share=(True, True, True, True, False))
    check, _ = one(script, time_left_s=after(13))
    assert (check.verdict, check.reason) == (Verdict.AMBIGUOUS, "no time was left for more than 10 pairs")
    assert check.pairs.stage == "confirm"


def timed(cases, total_s):
    """Checks by name of a gate that has so long; a pair takes a second, and a second for each case."""
    bench = ScriptedBench(cases, seed=3)
    checks, _ = gate(cases, bench=bench, time_left_s=bench.time_left(total_s))
    assert sum(1.0 + len(names) for names in bench.visits) <= total_s
    return checks, bench


def test_where_time_is_short_what_was_flagged_comes_first_and_the_worst_of_it_alone():
    steady = {"between": 0.002}
    cases = {
        "slow": Scripted(effect=0.2, **steady),
        "slower": Scripted(effect=0.4, **steady),
        "faster": Scripted(effect=-0.5, **steady),
        "open": Scripted(effect=0.019, **steady),  # at the limit, so that the screen goes on
    }
    # 3 pairs of all take 15 s, 4 of one case 8 s, of two 12 s, of three 16 s.
    checks, bench = timed(cases, 15 + 8)
    assert {name: check.verdict for name, check in checks.items()} == {
        "slower": Verdict.SLOWER,
        "slow": Verdict.AMBIGUOUS,
        "faster": Verdict.AMBIGUOUS,
        "open": Verdict.AMBIGUOUS,
    }
    assert bench.visits[3:] == [["slower"]] * 4
    assert checks["slow"].is_suspect
    assert not checks["faster"].is_suspect
    checks, _ = timed(cases, 15 + 12)
    assert [name for name, check in checks.items() if check.verdict is Verdict.SLOWER] == ["slow", "slower"]
    checks, _ = timed(cases, 15 + 16)
    assert checks["faster"].verdict is Verdict.FASTER
    assert checks["open"].reason == "no time was left for more than 3 pairs"
    checks, bench = timed(cases, 15 + 60)
    assert bench.num_pairs("open") > 3


def test_what_cannot_be_confirmed_in_the_time_left_leaves_it_to_the_others():
    cases = {"slow": Scripted(effect=0.2, between=0.002), "open": Scripted(effect=0.019, between=0.002)}
    checks, bench = timed(cases, 9 + 7)
    assert {tuple(names) for names in bench.visits[3:]} == {("open",)}
    assert checks["slow"].is_suspect


def test_a_change_below_the_absolute_limit_is_the_same_and_needs_no_confirmation():
    cases = {name: Scripted(effect=0.1, call_s=100e-6) for name in "abc"}
    checks, bench = gate(cases)
    assert {check.verdict for check in checks.values()} == {Verdict.SAME}
    assert checks["a"].pairs.limit == pytest.approx(0.2, rel=0.05)
    assert bench.num_pairs("a") == 3
    checks, _ = gate({name: Scripted(effect=0.3, call_s=100e-6) for name in "abc"})
    assert {check.verdict for check in checks.values()} == {Verdict.SLOWER}


def test_a_noisy_machine_has_a_wider_limit_that_the_checks_say():
    cases = {str(number): Scripted(between=0.04) for number in range(20)}
    checks, _ = gate(cases)
    for check in checks.values():
        assert check.pairs.limit == pytest.approx(math.expm1(1.5 * 0.04), rel=0.5)
        assert check.pairs.detectable > check.pairs.limit
    assert Verdict.SLOWER not in {check.verdict for check in checks.values()}


def test_a_calibrated_deviation_is_used_unless_the_run_is_noisier():
    quiet = {str(number): Scripted(between=0.003) for number in range(10)}
    checks, _ = gate(quiet, policy=Policy(sd=0.02))
    assert {check.pairs.sd for check in checks.values()} == {0.02}
    noisy = {str(number): Scripted(between=0.028) for number in range(20)}
    checks, _ = gate(noisy, policy=Policy(sd=0.02))
    assert min(check.pairs.sd for check in checks.values()) > 0.03


def test_what_the_screen_flagged_is_decided_on_fresh_pairs_in_its_own_direction():
    # Slower by 20 % in the three pairs of the screen, faster by 10 % in all that follow.
    def turned(number, sample):
        factor = 1.2 if number < 3 else 0.9
        return replace(sample, head=[time * factor for time in sample.head])

    check, _ = one(Scripted(between=0.003, sample=turned))
    assert check.verdict is Verdict.AMBIGUOUS
    assert check.reason == "the screen and the confirmation point in opposite directions"
    assert check.pairs.ratio == pytest.approx(0.9, abs=0.01)


def test_what_the_screen_flagged_by_mistake_is_the_same():
    def once(number, sample):
        return replace(sample, head=[time * 1.1 for time in sample.head]) if number < 3 else sample

    check, _ = one(Scripted(between=0.003, sample=once))
    assert check.verdict is Verdict.SAME
    assert check.reason == "flagged by the screen, not confirmed on fresh pairs"
    assert (check.pairs.stage, len(check.pairs.log_ratios)) == ("confirm", 4)


def test_confirmations_and_screens_share_pairs_and_a_pair_visits_nothing_that_is_decided():
    cases = {"same": Scripted(between=0.003), "slower": Scripted(effect=0.1, between=0.003)}
    cases |= {"near": Scripted(effect=0.017, between=0.003)}
    lines = []
    _, bench = gate(cases, tell=lines.append)
    assert [set(names) for names in bench.visits[:3]] == [set(cases)] * 3
    assert all("same" not in names for names in bench.visits[3:])
    assert {"slower", "near"} == set(bench.visits[3])
    assert bench.num_pairs("slower") == 3 + 4
    assert lines[0] == "pair 1: 3 cases to screen"
    assert lines[3] == "pair 4: 1 case to screen, 1 case to confirm"


def test_a_pair_visits_the_cases_in_an_order_of_the_seed():
    cases = {str(number): Scripted() for number in range(12)}
    orders = [gate(cases, seed=seed)[1].visits[:3] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert len({tuple(names) for names in orders[0]}) == 3


def test_checks_come_in_the_order_of_the_names_and_have_the_tier():
    cases = {name: Scripted() for name in ("z", "a", "m", "control")}
    checks, _ = gate(cases, controls=("control",), tier=2)
    assert list(checks) == ["z", "a", "m", "control"]
    assert {check.tier for check in checks.values()} == {2}
    assert decide([], ScriptedBench({}), Policy(), tier=3) == []


def test_a_case_named_twice_is_refused():
    with pytest.raises(ValueError, match="expected each case once, got"):
        decide(["a"], ScriptedBench({}), Policy(), tier=3, controls=["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0.0}, "expected a limit above 0"),
        ({"limit": math.nan}, "limit: expected a finite number from 0, got nan"),
        ({"sd": -0.1}, "sd: expected a finite number from 0, got -0.1"),
        ({"significance": 0.5}, "a significance between 0 and 0.5, got 0.02 and 0.5"),
        ({"screen_pairs": 0}, "screen_pairs: expected from 1 to max_screen_pairs, got 0 and 16"),
        ({"screen_pairs": 20}, "screen_pairs: expected from 1 to max_screen_pairs, got 20 and 16"),
        ({"max_confirm_pairs": 7}, "confirm_pairs: expected from 1 to max_confirm_pairs, got 8 and 7"),
        ({"confirm_pairs": 7}, "confirm_pairs: 7 pairs that all agree have p = 0.0078, which never passes 0.005"),
        ({"significance": 0.007}, "confirm_pairs: 8 pairs that all agree have p = 0.0039, which never passes 0.0035"),
    ],
)
def test_a_policy_that_could_never_call_anything_slower_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Policy(**options)


def test_a_confirmation_with_one_look_by_ranks_has_the_whole_significance():
    assert (Policy().looks, Policy().significance_of_a_look) == ((4, 8, 16), 0.005)
    single = Policy(confirm_pairs=8, max_confirm_pairs=8)
    assert (single.looks, single.significance_of_a_look) == ((4, 8), 0.01)


def test_the_bench_of_a_case_alone_needs_no_other_case_to_know_the_noise():
    assert gate({"case": Scripted(between=0.003)})[0]["case"].verdict is Verdict.SAME
    assert gate({"case": Scripted(effect=0.1, between=0.003)})[0]["case"].verdict is Verdict.SLOWER


def test_a_policy_of_one_pair_in_the_screen_flags_and_confirms():
    quick = Policy(screen_pairs=1)
    check = gate({"case": Scripted(effect=0.1, between=0.003)}, policy=quick)[0]["case"]
    assert (check.verdict, len(check.pairs.log_ratios)) == (Verdict.SLOWER, 4)


def test_samples_of_one_turn_are_enough():
    cases = {name: Scripted(effect=0.1) for name in "ab"}
    checks, _ = gate(cases, bench=ScriptedBench(cases, num_samples=1))
    assert checks["a"].verdict is Verdict.SLOWER


def test_the_scripted_bench_gives_what_its_script_says():
    bench = ScriptedBench({"a": Scripted(effect=0.5, between=0.0, within=0.0)}, num_samples=3)
    sample = bench.measure(["a"])["a"]
    assert isinstance(sample, PairSample)
    assert sample.base == pytest.approx([CALL_S] * 3)
    assert sample.head == pytest.approx([1.5 * CALL_S] * 3)
