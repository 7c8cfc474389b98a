"""What a worker is told of timers, and what it measures besides: by the profile, in this process."""

from dataclasses import replace

import pytest
import torch
from gpu_factory import FakeGpu
from run_factory import case

from bsa_bench import worker
from bsa_bench.errors import UnsupportedError
from bsa_bench.measure import timer as timers
from bsa_bench.measure.energy import measure_energy
from bsa_bench.measure.preflight import Preflight
from bsa_bench.measure.sampling import PROTOCOLS
from bsa_bench.result import Status
from bsa_bench.run.job import Job


class Events:
    """Takes the place of the event pipe."""

    def __init__(self):
        self.results = []

    def progress(self, text):
        pass

    def result(self, result):
        self.results.append(result)


@pytest.fixture
def group(monkeypatch):
    """Makes a run of a group in this process, without pinning it and with few samples."""
    monkeypatch.setattr(worker, "set_up_cpu", lambda _: 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    short = {name: replace(p, warmup_cap_s=0, seconds=0, max_samples=3, min_samples=3) for name, p in PROTOCOLS.items()}
    monkeypatch.setattr("bsa_bench.measure.sampling.PROTOCOLS", short)

    def make(*some, **fields):
        defaults = {"run_id": "r", "env_hash": "e", "first_seq": 0, "profile": "quick", "device": "cpu", "threads": 1}
        job = Job(**(defaults | {"cases": some or [case("full@sdpa-math")], "memory_limit_bytes": 1 << 40} | fields))
        return worker._GroupRun(job, Events())

    return make


def measured(run):
    run.run()
    return run.events.results


@pytest.mark.slow
def test_a_cpu_has_no_other_timer_and_for_a_report_a_reason_where_there_is_no_energy_counter(group, monkeypatch):
    def none(_):
        raise OSError("no counters here")

    monkeypatch.setattr(measure_energy, "__kwdefaults__", measure_energy.__kwdefaults__ | {"open_meter": none})
    (result,) = measured(group(profile="report", timer="host", cache="warm"))
    assert result.status is Status.OK
    assert (result.timing.timer, result.timing.cache) == ("host", "warm")
    assert result.timing.warm is result.timing.cross_check is result.timing.host_s is result.timing.host_gaps is None
    assert result.energy.reason == "no counters here"
    assert result.energy.joules_per_call is None
    assert result.memory.inputs_bytes == 3 * 4 * 256 * 32


@pytest.mark.slow
def test_a_quick_look_measures_no_energy(group):
    (result,) = measured(group())
    assert result.status is Status.OK
    assert result.energy is None


@pytest.mark.slow
def test_an_operator_that_the_timer_cannot_time_is_unsupported_with_the_reason(group, monkeypatch):
    class Refusing(timers.HostTimer):
        def bind(self, make, *, inputs_bytes):
            raise UnsupportedError("cannot be captured into a CUDA graph; use --timer event")

    monkeypatch.setattr(timers, "make_timer", lambda *_: Refusing())
    (result,) = measured(group())
    assert result.status is Status.UNSUPPORTED
    assert result.reason == "cannot be captured into a CUDA graph; use --timer event"
    assert result.timing is None


def names(of):
    return tuple((each.name, each.cache) if each else None for each in (of.main, of.warm, of.check))


@pytest.mark.parametrize(
    ("profile", "timer", "cache", "expected"),
    [
        ("quick", None, None, (("event", "cold"), None, None)),
        ("quick", "graph", "both", (("graph", "cold"), ("graph", "warm"), None)),
        ("report", "event", "both", (("event", "cold"), ("event", "warm"), ("device-span", "cold"))),
        ("report", "device-span", "warm", (("device-span", "warm"), None, ("event", "warm"))),
        ("report", "host", "cold", (("host", "cold"), None, None)),
    ],
)
def test_a_gpu_is_timed_in_the_states_asked_for_and_a_report_checks_one_timer_by_another(
    group, monkeypatch, profile, timer, cache, expected
):
    FakeGpu(monkeypatch)
    run = group(profile=profile, timer=timer, cache=cache)
    run.device = torch.device("cuda")
    assert names(run._timers()) == expected


def test_a_gpu_is_inspected_once_this_process_has_a_context_on_it_and_a_cpu_is_not(monkeypatch):
    told = []
    monkeypatch.setattr(torch, "zeros", lambda *_, device: told.append(f"context on {device}"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("bsa_bench.measure.device_state.gpu_uuid", lambda index: f"GPU-{index}")

    def inspect(uuid):
        told.append(uuid)
        return Preflight(["others"], ["a note"])

    monkeypatch.setattr("bsa_bench.measure.preflight.inspect_gpu", inspect)
    assert worker._troubles(torch.device("cpu")) == ([], [])
    assert told == []
    assert worker._troubles(torch.device("cuda")) == (["others"], ["a note"])
    assert told == ["context on cuda", "GPU-0"]
