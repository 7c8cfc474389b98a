"""Toys whose source promises something, or asks of a loop what the launch does not, and toys with rare work."""

import triton
import triton.language as tl


@triton.jit
def rare(a_ptr, b_ptr, c_ptr, num_steps, EVERY: tl.constexpr, TILE: tl.constexpr):
    """A sum of products; after each EVERY of them, what is far more work, which nothing waits for."""
    offs = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    total = tl.zeros([TILE, TILE], tl.float32)
    for step in range(num_steps):
        a = tl.load(a_ptr + step * TILE * TILE + offs)
        b = tl.load(b_ptr + step * TILE * TILE + offs)
        total = tl.dot(a, b, total)
        if EVERY:  # noqa: SIM102  a constant and a condition do not join
            if step % EVERY == 0:
                extra = tl.load(c_ptr + (num_steps + step) * TILE * TILE + offs)
                total = tl.exp2(total) * extra
    tl.store(c_ptr + offs, total)


@triton.jit
def skipping(a_ptr, b_ptr, c_ptr, flags_ptr, num_steps, TILE: tl.constexpr):
    """A sum of the products that a list asks for: all that a step does stands under a branch."""
    offs = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    total = tl.zeros([TILE, TILE], tl.float32)
    for step in range(num_steps):
        if tl.load(flags_ptr + step) != 0:
            a = tl.load(a_ptr + step * TILE * TILE + offs)
            b = tl.load(b_ptr + step * TILE * TILE + offs)
            total = tl.dot(a, b, total)
    tl.store(c_ptr + offs, total)


@triton.jit
def wrapped_rows(a_ptr, b_ptr, c_ptr, num_steps, width, TILE: tl.constexpr):
    """Columns modulo a width, which the source promises to be side by side all the same."""
    rows, columns = tl.arange(0, TILE), tl.arange(0, TILE)
    wrapped = tl.max_contiguous(tl.multiple_of(columns % width, TILE), TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for step in range(num_steps):
        a = tl.load(a_ptr + step * TILE * TILE + rows[:, None] * TILE + wrapped[None, :])
        b = tl.load(b_ptr + step * TILE * TILE + rows[:, None] * TILE + wrapped[None, :])
        total = tl.dot(a, b, total)
    tl.store(c_ptr + rows[:, None] * TILE + columns[None, :], total)


@triton.jit
def gathered(a_ptr, b_ptr, c_ptr, list_ptr, num_steps, TILE: tl.constexpr):
    """Columns that a list names, which the source promises to come in runs of 16."""
    rows, columns = tl.arange(0, TILE), tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    named = tl.max_contiguous(tl.multiple_of(tl.load(list_ptr + columns), 16), 16)
    for step in range(num_steps):
        a = tl.load(a_ptr + step * TILE * TILE + rows[:, None] * TILE + named[None, :])
        b = tl.load(b_ptr + step * TILE * TILE + rows[:, None] * TILE + columns[None, :])
        total = tl.dot(a * 2, b, total)
    tl.store(c_ptr + rows[:, None] * TILE + columns[None, :], total)


@triton.jit
def staged(a_ptr, b_ptr, c_ptr, num_steps, TILE: tl.constexpr, STAGES: tl.constexpr):
    """A loop that asks for stages of its own; what it loads has no name but its pointers'."""
    offs = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    total = tl.zeros([TILE, TILE], tl.float32)
    for step in tl.range(num_steps, num_stages=STAGES):
        total = tl.dot(tl.load(a_ptr + step * TILE * TILE + offs), tl.load(b_ptr + step * TILE * TILE + offs), total)
    tl.store(c_ptr + offs, total)


@triton.jit
def unrolled(a_ptr, b_ptr, c_ptr, num_steps, TILE: tl.constexpr):
    """A loop that is unrolled by two."""
    offs = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    total = tl.zeros([TILE, TILE], tl.float32)
    for step in tl.range(num_steps, loop_unroll_factor=2):
        a = tl.load(a_ptr + step * TILE * TILE + offs)
        b = tl.load(b_ptr + step * TILE * TILE + offs)
        total = tl.dot(a, b, total)
    tl.store(c_ptr + offs, total)
