"""Addresses of tensor elements as sums of known and unknown numbers, worked out from the operations of a module."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from bsa_bench.static.mlir import Module, Operation, Value
from bsa_bench.static.mlir_names import split

Index = tuple[int, ...]
# An unknown number: what it is, which of many (a loaded index has one an element), and what it is a multiple of.
Symbol = tuple[Value, Index, int]
# A sum: products of unknown numbers -> how often each is in it; the empty product counts ones.
Sum = dict[tuple[Symbol, ...], int]

_SAME = {"arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast", "tt.bitcast", "ttg.convert_layout"}


def _quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_FOLDED: dict[str, Callable[[int, int], int]] = {
    "arith.divsi": _quotient,
    "arith.divui": lambda a, b: a // b,
    "arith.remsi": lambda a, b: a - b * _quotient(a, b),
    "arith.remui": lambda a, b: a % b,
    "arith.andi": lambda a, b: a & b,
    "arith.ori": lambda a, b: a | b,
    "arith.xori": lambda a, b: a ^ b,
    "arith.shli": lambda a, b: a << b,
    "arith.shrsi": lambda a, b: a >> b,
    "arith.shrui": lambda a, b: a >> b,
    "arith.minsi": min,
    "arith.maxsi": max,
}


# `a < b` and `a >= b` change only where a - b is 0, which the first element of an aligned vector can be, no other.
_ORDERS = {"slt", "sge", "ult", "uge"}


class UnknownAddressError(Exception):
    """An address is not understood; the text says what stopped it."""


def _number(value: int) -> Sum:
    return {(): value} if value else {}


def _plus(a: Sum, b: Sum, times: int = 1) -> Sum:
    total = dict(a)
    for product, count in b.items():
        total[product] = total.get(product, 0) + times * count
    return {product: count for product, count in total.items() if count}


def _times(a: Sum, b: Sum) -> Sum:
    total: Sum = {}
    for p, m in a.items():
        for q, n in b.items():
            product = tuple(sorted(p + q, key=lambda symbol: (id(symbol[0]), symbol[1], symbol[2])))
            total = _plus(total, {product: m * n})
    return total


def alignment(value: Sum) -> int:
    """The largest number that a sum is known to be a multiple of; 0 for zero, which all numbers divide."""
    return math.gcd(*(count * math.prod(symbol[2] for symbol in product) for product, count in value.items()))


class Addresses:
    """Elements of the tensors of a kernel as sums; addresses are in bytes."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self._known: dict[tuple[Value, Index], Sum] = {}
        self._pairs: dict[tuple[Value, Index], tuple[frozenset[tuple[tuple[Symbol, ...], int]], int]] = {}
        self._carried: dict[Value, int | None] = {}

    def pair(self, value: Value, index: Index) -> tuple[frozenset[tuple[tuple[Symbol, ...], int]], int]:
        """An address as its unknown part and its known one."""
        key = value, index
        if key not in self._pairs:
            total = dict(self.sum_of(value, index))
            near = total.pop((), 0)
            self._pairs[key] = frozenset(total.items()), near
        return self._pairs[key]

    def sum_of(self, value: Value, index: Index) -> Sum:
        key = value, index
        if key not in self._known:
            self._known[key] = self._evaluated(value, index)
        return self._known[key]

    def _evaluated(self, value: Value, index: Index) -> Sum:
        owner = value.owner
        if value.constant is not None:
            return _number(value.constant)
        if value.role == "carried" or (owner and owner.name == "scf.for"):
            return self._from_loop(value, index)
        if owner is None or value.role == "opaque":
            if index:
                raise UnknownAddressError(f"{value.name} comes from a block that is not followed")
            return self._symbol(value, (), value.divisibility)
        try:
            found = self._result(owner, value, index)
        except UnknownAddressError:
            if not index:
                # A single number is the same for all lanes, whatever it is.
                return self._symbol(value, (), math.lcm(*owner.hint("tt.divisibility")))
            if (promised := self._promised(owner, value, index)) is None:
                raise
            return promised
        if not index:
            divisibility = math.lcm(*owner.hint("tt.divisibility"))
            return found if alignment(found) % divisibility == 0 else self._symbol(value, (), divisibility)
        if any(symbol[0] is value for product in found for symbol in product):  # an element that nothing is known of
            return self._promised(owner, value, index) or found
        return found

    def _promised(self, owner: Operation, value: Value, index: Index) -> Sum | None:
        """An element of a tensor whose source promises runs of numbers that follow each other (`tl.max_contiguous`)."""
        runs = owner.hint("tt.contiguity")
        divisibility = owner.hint("tt.divisibility") or (1,) * len(index)
        if len(runs) != len(index) or len(divisibility) != len(index) or max(runs, default=1) == 1:
            return None
        axis = runs.index(max(runs))
        start = tuple(i - i % runs[axis] if dim == axis else i for dim, i in enumerate(index))
        size = self.module.type_of(split(owner.types)[0]).bits // 8 if owner.name == "tt.addptr" else 1
        run = _number((index[axis] - start[axis]) * size)
        return _plus(self._symbol(value, start, divisibility[axis]), run)

    def _symbol(self, value: Value, index: Index, divisibility: int) -> Sum:
        return {((value, index, divisibility),): 1}

    def _result(self, owner: Operation, value: Value, index: Index) -> Sum:
        name, operands = owner.name, owner.operands
        if name in _SAME:
            return self.sum_of(operands[0], index)
        if name in {"arith.addi", "arith.subi"}:
            left, right = (self.sum_of(operand, index) for operand in operands)
            return _plus(left, right, 1 if name == "arith.addi" else -1)
        if name == "arith.muli":
            return _times(*(self.sum_of(operand, index) for operand in operands))
        if name == "tt.addptr":
            pointers = self.module.type_of(split(owner.types)[0])
            step = _number(pointers.bits // 8)
            return _plus(self.sum_of(operands[0], index), _times(self.sum_of(operands[1], index), step))
        if name == "tt.make_range":
            start = re.search(r"start = (\d+)", owner.text)
            assert start is not None
            return _number(int(start[1]) + index[0])
        if name in {"tt.splat", "tt.expand_dims", "tt.broadcast", "tt.reshape", "tt.trans"}:
            return self.sum_of(operands[0], self._moved(owner, index))
        if name in _FOLDED:
            numbers = [self.sum_of(operand, index) for operand in operands]
            if all(set(number) <= {()} for number in numbers) and (
                numbers[1] or ("div" not in name and "rem" not in name)
            ):
                return _number(_FOLDED[name](*(number.get((), 0) for number in numbers)))
            if name == "arith.shli" and set(numbers[1]) <= {()}:
                return _times(numbers[0], _number(1 << numbers[1].get((), 0)))
        if name in {"tt.load", "ttg.local_load"} and index:
            return self._symbol(value, index, 1)  # a loaded index: each its own
        raise UnknownAddressError(f"{name} in an address is not followed")

    def _moved(self, owner: Operation, index: Index) -> Index:
        """The element of an operand that becomes an element of a result."""
        if owner.name == "tt.splat":
            return ()
        source, result = (self.module.type_of(part) for part in split(owner.types, "->"))
        if owner.name == "tt.expand_dims":
            axis = re.search(r"axis = (\d+)", owner.text)
            assert axis is not None
            return (*index[: int(axis[1])], *index[int(axis[1]) + 1 :])
        if owner.name == "tt.broadcast":
            return tuple(0 if size == 1 else i for i, size in zip(index, source.shape, strict=True))
        if owner.name == "tt.trans":
            found = re.search(r"order = array<i32: ([\d, ]+)>", owner.text)
            assert found is not None
            order = [int(dim) for dim in found[1].split(",")]
            return tuple(index[order.index(dim)] for dim in range(len(order)))
        if "allow_reorder" in owner.text:
            raise UnknownAddressError("tt.reshape that may reorder is not followed")
        number = 0
        for i, size in zip(index, result.shape, strict=True):
            number = number * size + i
        before: Index = ()
        for size in reversed(source.shape):
            number, i = divmod(number, size)
            before = (i, *before)
        return before

    def _from_loop(self, value: Value, index: Index) -> Sum:
        """What a loop carries: a number that changes from trip to trip, plus what tells its elements apart.

        The latter must come out of each trip as it went in; then it is that of the first value.
        """
        loop = value.owner
        assert loop is not None
        if value.number < 0:
            lower, step = (self.sum_of(bound, ()) for bound in (loop.operands[0], loop.operands[2]))
            return self._symbol(value, (), math.gcd(alignment(lower), alignment(step)) or 1)
        first, last = loop.operands[3 + value.number], loop.yields[value.number]
        origin = (0,) * len(index)
        if value not in self._carried:
            self._carried[value] = self._multiple_of(value, first, last, origin)
        divisibility = self._carried[value]
        if divisibility is None:
            if index:
                raise UnknownAddressError(f"{value.name}, carried by a loop, is not followed")
            return self._symbol(value, (), 1)
        apart = _plus(self.sum_of(first, index), self.sum_of(first, origin), -1)
        found = _plus(self._symbol(value, (), divisibility), apart)
        self._known[value, index] = found
        if not self._keeps(last, index, apart):
            self._carried[value] = None
            self._known.clear()  # what was worked out from the wrong guess
            raise UnknownAddressError(f"{value.name} changes its pattern from trip to trip")
        return found

    def _keeps(self, last: Value, index: Index, apart: Sum) -> bool:
        try:
            return _plus(self.sum_of(last, index), self.sum_of(last, (0,) * len(index)), -1) == apart
        except UnknownAddressError:
            return False

    def _multiple_of(self, value: Value, first: Value, last: Value, origin: Index) -> int | None:
        """What a carried number stays a multiple of; guessed from its first value, then lowered until it holds."""
        others = dict(self._carried)
        guess = alignment(self.sum_of(first, origin)) or 1 << 30
        try:
            while True:
                self._known.clear()
                self._carried = {**others, value: guess}
                found = math.gcd(guess, alignment(self.sum_of(last, origin)))
                if found == guess:
                    return guess
                guess = found
        except UnknownAddressError:
            self._carried = others
            self._known.clear()
            return None

    def mask_key(self, mask: Value, index: Index, width: int) -> object:
        """Equal keys of neighbours within an aligned vector of `width` mean equal masks."""
        owner = mask.owner
        if owner and owner.name in {"tt.splat", "tt.expand_dims", "tt.broadcast", "tt.reshape", "tt.trans"}:
            return self.mask_key(owner.operands[0], self._moved(owner, index), width)
        if mask.constant is not None or not index:
            return mask if mask.constant is None else mask.constant
        if owner and owner.name == "ttg.convert_layout":
            return self.mask_key(owner.operands[0], index, width)
        if owner and owner.name in {"arith.andi", "arith.ori", "arith.xori"}:
            return tuple(self.mask_key(operand, index, width) for operand in owner.operands)
        if owner and owner.name == "arith.cmpi":
            try:
                left, right = (self.sum_of(operand, index) for operand in owner.operands)
            except UnknownAddressError:
                return mask, index
            apart = _plus(left, right, -1)
            near = apart.pop((), 0)
            if owner.text.split()[0].rstrip(",") in _ORDERS and alignment(apart) % width == 0:
                near = near // width
            return mask, frozenset(apart.items()), near
        return mask, index
