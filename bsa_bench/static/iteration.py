"""What an iteration of a loop must run to make its matrix products, and what only some iterations do.

Rare work often stands in a main loop: the epilogue of a flattened persistent loop, a step under `if i % n`. An upper
bound that charged it to each iteration would be beaten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bsa_bench.static.classify import Kind, TensorOp, kind_of, tensor_op_of
from bsa_bench.static.flow import Flow, Loop
from bsa_bench.static.sass import Instruction, Sass

# What lanes do. A block of none of this is run by one elected lane, which issues products for the whole CTA.
_LANE_WORK: set[Kind] = {
    "exp2",
    "other special function",
    "conversion",
    "fp32",
    "shuffle",
    "global load",
    "cp.async",
    "global store",
    "shared load",
    "shared store",
    "tensor memory",
    "spill load",
    "spill store",
}


@dataclass(frozen=True)
class Iteration:
    """Of a loop with matrix products.

    Attributes:
        required: own blocks of the loop that each iteration runs that makes products.
        products: the matrix instructions of the iteration that makes most: of branches that exclude each other, one.
    """

    required: frozenset[int]
    products: tuple[TensorOp, ...]


def read_iteration(sass: Sass, flow: Flow, loop: Loop) -> Iteration | None:
    """What each iteration with products runs; None for a loop without."""
    own = flow.own_blocks(loop)
    products: dict[int, tuple[TensorOp, ...]] = {}
    through = set()
    for block in sorted(own):
        instructions = sass.instructions[flow.blocks[block].start : flow.blocks[block].stop]
        if ops := tuple(tensor_op_of(each) for each in instructions if kind_of(each) == "tensor"):
            products[block] = ops
            is_elected = block not in loop.always and _is_elected(instructions, ops)
            through.add(flow.nearest_dominator(loop, block) if is_elected else block)
    if not products:
        return None
    return Iteration(flow.required(loop, frozenset(through)) & own, _most_products(flow, loop, products))


def _is_elected(instructions: tuple[Instruction, ...], ops: tuple[TensorOp, ...]) -> bool:
    return all(op.tensor_class == "tcgen05" for op in ops) and _LANE_WORK.isdisjoint(map(kind_of, instructions))


def _most_products(flow: Flow, loop: Loop, products: Mapping[int, tuple[TensorOp, ...]]) -> tuple[TensorOp, ...]:
    """The products of the blocks that one iteration can run one after another, those with most work."""
    after = {block: flow.reachable_from(loop, block) - {block} for block in products}
    best: dict[int, tuple[TensorOp, ...]] = {}
    # What comes last reaches the fewest others.
    for block in sorted(products, key=lambda each: len(after[each] & products.keys())):
        rest = max((best[other] for other in after[block] & best.keys()), key=_work, default=())
        best[block] = products[block] + rest
    return max(best.values(), key=_work)


def _work(ops: tuple[TensorOp, ...]) -> int:
    return sum(max(op.m * op.n * op.k, 1) for op in ops)
