import math
from itertools import product
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bsa_bench.stats.pairs import (
    detectable_effect,
    is_noisier,
    lockstep_log_ratio,
    median_error,
    median_log_ratio_interval,
    pooled_sd,
    shared_sd,
    signed_rank_p,
    summarise_pairs,
)

DRAWS = 20260101


def test_a_pairs_log_ratio_is_the_median_over_the_turns_so_that_common_drift_and_a_hiccup_leave_it():
    base = [1.0, 1.1, 1.3, 1.2, 9.0]
    head = [time * 1.05 for time in base]
    head[2] *= 40
    assert math.exp(lockstep_log_ratio(base, head)) == pytest.approx(1.05)
    assert lockstep_log_ratio(head, base) == pytest.approx(-lockstep_log_ratio(base, head))


@pytest.mark.parametrize(
    ("base", "head", "message"),
    [
        ([], [], "as many of both sides, got 0 and 0"),
        ([1.0], [1.0, 1.0], "as many of both sides, got 1 and 2"),
        ([1.0, math.nan], [1.0, 1.0], "finite times above zero"),
        ([1.0, 1.0], [1.0, math.inf], "finite times above zero"),
        ([0.0], [1.0], "finite times above zero"),
        ([1.0], [-1.0], "finite times above zero"),
    ],
)
def test_samples_that_are_no_times_of_two_sides_are_refused(base, head, message):
    with pytest.raises(ValueError, match=message):
        lockstep_log_ratio(base, head)


@pytest.mark.slow
@given(st.lists(st.floats(-1, 1).filter(bool), min_size=1, max_size=16, unique_by=abs))
def test_the_signed_rank_test_is_scipys_where_no_ranks_tie(log_ratios):
    assert signed_rank_p(log_ratios) == pytest.approx(
        scipy_stats.wilcoxon(log_ratios, alternative="greater", method="exact").pvalue
    )


@pytest.mark.parametrize(
    "log_ratios",
    [[0.1, 0.1, 0.1], [0.1, -0.1, 0.2, 0.2], [0.3, -0.1, -0.1, 0.2, 0.1], [0.5] * 6 + [-0.5], [-0.1, -0.1]],
)
def test_ranks_that_tie_have_the_share_of_all_ways_to_set_the_signs(log_ratios):
    ranks = scipy_stats.rankdata(np.abs(log_ratios))
    seen = sum(rank for rank, value in zip(ranks, log_ratios, strict=True) if value > 0)
    ways = [sum(rank for rank, is_above in zip(ranks, signs, strict=True) if is_above)
            for signs in product((False, True), repeat=len(ranks))]  # fmt: skip
    assert signed_rank_p(log_ratios) == pytest.approx(sum(way >= seen - 1e-9 for way in ways) / len(ways))


@pytest.mark.parametrize("number", [5, 8, 16])
def test_pairs_that_all_agree_reach_the_smallest_p_there_is(number):
    log_ratios = [0.01 * (place + 1) for place in range(number)]
    assert signed_rank_p(log_ratios) == pytest.approx(0.5**number)
    assert signed_rank_p([-ratio for ratio in log_ratios]) == 1.0
    assert signed_rank_p([0.02] * number) == pytest.approx(0.5**number)


def test_ratios_of_exactly_one_are_no_evidence():
    assert signed_rank_p([0.0, 0.0]) == 1.0
    assert signed_rank_p([0.0, 0.1, 0.2, 0.0]) == signed_rank_p([0.1, 0.2]) == 0.25


@pytest.mark.parametrize("bad", [[], [math.nan], [0.1, math.inf]])
def test_log_ratios_that_are_not_finite_are_refused(bad):
    for function in (summarise_pairs, signed_rank_p, median_log_ratio_interval):
        with pytest.raises(ValueError, match="log ratios: expected at least one finite value, got"):
            function(bad)
    for function in (pooled_sd, shared_sd):
        with pytest.raises(ValueError, match="log ratios: expected"):
            function([[0.1, 0.2], [math.nan, *bad]])


def test_a_summary_takes_the_interval_of_students_t_with_the_error_of_a_median():
    log_ratios = [0.01, 0.03, 0.02, 0.05, 0.04]
    summary = summarise_pairs(log_ratios)
    sd = np.std(log_ratios, ddof=1)
    half = scipy_stats.t.ppf(0.975, 4) * median_error(sd, 5)
    assert (summary.num_pairs, summary.log_ratio, summary.num_freedoms) == (5, 0.03, 4)
    assert (summary.sd, summary.low, summary.high) == pytest.approx((sd, 0.03 - half, 0.03 + half))
    assert summary.ratio == pytest.approx(math.exp(0.03))
    assert (summary.p_slower, summary.p_faster) == (1 / 32, 1.0)


def test_what_more_is_known_of_the_noise_narrows_the_interval():
    alone = summarise_pairs([0.01, 0.03])
    pooled = summarise_pairs([0.01, 0.03], sd=alone.sd, num_freedoms=40)
    assert pooled.high - pooled.low < (alone.high - alone.low) / 5
    assert summarise_pairs([0.01, 0.03], sd=alone.sd, num_freedoms=40, level=0.5).high < pooled.high


def test_one_pair_alone_says_nothing_of_its_interval():
    summary = summarise_pairs([0.02])
    assert (summary.low, summary.high, summary.sd, summary.num_freedoms) == (-math.inf, math.inf, math.inf, 0)
    known = summarise_pairs([0.02], sd=0.01, num_freedoms=200)
    assert known.high == pytest.approx(0.02 + 0.01 * scipy_stats.t.ppf(0.975, 200))


def test_pairs_that_do_not_scatter_have_an_interval_without_width():
    summary = summarise_pairs([0.02, 0.02, 0.02])
    assert (summary.low, summary.high, summary.sd) == (0.02, 0.02, 0.0)


@pytest.mark.parametrize(("sd", "freedoms"), [(0.1, None), (0.1, 0), (0.1, -1), (-0.1, 5), (math.nan, 5)])
def test_a_spread_without_its_degrees_of_freedom_is_refused(sd, freedoms):
    with pytest.raises(ValueError, match="sd: expected one from 0 with at least 1 degree of freedom, got"):
        summarise_pairs([0.1, 0.2], sd=sd, num_freedoms=freedoms)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 8, 15, 16, 40])
def test_the_error_of_a_median_is_that_of_normal_values(number):
    medians = np.median(np.random.default_rng(DRAWS).normal(0, 2, (60_000, number)), axis=1)
    assert median_error(2, number) == pytest.approx(medians.std(), rel=0.02)


@pytest.mark.parametrize("number", [3, 4, 8, 16])
def test_the_interval_of_pairs_covers_the_true_ratio(number):
    trials = 2000
    rows = np.random.default_rng(DRAWS).normal(0.03, 0.02, (trials, number)).tolist()
    own = [summarise_pairs(row) for row in rows]
    known = [summarise_pairs(row, sd=0.02, num_freedoms=200) for row in rows]
    for summaries in (own, known):
        covered = sum(summary.low <= 0.03 <= summary.high for summary in summaries) / trials
        assert covered == pytest.approx(0.95, abs=0.02)


def test_the_interval_of_order_statistics_covers_what_it_says_whatever_the_shape():
    rows = np.random.default_rng(DRAWS).standard_cauchy((2000, 8)).tolist()
    intervals = [median_log_ratio_interval(row) for row in rows]
    assert {level for _, _, level in intervals} == {1 - 2 / 2**8}
    assert sum(low <= 0 <= high for low, high, _ in intervals) / len(rows) == pytest.approx(1 - 2 / 2**8, abs=0.007)


def test_the_pooled_deviation_is_that_inside_groups():
    groups = [[0.0, 0.02], [5.0, 5.01, 5.02], [], [9.0]]
    within = 0.0002 + 0.0002
    assert pooled_sd(groups) == (pytest.approx(math.sqrt(within / 3)), 3)
    assert pooled_sd([[1.0], [], [2.0]]) is pooled_sd([]) is shared_sd([[1.0]]) is shared_sd([]) is None
    assert pooled_sd([[0.1, 0.1], [0.2, 0.2]]) == shared_sd([[0.1, 0.1], [0.2, 0.2]]) == (0.0, 2)


def test_a_few_groups_that_are_far_noisier_do_not_widen_what_all_share():
    draws = np.random.default_rng(DRAWS)
    quiet = draws.normal(0, 0.01, (20, 4)).tolist()
    noisy = draws.normal(0, 0.3, (4, 4)).tolist()
    sd, freedoms = shared_sd(quiet + noisy)
    assert (sd, freedoms) == pooled_sd(quiet)
    assert pooled_sd(quiet + noisy)[0] > 5 * sd


def test_groups_that_are_alike_share_a_deviation_that_is_not_biased():
    draws = np.random.default_rng(DRAWS)
    shared = [shared_sd(draws.normal(0, 0.02, (8, 3)).tolist()) for _ in range(500)]
    assert math.sqrt(np.mean([sd**2 for sd, _ in shared])) == pytest.approx(0.02, rel=0.03)
    assert np.mean([freedoms for _, freedoms in shared]) == pytest.approx(16, rel=0.02)


def test_of_two_groups_none_is_left_out():
    groups = [[0.0, 0.01, 0.02], [0.0, 0.05, 0.1]]
    assert shared_sd(groups) == pooled_sd(groups)


def test_equal_noise_is_called_larger_as_seldom_as_asked():
    draws = np.random.default_rng(DRAWS)
    pairs = [(np.std(draws.normal(size=8), ddof=1), np.std(draws.normal(size=21), ddof=1)) for _ in range(3000)]
    called = sum(is_noisier((own, 7), (known, 20), share=0.05) for own, known in pairs) / len(pairs)
    assert called == pytest.approx(0.05, abs=0.015)
    assert is_noisier((0.03, 7), (0.01, 20))
    assert not is_noisier((0.011, 7), (0.01, 20))


def test_a_detectable_effect_falls_with_pairs_and_rises_with_noise_and_never_lies_below_the_limit():
    effects = [detectable_effect(0.02, pairs, limit=0.02, significance=0.01) for pairs in (4, 8, 16, 64, 10_000)]
    assert effects == sorted(effects, reverse=True)
    assert effects[-1] == pytest.approx(0.02, abs=0.001)
    assert detectable_effect(0.0, 8, limit=0.02, significance=0.01) == 0.02
    assert detectable_effect(0.04, 8, limit=0.02, significance=0.01) > effects[1]
    assert detectable_effect(0.02, 8, limit=0.02, significance=0.01, power=0.95) > effects[1]


@pytest.mark.parametrize(("sd", "limit"), [(0.01, 0.02), (0.03, 0.01)])
def test_a_detectable_effect_is_found_8_times_in_10(sd, limit):
    # The two settings are bound by the limit and by the test.
    effect = detectable_effect(sd, 16, limit=limit, significance=0.01)
    rows = np.random.default_rng(DRAWS).normal(effect, sd, (1000, 16))
    # p depends on the sum of the ranks alone, so that one row stands for all that have its sum.
    sums = ((rows > 0) * scipy_stats.rankdata(np.abs(rows), axis=1)).sum(axis=1)
    is_significant = {total: signed_rank_p(rows[np.argmax(sums == total)].tolist()) < 0.01 for total in set(sums)}
    found = sum(median(row) > limit and is_significant[total] for row, total in zip(rows, sums, strict=True))
    assert found / len(rows) == pytest.approx(0.8, abs=0.05)
