"""A search split over workers: the tree cut into items, each a path below which nobody else looks.

An item is searched for a batch of executions by the same ``Search`` as ever, whose nodes along the path are *frozen*:
they are shared with other items. What comes back are counts, the stack that is left, which becomes new items, and
requests to try something at a frozen node. Only the coordinator grants those, for it alone knows all that is tried
there: each task that is tried at a node sleeps below those that are tried after it, in one order for all.

Everything is a function of the item alone, and results are taken in the order of the items. So the search is the same
for any number of workers. It visits the same complete executions as one that is not split, in another order; how
many are blocked may differ.

First reading: ``search_item``, ``Split.take``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import attrs

from polymmu.description.load import sha256_of
from polymmu.description.load_scenario import ScenarioFile
from polymmu.errors import UserMistake
from polymmu.exploration.estimate import Estimate, branches, total
from polymmu.exploration.random_walks import Pct
from polymmu.exploration.replay_file import versions
from polymmu.exploration.scenario import Explored
from polymmu.exploration.search import Request, Search
from polymmu.exploration.stack import learn, load_stack, path_of, plain_stack, renumbered
from polymmu.sched.exploring import ExploringSched, Picker
from polymmu.workers import Workers, in_order

__all__ = ["BATCH", "Here", "Order", "Recipe", "Result", "Split", "first_found", "search_item"]

BATCH = 400
"""Executions of an item: enough that handing it over costs nothing beside them."""
Key = tuple[int, ...]
Node = dict[str, Any]


# ---------------------------------------------------------------------- at a worker
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
            self.machine, self.file, sets=self.sets, variant=self.variant, speculate=self.speculate
        )
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


def _work(recipe: Recipe, order: Order) -> Result:
    program = _program(recipe)
    return search_item(order, program.sched, lambda picker: bool(program.once(picker).finding))


def first_found(
    recipe: Recipe, keys: Sequence[Key], seed: int, steps: int, walks: Sequence[tuple[int, int]]
) -> tuple[int, int | None, Sequence[Key]]:
    """Of some random walks (number, depth): how many were blocked, the number of the first to find something, and
    the tasks that were met."""
    program = _program(recipe)
    program.sched.keys = keys
    blocked, found = 0, None
    for number, depth in walks:
        outcome = program.once(Pct(seed, number, depth, steps))
        if outcome.finding:
            found = number
            break
        blocked += outcome.halted is not None
    return blocked, found, program.sched.keys


# ---------------------------------------------------------------------- at the coordinator
@attrs.define(eq=False)
class Place:
    """A node that items share. ``task``, ``value``: the pick at ``above`` that leads here."""

    above: Place | None
    task: int
    value: int
    node: Node

    @property
    def to_try(self) -> list[int]:
        """Everybody who is tried here, in the order in which they count as tried."""
        tasks: list[int] = self.node["to_try"]
        return tasks


@attrs.define(eq=False)
class Item:
    """A pick at a place (None: the beginning) below which nobody has looked. ``keys``: how many tasks were known when
    it was made, for what is done must not hang on when it is done."""

    place: Place | None
    task: int = -1
    value: int = 0
    keys: int = 0
    size: Estimate | None = None

    @property
    def places(self) -> list[tuple[Place, int, int]]:
        """The path: places with the pick at each."""
        path: list[tuple[Place, int, int]] = []
        above, task, value = self.place, self.task, self.value
        while above is not None:
            path.append((above, task, value))
            above, task, value = above.above, above.task, above.value
        return path[::-1]


class Here:
    """The one worker that is no other process."""

    count = 1

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """See ``Workers``."""
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future


class Split:
    """The coordinator: what is left to search, and what is tried at nodes that are shared."""

    def __init__(
        self, strategy: str, bound: int = 0, *, keys: Iterable[Key] = (), batch: int = BATCH
    ) -> None:
        self.strategy = strategy
        self.bound = bound
        self.batch = batch
        self.keys: dict[Key, int] = {key: number for number, key in enumerate(keys)}
        self.pending: deque[Item] = deque([Item(None, keys=len(self.keys))])
        self.executions = 0
        self.taken = 0
        """Items whose results are in."""

    def order(self, item: Item, budget: int | None = None) -> Order:
        """For a worker."""
        nodes = [
            {**place.node, "chosen": task, "value": value, "options": 1, "tried": [], "sizes": []}
            for place, task, value in item.places
        ]
        if item.place is not None:
            to_try = item.place.to_try
            nodes[-1]["tried"] = to_try[: to_try.index(item.task)]
        return Order(
            strategy=self.strategy,
            bound=self.bound,
            nodes=nodes,
            keys=list(self.keys)[: item.keys],
            budget=self.batch if budget is None else budget,
        )

    def take(self, item: Item, result: Result) -> Sequence[tuple[int, int]] | None:
        """Note what came of an item; the path to what it found, if it did."""
        self.taken += 1
        self.executions += result.executions
        numbers = [self.keys.setdefault(key, len(self.keys)) for key in result.keys]
        if result.found is not None:
            return [(numbers[task], value) for task, value in result.found]
        if item.value == 0:
            self._more_outcomes(item.place, item.task, range(1, result.options), None)
        self.add(item, renumbered(result.nodes, numbers), result.sizes)
        places = item.places
        for at, first, wanted in result.requests:
            self._grant(places[at][0], [numbers[task] for task in first], numbers[wanted])
        return None

    def add(self, item: Item, nodes: Sequence[Node], sizes: Sequence[Estimate]) -> None:
        """The stack that is left of an item becomes items."""
        above, task, value = item.place, item.task, item.value
        for node, size in zip(nodes, sizes, strict=True):
            above = Place(above, task, value, node)
            task, value = node["chosen"], node["value"]
            self._more_outcomes(above, task, range(value + 1, node["options"]), size)
            for other in node["to_try"]:
                if other != task and other not in node["tried"]:
                    self._more_outcomes(above, other, range(1), size)
        if nodes:
            self._more_outcomes(above, task, range(value, value + 1), sizes[-1])

    def _more_outcomes(
        self, place: Place | None, task: int, values: Iterable[int], size: Estimate | None
    ) -> None:
        self.pending.extend(Item(place, task, value, len(self.keys), size) for value in values)

    def _grant(self, place: Place, first: Sequence[int], wanted: int) -> None:
        covered = (*place.to_try, *place.node["sleep"])
        if not any(task in covered for task in (*first, wanted)):
            place.to_try.append(wanted)
            self._more_outcomes(place, wanted, range(1), None)

    @property
    def left(self) -> Estimate:
        """What is left; items of which nothing is known are as large as the others were."""
        mean = self.executions / max(self.taken, 1)
        return total(item.size or Estimate(mean, mean) for item in self.pending)

    def run(
        self, workers: Workers, program: Explored, stop: Callable[[], bool]
    ) -> Generator[tuple[Item, Result], None, None]:
        """Results to take, in the order of the items."""
        recipe = Recipe.of(program)
        return in_order(
            workers, self.pending, lambda item: workers.submit(_work, recipe, self.order(item)), stop
        )

    # ------------------------------------------------------------------ as a value
    def to_dict(self) -> dict[str, Any]:
        """For a file."""
        places: dict[int, int] = {}
        rows: list[list[Any]] = []
        for item in self.pending:
            for place, _, _ in item.places:
                if id(place) not in places:
                    places[id(place)] = len(rows)
                    above = places[id(place.above)] if place.above is not None else None
                    rows.append([above, place.task, place.value, place.node])
        return {
            "places": rows,
            "items": [
                [
                    places[id(item.place)] if item.place is not None else None,
                    item.task,
                    item.value,
                    item.keys,
                    None if item.size is None else [item.size.executions, item.size.error],
                ]
                for item in self.pending
            ],
            "keys": [list(key) for key in self.keys],
            "executions": self.executions,
            "taken": self.taken,
        }

    @classmethod
    def from_dict(cls, strategy: str, bound: int, data: dict[str, Any]) -> Split:
        """Undo ``to_dict``."""
        split = cls(strategy, bound, keys=map(tuple, data["keys"]))
        places: list[Place] = []
        for above, task, value, node in data["places"]:
            places.append(Place(None if above is None else places[above], task, value, node))
        split.pending = deque(
            Item(
                None if place is None else places[place],
                task,
                value,
                keys,
                None if size is None else Estimate(*size),
            )
            for place, task, value, keys, size in data["items"]
        )
        split.executions, split.taken = data["executions"], data["taken"]
        return split
