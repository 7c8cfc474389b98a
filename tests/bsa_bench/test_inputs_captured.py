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


@pytest.mark.parametrize(
    ("stored", "dtype", "value", "words"),
    [
        (torch.float32, "float32", float("nan"), "1 NaN; the first is nan at [1, 2, 29, 7]"),
        (torch.bfloat16, "float32", float("-inf"), "1 infinite; the first is -inf at [1, 2, 29, 7]"),
        (torch.float16, "bfloat16", float("inf"), "1 infinite; the first is inf"),
        (torch.float64, "float32", 1e39, "1 beyond the largest float32; the first is 1e+39"),
        (torch.float32, "float16", -65520.0, "1 beyond the largest float16; the first is -65520"),
        (torch.float32, "bfloat16", 3.4e38, "1 beyond the largest bfloat16"),
    ],
)
def test_values_that_are_not_finite_are_found_before_anything_is_run(tmp_path, stored, dtype, value, words):
    """In the last place, with none of torch: whoever asks has none."""
    tensors = {name: torch.zeros(SHAPE, dtype=stored) for name in "qkv"}
    tensors["v"].view(-1)[-1] = value
    path = save(tmp_path / "x.safetensors", **tensors)
    with pytest.raises(InputError, match=r"captured .*x.safetensors: v has values that are not finite in") as error:
        check_input(captured(path, dtype=dtype))
    assert words in str(error.value)
    assert not torch.isfinite(tensors["v"].to(getattr(torch, dtype))).all()


@pytest.mark.parametrize(
    ("stored", "dtype", "value"),
    [
        (torch.float32, "float16", 65519.0),
        (torch.float32, "bfloat16", 3.39e38),
        (torch.float64, "float32", 3.4028235e38),
        (torch.bfloat16, "float64", 3e38),
    ],
)
def test_the_largest_values_that_a_cast_keeps_are_taken(tmp_path, stored, dtype, value):
    tensors = {name: torch.full(SHAPE, value, dtype=stored) for name in "qkv"}
    check_input(captured(save(tmp_path / "x.safetensors", **tensors), dtype=dtype))
    assert torch.isfinite(tensors["q"].to(getattr(torch, dtype))).all()


def test_several_faults_are_counted_over_all_parts_of_a_large_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("bsa_bench.inputs.finite._CHUNK", 100)
    tensors = {name: torch.zeros(SHAPE) for name in "qkv"}
    flat = tensors["k"].view(-1)
    flat[150], flat[151], flat[1400] = float("nan"), 1e30, float("nan")
    path = save(tmp_path / "x.safetensors", **tensors)
    with pytest.raises(
        InputError, match=r"k has .*\(2 NaN, 1 beyond the largest float16; the first is nan at \[0, 0, 18, 6\]\)"
    ):
        check_input(captured(path, dtype="float16"))
