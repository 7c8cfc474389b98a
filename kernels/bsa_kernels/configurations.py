"""Every configuration of this package's kernels, for tools that compile them without launching. Imports no Triton.

`shipped` is what a user's call can come to, `candidates` are the tiles that were weighed against it.
"""

from __future__ import annotations

from bsa_kernels.block_sparse.configurations import (
    HEAD_DIMS,
    KEPT_ROWS,
    Configuration,
    Format,
    Shape,
    Work,
    candidates,
    shipped_attention,
)
from bsa_kernels.block_sparse.tile_table import Arch
from bsa_kernels.methods.bsa.configurations import shipped_selection

__all__ = ["HEAD_DIMS", "KEPT_ROWS", "Configuration", "Shape", "Work", "candidates", "shipped"]


def shipped(shape: Shape | None = None, *, dtype: Format = "bf16", arch: Arch = "sm_90") -> list[Configuration]:
    """The configurations that calls come to with blocks of 64 tokens: attention and selection, by head size."""
    made = shape or Shape()
    return [
        each
        for head_dim in HEAD_DIMS
        for each in (
            *shipped_attention(made, head_dim, dtype=dtype, arch=arch),
            *shipped_selection(made, head_dim, dtype=dtype),
        )
    ]
