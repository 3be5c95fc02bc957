"""Which steps of an execution had to come in their order, and which pairs raced.

A step's past is every step that had to come before it: its task's last step with its past, and the steps that it
depends on with theirs. One of those that was not in the task's past already, and that need not have come first, races
with it: the other order is worth exploring. The candidates are few: a read races with the last write, or with what was
added since; a write with the reads and additions since, else with the last write; an acquire with the last acquire,
never with the release it waited for.

A task that is blocked for ever never executes its acquire, yet the acquire races all the same (``blocked``): without
that, orders in which others deadlock would be missed.

Sets of steps are ints, a bit per step, so that pasts are joined and compared in one operation whatever their length.
A search goes back to an earlier step and on from there (``go_back``): what came before is not worked out again.
"""

from __future__ import annotations

from collections.abc import Hashable

from polymmu.sched.access import Accesses, Mode

__all__ = ["Trace"]

# A name of a module is found sooner than a member of an enumeration.
READ, WRITE, ADD = Mode.READ, Mode.WRITE, Mode.ADD
ACQUIRE, RELEASE, TRY = Mode.ACQUIRE, Mode.RELEASE, Mode.TRY
SHARE, UNSHARE = Mode.SHARE, Mode.UNSHARE
SIGNAL, AWAIT = Mode.SIGNAL, Mode.AWAIT

Steps = int
"""A set of steps."""


ObjectPast = tuple[Steps, Steps, Steps, Steps, Steps, Steps]
"""What was done to one object, as sets of steps: ``write``, the last write, acquire or release; ``acquire``, the last
one; ``reads`` and ``adds`` since ``write``; ``shares`` since ``acquire``; ``leaves``, releases of shared holds since
``acquire``, or signals."""
UNTOUCHED: ObjectPast = (0, 0, 0, 0, 0, 0)


class Trace:
    """The steps of one execution so far. Tasks are small numbers."""

    def __init__(self) -> None:
        self.tasks: list[int] = []
        self.pasts: list[Steps] = []
        self._now: dict[int, Steps] = {}
        """What each task has in its past."""
        self._objects: dict[Hashable, ObjectPast] = {}
        self._undo: list[tuple[Steps, list[tuple[Hashable, ObjectPast]]]] = []
        """Of each step, what it changed in the two."""

    def __len__(self) -> int:
        return len(self.tasks)

    def before(self, first: int, second: int) -> bool:
        """Whether step ``first`` had to come before step ``second``."""
        return bool(self.pasts[second] >> first & 1)

    def spawn(self, task: int) -> None:
        """``task`` begins, made by the last step."""
        self._now[task] = self.pasts[-1] | 1 << len(self) - 1 if self.pasts else 0

    def add(self, task: int, accesses: Accesses) -> list[int]:
        """A step of ``task``; the earlier steps that it races with, the last first."""
        now, bit = self._now[task], 1 << len(self.tasks)
        needs, rivals, shut, doors = self._past_of(accesses)
        races = self._races(now, rivals, shut, doors)
        self._undo.append((now, self._note(bit, accesses)))
        while needs := needs & ~now:
            step = needs.bit_length() - 1
            now |= self.pasts[step] | 1 << step
        self._now[task] = now | bit
        self.tasks.append(task)
        self.pasts.append(now)
        return races

    def blocked(self, task: int, accesses: Accesses) -> list[int]:
        """The steps that race with one that ``task`` would do and never can."""
        _, rivals, shut, _ = self._past_of(accesses)
        return self._races(self._now[task], rivals, shut, 0)

    def go_back(self, length: int) -> None:
        """Forget all but the first ``length`` steps. A task that a forgotten one made begins anew."""
        tasks, known = self.tasks, self._objects
        for _ in range(len(tasks) - length):
            self.pasts.pop()
            self._now[tasks.pop()], objects = self._undo.pop()
            for obj, past in reversed(objects):
                known[obj] = past

    def in_past(self, step: int, task: int) -> bool:
        """Whether ``task`` could not do what it does next without ``step``."""
        return bool(self._now[task] >> step & 1)

    def _races(self, now: Steps, rivals: Steps, shut: Steps, doors: Steps) -> list[int]:
        """``now``: the past of the task whose step it is; the others as ``_past_of`` gives them."""
        found: list[int] = []
        rivals = (rivals | shut) & ~now
        if rivals & ~shut and doors:
            # What came before somebody let us in was not ours to overtake, unless it is what shut us out.
            passed = doors
            while doors:
                step = doors.bit_length() - 1
                passed |= self.pasts[step]
                doors ^= 1 << step
            rivals &= ~passed | shut
        while rivals:
            step = rivals.bit_length() - 1
            found.append(step)
            rivals &= ~(self.pasts[step] | 1 << step)  # of those before it, that one is the race
        return found

    def _past_of(self, accesses: Accesses) -> tuple[Steps, Steps, Steps, Steps]:
        """The steps that these accesses depend on; those among them that could also have come after; those that shut
        others out, and could have, too; and those that let these accesses happen at all."""
        needs = rivals = shut = doors = 0
        objects = self._objects
        for obj, mode in accesses:
            past = objects.get(obj)
            if past is None:
                continue
            write, acquire, reads, adds, shares, leaves = past
            needs |= write
            if mode is READ:
                last = adds or shares or write
                needs |= last
                rivals |= last
            elif mode is WRITE:
                needs |= reads | adds
                rivals |= reads | adds or write
            elif mode is ADD:
                needs |= reads
                rivals |= reads or write
            elif mode is ACQUIRE or mode is TRY:
                needs |= reads | shares | leaves
                rivals |= reads
                shut |= shares or acquire
                if mode is TRY:
                    rivals |= write | leaves
                else:
                    doors |= write | leaves
            elif mode is SHARE:
                shut |= acquire
                doors |= write
            elif mode is RELEASE or mode is UNSHARE:
                needs |= reads
                rivals |= reads
            elif mode is AWAIT:
                needs |= leaves
                doors |= write | leaves
        return needs, rivals, shut, doors

    def _note(self, step: Steps, accesses: Accesses) -> list[tuple[Hashable, ObjectPast]]:
        """What was known of each object before."""
        objects = self._objects
        changed = []
        for obj, mode in accesses:
            past = objects.get(obj, UNTOUCHED)
            write, acquire, reads, adds, shares, leaves = past
            if mode is READ:
                if reads & step:
                    continue
                reads |= step
            elif mode is ADD:
                adds |= step
            elif mode is SHARE:
                shares |= step
            elif mode is UNSHARE or mode is SIGNAL:
                leaves |= step
            elif mode is AWAIT:
                continue
            else:
                write, reads, adds = step, 0, 0
                if mode is ACQUIRE or mode is TRY:
                    acquire, shares, leaves = step, 0, 0
            changed.append((obj, past))
            objects[obj] = (write, acquire, reads, adds, shares, leaves)
        return changed
