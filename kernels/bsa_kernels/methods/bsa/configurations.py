"""The configurations of the kernels that select, for tools that compile without launching. Imports no Triton."""

from __future__ import annotations

from bsa_kernels.block_sparse.configurations import DTYPES, SIDES, Configuration, Format, Shape, configuration
from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.bsa.fused import bits_options, moments_options, pool_options

_FUNCTIONS: dict[str, tuple[str, str]] = {
    "pool": ("methods.bsa.triton_pool", "pool_kernel"),
    "moments": ("methods.bsa.triton_select", "moments_kernel"),
    "bits": ("methods.bsa.triton_select", "bits_kernel"),
}
_SINGLES = ("pooled_q_ptr", "pooled_k_ptr", "mean_ptr", "moments_ptr", "largest_ptr")
_NUMBERS = ("quantile", "sign", "tolerance")


def shipped_selection(shape: Shape, head_dim: int, *, dtype: Format = "bf16") -> list[Configuration]:
    """The configurations of a selection in blocks of 64 tokens that keeps half of the queries."""
    _, _, width = SIDES
    grid = BlockGrid((*SIDES[:2], width * -(-shape.tokens // (SIDES[0] * SIDES[1] * width))), SIDES)
    pool = pool_options(
        grid, grid, query_keep=0.5, zero_fill=False, tiled=False, head_dim=head_dim, dtype=DTYPES[dtype]
    )
    found = []
    for kernel, options in {
        "pool": pool,
        "moments": moments_options(head_dim),
        "bits": bits_options(head_dim),
    }.items():
        compiler = {key: value for key, value in options.items() if key in {"num_warps", "num_stages"}}
        constants = {key: value for key, value in options.items() if key not in compiler}
        # All but the first kernel read pooled rows, in fp32.
        tokens = dict.fromkeys(("q_ptr", "k_ptr"), f"*{dtype if kernel == 'pool' else 'fp32'}")
        types = tokens | dict.fromkeys(_SINGLES, "*fp32") | dict.fromkeys(_NUMBERS, "fp32")
        name = f"{kernel}-{dtype}-d{head_dim}"
        found.append(configuration(name, _FUNCTIONS[kernel], constants, {"num_stages": 3, **compiler}, types=types))
    return found
