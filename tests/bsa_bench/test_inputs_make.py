import subprocess
import sys

import pytest
import torch

from bsa_bench.errors import InputError
from bsa_bench.inputs import check_input, make_qkv, random_like_output
from bsa_bench.workload import InputSpec, Workload


def workload(kind="smooth", seed=0, **changes):
    sizes = {"grid": (5, 7, 9), "batch": 2, "heads": 3, "head_dim": 32, **changes}
    return Workload(**sizes, input=InputSpec(kind=kind, seed=seed))


def tensors(case, device="cpu"):
    made = make_qkv(case, device=device)
    return made.q, made.k, made.v


@pytest.mark.parametrize("kind", ["gaussian", "smooth"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_shape_dtype_and_layout_are_those_of_the_workload(kind, dtype):
    for x in (*tensors(workload(kind, dtype=dtype)), random_like_output(workload(kind, dtype=dtype), "cpu")):
        assert x.shape == (2, 3, 315, 32)
        assert x.dtype == getattr(torch, dtype)
        assert x.is_contiguous()
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("kind", ["gaussian", "smooth"])
def test_the_seed_alone_decides_the_values(kind):
    torch.manual_seed(1)
    first = tensors(workload(kind))
    torch.manual_seed(2)
    again, other = tensors(workload(kind)), tensors(workload(kind, seed=1))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.allclose(a, c)


def test_making_inputs_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make_qkv(workload(), device="cpu")
    random_like_output(workload(), "cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", ["gaussian", "smooth"])
def test_low_precision_is_the_rounded_fp32_input(kind):
    for low, full in zip(tensors(workload(kind, dtype="bfloat16")), tensors(workload(kind)), strict=True):
        assert torch.equal(low, full.bfloat16())


def test_gaussian_is_standard_normal_and_its_streams_are_unrelated():
    case = workload("gaussian", batch=1, heads=4, head_dim=64)
    streams = torch.stack([*tensors(case), random_like_output(case, "cpu")]).flatten(1)
    assert streams.mean(dim=1).abs().max() < 0.02
    torch.testing.assert_close(torch.corrcoef(streams), torch.eye(4), atol=0.02, rtol=0)
    assert make_qkv(case, device="cpu").description == "independent N(0, 1), seed 0"


def test_neighbours_in_a_smooth_field_are_alike_and_strangers_are_not():
    case = workload(batch=1, heads=4, head_dim=64, grid=(8, 12, 16))
    for x in tensors(case):
        field = x.unflatten(2, (8, 12, 16))
        pairs = (
            (field[:, :, 1:], field[:, :, :-1]),
            (field[..., 1:, :, :], field[..., :-1, :, :]),
            (field[..., 1:, :], field[..., :-1, :]),
        )
        near = min(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean().item() for a, b in pairs)
        order = torch.randperm(x.shape[2], generator=torch.Generator().manual_seed(0))
        far = torch.nn.functional.cosine_similarity(x, x[:, :, order], dim=-1).mean().item()
        assert near > 0.6
        assert far < 0.3


def test_batch_elements_of_a_smooth_field_differ():
    q, _, _ = tensors(workload())
    assert not torch.allclose(q[0], q[1])


def test_an_odd_head_size_is_refused_before_the_run_but_fits_gaussian():
    with pytest.raises(InputError, match="head_dim: got 33"):
        check_input(workload(head_dim=33))
    check_input(workload("gaussian", head_dim=33))
    assert tensors(workload("gaussian", head_dim=33))[0].shape[-1] == 33


def test_a_plain_length_works():
    case = Workload(tokens=31, heads=1, head_dim=16, input=InputSpec())
    assert tensors(case)[0].shape == (1, 1, 31, 16)


@pytest.mark.slow
def test_importing_and_checking_load_no_torch(tmp_path):
    script = f"""
import json, struct, sys
sys.modules["torch"] = None
from bsa_bench.errors import InputError
from bsa_bench.inputs import check_input
from bsa_bench.workload import InputSpec, Workload
assert "av" not in sys.modules
path = {str(tmp_path / "x.safetensors")!r}
header = {{
    name: {{"dtype": "BF16", "shape": [1, 1, 4, 2], "data_offsets": [start, start + 16]}}
    for name, start in (("q", 0), ("k", 16), ("v", 32))
}}
text = json.dumps(header).encode()
open(path, "wb").write(struct.pack("<Q", len(text)) + text + bytes(48))
check_input(Workload(tokens=4, heads=1, head_dim=2, input=InputSpec(kind="captured", path=path)))
for case in (Workload(tokens=4), Workload(tokens=4, input=InputSpec(kind="gaussian"))):
    check_input(case)
try:
    check_input(Workload(tokens=4, input=InputSpec(kind="video", path=path)))
except InputError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("kind", ["gaussian", "smooth"])
def test_a_gpu_gets_the_same_values_as_the_cpu(kind):
    for on_gpu, on_cpu in zip(tensors(workload(kind), "cuda"), tensors(workload(kind)), strict=True):
        assert on_gpu.is_cuda
        assert torch.equal(on_gpu.cpu(), on_cpu)
