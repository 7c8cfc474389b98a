"""Verification and timing of tiles, in Triton's interpreter with a scripted timer."""

from dataclasses import replace

import pytest
import torch

from bsa_bench.tune import bench as module
from bsa_bench.tune.bench import Bench, workload_of
from bsa_bench.tune.candidates import Question
from bsa_bench.tune.worker import answer_to
from bsa_kernels.block_sparse.tile_table import Tile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TILES = {
    "attend": Tile(64, 32, 4, 1, group=2),
    "grad_q": Tile(64, 32, 4, 1, group=2),
    "grad_kv": Tile(32, 32, 4, 1),
    "grad_fused": Tile(64, 32, 4, 1, pack=2),
}


class ScriptedTimer:
    """Runs the call and says what the script says."""

    name, cache = "event", "cold"

    def __init__(self, *seconds):
        self.seconds, self.num_calls = list(seconds) or [0.25], 0

    def sample(self, call):
        call()
        self.num_calls += 1
        return self.seconds[min(self.num_calls, len(self.seconds)) - 1]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(module, "PROTOCOL", replace(module.PROTOCOL, warmup_cap_s=0.0, min_samples=1, max_samples=1))
    monkeypatch.setattr(module, "_SMALL", (4, 8, 8))
    return Bench(DEVICE, ScriptedTimer(), dtype="float16", heads=1)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", TILES)
def test_a_right_tile_has_no_fault_and_is_timed(bench, kernel):
    question = Question(kernel, 16, 32)
    assert bench.fault(question, TILES[kernel]) is None
    assert bench.seconds(question, TILES[kernel], 256) == 0.25


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "output"), [("attend", "output"), ("grad_kv", "grad_k"), ("grad_fused", "grad_q")])
def test_a_wrong_kernel_has_a_fault_that_names_its_output(bench, kernel, output, monkeypatch):
    attend = module.TritonEngine.attend

    def spoiled(self, q, k, v, plan, tables, *, scale):
        off = 1.02 if kernel == "attend" else 1.0
        q, k = (Off.apply(x) if kernel != "attend" else x for x in (q, k))
        return attend(self, q, k, v, plan, tables, scale=scale) * off

    monkeypatch.setattr(module.TritonEngine, "attend", spoiled)
    fault = bench.fault(Question(kernel, 16, 32), TILES[kernel])
    assert fault.startswith(("grad_q: ", "grad_k: ") if kernel == "grad_fused" else f"{output}: ")


class Off(torch.autograd.Function):
    """The identity; its gradient is a little off."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.05


@pytest.mark.slow
def test_inputs_are_made_once_for_a_length_whatever_the_kept_rows(bench, monkeypatch):
    made = []
    make = module.make_qkv
    monkeypatch.setattr(module, "make_qkv", lambda workload, **more: made.append(workload) or make(workload, **more))
    for kernel, kept_rows in (("attend", 32), ("grad_kv", 32), ("attend", 64)):
        bench.seconds(Question(kernel, 16, kept_rows), replace(TILES[kernel], group=1, rows=32), 256)
    assert [w.num_tokens for w in made] == [256]


def test_the_paper_lengths_are_video_grids_and_others_are_cubic():
    assert workload_of(153_600, head_dim=64, heads=2, dtype="float16").token_grid == (40, 48, 80)
    other = workload_of(4096, head_dim=64, heads=2, dtype="float16")
    assert other.token_grid == (16, 16, 16)
    assert other.input.label == "smooth"


class Scripted:
    """In place of a bench."""

    def __init__(self, fault=None, error=None):
        self.reason, self.error = fault, error

    def fault(self, question, tile):
        assert (question, tile) == (Question("attend", 128, 32), Tile(64, 64, 4, 2, group=2))
        return self.reason

    def seconds(self, question, tile, tokens):
        if self.error:
            raise self.error
        return tokens * 1e-6


REQUEST = {
    "question": {"kernel": "attend", "head_dim": 128, "kept_rows": 32},
    "tile": {"rows": 64, "keys": 64, "num_warps": 4, "num_stages": 2, "group": 2},
    "tokens": [1000, 2000],
}


def test_the_worker_answers_times_faults_and_failures():
    assert answer_to(Scripted(), REQUEST) == {"status": "OK", "seconds": {1000: 1e-3, 2000: 2e-3}}
    assert answer_to(Scripted(fault="output: bad", error=AssertionError("timed")), REQUEST) == {
        "status": "WRONG",
        "reason": "output: bad",
    }
    failed = answer_to(Scripted(error=RuntimeError("out of resource\nmore")), REQUEST)
    assert failed == {"status": "FAILED", "reason": "RuntimeError: out of resource"}
