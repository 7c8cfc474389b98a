"""Host-side costs under pytest-benchmark: checked by default, timed by `pytest tests/benchmarks --benchmark-enable`.

What is expected of a result is said independently of the code that made it.
"""

import json
import math
import os
import subprocess
import sys
from itertools import product
from statistics import median

import pytest
import torch

from bsa_bench.gate import host_cases
from bsa_bench.gate.host_cases import DENSITY, HOST_CASES, LARGE_GRID, NUM_HEADS, REFERENCE_RUN
from bsa_bench.result import Status


def stored_results():
    """The result lines of the reference run, as they stand."""
    lines = map(json.loads, (REFERENCE_RUN / "results.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "result"]


def check_plan(plan):
    plan.check()
    assert plan.shape[:3] == (1, NUM_HEADS, 256)
    share = plan.kv_counts.float().mean().item() / 256
    assert share == pytest.approx(DENSITY, abs=0.01)


def check_block_lists(found):
    counts, indices = found
    shown = torch.arange(256) < counts.unsqueeze(-1)
    mask = torch.zeros(1, NUM_HEADS, 256, 257, dtype=torch.bool)
    mask.scatter_(-1, torch.where(shown, indices, 256).long(), True)
    scores = host_cases._scores(256)
    assert torch.equal(mask[..., :256], scores >= lowest_kept(scores))
    assert ((indices.diff(dim=-1) > 0) | ~shown[..., 1:]).all()


def lowest_kept(scores):
    """The statistical rule: mean + population deviation x the normal quantile of the density, 1.2816 for a tenth."""
    return scores.mean(-1, keepdim=True) + scores.std(-1, correction=0, keepdim=True) * 1.2815516


def check_group_tables(tables):
    blocks = torch.tensor(list(product(*(range(side // 4) for side in LARGE_GRID))))
    assert tables.candidates.shape == (3, len(blocks) // 2, 2)
    for way, axis in zip(tables.candidates.long(), range(3), strict=True):
        assert torch.equal(way.flatten().sort().values, torch.arange(len(blocks)))
        step = torch.zeros(3, dtype=torch.long)
        step[axis] = 1
        assert (blocks[way[:, 1]] - blocks[way[:, 0]] == step).all()


def check_shared_lists(found):
    members, counts = found
    plan = HOST_CASES["plan-from-scores"].make()()
    assert torch.equal(members.flatten(2).sort(-1).values, torch.arange(256).expand(1, NUM_HEADS, -1).int())
    mask, heads = plan.block_mask[0], torch.arange(NUM_HEADS).view(-1, 1)
    first, second = members[0].long().unbind(-1)
    assert torch.equal(counts[0], (mask[heads, first] | mask[heads, second]).sum(-1).int())
    upper = torch.arange(256).view(2, 2, 64)[:, 0].flatten()  # the grid has 4 blocks of 64 along t
    along_t = (mask[:, upper] | mask[:, upper + 64]).sum()
    assert counts.sum() < along_t  # choosing for each cell beats pairing all of them one way


def check_token_tables(tables):
    assert tables.tokens.shape == (math.prod(LARGE_GRID) // 64, 64)
    assert torch.equal(tables.tokens.flatten().sort().values, torch.arange(math.prod(LARGE_GRID)).int())
    t, h, w = 1, 2, 3  # the token (1, 2, 3) of the second block along w
    assert tables.tokens[1, (t * 4 + h) * 4 + w] == (t * 48 + h) * 48 + w + 4
    assert tables.is_full.all()


def check_by_key_tables(lists):
    scores = host_cases._scores(128)
    mask = scores[0] > 1.2815516
    assert lists.counts == (mask.sum(1) * 16).flatten().tolist()
    first = lists.rows[: lists.counts[0]].tolist()
    assert first == [16 * block + row for block in mask[0, :, 0].nonzero().flatten().tolist() for row in range(16)]


def check_suite(cases):
    assert len({case.case_id for case in cases}) == len({case.case_hash for case in cases}) == len(cases) > 20
    assert {case.suite for case in cases} == {"sparsity"}
    assert [case.workload.num_tokens for case in cases] == sorted(case.workload.num_tokens for case in cases)


def check_results(run):
    stored = stored_results()
    names = [(result.case.implementation, result.case.passes, result.seq) for result in run.results]
    assert names == [(line["case"]["implementation"], line["case"]["passes"], line["seq"]) for line in stored]
    samples = [line["timing"]["samples"] for line in stored if line["timing"]]
    assert [result.timing.samples for result in run.results if result.timing] == samples


def check_rows(rows):
    stored = [line for line in stored_results() if line["status"] == "OK"]
    timed = {row.result.case_hash: row for row in rows if row.result.status is Status.OK}
    assert len(timed) == len(stored) > 0
    for line in stored:
        row = timed[line["case_hash"]]
        own = median(line["timing"]["samples"])
        same = [each for each in stored if each["case"]["workload"] == line["case"]["workload"]]
        same = [each for each in same if each["case"]["passes"] == line["case"]["passes"]]
        dense = [median(e["timing"]["samples"]) for e in same if e["case"]["implementation"].startswith("full@")]
        assert row.speedup.value == pytest.approx(min(dense) / own)


def check_report_tables(lines):
    report = (REFERENCE_RUN / "report" / "report.md").read_text().splitlines()
    assert next(line for line in lines if "EPYC" in line and line.startswith("|")) in report
    longest = [line for line in stored_results() if line["status"] == "OK" and line["case"]["passes"] == "forward"]
    sizes = {"frames": 61, "height": 512, "width": 512}
    longest = [line for line in longest if line["case"]["workload"].items() >= sizes.items()]
    fastest = {line["case"]["implementation"]: median(line["timing"]["samples"]) for line in longest}
    speedup = fastest["full@sdpa-flash"] / fastest["bsa@flex"]
    row = next(line for line in lines if line.startswith("|") and " forward | 16,384 " in line)
    assert f"`full@sdpa-flash` {1e3 * fastest['full@sdpa-flash']:.0f} ms | `bsa@flex`" in row
    assert f"{speedup:.1f}x" in row


def check_bootstrap(interval):
    low, high = interval
    assert 0.97 < low / math.exp(-3) < 1 < high / math.exp(-3) < 1.03


CHECKS = {
    "plan-from-scores": check_plan,
    "block-lists": check_block_lists,
    "group-tables": check_group_tables,
    "shared-lists": check_shared_lists,
    "token-tables": check_token_tables,
    "by-key-tables": check_by_key_tables,
    "suite": check_suite,
    "results": check_results,
    "rows": check_rows,
    "report-tables": check_report_tables,
    "bootstrap": check_bootstrap,
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_host_operation_gives_what_it_should_at_each_call(benchmark, name):
    operation = HOST_CASES[name].make()
    CHECKS[name](benchmark(operation))
    CHECKS[name](operation())


DISPATCH = """
import torch
from bsa_bench.gate.host_cases import DISPATCH_GRID, HOST_CASES
forward, training = (HOST_CASES[name].make() for name in ("dispatch-forward", "dispatch-training"))
for outputs in ([forward()], [forward()], training(), training()):
    print([list(x.shape) for x in outputs], any(x.any() for x in outputs))
"""


def test_dispatch_goes_all_the_way_and_computes_nothing():
    """In a process of its own: here kernels are interpreted, and an interpreted one makes no launch."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", DISPATCH], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shape = [1, 1, math.prod(host_cases.DISPATCH_GRID), 64]
    # What a launch would have written stays as it was allocated, as zeros.
    assert done.stdout.splitlines() == [f"{[shape]} False"] * 2 + [f"{[shape] * 3} False"] * 2


def test_dispatch_of_interpreted_kernels_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET: expected it unset"):
        HOST_CASES["dispatch-forward"].make()


def test_every_operation_is_checked():
    assert CHECKS.keys() | {"dispatch-forward", "dispatch-training"} == HOST_CASES.keys()
