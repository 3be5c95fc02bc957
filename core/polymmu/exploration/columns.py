"""A broken schedule in columns, one per CPU, as kernel commit messages show races; and which accesses conflict.

First reading: ``told_text``, ``_rows``, ``_folded``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import attrs

from polymmu.exploration.witness import Conflict, Seen, Told

__all__ = ["count", "finding_lines", "told_text", "wrapped"]

WIDTH = 46
LINE = 118
SHOWN = 60
"""Rows shown from the beginning, and from the end, of a schedule that goes on for ever."""
CONFLICTS = 6
"""Conflicts shown; all are in the JSON."""
TOGETHER = 5
"""Reads told together with the name of each: as many as a walk has levels."""
TAKES = {"lock": "unlock", "read_lock": "read_unlock"}
UNSAID = ("begin", "cond_resched")
USER_MODE = "user mode"
"""Between two calls: said only where it matters."""


def finding_lines(told: Told) -> list[str]:
    """What was broken, by which event, after which other one."""
    violation = told.outcome.violation
    if violation is None:
        return wrapped(f"{told.outcome.invariant or 'not as the scenario says'}: {told.outcome.finding}")
    lines = wrapped(f"{violation.invariant}: {violation.second.what}")
    for word, event in (("seen", violation.second), ("after", violation.first)):
        said = "" if event is violation.second else event.what
        who = f"{event.task} on CPU {event.cpu}" if event.task != "?" else ""
        lines += wrapped(f"  {word}: {', '.join(filter(None, (said, who, event.place)))}")
    return lines


def count(n: int, what: str, plural: str = "s") -> str:
    """``1 step``, ``2 steps``."""
    return f"{n} {what}{'' if n == 1 else plural}"


def wrapped(text: str) -> list[str]:
    """``text`` in lines, further ones indented."""
    indent = " " * (len(text) - len(text.lstrip()) + 4)
    return textwrap.wrap(text, LINE, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


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
        lines += wrapped(f"     at the end  <-- {_why(told)}")
    elif end < len(told.steps):
        lines.append(f"     ... {count(len(told.steps) - end, 'step')} more")
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
    heads, _, tails = zip(*(name.partition(" of ") for name in words), strict=True)
    if len(set(tails)) == 1 and len(words) <= TOGETHER:
        return " of ".join(filter(None, (", ".join(heads), tails[0])))
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
