"""An NVML that tells what it is told to tell."""

import sys
from types import ModuleType, SimpleNamespace


def field_value(ns, code=0):
    return SimpleNamespace(nvmlReturn=code, value=SimpleNamespace(ullVal=ns))


def process(pid, mib=None):
    return SimpleNamespace(pid=pid, usedGpuMemory=None if mib is None else mib << 20)


def install(monkeypatch, **answers):
    """A module `pynvml` with these functions: a value is the answer, an exception's text is an NVMLError."""
    module = ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.nvmlInit = lambda: None
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM = "sm", "mem"
    module.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN = 270
    module.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN = 271
    module.nvmlClocksEventReasonHwSlowdown = 8
    module.nvmlClocksEventReasonHwThermalSlowdown = 64
    module.nvmlClocksEventReasonHwPowerBrakeSlowdown = 128
    module.nvmlDeviceGetHandleByUUID = lambda uuid: f"handle of {uuid}"

    def function(answer):
        def call(*arguments):
            if isinstance(answer, Exception):
                raise module.NVMLError(str(answer))
            return answer(*arguments) if callable(answer) else answer

        return call

    for name, answer in answers.items():
        setattr(module, name, function(answer))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module
