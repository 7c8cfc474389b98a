"""Energy by counters: a loop that is long enough, rest taken off, a reason where there is no counter."""

import os
import sys
from types import ModuleType

import pytest
import torch

from bsa_bench.measure import energy
from bsa_bench.measure.energy import GpuMeter, RaplMeter, measure_energy

CPU = torch.device("cpu")


class Device:
    """Takes 50 W at rest and 250 W in a call of a tenth of a second."""

    how = "a made-up counter"

    def __init__(self):
        self.now, self.used, self.num_calls, self.told = 0.0, 1234.0, 0, []

    def joules(self):
        return self.used

    def pass_time(self, seconds, watts=50.0):
        self.now += seconds
        self.used += watts * seconds

    def call(self):
        self.num_calls += 1
        self.pass_time(0.1, 250.0)

    def measure(self, device=CPU, call_s=0.1):
        return measure_energy(
            self.call,
            device=device,
            call_s=call_s,
            open_meter=lambda _: self,
            clock=lambda: self.now,
            sleep=self.pass_time,
        )


def test_joules_of_a_call_are_the_growth_over_a_loop_of_two_seconds_and_rest_is_taken_off():
    device = Device()
    found = device.measure()
    assert found.joules_per_call == pytest.approx(25.0)
    assert found.above_idle_joules_per_call == pytest.approx(20.0)
    assert found.idle_w == pytest.approx(50.0)
    assert found.num_calls == device.num_calls
    assert found.num_calls in {20, 21}
    assert found.seconds == pytest.approx(0.1 * found.num_calls)
    assert found.seconds >= 2.0 - 1e-9
    assert found.how.startswith("a made-up counter; over a loop of calls")
    assert found.reason is None


def test_short_calls_are_enqueued_many_at_a_time_and_a_long_one_once(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(device.num_calls))
    device = Device()
    device.measure(torch.device("cuda"), call_s=0.02)
    assert waits[:3] == [0, 5, 10]
    waits.clear()
    device = Device()
    device.measure(torch.device("cuda"), call_s=3.0)
    assert waits[:3] == [0, 1, 2]


def test_without_a_counter_there_is_a_reason_and_no_number_and_the_call_is_spared():
    def none(_):
        raise OSError("there is none")

    found = measure_energy(lambda: pytest.fail("called"), device=CPU, call_s=1.0, open_meter=none)
    assert found.reason == "there is none"
    assert found.joules_per_call is found.above_idle_joules_per_call is found.idle_w is None


@pytest.fixture
def nvml(monkeypatch):
    module = ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: {"GPU-a": 1}[uuid]
    module.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 7500
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_a_gpus_counter_is_in_millijoules(nvml):
    assert GpuMeter("GPU-a").joules() == 7.5


def test_a_gpu_without_a_counter_says_so(nvml):
    def refuse(handle):
        raise nvml.NVMLError("Not Supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = refuse
    with pytest.raises(OSError, match="NVML gives no total energy of this GPU, expected it of Volta and later"):
        GpuMeter("GPU-a")


def package(folder, name, kind, uj, whole=1000_000):
    path = folder / name
    path.mkdir(parents=True)
    for file, content in (("name", kind), ("energy_uj", uj), ("max_energy_range_uj", whole)):
        (path / file).write_text(f"{content}\n")
    return path / "energy_uj"


def test_the_packages_of_a_processor_are_added_up_and_their_parts_are_not(tmp_path):
    first = package(tmp_path, "intel-rapl:0", "package-0", 100_000)
    second = package(tmp_path, "intel-rapl:1", "package-1", 200_000)
    package(tmp_path, "intel-rapl:0:0", "core", 50_000)
    package(tmp_path, "intel-rapl:2", "psys", 50_000)
    meter = RaplMeter(tmp_path)
    assert meter.joules() == 0
    first.write_text("150000")
    second.write_text("260000")
    assert meter.joules() == pytest.approx(0.11)


def test_a_counter_of_a_processor_that_wraps_goes_on(tmp_path):
    counter = package(tmp_path, "intel-rapl:0", "package-0", 900_000)
    meter = RaplMeter(tmp_path)
    counter.write_text("100000")
    assert meter.joules() == pytest.approx(0.2)
    counter.write_text("300000")
    assert meter.joules() == pytest.approx(0.4)


def test_a_machine_without_counters_of_its_processor_says_so(tmp_path):
    with pytest.raises(OSError, match="has no counters of processor packages"):
        RaplMeter(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_counters_for_root_alone_are_said_to_be_so(tmp_path):
    package(tmp_path, "intel-rapl:0", "package-0", 1).chmod(0)
    with pytest.raises(OSError, match="energy_uj may be read by root only"):
        RaplMeter(tmp_path)


def test_a_refused_read_is_said_to_be_one(tmp_path, monkeypatch):
    package(tmp_path, "intel-rapl:0", "package-0", 1)
    read = type(tmp_path).read_text

    def refuse(path, *arguments, **more):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *arguments, **more)

    monkeypatch.setattr(type(tmp_path), "read_text", refuse)
    with pytest.raises(OSError, match="energy_uj may be read by root only"):
        RaplMeter(tmp_path)


def test_a_cpu_has_the_counters_of_its_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(energy.RaplMeter.__init__, "__defaults__", (tmp_path,))
    package(tmp_path, "intel-rapl:0", "package-0", 1)
    assert isinstance(energy.open_meter(CPU), RaplMeter)
