import math
import random
import re

import pytest
from gate_result_factory import pairs
from report_factory import case, measured, result, run_line, write_run, wrong

from bsa_bench.errors import UsageError
from bsa_bench.gate.compare import compare_implementations, compare_runs, sentence
from bsa_bench.gate.policy import Policy
from bsa_bench.gate.verdict import Check, Verdict
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.result import DeviceState, Status
from bsa_bench.store.reader import read_run

POLICY = Policy(limit=0.05)
CASE = case("bsa@gather", options=BsaOptions(kv_density=0.1))
OTHER = case("bsa@gather", tokens=2048, options=BsaOptions(kv_density=0.1))
DENSE = case("full@sdpa-flash")
OTHER_ENV = run_line(1).environment.model_copy(update={"hash": "f" * 12, "device_name": "another CPU"})


def processes(of=CASE, median=0.02, num=6, *, spread=0.01, **fields):
    """Results of several processes of a case, whose medians scatter a little."""
    draws = random.Random(f"{of.case_id} {median}")
    medians = [median * math.exp(draws.gauss(0, spread)) for _ in range(num)]
    return [measured(of, median=each, process_index=index, **fields) for index, each in enumerate(medians)]


def failed(status, of=CASE, **fields):
    one = wrong(of) if status is Status.WRONG else result(of, status, reason="scripted")
    return [one.model_copy(update=fields)]


@pytest.fixture
def run(tmp_path):
    """Store results as a run; runs are numbered."""
    made = []

    def store(results, **fields):
        made.append(f"run-{len(made) + 1}")
        return read_run(write_run(tmp_path / made[-1], results, run_id=made[-1], **fields))

    return store


@pytest.fixture
def compared(run):
    """The check of the one case of two runs."""

    def compare(base, head, policy=POLICY):
        (check,) = compare_runs(run(base), run(head), policy)
        assert check.name == CASE.case_id
        assert check.tier == 2
        return check

    return compare


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [(0.0, Verdict.SAME), (0.12, Verdict.SLOWER), (-0.12, Verdict.FASTER), (0.045, Verdict.AMBIGUOUS)],
)
def test_runs_of_several_processes_have_a_verdict(compared, effect, verdict):
    check = compared(processes(num=8), processes(median=0.02 * (1 + effect), num=8))
    assert check.verdict is verdict
    assert check.pairs.ratio == pytest.approx(1 + effect, abs=0.02)
    assert check.pairs.low < check.pairs.ratio < check.pairs.high
    assert (check.pairs.p < 0.01) == (abs(effect) > 0.01)
    assert check.pairs.detectable > 0.05
    assert check.reason == ("the processes tell no more" if verdict is Verdict.AMBIGUOUS else None)


def test_the_smallest_number_of_processes_with_a_verdict_is_five(compared):
    slow = {"median": 0.03}
    assert compared(processes(num=5), processes(num=5, **slow)).verdict is Verdict.SLOWER
    check = compared(processes(num=5), processes(num=4, **slow))
    assert (check.verdict, check.reason) == (
        Verdict.AMBIGUOUS,
        "4 processes a side; a verdict needs 5 (run --processes)",
    )


def test_one_process_shows_the_ratio_and_has_no_verdict(compared):
    check = compared(processes(num=1), processes(median=0.04, num=1))
    assert (check.verdict, check.reason) == (
        Verdict.AMBIGUOUS,
        "one process a side; a verdict needs 5 (run --processes)",
    )
    assert check.pairs.ratio == pytest.approx(2, rel=0.05)
    assert check.pairs.p is check.pairs.sd is check.pairs.detectable is None


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"other_cpu_share": 0.08}, "others took 8 % of the processor's time meanwhile"),
        ({"throttle_ns": {"thermal": 5_000_000}}, "the device throttled meanwhile"),
    ],
)
def test_a_run_that_was_disturbed_shows_the_ratio_and_has_no_verdict(compared, state, reason):
    troubled = processes(median=0.03, num=6)
    troubled[2] = troubled[2].model_copy(update={"state": DeviceState(**state)})
    check = compared(processes(num=6), troubled)
    assert (check.verdict, check.reason) == (Verdict.AMBIGUOUS, f"the head was disturbed: {reason}")
    assert check.pairs.ratio == pytest.approx(1.5, rel=0.05)
    assert compared(troubled, processes(num=6)).reason.startswith("the base was disturbed: ")


def test_a_change_below_the_absolute_limit_is_none(compared):
    check = compared(processes(median=50e-6, num=8), processes(median=60e-6, num=8))
    assert check.pairs.limit == pytest.approx(0.4, rel=0.05)
    assert check.verdict is Verdict.SAME


@pytest.mark.parametrize(
    ("base", "head", "verdict", "reason"),
    [
        ("OK", "WRONG", Verdict.WRONG, "the head's result is wrong"),
        ("CRASHED", "WRONG", Verdict.WRONG, "the head's result is wrong"),
        (None, "WRONG", Verdict.WRONG, "the head's result is wrong"),
        ("WRONG", "OK", Verdict.NOT_MEASURED, "the base came to WRONG, the head to OK"),
        ("OK", "OOM", Verdict.FAILED, "the head came to OOM, the base did not"),
        ("OK", "TIMEOUT", Verdict.FAILED, "the head came to TIMEOUT, the base did not"),
        ("OK", "SKIPPED_OOM", Verdict.NOT_MEASURED, "the head came to SKIPPED_OOM, the base did not"),
        ("OOM", "OK", Verdict.NOT_MEASURED, "the base came to OOM, the head to OK"),
        ("OOM", "CRASHED", Verdict.NOT_MEASURED, "the base came to OOM, the head to CRASHED"),
        ("VERIFIED_ONLY", "VERIFIED_ONLY", Verdict.VERIFIED, "came to VERIFIED_ONLY: it has no time to compare"),
        (None, "OK", Verdict.NOT_MEASURED, "the base has no such case"),
        ("OK", None, Verdict.NOT_MEASURED, "the head has no such case"),
    ],
)
def test_what_has_no_times_has_a_reason(run, base, head, verdict, reason):
    def of(status):
        if status is None:
            return []
        return processes() if status == "OK" else failed(Status(status))

    common = processes(OTHER)
    checks = compare_runs(run([*of(base), *common]), run([*of(head), *common]), POLICY)
    (check,) = [check for check in checks if check.name == CASE.case_id]
    assert (check.verdict, check.reason, check.pairs) == (verdict, reason, None)


def test_one_process_that_was_wrong_is_not_made_up_for_by_the_others(compared):
    head = [*failed(Status.CRASHED), *failed(Status.WRONG, process_index=1), *processes()[2:]]
    assert compared(processes(), head).verdict is Verdict.WRONG


def test_a_process_that_was_not_reached_says_nothing_of_the_others(compared):
    head = [*processes(num=5), *failed(Status.NOT_MEASURED, process_index=5)]
    assert compared(processes(), head).verdict is Verdict.SAME


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"environment": OTHER_ENV}, "different environments, device_name: Made-up CPU, 2 threads -> another CPU"),
        ({"profile": "report"}, "different profiles, quick and report"),
    ],
)
def test_runs_that_do_not_compare_are_refused_with_what_differs_unless_asked_for_the_ratios(run, fields, difference):
    base = run([*processes(), *processes(OTHER)])
    head = run([*processes(median=0.04), *failed(Status.WRONG, OTHER)], **fields)
    with pytest.raises(UsageError, match=re.escape(f"run-1 and run-2: measured in {difference}; add --allow-other")):
        compare_runs(base, head, POLICY)
    check, other = compare_runs(base, head, POLICY, allow_other_environment=True)
    assert check.verdict is Verdict.AMBIGUOUS
    assert check.reason == f"measured in {difference}"
    assert check.pairs.ratio == pytest.approx(2, rel=0.05)
    assert other.verdict is Verdict.WRONG  # that is no matter of the environment


def test_a_case_that_a_resumed_run_measured_elsewhere_has_no_verdict(run):
    head = run([*processes(median=0.04, env_hash="f" * 12), *processes(OTHER, median=0.04)])
    check, other = compare_runs(run([*processes(), *processes(OTHER)]), head, POLICY)
    assert (check.verdict, check.reason) == (
        Verdict.AMBIGUOUS,
        "the runs measured this case in different environments",
    )
    assert other.verdict is Verdict.SLOWER


def test_runs_without_a_common_case_are_refused(run):
    with pytest.raises(UsageError, match="run-1 and run-2: have no case in common"):
        compare_runs(run(processes()), run(processes(OTHER)), POLICY)


def test_a_gpus_runs_are_of_tier_three(run):
    gpu = run_line(1).environment.model_copy(update={"device_kind": "cuda"})
    runs = [run(processes(), environment=gpu) for _ in range(2)]
    assert compare_runs(*runs, POLICY)[0].tier == 3


def test_implementations_of_a_run_are_compared_on_what_both_have(run):
    slower = case("full@sdpa-math", tokens=2048)
    one = run(
        [
            *processes(DENSE, 0.02),
            *processes(CASE, 0.01),
            *processes(case("full@sdpa-flash", 2048), 0.08),
            *processes(OTHER, 0.02),
            *processes(slower, 0.3),
        ]
    )
    checks = compare_implementations(one, "full@sdpa-flash", "bsa@gather", POLICY)
    assert [check.name for check in checks] == [CASE.case_id, OTHER.case_id]
    assert [check.verdict for check in checks] == [Verdict.FASTER] * 2
    assert [check.pairs.ratio for check in checks] == pytest.approx([0.5, 0.25], rel=0.05)
    with pytest.raises(
        UsageError, match="implementation 'bsa@flex': run run-1 has none of it, it has bsa@gather, full"
    ):
        compare_implementations(one, "bsa@gather", "bsa@flex", POLICY)


def test_options_are_compared_with_their_own_and_with_all_where_there_is_none_of_the_same(run):
    sparse = [case("bsa@gather", options=BsaOptions(kv_density=density)) for density in (0.1, 0.2)]
    flex = [case("bsa@flex", options=BsaOptions(kv_density=density)) for density in (0.1, 0.4)]
    one = run([r for of in (*sparse, *flex) for r in processes(of, num=1)])
    checks = compare_implementations(one, "bsa@gather", "bsa@flex", POLICY)
    names = [check.name for check in checks]
    assert names[0] == flex[0].case_id
    assert names[1:] == [f"{flex[1].case_id}, against {each.label}" for each in sparse]


def test_implementations_without_a_common_workload_are_refused(run):
    one = run([*processes(DENSE), *processes(OTHER)])
    with pytest.raises(UsageError, match="full@sdpa-flash and bsa@gather: run run-1 has no workload and pass of both"):
        compare_implementations(one, "full@sdpa-flash", "bsa@gather", POLICY)


def checks_of(*intervals, **fields):
    return [
        Check(
            tier=2,
            name=str(i),
            verdict=Verdict.SLOWER,
            pairs=pairs(math.sqrt(low * high)).model_copy(update={"low": low, "high": high}),
            **fields,
        )
        for i, (low, high) in enumerate(intervals)
    ]


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(1.15, 1.25)], "B is 1.20 +- 0.05 times slower than A"),
        ([(0.5, 0.5)], "B is 2.00 +- 0.00 times faster than A"),
        ([(1.002, 1.006)], "B is 1.004 +- 0.002 times slower than A"),
        ([(0.99, 1.02)], "B and A cannot be told apart: the ratio is 1.005 +- 0.015"),
        ([(1.1, 1.1), (1.3, 1.3)], "B is 1.20 +- 0.00 times slower than A (geometric mean of 2 cases)"),
        ([(0.5, 0.5), (2.0, 2.0)], "B and A cannot be told apart: the ratio is 1.000 +- 0.000 (geometric mean of 2"),
        ([], "B and A: nothing was measured of both"),
    ],
)
def test_one_sentence_says_it_all(intervals, expected):
    assert sentence(checks_of(*intervals), "A", "B").startswith(expected)


def test_the_sentence_leaves_controls_out_and_shows_no_interval_where_a_case_has_none():
    control = checks_of((3.0, 3.0), is_control=True)
    slow = checks_of((1.2, 1.2))
    assert sentence([*control, *slow], "A", "B") == "B is 1.20 +- 0.00 times slower than A"
    bare = slow[0].model_copy(update={"pairs": slow[0].pairs.model_copy(update={"low": None, "high": None})})
    assert sentence([bare], "A", "B") == "B is 1.20 times slower than A; too few processes for an interval"
    assert sentence(control, "A", "B") == "B and A: nothing was measured of both"


def test_two_modes_of_the_head_are_shown(compared):
    head = [measured(CASE, median=0.02 * (1.3 if i % 2 else 1.0), process_index=i) for i in range(8)]
    check = compared(processes(num=8, spread=0.001), head)
    assert check.pairs.modes == pytest.approx((1.0, 1.3), rel=0.02)
    assert check.verdict is Verdict.AMBIGUOUS
