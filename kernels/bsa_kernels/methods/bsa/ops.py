"""The selection as an operator that torch knows: `torch.compile` and `torch.export` trace it. It has no gradient."""
# The fakes of operators have the operators' arguments and need few of them.
# ruff: noqa: ARG001

from __future__ import annotations

import torch
from torch import Tensor

from bsa_kernels.methods.bsa.fused import unsupported
from bsa_kernels.methods.bsa.options import BsaOptions
from bsa_kernels.methods.bsa.queries import kept_rows
from bsa_kernels.methods.bsa.stages import Selected, grids, select_tokens
from bsa_kernels.torch_operator import fake_of, torch_operator


def select(q: Tensor, k: Tensor, options: BsaOptions, *, scale: float, is_tiled: bool) -> Selected:
    """Select as `stages.select_tokens`, in Triton where it has the options."""
    return Selected(*_select(q, k, options.code, scale, is_tiled))


@torch_operator("bsa_select")
def _select(q: Tensor, k: Tensor, options: str, scale: float, is_tiled: bool) -> list[Tensor]:
    wanted = BsaOptions.decode(options)
    selected = select_tokens(q, k, wanted, scale=scale, is_tiled=is_tiled)
    if unsupported(wanted, head_dim=q.shape[-1], dtype=q.dtype) is None:
        return list(selected)
    # In torch one table may be a view of another, or of one that is kept.
    return [table.clone(memory_format=torch.contiguous_format) for table in selected]


def select_in_torch(q: Tensor, k: Tensor, options: BsaOptions, *, scale: float, is_tiled: bool) -> Selected:
    """Select as `stages.select_tokens` does in torch."""
    return Selected(*_select_in_torch(q, k, options.code, scale, is_tiled))


@torch_operator("bsa_select_torch")
def _select_in_torch(q: Tensor, k: Tensor, options: str, scale: float, is_tiled: bool) -> list[Tensor]:
    selected = select_tokens(q, k, BsaOptions.decode(options), scale=scale, is_tiled=is_tiled, in_triton=False)
    return [table.clone(memory_format=torch.contiguous_format) for table in selected]


@fake_of(_select_in_torch)
@fake_of(_select)
def _(q: Tensor, k: Tensor, options: str, scale: float, is_tiled: bool) -> list[Tensor]:
    return list(empty_selection(q, BsaOptions.decode(options)))


def empty_selection(q: Tensor, options: BsaOptions) -> Selected:
    """The tables of a selection from q [B, H, L, D], contiguous on its device, not written."""
    q_grid, kv_grid = grids(options)
    blocks = (*q.shape[:2], q_grid.num_blocks)
    kept = kept_rows(q_grid, options.query_rule, options.query_keep)
    return Selected(
        kept_slots=q.new_empty((*blocks, kept), dtype=torch.int32),
        num_kept=q.new_empty(blocks, dtype=torch.int32),
        fill=q.new_empty((*blocks, q_grid.block_size), dtype=torch.int32),
        block_bits=q.new_empty((*blocks, -(-kv_grid.num_blocks // 32)), dtype=torch.int32),
    )
