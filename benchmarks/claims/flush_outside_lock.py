"""What another thread waits for while pages are dropped: flushing below the page-table lock or outside it (A0.4)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.claims.machines import BASE, GENERATIONS, clock_of, hold, longest, made, several
from benchmarks.claims.model import Claim, Effort, Row, Verdict
from polymmu.sched.user import SLICE

__all__ = ["CLAIM"]

FAULT, TABLES, MMAP, HOLD = (
    "longest fault",
    "waited for table lock",
    "waited for mmap_lock",
    "longest lock hold",
)
NAP = 300


def dropping(name: str, generation: str, call: str, cpus: int, pages: int, seed: int) -> dict[str, int]:
    """CPU 0 drops pages, CPU 1 touches fresh ones elsewhere in the same mm, the others compute."""
    machine = made(name, *GENERATIONS[generation], "kernel.page_table_lock=mm", cpus=cpus)
    mm, page = machine.new_mm(), machine.page_size
    length = pages * page
    mm.mmap(length, at=BASE, fixed=True, populate=True)
    fresh = mm.mmap(length, at=BASE + 4 * length, fixed=True)
    faults: list[int] = []
    done: list[bool] = []

    def drops() -> None:
        machine.work(NAP * cpus)
        if call == "munmap":
            mm.munmap(BASE, length)
        else:
            mm.madvise(BASE, length, "dontneed")
        done.append(True)

    def touches() -> None:
        chance = random.Random(seed)
        for at in range(fresh, fresh + length, page):
            if done:
                return
            began = clock_of(machine, 1)
            machine.cpus[1].store(at, b"x")
            faults.append(clock_of(machine, 1) - began)
            machine.work(chance.randrange(2 * NAP))

    def computes() -> None:
        while not done:
            machine.work(SLICE)

    machine.spawn("drops", 0, mm, drops)
    machine.spawn("touches", 1, mm, touches)
    for cpu in range(2, cpus):
        machine.spawn(f"computes {cpu}", cpu, mm, computes)
    machine.run_tasks()
    waited = machine.kernel.sched.max_wait
    return {
        FAULT: max(faults),
        TABLES: longest(waited),
        MMAP: waited.get("mmap_lock", 0),
        HOLD: hold(machine),
    }


def worst(name: str, generation: str, call: str, cpus: int, effort: Effort) -> dict[str, int]:
    """The worst of several seeds."""
    runs = [
        dropping(name, generation, call, cpus, effort.pages[0], seed) for seed in range(effort.seeds // 2)
    ]
    return {figure: max(run[figure] for run in runs) for figure in CLAIM.figures}


def measure(name: str, effort: Effort) -> list[Row]:
    """madvise and munmap, the mm on two CPUs and on more."""
    return [
        Row(
            f"{call}, mm on {several(cpus, 'CPU')}",
            {
                (figure, generation): value
                for generation in GENERATIONS
                for figure, value in worst(name, generation, call, cpus, effort).items()
            },
        )
        for call in ("madvise", "munmap")
        for cpus in (2, 4)
    ]


def judge(rows: Sequence[Row]) -> Verdict:
    """Of madvise: a faulting thread must wait for the lock less with the flush outside it."""
    dropped = [row for row in rows if row.case.startswith("madvise")]
    last = dropped[-1].cells
    waits = {gen: last[TABLES, gen] for gen in GENERATIONS}
    holds = all(
        row.cells[TABLES, "percpu"] > row.cells[TABLES, gen] for row in dropped for gen in ("stack", "linked")
    )
    said = ", ".join(f"{gen} {wait:,}" for gen, wait in waits.items())
    least = min(row.cells[MMAP, gen] for row in rows if row not in dropped for gen in GENERATIONS)
    return Verdict(
        holds,
        f"the wait for the lock is {said} cycles ({dropped[-1].case}); with munmap the fault waits for mmap_lock in "
        f"every generation, {least:,} cycles at least",
    )


CLAIM = Claim(
    name="flush-outside-lock",
    title="Flushing outside the page-table lock",
    statement="""
        A thread that faults while another one drops pages waits less for the page-table lock when the TLBs are
        flushed after the lock was dropped, provided that it is the gather which flushes, and that the fault needs
        to wait for nothing else.
    """,
    method="""
        The smallest size of this page is dropped on CPU 0, while CPU 1 takes one fault after another elsewhere in
        the mm; further CPUs compute in it, and take its interrupts. The mm has one page-table lock, as up to 2.6.14;
        with one per table a fault elsewhere waits for none. Worst of several seeds. madvise leaves faults in, munmap
        holds mmap_lock for writing. Where an entry is flushed as it is cleared (s390), or in batches
        before the lock is dropped (ppc64, sparc64: lazy mmu mode), no gather can move the flush out of the lock.
        Freeing a page costs nothing in this model, so the lock's holder is charged for the flush alone.
    """,
    variants=tuple(GENERATIONS),
    figures=(FAULT, TABLES, MMAP, HOLD),
    measure=measure,
    judge=judge,
)
