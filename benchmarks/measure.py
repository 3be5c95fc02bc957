"""How things are measured: taken in turns, medians, and rows that carry their own target.

A busy computer slows down everything that runs at that moment. So what is to be compared runs in turns, round
after round, and medians are compared: ``side_by_side``. The clock is this process's CPU time, which stands
still while something else has the processor; only whole processes are timed by the wall. What a measurement needs
is prepared outside the clock, afresh for each round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

__all__ = ["GIB", "KIB", "MIB", "TIB", "Row", "Subject", "Target", "once", "resident_bytes", "side_by_side"]

KIB, MIB, GIB, TIB = (1 << shift for shift in (10, 20, 30, 40))

Subject = Callable[[], Callable[[], object]]
"""Called outside the clock; what it returns is called once on the clock."""


@attrs.frozen
class Target:
    """What a row is held to: its ratio or, with ``of_figure``, its figure; at least ``bound`` or at most."""

    bound: float
    at_most: bool = False
    of_figure: bool = False

    def is_met(self, figure: float, ratio: float | None) -> bool:
        """Whether the row's value is on the right side of the bound."""
        value = figure if self.of_figure or ratio is None else ratio
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:,g}{'' if self.of_figure else 'x'}"


@attrs.frozen(kw_only=True)
class Row:
    """One line of the table. ``figure`` None: not measured, ``note`` says why. ``ratio`` is to ``reference``."""

    group: str
    what: str
    figure: float | None
    unit: str = ""
    ratio: float | None = None
    reference: str = ""
    target: Target | None = None
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without a target or a figure."""
        if self.target is None or self.figure is None:
            return None
        return self.target.is_met(self.figure, self.ratio)

    def to_dict(self) -> dict[str, Any]:
        """The row of ``--format json``."""
        return {
            "group": self.group,
            "what": self.what,
            "figure": self.figure,
            "unit": self.unit,
            "ratio": self.ratio,
            "reference": self.reference,
            "target": None if self.target is None else str(self.target),
            "met": self.is_met,
            "note": self.note,
        }


def once(subject: Subject) -> float:
    """CPU seconds of one prepared call. Garbage of the preparation is collected before, none during."""
    run = subject()
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        run()
        return time.process_time() - start
    finally:
        gc.enable()


def side_by_side(subjects: Mapping[str, Subject], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turns for ``rounds`` rounds after one round that only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(rounds + 1):
        for name, subject in subjects.items():
            taken = once(subject)
            if turn:
                seconds[name].append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def resident_bytes(field: str = "VmHWM") -> int:
    """This process's resident memory: ``VmRSS`` now, ``VmHWM`` at its peak (proc(5)). Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * KIB
    raise OSError(f"/proc/self/status has no {field}")
