"""Make a schedule that breaks something as short as can be, so that what is left is what the bug needs.

A schedule is a list of exceptions: switches that would not have happened by themselves, and outcomes of choices. First
exceptions are left out, many at once, then fewer (delta debugging). What resists often does so because it only makes
up for another one: then one is left out while another is moved to every place where it could be. At last switches are
moved to where fewer hand-overs follow.

Each try is an execution. Their number is bounded, they come in a fixed order, and whoever interrupts gets the shortest
schedule so far.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import attrs

from polymmu.exploration.scenario import Explored
from polymmu.exploration.schedule import Recorder, Replay, Schedule

__all__ = ["Shrunk", "shrink"]

Item = tuple[str, tuple[int, int], int]
"""``turn`` or ``value``, where, and to whom or which."""


@attrs.frozen
class Shrunk:
    """The shortest schedule found, the executions that took, and whether somebody was too impatient for more."""

    schedule: Schedule
    executions: int
    interrupted: bool = False


def shrink(program: Explored, schedule: Schedule, invariant: str, budget: int) -> Shrunk:
    """A schedule with as few exceptions as can be that breaks the same ``invariant``, in ``budget`` executions."""
    shrinking = Shrinking(program, schedule, invariant, budget)
    interrupted = False
    try:
        shrinking.leave_out()
        while shrinking.leave_out_and_move():
            shrinking.leave_out()
        shrinking.straighten()
    except Spent:
        pass
    except KeyboardInterrupt:
        interrupted = True
    return Shrunk(shrinking.best, shrinking.tries, interrupted)


class Spent(Exception):
    """The budget is used up."""


class Shrinking:
    """See the top of the module. ``best``: the shortest so far."""

    def __init__(self, program: Explored, schedule: Schedule, invariant: str, budget: int) -> None:
        self.program = program
        self.best = schedule
        self.invariant = invariant
        self.tries = 0
        self._budget = budget
        self._tried: dict[tuple[Item, ...], Schedule] = {}
        self._broke: set[tuple[Item, ...]] = set()

    # ------------------------------------------------------------------ one try
    def _try(self, items: Sequence[Item]) -> tuple[bool, Schedule]:
        """Whether this advice breaks the invariant, and what became of it."""
        key = tuple(sorted(items))
        if key not in self._tried:
            if self.tries >= self._budget:
                raise Spent
            self.tries += 1
            recorder = Recorder(Replay(_schedule(key), strict=False))
            outcome = self.program.once(recorder, unbounded=self.best.unbounded)
            self._tried[key] = attrs.evolve(recorder.schedule, unbounded=self.best.unbounded)
            if outcome.finding and outcome.invariant == self.invariant:
                self._broke.add(key)
        return key in self._broke, self._tried[key]

    def _is_better(self, items: Sequence[Item]) -> bool:
        """Whether this advice breaks the invariant in a shorter schedule than the best, which it is from now on."""
        broke, schedule = self._try(items)
        if not broke or _length(schedule) >= _length(self.best):
            return False
        self.best = schedule
        return True

    # ------------------------------------------------------------------ the three ways
    def leave_out(self) -> None:
        """Leave out halves, quarters, ... single exceptions, then any two, for as long as any of that is possible."""
        size = max(self.best.size // 2, 1)
        while size:
            size = min(size, self.best.size)
            items = _items(self.best)
            less = (
                items[:start] + items[start + size :] for start in range(0, len(items), max(size // 2, 1))
            )
            if not any(map(self._is_better, less)):
                size //= 2
        while any(map(self._is_better, _without_two(_items(self.best)))):
            pass

    def leave_out_and_move(self) -> bool:
        """Leave one exception out and move another; whether that made it shorter."""
        items = _items(self.best)
        for left_out in reversed(range(len(items))):
            rest = items[:left_out] + items[left_out + 1 :]
            _, without = self._try(rest)
            for moved in reversed(range(len(rest))):
                others = rest[:moved] + rest[moved + 1 :]
                for place in _places(rest[moved], without):
                    if self._is_better([*others, place]):
                        return True
        return False

    def straighten(self) -> None:
        """Move single switches to where fewer hand-overs, or fewer steps, follow."""
        again = True
        while again:
            again = False
            items = _items(self.best)
            for moved in range(len(items)):
                others = items[:moved] + items[moved + 1 :]
                if any(self._is_better([*others, place]) for place in _places(items[moved], self.best)):
                    again = True
                    break


def _length(schedule: Schedule) -> tuple[int, int, int, int]:
    """What makes a schedule short: few exceptions, of them few choices; then few hand-overs, few steps."""
    return schedule.size, len(schedule.values), schedule.hand_overs, len(schedule.steps)


def _items(schedule: Schedule) -> list[Item]:
    return [
        *(("turn", at, to) for at, to in schedule.turns.items()),
        *(("value", at, value) for at, value in schedule.values.items()),
    ]


def _without_two(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Two may make up for each other: away and back."""
    for one, other in itertools.combinations(range(len(items)), 2):
        yield [item for n, item in enumerate(items) if n not in (one, other)]


def _schedule(items: Sequence[Item]) -> Schedule:
    return Schedule(
        {at: to for kind, at, to in items if kind == "turn"},
        {at: to for kind, at, to in items if kind == "value"},
    )


def _places(item: Item, schedule: Schedule) -> Iterator[Item]:
    """Where else ``item`` could be, going by the steps of ``schedule``: a choice where there is one, a switch behind
    any step."""
    kind, at, to = item
    tasks = sorted({step.task for step in schedule.steps})
    for step in schedule.steps:
        place = step.task, step.nth
        if kind == "value":
            if step.kind == "choice" and place != at:
                yield kind, place, to
        else:
            yield from (
                (kind, place, other) for other in tasks if other != step.task and (place, other) != (at, to)
            )
