"""Where the address of a load comes from: the argument or variable that it is named by, a load that it waits for."""

from __future__ import annotations

import re

from bsa_bench.static.mlir import DOTS, Module, Operation, Value

_POINTERS = {
    "tt.addptr",
    "tt.advance",
    "tt.splat",
    "tt.broadcast",
    "tt.expand_dims",
    "tt.bitcast",
    "ttg.convert_layout",
}
_LOADS = {"tt.load", "ttg.local_load"}


def name_of_load(module: Module, operation: Operation) -> str:
    """What the source calls what is loaded; empty where it does not say.

    A load that stands as an argument of a product, `acc = tl.dot(tl.load(a), ...)`, has the product's name: it is
    called by the pointer that it reads through, or by the argument of the kernel that this comes from.
    """
    products = {each.variable for each in module.operations if each.name in DOTS}
    if operation.variable not in products:
        return operation.variable
    through = re.sub(r"(_\d+)?(#\d+)?$", "", operation.operands[0].name.removeprefix("%"))
    names = (through, _argument(operation.operands[0]))
    return next((name for name in names if name[:1].isalpha() and name not in products), operation.variable)


def waits_for_load(operation: Operation) -> bool:
    """Whether the address of a load hangs on another load of the same iteration of its loop."""
    todo, seen = list(operation.operands[:1]), set[Operation]()
    if operation.name.startswith("ttng."):  # `%descriptor[%row, %column] %tile, ...`
        todo = list(operation.operands)
    while todo:
        value = todo.pop()
        owner = value.owner
        if value.role != "result" or owner is None or owner.loop != operation.loop or owner in seen:
            continue
        if owner.name in _LOADS:
            return True
        seen.add(owner)
        todo += owner.operands
    return False


def _argument(value: Value) -> str:
    """The argument of the kernel that a pointer begins with."""
    while value.role != "argument":
        owner = value.owner
        if owner is None:
            return ""
        if value.role == "carried" and owner.name == "scf.for" and value.number >= 0:
            value = owner.operands[3 + value.number]
        elif owner.name in _POINTERS:
            value = owner.operands[0]
        else:
            return ""
    return value.name.removeprefix("%")
