"""What workers of a split search do: search below a path, or walk at random.

All that goes there and comes back is plain numbers. A worker makes the program for itself, once, and calls tasks by
the numbers that the order gives: what comes of an order is a function of the order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from polymmu.description.load import sha256_of
from polymmu.description.load_scenario import ScenarioFile
from polymmu.errors import UserMistake
from polymmu.exploration.estimate import Estimate, branches
from polymmu.exploration.random_walks import Pct
from polymmu.exploration.replay_file import versions
from polymmu.exploration.scenario import Explored
from polymmu.exploration.search import Request, Search
from polymmu.exploration.stack import learn, load_stack, path_of, plain_stack
from polymmu.sched.exploring import ExploringSched
from polymmu.sched.picker import Picker

__all__ = ["BATCH", "Key", "Node", "Order", "Recipe", "Result", "first_found", "search_item", "search_order"]

BATCH = 400
"""Executions of an item: enough that handing it over costs nothing beside them."""
Key = tuple[int, ...]
Node = dict[str, Any]


@attrs.frozen(kw_only=True)
class Order:
    """What to search. ``nodes``: the frozen ones, as ``plain_stack`` has them; ``keys``: whom their numbers mean."""

    strategy: str
    bound: int
    nodes: Sequence[Node]
    keys: Sequence[Key]
    budget: int = BATCH


@attrs.frozen(kw_only=True)
class Result:
    """What came of it. ``nodes``: of the stack that is left, without the frozen ones; ``sizes``: how large a branch
    is at each, about; ``options``: outcomes of the item's first step; ``found``: the path to a violation."""

    executions: int
    blocked: int
    cut: int = 0
    nodes: Sequence[Node]
    sizes: Sequence[Estimate]
    options: int
    requests: Sequence[Request]
    keys: Sequence[Key]
    found: Sequence[tuple[int, int]] | None


def search_item(order: Order, sched: ExploringSched, once: Callable[[Picker], bool]) -> Result:
    """Search below a path; ``once`` runs an execution and tells whether it found something."""
    sched.keys = order.keys
    search = Search(order.strategy, order.bound)
    search.stack = load_stack(order.nodes)
    search.frozen = len(search.stack)
    if search.stack:
        learn(search, [search.frozen - 1], once)
    search.begin()
    found = None
    more = True
    while more and search.executions < order.budget:
        if once(search):
            found = path_of(search.stack)
        more = search.back_up() and found is None
    return Result(
        executions=search.executions,
        blocked=search.blocked,
        nodes=plain_stack(search.stack[search.frozen :]),
        sizes=branches(search),
        options=search.stack[search.frozen - 1].options if search.frozen else 1,
        requests=tuple(search.requests),
        keys=sched.keys,
        found=found,
    )


@attrs.frozen(kw_only=True)
class Recipe:
    """How another process makes the same program."""

    machine: str
    machine_sha256: str
    scenario_sha256: str
    sets: tuple[str, ...]
    variant: str | None
    speculate: bool
    memory_model: str
    steps: int
    versions: tuple[tuple[str, str], ...]
    file: ScenarioFile = attrs.field(eq=False)

    @classmethod
    def of(cls, program: Explored) -> Recipe:
        """Of a program that was made here."""
        return cls(
            machine=str(program.asked_for),
            machine_sha256=sha256_of(program.machine.description),
            scenario_sha256=program.file.sha256,
            sets=tuple(program.machine.sets),
            variant=program.variant,
            speculate=program.speculate,
            memory_model=program.memory_model,
            steps=program.steps,
            versions=tuple(versions().items()),
            file=program.file,
        )

    def make(self) -> Explored:
        """The program. Raises UserMistake where it would be another one."""
        if self.versions != tuple(versions().items()):
            raise UserMistake(
                f"a worker has other versions ({dict(versions())}) than these ({dict(self.versions)}); install the same"
            )
        program = Explored(
            self.machine,
            self.file,
            sets=self.sets,
            variant=self.variant,
            speculate=self.speculate,
            memory_model=self.memory_model,
        )
        program.steps = self.steps
        if sha256_of(program.machine.description) != self.machine_sha256:
            raise UserMistake("is another file at a worker; give all the same", place=self.machine)
        return program


class _Made(threading.local):
    """The program that a thread made last: greenlets stay in their thread."""

    recipe: Recipe | None = None
    program: Explored


_made = _Made()


def _program(recipe: Recipe) -> Explored:
    if _made.recipe != recipe:
        _made.program = recipe.make()
        _made.recipe = recipe
    return _made.program


def search_order(recipe: Recipe, order: Order) -> Result:
    """Search with the program of this thread."""
    program = _program(recipe)
    before = program.cut
    result = search_item(order, program.sched, lambda picker: bool(program.once(picker).finding))
    return attrs.evolve(result, cut=program.cut - before)


def first_found(
    recipe: Recipe, keys: Sequence[Key], seed: int, steps: int, walks: Sequence[tuple[int, int]]
) -> tuple[int, int | None, Sequence[Key]]:
    """Of some random walks (number, depth): how many were cut, the number of the first to find something, and the
    tasks that were met."""
    program = _program(recipe)
    program.sched.keys = keys
    before = program.cut
    found = next(
        (number for number, depth in walks if program.once(Pct(seed, number, depth, steps)).finding), None
    )
    return program.cut - before, found, program.sched.keys
