import shutil
from pathlib import Path

import pytest
import torch

import bsa_kernels
from bsa_bench.catalog import make_case
from bsa_bench.gate.lockstep import HostOperation, LockstepBench, LockstepSettings, PairSide
from bsa_bench.gate.pair_worker import _kept
from bsa_bench.gate.two_stage import PairSample
from bsa_bench.gate.verdict import Verdict
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.stats.pairs import lockstep_log_ratio
from bsa_bench.workload import PRESETS, InputSpec, Workload

PRESET = PRESETS["cpu-1x32"]
SPOILED = '''

_exact = attend


def attend(q_tiles, k_tiles, v_tiles, plan, prepared, *, scale):
    """Slow for 512 tokens, wrong for 768."""
    import time

    start = time.perf_counter()
    out = _exact(q_tiles, k_tiles, v_tiles, plan, prepared, scale=scale)
    num_tokens = k_tiles.numel() // k_tiles.shape[-1]
    if num_tokens == 512:
        end = start + 6 * (time.perf_counter() - start)
        while time.perf_counter() < end:
            pass
    return out * 1.01 if num_tokens == 768 else out
'''


def forward(frames):
    workload = Workload(
        model="cpu-1x32",
        grid=(frames, 8, 8),
        heads=PRESET.heads,
        head_dim=PRESET.head_dim,
        input=InputSpec(kind="smooth"),
    )
    options = BsaOptions(kv_density=0.4)
    return make_case(suite="tiny", workload=workload, implementation="bsa@gather", passes="forward", options=options)


def copied_kernels(folder, *, spoiled):
    """A copy of the kernels, spoiled or as they are; returns what stands on the module path."""
    package = Path(bsa_kernels.__file__).parent
    shutil.copytree(package, folder / "bsa_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    if spoiled:
        with (folder / "bsa_kernels" / "engines" / "gather.py").open("a") as gather:
            gather.write(SPOILED)
    return folder


@pytest.mark.slow
def test_real_workers_find_what_is_the_same_slower_and_wrong(tmp_path):
    sides = [
        PairSide(label=label, first_paths=(copied_kernels(tmp_path / label, spoiled=label == "head"),))
        for label in ("base", "head")
    ]
    bench = LockstepBench(
        {"same": forward(4), "slow": forward(8), "wrong": forward(12), "host": HostOperation("token-tables")},
        base=sides[0],
        head=sides[1],
        settings=LockstepSettings(device="cpu", threads=1, logs=tmp_path / "logs", turns_s=0.5),
    )
    found = bench.measure(["same", "wrong", "host", "slow"])
    logs = [(tmp_path / "logs" / f"{label}.log").read_text() for label in ("base", "head")]
    for name in ("same", "slow", "host"):
        assert isinstance(found[name], PairSample), (found[name], logs)
        assert len(found[name].base) == len(found[name].head) >= 5
    for name in ("same", "host"):
        assert abs(lockstep_log_ratio(found[name].base, found[name].head)) < 0.3
    assert 0.4 < lockstep_log_ratio(found["slow"].base, found["slow"].head) < 1.9
    assert found["wrong"].verdict is Verdict.WRONG
    assert found["wrong"].reason.startswith("head: output: ")
    assert "above its budget" in found["wrong"].reason


def test_inputs_are_made_once_and_a_folder_that_cannot_be_written_costs_only_time(tmp_path, capsys):
    made = []

    def make():
        made.append({"q": torch.arange(4.0), "k": torch.ones(2)})
        return made[-1]

    place = tmp_path / "x.pt"
    for _ in range(3):
        kept = _kept(place, make, "cpu")
        assert torch.equal(kept["q"], torch.arange(4.0))
        assert torch.equal(kept["k"], torch.ones(2))
    assert len(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    assert _kept(None, make, "cpu") is made[-1]
    assert _kept(tmp_path / "nowhere" / "x.pt", make, "cpu").keys() == {"q", "k"}
    assert "nowhere/x.pt: not kept: " in capsys.readouterr().err
    assert len(made) == 3
