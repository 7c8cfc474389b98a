from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from profile_factory import case_of

from bsa_bench.catalog import build_operator, load_engine, load_method, options_of
from bsa_bench.inputs import make_qkv
from bsa_bench.measure.passes import Subject, pass_call
from bsa_bench.profiling import record
from bsa_bench.profiling.job import PhaseWork
from bsa_bench.profiling.phase_work import work_by_phase
from bsa_bench.profiling.phases import annotated_call, phases_of, phases_run

FORWARD = ["permute", "select", "plan", "attend", "fill"]
BACKWARD = ["fill_backward", "attend_backward", "permute_backward"]


def subject_of(case):
    tensors = make_qkv(case.workload, device="cpu").tensors
    return Subject(build_operator(case, scale=32**-0.5), tensors, ("q", "k", "v"), torch.ones_like(tensors["q"]))


class Ranges:
    """Notes which ranges were opened and closed."""

    def __init__(self):
        self.notes = []

    @contextmanager
    def open(self, name):
        self.notes.append(f"+{name}")
        try:
            yield
        finally:
            self.notes.append(f"-{name}")


def around(names):
    inner = [note for name in names for note in (f"+bsa-bench: {name}", f"-bsa-bench: {name}")]
    return ["+bsa-bench: call", *inner, "-bsa-bench: call"]


@pytest.mark.parametrize(
    ("passes", "run", "own"),
    [
        ("forward", FORWARD, FORWARD),
        ("backward", FORWARD + BACKWARD, BACKWARD),
        ("forward+backward", FORWARD + BACKWARD, FORWARD + BACKWARD),
    ],
)
def test_each_phase_of_a_pass_has_one_range_and_they_follow_each_other(passes, run, own):
    case = case_of("bsa@gather", passes)
    subject, ranges = subject_of(case), Ranges()
    assert phases_run(subject.operator, passes) == run
    assert phases_of(subject.operator, passes) == own
    annotated_call(subject, passes, ranges.open)()
    assert ranges.notes == around(run)


def test_a_stage_that_raises_leaves_no_range_open():
    subject, ranges = subject_of(case_of("bsa@gather")), Ranges()

    def fail(*_):
        raise RuntimeError("no")

    stages = list(subject.operator.stages)
    stages[3] = replace(stages[3], run=fail)
    broken = replace(subject, operator=replace(subject.operator, stages=tuple(stages)))
    with pytest.raises(RuntimeError, match="no"):
        annotated_call(broken, "forward", ranges.open)()
    assert ranges.notes == around(FORWARD[:4])


def work_of_phases(case):
    subject = subject_of(case)
    state = subject.operator.run(subject.tensors)
    engine = load_engine(case.engine)
    return work_by_phase(case, load_method(case.method), options_of(case), engine, subject, state), state


def test_dense_attention_has_all_flop_in_its_only_phase_and_each_tensor_once():
    found, _ = work_of_phases(case_of("full@sdpa-flash", "forward+backward"))
    tokens, tensor_bytes = 256, 256 * 32 * 4
    assert found["attend"] == PhaseWork(flop=4 * tokens**2 * 32, bytes=4 * tensor_bytes)
    assert found["attend_backward"].bytes == 8 * tensor_bytes
    assert found["attend_backward"].flop == 2.5 * found["attend"].flop


def test_the_flop_of_a_sparse_method_are_where_it_attends_and_selects_and_moves_have_none():
    found, state = work_of_phases(case_of("bsa@gather", "forward+backward"))
    assert list(found) == FORWARD + BACKWARD
    dense, _ = work_of_phases(case_of("full@sdpa-flash"))
    assert 0 < found["attend"].flop < dense["attend"].flop
    assert found["attend_backward"].flop > found["attend"].flop
    assert found["select"].flop > 0
    assert found["permute"].flop is None
    assert found["plan"] == PhaseWork()  # it takes q for its shape alone
    tensor_bytes = state["q"].nbytes
    assert found["permute"].bytes == found["permute_backward"].bytes == 6 * tensor_bytes
    assert tensor_bytes < found["fill"].bytes < 2 * tensor_bytes + 4096  # kept rows, all rows, lists


def test_a_backward_has_no_selection():
    found, _ = work_of_phases(case_of("bsa@gather", "backward"))
    assert list(found) == BACKWARD


@pytest.fixture
def cuda_calls(monkeypatch):
    """What is asked of the CUDA runtime and of Proton, in order, where there is neither."""
    from triton import profiler as proton

    notes = []

    @contextmanager
    def scope(name, metrics):
        notes.append((name, metrics))
        yield

    runtime = SimpleNamespace(
        cudaProfilerStart=lambda: notes.append("start"), cudaProfilerStop=lambda: notes.append("stop")
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: notes.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(proton, "start", lambda name, hook: notes.append(("proton", name, hook)))
    monkeypatch.setattr(proton, "finalize", lambda: notes.append("finalize"))
    monkeypatch.setattr(proton, "scope", scope)
    return notes


def test_calls_for_nsight_are_between_the_start_and_the_stop_of_the_cuda_profiler(cuda_calls):
    record.replay(lambda: cuda_calls.append("call"), num_calls=2)
    assert cuda_calls == ["call", "synchronize", "start", "call", "call", "synchronize", "stop"]


def test_scopes_of_proton_declare_what_is_known_of_their_phase(cuda_calls, tmp_path):
    case = case_of("full@sdpa-flash")
    subject = subject_of(case)
    work = {"attend": PhaseWork(flop=7.0, bytes=None)}
    record.record_proton(
        lambda scope: annotated_call(subject, "forward", scope), tmp_path, num_calls=1, phase_work=work
    )
    one = [("bsa-bench: call", {}), ("bsa-bench: attend", {"flops": 7.0})]
    start = ("proton", str(tmp_path / "proton"), "triton")
    assert cuda_calls == [*one, "synchronize", start, *one, "synchronize", "finalize"]


def test_the_cuda_allocators_history_is_switched_off_even_where_the_call_raises(monkeypatch, cuda_calls, tmp_path):
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda **how: cuda_calls.append(how))
    monkeypatch.setattr(memory, "_dump_snapshot", cuda_calls.append)
    record.record_snapshot(lambda: cuda_calls.append("call"), tmp_path / "s")
    on, off = {"max_entries": 100_000}, {"enabled": None}
    assert cuda_calls == [on, "call", "synchronize", str(tmp_path / "s"), off]
    cuda_calls.clear()
    with pytest.raises(ZeroDivisionError):
        record.record_snapshot(lambda: 1 / 0, tmp_path / "s")
    assert cuda_calls == [on, off]


def test_host_code_without_pyinstrument_is_left_out_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(record.importlib.util, "find_spec", lambda name: None)
    note = record.record_host(lambda: None, tmp_path, seconds=0.01, is_cuda=False)
    assert note == "host code: pyinstrument is not installed; pip install 'bsa-bench[profile]'"
    assert list(tmp_path.iterdir()) == []


def test_host_code_is_sampled_as_text_and_html(tmp_path):
    pytest.importorskip("pyinstrument")
    case = case_of("bsa@gather")
    call = pass_call(subject_of(case), "forward")
    assert record.record_host(call, tmp_path, seconds=0.05, is_cuda=False) is None
    assert "gather.py" in (tmp_path / "host.txt").read_text()
    assert (tmp_path / "host.html").read_text().startswith("<!DOCTYPE html>")
