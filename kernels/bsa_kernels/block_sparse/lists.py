"""The lists that the attention kernels walk, made from a plan's bits on its device, and the tables they point into.

Shape legend: `B` batch, `H` heads, `Nq`/`Nk` query and KV blocks, `W` words of 32 KV blocks, `R` lists a head, each of
a group of `G` query blocks, `M` slots a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from bsa_kernels.bits import count_bits, pack_bits, unpack_bits
from bsa_kernels.block_sparse.groups import union_counts, words_of
from bsa_kernels.grid import BlockGrid
from bsa_kernels.keys import KeySlots
from bsa_kernels.rules import ElementRule

#: An item is a value below this, plus the activity of members from this bit on.
ACTIVITY_SHIFT = 28
#: The largest number of items that is reserved for a worst case (1 GiB); see `make_lists`.
MAX_WORST_CASE = 1 << 28


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists of blocks of unequal length behind each other: list r is `items[starts[r] : starts[r] + counts[r]]`.

    `items` [capacity] int32 has at least one entry past the last list, so that a kernel may read one ahead; what is
    there means nothing. `starts` [B, H, R] is int64, `counts` [B, H, R] int32.

    A list has two parts, both ascending by block number: the first `num_full` [B, H, R] int32 items are KV blocks
    that need no mask, given as their first token; the others, with padding or cut by an element rule for a member that
    sees them, are given as their number. That value is `item & (1 << 28) - 1`. In lists of groups bit 28 + g says that
    member g sees the block (an item with member 3 is therefore negative).
    """

    items: Tensor
    starts: Tensor
    num_full: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class TokenTables:
    """Where the tokens of a grid's blocks are, in blocks padded to `Mp` slots, int32.

    `origins` [N] the first token of each block; `offsets` [Mp] what the other slots of a block without padding add to
    it (0 past M); `tokens` [N, Mp] the token of each slot, -1 for padding; `positions` [N, Mp] its number in natural
    order, -1 for padding and for tokens of a prefix, which have none; `is_full` [N] bool the blocks without any
    padding whose tokens stand at `offsets`, none where Mp is more than M, and `full_bits` [W] the same in bits.
    """

    origins: Tensor
    offsets: Tensor
    tokens: Tensor
    positions: Tensor
    is_full: Tensor
    full_bits: Tensor


@lru_cache(maxsize=64)
def token_tables(
    grid: BlockGrid, *, tiled: bool, pad_to: int = 1, prefix: int = 0, device: torch.device
) -> TokenTables:
    """Make the tables of a grid for natural order, or for tile-major order if `tiled`; cached.

    Args:
        grid: the blocks.
        tiled: tokens stand as `BlockGrid.permute` leaves them: token = block * M + slot.
        pad_to: pad blocks to a multiple of so many slots, the keys of a tile.
        prefix: tokens of keys that precede the grid's, in blocks of their own behind the grid's, see `KeySlots`.
        device: where to put the tables.

    Raises:
        ValueError: token numbers do not fit the items of lists.
    """
    keys = KeySlots(grid, prefix)
    if keys.num_slots > 1 << ACTIVITY_SHIFT:
        raise ValueError(f"grid: expected at most 2**{ACTIVITY_SHIFT} slots, got {keys.num_slots} in {grid}")
    if device.type != "cpu":
        cpu = token_tables(grid, tiled=tiled, pad_to=pad_to, prefix=prefix, device=torch.device("cpu"))
        return TokenTables(*(x.to(device) for x in vars(cpu).values()))
    n, m = grid.num_blocks, grid.block_size
    tokens, positions = (
        torch.full((keys.num_blocks, -(-m // pad_to) * pad_to), -1, dtype=torch.int32) for _ in range(2)
    )
    natural = torch.full((keys.num_slots,), -1)
    natural[keys.slot_of_key(device)] = torch.arange(keys.num_keys)
    slots = torch.arange(keys.num_slots)
    tokens[:, :m] = (torch.where(natural >= 0, slots, -1) if tiled else natural).view(-1, m)
    positions[:n, :m] = grid.token_of_slot(device)
    offsets = torch.zeros(tokens.shape[1], dtype=torch.int32)
    t, h, w = (torch.arange(side) for side in grid.block)
    step = ((t.view(-1, 1, 1) * grid.grid[1] + h.view(-1, 1)) * grid.grid[2] + w).flatten()
    offsets[:m] = torch.arange(m) if tiled else step
    # A block's first slot holds a real token.
    origins = tokens[:, 0].contiguous()
    is_full = ((tokens >= 0) & (tokens - origins.unsqueeze(-1) == offsets)).all(1)
    return TokenTables(origins, offsets, tokens, positions, is_full, pack_bits(is_full))


@lru_cache(maxsize=16)
def covered_bits(q_grid: BlockGrid, keys: KeySlots, rule: ElementRule, device: torch.device) -> Tensor:
    """[Nq, W] int32: the KV blocks that a rule does not cut for a query block, those of a prefix among them; cached."""
    covered = rule.covers(q_grid, keys.grid, device)
    return pack_bits(torch.nn.functional.pad(covered, (0, keys.num_prefix_blocks), value=True))


def make_lists(
    bits: Tensor, members: Tensor, origins: Tensor, is_full: Tensor, *, capacity: int | None = None
) -> Lists:
    """Make the list of each group of query blocks: the KV blocks that any member sees. No sort, no atomics.

    Args:
        bits: [B, H, Nq, W] int32, `BlockPlan.block_bits`.
        members: [B, H, R, G] int32 from `choose_groups`, or [R, G] for all heads; items have activity bits where G is
            above 1.
        origins: [Nk] int32, the item of each KV block without padding.
        is_full: the KV blocks that need no mask, [Nk] bool, or [W] int32 as packed already; [Nq, W] int32 where that
            depends on the query block.
        capacity: size of `items`, above the sum of all counts. By default the worst case, if that is at most 2**28
            items, so that nothing synchronises; beyond, the sum is read back, which synchronises once.

    Raises:
        RuntimeError: `capacity` is too small; on a GPU later, as a failed device-side assertion.
    """
    from bsa_kernels.block_sparse.triton_lists import launch_count, launch_emit

    full_bits = pack_bits(is_full) if is_full.dtype == torch.bool else is_full
    bits = bits.contiguous()
    assert bits.shape[-1] == full_bits.shape[-1] == -(-origins.numel() // 32)
    num_full, counts = launch_count(bits, members, full_bits)
    starts, items = _reserve(counts, origins.numel(), capacity)
    launch_emit(bits, members, full_bits, origins, starts, num_full, items)
    return Lists(items, starts, num_full, counts)


def make_inverse(bits: Tensor, num_columns: int, *, capacity: int | None = None) -> Lists:
    """Make the list of each of `num_columns` KV blocks [B, H, Nk]: the query blocks that see it, all of them "full".

    They are the lists of the transposed bits. Arguments and errors as in `make_lists`.
    """
    from bsa_kernels.block_sparse.triton_lists import launch_transpose

    turned = launch_transpose(bits.contiguous(), num_columns)
    members, numbers, full_bits = _plain_rows(num_columns, bits.shape[2], bits.device)
    return make_lists(turned, members, numbers, full_bits, capacity=capacity)


def make_lists_reference(bits: Tensor, members: Tensor, origins: Tensor, is_full: Tensor) -> Lists:
    """Do what `make_lists` does in plain torch; `items` has one entry to spare. Synchronises."""
    n, size = origins.numel(), members.shape[-1]
    full = is_full if is_full.dtype == torch.bool else unpack_bits(is_full, n)
    sees = unpack_bits(words_of(bits, members), n)  # [B, H, R, G, Nk]
    if full.dim() == 2:
        full = (full[members.clamp(min=0).long()] | ~sees).all(-2)
    item = torch.where(full, origins, torch.arange(n, dtype=torch.int32, device=bits.device))
    if size > 1:
        member = torch.arange(size, dtype=torch.int32, device=bits.device).unsqueeze(-1)
        item = item | (sees.int() << member).sum(-2, dtype=torch.int32) << ACTIVITY_SHIFT
    union = sees.any(-2)
    full = full.expand_as(union)
    order = full.int().argsort(descending=True, stable=True)
    chosen = item.expand_as(union).gather(-1, order)[union.gather(-1, order)]
    counts = union.sum(-1, dtype=torch.int32)
    starts, items = _reserve(counts, n, len(chosen) + 1)
    items[:-1] = chosen
    return Lists(items, starts, (union & full).sum(-1, dtype=torch.int32), counts)


def make_inverse_reference(bits: Tensor, num_columns: int) -> Lists:
    """Do what `make_inverse` does in plain torch; `items` has one entry to spare. Synchronises."""
    turned = pack_bits(unpack_bits(bits, num_columns).transpose(-1, -2))
    return make_lists_reference(turned, *_plain_rows(num_columns, bits.shape[2], bits.device))


def launch_order(counts: Tensor) -> Tensor:
    """[B, H, R] int32: the lists of each head, longest first, equal ones by number; for the order of programs."""
    return counts.argsort(dim=-1, descending=True, stable=True).to(torch.int32)


class ListLengths(NamedTuple):
    """Mean and largest number of items of a list, scalars on the device."""

    mean: Tensor
    longest: Tensor


def list_lengths(counts: Tensor) -> ListLengths:
    """Summarise the counts [B, H, R] of lists; no synchronisation."""
    return ListLengths(counts.double().mean(), counts.amax())


def union_efficiency(bits: Tensor, members: Tensor) -> Tensor:
    """Eta, the share of a group's work that its members asked for: a scalar on the device; no synchronisation.

    Over all groups, sum of the members' counts / sum of (number of members * count of their union): 1 for groups of one
    or of equal lists, 1/G for disjoint ones; 1 where nothing is seen at all.
    """
    asked = count_bits(words_of(bits, members)).sum()
    done = (union_counts(bits, members) * (members >= 0).sum(-1)).sum()
    return torch.where(done > 0, asked / done.clamp(min=1), 1.0)


def worst_case(num_lists: int, longest: int) -> int | None:
    """Items to reserve for lists of at most `longest`, or None where that is too many to reserve unseen."""
    worst = num_lists * longest + 1
    return worst if worst <= MAX_WORST_CASE else None


def _reserve(counts: Tensor, longest: int, capacity: int | None) -> tuple[Tensor, Tensor]:
    """Starts [B, H, R] and room for the items of lists of `counts`, each at most `longest`."""
    ends = counts.flatten().cumsum(0, dtype=torch.int64)
    if capacity is None:
        worst = worst_case(counts.numel(), longest)
        capacity = int(ends[-1]) + 1 if worst is None else worst
    else:
        fault = f"lists: capacity {capacity} is not above the number of items; give more, or None for the worst case"
        torch._assert_async(ends[-1] < capacity, fault)  # noqa: SLF001  # the only check that does not synchronise
    items = torch.empty(capacity, dtype=torch.int32, device=counts.device)
    return (ends - counts.flatten()).view_as(counts), items


@lru_cache(maxsize=64)
def _plain_rows(num_rows: int, num_columns: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Members, origins and full bits of lists of single rows whose items are column numbers."""
    numbers = torch.arange(max(num_rows, num_columns), dtype=torch.int32, device=device)
    words = torch.full((-(-num_columns // 32),), -1, dtype=torch.int32, device=device)
    return numbers[:num_rows].unsqueeze(-1), numbers[:num_columns], words
