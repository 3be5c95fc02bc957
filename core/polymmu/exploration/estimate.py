"""How much of a search is left: an estimate in Knuth's manner (1975), from the stack of a depth-first search.

At each node some branches are done, one is in progress, and some are known to be left. Branches of one node are taken
for draws from one distribution: those left are as large as the others were on average, the one in progress counted
with what is left in it, from the top of the stack down. The spread of the branches gives the standard error; a node
that knows one branch alone takes its spread to be as large as itself.

What source sets will ask for later nobody knows yet, so early in a search the figure is too low; the error is of the
estimate, no bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from polymmu.exploration.search import Search

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
    left = variance = 0.0
    each: list[Estimate] = []
    top = len(search.stack) - 1
    for depth in range(top, search.frozen - 1, -1):
        node = search.stack[depth]
        sizes: list[float] = [*node.sizes]
        untried = node.untried
        if depth == top:
            untried += 1  # the present branch, of which nothing was seen yet
        else:
            sizes.append(search.executions - node.began + left)
        mean, spread = _mean_and_variance(sizes)
        each.append(Estimate(mean, math.sqrt(spread)))
        share = untried / len(sizes) if sizes else 0.0
        # The mean has an error of its own, the same in all the branches left; and it hangs on what is above.
        variance = variance * (1 + share) ** 2 + spread * untried * (1 + share)
        left += untried * mean
    return Estimate(left, math.sqrt(variance)), each[::-1]


def _mean_and_variance(sizes: Sequence[float]) -> tuple[float, float]:
    if not sizes:
        return 1.0, 1.0
    mean = sum(sizes) / len(sizes)
    # One more draw that misses by the mean: nothing is known of a spread from a single one.
    return mean, (sum((size - mean) ** 2 for size in sizes) + mean**2) / len(sizes)
