"""Ceilings of a run: matrix products and a copy, from a clock that tells made-up times."""

import json

import pytest
import torch
from run_factory import environment

from bsa_bench import worker
from bsa_bench.child_process import PACKAGE
from bsa_bench.errors import EXIT_INFRASTRUCTURE, MachineError
from bsa_bench.limits.ceilings import CPU_SIZES, CUDA_SIZES, REPEATS, CeilingSizes, CpuClock, measure_ceilings
from bsa_bench.result import Ceiling
from bsa_bench.run import probe as probing

CPU = torch.device("cpu")
SMALL = CeilingSizes({torch.bfloat16: 16, torch.float32: 32}, copy_mib=1)


def test_a_ceiling_is_the_work_over_the_median_time():
    seconds = iter([9.0] + [0.5, 0.25, 0.5, 8.0, 0.5, 0.125, 0.75] + [1.0] * 16)

    def clock(call, times):
        assert times == 1
        call()
        return next(seconds)

    half, full, copy = measure_ceilings(CPU, clock, SMALL)
    assert (half.name, half.value, half.unit) == ("GEMM bfloat16", 2 * 16**3 / 0.5, "FLOP/s")
    assert (full.name, full.value, full.unit) == ("GEMM float32", 2.0 * 32**3, "FLOP/s")
    assert (copy.name, copy.value, copy.unit) == ("copy", 2.0 * (1 << 20), "B/s")
    assert next(seconds, None) is None
    threads = f"{torch.get_num_threads()} threads"
    assert full.detail == f"32 x 32 x 32, float32 (highest precision), normal numbers, by torch, {threads}, median of 7"
    assert copy.detail == f"1 MiB, read and written, by torch, {threads}, median of {REPEATS}"


def test_the_clock_of_a_cpu_gives_the_mean_of_the_calls(monkeypatch):
    ticks = iter([1.0, 7.0])
    monkeypatch.setattr("bsa_bench.limits.ceilings.time.perf_counter", lambda: next(ticks))
    called = []
    assert CpuClock()(lambda: called.append(1), 3) == 2.0
    assert len(called) == 3


def test_a_cpu_is_asked_for_fp32_and_a_gpu_for_bf16_too():
    assert list(CPU_SIZES.matrix) == [torch.float32]
    assert list(CUDA_SIZES.matrix) == [torch.bfloat16, torch.float32]


@pytest.mark.slow
def test_this_machine_has_ceilings():
    found = measure_ceilings(CPU, sizes=CeilingSizes({torch.float32: 256}, copy_mib=8))
    assert [ceiling.name for ceiling in found] == ["GEMM float32", "copy"]
    assert all(ceiling.value > 1e7 for ceiling in found)


class Machine:
    """A probe whose machine is a script."""

    def __init__(self, monkeypatch):
        self.measured = []
        self.troubles, self.notes = [], []
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # a probe takes it out, which is undone after the test
        monkeypatch.setattr(worker, "set_up_cpu", lambda _: 1)
        monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
        monkeypatch.setattr(worker, "_troubles", lambda _: (self.troubles, self.notes))
        monkeypatch.setattr("bsa_bench.limits.ceilings.measure_ceilings", self.measure)
        monkeypatch.setattr("bsa_bench.measure.environment.collect_environment", lambda **_: environment())
        monkeypatch.setattr(probing, "_ask", self.ask)

    def measure(self, device):
        self.measured.append(device.type)
        return [Ceiling(name="copy", value=1e10, unit="B/s", detail="8 MiB")]

    def ask(self, command, request, environment):
        assert command[-1] == "--probe"
        assert environment is None
        answer = {"package": str(PACKAGE)} | worker._probe(json.loads(request))
        return 0, json.dumps(answer), ""


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_ceilings_are_measured_where_they_are_asked_for(machine):
    assert probing.probe({}, device="cpu", threads=1).ceilings == ()
    assert machine.measured == []
    (ceiling,) = probing.probe({}, device="cpu", threads=1, with_ceilings=True).ceilings
    assert (ceiling.name, ceiling.value, machine.measured) == ("copy", 1e10, ["cpu"])


def test_a_machine_that_is_not_ready_is_refused_and_not_measured_or_told_of_where_asked(machine):
    machine.troubles, machine.notes = ["other processes: 12", "held back"], ["no counters"]
    with pytest.raises(MachineError, match="a CPU is not measured: other processes: 12; held back") as caught:
        probing.probe({}, device="cpu", threads=1, with_ceilings=True)
    assert caught.value.exit_code == EXIT_INFRASTRUCTURE
    assert machine.measured == []
    found = probing.probe({}, device="cpu", threads=1, must_be_ready=False)
    assert (found.troubles, found.notes) == (("other processes: 12", "held back"), ("no counters",))


def test_doctor_tells_of_settings_and_of_what_is_in_the_way(machine, monkeypatch, capsys, tmp_path):
    from bsa_bench.cli import commands

    machine.troubles, machine.notes = ["other compute processes are on the GPU: process 12"], ["no counters"]
    here = environment().model_copy(
        update={
            "cpu": {"model": "a CPU", "usable_cores": 2, "memory_bytes": 1 << 30, "smt": "on", "steal_share": 0.01234,
                    "governor": None, "aslr": 2}
        }
    )  # fmt: skip
    monkeypatch.setattr("bsa_bench.measure.environment.collect_environment", lambda **_: here)
    monkeypatch.setattr(commands, "implementations", lambda: ["full@sdpa-math"])
    commands.doctor(tmp_path, as_json=False)
    out = capsys.readouterr().out
    assert "settings  governor unknown, turbo unknown, smt on, cpu_quota_cores unknown, aslr 2" in out
    assert "steal_share 0.01234" in out
    assert "  no   ready to be measured: other compute processes are on the GPU: process 12" in out
    assert "  ?    no counters" in out
    commands.doctor(tmp_path, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["troubles"] == machine.troubles
    assert document["notes"] == machine.notes


def test_a_gpus_settings_are_told_in_words():
    from bsa_bench.cli.commands import _settings

    shown = _settings({"ecc": True, "mig": False, "power_limit_w": 700.0}, "cuda")
    assert {"ecc on", "mig off", "power_limit_w 700", "driver unknown"} <= set(shown)
    assert not any(text.startswith("nvml_error") for text in shown)
    assert "nvml_error Driver Not Loaded" in _settings({"nvml_error": "Driver Not Loaded"}, "cuda")
