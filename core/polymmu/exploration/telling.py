"""How a verdict is shown: a broken schedule with a column per CPU, as kernel commit messages show races; and as JSON.

First reading: ``told_text``, ``_rows``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from polymmu.exploration.explorer import Verdict
from polymmu.exploration.handover import Broken, OnFixed
from polymmu.exploration.witness import Conflict, Seen, Told

__all__ = ["steps_of", "told_text", "verdict_dict", "verdict_text"]

WIDTH = 46
LINE = 118
SHOWN = 60
"""Rows shown from the beginning, and from the end, of a schedule that goes on for ever."""
CONFLICTS = 6
"""Conflicts shown; all are in the JSON."""
TAKES = {"lock": "unlock", "read_lock": "read_unlock"}
UNSAID = ("begin", "cond_resched")
USER_MODE = "user mode"
"""Between two calls: said only where it matters."""
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
        "bounds": dict(verdict.bounds),
        "seconds": round(verdict.seconds, 3),
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
        "verdict": "violation" if on_fixed.outcome.finding else "clean",
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
    count = f"{verdict.executions} executions, {verdict.seconds:.2f} s"
    choices = ", ".join(f"{name} {n}" for name, n in verdict.bounds["choices"].items()) or "none"
    if broken is not None:
        return _broken_text(verdict, head, broken, scenario, replay)
    claims = {
        "clean": "clean: every interleaving was covered (up to the order of steps that commute)",
        "bounded": f"bounded: every schedule of at most {verdict.bounds.get('preemptions')} preemptions was covered; "
        "beyond that nothing is claimed",
        "sampled": "sampled: these executions broke nothing; that is all that is claimed",
    }
    return "\n".join([claims[verdict.verdict], head, f"{count}; budgets of choices: {choices}"])


def _model(verdict: Verdict) -> str:
    model = str(verdict.bounds.get("memory_model", "sc"))
    return MODELS.get(model, model)


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
        lines += ["", *_wrapped(f"would the fixed variant fail here? {answer}")]
    if replay is not None:
        lines += ["", f"again: polymmu replay {replay}", "as a test:", ""]
        lines.append(textwrap.indent(f"import polymmu\n\n{_pytest(scenario, replay)}", "    "))
    if broken.interrupted:
        lines += ["", "interrupted: it may be longer than it need be"]
    return "\n".join(lines)


def finding_lines(told: Told) -> list[str]:
    """What was broken, by which event, after which other one."""
    violation = told.outcome.violation
    if violation is None:
        return _wrapped(f"{told.outcome.invariant or 'not as the scenario says'}: {told.outcome.finding}")
    lines = _wrapped(f"{violation.invariant}: {violation.second.what}")
    for word, event in (("seen", violation.second), ("after", violation.first)):
        said = "" if event is violation.second else event.what
        who = f"{event.task} on CPU {event.cpu}" if event.task != "?" else ""
        lines += _wrapped(f"  {word}: {', '.join(filter(None, (said, who, event.place)))}")
    return lines


def _shrunk(broken: Broken) -> str:
    if broken.told.cycle[1]:
        return "it goes on for ever"
    to, found = broken.told.schedule, broken.found
    size = f"{_count(len(to.turns), 'switch', 'es')}, {_count(len(to.values), 'choice')}"
    if found.size == to.size:
        return size
    then = f"{len(found.turns)} and {len(found.values)}"
    return f"shrunk to {size} (from {then}, in {_count(broken.shrinking, 'execution')})"


def _count(n: int, what: str, plural: str = "s") -> str:
    return f"{n} {what}{'' if n == 1 else plural}"


def _on_fixed_text(on_fixed: OnFixed, exceptions: int) -> str:
    if on_fixed.outcome.finding:
        return f"yes: {on_fixed.outcome.finding}"
    if on_fixed.parts_at < 0:
        return "no: clean on this schedule"
    went = f"at step {on_fixed.parts_at} {on_fixed.instead or 'it is over'} instead"
    if on_fixed.followed >= exceptions:
        return f"no: clean on this schedule ({went})"
    return f"no: it cannot follow: {went}; clean to its end"


def _wrapped(text: str) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()) + 4)
    return textwrap.wrap(text, LINE, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


# ------------------------------------------------------------------ columns
def told_text(told: Told) -> list[str]:
    """The steps in columns, and which of them conflict."""
    return [*_columns(told), *_conflicts(told)]


@attrs.frozen
class Row:
    """A line in a CPU's column. ``number``: of its step, -1 for a headline; ``mark``: why it matters."""

    number: int
    cpu: int
    text: str
    mark: str = ""


def _columns(told: Told) -> list[str]:
    cpus = sorted({step.cpu for step in told.steps})
    start, period = told.cycle
    lines = [
        " " * 5 + " ".join(f"CPU {cpu}".ljust(WIDTH) for cpu in cpus).rstrip(),
        " " * 5 + " ".join("=" * WIDTH for _ in cpus),
    ]
    if period:
        lines += _shown(list(_rows(told, 0, start)), cpus)
        times = (len(told.steps) - start) // period
        lines.append(f"     ---- these {period} steps repeat ({times} times here):")
        lines += _shown(list(_rows(told, start, start + period)), cpus)
        return [*lines, f"     ---- and again  <-- {_why(told)}"]
    end = told.wrong + 1 if told.wrong >= 0 else len(told.steps)
    lines += _shown(list(_rows(told, 0, end)), cpus)
    if told.wrong < 0 and told.outcome.finding:
        lines += _wrapped(f"     at the end  <-- {_why(told)}")
    elif end < len(told.steps):
        lines.append(f"     ... {_count(len(told.steps) - end, 'step')} more")
    return lines


def _shown(rows: Sequence[Row], cpus: Sequence[int]) -> list[str]:
    lines = []
    left_out = len(rows) - 2 * SHOWN
    for place, row in enumerate(rows):
        if left_out > 1 and SHOWN <= place < SHOWN + left_out:
            if place == SHOWN:
                lines.append(f"     ... {left_out} more ...")
            continue
        number = f"{row.number:4}" if row.number >= 0 else "    "
        mark = f"  <-- {row.mark}" if row.mark else ""
        column = " " * ((WIDTH + 1) * cpus.index(row.cpu))
        lines.append(f"{number} {column}{row.text}{mark}".rstrip())
    return lines


def _why(told: Told) -> str:
    violation = told.outcome.violation
    if violation is None:
        return told.outcome.finding
    what = violation.second.what
    return f"{violation.invariant}: {what}" if len(what) <= WIDTH * 2 else violation.invariant


def _mark(told: Told, number: int) -> str:
    violation = told.outcome.violation
    marks = []
    if number == told.cause and violation is not None:
        marks.append(f"first: {violation.first.what}")
    if number == told.wrong:
        marks.append(_why(told))
    return "; ".join(marks)


def _rows(told: Told, begin: int, end: int) -> Iterator[Row]:
    """Steps ``begin`` to ``end``, a headline where a task goes on to the scenario's next step, and what belongs
    together in one line."""
    doing: dict[int, str] = {}
    number = begin
    while number < end:
        step = told.steps[number]
        if step.doing and doing.get(step.task) != step.doing and step.function != "run":
            doing[step.task] = step.doing
            yield Row(-1, step.cpu, f"{step.name}: {step.doing}")
        length, text = _folded(told, number, end)
        mark = "; ".join(filter(None, (_mark(told, each) for each in range(number, number + length))))
        if mark or (text and text != USER_MODE):
            yield Row(number, step.cpu, f"  {text or step.kind}", mark)
        number += length


def _folded(told: Told, number: int, end: int) -> tuple[int, str]:
    """How many steps from ``number`` on make one line, and that line; empty for what says nothing."""
    steps = told.steps
    step = steps[number]
    function = f"  ({step.function})" if step.function else ""
    if step.kind in UNSAID:
        return 1, ""
    if step.kind == "user":
        return 1, USER_MODE if step.function == "run" else f"user access{function}"
    mine = 1
    while number + mine < end and steps[number + mine].task == step.task and mine < 3:
        mine += 1
    if step.kind in TAKES:
        for n in range(1, mine):
            last = steps[number + n]
            if last.kind == TAKES[step.kind] and last.what == step.what:
                inside = steps[number + 1]
                text = (
                    f"{step.what} taken and dropped" if n == 1 else f"{_plain(inside)} under {_short(step)}"
                )
                return n + 1, text + f"  ({(inside if n > 1 else step).function})"
    if step.kind == "read":
        n = 1
        while number + n < end and _same_read(steps[number + n], step) and not _mark(told, number + n):
            n += 1
        return n, f"read {_together([each.what for each in steps[number : number + n]])}{function}"
    return 1, f"{_plain(step)}{function}"


def _together(names: Sequence[str]) -> str:
    """Several entries in a few words: ``pgd, pud, pmd of 0x0 in mm a``."""
    words = list(dict.fromkeys(names))
    heads, tails = zip(*(name.partition(" ")[::2] for name in words), strict=True)
    if len(set(tails)) == 1:
        return f"{', '.join(heads)} {tails[0]}".strip()
    return f"{words[0]} and {len(words) - 1} more"


def _same_read(other: Seen, step: Seen) -> bool:
    return (other.task, other.kind, other.function) == (step.task, step.kind, step.function)


def _plain(step: Seen) -> str:
    return f"{step.kind} {step.what}".strip()


def _short(step: Seen) -> str:
    """A lock by its first word."""
    return step.what.partition(" ")[0]


# ------------------------------------------------------------------ conflicts
def _conflicts(told: Told) -> list[str]:
    chosen = _chosen(told)
    if not chosen:
        return []
    lines = ["", "accesses that conflict (either could have come first):"]
    for conflict in chosen:
        lines.append(f"  {conflict.what}")
        for number in (conflict.first, conflict.second):
            step = told.steps[number]
            held = ", ".join(step.locks) or "nothing"
            lines.append(
                f"    {number:4} CPU {step.cpu} {step.kind} in {step.place or step.name}; holds {held}"
            )
    return lines


def _chosen(told: Told) -> list[Conflict]:
    """Those that tell most, of those before it was too late: data before locks, the last first, one for each pair of
    places."""
    seen: dict[tuple[str, str, str], Conflict] = {}
    for conflict in reversed(told.conflicts):
        if 0 <= told.wrong < conflict.second:
            continue
        places = (told.steps[conflict.first].place, told.steps[conflict.second].place)
        seen.setdefault((conflict.what, *places), conflict)
    ranked = sorted(seen.values(), key=lambda each: told.steps[each.second].kind in (*TAKES, "trylock"))
    return ranked[:CONFLICTS]
