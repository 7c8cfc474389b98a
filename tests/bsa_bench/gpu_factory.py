"""A GPU that is not there: a stream whose clock moves when it works, events, a hold of the queue, graphs."""

from types import SimpleNamespace

import torch

L2_BYTES = 1000
#: Of the clock that the spinning kernel counts.
CYCLES_PER_S = 1e9


class FakeGpu:
    """The host's clock stands still but for `host`, that of the device but for `work`; both in seconds.

    What is enqueued runs at once on the device's clock, which is never behind the host's when it begins.
    """

    def __init__(self, monkeypatch):
        self.host_s = self.device_s = 0.0
        self.synchronised = 0
        self.flushes, self.holds = [], []
        gpu = self

        class Event:
            def __init__(self, *, enable_timing=False):
                self.enable_timing = enable_timing

            def record(self):
                self.at_s = gpu.device_s

            def query(self):
                return gpu.host_s >= self.at_s

            def elapsed_time(self, other):
                assert self.enable_timing
                assert other.enable_timing
                return (other.at_s - self.at_s) * 1e3

        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=L2_BYTES))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self._synchronize)
        monkeypatch.setattr(torch.cuda, "_sleep", self._hold)
        monkeypatch.setattr("bsa_bench.measure.timer.clock", self.clock)
        monkeypatch.setattr("bsa_bench.measure.device_span.time", self.clock)
        monkeypatch.setattr("bsa_bench.measure.timer.flush_buffer", self.flush_buffer)
        monkeypatch.setattr("bsa_bench.measure.device_span.flush_buffer", self.flush_buffer)

    @property
    def clock(self):
        """In place of the module `time`; reading it takes a microsecond, so that a busy wait ends."""

        def perf_counter():
            self.host_s += 1e-6
            return self.host_s

        return SimpleNamespace(perf_counter=perf_counter, perf_counter_ns=lambda: round(perf_counter() * 1e9))

    def flush_buffer(self, device):
        return SimpleNamespace(zero_=lambda: (self.flushes.append(self.device_s), self.work(1.0)))

    def _hold(self, cycles):
        self.holds.append(cycles / CYCLES_PER_S)
        self.work(cycles / CYCLES_PER_S)

    def _synchronize(self):
        self.synchronised += 1
        self.host_s = max(self.host_s, self.device_s)

    def work(self, seconds):
        """Enqueue work that takes so long."""
        self.device_s = max(self.device_s, self.host_s) + seconds

    def call(self, *, dispatch_s, work_s):
        """A call with one kernel at its end."""
        self.host_s += dispatch_s
        self.work(work_s)
