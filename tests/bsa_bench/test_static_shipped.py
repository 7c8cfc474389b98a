"""What the shipped kernels compile to: tensor cores, pipelines, registers and spills, read from their code."""

from dataclasses import asdict

import pytest
from compile_cache import compile_once

from bsa_bench.static.compile import Compiled
from bsa_bench.static.config import KernelConfig
from bsa_bench.static.reading import read
from bsa_kernels.configurations import shipped


@pytest.mark.slow
def test_shipped_kernels_compile_for_hopper_without_spills_to_wgmma_and_full_pipelines():
    def kept(name, head_dim):
        # With padding at the larger head size, which has fewer registers to spare.
        return name.startswith(("attend-", "grad_")) and head_dim < 256 and (head_dim == 128 or "padded" not in name)

    wanted = [each for each in shipped(dtype="bf16", arch="sm_90") if kept(each.name, each.constexprs["D"])]
    assert len(wanted) == 4 * 2 * 2 + 3 * 2  # padding changes nothing in grad_kv
    jobs = [(KernelConfig.model_validate(asdict(each)), "sm_90") for each in wanted]
    for done in compile_once(jobs):
        assert isinstance(done, Compiled), f"{done.config.name}: {done.message}"
        name, reading = done.config.name, read(done)
        assert reading.main is not None, name
        assert not done.record.stack_bytes, f"{name}: {done.record.stack_bytes} bytes of stack"
        assert not reading.main.count("spill load") + reading.main.count("spill store"), name
        assert reading.tensor_classes == ("wgmma",), f"{name}: {reading.tensor_classes}"
        walked = {"k", "v"} if name.startswith(("attend", "grad_q")) else {"q", "do"}
        assert {b.name: b.depth for b in reading.tile_buffers} == dict.fromkeys(walked, done.config.num_stages), name


# The oldest release compiles two opposite corners, so that it has seen each head size, each count of kept rows, and
# padding and none: each compilation takes seconds, and what it makes of one of these does not hang on the others.
@pytest.mark.slow
@pytest.mark.parametrize(("release", "corners"), [(None, None), ("3.6.0", {"d64-k64", "d128-k32-padded"})])
def test_the_specialized_forward_compiles_for_hopper_to_wgmma_full_pipelines_and_no_spills(release, corners):
    every = {each.name.partition("bf16-")[2]: each for each in shipped(arch="sm_90") if "attend_gluon" in each.name}
    assert len(every) == 2 * 2 * 2
    wanted = [every[name] for name in corners or every]
    jobs = [(KernelConfig.model_validate(asdict(each)), "sm_90") for each in wanted]
    for done in compile_once(jobs, release=release):
        assert isinstance(done, Compiled), f"{done.config.name}: {done.message}"
        name, reading, head_dim = done.config.name, read(done), done.config.constexprs["D"]
        assert (reading.spill_loads, reading.spill_stores, done.record.stack_bytes) == (0, 0, 0), name
        assert reading.tensor_classes == ("wgmma",), name
        assert {count.a_source for count in reading.tensor} == {"registers"}, name
        assert (reading.crew.warps, reading.crew.teams, len(reading.crew.loops)) == (4, 2, 2), name
        assert reading.depth == reading.wanted_depth == {64: 8, 128: 5}[head_dim], name
        # Two halves multiply; K and V come once, with the items of the list and, for masks, a table.
        assert reading.flop_per_trip == 2 * 4 * 64 * 64 * head_dim, name
        assert 0 <= reading.traffic.l2_bytes - 2 * 64 * head_dim * 2 <= 1024, name
        assert reading.occupancy.ctas == 1, name
