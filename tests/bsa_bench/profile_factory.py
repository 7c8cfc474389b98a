"""Traces written by hand, and the case, the environment and the settings of a profile."""

import gzip
import json
import sys

from run_factory import environment

from bsa_bench.catalog import make_case
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.profiling.drive import ProfileSettings
from bsa_bench.result import Ceiling
from bsa_bench.run.estimate import DeviceModel
from bsa_bench.workload import InputSpec, Workload

WORKLOAD = Workload(model="cpu-1x32", grid=(4, 8, 8), heads=1, head_dim=32, input=InputSpec(kind="smooth"))
CEILINGS = (
    Ceiling(name="GEMM float32", value=1e11, unit="FLOP/s", detail="made up"),
    Ceiling(name="copy", value=1e10, unit="B/s", detail="made up"),
)


def case_of(implementation, passes="forward"):
    options = BsaOptions(kv_density=0.4) if implementation.startswith("bsa") else None
    return make_case(suite="tiny", workload=WORKLOAD, implementation=implementation, passes=passes, options=options)


def settings_of(*worker, device="cpu", **more):
    model = DeviceModel(device, 1e12, 1e11, 1 << 40)
    worker = worker or (sys.executable, "-m", "bsa_bench.profiling.worker")
    return ProfileSettings(
        **{
            "device": model,
            "environment": environment(),
            "ceilings": CEILINGS,
            "threads": 1,
            "num_calls": 2,
            "limit_s": 120,
            "worker_command": worker,
        }
        | more
    )


def event(name, start, end, *, cat="cpu_op", tid=1, **args):
    """Of a trace, in microseconds."""
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": start, "dur": end - start, "args": args}


def ranges(*phases, call=None):
    """The range of a call around the ranges of its phases `(name, start, end)`."""
    start, end = call or (phases[0][1], phases[-1][2])
    named = [("call", start, end), *phases]
    return [event(f"bsa-bench: {name}", a, b, cat="user_annotation") for name, a, b in named]


def memory(time, change, *, device_type=0):
    args = {"Bytes": change, "Device Type": device_type, "Addr": 1}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "pid": 1, "tid": 1, "ts": time, "args": args}


def launched(name, launch, start, end, number, *, cat="kernel"):
    """A kernel and its launch."""
    return [
        event("cudaLaunchKernel", launch, launch + 1, cat="cuda_runtime", correlation=number),
        event(name, start, end, cat=cat, tid=7, correlation=number),
    ]


def write_trace(path, events):
    with gzip.open(path, "wt") as file:
        json.dump({"schemaVersion": 1, "traceEvents": events}, file)
