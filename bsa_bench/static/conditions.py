"""When an operation of a TTGIR loop acts: branches around it, and masks that are one condition for a whole tile."""

from __future__ import annotations

from bsa_bench.static.mlir import Module, Operation, Value

_SAME_MASK = {"tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "ttg.convert_layout"}
_BELOW = {"slt", "sle", "ult", "ule"}


def branches_in_loop(module: Module, operation: Operation) -> frozenset[tuple[int, int]]:
    """The arms of conditions inside of its loop that an operation stands in."""
    if operation.loop is None:
        return frozenset(operation.branches)
    around = module.loops[operation.loop][0].branches
    return frozenset(operation.branches[len(around) :])


def mask_of(operation: Operation) -> Value | None:
    """The mask of a load, store, atomic or asynchronous copy; of a copy by TMA, its predicate."""
    operands, text = operation.operands, operation.text.partition("{")[0]
    if operation.name == "ttg.async_copy_global_to_local":
        return operands[2] if " mask " in text else None
    if operation.name == "ttng.async_tma_copy_global_to_local":
        return operands[-1]
    if operation.name.startswith("ttng.") or operation.name == "tt.atomic_cas":
        return None
    at = 1 if operation.name == "tt.load" else 2
    return operands[at] if len(operands) > at else None


def can_be_off(module: Module, operation: Operation) -> bool:
    """Whether one condition switches the whole access off, other than that the loop is about to end.

    A mask that differs from element to element is taken to be true.
    """
    mask = mask_of(operation)
    loop = None if operation.loop is None else module.loops[operation.loop][0]
    is_tile = "tensor<" in operation.types and not operation.name.startswith("ttng.")
    return mask is not None and _is_condition(mask, loop, is_tile=is_tile)


def _is_condition(mask: Value, loop: Operation | None, *, is_tile: bool) -> bool:
    owner = mask.owner
    if mask.constant is not None:
        return mask.constant == 0
    if owner is None or mask.role != "result":
        return not is_tile
    if owner.name in {"arith.andi", "arith.ori"}:
        found = [_is_condition(operand, loop, is_tile=is_tile) for operand in owner.operands]
        return any(found) if owner.name == "arith.andi" else all(found)
    if owner.name == "tt.splat":
        return _is_condition(owner.operands[0], loop, is_tile=False)
    if owner.name in _SAME_MASK:
        return _is_condition(owner.operands[0], loop, is_tile=is_tile)
    return not is_tile and not (loop is not None and _goes_on(owner, loop))


def _goes_on(owner: Operation, loop: Operation) -> bool:
    """Whether a comparison asks if the loop has more iterations, as the predicate of a copy that runs ahead does."""
    if owner.name != "arith.cmpi" or loop.name != "scf.for":
        return False
    if owner.text.split()[0].rstrip(",") not in _BELOW:
        return False
    counter, bound = (_without_offset(operand) for operand in owner.operands)
    upper = _without_offset(loop.operands[1])
    is_bound = bound is upper or (bound.constant is not None and upper.constant is not None)
    return counter.owner is loop and counter.number == -1 and is_bound


def _without_offset(value: Value) -> Value:
    """The value that a number was added to or taken from."""
    while value.owner is not None and value.owner.name in {"arith.addi", "arith.subi"} and value.role == "result":
        left, right = value.owner.operands
        if right.constant is None and not _is_number(right):
            return value
        value = left
    return value


def _is_number(value: Value) -> bool:
    """Whether it is a constant times a constant, or a product with one: an offset of so many steps."""
    owner = value.owner
    return (
        owner is not None and owner.name == "arith.muli" and any(each.constant is not None for each in owner.operands)
    )
