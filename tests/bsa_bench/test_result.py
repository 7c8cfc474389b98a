import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from run_factory import case, worker_result

from bsa_bench.catalog import make_case
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.result import (
    STATUS_MEANING,
    Case,
    Correctness,
    ErrorFigures,
    Memory,
    PaperClaim,
    Result,
    Status,
    Timing,
    Work,
)
from bsa_bench.workload import InputSpec, Workload

WORKLOAD = Workload(grid=(4, 8, 8), heads=1, head_dim=32)


def test_every_status_has_a_meaning_and_only_not_measured_is_tried_again():
    assert set(STATUS_MEANING) == set(Status)
    assert [s for s in Status if not s.is_final] == [Status.NOT_MEASURED]
    failures = {Status.OOM, Status.TIMEOUT, Status.CRASHED, Status.FELL_BACK, Status.IMPLAUSIBLE}
    assert {s for s in Status if s.is_failure} == failures
    assert Status.SKIPPED_OOM.meaning.startswith("not started")


def test_the_passes_of_a_case_share_a_group_and_differ_in_their_hash():
    passes = [case(passes=p) for p in ("forward", "backward", "forward+backward")]
    assert len({c.group for c in passes}) == 1
    assert len({c.case_hash for c in passes}) == 3


def test_a_case_is_the_same_whatever_suite_or_variant_asked_for_it():
    one = case("bsa@gather", kv_density=0.2)
    claim = PaperClaim(speedup=17.79, standing="P", source="abstract")
    other = one.model_copy(update={"suite": "other", "variant": "a", "paper": claim})
    assert other.case_hash == one.case_hash


def test_what_changes_the_measurement_changes_the_hash():
    base = case("bsa@gather")
    changed = [
        case("bsa@flex"),
        case("bsa@gather", tokens=512),
        case("bsa@gather", kv_density=0.2),
        case("bsa@gather", fill="zero"),
        case("full@gather"),
        base.model_copy(update={"workload": base.workload.model_copy(update={"input": InputSpec(seed=3)})}),
    ]
    assert len({c.case_hash for c in [base, *changed]}) == 1 + len(changed)


def test_a_case_id_is_a_readable_slug():
    assert case("bsa@gather").case_id == "bsa@gather/256-4x8x8/1x32-float32/smooth/d0.1-k0.5/forward"
    batched = Case(
        suite="s",
        workload=WORKLOAD.model_copy(update={"batch": 2}),
        implementation="full@sdpa-flash",
        passes="backward",
    )
    assert batched.case_id == "full@sdpa-flash/4x8x8/b2-1x32-float32/smooth/backward"
    assert (batched.method, batched.engine) == ("full", "sdpa-flash")


OPTIONS = st.fixed_dictionaries(
    {
        "kv_density": st.sampled_from([0.1, 0.2, 0.1 + 2**-54]),
        "query_keep": st.sampled_from([0.5, 1]),
        "fill": st.sampled_from(["nearest", "zero"]),
        "query_block": st.sampled_from([None, (2, 4, 4), (4, 4, 4)]),
    }
)
LENGTHS = st.sampled_from([{"tokens": 64}, {"tokens": 512}, {"grid": (4, 4, 4)}]) | st.fixed_dictionaries(
    {"frames": st.sampled_from([13, 14]), "height": st.just(64), "width": st.just(64)}
)
INPUTS = st.builds(InputSpec, seed=st.integers(0, 1)) | st.builds(
    InputSpec, kind=st.just("video"), path=st.sampled_from(["/a/x.mp4", "/b/x.mp4"])
)
SHAPES = st.fixed_dictionaries(
    {
        "model": st.sampled_from([None, "cpu-1x32"]),
        "heads": st.integers(1, 2),
        "batch": st.integers(1, 2),
        "patch": st.sampled_from([(1, 2, 2), (1, 1, 1)]),
        "input": INPUTS,
    }
)
WORKLOADS = st.builds(lambda length, shape: Workload(**length, **shape), LENGTHS, SHAPES)


@pytest.mark.slow
@given(st.lists(st.tuples(WORKLOADS, OPTIONS), min_size=2, max_size=2))
def test_two_measurements_have_two_ids(pairs):
    one, other = (
        make_case(suite="s", workload=w, implementation="bsa@gather", passes="forward", options=o) for w, o in pairs
    )
    assert (one.case_id == other.case_id) == (one.case_hash == other.case_hash)


def test_a_result_that_contradicts_itself_is_refused():
    whole = worker_result(case("bsa@gather"))
    fields = whole.model_dump()
    for change in ({"timing": None}, {"status": "WRONG"}, {"status": "COUNTED"}, {"status": "CRASHED"}):
        with pytest.raises(ValidationError, match=f"status {change.get('status', 'OK')}"):
            Result(**fields | change)
    verdict = {"oracle": "o", "checked": {}, "budget": {}, "rows": 1}
    for status, passed in (("OK", False), ("WRONG", True)):
        timing = fields["timing"] if status == "OK" else None
        with pytest.raises(ValidationError, match="contradicts its verification"):
            Result(**fields | {"status": status, "timing": timing, "correctness": {**verdict, "passed": passed}})


@pytest.mark.parametrize("name", ["full", "full@", "@flash", "Full@flash", "a@b@c", "full sdpa"])
def test_an_implementation_is_method_at_engine(name):
    with pytest.raises(ValidationError, match="pattern"):
        Case(suite="s", workload=WORKLOAD, implementation=name, passes="forward")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_no_nan_infinity_or_negative_number_is_stored(bad):
    with pytest.raises(ValidationError):
        ErrorFigures(max_abs=bad, relative_l2=0, cosine=1)
    with pytest.raises(ValidationError):
        Timing(timer="host", cache="warm", first_call_s=0, warmup_s=0, settled=True, samples=[bad])
    with pytest.raises(ValidationError):
        Memory(inputs_bytes=bad, how="made up")


def test_a_timing_needs_a_sample():
    with pytest.raises(ValidationError, match="at least 1 item"):
        Timing(timer="host", cache="warm", first_call_s=0, warmup_s=0, settled=True, samples=[])


@pytest.mark.parametrize("fields", [{"query_keep": 0}, {"kv_density": 1.5}, {"block": (4, 4)}, {"fill": "wrap"}])
def test_options_outside_their_range_are_refused(fields):
    with pytest.raises(ValidationError):
        BsaOptions(**fields)


def test_the_ideal_speedup_is_one_over_the_realised_density():
    work = Work(flops_nominal=1, flops_dense_equiv=20, flops_selection=0, sparsity_nominal=0.95, density_realised=0.05)
    assert work.ideal_speedup == pytest.approx(20)
    with pytest.raises(ValidationError):
        Work(flops_nominal=1, flops_dense_equiv=1, flops_selection=0, sparsity_nominal=1, density_realised=0)


def test_a_result_survives_json_and_refuses_keys_it_does_not_know():
    result = worker_result(case("bsa@gather"))
    text = result.model_dump_json()
    assert Result.model_validate_json(text) == result
    with pytest.raises(ValidationError, match="speed"):
        Result.model_validate_json(text.replace('"seq"', '"speed":1,"seq"', 1))


def test_a_kept_mass_above_one_is_an_error_but_rounding_is_not():
    fields = {"oracle": "o", "checked": {}, "budget": {}, "rows": 1, "passed": True}
    assert Correctness(**fields, mass_kept=1 + 1e-9).mass_kept > 1
    with pytest.raises(ValidationError):
        Correctness(**fields, mass_kept=1.01)
