"""The interpreter of Triton as the tests speed it up: it finds what it found, and refuses what it refused."""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from triton.language import core
from triton.runtime import interpreter

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU kernels are compiled")


@triton.jit
def calculate(a, b, OPERATION: tl.constexpr):
    if OPERATION == "add":
        return a + b
    return a - b if OPERATION == "sub" else a * b


@triton.jit
def calculate_kernel(a_ptr, b_ptr, out_ptr, OPERATION: tl.constexpr, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)
    tl.store(out_ptr + offs, calculate(tl.load(a_ptr + offs), tl.load(b_ptr + offs), OPERATION))


@triton.jit
def size_kernel(out_ptr, SIZE: tl.constexpr):
    tl.store(out_ptr, tl.sum(tl.zeros([SIZE], tl.int32) + 1))


def calculated(operation, a, b, dtype):
    a, b = (torch.tensor([1, 2, 3, x], dtype=dtype) for x in (a, b))
    out = torch.zeros_like(a)
    calculate_kernel[(1,)](a, b, out, OPERATION=operation, SIZE=4)
    return out[-1].item()


@pytest.mark.parametrize(("operation", "a", "b"), [("add", 2**31 - 1, 1), ("sub", -(2**31), 1), ("mul", 2**30, 2)])
def test_an_overflow_wraps_round_and_is_refused_in_debug_mode(operation, a, b, monkeypatch):
    assert calculated(operation, a, b, torch.int32) == {"add": -(2**31), "sub": 2**31 - 1, "mul": -(2**31)}[operation]
    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", replace(builder.options, debug=True))
    assert calculated(operation, 7, 3, torch.int32) == {"add": 10, "sub": 4, "mul": 21}[operation]
    with pytest.raises(interpreter.InterpreterError, match=f"int32 overflow detected for operation {operation}"):
        calculated(operation, a, b, torch.int32)


def test_a_shape_that_is_no_power_of_two_is_refused_every_time():
    out = torch.zeros(1, dtype=torch.int32)
    for _ in range(2):
        with pytest.raises(interpreter.InterpreterError, match="Shape element 0 must be a power of 2"):
            size_kernel[(1,)](out, SIZE=3)
    size_kernel[(1,)](out, SIZE=4)
    assert out.item() == 4


def test_types_and_tensors_of_a_known_shape_are_as_the_first_of_it():
    first, again, other = (core.block_type(kind, [2, 16]) for kind in (tl.float32, tl.float32, tl.int8))
    assert first == again != other
    assert str(again) == again.name == str(first) == "<['2', '16'], fp32>"
    assert (again.numel, other.nbytes) == (32, 32)
    one, two = core.tensor(None, first), core.tensor(None, other)
    assert [side.value for side in two.shape] == [2, 16]
    assert (two.numel.value, one.dtype, two.dtype) == (32, tl.float32, tl.int8)
    scalar = core.tensor(None, tl.int32)
    assert (len(scalar.shape), scalar.numel.value, scalar.type) == (0, 1, tl.int32)


def test_after_a_launch_the_language_is_as_it_was():
    before = tl.load, core.load, tl.tensor.__add__
    assert calculated("add", 1, 2, torch.int32) == 3
    assert (tl.load, core.load, tl.tensor.__add__) == before
    with pytest.raises(interpreter.InterpreterError):
        size_kernel[(1,)](torch.zeros(1, dtype=torch.int32), SIZE=3)
    assert (tl.load, core.load, tl.tensor.__add__) == before
