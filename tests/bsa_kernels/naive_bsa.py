"""BSA's selection as `docs/methods/bsa.md` defines it, in plain Python loops over blocks, windows and tokens, in fp64.

It shares nothing with `bsa_kernels`. One head at a time: `q` and `k` are lists of L rows, tokens in (t, h, w) order.
A token inside a block is known by its *place*, its (t, h, w) from the block's first corner.
"""

import itertools
import math
from dataclasses import dataclass
from statistics import NormalDist

EPS = 2.0**-52


@dataclass(frozen=True)
class Choice:
    """`kept` tokens of each query block, ascending by place; `source` of each token, None: zero; `kv_blocks` seen."""

    kept: list[list[int]]
    source: list[int | None]
    kv_blocks: list[set[int]]


def choose(q, k, *, grid, block, query_block, query_keep, kv_density, query_rule, kv_rule, fill, scale=None):
    """What BSA selects for one head."""
    scale = 1 / math.sqrt(len(q[0])) if scale is None else scale
    kept_of_block, source = [], [None] * len(q)
    for tokens in blocks_of(grid, query_block):
        kept = []
        for group in groups_of(tokens, query_block, query_rule):
            kept_places = least_similar(q, tokens, group, query_block, query_rule, query_keep)
            kept += kept_places
            for place in group:
                if place in kept_places:
                    source[tokens[place]] = tokens[place]
                elif fill != "zero":
                    source[tokens[place]] = tokens[filler(q, tokens, place, kept_places, query_block, fill)]
        kept_of_block.append([tokens[place] for place in sorted(kept)])
    keys = [mean([k[token] for token in tokens.values()]) for tokens in blocks_of(grid, block)]
    kv_blocks = []
    for kept in kept_of_block:
        query = mean([q[token] for token in kept])
        kv_blocks.append(chosen_blocks([dot(query, key) * scale for key in keys], kv_density, kv_rule))
    return Choice(kept_of_block, source, kv_blocks)


def blocks_of(grid, block):
    """The blocks in (t, h, w) order, each a dict from place to token, places ascending; what is outside is left out."""
    blocks = []
    for corner in itertools.product(*(range(0, g, b) for g, b in zip(grid, block, strict=True))):
        tokens = {}
        for place in itertools.product(*(range(b) for b in block)):
            t, h, w = (c + p for c, p in zip(corner, place, strict=True))
            if t < grid[0] and h < grid[1] and w < grid[2]:
                tokens[place] = (t * grid[1] + h) * grid[2] + w
        blocks.append(tokens)
    return blocks


def groups_of(tokens, block, rule):
    """Lists of places: the 2x2x2 windows of a block that hold real tokens, or the whole block."""
    if rule != "window":
        return [list(tokens)]
    windows = {}
    for place in tokens:
        windows.setdefault(tuple(p // 2 for p in place), []).append(place)
    return list(windows.values())


def least_similar(q, tokens, group, block, rule, keep):
    """The places of a group that are kept: those least similar to its centre, ties to the lowest flat index."""
    centre = centre_of(q, tokens, group, block, rule)
    order = sorted(group, key=lambda place: (cosine(q[tokens[place]], centre), flat(place, block)))
    return order[: max(1, math.floor(keep * len(group) + 0.5))]


def centre_of(q, tokens, group, block, rule):
    """The vector that a group's tokens are compared with."""
    if rule == "central_mean":
        middle = [
            place
            for place in itertools.product(*(range(b) for b in block))
            if all(abs(p - (b - 1) / 2) <= 0.5 for p, b in zip(place, block, strict=True))
        ]
        present = [place for place in middle if place in tokens]
        if present:
            return mean([q[tokens[place]] for place in present])
        nominal = middle
    elif rule == "window":
        nominal = [tuple(p // 2 * 2 + 1 for p in group[0])]
    elif rule == "flat_half":
        half = block[0] * block[1] * block[2] // 2
        nominal = [place for place in itertools.product(*(range(b) for b in block)) if flat(place, block) == half]
    else:
        nominal = [tuple(b // 2 for b in block)]
    nearest = min(group, key=lambda place: (min(squared_distance(place, n) for n in nominal), flat(place, block)))
    return q[tokens[nearest]]


def filler(q, tokens, place, kept_places, block, fill):
    """The kept place of the group whose output a pruned place takes; ties to the lowest flat index."""

    def distance(other):
        if fill == "similar":
            return -cosine(q[tokens[place]], q[tokens[other]])
        if fill == "flat":
            return abs(flat(place, block) - flat(other, block))
        return squared_distance(place, other)

    return min(kept_places, key=lambda other: (distance(other), flat(other, block)))


def chosen_blocks(scores, density, rule):
    """The KV blocks that a row of block scores keeps."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
    if density == 1:
        return set(order)
    if rule == "topk":
        return set(order[: max(1, math.floor(density * len(scores) + 0.5))])
    if rule == "mass":
        weights = softmax(scores)
        taken, mass = [], 0.0
        for j in order:
            if mass >= 0.9 and len(taken) >= 4:
                break
            taken.append(j)
            mass += weights[j]
        return set(taken)
    if max(scores) - min(scores) <= 16 * EPS * max(abs(s) for s in scores):
        return set(order)
    values = softmax(scores) if rule == "softmax_stat" else scores
    average = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((v - average) ** 2 for v in values) / len(values))
    threshold = average + deviation * NormalDist().inv_cdf(1 - density)
    return {j for j, value in enumerate(values) if value >= threshold} | {order[0]}


def flat(place, block):
    """The flat (t, h, w) index of a place in its block."""
    return (place[0] * block[1] + place[1]) * block[2] + place[2]


def squared_distance(one, other):
    """Between two places, in 3D."""
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def dot(one, other):
    """The scalar product."""
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def cosine(one, other):
    """The cosine similarity; 0 where one is zero."""
    length = math.sqrt(dot(one, one)) * math.sqrt(dot(other, other))
    return dot(one, other) / length if length else 0.0


def mean(rows):
    """The mean vector of some rows."""
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def softmax(scores):
    """Of one row."""
    weights = [math.exp(s - max(scores)) for s in scores]
    return [w / math.fsum(weights) for w in weights]
