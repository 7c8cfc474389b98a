"""Toy kernels whose compiled form is known beforehand; `L` tokens, `D` head size, tiles of ROWS by KEYS."""

import triton
import triton.language as tl


@triton.jit
def load_tile(x_ptr, first, STRIDE: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr):
    offs = (first + tl.arange(0, KEYS))[:, None] * (D * STRIDE) + tl.arange(0, D)[None, :] * STRIDE
    return tl.load(x_ptr + offs)  # [KEYS, D]


@triton.jit
def attend(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    list_ptr,
    count,
    scale,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    D: tl.constexpr,
    CARRIED: tl.constexpr,  # the next block's number is a loop variable, else it is loaded where it is used
    STRIDE: tl.constexpr,  # between the numbers of a row of K: with 2, nothing is contiguous
):
    q = load_tile(q_ptr, tl.program_id(0) * ROWS, 1, ROWS, D)
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D], tl.float32)
    upcoming = tl.load(list_ptr)
    for step in range(count):
        if CARRIED:
            block = upcoming
            upcoming = tl.load(list_ptr + step + 1)
        else:
            block = tl.load(list_ptr + step)
        k = load_tile(k_ptr, block * KEYS, STRIDE, KEYS, D)
        scores = tl.dot(q, tl.trans(k)) * scale
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        v = load_tile(v_ptr, block * KEYS, 1, KEYS, D)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None])
        top = new_top
    offs = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(o_ptr + offs, (acc / total[:, None]).to(o_ptr.dtype.element_ty))


@triton.jit
def nested(a_ptr, b_ptr, c_ptr, num_tiles, num_steps, TILE: tl.constexpr):
    """Sums of products, one tile after another: a loop with dots inside a loop without."""
    offs = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    for tile in range(num_tiles):
        acc = tl.zeros([TILE, TILE], tl.float32)
        for step in range(num_steps):
            a = tl.load(a_ptr + (tile * num_steps + step) * TILE * TILE + offs)
            b = tl.load(b_ptr + step * TILE * TILE + offs)
            acc = tl.dot(a, b, acc)
        tl.store(c_ptr + tile * TILE * TILE + offs, acc)


@triton.jit
def add_one(x_ptr, y_ptr, SIZE: tl.constexpr):
    """No loop, no dot."""
    offs = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs) + 1.0)


@triton.jit
def broken(x_ptr, SIZE: tl.constexpr):
    """Does not compile: shapes that no rule joins."""
    x = tl.load(x_ptr + tl.arange(0, SIZE)) + tl.arange(0, 2 * SIZE)
    tl.store(x_ptr + tl.arange(0, SIZE), x)


def plain_function(x):
    return x


@triton.jit
def clipped(a_ptr, b_ptr, c_ptr, num_steps, LIMIT: tl.constexpr, TILE: tl.constexpr):
    """A sum of products, each number of which is at most a constant."""
    offs = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    total = tl.zeros([TILE, TILE], tl.float32)
    for step in range(num_steps):
        a = tl.load(a_ptr + step * TILE * TILE + offs)
        b = tl.load(b_ptr + step * TILE * TILE + offs)
        total += tl.minimum(tl.dot(a, b), LIMIT)
    tl.store(c_ptr + offs, total)
