"""One execution told in full: each step with its place, its object in words, the locks held, and what it races with.

A search keeps of a step only what it did. What a person needs besides is gathered here, in one more execution of a
schedule that is known already.

What a task is about to do is seen while it parks, for then it is on its own stack; what it did and holds, when its
operation is over.

First reading: ``watched``, ``Witness.happened``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from polymmu.description.scenario import Step as ScenarioStep
from polymmu.exploration.happens_before import Trace
from polymmu.exploration.naming import Namer
from polymmu.exploration.scenario import Explored, Outcome
from polymmu.exploration.schedule import Recorder, Schedule
from polymmu.exploration.watch import silently
from polymmu.sanitize.violation import Happened
from polymmu.sched.access import Access, commute
from polymmu.sched.exploring import Task
from polymmu.sched.picker import InFront, Picker

__all__ = ["Conflict", "Seen", "Told", "watched"]


@attrs.frozen(kw_only=True)
class Seen:
    """One step. ``cpu``, ``name``: of its task; ``doing``: the step of the scenario that it belongs to; ``what``: the
    object in words; ``place``: ``file.py:line function``; ``locks``: held when it was over; ``clock``: its CPU's
    then; ``maker``: the step that made its task, -1 for those of the scenario; ``in_context``: it is no handler or
    callback."""

    task: int
    cpu: int
    name: str
    kind: str
    what: str
    doing: str
    place: str
    locks: tuple[str, ...]
    clock: int
    maker: int
    in_context: bool

    @property
    def function(self) -> str:
        """Where in the code."""
        return self.place.rpartition(" ")[2]


@attrs.frozen
class Conflict:
    """Two steps (by number) of different tasks that could have come in the other order, and would then have meant
    something else, for they did this to ``what``."""

    what: str
    first: int
    second: int


@attrs.frozen(kw_only=True)
class Told:
    """An execution in words. ``wrong``: the step in which it was seen that something is wrong, ``cause``: the one
    that made it possible; -1 where there is none."""

    outcome: Outcome
    schedule: Schedule
    steps: tuple[Seen, ...]
    conflicts: tuple[Conflict, ...]
    wrong: int
    cause: int
    cycle: tuple[int, int] = (-1, 0)
    """Of what goes on for ever: the step from which on the same steps come again and again, and how many they are."""


def watched(program: Explored, picker: Picker, *, unbounded: bool = False) -> Told:
    """One execution of ``program`` under ``picker``, told."""
    witness = Witness(program, picker)
    bench = program.sanitizer.bench
    program.sched.tells_places = True
    vars(bench)["now"] = witness.noted(bench.now)
    try:
        outcome = program.once(witness, unbounded=unbounded)
    finally:
        program.sched.tells_places = False
        vars(bench).pop("now", None)
    steps = tuple(witness.steps)
    wrong = witness.wrong
    if wrong < 0 and outcome.finding and not outcome.violation:
        wrong = len(steps) - 1  # a task that was stopped there
    violation = outcome.violation
    return Told(
        outcome=outcome,
        schedule=attrs.evolve(witness.recorder.schedule, unbounded=unbounded),
        steps=steps,
        conflicts=tuple(witness.conflicts),
        wrong=wrong,
        cause=witness.step_of(violation.first) if violation is not None else -1,
        cycle=_cycle(steps) if unbounded and outcome.invariant == "INV-PROG" else (-1, 0),
    )


class Witness(InFront):
    """A picker in front of another one that notes what is worth telling."""

    def __init__(self, program: Explored, picker: Picker) -> None:
        self.recorder = Recorder(picker)
        super().__init__(self.recorder)
        self.steps: list[Seen] = []
        self.conflicts: list[Conflict] = []
        self.wrong = -1
        self._program = program
        self._kernel = program.machine.kernel
        self._sched = program.sched
        self._trace = Trace()
        self._did: list[Sequence[Access]] = []
        self._doing: dict[int, str] = {}
        self._events: dict[Happened, int] = {}
        self._makers: dict[int, int] = {}
        self._namer = Namer(program.run, program.sanitizer.bench.mms)

    def noted(self, now: Callable[[str], Happened]) -> Callable[[str], Happened]:
        """``now``, which judges call, and in which step they do."""

        def tell(what: str) -> Happened:
            event = now(what)
            self._events[event] = len(self.steps)
            return event

        return tell

    def step_of(self, event: Happened) -> int:
        """The step in which ``event`` happened, or else the last one at its place; -1: none."""
        step = self._events.get(event, -1)
        if step < 0:
            step = max((n for n, each in enumerate(self.steps) if each.place == event.place), default=-1)
        return step if step < len(self.steps) else -1

    def spawned(self, task: int) -> None:
        """See ``Picker``."""
        self._makers[task] = len(self.steps) - 1
        self._trace.spawn(task)
        super().spawned(task)

    def pick(self, current: int, able: Sequence[int]) -> int:
        """See ``Picker``."""
        parked = self._sched.context
        step = self._program.run.doing.get(parked.name)
        self._doing[parked.number] = _said(step) if step is not None else ""
        return super().pick(current, able)

    def happened(self, task: int, kind: str, what: object, accesses: Sequence[Access]) -> None:
        """See ``Picker``."""
        silently(self._sched, self._note)(task, kind, what, accesses)
        super().happened(task, kind, what, accesses)

    def _note(self, task: int, kind: str, what: object, accesses: Sequence[Access]) -> None:
        name, cpu = self._sched.names[task]
        context: Task = self._sched.context
        words = self._namer.of(("root", cpu) if kind == "load_root" else what)
        self.steps.append(
            Seen(
                task=task,
                cpu=cpu,
                name=name,
                kind=kind,
                what=words,
                doing=self._doing.get(task, ""),
                place=context.place if kind != "begin" else "",
                locks=self._locks(context, what if kind in ("lock", "read_lock", "trylock") else None),
                clock=self._sched.clock[cpu],
                maker=self._makers.get(task, -1),
                in_context=context.in_context,
            )
        )
        index = len(self.steps) - 1
        for earlier in self._trace.add(task, accesses):
            if self.steps[earlier].cpu == cpu:
                continue
            for obj in _shared(self._did[earlier], accesses):
                said = words if obj is what else self._namer.of(obj)
                self.conflicts.append(Conflict(said, earlier, index))
        self._did.append(tuple(accesses))
        if self.wrong < 0 and self._program.sanitizer.violations:
            self.wrong = index

    def _locks(self, context: Task, taken: object) -> tuple[str, ...]:
        """What ``context`` holds besides what it just took."""
        lockdep = self._kernel.sched.lockdep
        held = [self._namer.of(lock) for lock in lockdep.held_by(context) if lock is not taken]
        if not self._kernel.cpus[context.cpu].interrupts_enabled:
            held.append("interrupts off")
        return tuple(held)


def _shared(one: Sequence[Access], other: Sequence[Access]) -> list[object]:
    """The objects over which two operations do not commute, budgets and other pretences aside."""
    found: dict[object, None] = {}
    for access in one:
        for against in other:
            if access[0] == against[0] and not commute([access], [against]):
                found[access[0]] = None
    return [
        obj for obj in found if not (isinstance(obj, tuple) and obj[0] in ("budget", "cpu", "call", "wake"))
    ]


def _said(step: ScenarioStep) -> str:
    """A step of the scenario in a few words: ``munmap at 16p length 2p``."""
    what: Any = step.what
    if not attrs.has(type(what)):
        return f"{step.verb} {what}"
    parts = [step.verb]
    for field in attrs.fields(type(what)):
        value = getattr(what, field.name)
        if value not in ("", None, False):
            parts.append(field.name if value is True else f"{field.name} {value}")
    return " ".join(parts)


def _cycle(steps: Sequence[Seen]) -> tuple[int, int]:
    """Where the steps begin to be the same again and again, to their end, and after how many each comes again."""
    rows = [(step.task, step.kind, step.what, step.place) for step in steps]
    for period in range(1, len(rows) // 2 + 1):
        same = 0
        while same < len(rows) - period and rows[-1 - same] == rows[-1 - same - period]:
            same += 1
        if same >= 2 * period:
            return len(rows) - same - period, period
    return -1, 0
