"""The command, with a scripted worker in place of a GPU's."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cli_factory import needs_no_gpu
from run_factory import environment
from tune_factory import candidate

from bsa_bench.child_process import PACKAGE
from bsa_bench.cli import tune_command
from bsa_bench.cli.tune_command import TuneRequest, tune
from bsa_bench.errors import UsageError
from bsa_bench.tune.candidates import Dismissed, Prospect
from bsa_kernels.block_sparse.tile_table import load_tiles, table_in_force

# Answers each request by its tile's stages; `hang` and `die` do what they say.
WORKER = """
import json, os, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    stages = asked["tile"]["num_stages"]
    action = {actions}.get(str(stages), "ok")
    if action == "hang":
        time.sleep(100)
    if action == "die":
        os._exit(3)
    answer = {{"status": "WRONG", "reason": "grad_k: bad"}} if action == "wrong" else {{
        "status": "OK", "seconds": {{str(n): n * 1e-6 / stages for n in asked["tokens"]}}}}
    print(json.dumps({{"package": {package!r}}} | answer), flush=True)
"""
H200 = environment().model_copy(
    update={
        "device_kind": "cuda",
        "device_name": "NVIDIA Made-up",
        "device_details": {"compute_capability": "9.0"},
        "packages": {"triton": "3.9.0"},
    }
)
ONE = ("--kernel", "grad_kv", "--head-dim", "128", "--kept-rows", "32")


LISTED = [candidate("grad_kv", is_in_force=True), *(candidate("grad_kv", num_stages=n) for n in (3, 1))]
SPILLING = Dismissed(candidate("grad_fused", pack=2), "spills in its main loop: 3 stores and 18 loads a trip")


@pytest.fixture
def request_for(tmp_path, monkeypatch):
    def list_some(arch, _, *, kernels, head_dims, kept_rows):
        assert (arch, kernels, head_dims, kept_rows) == ("sm_90", ["grad_kv", "grad_fused"], [128], [32])
        return LISTED

    def judge(asked, arch, _):
        return [Prospect(each, 1e12 * each.tile.num_stages) for each in asked], [SPILLING]

    monkeypatch.setattr(tune_command, "list_candidates", list_some)
    monkeypatch.setattr(tune_command, "dismiss", judge)

    def make(actions=None, **fields):
        command = (sys.executable, "-S", "-c", WORKER.format(actions=json.dumps(actions or {}), package=str(PACKAGE)))
        base = TuneRequest(
            budget="1m",
            arch=None,
            kernels="grad_kv,grad_fused",
            head_dims="128",
            kept_rows="32",
            tokens="23296,153600",
            out=tmp_path / "mine.toml",
            dry_run=False,
            cache=None,
            worker_command=command,
        )
        return replace(base, **fields)

    return make


def test_the_fastest_tile_is_written_and_the_rest_stays(request_for, capsys):
    request = request_for()
    assert tune(request, look=lambda: H200) == 0
    out = capsys.readouterr().out
    table = load_tiles(request.out)
    (entry,) = set(table) - set(table_in_force())
    assert (entry.kernel, entry.arch, entry.head_dim, entry.kept_rows) == ("grad_kv", "sm_90", 128, 32)
    assert entry.tile.num_stages == 3
    assert "NVIDIA Made-up" in entry.reason
    assert "Triton 3.9.0" in entry.reason
    assert f"use it with BSA_KERNELS_TILES={request.out}" in out
    assert "1.50x as fast as the tile before" in out
    assert request.out.read_text().startswith("# The default tile of each kernel; ")


def test_wrong_and_dying_tiles_are_told_and_not_chosen(request_for, capsys):
    request = request_for({"3": "wrong", "1": "die"})
    assert tune(request, look=lambda: H200) == 3
    out = capsys.readouterr().out
    assert "grad_kv-d128-k32-g1-p1-s3: WRONG: grad_k: bad" in out
    assert "grad_kv-d128-k32-g1-p1-s1: FAILED: its process ended; see " in out
    (entry,) = set(load_tiles(request.out)) - set(table_in_force())
    assert entry.tile.num_stages == 2


@pytest.mark.slow
def test_a_tile_that_hangs_costs_no_more_than_the_budget(request_for, capsys):
    request = request_for({str(n): "hang" for n in (1, 2, 3)}, budget="2s")
    start = time.monotonic()
    assert tune(request, look=lambda: H200) == 4
    assert time.monotonic() - start < 30
    assert "nothing was measured, so no table is written" in capsys.readouterr().out
    assert not request.out.exists()


@pytest.mark.slow
def test_ctrl_c_writes_what_is_known(request_for, capsys):
    request = request_for({"3": "hang"})
    alarm = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    try:
        assert tune(request, look=lambda: H200) == 130
    finally:
        alarm.cancel()
    assert "not reached: grad_kv-d128-k32-g1-p1-s3\nnot reached: grad_kv-d128-k32-g1-p1-s1\n" in capsys.readouterr().out
    (entry,) = set(load_tiles(request.out)) - set(table_in_force())
    assert entry.tile.num_stages == 2


def test_a_dry_run_lists_what_a_gpu_would_measure_and_what_not(request_for, capsys):
    request = request_for(dry_run=True)
    assert tune(request, look=environment) == 0
    out = capsys.readouterr().out
    would, would_not = out.split("would not be measured:")
    assert "would be measured at 23,296 and 153,600 tokens" in would
    assert "  in force\n" in would
    assert SPILLING.candidate.name + ": spills in its main loop" in would_not
    assert not request.out.exists()


def test_an_architecture_that_is_not_the_gpus_can_only_be_listed(request_for):
    with pytest.raises(UsageError, match="--arch: got sm_80, but NVIDIA Made-up takes the entries of sm_90"):
        tune(request_for(arch="sm_80"), look=lambda: H200)


def test_a_gpu_that_is_too_old_is_no_gpu(request_for, capsys):
    old = H200.model_copy(update={"device_details": {"compute_capability": "7.5"}})
    assert tune(request_for(), look=lambda: old) == 4
    assert "compute capability 8.0" in capsys.readouterr().out


@pytest.mark.slow
@needs_no_gpu
def test_without_a_gpu_it_says_so_and_ends_as_a_run_would(bench, folder):
    code, out, _ = bench("tune", *ONE)
    assert code == 4
    assert "there is no NVIDIA GPU" in out
    assert "--dry-run lists" in out
    assert not Path("tiles.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "atend"], "--kernel: got 'atend', expected some of attend, grad_kv, grad_q, grad_fused; did you"),
        (["--head-dim", "96"], "--head-dim: got '96', expected some of 64, 128"),
        (["--kept-rows", "32,x"], "--kept-rows: got 'x', expected some of 32, 64"),
        (["--tokens", "12"], "--tokens: got '12', expected lengths of 1024 to 1,073,741,824"),
        (["--budget", "soon"], "duration: got 'soon'"),
    ],
)
def test_a_wrong_flag_is_named_with_what_was_expected(bench, folder, arguments, message):
    code, _, err = bench("tune", *arguments)
    assert code == 2
    assert message in err


def test_a_place_that_cannot_be_written_is_told_at_once(bench, folder):
    code, _, err = bench("tune", "--out", "nowhere/tiles.toml")
    assert code == 5
    assert "nowhere/tiles.toml: expected a file in a folder that can be written" in err
