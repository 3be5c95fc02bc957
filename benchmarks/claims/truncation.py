"""Truncating a file that others want at the same time: how long they wait for i_mmap_lock (A1.2-A1.10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from benchmarks.claims.machines import clock_of, made, sched_of
from benchmarks.claims.model import Claim, Effort, Row, Verdict
from polymmu.events import Events, Observer

__all__ = ["CLAIM"]

GENERATIONS: dict[str, tuple[str, ...]] = {
    "2.6.10": ("kernel.release=2.6.10",),
    "Oct 3": ("kernel.release=2.6.11", "kernel.truncate=restart-vma"),
    "2.6.11": ("kernel.release=2.6.11",),
    "2.6.39": ("kernel.release=2.6.39",),
    "3.0": ("kernel.release=3.0",),
}
"""By age: no break; the restart point in the call; in each vma; counted by work; a mutex and no break."""

BEFORE, BREAKS, AFTER = "2.6.10", ("Oct 3", "2.6.11"), "2.6.11"
FEW, MANY = 2, 256
"""Vmas that the file is mapped by."""
BLOCKS = {True: 8, False: 1024}
"""Pages of a zap block, with preemption and without."""
TICK = 20_000
"""Cycles between two ticks: short beside a real one, as these files are."""
HELD = 50
"""Cycles for which the other CPU has the lock each time."""

WAIT, RESTARTS, ENTRIES, VMAS = "longest wait", "restarts", "entries zapped", "vmas visited"


@attrs.define
class Unmapping(Observer):
    """What CPU 0 does until the first page leaves the cache: the first of a truncation's unmappings."""

    kernel: Any
    entries: int = 0
    vmas: int = 0
    rounds: int = 0
    goes_on: bool = True

    def page_uncached(self, mapping: Any, index: int, pfn: int) -> None:
        self.goes_on = False

    def entries_visited(self, mm: Any, what: str, n: int) -> None:
        if what == "zap" and self.goes_on and not self.kernel.sched.cpu.index:
            self.entries += n

    def vmas_visited(self, mapping: Any, n: int) -> None:
        if self.goes_on:
            self.vmas += n
            self.rounds += 1


def cutting(name: str, generation: str, preempt: bool, ptes: int, vmas: int) -> dict[str, int]:
    """Cut a file that ``vmas`` mappings show, ``ptes`` in all, while another CPU takes its lock again and again."""
    machine = made(name, *GENERATIONS[generation], f"kernel.preempt={str(preempt).lower()}")
    sched, page = sched_of(machine), machine.page_size
    sched.timeslice = TICK
    pages = ptes // vmas
    file = machine.new_file(pages * page)
    mm, lock = machine.new_mm(), file.file.mapping.i_mmap_lock
    for _ in range(vmas):
        mm.mmap(pages * page, shared=True, file=file, populate=True)
    seen = Unmapping(machine.kernel)
    machine.kernel.events = Events((*machine.kernel.events.observers, seen))
    sched.max_wait.clear()
    cut: list[int] = []

    def truncates() -> None:
        file.truncate(0)
        cut.append(clock_of(machine, 0))

    def wants_the_lock() -> None:
        while not cut:
            lock.lock()
            sched.spend(HELD, "i_mmap")
            lock.unlock()

    def computes() -> None:
        while not cut:
            machine.work(1_000)

    machine.spawn("truncates", 0, mm, truncates)
    machine.spawn("computes", 0, mm, computes)
    machine.spawn("wants the lock", 1, None, wants_the_lock)
    machine.run_tasks()
    mm.exit()
    file.close()
    return {
        WAIT: sched.max_wait.get("i_mmap_lock", 0),
        RESTARTS: seen.rounds - 1,
        ENTRIES: seen.entries,
        VMAS: seen.vmas,
    }


def case(preempt: bool, ptes: int, vmas: int) -> str:
    """What a row is called."""
    return f"{'preemption' if preempt else 'none'}, {ptes:,} ptes in {vmas} vmas"


def measure(name: str, effort: Effort) -> list[Row]:
    """With preemption and without: a file of two sizes, and the larger one in many vmas."""
    most = effort.pages[0]
    return [
        Row(
            case(preempt, ptes, vmas),
            {
                (figure, generation): value
                for generation in GENERATIONS
                for figure, value in cutting(name, generation, preempt, ptes, vmas).items()
            },
        )
        for preempt in BLOCKS
        for ptes, vmas in ((most // 4, FEW), (most, FEW), (most, MANY))
    ]


def judge(rows: Sequence[Row]) -> Verdict:
    """With preemption: the wait must follow the file's size before and not after, and restarts zap nothing twice."""
    small, large, many, _, tick, _ = rows

    def wait(row: Row, generation: str) -> int:
        return row.cells[WAIT, generation]

    grows = {gen: wait(large, gen) / wait(small, gen) for gen in GENERATIONS}
    each = (wait(many, AFTER) - wait(large, AFTER)) / MANY
    zapped = {entries for row in (large, many) for entries in row.of(ENTRIES, (BEFORE, *BREAKS))}
    progress = all(
        row.cells[RESTARTS, gen] <= row.cells[ENTRIES, gen] // BLOCKS[True] + vmas
        for row, vmas in ((small, FEW), (large, FEW), (many, MANY))
        for gen in BREAKS
    )
    visits = many.cells[VMAS, AFTER]
    holds = (
        grows[BEFORE] > 3
        and all(grows[gen] < 1.5 and wait(many, gen) < wait(many, BEFORE) / 4 for gen in BREAKS)
        and len(zapped) == 1
        and many.cells[VMAS, BEFORE] < visits
        and progress
    )
    return Verdict(
        holds,
        f"four times the ptes are waited for {grows[BEFORE]:.1f} times as long before ({wait(large, BEFORE):,} cycles) "
        f"and {grows[AFTER]:.1f} times after ({wait(large, AFTER):,}), with {each:.1f} cycles more for each vma done; "
        f"{many.cells[RESTARTS, AFTER]:,} restarts zap {many.cells[ENTRIES, AFTER]:,} entries and visit {visits:,} "
        f"vmas; without preemption {wait(tick, BEFORE):,} before and {wait(tick, AFTER):,} after; 2.6.39 waits "
        f"{wait(large, '2.6.39'):,}, 3.0 {wait(large, '3.0'):,}",
    )


CLAIM = Claim(
    name="truncation",
    title="Truncation of a file that others want",
    statement="""
        Who waits for the i_mmap_lock of a file that is being truncated waited for all ptes that map it. With restart
        points (October 2004) it waits for one zap block, and a step for each vma that is already done. Nothing is
        zapped twice for it, vmas are visited again after every break, and with somebody always waiting the end comes
        all the same. It is so in a preemptible kernel; in another nobody but the tick can ask.
    """,
    method=f"""
        A program truncates what it has mapped, on CPU 0, where another thread of it is ready; CPU 1 takes the lock,
        for {HELD} cycles each time, until it is done. Whole releases, but *Oct 3*, the first of the two versions, is
        2.6.11 with `truncate: restart-vma`. *none*: no preemption, where a block is {BLOCKS[False]:,} pages instead
        of {BLOCKS[True]}; a tick comes every {TICK:,} cycles. Restarts, entries and vmas are those of the first of
        2.6.39's two unmappings; the second finds empty entries, of which thousands go into a block of {BLOCKS[True]}
        pages. 3.0's mutex is held to the end, and by a task that may lose its CPU meanwhile.
    """,
    variants=tuple(GENERATIONS),
    figures=(WAIT, RESTARTS, ENTRIES, VMAS),
    measure=measure,
    judge=judge,
)
