"""One interleaving written down, so that it can be made again: where it differs from what would happen by itself.

By itself a task goes on for as long as it can, and then the first that can goes on. A schedule names the exceptions:
after its n-th operation a task had to stand back for another; and the outcomes of choices other than 0. So it is
short, it can be made shorter by leaving exceptions out, and it still means something when the code around it changes.

A schedule that was found also carries what each step did; ``Replay`` compares, and refuses to go on where the program
does something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import attrs

from polymmu.sched.access import Access
from polymmu.sched.picker import Diverged, InFront, Picker

__all__ = ["Recorder", "Replay", "Schedule", "Step", "default_pick"]


@attrs.frozen
class Step:
    """One operation that happened: the ``nth`` of its task."""

    task: int
    nth: int
    kind: str
    what: str


@attrs.frozen
class Schedule:
    """``turns``: (task, operations it had done) -> who went on instead. ``values``: (task, which of its operations)
    -> the outcome. ``steps``: what happened, where that is known."""

    turns: dict[tuple[int, int], int] = attrs.field(factory=dict)
    values: dict[tuple[int, int], int] = attrs.field(factory=dict)
    steps: tuple[Step, ...] = ()
    unbounded: bool = False
    """Whether budgets of choices were never used up."""

    @property
    def size(self) -> int:
        """How many exceptions it has."""
        return len(self.turns) + len(self.values)

    @property
    def hand_overs(self) -> int:
        """How often the steps go from one task to another, also where the first one could not go on."""
        return sum(one.task != other.task for one, other in zip(self.steps, self.steps[1:], strict=False))

    def to_dict(self) -> dict[str, Any]:
        """For a file."""
        return {
            "turns": [[*at, to] for at, to in self.turns.items()],
            "values": [[*at, value] for at, value in self.values.items()],
            "unbounded": self.unbounded,
            "steps": [[step.task, step.kind, step.what] for step in self.steps],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Schedule:
        """Undo ``to_dict``. Raises ValueError, TypeError or KeyError for anything else."""
        for key in ("turns", "values", "steps"):
            if not isinstance(data[key], list):
                raise TypeError(f"{key} is no list")
        counts: dict[int, int] = {}
        steps = []
        for task, kind, what in data["steps"]:
            counts[task] = counts.get(task, 0) + 1
            steps.append(Step(int(task), counts[task], str(kind), str(what)))
        return cls(
            {(int(task), int(nth)): int(to) for task, nth, to in data["turns"]},
            {(int(task), int(nth)): int(value) for task, nth, value in data["values"]},
            tuple(steps),
            bool(data["unbounded"]),
        )


def default_pick(current: int, able: Sequence[int]) -> int:
    """Who goes on by himself."""
    return current if current in able else min(able)


class Recorder(InFront):
    """A picker in front of another one, which writes down what happens."""

    def __init__(self, picker: Picker) -> None:
        super().__init__(picker)
        self._done: dict[int, int] = {}
        self._turns: dict[tuple[int, int], int] = {}
        self._values: dict[tuple[int, int], int] = {}
        self._steps: list[tuple[int, int, str, object]] = []
        self._task = -1

    def pick(self, current: int, able: Sequence[int]) -> int:
        """See ``Picker``."""
        task = super().pick(current, able)
        if task != default_pick(current, able):
            self._turns[current, self._done.get(current, 0)] = task
        self._task = task
        return task

    def choose(self, options: int) -> int:
        """See ``Picker``."""
        value = super().choose(options)
        if value:
            self._values[self._task, self._done.get(self._task, 0) + 1] = value
        return value

    def happened(self, task: int, kind: str, what: object, accesses: Sequence[Access]) -> None:
        """See ``Picker``."""
        self._done[task] = nth = self._done.get(task, 0) + 1
        self._steps.append((task, nth, kind, what))
        super().happened(task, kind, what, accesses)

    @property
    def length(self) -> int:
        """How many steps there were so far."""
        return len(self._steps)

    @property
    def schedule(self) -> Schedule:
        """All of it so far."""
        steps = [Step(task, nth, kind, name_of(what)) for task, nth, kind, what in self._steps]
        return Schedule(self._turns, self._values, tuple(steps))


class Replay(Picker):
    """A picker that follows a schedule. ``strict``: every step must be the one written down, else ``diverged`` says
    where it was not; otherwise the schedule is advice, and an exception that makes no sense any more is passed over."""

    def __init__(self, schedule: Schedule, *, strict: bool) -> None:
        self._schedule = schedule
        self._strict = strict
        self.diverged = ""
        self._done: dict[int, int] = {}
        self._task = -1
        self._step = 0

    def pick(self, current: int, able: Sequence[int]) -> int:
        """See ``Picker``."""
        task = self._schedule.turns.get((current, self._done.get(current, 0)))
        if task is None or task not in able:
            if task is not None and self._strict:
                self._diverge(f"task {task} cannot go on here")
            task = default_pick(current, able)
        self._task = task
        return task

    def choose(self, options: int) -> int:
        """See ``Picker``."""
        value = self._schedule.values.get((self._task, self._done.get(self._task, 0) + 1), 0)
        return min(value, options - 1)

    def happened(self, task: int, kind: str, what: object, accesses: Sequence[Access]) -> None:
        """See ``Picker``."""
        self._done[task] = self._done.get(task, 0) + 1
        if self._strict:
            self._check(task, kind, name_of(what))
        self._step += 1

    def _check(self, task: int, kind: str, what: str) -> None:
        steps = self._schedule.steps
        if self._step >= len(steps):
            self._diverge(f"the schedule ends here, task {task} goes on with '{kind} {what}'")
        then = steps[self._step]
        if (then.task, then.kind, then.what) != (task, kind, what):
            self._diverge(
                f"task {task} did '{kind} {what}', "
                f"in the schedule task {then.task} did '{then.kind} {then.what}'"
            )

    def _diverge(self, text: str) -> NoReturn:
        self.diverged = self.diverged or f"step {self._step}: {text}"
        raise Diverged(self.diverged)


def name_of(what: object) -> str:
    """How an operation's object is written."""
    if isinstance(what, int):
        return f"{what:#x}"
    if isinstance(what, tuple):
        return " ".join(name_of(part) for part in what)
    name = getattr(what, "name", None)
    if name is not None:
        return str(name)
    index = getattr(what, "index", None)
    return (
        "" if what is None else what if isinstance(what, str) else f"cpu {index}" if index is not None else ""
    )
