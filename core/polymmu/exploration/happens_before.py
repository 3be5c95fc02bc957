"""Which steps of an execution had to come in their order, and which pairs raced.

Each task has a vector clock. A step joins the clocks of the steps it depends on; one that was not in the task's past
before, and that need not have come first, races with it: the other order is worth exploring. The candidates are few:
a read races with the last write, or with what was added since; a write with the reads and additions since, else with
the last write; an acquire with the last acquire, never with the release it waited for.

A task that is blocked for ever never executes its acquire, yet the acquire races all the same (``blocked``): without
that, orders in which others deadlock would be missed.
"""

from __future__ import annotations

from collections.abc import Hashable

import attrs

from polymmu.sched.access import Accesses, Mode

__all__ = ["Trace"]


@attrs.define
class ObjectPast:
    """What was done to one object. Indices of steps; -1: none."""

    write: int = -1
    """The last write, acquire or release."""
    acquire: int = -1
    reads: list[int] = attrs.field(factory=list)
    """Since ``write``."""
    adds: list[int] = attrs.field(factory=list)
    """Since ``write``."""
    shares: list[int] = attrs.field(factory=list)
    """Since ``acquire``."""
    leaves: list[int] = attrs.field(factory=list)
    """Releases of shared holds since ``acquire``, or signals."""


class Trace:
    """The steps of one execution so far. Tasks are small numbers."""

    def __init__(self) -> None:
        self.tasks: list[int] = []
        self.seq: list[int] = []
        """Which step of its task each is, from 1."""
        self.clocks: list[list[int]] = []
        self._now: list[list[int]] = []
        """Clock of each task."""
        self._objects: dict[Hashable, ObjectPast] = {}

    def __len__(self) -> int:
        return len(self.tasks)

    def before(self, first: int, second: int) -> bool:
        """Whether step ``first`` had to come before step ``second``."""
        clock, task = self.clocks[second], self.tasks[first]
        return task < len(clock) and clock[task] >= self.seq[first]

    def spawn(self, task: int) -> None:
        """``task`` begins, made by the last step."""
        clock = self._clock(task)
        if self.clocks:
            _join(clock, self.clocks[-1])

    def add(self, task: int, accesses: Accesses) -> list[int]:
        """A step of ``task``; the earlier steps that it races with, the last first."""
        clock = self._clock(task)
        needs, rivals, doors = self._past_of(accesses)
        races = self._races(task, clock, rivals, doors)
        index = len(self.tasks)
        for step in needs:
            _join(clock, self.clocks[step])
        while len(clock) <= task:
            clock.append(0)
        clock[task] += 1
        self.tasks.append(task)
        self.seq.append(clock[task])
        self.clocks.append(clock.copy())
        self._note(index, accesses)
        return races

    def blocked(self, task: int, accesses: Accesses) -> list[int]:
        """The steps that race with one that ``task`` would do and never can."""
        _, rivals, _ = self._past_of(accesses)
        return self._races(task, self._clock(task), rivals, set())

    def in_past(self, step: int, task: int) -> bool:
        """Whether ``task`` could not do what it does next without ``step``."""
        clock, other = self._clock(task), self.tasks[step]
        return other < len(clock) and clock[other] >= self.seq[step]

    def _clock(self, task: int) -> list[int]:
        while len(self._now) <= task:
            self._now.append([])
        return self._now[task]

    def _races(self, task: int, clock: list[int], rivals: dict[int, bool], doors: set[int]) -> list[int]:
        found: list[int] = []
        for step in sorted(rivals, reverse=True):
            other = self.tasks[step]
            if other == task or (other < len(clock) and clock[other] >= self.seq[step]):
                continue
            # What came before somebody let us in was not ours to overtake, unless it is what shut us out.
            if not rivals[step] and any(step == door or self.before(step, door) for door in doors):
                continue
            if not any(self.before(step, later) for later in found):  # else that one is the race
                found.append(step)
        return found

    def _past_of(self, accesses: Accesses) -> tuple[set[int], dict[int, bool], set[int]]:
        """The steps that these accesses depend on; those among them that could also have come after, and whether
        they are what shuts others out; and those that let these accesses happen at all."""
        needs: set[int] = set()
        rivals: set[int] = set()
        shut: set[int] = set()
        doors: set[int] = set()
        for obj, mode in accesses:
            past = self._objects.get(obj)
            if past is None:
                continue
            needs.add(past.write)
            if mode == Mode.READ:
                last = past.adds or past.shares or [past.write]
                needs.update(last)
                rivals.update(last)
            elif mode == Mode.WRITE:
                since = past.reads + past.adds
                needs.update(since)
                rivals.update(since or [past.write])
            elif mode == Mode.ADD:
                needs.update(past.reads)
                rivals.update(past.reads or [past.write])
            elif mode in (Mode.ACQUIRE, Mode.TRY):
                needs.update(past.reads, past.shares, past.leaves)
                rivals.update(past.reads)
                shut.update(past.shares or [past.acquire])
                if mode == Mode.TRY:
                    rivals.update((past.write, *past.leaves))
                else:
                    doors.update((past.write, *past.leaves))
            elif mode == Mode.SHARE:
                shut.add(past.acquire)
                doors.add(past.write)
            elif mode in (Mode.RELEASE, Mode.UNSHARE):
                needs.update(past.reads)
                rivals.update(past.reads)
            elif mode == Mode.AWAIT:
                needs.update(past.leaves)
                doors.update((past.write, *past.leaves))
        for steps in (needs, doors):
            steps.discard(-1)
        return needs, {step: step in shut for step in rivals | shut if step >= 0}, doors

    def _note(self, index: int, accesses: Accesses) -> None:
        for obj, mode in accesses:
            past = self._objects.get(obj)
            if past is None:
                past = self._objects[obj] = ObjectPast()
            if mode == Mode.READ:
                past.reads.append(index)
            elif mode == Mode.ADD:
                past.adds.append(index)
            elif mode == Mode.SHARE:
                past.shares.append(index)
            elif mode in (Mode.UNSHARE, Mode.SIGNAL):
                past.leaves.append(index)
            elif mode != Mode.AWAIT:
                past.write = index
                past.reads, past.adds = [], []
                if mode in (Mode.ACQUIRE, Mode.TRY):
                    past.acquire = index
                    past.shares, past.leaves = [], []


def _join(clock: list[int], other: list[int]) -> None:
    while len(clock) < len(other):
        clock.append(0)
    for n, value in enumerate(other):
        clock[n] = max(clock[n], value)
