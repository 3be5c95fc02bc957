"""What a person gets when a schedule breaks something: the same violation, as short as can be and told in full.

The schedule is shrunk, made once more by a witness, and tried on the fixed variant where the scenario has one. Whoever
interrupts any of that gets what there is: the violation itself was found before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import attrs

from polymmu.description.load_scenario import ScenarioFile
from polymmu.exploration.scenario import Explored, Outcome
from polymmu.exploration.schedule import Replay, Schedule, default_pick, name_of
from polymmu.exploration.shrink import Shrunk, shrink
from polymmu.exploration.verdict import Verdict
from polymmu.exploration.witness import Told, watched
from polymmu.sched.access import Access
from polymmu.sched.exploring import ExploringSched
from polymmu.sched.picker import Picker

__all__ = ["Broken", "OnFixed", "hand_over"]

FIXED = "fixed"

Mark = tuple[int, str, str]
"""An operation of a task: which, of what kind, on what."""


@attrs.frozen(kw_only=True)
class OnFixed:
    """The same schedule on the fixed variant. ``followed``: how many of its exceptions could be made there;
    ``parts_at``: the first step that is another one there, -1 for none; ``instead``: what is done then, empty at the
    end."""

    outcome: Outcome
    followed: int
    parts_at: int
    instead: str


@attrs.frozen(kw_only=True)
class Broken:
    """A violation, ready to be shown. ``found``: the schedule as the search came upon it."""

    told: Told
    found: Schedule
    shrinking: int
    """Executions that shrinking took."""
    on_fixed: OnFixed | None
    interrupted: bool


def hand_over(program: Explored, verdict: Verdict, budget: int) -> Broken:
    """Everything about the violation of ``verdict``, which has one. ``budget``: executions to shrink it with."""
    found, outcome = verdict.schedule, verdict.outcome
    assert found is not None
    assert outcome is not None
    shrunk = _shrunk(program, found, outcome.invariant, budget)
    interrupted = shrunk.interrupted
    try:
        told = _told(program, shrunk.schedule)
    except KeyboardInterrupt:
        told, interrupted = _told(program, shrunk.schedule), True
    on_fixed = None
    if not interrupted:
        try:
            on_fixed = _on_fixed(program, told)
        except KeyboardInterrupt:
            interrupted = True
    return Broken(
        told=told, found=found, shrinking=shrunk.executions, on_fixed=on_fixed, interrupted=interrupted
    )


def _shrunk(program: Explored, found: Schedule, invariant: str, budget: int) -> Shrunk:
    """``found``, shorter. What never ends stays as it is: it needs every choice to come out against it each time."""
    if invariant == "INV-PROG" and found.unbounded:
        return Shrunk(found, 0)
    if found.unbounded:  # budgets were set aside to see whether it ends; perhaps they would have done
        bounded = attrs.evolve(found, unbounded=False)
        try:
            again = program.once(Replay(bounded, strict=False))
        except KeyboardInterrupt:
            return Shrunk(found, 0, True)
        if again.finding and again.invariant == invariant:
            found = bounded
    return shrink(program, found, invariant, budget)


def _told(program: Explored, schedule: Schedule) -> Told:
    return watched(program, Replay(schedule, strict=False), unbounded=schedule.unbounded)


def _on_fixed(program: Explored, told: Told) -> OnFixed | None:
    """``told`` once more where the bug is mended; None where nobody says how."""
    file: ScenarioFile = program.file
    if FIXED not in file.variants.items or program.variant in (None, FIXED):
        return None
    fixed = Explored(
        program.asked_for,
        file,
        sets=program.machine.sets,
        variant=FIXED,
        speculate=program.speculate,
        memory_model=program.memory_model,
    )
    fixed.sched.keys = program.sched.keys
    fixed.steps = program.steps
    follower = Follower(told.schedule, fixed.sched)
    again = watched(fixed, follower, unbounded=told.schedule.unbounded)
    parts_at = _parts_at(told, again)
    instead = ""
    if 0 <= parts_at < len(again.steps):
        step = again.steps[parts_at]
        instead = f"{step.name} does {step.kind} {step.what}".rstrip()
    return OnFixed(outcome=again.outcome, followed=follower.followed, parts_at=parts_at, instead=instead)


def _parts_at(told: Told, again: Told) -> int:
    rows = [[(step.task, step.kind, step.function) for step in each.steps] for each in (told, again)]
    for number, (then, now) in enumerate(zip(*rows, strict=False)):
        if then != now:
            return number
    return -1 if len(rows[0]) == len(rows[1]) else min(len(rows[0]), len(rows[1]))


class Follower(Picker):
    """A picker that makes the exceptions of a schedule in a program that is a little different: a switch comes not
    after so many operations of a task but after the same one, such as the second time that it takes that lock."""

    def __init__(self, schedule: Schedule, sched: ExploringSched) -> None:
        self.followed = 0
        self._sched = sched
        self._done = Counter[Mark]()
        self._last: dict[int, tuple[Mark, int]] = {}
        done = Counter[Mark]()
        marks: dict[tuple[int, int], tuple[Mark, int]] = {}
        for step in schedule.steps:
            mark = _mark(step.task, step.kind, step.what)
            done[mark] += 1
            marks[step.task, step.nth] = mark, done[mark]
        self._turns = {marks.get(at, _beginning(at[0])): to for at, to in schedule.turns.items()}
        self._values = {marks[at]: value for at, value in schedule.values.items() if at in marks}

    def pick(self, current: int, able: Sequence[int]) -> int:
        """See ``Picker``."""
        task = self._turns.get(self._last.get(current, _beginning(current)))
        if task is None or task not in able:
            return default_pick(current, able)
        self.followed += 1
        return task

    def choose(self, options: int) -> int:
        """See ``Picker``. Who was picked is about to make the choice."""
        mark = _mark(self._sched.context.number, "choice", name_of(self._sched.context.what))
        value = self._values.get((mark, self._done[mark] + 1), 0)
        self.followed += bool(value)
        return min(value, options - 1)

    def happened(self, task: int, kind: str, what: object, accesses: Sequence[Access]) -> None:
        """See ``Picker``."""
        mark = _mark(task, kind, name_of(what))
        self._done[mark] += 1
        self._last[task] = mark, self._done[mark]


def _mark(task: int, kind: str, what: str) -> Mark:
    """What an operation is, wherever in memory its object lies."""
    return task, kind, "" if what.startswith("0x") else what


def _beginning(task: int) -> tuple[Mark, int]:
    """Where ``task`` has done nothing yet."""
    return (task, "", ""), 0
