"""What ``polymmu explore`` does: look for a schedule that breaks an invariant, or cover them all.

A portfolio with one budget: the default schedule; a few fair ones in which every choice comes out against the program
each time, for loops that must end all the same; a few hundred random ones, which find most races soonest; then the
search with source sets to its end, which proves that there is none. If that does not end in time, schedules of few
preemptions are covered instead, which is a claim of its own. A verdict says what was covered, never more.

First reading: ``Exploration.run``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from polymmu.exploration.random_walks import Fair, Pct
from polymmu.exploration.scenario import Explored, Outcome
from polymmu.exploration.schedule import Recorder, Replay, Schedule
from polymmu.exploration.search import Search
from polymmu.sched.exploring import Picker

__all__ = ["Limits", "Verdict", "search", "shrink"]

FAIR_TURNS = (1, 4, 16)
PCT_DEPTHS = (3, 2, 5, 1, 4)


@attrs.frozen(kw_only=True)
class Limits:
    """When to stop. ``random``: schedules tried at random first; ``executions``, ``seconds``: of everything;
    ``preemptions``: the most that the fallback covers."""

    random: int = 100
    executions: int = 20_000
    seconds: float = 60.0
    preemptions: int = 2


@attrs.frozen(kw_only=True)
class Verdict:
    """``verdict``: clean, violation, bounded (all schedules of few preemptions) or sampled."""

    verdict: str
    complete: bool
    strategy: str
    executions: int
    blocked: int
    seconds: float
    bounds: Mapping[str, Any]
    outcome: Outcome | None = None
    schedule: Schedule | None = None
    interrupted: bool = False


class Enough(Exception):
    """A limit was reached."""


class Exploration:
    """One portfolio on one scenario."""

    def __init__(
        self, program: Explored, limits: Limits, seed: int, tell: Callable[[str, int], None]
    ) -> None:
        self.program = program
        self.limits = limits
        self.seed = seed
        self.tell = tell
        self.executions = 0
        self.blocked = 0
        self.steps = 0
        self.began = time.monotonic()
        self.strategy = ""
        self.found: tuple[Outcome, Schedule] | None = None

    def run(self, strategy: str) -> Verdict:
        """Try what ``strategy`` names, or everything in turn (``portfolio``)."""
        verdict, complete, bound = "sampled", False, -1
        interrupted = False
        try:
            if strategy in ("portfolio", "default"):
                self._once("default", Replay(Schedule(), strict=False))
            if strategy in ("portfolio", "fair") and not self.found and self.program.sched.budgets:
                self._fair()
            if strategy in ("portfolio", "pct") and not self.found:
                self._random()
            if strategy in ("portfolio", "dpor", "sleep", "naive") and not self.found:
                complete = self._all(Search("dpor" if strategy == "portfolio" else strategy))
                verdict = "clean"
        except Enough:
            pass
        except KeyboardInterrupt:
            interrupted = True
        if not complete and not self.found and not interrupted and strategy in ("portfolio", "bounded"):
            bound = self._bounded(strategy == "bounded")
            verdict = "bounded" if bound >= 0 else "sampled"
        if self.found:
            verdict, complete = "violation", False
        bounds: dict[str, Any] = {
            "memory_model": "sc",
            "choices": dict(sorted(self.program.sched.budgets.items())),
        }
        if bound >= 0:
            bounds["preemptions"] = bound
        return Verdict(
            verdict=verdict if complete or verdict != "clean" else "sampled",
            complete=complete,
            strategy=self.strategy,
            executions=self.executions,
            blocked=self.blocked,
            seconds=time.monotonic() - self.began,
            bounds=bounds,
            outcome=self.found[0] if self.found else None,
            schedule=self.found[1] if self.found else None,
            interrupted=interrupted,
        )

    def _once(self, strategy: str, picker: Picker, *, unbounded: bool = False) -> bool:
        """One execution; whether it found something."""
        self.strategy = strategy
        recorder = Recorder(picker)
        outcome = self.program.once(recorder, unbounded=unbounded)
        self.executions += 1
        self.blocked += outcome.halted is not None
        if not self.steps:
            self.steps = recorder.length
        if outcome.finding:
            self.found = outcome, attrs.evolve(recorder.schedule, unbounded=unbounded)
        self.tell(strategy, self.executions)
        return self.found is not None

    def _check_limits(self) -> None:
        if self.executions >= self.limits.executions or time.monotonic() - self.began > self.limits.seconds:
            raise Enough

    def _fair(self) -> None:
        """Whether it ends, however often somebody asks."""
        for turns in FAIR_TURNS:
            self._check_limits()
            if self._once("fair", Fair(turns), unbounded=True):
                return

    def _random(self) -> None:
        for number in range(self.limits.random):
            self._check_limits()
            if self._once(
                "pct", Pct(self.seed, number, PCT_DEPTHS[number % len(PCT_DEPTHS)], max(self.steps, 50))
            ):
                return

    def _all(self, search: Search) -> bool:
        """Whether everything was covered."""
        while True:
            self._check_limits()
            if self._once(search.strategy, search):
                return False
            if not search.back_up():
                return True

    def _bounded(self, alone: bool) -> int:
        """The most preemptions of which all schedules were covered; -1: none."""
        covered = -1
        half = attrs.evolve(
            self.limits, seconds=self.limits.seconds * 1.5, executions=self.limits.executions * 3 // 2
        )
        self.limits = self.limits if alone else half
        try:
            for bound in range(self.limits.preemptions + 1):
                if not self._all(Search("bounded", bound)):
                    break
                covered = bound
        except Enough:
            pass
        return covered


def search(
    program: Explored,
    strategy: str = "portfolio",
    *,
    limits: Limits | None = None,
    seed: int = 0,
    tell: Callable[[str, int], None] | None = None,
) -> Verdict:
    """Look for a schedule of ``program`` that breaks something. ``tell(strategy, executions)`` after each execution."""
    return Exploration(program, limits or Limits(), seed, tell or (lambda strategy, executions: None)).run(
        strategy
    )


def shrink(program: Explored, schedule: Schedule, outcome: Outcome) -> tuple[Schedule, int]:
    """A schedule with as few exceptions as can be that breaks the same invariant; and how many executions that took."""
    tries = 0
    items: list[tuple[str, tuple[int, int], int]] = [
        *(("turn", at, to) for at, to in schedule.turns.items()),
        *(("value", at, to) for at, to in schedule.values.items()),
    ]
    best = schedule

    def fails(some: list[tuple[str, tuple[int, int], int]]) -> bool:
        nonlocal best, tries
        tries += 1
        advice = Schedule(
            {at: to for kind, at, to in some if kind == "turn"},
            {at: to for kind, at, to in some if kind == "value"},
        )
        recorder = Recorder(Replay(advice, strict=False))
        again = program.once(recorder)
        if not again.finding or again.invariant != outcome.invariant:
            return False
        if recorder.schedule.size <= best.size:
            best = recorder.schedule
        return True

    size = max(len(items) // 2, 1)
    while items and size:
        for start in _starts(len(items), size):
            rest = items[:start] + items[start + size :]
            if fails(rest):
                items = rest
                break
        else:
            size //= 2
            continue
        size = min(size, max(len(items) // 2, 1))
    return best, tries


def _starts(length: int, size: int) -> Iterator[int]:
    return iter(range(0, length, size))
