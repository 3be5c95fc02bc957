"""How much of a search is left: an estimate in Knuth's manner (1975), from the stack of a depth-first search.

At each node some branches are done, one is in progress, and some are known to be left. A branch that is left is taken
to be as large as the node's first (the one in progress counted with what is left in it, from the top of the stack
down) times what later branches were beside first ones at all nodes that are done. How far they strayed from that
gives the standard error.

What source sets will ask for later nobody knows yet; the error is of the estimate, no bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

from polymmu.exploration.search import Later, Search

__all__ = ["Estimate", "branches", "left_of", "total"]


@attrs.frozen
class Estimate:
    """Executions, and the standard error of that."""

    executions: float
    error: float


def total(parts: Iterable[Estimate]) -> Estimate:
    """Of parts that know nothing of each other."""
    parts = list(parts)
    return Estimate(sum(part.executions for part in parts), math.sqrt(sum(part.error**2 for part in parts)))


def left_of(search: Search) -> Estimate:
    """What is left between two executions of ``search``."""
    return _walk(search)[0]


def branches(search: Search) -> list[Estimate]:
    """How large one more branch is at each node that is the search's own, the first at the bottom."""
    return _walk(search)[1]


def _walk(search: Search) -> tuple[Estimate, list[Estimate]]:
    later = Later(search.later.sums)
    for node in search.stack[search.frozen :]:
        later.note(node.sizes or [0])
    ratio, spread = later.ratio
    left = variance = 0.0
    each: list[Estimate] = []
    top = len(search.stack) - 1
    for depth in range(top, search.frozen - 1, -1):
        node = search.stack[depth]
        # Of the present branch at the top nothing was seen yet.
        untried = node.untried + (depth == top)
        share = 0.0
        if node.sizes:
            first = float(node.sizes[0])
        elif depth == top:
            first = 1.0
        else:
            first = search.executions - node.began + left
            share = untried * ratio
        each.append(Estimate(ratio * first, math.sqrt(spread) * first))
        variance = variance * (1 + share) ** 2 + untried * spread * first**2
        left += untried * ratio * first
    return Estimate(left, math.sqrt(variance)), each[::-1]
