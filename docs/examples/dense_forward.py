"""A plain dense attention forward in Triton: the example kernel of `bsa-bench static`, and the model's yardstick.

Shape legend: `L` tokens, `D` head size; a program takes `ROWS` queries over all keys, `KEYS` at a time.
"""

import triton
import triton.language as tl


@triton.jit
def dense_forward(
    q_ptr,  # [B*H, L, D]
    k_ptr,
    v_ptr,
    o_ptr,
    tokens,
    score_scale,  # softmax scale times log2(e)
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    D: tl.constexpr,
):
    """softmax(q @ k.T * scale) @ v with an online softmax in base 2; tokens is a multiple of ROWS and KEYS."""
    first = tl.program_id(1).to(tl.int64) * tokens * D
    offs_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    offs_d = tl.arange(0, D)
    q = tl.load(q_ptr + first + offs_row[:, None] * D + offs_d[None, :])  # [ROWS, D]
    tile = first + tl.arange(0, KEYS)[:, None] * D + offs_d[None, :]
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D], tl.float32)
    for _ in range(0, tokens, KEYS):
        k = tl.load(k_ptr + tile)  # [KEYS, D]
        scores = tl.dot(q, tl.trans(k)) * score_scale  # [ROWS, KEYS]
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(v_ptr + tile)  # [KEYS, D]
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None])
        top = new_top
        tile += KEYS * D
    offs = first + offs_row[:, None] * D + offs_d[None, :]
    tl.store(o_ptr + offs, (acc / total[:, None]).to(o_ptr.dtype.element_ty))
