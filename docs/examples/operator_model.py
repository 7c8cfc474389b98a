"""Predict the whole operator, forward and backward, from `bsa-bench static --json` and from lists measured on clips.

    bsa-bench static --json --arch sm_90 --set candidates > candidates.json
    bsa-bench static --json --arch sm_90 --only 'attend_gluon*' > gluon.json
    python docs/examples/operator_model.py candidates.json gluon.json

Times are bounds from the ceilings of each kernel's main loop (see docs/static.md for what these leave out); what lies
beside the loops is counted in bytes at a measured copy rate, and in launches.
"""

import json
import sys
from pathlib import Path

from bsa_kernels.methods.bsa.fused import selection_cost
from bsa_kernels.methods.bsa.options import BsaOptions

DEVICE = "H200-SXM"
COPY_BYTES_PER_S = 4.3e12  # a device copy of torch on one H200, measured
LAUNCH_S = 3e-6  # a short kernel in a stream; counted, not measured here
# cuDNN 9.19 on an H200, bf16, head size 128, forward and backward; FlashAttention-2 on an H100. Published.
DENSE = {"cuDNN": (690e12, 590e12), "FA2": (370e12, 322e12)}
# Bytes of fp32 that FlashAttention-3 adds to dq a second at its published 561 TFLOP/s (backward, H100): 128 * 4 bytes
# a row and 128 keys, for 5 products (our arithmetic). How fast an H200 can make them nobody has measured for us yet.
ADDED_BYTES_PER_S = 561e12 / (5 * 2 * 128) * 4
HEADS, HEAD_DIM, KEEP = 12, 128, 0.5
# (grid, clip, KV density, eta of pairs, of quads, of their halves): measured on projected clips, which are
# bsa-bench's own inputs.
MEASURED = (
    ((16, 28, 52), "bikes", 0.0873, 0.814, 0.604, 0.778),
    ((16, 28, 52), "carphone", 0.1061, 0.867, 0.672, 0.773),
    ((40, 48, 80), "bikes", 0.0980, 0.805, 0.594, 0.786),
    ((40, 48, 80), "carphone", 0.1035, 0.850, 0.652, 0.775),
)
FORMS = {
    "pair, split": ("attend-bf16-d128-k32-g2-64x64-w4-s2", 1, "split"),
    "pair, fused": ("attend-bf16-d128-k32-g2-64x64-w4-s2", 1, "fused"),
    "quad, split": ("attend-bf16-d128-k32-g4-128x64-w8-s2", 2, "split"),
    "gluon, split": ("attend_gluon-bf16-d128-k32", 2, "split"),
    "gluon, fused": ("attend_gluon-bf16-d128-k32", 2, "fused"),
}
GRAD_Q = {1: "grad_q-bf16-d128-k32-g2-64x64-w4-s2", 2: "grad_q-bf16-d128-k32-g4-128x64-w8-s2"}
GRAD_KV, GRAD_FUSED = "grad_kv-bf16-d128-k32-p1-32x64-w4-s2", "grad_fused-bf16-d128-k32-p1-32x64-w4-s2"


def main() -> None:
    """Print one row for each shape and form."""
    rows = [row for name in sys.argv[1:] for row in json.loads(Path(name).read_text())["configurations"]]
    ceilings = {
        r["name"]: next(c for c in r["ceilings"] if c["device"] == DEVICE) for r in rows if r["arch"] == "sm_90"
    }
    print("| tokens, clip | s | eta | form | forward ms | backward ms | beside ms | over cuDNN | over FA2 | ideal |")
    print("|---|---:|---:|---|---:|---:|---:|---:|---:|---:|")
    for grid, clip, density, *etas, eta_half in MEASURED:
        tokens, sparsity = grid[0] * grid[1] * grid[2], 1 - KEEP * density
        dense = 4 * tokens**2 * HEAD_DIM * HEADS
        for form, (attend, at, kind) in FORMS.items():
            eta, spans = etas[at - 1], []
            for bound in ("in_order_flop_per_s", "overlapped_flop_per_s"):
                useful = dense * (1 - sparsity)
                rate = ceilings[attend][bound] * eta
                if form.startswith("gluon"):
                    rate = _specialised(ceilings[attend], bound, eta, eta_half)
                forward = useful / rate
                if kind == "split":
                    backward = 2 * useful / ceilings[GRAD_KV][bound] + 1.5 * useful / eta / ceilings[GRAD_Q[at]][bound]
                else:
                    rate = ceilings[GRAD_FUSED][bound]
                    if bound == "in_order_flop_per_s":  # every 64 keys are five products, and one addition to dq
                        rate = min(rate, ADDED_BYTES_PER_S / 4 * (5 * 2 * 64))
                    backward = 2.5 * useful / rate
                spans.append((forward, backward))
            beside = _beside(grid, density, is_fused=kind == "fused")
            totals = [forward + backward + beside for forward, backward in spans]
            over = [[(dense / f + 2.5 * dense / b) / total for total in totals] for f, b in DENSE.values()]
            cells = [" to ".join(f"{1e3 * span[i]:.3g}" for span in reversed(spans)) for i in (0, 1)]
            ratios = [" to ".join(f"{each:.1f}" for each in pair) for pair in over]
            print(
                f"| {tokens:,}, {clip} | {sparsity:.3f} | {eta:.2f} | {form} | {cells[0]} | {cells[1]} | "
                f"{1e3 * beside:.2g} | {ratios[0]} | {ratios[1]} | {1 / (1 - sparsity):.1f} |"
            )


def _specialised(ceiling: dict, bound: str, eta: float, eta_half: float) -> float:
    """Useful FLOP/s where a group of four loads its union, and each half multiplies the union of its own two blocks."""
    clocks = {each["name"]: each["clocks"] for each in ceiling["resources"]}
    loads, vector = clocks.pop("L2") / eta, [clocks["issue slots"], clocks["exp and other special functions"]]
    arithmetic = max(clocks.values())
    if bound == "in_order_flop_per_s":
        arithmetic = max(clocks["tensor cores"], clocks["shared memory"]) + max(vector)
    trip = ceiling["overlapped_flop_per_s"] * ceiling["overlapped_clocks"]  # its FLOP times clocks a second
    return trip / max(loads, arithmetic / eta_half)


def _beside(grid: tuple[int, int, int], density: float, *, is_fused: bool) -> float:
    """Selection, lists, packing of rows; and, fused, clearing and converting the sums of dq."""
    options = BsaOptions(grid=grid, query_keep=KEEP, kv_density=0.1)
    tokens, blocks = grid[0] * grid[1] * grid[2], grid[0] * grid[1] * grid[2] // 64
    row_bytes = HEADS * tokens * HEAD_DIM * 2
    moved = sum(
        c.bytes_read + c.bytes_written for c in selection_cost(options, batch=1, heads=HEADS, head_dim=HEAD_DIM)
    )
    bits, items = HEADS * blocks * blocks / 8, HEADS * blocks * blocks * density * 4
    # Counted in three ways to group; counted and walked for both lists, turned once; the items of both written.
    moved += 9 * bits + 2 * items
    moved += row_bytes * (1 + 4 * KEEP)  # dO; kept rows of q and o in, of q and dO out
    launches = 3 + 2 + 4 + 4 + 5 + 4 + 1  # selection, groups, lists, order, inverse lists, order, packing
    if is_fused:
        moved += KEEP * row_bytes * 2 * 2 + row_bytes
        launches += 2
    return moved / COPY_BYTES_PER_S + launches * LAUNCH_S


if __name__ == "__main__":
    main()
