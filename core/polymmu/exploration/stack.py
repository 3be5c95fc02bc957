"""A search's stack as plain numbers, for a file or another process, and back again.

What an operation did to shared objects does not travel: it names live objects of one process. It need not, for
whoever has the path can find out: a task that sleeps at a node would there do just what it did when it went to
sleep, or it would have been woken. So ``learn`` runs the program along the path and looks.

Tasks travel as numbers with a table of what the numbers stand for (``ExploringSched.keys``), for another process may
have met them in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from polymmu.exploration.search import Node, Search
from polymmu.sched.access import Access
from polymmu.sched.picker import Diverged, Halt, Picker

__all__ = ["Along", "Once", "Path", "learn", "load_stack", "path_of", "plain_stack", "renumbered"]

Once = Callable[[Picker], object]
"""Runs one execution under a picker."""
Path = Sequence[tuple[int, int]]
"""Who was picked, and how his choice came out, from the beginning."""


class Along(Picker):
    """A picker that goes along ``path``, and ends the execution behind it; ``did`` is what its last step did."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.options = 1
        """Outcomes that the last step could have had."""
        self.did: tuple[Access, ...] = ()

    def pick(self, current: int, able: Sequence[int]) -> int:
        """See ``Picker``."""
        if self._at == len(self._path):
            raise Halt("the end of the path")
        task, _ = self._path[self._at]
        if task not in able:
            raise Diverged(f"step {self._at}: task {task} cannot go on here")
        self._at += 1
        self.options = 1
        return task

    def choose(self, options: int) -> int:
        """See ``Picker``."""
        self.options = options
        return self._path[self._at - 1][1]

    def happened(self, task: int, kind: str, what: object, accesses: Sequence[Access]) -> None:
        """See ``Picker``."""
        self.did = tuple(accesses)


def path_of(nodes: Iterable[Node]) -> list[tuple[int, int]]:
    """The picks of a stack."""
    return [(node.chosen, node.value) for node in nodes]


def plain_stack(nodes: Iterable[Node]) -> list[dict[str, Any]]:
    """Nodes as JSON has them."""
    return [
        {
            "current": node.current,
            "able": list(node.able),
            "sleep": list(node.sleep),
            "chosen": node.chosen,
            "value": node.value,
            "options": node.options,
            "to_try": list(node.to_try),
            "tried": list(node.tried),
            "before": node.before,
            "began": node.began,
            "sizes": list(node.sizes),
        }
        for node in nodes
    ]


def load_stack(nodes: Iterable[dict[str, Any]]) -> list[Node]:
    """Undo ``plain_stack``, but for what sleeping tasks would do: see ``learn``."""
    return [
        Node(
            current=node["current"],
            able=tuple(node["able"]),
            sleep=dict.fromkeys(node["sleep"], ()),
            chosen=node["chosen"],
            to_try=list(node["to_try"]),
            before=node["before"],
            value=node["value"],
            options=node["options"],
            tried=dict.fromkeys(node["tried"], ()),
            began=node["began"],
            sizes=list(node["sizes"]),
        )
        for node in nodes
    ]


def renumbered(nodes: Iterable[dict[str, Any]], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The same nodes where task n is called ``numbers[n]``."""
    lists = ("able", "sleep", "to_try", "tried")
    return [
        node
        | {name: [numbers[task] for task in node[name]] for name in lists}
        | {name: node[name] if node[name] < 0 else numbers[node[name]] for name in ("current", "chosen")}
        for node in nodes
    ]


def learn(search: Search, depths: Iterable[int], once: Once) -> None:
    """Find out what the tasks would do, or did, that sleep or were tried at some nodes of a search's stack."""
    if not search.sleeps:
        return
    for depth in depths:
        node = search.stack[depth]
        path = path_of(search.stack[:depth])
        for task in node.sleep:
            node.sleep[task] = _would_do(path, task, None, once)
        for task in node.tried:
            node.tried[task] = _would_do(path, task, node.value if task == node.chosen else None, once)


def _would_do(path: Path, task: int, outcomes: int | None, once: Once) -> tuple[Access, ...]:
    """What ``task`` does behind ``path``, in its first ``outcomes`` (None: all)."""
    did: tuple[Access, ...] = ()
    value = 0
    while outcomes is None or value < outcomes:
        look = Along([*path, (task, value)])
        once(look)
        did += look.did
        value += 1
        if value >= look.options:
            break
    return did
