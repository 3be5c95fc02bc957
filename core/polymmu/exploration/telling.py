"""How a verdict is shown: as JSON, and as text with what was covered or what broke."""

from __future__ import annotations

import textwrap
from typing import Any

import attrs

from polymmu.exploration.columns import count, finding_lines, told_text, wrapped
from polymmu.exploration.handover import Broken, OnFixed
from polymmu.exploration.verdict import Left, Verdict
from polymmu.exploration.witness import Conflict, Told

__all__ = ["duration", "left_text", "steps_of", "verdict_dict", "verdict_text"]

MODELS = {"sc": "sequential consistency"}


# ------------------------------------------------------------------ JSON
def steps_of(told: Told) -> list[dict[str, Any]]:
    """Every step: cpu, task, op, where, detail, the step of the scenario and the locks held."""
    return [
        {
            "cpu": step.cpu,
            "task": step.name,
            "op": step.kind,
            "where": step.place,
            "detail": step.what,
            "doing": step.doing,
            "locks_held": list(step.locks),
        }
        for step in told.steps
    ]


def verdict_dict(
    verdict: Verdict, scenario: str, machine: str, broken: Broken | None, replay: str | None
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
        "cut": verdict.cut,
        "bounds": dict(verdict.bounds),
        "seconds": round(verdict.seconds, 3),
        "left": None if verdict.left is None else attrs.asdict(verdict.left),
        "violation": None,
    }
    if verdict.interrupted:
        value["partial"] = True
    if broken is not None:
        value["violation"] = _violation(verdict, broken, scenario, replay)
    return value


def _violation(verdict: Verdict, broken: Broken, scenario: str, replay: str | None) -> dict[str, Any]:
    told = broken.told
    schedule = told.schedule
    return {
        "invariant": told.outcome.invariant,
        "message": told.outcome.finding,
        "found_by": {"strategy": verdict.strategy, "how": verdict.how, "execution": verdict.executions},
        "shrunk": {
            "from": {"switches": len(broken.found.turns), "choices": len(broken.found.values)},
            "executions": broken.shrinking,
        },
        "schedule": {
            "switches": len(schedule.turns),
            "choices": len(schedule.values),
            "hand_overs": schedule.hand_overs,
            **schedule.to_dict(),
        },
        "steps": steps_of(told),
        "wrong_step": told.wrong,
        "cause_step": told.cause,
        "conflicts": [_conflict(told, conflict) for conflict in told.conflicts],
        "cycle": {"from": told.cycle[0], "steps": told.cycle[1]} if told.cycle[1] else None,
        "on_fixed": _on_fixed_dict(broken.on_fixed),
        "replay": replay,
        "pytest": _pytest(scenario, replay),
    }


def _conflict(told: Told, conflict: Conflict) -> dict[str, Any]:
    sides = []
    for number in (conflict.first, conflict.second):
        step = told.steps[number]
        sides.append(
            {
                "step": number,
                "cpu": step.cpu,
                "task": step.name,
                "op": step.kind,
                "where": step.place,
                "locks_held": list(step.locks),
            }
        )
    return {"object": conflict.what, "first": sides[0], "second": sides[1]}


def _on_fixed_dict(on_fixed: OnFixed | None) -> dict[str, Any] | None:
    if on_fixed is None:
        return None
    return {
        "verdict": "violation"
        if on_fixed.outcome.finding
        else "clean"
        if on_fixed.outcome.halted is None
        else "bounded",
        "message": on_fixed.outcome.finding,
        "followed": on_fixed.followed,
        "parts_at": None if on_fixed.parts_at < 0 else on_fixed.parts_at,
        "instead": on_fixed.instead,
    }


def _pytest(scenario: str, replay: str | None) -> str | None:
    """A test to paste: it fails for as long as the schedule breaks anything."""
    if replay is None:
        return None
    name = "".join(letter if letter.isalnum() else "_" for letter in scenario)
    return f"def test_{name}() -> None:\n    polymmu.replay({replay!r}, strict=False).check()"


# ------------------------------------------------------------------ text
def verdict_text(
    verdict: Verdict, scenario: str, machine: str, broken: Broken | None, replay: str | None
) -> str:
    """The same for people."""
    head = f"scenario {scenario}, machine {machine}, memory model: {_model(verdict)}"
    made = f"{verdict.executions} executions, {verdict.seconds:.2f} s"
    choices = ", ".join(f"{name} {n}" for name, n in verdict.bounds["choices"].items()) or "none"
    if broken is not None:
        return _broken_text(verdict, head, broken, scenario, replay)
    more = f"had more than {verdict.bounds.get('steps')} steps and {{}} ended there (--steps)"
    claims = {
        "clean": "clean: every interleaving was covered (up to the order of steps that commute)",
        "bounded": f"bounded: every schedule of at most {verdict.bounds['preemptions']} preemptions was covered; "
        "beyond that nothing is claimed"
        if "preemptions" in verdict.bounds
        else f"bounded: an execution {more.format('was')}; nothing is claimed of what may follow",
        "sampled": "sampled: these executions broke nothing; that is all that is claimed",
    }
    lines = [claims[verdict.verdict], head, f"{made}; budgets of choices: {choices}"]
    if verdict.cut:
        lines.append(
            f"{count(verdict.cut, 'execution')} {more.format('was' if verdict.cut == 1 else 'were')}"
        )
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


def _model(verdict: Verdict) -> str:
    if verdict.bounds["memory_model"] == "tso":
        return f"total store order, buffers of {verdict.bounds['store_buffer']} stores"
    sc = "sequential consistency"
    if verdict.bounds["hardware_memory_model"] == "weak":
        return f"{sc}; this architecture's own model is weaker and is not modelled"
    return sc


def _broken_text(verdict: Verdict, head: str, broken: Broken, scenario: str, replay: str | None) -> str:
    told = broken.told
    how = f" ({verdict.how})" if verdict.how else ""
    lines = [
        *finding_lines(told),
        head,
        f"found by {verdict.strategy}{how}, execution {verdict.executions}, {verdict.seconds:.2f} s; {_shrunk(broken)}",
        "",
        *told_text(told),
    ]
    if broken.on_fixed is not None:
        answer = _on_fixed_text(broken.on_fixed, told.schedule.size)
        lines += ["", *wrapped(f"would the fixed variant fail here? {answer}")]
    if replay is not None:
        lines += ["", f"again: polymmu replay {replay}", "as a test:", ""]
        lines.append(textwrap.indent(f"import polymmu\n\n{_pytest(scenario, replay)}", "    "))
    if broken.interrupted:
        lines += ["", "interrupted: it may be longer than it need be"]
    return "\n".join(lines)


def _shrunk(broken: Broken) -> str:
    if broken.told.cycle[1]:
        return "it goes on for ever"
    to, found = broken.told.schedule, broken.found
    size = f"{count(len(to.turns), 'switch', 'es')}, {count(len(to.values), 'choice')}"
    if found.size == to.size:
        return size
    then = f"{len(found.turns)} and {len(found.values)}"
    return f"shrunk to {size} (from {then}, in {count(broken.shrinking, 'execution')})"


def _on_fixed_text(on_fixed: OnFixed, exceptions: int) -> str:
    if on_fixed.outcome.finding:
        return f"yes: {on_fixed.outcome.finding}"
    if on_fixed.outcome.halted is not None:
        return "unknown: it goes on for more steps than --steps allows"
    if on_fixed.parts_at < 0:
        return "no: clean on this schedule"
    went = f"at step {on_fixed.parts_at} {on_fixed.instead or 'it is over'} instead"
    if on_fixed.followed >= exceptions:
        return f"no: clean on this schedule ({went})"
    return f"no: it cannot follow: {went}; clean to its end"
