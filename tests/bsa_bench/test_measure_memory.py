import pytest
import torch

from bsa_bench.measure import memory
from bsa_bench.measure.memory import measure_memory

CPU = torch.device("cpu")
MIB = 1 << 20


def touch(num_bytes):
    return torch.ones(num_bytes, dtype=torch.uint8)


def test_a_cpu_peak_is_what_the_call_had_resident_above_what_was_there():
    held = touch(32 * MIB)
    found = measure_memory(lambda: touch(64 * MIB), inputs_bytes=held.numel(), device=CPU)
    assert found.reason is None
    assert found.inputs_bytes == 32 * MIB
    assert found.peak_above_inputs_bytes == pytest.approx(64 * MIB, abs=8 * MIB)
    assert found.peak_bytes > 96 * MIB


def test_memory_freed_inside_the_call_counts_once():
    def twice():
        touch(48 * MIB)
        touch(48 * MIB)

    found = measure_memory(twice, inputs_bytes=0, device=CPU)
    assert found.peak_above_inputs_bytes == pytest.approx(48 * MIB, abs=8 * MIB)


def test_a_peak_of_before_the_call_does_not_count():
    touch(128 * MIB)
    found = measure_memory(lambda: None, inputs_bytes=0, device=CPU)
    assert found.peak_above_inputs_bytes < 8 * MIB


def test_where_the_peak_cannot_be_reset_it_is_null_with_a_reason_and_the_call_is_spared(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    calls = []
    found = measure_memory(lambda: calls.append(1), inputs_bytes=5, device=CPU)
    assert found.peak_above_inputs_bytes is None
    assert found.peak_bytes is None
    assert found.reason.startswith("the peak cannot be reset here: ")
    assert calls == []


def test_without_malloc_trim_the_peak_is_unknown(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    found = measure_memory(lambda: None, inputs_bytes=5, device=CPU)
    assert found.reason == "the peak cannot be reset here: the C library has no malloc_trim"


def test_an_error_of_the_call_itself_is_raised():
    def fail():
        raise OSError("the call's own")

    with pytest.raises(OSError, match="the call's own"):
        measure_memory(fail, inputs_bytes=0, device=CPU)


def test_a_gpu_peak_is_the_allocators_above_what_was_allocated(monkeypatch):
    told = []
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: told.append(name))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 350)
    found = measure_memory(lambda: told.append("call"), inputs_bytes=80, device=torch.device("cuda"))
    assert (found.peak_above_inputs_bytes, found.peak_bytes, found.inputs_bytes) == (250, 350, 80)
    assert told == ["synchronize", "empty_cache", "reset_peak_memory_stats", "call", "synchronize"]
