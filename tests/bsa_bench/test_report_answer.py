import pytest
from report_factory import case, measured, result, run_line, timing

from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.report.answer import answer
from bsa_bench.report.labels import Labels
from bsa_bench.result import DeviceState, Status
from bsa_bench.store.derive import derive
from bsa_bench.store.reader import read_run

OPTIONS = BsaOptions(kv_density=0.05, query_keep=1.0)
LENGTHS = (1024, 2048, 4096)


def pair(tokens, dense_s, sparse_s, passes="forward", **fields):
    """A dense and a sparse row of a length."""
    sparse = measured(case("bsa@gather", tokens, passes, options=OPTIONS), median=sparse_s)
    dense = measured(case("full@sdpa-flash", tokens, passes), median=dense_s)
    return [dense, sparse.model_copy(update=fields)]


@pytest.fixture
def told(tmp_path):
    """The answer of a run of these results."""

    def tell(results, **fields):
        from report_factory import write_run

        run = read_run(write_run(tmp_path / "run", results, **fields))
        rows = derive(run.latest())
        return answer(run, rows, Labels(row.result.case for row in rows))

    return tell


def test_it_names_what_to_use_at_each_length(told):
    results = [*pair(1024, 0.01, 0.02), *pair(2048, 0.04, 0.02), *pair(4096, 0.16, 0.04)]
    device = run_line(1).environment.device_name
    assert told(results).startswith(
        f"**forward on {device}: use `full@sdpa-flash` at 1,024 tokens; use `bsa@gather` at 2,048 and 4,096 tokens.** "
        "At 4,096 tokens `bsa@gather` is 4.00x faster than `full@sdpa-flash` (one process), "
    )


def test_training_comes_before_the_forward_alone(told):
    results = [each for tokens in LENGTHS for each in pair(tokens, 0.1, 0.02)]
    assert told([*results, *pair(1024, 0.3, 0.1, "forward+backward")]).startswith("**forward+backward on ")


def test_it_says_how_far_from_the_ideal_and_why(told):
    sparse = measured(case("bsa@gather", 4096, options=OPTIONS), median=0.02)
    phases = {"select": [0.004] * 9, "attend": [0.016] * 9}
    sparse = sparse.model_copy(update={"timing": timing(0.02, phases=phases, attend_only=[0.016] * 9)})
    text = told([measured(case("full@sdpa-flash", 4096), median=0.16), sparse])
    density = sparse.work.density_realised
    assert f"8.00x faster than `full@sdpa-flash` (one process), {100 * 8 * density:.3g}% of the ideal" in text
    assert f": attend multiplies at {100 * 10 * density:.1f}% of the dense rate, " in text
    assert ", and the other phases take 20.0% of the time; " in text
    assert "off dense attention (relative L2)" in text


def test_a_disturbed_row_gives_no_verdict(told):
    text = told(pair(1024, 0.1, 0.02, state=DeviceState(other_cpu_share=0.4)))
    assert ": no verdict at 1,024 tokens.**" in text
    assert "faster than" not in text
    assert "disturbed" in text


def test_an_interval_that_holds_1x_gives_no_verdict(told):
    wide = timing(0.1, samples=[0.05, 0.1, 0.2, 0.09, 0.11])
    assert ": no verdict at 1,024 tokens.**" in told(pair(1024, 0.101, 0.1, timing=wide))


def test_it_lists_what_did_not_run(told):
    failed = result(case("bsa@flex", 1024, options=OPTIONS), Status.OOM, reason="scripted")
    left = result(case("full@flex", 1024), Status.NOT_MEASURED, reason="scripted")
    text = told([*pair(1024, 0.1, 0.02), failed, left], unavailable={"full@xformers": "not here"})
    assert text.endswith("Not available here: `full@xformers`; failed: 1 cases of `bsa@flex`; not reached: 1 cases.")


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([measured(case("full@sdpa-flash"))], "This run has no sparse row next to a dense one"),
        ([result(case("bsa@gather"), Status.OOM, reason="scripted")], "Nothing was measured and verified"),
    ],
)
def test_a_run_without_a_pair_says_that_it_does_not_answer(told, results, expected):
    assert told(results).startswith(expected)
