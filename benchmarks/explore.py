"""How many executions a second the explorer makes, and where the time of one goes.

The scenario is the restart race of 2004 in its cured form: two tasks (and the program that one of them interrupts), 75
operations an execution, searched with source sets on the real core with an architecture and the sanitizer.

A computer that is busy, or slow, is slow at everything, so the rate is also told against a plain Python loop that runs
between the executions: that ratio is what can be compared between two computers, and is held to a target. The other
reference is what an explorer would do that did not put its machine back: make a new one for each execution.

Where the time goes is sampled: each millisecond of CPU time the stack is looked at, and belongs to the innermost of
the parts below that is on it. They add up to all of it.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType

from benchmarks.measure import Row, Target
from benchmarks.workloads import Lab
from polymmu.description.load_scenario import load_scenario
from polymmu.exploration.explorer import Limits, search
from polymmu.exploration.scenario import Explored
from polymmu.exploration.search import Search

__all__ = ["PARTS", "explore", "part_of"]

SCENARIO, VARIANT, MACHINE = "001-restart-vma-reused", "fixed", "x86_64"
EXECUTIONS = 300
SAMPLES = 4000
LOOP = 10_000
TARGET = Target(0.15)
"""Executions in the time of one pass of ``loop``: 70 % of what was measured."""

OWNERS = (
    ("polymmu.sanitize", "sanitizer"),
    ("polymmu.sched.lockdep", "sanitizer"),
    ("polymmu.exploration.restore", "restore"),
    ("polymmu.exploration.search", "analysis"),
    ("polymmu.exploration.happens_before", "analysis"),
    ("polymmu.exploration.schedule", "analysis"),
)
"""Whatever these call is theirs, too."""
POINTS = ("polymmu.sched.exploring", "polymmu.exploration.watch", "polymmu.exploration.scenario")
"""Theirs is what they do themselves: the driver is also below every task."""
KERNEL = (
    "polymmu.mm",
    "polymmu_",
    "polymmu.machine",
    "polymmu.workload",
    "polymmu.defaults",
    "polymmu.sched.locks",
)
LAST = "give_up"
"""What takes everything down, to see that nothing stays."""
PARTS = ("points", "mm code", "the end", "sanitizer", "restore", "analysis")


def part_of(frame: FrameType | None) -> str:
    """Whose the innermost ``frame`` of a stack is."""
    part = ""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        for owner, its in OWNERS:
            if module.startswith(owner):
                return its
        if not part and module.startswith(POINTS):
            part = "points"
        elif not part and module.startswith(KERNEL):
            part = "mm code"
        if part == "mm code" and frame.f_code.co_name == LAST:
            return "the end"
        frame = frame.f_back
    return part or "points"


def sampled(program: Explored, samples: int) -> Counter[str]:
    """How many samples of a search of ``program`` belong to which part."""
    found: Counter[str] = Counter()

    def look(number: int, frame: FrameType | None) -> None:
        found[part_of(frame)] += 1

    outer = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    try:
        while found.total() < samples:
            search(program, "dpor", limits=Limits(executions=EXECUTIONS, seconds=3600))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, outer)
    return found


def loop() -> None:
    """Work that only the interpreter does."""
    counts: dict[int, int] = {}
    for n in range(LOOP):
        counts[n & 255] = counts.get(n & 127, 0) + n


def least(rounds: int, work: Callable[[], object]) -> float:
    """CPU seconds of ``work`` in the fastest of several rounds: what a busy host adds is not its."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def rebuilt() -> None:
    """An execution on a machine of its own."""
    Explored(MACHINE, load_scenario(SCENARIO), variant=VARIANT).once(Search())


def explore(lab: Lab) -> list[Row]:
    """Executions per CPU second, against a plain loop and against machines made anew, and the parts of the time."""
    program = Explored(MACHINE, load_scenario(SCENARIO), variant=VARIANT)
    executions = lab.sized(EXECUTIONS, 2)
    limits = Limits(executions=executions, seconds=3600)
    search(program, "dpor", limits=limits)
    each, passes, anew = [], [], []
    for _ in range(lab.rounds):
        each.append(least(1, lambda: search(program, "dpor", limits=limits)) / executions)
        passes.append(least(5, loop))
        anew.append(least(1, rebuilt))
    rate = 1 / min(each)
    rows = [
        Row(
            group="explore",
            what="executions of the restart race",
            figure=rate,
            unit="per CPU second",
            ratio=min(passes) / min(each),
            reference="a plain loop",
            target=TARGET,
            note=f"fastest of {lab.rounds}; the loop took {min(passes) * 1e6:.0f} us",
        ),
        Row(
            group="explore",
            what="the same on a new machine each",
            figure=1 / min(anew),
            unit="per CPU second",
            ratio=min(anew) / min(each),
            reference="slower",
        ),
    ]
    found = sampled(program, lab.sized(SAMPLES, 50))
    rows += [
        Row(group="where its time goes", what=part, figure=100 * found[part] / found.total(), unit="%")
        for part in PARTS
    ]
    return rows
