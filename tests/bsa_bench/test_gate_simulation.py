"""How often the gate errs: its own decision, on simulated machines.

`python tests/bsa_bench/test_gate_simulation.py 6000` prints the table of so many cases in each row.
"""

import sys
from collections import Counter
from dataclasses import dataclass

import pytest
from gate_factory import Scripted, ScriptedBench, gate

from bsa_bench.gate.two_stage import Policy

pytestmark = pytest.mark.slow
GPU, CPU = Policy(), Policy(limit=0.05)
# A pair's log ratio has the bias of two processes.
CPU_PROCESS = 0.5**0.5


@dataclass(frozen=True)
class Rates:
    """What became of so many simulated cases.

    Args:
        verdicts: how often each word was said.
        pairs: visited on average, of a case.
        detectable: the effect that the checks say is found 8 times in 10, on average.
    """

    cases: int
    verdicts: Counter
    pairs: float
    detectable: float

    def share(self, *verdicts):
        return sum(self.verdicts[verdict] for verdict in verdicts) / self.cases


def simulate(cases, script, *, policy=GPU, drift=0.0, suite=50):
    """Decide so many cases that are alike, in gate runs of `suite` cases each."""
    verdicts, visits, detectable = Counter(), 0, 0.0
    names = [f"case-{number}" for number in range(suite)]
    for seed in range(cases // suite):
        bench = ScriptedBench(dict.fromkeys(names, script), seed=seed, drift=drift)
        checks, _ = gate(bench.cases, bench=bench, policy=policy, seed=seed)
        verdicts.update(check.verdict.value for check in checks.values())
        detectable += sum(check.pairs.detectable for check in checks.values())
        visits += sum(map(len, bench.visits))
    number = cases // suite * suite
    return Rates(number, verdicts, visits / number, detectable / number)


def test_a_thousand_cases_that_are_the_same_raise_no_alarm_with_1_percent_of_noise_and_2_percent_of_drift():
    rates = simulate(1200, Scripted(between=0.01), drift=0.02)
    # At a true rate of 0.1 % of cases, more than 5 come once in 600 times.
    assert rates.verdicts["SLOWER"] + rates.verdicts["FASTER"] <= 5
    assert rates.share("SAME") > 0.95
    assert rates.pairs < 7


@pytest.mark.parametrize(("between", "effect"), [(0.003, 0.03), (0.01, 0.03), (0.01, 0.05), (0.02, 0.05), (0.02, 0.1)])
def test_a_true_slow_down_is_found_at_least_19_times_in_20(between, effect):
    rates = simulate(200, Scripted(effect=effect, between=between), drift=0.02)
    # Each of these has a power of 98 % or more: 93 % of 200 or fewer come once in 10,000 times.
    assert rates.share("SLOWER") > 0.93
    assert rates.share("FASTER") == 0
    assert rates.pairs < 16


@pytest.mark.parametrize("pair_sd", [0.03, 0.045])
def test_on_a_cpu_10_percent_are_always_found_and_the_same_is_not_called_slower(pair_sd):
    found = simulate(300, Scripted(effect=0.1, between=pair_sd * CPU_PROCESS), policy=CPU, suite=20)
    assert found.share("SLOWER") > 0.98
    same = simulate(400, Scripted(between=pair_sd * CPU_PROCESS), policy=CPU, suite=20)
    assert same.verdicts["SLOWER"] + same.verdicts["FASTER"] <= 4
    assert same.share("SAME") > 0.9
    assert same.pairs < 11


def test_processes_with_heavy_tails_raise_no_more_alarms_and_hide_no_slow_down():
    same = simulate(400, Scripted(between=0.01, heavy_tails=True), drift=0.02)
    assert same.verdicts["SLOWER"] + same.verdicts["FASTER"] <= 4
    assert simulate(300, Scripted(effect=0.05, between=0.01, heavy_tails=True)).share("SLOWER") > 0.95


def test_the_effect_that_is_said_to_be_detectable_is_found_8_times_in_10():
    said = simulate(100, Scripted(between=0.02)).detectable
    found = simulate(300, Scripted(effect=said, between=0.02)).share("SLOWER")
    assert 0.74 < found < 0.93


def test_what_is_slower_by_half_as_much_again_as_the_limit_is_hardly_ever_called_the_same():
    assert simulate(400, Scripted(effect=0.03, between=0.01)).share("SAME", "FASTER") < 0.02


def test_3_percent_are_within_a_limit_of_5_percent():
    rates = simulate(200, Scripted(effect=0.03, between=0.01), policy=CPU)
    assert rates.share("SAME") > 0.85
    assert rates.share("SLOWER", "FASTER") <= 0.01


def _table(cases):
    rows = [
        (f"process sd {between:.1%}, drift {drift:.0%}", GPU, Scripted(effect=effect, between=between), drift, 50)
        for between, drift in ((0.003, 0.0), (0.01, 0.0), (0.01, 0.02), (0.02, 0.0), (0.02, 0.02))
        for effect in (0.0, 0.03, 0.05, 0.1)
    ]
    rows += [
        (f"heavy tails, process sd {0.01:.1%}", GPU, Scripted(effect=effect, between=0.01, heavy_tails=True), 0.02, 50)
        for effect in (0.0, 0.05)
    ]
    rows += [
        (f"pair sd {pair_sd:.1%}", CPU, Scripted(effect=effect, between=pair_sd * CPU_PROCESS), 0.02, 20)
        for pair_sd in (0.03, 0.045)
        for effect in (0.0, 0.05, 0.1)
    ]
    for name, policy, script, drift, suite in rows:
        # A rate of false alarms wants many cases, a power fewer.
        number = cases if script.effect == 0 else cases // 5
        rates = simulate(number, script, policy=policy, drift=drift, suite=suite)
        said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(rates.verdicts.items()))
        sys.stdout.write(
            f"limit {policy.limit:.0%}, {name}, true {script.effect:+.0%}: of {rates.cases} {said}; "
            f"{rates.pairs:.2f} pairs a case; detectable {rates.detectable:.1%}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    _table(int(sys.argv[1]))
