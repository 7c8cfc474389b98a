import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsa_bench.errors import EXIT_CODES, EXIT_USAGE, BenchError, StoreError, SuiteError, UsageError
from bsa_bench.stats import median_interval, quantile, summarise
from bsa_bench.units import format_bytes, format_flop, format_ratio, format_seconds, parse_duration, three_digits


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("9m", 540),
        ("1h30m", 5400),
        ("1h2m3s", 3723),
        ("1.5h", 5400),
        (" 2M ", 120),
        ("0.5", 0.5),
    ],
)
def test_a_duration_is_read_in_hours_minutes_and_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "9 m", "m9", "-3s", "9d", "nan", "inf", "1m2h"])
def test_what_is_no_duration_above_zero_is_refused_with_examples(text):
    with pytest.raises(UsageError, match="expected a time above zero such as 90s, 9m or 1h30m") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (0.0, "0 ns"),
        (3.2e-9, "3.20 ns"),
        (812e-6, "812 us"),
        (5.2e-3, "5.20 ms"),
        (0.9996, "1.00 s"),
        (1.93, "1.93 s"),
        (119.4, "119 s"),
        (200.0, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3600.4, "1 h 0 min"),
        (3870.0, "1 h 4 min"),
        (97_200.0, "27 h 0 min"),
    ],
)
def test_seconds_are_shown_with_three_digits_and_the_unit_that_fits(seconds, text):
    assert format_seconds(seconds) == text


def test_bytes_have_binary_and_flop_decimal_prefixes():
    assert [format_bytes(x) for x in (0, 1023, 1024, 1.5 * 2**30, 3 * 2**50)] == [
        "0 B",
        "1023 B",
        "1.00 KiB",
        "1.50 GiB",
        "3072 TiB",
    ]
    assert [format_flop(x) for x in (999, 1000, 137e9, 6.99e13, 2e21)] == [
        "999 FLOP",
        "1.00 kFLOP",
        "137 GFLOP",
        "69.9 TFLOP",
        "2000 EFLOP",
    ]
    assert format_bytes(None) == format_flop(math.nan) == format_ratio(None) == "-"
    assert format_ratio(14.23) == "14.2x"


@given(st.floats(1e-9, 1e9))
def test_three_digits_keep_the_value_to_half_a_percent_and_never_show_more_than_three_below_a_thousand(value):
    text = three_digits(value)
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=0.005)
    if value < 999:
        assert len(text.replace(".", "").lstrip("0")) == 3


@pytest.mark.slow
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_a_quantile_lies_between_the_extremes_and_rises_with_its_share(samples, share):
    ordered = sorted(samples)
    assert ordered[0] <= quantile(ordered, share) <= ordered[-1] + 1e-9
    assert quantile(ordered, share) <= quantile(ordered, min(share + 0.1, 1.0)) + 1e-9


def test_quantiles_interpolate_between_neighbours():
    assert quantile([1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile([1.0, 3.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.25) == 2.5


@pytest.mark.parametrize(
    ("n", "rank", "level"),
    [(1, 0, 0.0), (2, 0, 0.5), (5, 0, 0.9375), (6, 0, 0.96875), (8, 0, 0.9921875), (9, 1, 0.9609375)],
)
def test_the_interval_of_the_median_has_the_binomial_ranks_of_the_tables(n, rank, level):
    assert median_interval([float(i) for i in range(n)]) == (rank, n - 1 - rank, pytest.approx(level))


@given(st.integers(6, 200))
def test_the_interval_reaches_its_level_and_the_next_narrower_one_does_not(n):
    low, high, level = median_interval([float(i) for i in range(n)])
    assert low + high == n - 1
    assert level >= 0.95
    narrower = 1 - 2 * sum(math.comb(n, i) for i in range(int(low) + 2)) / 2**n
    assert narrower < 0.95


def test_a_summary_keeps_outliers_and_order_does_not_matter():
    summary = summarise([5.0, 1.0, 100.0, 2.0, 3.0])
    assert (summary.num_samples, summary.median, summary.minimum, summary.high) == (5, 3.0, 1.0, 100.0)
    assert summary.mean == pytest.approx(22.2)
    assert summary == summarise([100.0, 5.0, 3.0, 2.0, 1.0])
    assert summary.q1 <= summary.median <= summary.q3 <= summary.p95
    assert summarise([0.25]).variation == 0.0
    assert summarise([0.0, 0.0]).variation == 0.0


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf]])
def test_no_summary_is_made_of_nothing_or_of_what_is_not_finite(samples):
    with pytest.raises(ValueError, match="samples: expected at least one finite value, got "):
        summarise(samples)


def test_each_domain_error_ends_a_command_with_a_documented_code():
    for error in (UsageError, SuiteError, StoreError):
        assert error.exit_code in EXIT_CODES
        assert issubclass(error, BenchError)
