"""What NVML says of a GPU, and what of it is in the way of measuring."""

import os
import re
from pathlib import Path

import pytest
from nvml_factory import field_value, install, process

from bsa_bench.measure import nvml
from bsa_bench.measure.preflight import WATCH_S, Preflight, inspect_gpu

OWN = 77
FIELDS = {270: "thermal", 271: "brake"}
UNSUPPORTED = RuntimeError("Not Supported")


ALONE = (process(OWN, 500),)


def inspect(monkeypatch, *, running=ALONE, reasons=1, counters=None, **more):
    """Counters by field: the values that they have when they are read, one after the other."""
    read = {field: iter(values) for field, values in (counters or {270: [5, 5], 271: [0, 0]}).items()}

    def fields(_, asked):
        return [field_value(next(read[field])) if field in read else field_value(0, code=3) for field in asked]

    answers = {
        "nvmlDeviceGetComputeRunningProcesses": list(running) if isinstance(running, tuple) else running,
        "nvmlDeviceGetCurrentClocksEventReasons": reasons,
        "nvmlDeviceGetFieldValues": fields,
    }
    install(monkeypatch, **(answers | more))
    slept = []
    found = inspect_gpu("GPU-a", own_pid=OWN, sleep=slept.append)
    assert slept in ([WATCH_S], [])
    return found


def test_a_gpu_of_ones_own_at_its_own_clocks_is_ready(monkeypatch):
    assert inspect(monkeypatch) == Preflight()


def test_another_process_is_in_the_way_and_named(monkeypatch):
    found = inspect(monkeypatch, running=(process(OWN, 500), process(12, 2048), process(13)))
    assert found.troubles == [
        "other compute processes are on the GPU: process 12 with 2,048 MiB, process 13; end them, or wait for them"
    ]


def test_where_our_own_id_is_not_listed_one_of_the_processes_is_ours(monkeypatch):
    assert inspect(monkeypatch, running=(process(4000, 500),)) == Preflight()
    (trouble,) = inspect(monkeypatch, running=(process(4000, 500), process(4001, 1))).troubles
    assert "1 of process 4000 with 500 MiB, process 4001 with 1 MiB (ids of another namespace" in trouble


@pytest.mark.parametrize("running", [(), UNSUPPORTED])
def test_where_no_process_is_listed_nothing_is_claimed(monkeypatch, running):
    found = inspect(monkeypatch, running=running)
    assert found.troubles == []
    assert found.notes == ["other processes were not looked for: NVML shows no process here, not even this one"]


@pytest.mark.parametrize(
    ("bits", "named"), [(8, "hardware slow-down"), (8 + 64, "hardware slow-down, hardware thermal slow-down"),
                        (128 + 4, "power brake")]
)  # fmt: skip
def test_a_slow_down_in_force_is_in_the_way(monkeypatch, bits, named):
    (trouble,) = inspect(monkeypatch, reasons=bits, counters={270: [5, 9]}).troubles
    assert trouble == f"the GPU is held back by {named}; see to its cooling and power supply"


def test_a_power_cap_by_software_is_not_in_the_way(monkeypatch):
    assert inspect(monkeypatch, reasons=4 + 2) == Preflight()


def test_counters_that_move_while_they_are_watched_are_in_the_way(monkeypatch):
    (trouble,) = inspect(monkeypatch, counters={270: [5, 5], 271: [0, 1]}).troubles
    assert trouble.startswith("the counters of slow-downs by hardware move (hardware power brake)")
    assert inspect(monkeypatch, counters={270: [5, 5]}).troubles == []


def test_an_older_driver_tells_the_reasons_by_their_older_name(monkeypatch):
    older = {"nvmlDeviceGetCurrentClocksThrottleReasons": 8}
    assert inspect(monkeypatch, reasons=UNSUPPORTED, **older).troubles


def test_a_card_that_tells_no_slow_downs_is_measured_with_a_note(monkeypatch):
    found = inspect(monkeypatch, reasons=UNSUPPORTED, counters={9: []})
    assert found == Preflight(notes=["slow-downs by hardware were not looked for: NVML does not tell of them here"])


def test_without_a_driver_there_is_a_note(monkeypatch):
    found = inspect(monkeypatch, nvmlInit=RuntimeError("Driver Not Loaded"))
    assert found == Preflight(notes=["other processes and slow-downs were not looked for: NVML: Driver Not Loaded"])


def test_settings_are_told_in_our_units(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    install(
        monkeypatch,
        nvmlDeviceGetEccMode=[1, 0],
        nvmlDeviceGetMigMode=[0, 1],
        nvmlDeviceGetPersistenceMode=1,
        nvmlDeviceGetComputeMode=3,
        nvmlDeviceGetApplicationsClock=lambda _, which: {"sm": 1980, "mem": 2619}[which],
        nvmlDeviceGetPowerManagementDefaultLimit=700_000,
    )
    assert nvml.settings("handle") == {
        "persistence_mode": True,
        "ecc": True,
        "mig": False,
        "mps": False,
        "compute_mode": "exclusive process",
        "application_sm_clock_hz": 1980e6,
        "application_memory_clock_hz": 2619e6,
        "default_power_limit_w": 700.0,
    }
    (tmp_path / "control").touch()
    assert nvml.settings("handle")["mps"] is True


def test_what_a_card_does_not_tell_is_null(monkeypatch):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/nowhere")
    install(monkeypatch, nvmlDeviceGetEccMode=UNSUPPORTED)
    found = nvml.settings("handle")
    assert found.pop("mps") is False
    assert set(found.values()) == {None}


def test_every_name_of_nvml_that_is_asked_for_is_in_its_binding():
    pynvml = pytest.importorskip("pynvml")
    folder = Path(nvml.__file__).parent
    source = "".join((folder / name).read_text() for name in ("nvml.py", "energy.py", "environment.py"))
    names = set(re.findall(r'"(nvml[A-Z]\w+|NVML_\w+)"', source))
    assert len(names) > 12
    assert [name for name in sorted(names) if not hasattr(pynvml, name)] == []


def test_nvml_is_asked_without_loading_torch():
    import subprocess
    import sys

    code = "import sys, bsa_bench.measure.preflight; sys.exit('torch' in sys.modules)"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ | path).returncode == 0


@pytest.mark.gpu
@pytest.mark.smoke
def test_a_real_gpu_tells_of_itself():
    import torch

    from bsa_bench.measure.device_state import gpu_uuid

    torch.zeros(1, device="cuda")
    handle = nvml.open_gpu(gpu_uuid(0))
    assert nvml.settings(handle)["compute_mode"] is not None
    assert isinstance(inspect_gpu(gpu_uuid(0)), Preflight)


def test_a_watch_reads_the_clock_and_the_slow_downs_since_it_was_last_asked(monkeypatch):
    counted = iter([(10, 1), (10, 1), (25, 4)])  # at the start, before the calls, after them

    def fields(_, asked):
        if asked == [270]:
            fields.now = next(counted)
        return [field_value(fields.now[asked[0] - 270])]

    install(monkeypatch, nvmlDeviceGetFieldValues=fields, nvmlDeviceGetClockInfo=lambda handle, kind: 1755)
    watch = nvml.GpuWatch("GPU-1")
    assert watch.clock_hz() == 1.755e9
    assert [watch.slowdown_ns(), watch.slowdown_ns()] == [0, 18]


def test_a_watch_without_an_answer_has_no_clock_and_no_slow_down(monkeypatch):
    install(monkeypatch, nvmlDeviceGetFieldValues=UNSUPPORTED, nvmlDeviceGetClockInfo=UNSUPPORTED)
    watch = nvml.GpuWatch("GPU-1")
    assert watch.clock_hz() is None
    assert watch.slowdown_ns() == 0
