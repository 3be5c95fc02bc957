"""A search split over workers: the tree cut into items, each a path below which nobody else looks.

An item is searched for a batch of executions by the same ``Search`` as ever, whose nodes along the path are *frozen*:
they are shared with other items. What comes back are counts, the stack that is left, which becomes new items, and
requests to try something at a frozen node. Only the coordinator grants those, for it alone knows all that is tried
there: each task that is tried at a node sleeps below those that are tried after it, in one order for all.

Everything is a function of the item alone, and results are taken in the order of the items. So the search is the same
for any number of workers. It visits the same complete executions as one that is not split, in another order; how
many are blocked may differ.

First reading: ``items.search_item``, ``Split.take``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import attrs

from polymmu.exploration.estimate import Estimate, branches, total
from polymmu.exploration.items import (
    BATCH,
    Key,
    Node,
    Order,
    Recipe,
    Result,
    first_found,
    search_item,
    search_order,
)
from polymmu.exploration.scenario import Explored
from polymmu.exploration.search import Later, Search
from polymmu.exploration.stack import Once, Path, learn, load_stack, plain_stack, renumbered
from polymmu.workers import Workers, in_order

__all__ = ["Here", "Split", "load_tree", "plain_tree", "split_up", "walk_in_order"]

WALKS = 10
"""Random walks that a worker does at a time."""


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
        place, task, value = self.place, self.task, self.value
        while place is not None:
            path.append((place, task, value))
            task, value, place = place.task, place.value, place.above
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

    batch = BATCH
    """Executions of an item."""

    def __init__(self, strategy: str, bound: int = 0, *, keys: Iterable[Key] = ()) -> None:
        self.strategy = strategy
        self.bound = bound
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

    def take(self, item: Item, result: Result) -> Path | None:
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
        self, workers: Workers, program: Explored, stop: Callable[[], bool], room: Callable[[], int]
    ) -> Generator[tuple[Path | None, Result], None, None]:
        """What comes of the items in their order, with the path to what was found. ``room``: for how many executions
        there is; the item that has more is searched here for as many as there are."""
        recipe = Recipe.of(program)

        def submit(item: Item) -> Future[Result]:
            return workers.submit(search_order, recipe, self.order(item))

        cut: Item | None = None
        with closing(in_order(workers, self.pending, submit, stop)) as results:
            for item, result in results:
                if result.executions > room():
                    cut = item
                    break
                yield self._taken(item, result, program), result
        if cut is not None:
            order = self.order(cut, room())
            result = search_item(order, program.sched, lambda picker: bool(program.once(picker).finding))
            yield self._taken(cut, result, program), result

    def _taken(self, item: Item, result: Result, program: Explored) -> Path | None:
        path = self.take(item, result)
        program.cut += result.cut
        program.sched.keys = tuple(self.keys)
        return path

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


# ---------------------------------------------------------------------- a tree that is split, or is not
def plain_tree(tree: Search | Split | None) -> dict[str, Any] | None:
    """What is searched, between two executions, for a file."""
    if tree is None:
        return None
    if isinstance(tree, Split):
        return tree.to_dict()
    return {
        "nodes": plain_stack(tree.stack),
        "executions": tree.executions,
        "blocked": tree.blocked,
        "later": tree.later.sums,
    }


def load_tree(strategy: str, bound: int, data: dict[str, Any] | None, once: Once) -> Search | Split | None:
    """Undo ``plain_tree``."""
    if data is None:
        return None
    if "items" in data:
        return Split.from_dict(strategy, bound, data)
    search = Search(strategy, bound)
    search.stack = load_stack(data["nodes"])
    search.executions, search.blocked = data["executions"], data["blocked"]
    search.later = Later(data["later"])
    learn(search, range(len(search.stack)), once)
    search.begin()
    return search


def split_up(strategy: str, bound: int, keys: Iterable[Key], tree: Search | Split | None) -> Split:
    """All of a search, or what is left of one, as items."""
    if isinstance(tree, Split):
        return tree
    split = Split(strategy, bound, keys=keys)
    if tree is not None:
        split.add(split.pending.popleft(), plain_stack(tree.stack), branches(tree))
        split.executions = tree.executions
    return split


def walk_in_order(
    workers: Workers,
    program: Explored,
    walks: Sequence[tuple[int, int]],
    seed: int,
    steps: int,
    stop: Callable[[], bool],
) -> Generator[tuple[int, int | None], None, None]:
    """Random walks (number, depth) in order: how many found nothing, and the number of the first that found
    something."""
    recipe, keys = Recipe.of(program), program.sched.keys
    parts = deque(walks[at : at + WALKS] for at in range(0, len(walks), WALKS))

    def submit(part: Sequence[tuple[int, int]]) -> Future[Any]:
        return workers.submit(first_found, recipe, keys, seed, steps, part)

    with closing(in_order(workers, parts, submit, stop)) as results:
        for part, (cut, found, met) in results:
            program.cut += cut
            program.sched.keys = tuple(dict.fromkeys((*program.sched.keys, *met)))
            yield len(part) if found is None else found - part[0][0], found
