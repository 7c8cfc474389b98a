"""A row is a case over its processes: what is read back of them, and what follows."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import report_factory as made

from bsa_bench import load
from bsa_bench.result import (
    STATUS_MEANING,
    WORST_FIRST,
    DeviceState,
    RunLine,
    Status,
    missing_processes,
    worst_status,
)
from bsa_bench.store import read_run
from bsa_bench.store.derive import derive

DENSE = made.case("full@sdpa-flash")
SPARSE = made.case("bsa@gather")
REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def row_of(*results):
    (row,) = derive(results)
    return row


def test_the_median_is_that_of_the_process_medians_and_the_interval_their_extremes():
    row = row_of(*made.repeated(SPARSE, medians=[1.0, 1.3, 1.1, 5.0, 1.2]))
    whole = row.whole
    assert (whole.median, whole.num_processes, whole.num_samples) == (1.2, 5, 5 * 21)
    assert (whole.low, whole.high) == (1.0, 5.0)
    assert whole.interval_level == pytest.approx(0.9375)
    assert whole.medians == {0: 1.0, 1: 1.3, 2: 1.1, 3: 5.0, 4: 1.2}
    assert 0 < whole.within < 0.02
    assert whole.between > 0.5
    assert whole.p95 > 4  # outliers stay
    assert row.num_processes == 5


def test_one_process_has_the_interval_of_its_samples_and_nothing_between():
    row = row_of(made.measured(SPARSE, median=2.0))
    assert row.num_processes == 1
    assert row.whole.low < 2.0 < row.whole.high
    assert row.whole.between == 0.0
    assert row.whole.modes == ()


def test_phases_and_their_sums_are_medians_over_processes_too():
    results = made.repeated(SPARSE, medians=[1.0, 1.0, 1.0])
    timings = [
        r.timing.model_copy(update={"phases": {"attend": [x, x]}, "attend_only": [x, x]})
        for r, x in zip(results, (0.1, 0.9, 0.4), strict=True)
    ]
    results = [r.model_copy(update={"timing": t}) for r, t in zip(results, timings, strict=True)]
    row = row_of(*results)
    assert row.phases == {"attend": 0.4}
    assert row.attend_only.median == 0.4
    without = results[2].timing.model_copy(update={"attend_only": None})
    assert row_of(*results[:2], results[2].model_copy(update={"timing": without})).attend_only is None


def test_a_speed_up_is_the_median_of_the_ratios_within_rounds():
    dense = made.repeated(DENSE, medians=[10.0, 20.0, 40.0])
    sparse = made.repeated(SPARSE, medians=[2.0, 5.0, 5.0])  # 5, 4 and 8 times; medians would say 20 / 5
    speedup = derive([*dense, *sparse])[1].speedup
    assert speedup.value == pytest.approx(5)
    assert (speedup.low, speedup.high) == (pytest.approx(4), pytest.approx(8))
    assert speedup.num_processes == 3
    assert speedup.interval_level == pytest.approx(0.75)


def test_drift_that_both_sides_share_does_not_widen_a_speed_up():
    drift = [1.0, 1.2, 1.5, 2.0, 3.0]
    rows = derive([*made.repeated(DENSE, medians=[8 * x for x in drift]), *made.repeated(SPARSE, medians=drift)])
    assert rows[1].speedup.low == pytest.approx(rows[1].speedup.high) == pytest.approx(8)
    assert rows[0].is_baseline
    assert (rows[0].speedup.low, rows[0].speedup.high) == (1, 1)


def test_rounds_that_only_one_side_has_are_no_pairs():
    dense = made.repeated(DENSE, medians=[10.0, 20.0])
    sparse = made.repeated(SPARSE, medians=[2.0, 5.0, 100.0])
    assert derive([*dense, *sparse])[1].speedup.num_processes == 2
    alone = derive([dense[0], *sparse])[1].speedup
    assert (alone.num_processes, alone.interval_level) == (1, None)
    assert alone.value == pytest.approx(2.0)


@pytest.mark.parametrize(
    "status", [s for s in Status if s not in {Status.OK, Status.NOT_MEASURED, Status.SKIPPED_OOM}], ids=str
)
def test_one_process_that_did_not_end_ok_decides_for_the_case(status):
    bad = made.wrong(SPARSE) if status is Status.WRONG else made.result(SPARSE, status, reason="because")
    first, second = made.repeated(SPARSE, medians=[1.0, 1.0])
    row = row_of(first, bad.model_copy(update={"process_index": 1}), second.model_copy(update={"process_index": 2}))
    assert row.result.status is status
    assert row.status_word == status.value
    assert row.result.reason.startswith("in process 2: ")
    assert row.whole is None
    assert not row.is_correct
    assert row.num_processes == 0


def test_wrong_beats_every_other_status_and_what_was_not_reached_none():
    assert set(WORST_FIRST) == set(Status) == set(STATUS_MEANING)
    for one, two in itertools.combinations(Status, 2):
        assert worst_status([one, two]) is worst_status([two, one])
        assert Status.NOT_MEASURED in {one, two} or worst_status([one, two, Status.NOT_MEASURED]) in {one, two}
    assert all(worst_status([Status.WRONG, other]) is Status.WRONG for other in Status)
    assert worst_status([]) is None


def test_a_process_that_was_not_reached_is_left_out():
    results = made.repeated(SPARSE, medians=[1.0, 2.0])
    row = row_of(*results, made.result(SPARSE, Status.NOT_MEASURED, process_index=2))
    assert row.is_correct
    assert row.num_processes == 2
    assert row.processes == tuple(results)
    left = row_of(*(made.result(SPARSE, Status.NOT_MEASURED, process_index=i) for i in range(3)))
    assert left.result.status is Status.NOT_MEASURED
    assert len(left.processes) == 3


def test_processes_in_two_groups_are_flagged():
    row = row_of(*made.repeated(SPARSE, medians=[1.0, 1.001, 2.0, 2.001, 1.002]))
    assert row.is_bimodal
    assert row.whole.modes == pytest.approx((1.001, 2.0005))
    assert row.doubts == ("bimodal",)
    assert not row_of(*made.repeated(SPARSE, medians=[1.0, 1.1, 1.25, 1.3, 1.4])).is_bimodal


def test_a_disturbed_or_restless_process_marks_the_row():
    calm, loud = made.repeated(SPARSE, medians=[1.0, 1.0])
    calm = calm.model_copy(update={"state": DeviceState(other_cpu_share=0.01)})
    loud = loud.model_copy(
        update={
            "state": DeviceState(other_cpu_share=0.4, throttle_ns={"power": 3}),
            "timing": loud.timing.model_copy(update={"settled": False}),
        }
    )
    row = row_of(calm, loud)
    assert (row.is_disturbed, row.is_settled, row.is_throttled) == (True, False, True)
    assert row.other_cpu_share == 0.4
    row = row_of(calm)
    assert (row.is_disturbed, row.is_settled, row.is_throttled) == (False, True, False)


def test_a_process_without_a_verification_leaves_the_case_unverified_and_the_worst_error_counts():
    first, second = made.repeated(SPARSE, medians=[1.0, 1.0])
    assert row_of(first, second.model_copy(update={"correctness": None})).is_unverified
    worse = first.correctness.checked["output"].model_copy(update={"relative_l2": 9e-7})
    checks = first.correctness.model_copy(update={"checked": {"output": worse}})
    assert row_of(first, second.model_copy(update={"correctness": checks})).worst_error.relative_l2 == 9e-7


def test_two_results_of_one_process_are_refused():
    with pytest.raises(ValueError, match=r"expected one for each process of a case, got two of .*, process 0"):
        derive([made.measured(SPARSE), made.measured(SPARSE)])


def test_a_process_that_was_measured_again_counts_once(tmp_path):
    one, two = made.repeated(SPARSE, medians=[1.0, 2.0])
    again = made.measured(SPARSE, median=3.0, process_index=1)
    unreached = made.result(SPARSE, Status.NOT_MEASURED, process_index=1)
    run = read_run(made.write_run(tmp_path, made.renumber([one, unreached, two, again, unreached])))
    assert [r.timing.samples[0] for r in run.latest()] == [1.0, 3.0]


def test_processes_of_two_environments_are_never_one_case(tmp_path):
    here = made.repeated(SPARSE, medians=[1.0, 1.0, 1.0])
    there = made.repeated(SPARSE, medians=[7.0, 7.0], env_hash="f" * 12)
    run = read_run(made.write_run(tmp_path, made.renumber([*here, *there])))
    assert {r.env_hash for r in run.latest()} == {"f" * 12}
    assert row_of(*run.latest()).whole.median == 7.0
    assert [row.num_processes for row in derive([*here, *there])] == [3, 2]


def test_what_remains_is_what_lacks_a_process(tmp_path):
    results = [
        *made.repeated(DENSE, medians=[1.0, 1.0, 1.0]),
        *made.repeated(SPARSE, medians=[1.0, 1.0]),
        made.result(SPARSE, Status.NOT_MEASURED, process_index=2),
        made.wrong(made.case("bsa@flex")),
    ]
    run = read_run(made.write_run(tmp_path, made.renumber(results), num_cases=4, num_processes=3))
    assert (run.num_processes, run.num_remaining) == (3, 2)
    fewer = run.run_lines[0].model_copy(update={"num_processes": 2})
    assert run.__class__(run.path, [fewer], run.results).num_remaining == 1


def test_which_processes_are_missing():
    assert missing_processes({}, 3) == [0, 1, 2]
    assert missing_processes({0: Status.OK, 1: Status.NOT_MEASURED}, 3) == [1, 2]
    assert missing_processes({0: Status.OK, 1: Status.OOM}, 3) == []


@pytest.mark.slow
def test_the_frame_has_a_row_for_each_case_with_the_samples_of_all_processes(tmp_path):
    results = [*made.repeated(DENSE, medians=[4.0, 6.0]), *made.repeated(SPARSE, medians=[1.0, 2.0])]
    frame = load(made.write_run(tmp_path, made.renumber(results)))
    assert frame.median_s.tolist() == [5.0, 1.5]
    assert [len(samples) for samples in frame.samples] == frame.num_samples.tolist() == [42, 42]
    assert frame.num_processes.tolist() == [2, 2]
    assert frame.speedup_over_dense.tolist() == pytest.approx([1.0, math.sqrt(12)])


def test_run_lines_of_before_load_as_runs_of_one_process():
    old = made.run_line(1).model_dump(mode="json", exclude={"num_processes", "seed"})
    line = RunLine.model_validate(old)
    assert (line.num_processes, line.seed) == (1, None)


def test_every_reference_run_still_derives():
    folders = sorted(path.parent for path in REFERENCE.glob("*/results.jsonl"))
    assert folders
    for folder in folders:
        run = read_run(folder)
        rows = derive(run.latest())
        assert len(rows) == len(run.latest())
        assert all(row.num_processes == 1 for row in rows if row.is_correct)
