"""A told schedule as a timeline for Perfetto: a process per CPU, a thread per task, a slice per step.

Each step takes ten microseconds, for in a search time is nothing but order. The steps of one call of the scenario are
in a slice of its own; locks are spans from when they were taken until they were given back; arrows go from an
interrupt, or a callback's registration, to where it is taken; the violation is a moment that is marked everywhere.
"""

from __future__ import annotations

from pathlib import Path

from polymmu.exploration.witness import Seen, Told
from polymmu.timeline import Timeline

__all__ = ["timeline_of", "write_timeline"]

STEP = 10
ON_TOP = 1 << 16
"""Thread of what comes on top of a CPU's tasks; one operation each, so they never overlap."""


def timeline_of(told: Told) -> Timeline:
    """The timeline of ``told``."""
    timeline = Timeline()
    for cpu, thread, name in sorted({(each.cpu, _thread(each), _title(each)) for each in told.steps}):
        timeline.track(cpu + 1, thread, f"CPU {cpu}", name)
    _calls(timeline, told)
    _locks(timeline, told)
    _arrows(timeline, told)
    if told.outcome.finding:
        number = told.wrong if told.wrong >= 0 else len(told.steps) - 1
        at = told.steps[number] if told.steps else None
        place = (at.cpu + 1, _thread(at)) if at is not None else (1, 0)
        timeline.instant(
            *place,
            number * STEP + STEP - 1,
            told.outcome.invariant or "violation",
            message=told.outcome.finding,
        )
    return timeline


def write_timeline(path: Path, told: Told) -> None:
    """Write it. Raises UserMistake where that cannot be."""
    timeline_of(told).write(path)


def _thread(step: Seen) -> int:
    return step.task if step.in_context else ON_TOP


def _title(step: Seen) -> str:
    return step.name if step.in_context else "interrupts and callbacks"


def _calls(timeline: Timeline, told: Told) -> None:
    """A slice for each step, within one for each call that the scenario makes."""
    open_calls: dict[int, tuple[int, str]] = {}
    for number, step in enumerate(told.steps):
        if step.kind == "begin":
            continue
        pid, tid, ts = step.cpu + 1, _thread(step), number * STEP
        known = open_calls.get(step.task)
        if known is None or known[1] != step.doing:
            if known is not None:
                timeline.end(pid, tid, known[0])
                del open_calls[step.task]
            if step.doing:
                timeline.begin(pid, tid, ts, step.doing)
        timeline.begin(
            pid, tid, ts, f"{step.kind} {step.what}".strip(), where=step.place, locks=list(step.locks)
        )
        timeline.end(pid, tid, ts + STEP)
        if step.doing:
            open_calls[step.task] = ts + STEP, step.doing
    for task, (ts, _) in open_calls.items():
        last = next(step for step in reversed(told.steps) if step.task == task)
        timeline.end(last.cpu + 1, _thread(last), ts)


def _locks(timeline: Timeline, told: Told) -> None:
    taken: dict[tuple[int, str], int] = {}
    spans: list[tuple[int, int, int, str]] = []
    for number, step in enumerate(told.steps):
        held = {*step.locks, *([step.what] if step.kind in ("lock", "read_lock") else [])}
        for task, lock in [key for key in taken if key[0] == step.task and key[1] not in held]:
            spans.append((taken.pop((task, lock)), number * STEP + STEP, number, lock))
        for lock in sorted(held):
            taken.setdefault((step.task, lock), number * STEP)
    end = len(told.steps) * STEP
    for (task, lock), since in taken.items():
        last = next(n for n in reversed(range(len(told.steps))) if told.steps[n].task == task)
        spans.append((since, end, last, lock))
    for number, (since, until, at, lock) in enumerate(sorted(spans)):
        step = told.steps[at]
        timeline.span(step.cpu + 1, _thread(step), since, until, lock, category="lock", number=number)


def _arrows(timeline: Timeline, told: Told) -> None:
    begun: set[int] = set()
    for number, step in enumerate(told.steps):
        if step.in_context or step.task in begun or step.maker < 0:
            continue
        begun.add(step.task)
        maker = told.steps[step.maker]
        middle = STEP // 2
        timeline.arrow(
            step.task,
            maker.kind,
            (maker.cpu + 1, _thread(maker), step.maker * STEP + middle),
            (step.cpu + 1, _thread(step), number * STEP + middle),
        )
