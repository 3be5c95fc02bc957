"""Small random programs for the exploring driver, and what an execution of one comes to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from polymmu.exploration.search import Search
from polymmu.sched.access import Access, Mode
from polymmu.sched.exploring import ExploringSched, Stuck
from polymmu.sched.locks import Mutex, RwSem, Spinlock
from polymmu.sched.picker import Halt, InFront, Picker

Op = tuple[str, int]
Program = tuple[tuple[Op, ...], ...]

WORDS, LOCKS = 2, 2


class FakeCpu:
    """As much of a CPU as the driver looks at."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.name = f"cpu{index}"
        self.interrupts_enabled = True


@attrs.define
class Record:
    """One execution: what each task saw, and which steps had to come in which order."""

    outcome: tuple[object, ...]
    graph: frozenset[tuple[object, object]]


def random_program(seed: int) -> Program:
    """Two tasks of up to four operations, or three of up to two."""
    rng = random.Random(seed)
    tasks = rng.randint(2, 3)
    most = 4 if tasks == 2 else 2
    kinds = [
        "read",
        "write",
        "add",
        "copy",
        "choice",
        "lock",
        "trylock",
        "share",
        "exclusive",
        "guarded",
        "quiet",
        "ipi",
    ]
    return tuple(
        tuple((rng.choice(kinds), rng.randrange(WORDS)) for _ in range(rng.randint(1, most)))
        for _ in range(tasks)
    )


class Runner:
    """Runs a program as often as a search likes. Each task holds what it locks until its end, in that order, so that
    programs may deadlock."""

    def __init__(self, program: Program) -> None:
        self.program = program
        cpus: list[Any] = [FakeCpu(n) for n in range(len(program))]
        self.sched = ExploringSched(cpus, {"c": 1})
        self.spins = [Spinlock(self.sched, f"spin{n}") for n in range(LOCKS)]
        self.sems = [RwSem(self.sched, f"sem{n}") for n in range(LOCKS)]

    def once(self, search: Picker) -> Record | None:
        """One execution, written down; None if it met only what was seen elsewhere."""
        steps = Steps(search)
        outcome = self.outcome(steps)
        return None if outcome is None else Record(outcome, steps.graph())

    def outcome(self, picker: Picker) -> tuple[object, ...] | None:
        """One execution; whether it got stuck, what is in memory at the end, and what each task saw."""
        sched = self.sched
        words = [0] * 8  # more than random programs use
        spins, sems = self.spins, self.sems
        for lock in (*spins, *sems):
            lock.held, lock.owner = False, None
        for sem in sems:
            sem.readers = 0
        for cpu in sched.cpus:
            cpu.interrupts_enabled = True
        seen: list[list[object]] = [[] for _ in self.program]

        def body(index: int) -> Callable[[], None]:
            def run() -> None:
                task(index)

            return run

        def interrupt(cpu: object) -> None:
            sched.did(Mode.WRITE, 0)
            words[0] += 1000

        def task(index: int) -> None:
            mine = seen[index]
            undo: list[Callable[[], None]] = []
            held: set[str] = set()
            for kind, n in self.program[index]:
                if kind == "read":
                    sched.point("read", n)
                    mine.append(words[n])
                elif kind == "write":
                    sched.point("write", n)
                    words[n] = index + 1
                elif kind == "add":
                    sched.point("write", n)
                    words[n] += 10
                    mine.append(words[n])
                elif kind == "bump":
                    sched.point("read", n)
                    value = words[n]
                    sched.point("write", n)
                    words[n] = value + 1
                elif kind == "copy":
                    sched.point("read", n)
                    value = words[n]
                    if value:
                        sched.point("write", 1 - n)
                        words[1 - n] = value
                elif kind == "choice":
                    mine.append(sched.choice("c"))
                elif kind == "lock" and f"l{n}" not in held:
                    spins[n].lock()
                    held.add(f"l{n}")
                    undo.append(spins[n].unlock)
                elif kind == "guarded" and f"l{n}" not in held:
                    spins[n].lock()
                    sched.did(Mode.WRITE, n)
                    words[n] += 100
                    mine.append(words[n])
                    spins[n].unlock()
                elif kind == "quiet":
                    cpu = sched.cpu
                    sched.point("irq_off", cpu)
                    cpu.interrupts_enabled = False
                    sched.point("read", n)
                    mine.append(words[n])
                    sched.point("irq_on", cpu)
                    cpu.interrupts_enabled = True
                elif kind == "ipi":
                    sched.ipi((1 << len(self.program)) - 1 & ~(1 << index), interrupt, 0)
                elif kind == "trylock" and f"l{n}" not in held:
                    got = spins[n].trylock()
                    mine.append(got)
                    if got:
                        held.add(f"l{n}")
                        undo.append(spins[n].unlock)
                elif kind in ("share", "exclusive") and f"s{n}" not in held and not sched.preempt_count:
                    held.add(f"s{n}")
                    take, give = (
                        (sems[n].down_read, sems[n].up_read)
                        if kind == "share"
                        else (sems[n].down_write, sems[n].up_write)
                    )
                    take()
                    undo.append(give)
            for give in reversed(undo):
                give()

        for index in range(len(self.program)):
            sched.spawn(f"t{index}", index, body(index))
        failure = sched.run(picker)
        if isinstance(failure, Halt):
            return None
        stuck = isinstance(failure, Stuck)
        if failure is not None and not stuck:
            raise failure
        return stuck, tuple(words), tuple(map(tuple, seen))


class Steps(InFront):
    """A search as a picker, written down."""

    def __init__(self, search: Picker) -> None:
        super().__init__(search)
        self.steps: list[tuple[object, list[tuple[object, str]]]] = []
        self.counts: dict[int, int] = {}

    def happened(self, task: int, kind: str, what: object, accesses: Sequence[Access]) -> None:
        super().happened(task, kind, what, accesses)
        self.counts[task] = self.counts.get(task, 0) + 1
        name = getattr(what, "name", what)
        touched = [(getattr(obj, "name", obj), str(mode)) for obj, mode in accesses]
        self.steps.append(((task, self.counts[task], kind, name), touched))

    def graph(self) -> frozenset[tuple[object, object]]:
        """Ordered pairs of steps that touch one thing in ways that do not commute."""
        pairs: set[tuple[object, object]] = set()
        for n, (step, touched) in enumerate(self.steps):
            for later, touches in self.steps[n + 1 :]:
                if any(one == other and clash(way, how) for one, way in touched for other, how in touches):
                    pairs.add((step, later))
        return frozenset(pairs)


PASSIVE = {"0"}
SHARING = {"5", "6"}
ADDING = {"9"}


def clash(one: str, other: str) -> bool:
    return not any({one, other} <= alike for alike in (PASSIVE, SHARING, ADDING))


def all_of(
    program: Program, strategy: str, limit: int = 20_000, search: Search | None = None
) -> tuple[list[Record], Search] | None:
    """Every execution of ``program`` that a search makes; None where there are too many."""
    search = search or Search(strategy)
    runner = Runner(program)
    records: list[Record] = []
    while True:
        record = runner.once(search)
        if record is not None:
            records.append(record)
        if not search.back_up():
            return records, search
        if search.executions >= limit:
            return None


__all__ = ["Mutex", "Program", "Record", "Runner", "all_of", "random_program"]
