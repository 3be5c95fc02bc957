"""The models of the ``.pml`` files beside this module, step for step, as programs of the exploring driver.

An outcome is what a model prints at its end, the first number being whether the rule was broken. Both tools make all of
them: SPIN by storing states, the explorer by source sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from polymmu.exploration.search import Blocked, Search
from polymmu.sched.access import Mode
from polymmu.sched.exploring import ExploringSched
from polymmu.sched.locks import Spinlock
from tests.explore.programs import FakeCpu

__all__ = ["MODELS", "VARIANTS", "outcomes"]

Outcome = tuple[int, ...]
Body = Callable[[], None]


@attrs.define
class Run:
    """One execution of a model: its tasks, and what came of it."""

    tasks: Sequence[Body]
    outcome: Callable[[], Outcome]


def restart(sched: ExploringSched, lock: Spinlock, variant: str) -> Run:
    """restart.pml."""
    at: dict[str, int] = {"a": 7, "b": 7, "slot": 0, "mark": 0, "bad": 0, "mapped": 0}

    def truncate() -> None:
        lock.lock()
        at["b" if at["slot"] else "a"] &= 4
        at["mark"] = 5
        lock.unlock()
        lock.lock()
        here = "b" if at["slot"] else "a"
        at[here] &= 3 if variant != "FIXED" or at["mark"] == 5 else 0
        at["bad"] = int(at[here] != 0)
        lock.unlock()

    def unmap() -> None:
        lock.lock()
        at["a"], at["slot"], at["mark"] = 0, 1, 0
        lock.unlock()

    def look() -> None:
        lock.lock()
        at["mapped"] = int(not at["slot"])
        lock.unlock()

    return Run((truncate, unmap, look), lambda: tuple(at[n] for n in ("bad", "a", "b", "slot", "mapped")))


def walk(sched: ExploringSched, lock: Spinlock, variant: str) -> Run:
    """walk.pml. Interrupts and RCU are the driver's own."""
    at = {"entry": 1, "live": 1, "saw": 0, "bad": 0}

    def walker() -> None:
        cpu = sched.cpu
        sched.point("irq_off", cpu)
        cpu.interrupts_enabled = False
        sched.point("read", "entry")
        at["saw"] = at["entry"]
        if at["saw"]:
            sched.point("read", "table")
            at["bad"] = int(not at["live"])
        sched.point("irq_on", cpu)
        cpu.interrupts_enabled = True

    def free() -> None:
        sched.did(Mode.WRITE, "table")
        at["live"] = 0

    def unmapper() -> None:
        sched.point("write", "entry")
        at["entry"] = 0
        if variant == "RCU":
            sched.call_rcu(free)
            return
        if variant == "IPI":
            sched.ipi(1, lambda cpu: None, 0)
        sched.point("write", "table")
        at["live"] = 0

    return Run((walker, unmapper), lambda: (at["bad"], at["saw"]))


def shootdown(sched: ExploringSched, lock: Spinlock, variant: str) -> Run:
    """shootdown.pml."""
    at = {"pte": 1, "tlb": 0, "freed": 0, "bad": 0, "uses": 0}

    def user() -> None:
        for _ in range(2):
            sched.point("write", "tlb")
            sched.did(Mode.READ, "pte")
            sched.did(Mode.READ, "page")
            if at["tlb"] or at["pte"]:
                at["tlb"] = 1
                at["uses"] += 1
                at["bad"] |= at["freed"]

    def step(what: str, name: str, value: int) -> None:
        sched.point("write", what)
        at[name] = value

    def unmapper() -> None:
        step("pte", "pte", 0)
        if variant == "EARLY":
            step("page", "freed", 1)
            step("tlb", "tlb", 0)
        else:
            step("tlb", "tlb", 0)
            step("page", "freed", 1)

    return Run((user, unmapper), lambda: (at["bad"], at["uses"], at["tlb"]))


def handover(sched: ExploringSched, lock: Spinlock, variant: str) -> Run:
    """handover.pml."""
    flag = [0, 0]
    at = {"inside": 0, "most": 0, "entered": 0}

    def body(me: int) -> Body:
        def show() -> None:
            sched.point("write", ("flag", me))
            flag[me] = 1

        def is_free() -> bool:
            sched.point("read", ("flag", 1 - me))
            return not flag[1 - me]

        def task() -> None:
            if variant == "LATE":
                free = is_free()
                show()
            else:
                show()
                free = is_free()
            if free:
                sched.point("write", "inside")
                at["inside"] += 1
                at["entered"] += 1
                at["most"] = max(at["most"], at["inside"])
                sched.point("write", "inside")
                at["inside"] -= 1
            sched.point("write", ("flag", me))
            flag[me] = 0

        return task

    return Run((body(0), body(1)), lambda: (int(at["most"] > 1), at["most"], at["entered"]))


MODELS: dict[str, Callable[[ExploringSched, Spinlock, str], Run]] = {
    "restart": restart,
    "walk": walk,
    "shootdown": shootdown,
    "handover": handover,
}
VARIANTS = {
    ("restart", ""): True,
    ("restart", "FIXED"): False,
    ("walk", ""): True,
    ("walk", "IPI"): False,
    ("walk", "RCU"): False,
    ("shootdown", "EARLY"): True,
    ("shootdown", ""): False,
    ("handover", "LATE"): True,
    ("handover", ""): False,
}
"""Every model and variant, and whether the rule can be broken there: known by hand."""


def outcomes(model: str, variant: str, strategy: str = "dpor") -> tuple[set[Outcome], int]:
    """Every outcome that a search of the explorer finds, and its executions."""
    search = Search(strategy)
    found: set[Outcome] = set()
    cpus: list[Any] = [FakeCpu(n) for n in range(3)]
    sched = ExploringSched(cpus)
    lock = Spinlock(sched, "lock")  # the same object in every execution, as a search must know it again
    while True:
        lock.held, lock.owner = False, None
        for cpu in cpus:
            cpu.interrupts_enabled = True
        run = MODELS[model](sched, lock, variant)
        for n, task in enumerate(run.tasks):
            sched.spawn(f"task {n}", n, task)
        failure = sched.run(search)
        if failure is None:
            found.add(run.outcome())
        elif not isinstance(failure, Blocked):
            raise failure
        if not search.back_up():
            return found, search.executions
