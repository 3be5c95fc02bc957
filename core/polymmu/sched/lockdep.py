"""Who takes locks in which order, and who breaks the rules of holding them (INV-LOCK, INV-ATOMIC).

Locks of one name are one class, as in Linux's lockdep. Whoever takes a lock while holding others adds an edge to the
order of classes; an edge that closes a circle is an inversion, and is named with the first place of every edge of
the circle, although nobody waits yet. A trylock adds no edge, for it never waits.

Two locks of one class may be held together only where the inner one is taken as ``nested``: then something else
guarantees their order; where both have one ``guard``, that the same context holds this for writing. Costs nothing
unless ``sched.lockdep`` is set. Not judged: locks that interrupts take too.

First reading: ``Lockdep.taking``, ``_path``.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator

import attrs

from polymmu.sched.driver import Sched
from polymmu.sched.locks import Lock

__all__ = ["LockMistake", "Lockdep", "Mistake", "place_here"]

NOT_THE_CALLER = (
    "polymmu.sched",
    "polymmu.sanitize",
    "polymmu.events",
    "polymmu.exploration",
    "polymmu.hardware",
    "polymmu.machine",
    "contextlib",
    "functools",
)
"""Modules that pass calls on; a place is the first one outside of them."""
HELPERS = (
    "find_entry",
    "read_entry",
    "_read",
    "pte_lock",
    "pte_lock_second",
    "pte_unlock",
    "pte_unlock_second",
    "table_gone",
    "invalidate_range_start",
    "invalidate_range_end",
    "mmu_notifier_invalidate_range_start",
    "mmu_notifier_invalidate_range_end",
    "mm_call",
    "put_run",
    "put_page",
    "put_pages",
    "free_page",
    "free_pages",
    "_put",
    "_drain",
)
"""Functions that stand for a step of whoever calls them."""


def place_here(sched: Sched) -> str:
    """The innermost place that did something of its own: ``file.py:line function``; empty where unwanted."""
    if not sched.tells_places:
        return ""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(NOT_THE_CALLER) and frame.f_code.co_name not in HELPERS:
            break
        frame = frame.f_back
    file = frame.f_code.co_filename.rpartition(os.sep)[2]  # a path object would cost more than all the rest
    return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"


@attrs.frozen
class Mistake:
    """One broken rule: ``invariant`` (INV-LOCK or INV-ATOMIC), one line of ``text``, and where it began and ended."""

    invariant: str
    text: str
    first: str
    second: str


class LockMistake(AssertionError):
    """A rule of locking was broken; the message names both places."""


def _raise(mistake: Mistake) -> None:
    raise LockMistake(f"{mistake.invariant}: {mistake.text}")


class Lockdep:
    """Watches every lock of one ``sched``. ``tell`` hears each mistake once; without it the first one is raised."""

    def __init__(self, sched: Sched, tell: Callable[[Mistake], None] = _raise) -> None:
        self.sched = sched
        self.tell = tell
        self.order: dict[str, dict[str, tuple[str, str]]] = {}
        """outer class -> inner class -> where the outer and where the inner was taken when this was first seen"""
        self._held: dict[object, list[tuple[Lock, str]]] = {}
        self._told: set[tuple[str, ...]] = set()

    # ------------------------------------------------------------------ what locks tell
    def taking(self, lock: Lock, nested: bool) -> None:
        """The current context is about to take ``lock`` and may have to wait for it."""
        held = self._held.get(self.sched.context)
        if not held:
            return
        for outer, place in held:
            if outer is lock:
                self._tell_here(f"{lock.name} taken again by who holds it", place)
            elif outer.name != lock.name:
                if lock.name not in self.order.get(outer.name, ()):
                    self._edge(outer.name, place, lock.name, place_here(self.sched))
            elif not nested:
                self._tell_here(f"two of {lock.name} held, in no order that is known", place)
            elif (
                (guard := lock.guard) is not None
                and guard is outer.guard
                and guard.owner is not self.sched.context
            ):
                self._tell_here(f"two of {lock.name} held without {guard.name} for writing", place)

    def taken(self, lock: Lock) -> None:
        """The current context holds ``lock`` now."""
        self._held.setdefault(self.sched.context, []).append((lock, place_here(self.sched)))

    def released(self, lock: Lock) -> None:
        """The current context is about to give ``lock`` back."""
        held = self._held.get(self.sched.context, [])
        for n in range(len(held) - 1, -1, -1):
            if held[n][0] is lock:
                del held[n]
                return
        holder = next((place for other, place in self.held() if other is lock), "nowhere")
        self._tell_here(f"{lock.name} released by who does not hold it", holder)

    def freed(self, lock: Lock) -> None:
        """``lock`` goes, with what it is in, although somebody holds it."""
        holder = next((place for other, place in self.held() if other is lock), "nowhere")
        self._tell_here(f"{lock.name} freed while it is held", holder)

    def sleeping(self, why: str, state: str) -> None:
        """The current context may sleep (``why``) although it is in ``state``, where nobody may."""
        spinning = [(lock, place) for lock, place in self._held.get(self.sched.context, []) if lock.spins]
        lock, place = spinning[-1] if spinning else (None, "no spinlock is held")
        below = f" below {lock.name}" if lock is not None else ""
        self._tell("INV-ATOMIC", f"may sleep ({why}) {state}{below}", place, place_here(self.sched))

    # ------------------------------------------------------------------ what others ask
    def holds(self, lock: Lock) -> bool:
        """Whether the current context has ``lock``, in whichever way."""
        return any(held is lock for held, _ in self._held.get(self.sched.context, ()))

    def held(self) -> Iterator[tuple[Lock, str]]:
        """Every lock that is held, and where it was taken."""
        for locks in self._held.values():
            yield from locks

    def held_by(self, context: object) -> Iterator[Lock]:
        """What ``context`` holds, the first taken first."""
        for lock, _ in self._held.get(context, ()):
            yield lock

    # ------------------------------------------------------------------ the order
    def _edge(self, outer: str, outer_place: str, inner: str, inner_place: str) -> None:
        back = self._path(inner, outer)
        self.order.setdefault(outer, {})[inner] = outer_place, inner_place
        if back is None:
            return
        steps = ", ".join(
            f"{below} inside {above} at {self.order[above][below][1]}"
            for above, below in itertools.pairwise(back)
        )
        first = self.order[back[0]][back[1]][1]
        self._tell(
            "INV-LOCK", f"lock order turned round: {inner} inside {outer}, but {steps}", first, inner_place
        )

    def _path(self, start: str, goal: str) -> list[str] | None:
        """The shortest known nesting from ``start`` (outermost) to ``goal``."""
        paths = [[start]]
        seen = {start}
        for path in paths:
            if path[-1] == goal:
                return path
            for inner in self.order.get(path[-1], ()):
                if inner not in seen:
                    seen.add(inner)
                    paths.append([*path, inner])
        return None

    def _tell_here(self, text: str, first: str) -> None:
        self._tell("INV-LOCK", text, first, place_here(self.sched))

    def _tell(self, invariant: str, text: str, first: str, second: str) -> None:
        if (text, second) not in self._told:
            self._told.add((text, second))
            self.tell(Mistake(invariant, f"{text} ({second}; first {first})", first, second))
