import math
from itertools import combinations_with_replacement
from statistics import median

import numpy as np
import pytest

from bsa_bench.stats.processes import (
    BOOTSTRAP_FROM,
    bootstrap_ratio,
    geometric_mean,
    hierarchical_bootstrap,
    summarise_processes,
    two_modes,
    variation,
)

DRAWS = 20260101


def processes(draws, number, *, between=0.02, within=0.005, samples=11, centre=1.0):
    return [(centre + between * draws.standard_normal() + within * draws.standard_normal(samples)).tolist()
            for _ in range(number)]  # fmt: skip


def test_one_process_is_summarised_by_its_samples_and_says_so():
    summary = summarise_processes([[3.0, 1.0, 2.0, 5.0, 4.0, 6.0]])
    assert (summary.num_processes, summary.median, summary.low, summary.high) == (1, 3.5, 1.0, 6.0)
    assert summary.method == "samples of one process"
    assert summary.interval_level == pytest.approx(0.96875)
    assert (summary.between, summary.modes) == (0.0, ())


def test_one_process_with_one_sample_has_an_interval_of_no_coverage():
    summary = summarise_processes([[0.25]])
    assert (summary.median, summary.low, summary.high, summary.interval_level) == (0.25, 0.25, 0.25, 0.0)
    assert (summary.within, summary.between) == (0.0, 0.0)


def test_few_processes_have_the_interval_of_the_order_statistics_of_their_medians():
    medians = [1.05, 1.01, 1.02, 1.04, 1.03]
    summary = summarise_processes([[m - 0.1, m, m + 0.3] for m in medians])
    assert (summary.median, summary.low, summary.high) == (1.03, 1.01, 1.05)
    assert summary.method == "order statistics"
    assert summary.interval_level == pytest.approx(1 - 2 / 2**5)
    assert summary.between == pytest.approx(np.std(medians, ddof=1) / np.mean(medians))
    deviation = np.std([-0.1, 0, 0.3], ddof=1)
    assert summary.within == pytest.approx(median(deviation / (centre + 0.2 / 3) for centre in medians))


def test_nothing_is_left_out_however_far_off_it_is():
    summary = summarise_processes([[1.0, 1.0, 90.0], [1.1, 1.1, 1.1], [7.0, 7.0, 7.0]])
    assert summary.high == 7.0
    assert summary.between > 1


def test_the_order_and_number_of_samples_of_processes_may_differ():
    ragged = [[1.0], [1.2, 1.1], [0.9, 1.0, 1.3, 1.05], [1.15] * 9]
    summary = summarise_processes(ragged)
    assert summary == summarise_processes([list(reversed(process)) for process in reversed(ragged)])
    assert (summary.low, summary.median, summary.high) == (1.0, pytest.approx(1.0875), 1.15)


def test_many_processes_are_bootstrapped_with_the_seed_that_is_given():
    measured = processes(np.random.default_rng(DRAWS), BOOTSTRAP_FROM)
    summary = summarise_processes(measured, seed=3)
    assert (summary.method, summary.interval_level) == ("hierarchical bootstrap", 0.95)
    assert (summary.low, summary.high) == hierarchical_bootstrap(measured, seed=3)
    assert (summary.low, summary.high) != hierarchical_bootstrap(measured, seed=4)
    assert summary.low <= summary.median <= summary.high
    assert summarise_processes(measured[1:]).method == "order statistics"


def test_processes_that_are_all_alike_have_an_interval_without_width():
    summary = summarise_processes([[2.0, 2.0]] * 12)
    assert (summary.low, summary.median, summary.high, summary.between) == (2.0, 2.0, 2.0, 0.0)


@pytest.mark.parametrize("bad", [[], [[]], [[1.0], []], [[1.0], [math.nan]], [[math.inf], [1.0]]])
def test_no_summary_is_made_of_nothing_or_of_what_is_not_finite(bad):
    with pytest.raises(ValueError, match="processes: expected"):
        summarise_processes(bad)
    with pytest.raises(ValueError, match="processes: expected"):
        hierarchical_bootstrap(bad)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_the_bootstrap_draws_medians_as_often_as_all_ways_to_draw_them_say(number):
    # One process: the interval is of the medians of `number` draws from it, whose distribution can be written down.
    samples = [float(value**2) for value in range(number)]
    ways = {}
    for drawn in combinations_with_replacement(samples, number):
        count = math.factorial(number)
        for value in samples:
            count //= math.factorial(drawn.count(value))
        ways[median(drawn)] = ways.get(median(drawn), 0) + count
    low, high = hierarchical_bootstrap([samples], level=0.6, rounds=20_000, seed=DRAWS)
    below = 0.0
    expected = []
    for value, count in sorted(ways.items()):
        # No quantile that is asked for may lie where the distribution jumps, or the draws decide which side it is on.
        for share in (0.2, 0.8):
            assert abs(below - share) > 0.01
            if below < share < below + count / number**number:
                expected.append(value)
        below += count / number**number
    assert [low, high] == expected


def test_the_bootstrap_agrees_with_scipys_on_processes_of_one_sample():
    from scipy.stats import bootstrap

    values = np.random.default_rng(DRAWS).normal(1, 0.1, 15)
    theirs = bootstrap(
        (values,), np.median, confidence_level=0.9, method="percentile", n_resamples=9999, random_state=1
    ).confidence_interval
    ours = hierarchical_bootstrap([[value] for value in values], level=0.9, rounds=9999)
    assert ours == pytest.approx((theirs.low, theirs.high))


def test_the_interval_of_a_ratio_has_the_scatter_of_both_sides():
    measured = processes(np.random.default_rng(DRAWS), 12)
    low, high = hierarchical_bootstrap(measured, seed=3)
    assert bootstrap_ratio([[2.0, 2.0]] * 7, measured, seed=3) == pytest.approx((low / 2, high / 2))
    both = bootstrap_ratio(measured, measured, seed=3)
    assert both[0] < low < 1 < high < both[1]
    for sides in (([[]], measured), (measured, [[math.nan]])):
        with pytest.raises(ValueError, match="processes: expected"):
            bootstrap_ratio(*sides)


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 5, BOOTSTRAP_FROM - 1])
def test_intervals_of_few_processes_cover_the_true_figure_as_often_as_they_say(number):
    draws = np.random.default_rng(DRAWS)
    summaries = [summarise_processes(processes(draws, number)) for _ in range(400)]
    covered = sum(summary.low <= 1 <= summary.high for summary in summaries) / len(summaries)
    # Three standard errors.
    level = summaries[0].interval_level
    assert covered == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / len(summaries)))


@pytest.mark.slow
@pytest.mark.parametrize("number", [BOOTSTRAP_FROM, 16])
def test_intervals_of_the_bootstrap_cover_the_true_figure_at_least_9_times_in_10(number):
    draws = np.random.default_rng(DRAWS)
    intervals = [hierarchical_bootstrap(processes(draws, number), rounds=400) for _ in range(400)]
    covered = sum(low <= 1 <= high for low, high in intervals) / len(intervals)
    assert 0.9 < covered < 0.99


def test_an_interval_of_one_process_misses_the_true_figure_that_one_over_processes_covers():
    draws = np.random.default_rng(DRAWS)
    alone = [summarise_processes(processes(draws, 1, samples=21)) for _ in range(200)]
    assert sum(summary.low <= 1 <= summary.high for summary in alone) < 60


@pytest.mark.parametrize(("number", "most"), [(4, 0.025), (5, 0.015), (6, 0.015), (8, 0.005), (16, 0.002)])
def test_normal_values_seldom_look_like_two_groups(number, most):
    rows = np.random.default_rng(DRAWS).normal(1, 0.03, (2000, number))
    assert sum(bool(two_modes(row.tolist())) for row in rows) / len(rows) < most


@pytest.mark.parametrize(("number", "least"), [(5, 0.4), (8, 0.85), (16, 0.8)])
def test_two_modes_of_processes_are_found_where_each_is_met_twice(number, least):
    draws = np.random.default_rng(DRAWS)
    rows = 1 + 0.005 * draws.standard_normal((500, number)) + 0.1 * (draws.random((500, number)) < 0.5)
    assert sum(bool(two_modes(row.tolist())) for row in rows) / len(rows) > least


def test_the_centres_of_two_modes_are_told_in_order():
    assert two_modes([1.1, 1.0, 1.101, 1.002, 1.001, 1.102]) == (1.001, 1.101)
    assert summarise_processes([[1.1], [1.0], [1.101], [1.002], [1.001], [1.102]]).modes == (1.001, 1.101)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.0],
        [1.0, 2.0, 2.0],  # too few to show two in each
        [1.0, 1.0, 1.0, 1.0, 1.0, 2.0],  # one value is an outlier, not a mode
        [1.0, 1.0, 1.0, 1.015, 1.015, 1.015],  # 1.5 % apart
        [1.0] * 8,
        [1.0, 1.02, 1.04, 1.06, 1.08, 1.1],  # a slope
        [0.0] * 6,
    ],
)
def test_what_is_not_clearly_two_groups_is_none(values):
    assert two_modes(values) == ()


def test_modes_of_what_is_not_finite_are_refused():
    with pytest.raises(ValueError, match="values: expected finite ones, got"):
        two_modes([1.0, math.nan, 1.0, 2.0])


def test_variation_is_the_sample_deviation_over_the_mean():
    assert variation([1.0, 3.0]) == pytest.approx(math.sqrt(2) / 2)
    assert variation([5.0]) == variation([0.0, 0.0]) == 0.0


def test_the_geometric_mean_takes_a_ratio_and_its_inverse_back_to_one():
    assert geometric_mean([4.0, 0.25, 3.0, 1 / 3]) == pytest.approx(1.0)
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([1e200] * 4) == pytest.approx(1e200)


@pytest.mark.parametrize("bad", [[], [1.0, 0.0], [1.0, -2.0], [math.nan], [math.inf]])
def test_a_geometric_mean_of_no_ratios_is_refused(bad):
    with pytest.raises(ValueError, match="ratios: expected finite ones above zero"):
        geometric_mean(bad)
