import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_factory import case, environment, three_passes

from bsa_bench.catalog import ENGINES
from bsa_bench.result import Ceiling
from bsa_bench.run import DeviceModel, plan_run, predict
from bsa_bench.run.estimate import available_memory_bytes, group_seconds, loads_torch_compiler

CPU = DeviceModel.cpu(threads=2, memory_bytes=8 << 30)


def test_a_device_is_modelled_by_its_environment():
    here = environment().model_copy(update={"cpu": {"threads": 2}})
    cpu = DeviceModel.of(here)
    assert (cpu.kind, cpu.flop_per_s, cpu.start_s) == ("cpu", CPU.flop_per_s, CPU.start_s)
    assert cpu.memory_bytes > 0
    details = {"memory_bytes": 141 << 30}
    gpu = here.model_copy(update={"device_kind": "cuda", "device_name": "NVIDIA H200", "device_details": details})
    assert DeviceModel.of(gpu) == DeviceModel.cuda(name="NVIDIA H200", memory_bytes=141 << 30)


def test_torch_s_compiler_is_loaded_ahead_where_the_first_call_would_load_it():
    assert {engine for engine in ENGINES if loads_torch_compiler(engine)} == {"flex", "flash-attn", "xformers", "fla"}
    assert loads_torch_compiler("somebody-elses")
    assert not loads_torch_compiler("triton:pack")


def test_a_machine_that_delivers_less_than_its_model_is_taken_at_what_it_delivers():
    here = environment().model_copy(update={"cpu": {"threads": 2}})
    slow = [
        Ceiling(name="GEMM float32", value=8e9, unit="FLOP/s", detail="scripted"),
        Ceiling(name="copy", value=1e9, unit="B/s", detail="scripted"),
    ]
    found = DeviceModel.of(here, probe_s=50.0, ceilings=slow)
    assert (found.flop_per_s, found.bytes_per_s, found.start_s) == (8e9, 1e9, 30.0)
    fast = [ceiling.model_copy(update={"value": 1e15}) for ceiling in slow]
    assert DeviceModel.of(here, probe_s=1.0, ceilings=fast).flop_per_s == CPU.flop_per_s
    assert DeviceModel.of(here, probe_s=1.0, ceilings=fast).start_s == CPU.start_s


def test_dense_flop_are_exact_and_backward_costs_two_and_a_half_times_as_much():
    forward, backward, both = (predict(c, CPU).flop for c in three_passes(tokens=1024))
    assert forward == 4 * 32 * 1024**2
    assert (backward, both) == (2.5 * forward, 3.5 * forward)


def test_the_selection_of_a_sparse_method_is_counted_but_not_in_backward():
    dense = 4 * 32 * 4096**2
    forward, backward, _ = (predict(c, CPU).flop for c in three_passes("bsa@gather", 4096))
    blocks = 64
    selection = 32 * 4096 * 7.5 + blocks**2 * (2 * 32 + 5)
    assert forward == pytest.approx(dense * 0.05 + selection)
    assert backward == pytest.approx(dense * 0.05 * 2.5)


def test_only_an_engine_that_holds_all_scores_grows_with_the_square_of_the_length():
    def growth(implementation):
        return predict(case(implementation, 65536), CPU).bytes / predict(case(implementation, 16384), CPU).bytes

    assert growth("full@sdpa-math") > 15
    assert growth("full@sdpa-flash") == pytest.approx(4)
    assert growth("bsa@gather") < 8


def test_math_attention_at_153600_tokens_does_not_fit_but_flash_and_gather_do():
    fits = {
        row.case.implementation: row.fits
        for row in plan_run([case(i, 153_600) for i in ("full@sdpa-math", "full@sdpa-flash", "bsa@gather")], device=CPU)
    }
    assert fits == {"full@sdpa-math": False, "full@sdpa-flash": True, "bsa@gather": True}


@pytest.mark.slow
@given(
    st.integers(8, 60_000), st.sampled_from(["full@sdpa-math", "full@flex", "bsa@gather", "bsa@triton", "full@theirs"])
)
def test_predictions_are_positive_and_grow_with_the_length(tokens, implementation):
    small = predict(case(implementation, tokens), CPU)
    large = predict(case(implementation, 2 * tokens), CPU)
    assert 0 < small.inputs_bytes < small.bytes < large.bytes
    assert 0 < small.flop < large.flop
    assert 0 < small.call_s < large.call_s


def test_the_report_profile_takes_longer_and_sharing_a_worker_takes_less():
    cases = three_passes()
    assert group_seconds(cases, CPU, "report") > group_seconds(cases, CPU, "quick")
    assert group_seconds(cases, CPU) < sum(group_seconds([c], CPU) for c in cases)


def test_a_gpu_is_known_by_its_name():
    known = DeviceModel.cuda(name="NVIDIA H200", memory_bytes=1)
    other = DeviceModel.cuda(name="NVIDIA T4", memory_bytes=1)
    assert known.flop_per_s > other.flop_per_s


def test_the_memory_that_can_be_used_is_known():
    assert available_memory_bytes() > 0


def test_plan_rows_add_up_and_say_why_a_case_will_not_run():
    cases = [*three_passes(), case("full@xformers"), case("full@sdpa-math", 200_000)]
    rows = plan_run(cases, device=CPU, unavailable=lambda c: "install it" if c.engine == "xformers" else None)
    assert [row.runs for row in rows] == [True, True, True, False, False]
    assert sum(row.seconds for row in rows) == pytest.approx(group_seconds(cases[:3], CPU))
    assert rows[3].reason == "install it"
    assert not rows[4].fits
    assert rows[4].reason.startswith("predicted to need ")


@pytest.mark.slow
def test_the_scheduler_loads_neither_torch_nor_pandas_nor_rich():
    program = "import sys, bsa_bench.run; print({'torch', 'triton', 'pandas', 'matplotlib', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
