import pytest
import torch
from safetensors.torch import save_file

from bsa_bench.errors import InputError
from bsa_bench.inputs import check_input, make_qkv
from bsa_bench.workload import InputSpec, Workload

SHAPE = (2, 3, 30, 8)


def captured(path, **changes):
    sizes = {"grid": (2, 3, 5), "batch": 2, "heads": 3, "head_dim": 8, **changes}
    return Workload(**sizes, input=InputSpec(kind="captured", path=str(path)))


def save(path, **tensors):
    save_file(tensors, path)
    return path


def test_captured_tensors_come_back_cast_to_the_dtype_of_the_workload(tmp_path):
    q, k, v = torch.randn(3, *SHAPE).to(torch.bfloat16).unbind()
    path = save(tmp_path / "layer7.safetensors", q=q, k=k, v=v, other=torch.zeros(1))
    made = make_qkv(captured(path, dtype="float32"), device="cpu")
    for got, expected in zip((made.q, made.k, made.v), (q, k, v), strict=True):
        assert torch.equal(got, expected.float())
        assert got.is_contiguous()
    assert made.description == "q, k, v captured in layer7.safetensors"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no such file.*none.safetensors"):
        check_input(captured(tmp_path / "none.safetensors"))


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    path = tmp_path / "text.safetensors"
    path.write_text("hello")
    with pytest.raises(InputError, match=r"text.safetensors: not a readable safetensors file"):
        check_input(captured(path))


def test_missing_tensors_are_named_beside_those_found(tmp_path):
    path = save(tmp_path / "x.safetensors", q=torch.zeros(SHAPE), key=torch.zeros(SHAPE))
    with pytest.raises(InputError, match="missing k, v; it has key, q"):
        check_input(captured(path))


def test_a_wrong_shape_is_shown_beside_the_expected_one(tmp_path):
    wrong = torch.zeros(2, 30, 3, 8)
    path = save(tmp_path / "x.safetensors", q=torch.zeros(SHAPE), k=wrong, v=torch.zeros(SHAPE))
    with pytest.raises(InputError, match=r"k has shape \(2, 30, 3, 8\), expected \(2, 3, 30, 8\)"):
        make_qkv(captured(path), device="cpu")


def test_whole_numbers_are_refused(tmp_path):
    zeros = torch.zeros(SHAPE)
    path = save(tmp_path / "x.safetensors", q=zeros, k=zeros.clone(), v=zeros.int())
    with pytest.raises(InputError, match="v is I32, expected one of F16, BF16, F32, F64"):
        check_input(captured(path))


def test_values_that_overflow_the_dtype_are_refused(tmp_path):
    q = torch.zeros(SHAPE)
    path = save(tmp_path / "x.safetensors", q=q, k=q + 1e6, v=q.clone())
    with pytest.raises(InputError, match=r"k has values that are not finite in torch.float16"):
        make_qkv(captured(path, dtype="float16"), device="cpu")
