from pathlib import Path

import pytest
from report_factory import case, measured, run_line, write_run, wrong

from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.result import Work
from bsa_bench.static.config import KernelConfig
from bsa_bench.static.devices import DEVICES
from bsa_bench.static.measured import device_of, read_measured


def dense_case(passes="forward", **fields):
    shape = {"head_dim": 128, "heads": 12, "dtype": "bfloat16"}
    options = BsaOptions(query_keep=fields.pop("query_keep", 1.0))
    return case("bsa@triton", 23296, passes, options=options, **(shape | fields))


def result_of(of, *, keep=1.0, flop=4e12, seconds=0.01, **more):
    base = measured(of)
    work = Work(**(base.work.model_dump() | {"flops_executed": flop, "query_keep_realised": keep}))
    phases = {"attend": [seconds] * 9, "select": [9.0] * 9}
    if of.passes != "forward":
        phases["attend_backward"] = [2 * seconds] * 9
    return measured(of, work=work, timing=base.timing.model_copy(update={"phases": phases}), **more)


def stored(folder, results, device="NVIDIA H200", **environment):
    given = {"device_kind": "cuda", "device_name": device} | environment
    here = run_line(len(results)).environment.model_copy(update=given)
    return read_measured([write_run(folder, results, environment=here)])


def config(passes="forward", **constants):
    names = {"forward": "triton_attend:attend_kernel", "backward": "triton_gradients:grad_q_kernel"}
    sizes = {"MQ": 64, "MK": 64, "K": 64, "D": 128, "HAS_PARTIAL": True}  # the grid of `dense_case` has padding
    return KernelConfig(
        name="c",
        kernel=f"bsa_kernels.block_sparse.{names[passes]}",
        signature={"k_ptr": "*bf16"},
        constexprs=sizes | constants,
    )


def test_the_rates_of_both_passes_are_the_executed_flop_over_their_own_phase(tmp_path):
    results = [result_of(dense_case(passes)) for passes in ("forward", "backward")]
    forward, backward = stored(tmp_path, results)
    assert (forward.flop_per_s, forward.seconds, forward.passes) == (4e14, 0.01, "forward")
    assert (backward.flop_per_s, backward.seconds) == (2e14, 0.02)
    assert (forward.device, forward.device_name, forward.run) == ("H200-SXM", "NVIDIA H200", "made-up-run")
    assert forward.case_id == results[0].case_id
    assert forward.is_of(config())
    assert not forward.is_of(config("backward"))
    assert backward.is_of(config("backward"))
    assert not backward.is_of(config())


@pytest.mark.parametrize(
    "other",
    [
        config(D=64),
        config(K=32),
        config(MQ=128),
        config(MK=128),
        config().model_copy(update={"signature": {"k_ptr": "*fp16"}}),
        config().model_copy(update={"kernel": "my_kernels.py:attend_kernel"}),
        config().model_copy(update={"constexprs": {}}),
    ],
)
def test_a_rate_is_not_that_of_another_configuration(tmp_path, other):
    (rate,) = stored(tmp_path, [result_of(dense_case())])
    assert rate.is_of(config())
    assert not rate.is_of(other)


def test_rates_of_the_specialised_forward_are_those_of_its_own_kernel(tmp_path):
    own = KernelConfig(
        name="c",
        kernel="bsa_kernels.block_sparse.gluon_attend:attend_kernel",
        signature={"q_ptr": "*bf16"},
        constexprs={"MQ": 64, "K": 64, "D": 128, "HAS_PARTIAL": True},
    )
    cases = [
        case("bsa@gluon", 23296, passes, options=BsaOptions(query_keep=1.0), head_dim=128, heads=12, dtype="bfloat16")
        for passes in ("forward", "backward")
    ]
    (rate,) = stored(tmp_path / "gluon", [result_of(each) for each in cases])  # its backward is that of triton
    assert rate.is_of(own)
    assert not rate.is_of(config())
    (other,) = stored(tmp_path / "triton", [result_of(dense_case())])
    assert not other.is_of(own)


def test_kept_rows_are_those_that_the_plan_kept(tmp_path):
    half = result_of(dense_case(query_keep=0.5), keep=0.5)
    unknown = result_of(dense_case(query_keep=0.25), keep=None)
    assert [rate.kept_rows for rate in stored(tmp_path, [half, unknown])] == [32, 16]


def test_what_is_wrong_failed_unverified_incomplete_or_of_another_engine_is_no_rate(tmp_path):
    of = dense_case()
    results = [
        wrong(of),
        result_of(of, correctness=None),
        result_of(of, flop=None),
        result_of(dense_case("forward+backward")),
        result_of(case("bsa@flex", 23296, head_dim=128, dtype="bfloat16")),
        result_of(dense_case(dtype="float64")),
        measured(of, timing=measured(of).timing.model_copy(update={"phases": {}})),
    ]
    for number, result in enumerate(results):
        assert stored(tmp_path / str(number), [result]) == []


@pytest.mark.parametrize("device", ["AMD EPYC 9554", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090"])
def test_runs_of_other_devices_are_not_read(tmp_path, device):
    assert stored(tmp_path, [result_of(dense_case())], device) == []


def test_runs_of_edited_sources_are_not_read(tmp_path):
    assert stored(tmp_path / "edited", [result_of(dense_case())], git_dirty=True) == []
    assert len(stored(tmp_path / "installed", [result_of(dense_case())], git_dirty=None)) == 1


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H200", "H200-SXM"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200X", None),
        ("NVIDIA H200 NVL", None),
        ("", None),
    ],
)
def test_a_drivers_name_means_a_device(driver, name):
    assert device_of(driver) == name


def test_the_committed_runs_can_be_read():
    folder = Path(__file__).parents[2] / "results" / "reference"
    rates = read_measured(path.parent for path in folder.glob("*/results.jsonl"))
    assert all(rate.device in DEVICES for rate in rates)
