"""How a broken schedule is shown: a column per CPU, as kernel commit messages show races; and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from polymmu.exploration.explorer import Left, Verdict
from polymmu.exploration.schedule import Schedule, Step

__all__ = ["columns", "duration", "left_text", "steps_of", "verdict_dict", "verdict_text"]

Names = Mapping[int, tuple[str, int]]
WIDTH = 38
SHOWN = 60
"""Steps shown from the beginning, and from the end, of a schedule that goes on for ever."""


def steps_of(schedule: Schedule, names: Names) -> list[dict[str, Any]]:
    """Every step: cpu, task, op, where, detail."""
    return [
        {
            "cpu": names[step.task][1],
            "task": names[step.task][0],
            "op": step.kind,
            "where": step.place,
            "detail": step.what,
        }
        for step in schedule.steps
    ]


def columns(schedule: Schedule, names: Names) -> str:
    """The steps in the order in which they happened, each below its CPU; reads next to each other in one line."""
    cpus = sorted({names[step.task][1] for step in schedule.steps})
    lines = [
        " ".join(f"CPU {cpu}".ljust(WIDTH) for cpu in cpus).rstrip(),
        " ".join("=" * WIDTH for _ in cpus),
    ]
    rows = _folded(schedule.steps, names)
    left_out = len(rows) - 2 * SHOWN
    for number, (text, cpu) in enumerate(rows):
        if left_out > 0 and SHOWN <= number < SHOWN + left_out:
            if number == SHOWN:
                lines.append(f"... {left_out} more ...")
            continue
        lines.append((" " * (WIDTH + 1) * cpus.index(cpu) + text).rstrip())
    return "\n".join(lines)


def _folded(steps: Sequence[Step], names: Names) -> list[tuple[str, int]]:
    rows: list[tuple[str, int]] = []
    last: tuple[int, str, str] | None = None
    for step in steps:
        if step.kind in ("begin", "cond_resched", "end"):
            continue
        function = step.place.rpartition(" ")[2]
        key = (step.task, step.kind, function)
        if key == last and step.kind == "read":
            continue
        last = key
        text = f"{step.kind} {step.what}".strip()
        rows.append((f"{text}  ({function})" if function else text, names[step.task][1]))
    return rows


def verdict_dict(
    verdict: Verdict, scenario: str, machine: str, names: Names, replay: str | None
) -> dict[str, Any]:
    """The value of ``polymmu explore --format json``."""
    value: dict[str, Any] = {
        "schema": 1,
        "scenario": scenario,
        "machine": machine,
        "strategy": verdict.strategy,
        "verdict": verdict.verdict,
        "complete": verdict.complete,
        "executions": verdict.executions,
        "blocked": verdict.blocked,
        "bounds": dict(verdict.bounds),
        "seconds": round(verdict.seconds, 3),
        "left": None if verdict.left is None else attrs.asdict(verdict.left),
        "violation": None,
    }
    if verdict.interrupted:
        value["partial"] = True
    if verdict.outcome is not None and verdict.schedule is not None:
        value["violation"] = {
            "invariant": verdict.outcome.invariant,
            "message": verdict.outcome.finding,
            "schedule": {"switches": verdict.schedule.switches, **verdict.schedule.to_dict()},
            "steps": steps_of(verdict.schedule, names),
            "replay": replay,
        }
    return value


def _memory_model(verdict: Verdict) -> str:
    if verdict.bounds["memory_model"] == "tso":
        return f"total store order, buffers of {verdict.bounds['store_buffer']} stores"
    sc = "sequential consistency"
    if verdict.bounds["hardware_memory_model"] == "weak":
        return f"{sc}; this architecture's own model is weaker and is not modelled"
    return sc


def verdict_text(verdict: Verdict, scenario: str, machine: str, names: Names, replay: str | None) -> str:
    """The same for people."""
    head = f"scenario {scenario}, machine {machine}, memory model: {_memory_model(verdict)}"
    count = f"{verdict.executions} executions, {verdict.seconds:.2f} s"
    choices = ", ".join(f"{name} {n}" for name, n in verdict.bounds["choices"].items()) or "none"
    if verdict.outcome is not None and verdict.schedule is not None:
        exceptions = (
            f"{len(verdict.schedule.turns)} switches out of turn, {len(verdict.schedule.values)} choices"
        )
        lines = [
            verdict.outcome.finding,
            head,
            f"found by {verdict.strategy}, {count}; shrunk to {exceptions}",
            "",
        ]
        lines.append(columns(verdict.schedule, names))
        if replay is not None:
            lines += ["", f"again: polymmu replay {replay}"]
        return "\n".join(lines)
    claims = {
        "clean": "clean: every interleaving was covered (up to the order of steps that commute)",
        "bounded": f"bounded: every schedule of at most {verdict.bounds.get('preemptions')} preemptions was covered; "
        "beyond that nothing is claimed",
        "sampled": "sampled: these executions broke nothing; that is all that is claimed",
    }
    lines = [claims[verdict.verdict], head, f"{count}; budgets of choices: {choices}"]
    if verdict.interrupted:
        lines.append("interrupted: this is what was covered until then")
    if verdict.left is not None:
        lines.append(f"to cover every interleaving: {left_text(verdict.left)}")
    return "\n".join(lines)


def left_text(left: Left) -> str:
    """An estimate for people."""
    return f"about {left.executions} executions (+- {left.error}) left, {duration(left.seconds)} at this rate"


def duration(seconds: float) -> str:
    """Two units at most."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
