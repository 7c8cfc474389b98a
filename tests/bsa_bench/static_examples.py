"""What the tests of `static` compile: the dense forward of docs/examples, and kernels without a loop."""

from pathlib import Path

from compile_cache import compile_once

from bsa_bench.static.compile import Failure
from bsa_bench.static.config import KernelConfig, load_configs

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "dense_forward.toml"
DENSE = "dense-d64-128x64"
NO_LOOP = KernelConfig(
    name="scale",
    kernel=f"{Path(__file__).parent / 'static_toys' / 'toys.py'}:add_one",
    signature={"x_ptr": "*fp32", "y_ptr": "*fp32"},
    constexprs={"SIZE": 128},
)
# A kernel of a user, and what describes it but for SIZE.
KERNEL = """
import triton
import triton.language as tl

@triton.jit
def scale(x_ptr, y_ptr, n, FACTOR: tl.constexpr, SIZE: tl.constexpr):
    offs = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    x = tl.load(x_ptr + offs, mask=offs < n)
    tl.store(y_ptr + offs, x * FACTOR, mask=offs < n)
"""
CONFIG = """
kernel = "scale.py:scale"
constexprs = { FACTOR = 2.0 }
signature = { x_ptr = "*fp32", y_ptr = "*fp32", n = "i32" }
"""
WIDTHS = (80, 100, 120, 200)


def compile_examples():
    """The dense forward for sm_80 and sm_90, and the kernel without a loop for sm_90."""
    dense = next(each for each in load_configs(EXAMPLE) if each.name == DENSE)
    jobs = [(dense, "sm_80"), (dense, "sm_90"), (NO_LOOP, "sm_90")]
    done = compile_once(jobs)
    assert not [each.message for each in done if isinstance(each, Failure)]
    return done
