"""Store buffers: what a CPU has stored and no other CPU sees yet (total store order: x86, SPARC, z/Architecture).

Each CPU has a queue of plain stores. It sees its own at once; others see them one by one, in order, whenever the
hardware likes. So that reading needs no special care anywhere, memory is made to look like one CPU's view while that
CPU goes on (``show``: its own stores are made, one after another) and like everybody's otherwise (``hide``: they are
taken back, last first). The stores that are *drained* stay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

__all__ = ["Store", "StoreBuffers"]

Undo = Callable[[], None]


@attrs.frozen(eq=False)
class Store:
    """``write`` makes it and returns how to take it back. ``key``: who is to drain it."""

    key: tuple[int, ...]
    write: Callable[[], Undo]


class StoreBuffers:
    """The queues of all CPUs, ``depth`` stores each."""

    def __init__(self, cpus: int, depth: int) -> None:
        self.depth = depth
        self.queues: list[deque[Store]] = [deque() for _ in range(cpus)]
        self.last: list[deque[tuple[int, ...]]] = [deque(maxlen=depth) for _ in range(cpus)]
        """The last stores of each CPU by ``key``, drained or not."""
        self._shown = -1
        self._undo: list[Undo] = []

    def push(self, cpu: int, store: Store) -> None:
        """``cpu``, whose view is shown, stores."""
        assert self._shown == cpu
        self.queues[cpu].append(store)
        self._undo.append(store.write())

    def show(self, cpu: int) -> None:
        """Memory as ``cpu`` sees it."""
        if cpu == self._shown:
            return
        self.hide()
        self._shown = cpu
        self._undo = [store.write() for store in self.queues[cpu]]

    def hide(self) -> None:
        """Memory as everybody sees it."""
        while self._undo:
            self._undo.pop()()
        self._shown = -1

    def drain(self, cpu: int) -> None:
        """The oldest store of ``cpu`` reaches memory, where everybody looks now."""
        assert self._shown < 0
        self.queues[cpu].popleft().write()

    def forget(self) -> None:
        """The execution is over."""
        self.hide()
        for queue in self.queues:
            queue.clear()
        for keys in self.last:
            keys.clear()
