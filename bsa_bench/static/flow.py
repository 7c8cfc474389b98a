"""The control flow of a kernel: basic blocks, dominators, and the loops that its back edges make.

A loop is natural: a header that dominates the sources of its back edges, and all blocks that reach these sources
without passing the header. Loops in textual order would not do: compilers place the spin of a wait at the end of the
code, with a jump back.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from bsa_bench.static.sass import Instruction, Sass

_BRANCHES = {"BRA", "BRX", "JMP", "JMX", "BRXU", "JMXU"}
_INDIRECT = {"BRX", "JMX", "BRXU", "JMXU"}
_ENDS = {"EXIT", "RET", "KILL"}


@dataclass(frozen=True)
class Block:
    """Instructions `[start, stop)` that run one after another, and the blocks that can come next."""

    start: int
    stop: int
    successors: tuple[int, ...]


@dataclass(frozen=True)
class Loop:
    """A natural loop.

    Attributes:
        index: its number, outer loops first, then by address.
        parent: the loop directly around it.
        header: the block where each trip begins.
        blocks: all its blocks, those of inner loops among them.
        always: those that each trip runs through (they dominate every back edge).
    """

    index: int
    parent: int | None
    header: int
    blocks: frozenset[int]
    always: frozenset[int]


@dataclass(frozen=True)
class Flow:
    """Blocks by address and the loops among those that can be reached.

    `has_unread_jumps` where a jump is computed and the listing does not say where it may go.
    """

    blocks: tuple[Block, ...]
    loops: tuple[Loop, ...]
    has_unread_jumps: bool

    def own_blocks(self, loop: Loop) -> frozenset[int]:
        """The blocks of a loop that no inner loop has."""
        inner = (other.blocks for other in self.loops if other.parent == loop.index)
        return loop.blocks.difference(*inner)

    def required(self, loop: Loop, through: frozenset[int]) -> frozenset[int]:
        """The blocks of a loop that each iteration runs that runs one of `through`; the others are on some branch."""
        return frozenset(block for block in loop.blocks if not self._can_avoid(loop, block, through))

    def reachable_from(self, loop: Loop, start: int, *, avoiding: frozenset[int] = frozenset()) -> frozenset[int]:
        """Blocks that an iteration can run from a block on, that block among them, without beginning anew."""
        if start in avoiding:
            return frozenset()
        seen, todo = {start}, [start]
        while todo:
            following = set(self.blocks[todo.pop()].successors) & loop.blocks - avoiding - seen - {loop.header}
            seen |= following
            todo += following
        return frozenset(seen)

    def nearest_dominator(self, loop: Loop, block: int) -> int:
        """The last block that an iteration always runs before another one; the header for itself."""
        before = [
            other
            for other in loop.blocks - {block}
            if block not in self.reachable_from(loop, loop.header, avoiding=frozenset({other}))
        ]
        # Of two dominators, the later one cannot be reached around the earlier one.
        return max(before, key=lambda other: sum(self._is_before(loop, each, other) for each in before), default=block)

    def _is_before(self, loop: Loop, earlier: int, later: int) -> bool:
        return later not in self.reachable_from(loop, loop.header, avoiding=frozenset({earlier}))

    def _can_avoid(self, loop: Loop, block: int, through: frozenset[int]) -> bool:
        """Whether an iteration can run one of `through`, but not the block."""
        without = frozenset({block})
        reached = self.reachable_from(loop, loop.header, avoiding=without) & through
        ends = {source for source in loop.blocks if loop.header in self.blocks[source].successors}
        return any(ends & self.reachable_from(loop, start, avoiding=without) for start in reached)


def read_flow(sass: Sass) -> Flow:
    """Find the blocks and loops of a kernel."""
    blocks = _blocks(sass)
    reachable, dominators = _dominators(blocks)
    headers: dict[int, set[int]] = {}
    for source in reachable:
        for target in blocks[source].successors:
            if target in dominators[source]:
                headers.setdefault(target, set()).add(source)
    bodies = {header: _body(header, sources, blocks, reachable) for header, sources in headers.items()}
    order = sorted(bodies, key=lambda header: (sum(header in body for body in bodies.values()), blocks[header].start))
    loops = []
    for index, header in enumerate(order):
        around = [other for other in order[:index] if header in bodies[other]]
        parent = order.index(min(around, key=lambda other: len(bodies[other]))) if around else None
        always = frozenset(
            block for block in bodies[header] if all(block in dominators[source] for source in headers[header])
        )
        loops.append(Loop(index, parent, header, frozenset(bodies[header]), always))
    last = [sass.instructions[blocks[i].stop - 1] for i in reachable]
    unread = any(each.name in _INDIRECT and not each.targets for each in last)
    return Flow(blocks, tuple(loops), unread)


def _blocks(sass: Sass) -> tuple[Block, ...]:
    starts = {0, *(index for index in sass.labels.values() if index < len(sass.instructions))}
    starts |= {i + 1 for i, each in enumerate(sass.instructions[:-1]) if _is_jump(each)}
    cuts = [*sorted(starts), len(sass.instructions)]
    numbers = {start: number for number, start in enumerate(cuts[:-1])}
    blocks = []
    for start, stop in itertools.pairwise(cuts):
        last = sass.instructions[stop - 1]
        successors = []
        targets = [sass.labels[label] for label in last.targets if label in sass.labels]
        is_call = last.name == "CALL" and _returns(sass, targets[0] if targets else None)
        if _is_jump(last) and last.name not in _ENDS and not is_call:
            successors += [numbers[target] for target in targets if target in numbers]
        if (not _is_jump(last) or _is_conditional(last) or is_call) and stop in numbers:
            successors.append(numbers[stop])
        blocks.append(Block(start, stop, tuple(dict.fromkeys(successors))))
    return tuple(blocks)


def _is_jump(each: Instruction) -> bool:
    return each.name in _BRANCHES or each.name in _ENDS or each.name == "CALL"


def _is_conditional(each: Instruction) -> bool:
    before_target = each.operands.split("`(")[0]
    return each.is_guarded or (
        each.name in _BRANCHES - _INDIRECT and any(word in before_target for word in ("P", "UR"))
    )


def _returns(sass: Sass, target: int | None, within: frozenset[int] = frozenset()) -> bool:
    """Whether a call comes back: ptxas writes some jumps out of a loop as `CALL.REL.NOINC` to a label.

    The return of a function that is called on the way is not ours; `within` are the targets already being judged.
    """
    if target is None:
        return True  # code of another section: a function
    within |= {target}
    seen: set[int] = set()
    todo = [target]
    while todo:
        index = todo.pop()
        while index < len(sass.instructions) and index not in seen:
            seen.add(index)
            each = sass.instructions[index]
            index += 1
            if each.name == "RET":
                return True
            if not _is_jump(each):
                continue
            jumps = [sass.labels[label] for label in each.targets if label in sass.labels]
            call = jumps[0] if jumps else None
            if each.name == "CALL" and call not in within and _returns(sass, call, within):
                continue
            if each.name not in _ENDS:
                todo += jumps
            if not _is_conditional(each):
                break
    return False


def _dominators(blocks: tuple[Block, ...]) -> tuple[list[int], dict[int, set[int]]]:
    """The blocks that can be reached, in reverse postorder, and the dominators of each."""
    order: list[int] = []
    seen = {0}
    stack = [(0, iter(blocks[0].successors))]
    while stack:
        block, successors = stack[-1]
        following = next((s for s in successors if s not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(blocks[following].successors)))
    order.reverse()
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for successor in blocks[block].successors:
            before[successor].append(block)
    dominators = {block: set(order) for block in order}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = set.intersection(*(dominators[p] for p in before[block])) | {block}
            if new != dominators[block]:
                dominators[block] = new
                changed = True
    return order, dominators


def _body(header: int, sources: set[int], blocks: tuple[Block, ...], reachable: list[int]) -> set[int]:
    before: dict[int, list[int]] = {}
    for block in reachable:
        for successor in blocks[block].successors:
            before.setdefault(successor, []).append(block)
    body = {header}
    todo = list(sources)
    while todo:
        block = todo.pop()
        if block not in body:
            body.add(block)
            todo.extend(before.get(block, []))
    return body
