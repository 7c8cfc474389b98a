import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bsa_bench.measure import device_state
from bsa_bench.measure.device_state import DeviceWatch, gpu_uuid, summarise_polls

MODULE = [sys.executable, "-m", "bsa_bench.measure.device_state"]

#: A card whose clock falls while its throttle counters rise; it does not tell its temperature.
FAKE_PYNVML = """
import itertools
NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "mem", "gpu"
NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = "power", "thermal"
NVML_PERF_POLICY_RELIABILITY, NVML_PERF_POLICY_BOARD_LIMIT = "reliability", "board"
class NVMLError(Exception): pass
clock, power = itertools.count(1980, -10), itertools.count(1000, 500)
def nvmlInit(): pass
def nvmlDeviceGetHandleByUUID(uuid):
    if uuid != "GPU-abc": raise NVMLError("Not Found")
    return uuid
def nvmlDeviceGetClockInfo(handle, which): return next(clock) if which == "sm" else 2600
def nvmlDeviceGetPowerUsage(handle): return 350_000
def nvmlDeviceGetTemperature(handle, which): raise NVMLError("Not Supported")
class Violation:
    def __init__(self, time): self.violationTime = time
NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN = 270
braked = itertools.count(3)
class Value:
    nvmlReturn = 0
    def __init__(self, ns): self.value = type("Union", (), {"ullVal": ns})
def nvmlDeviceGetFieldValues(handle, fields): return [Value(next(braked)) for field in fields]
def nvmlDeviceGetViolationStatus(handle, policy):
    if policy == "board": raise NVMLError("Not Supported")
    return Violation(next(power) if policy == "power" else 7)
"""


@pytest.fixture
def fake_card(tmp_path, monkeypatch):
    (tmp_path / "pynvml.py").write_text(FAKE_PYNVML)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    properties = SimpleNamespace(uuid="abc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return properties


def poll(uuid, seconds):
    """Run the poller by itself until its stdin is closed."""
    process = subprocess.Popen([*MODULE, uuid], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    time.sleep(seconds)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    return [json.loads(line) for line in [first, *rest.splitlines()]]


@pytest.mark.slow
def test_the_poller_prints_a_line_about_every_tenth_of_a_second_until_its_stdin_closes(fake_card):
    lines = poll("GPU-abc", 0.45)
    assert 3 <= len(lines) <= 7
    assert lines[0] == {
        "throttle_hardware_thermal": 3.0,
        "sm_clock_hz": 1980e6,
        "memory_clock_hz": 2600e6,
        "power_w": 350.0,
        "throttle_power": 1000.0,
        "throttle_thermal": 7.0,
        "throttle_reliability": 7.0,
    }
    assert lines[1]["sm_clock_hz"] == 1970e6


@pytest.mark.slow
def test_a_card_that_nvml_does_not_know_is_an_error_line(fake_card):
    assert poll("GPU-other", 0.0) == [{"error": "NVML: Not Found"}]


@pytest.mark.slow
def test_without_a_driver_the_poller_says_so_and_ends():
    if torch.cuda.is_available():
        pytest.skip("there is a driver here")
    (line,) = poll("GPU-abc", 0.0)
    assert line["error"].startswith("NVML: ")


@pytest.mark.slow
def test_a_watch_gives_the_spread_of_each_reading_and_the_growth_of_the_counters(fake_card):
    with DeviceWatch("cuda") as watch:
        time.sleep(0.3)
    state = watch.state
    low, middle, high = state.sm_clock_hz
    assert low < middle < high == 1980e6
    assert state.memory_clock_hz == [2600e6] * 3
    assert state.temperature_c is None
    assert state.throttle_ns["power"] >= 500
    assert state.throttle_ns["thermal"] == 0
    assert state.throttle_ns["hardware_thermal"] > 0
    assert "board_limit" not in state.throttle_ns
    assert state.load_average is not None
    assert state.reason is None


@pytest.mark.slow
def test_a_watch_over_an_unknown_card_has_the_reason_and_no_numbers(fake_card):
    fake_card.uuid = "GPU-gone"
    with DeviceWatch("cuda") as watch:
        pass
    assert watch.state.reason == "NVML: Not Found"
    assert watch.state.power_w is None


@pytest.mark.slow
def test_the_first_reading_is_there_before_the_work_begins(fake_card):
    with DeviceWatch("cuda") as watch:
        os.fsync(watch._lines.fileno())
        assert os.fstat(watch._lines.fileno()).st_size > 0


@pytest.mark.slow
def test_a_poller_that_hangs_is_ended_and_what_it_said_is_kept(monkeypatch, fake_card, tmp_path):
    pynvml = tmp_path / "pynvml.py"
    pynvml.write_text(pynvml.read_text().replace("return 350_000", "return 350_000 if next(hang) < 2 else stop()"))
    pynvml.open("a").write("import time\nhang = itertools.count()\ndef stop(): time.sleep(60)\n")
    monkeypatch.setattr(device_state, "END_S", 0.3)
    with DeviceWatch("cuda") as watch:
        time.sleep(0.3)
    assert watch._process.returncode == -9
    assert watch.state.power_w == [350.0] * 3


@pytest.mark.slow
def test_the_poller_ends_when_the_watched_work_raises(fake_card):
    watch = DeviceWatch("cuda")
    with pytest.raises(RuntimeError), watch:
        raise RuntimeError("out of memory")
    assert watch._process.returncode == 0
    assert watch.state is not None


def test_a_cpu_has_a_load_average_and_the_reason_for_the_rest():
    with DeviceWatch("cpu") as watch:
        time.sleep(0.2)
    assert watch.state.load_average == pytest.approx(os.getloadavg()[0], abs=1)
    assert 0 <= watch.state.other_cpu_share <= 1
    assert watch.state.sm_clock_hz is None
    assert watch.state.reason == "clocks, power and temperature are read on GPUs only"


def test_no_readings_are_a_reason_and_not_zeros():
    state = summarise_polls([], 0.5)
    assert state.reason == "the poller gave no reading"
    assert state.throttle_ns is None
    assert state.load_average == 0.5


def test_readings_that_begin_late_count_and_counters_that_end_early_do_not():
    polls = [
        {"power_w": 100.0, "throttle_power": 5.0, "throttle_thermal": 1.0},
        {"power_w": 300.0, "throttle_power": 9.0},
    ]
    state = summarise_polls(polls, 0.0)
    assert state.power_w == [100.0, 200.0, 300.0]
    assert state.throttle_ns == {"power": 4}


@pytest.mark.parametrize("uuid", ["6a2b", "GPU-6a2b"])
def test_a_gpu_has_nvmls_name(monkeypatch, uuid):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"{uuid}-{index}"))
    assert gpu_uuid(3) == "GPU-6a2b-3"


@pytest.mark.slow
def test_the_poller_loads_no_torch():
    code = "import sys, bsa_bench.measure.device_state; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ | python_path()).returncode == 0


def python_path():
    return {"PYTHONPATH": os.pathsep.join(str(Path(p)) for p in sys.path)}
