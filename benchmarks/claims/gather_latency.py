"""Preemption off and the page-table lock held: the gather per CPU against those on the stack (A4.1)."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.claims.machines import BASE, GENERATIONS, clock_of, hold, made, sched_of
from benchmarks.claims.model import Claim, Effort, Row, Verdict

__all__ = ["CLAIM"]

HOLD, OFF, LATE, TOOK = "longest lock hold", "longest preemption off", "waking task waited", "call took"
NAP = 700
"""Cycles between two wake-ups of the task that wants the CPU: no divisor of anything here."""


def unmapping(name: str, generation: str, call: str, pages: int, asked: bool) -> dict[str, int]:
    """``call`` over so many pages on CPU 0. ``asked``: another task wakes there again and again meanwhile."""
    machine = made(name, *GENERATIONS[generation])
    sched = sched_of(machine)
    sched.timeslice = 1  # whoever wakes asks for the CPU at once
    mm, length = machine.new_mm(), pages * machine.page_size
    mm.mmap(length, at=BASE, fixed=True, populate=True)
    found: dict[str, int] = {}

    def unmaps() -> None:
        machine.work(NAP)
        sched.max_hold.clear()
        sched.max_preempt_off = 0
        began = clock_of(machine, 0)
        if call == "munmap":
            mm.munmap(BASE, length)
        else:
            machine.exit_mm()
        found.update({HOLD: hold(machine), OFF: sched.max_preempt_off, TOOK: clock_of(machine, 0) - began})

    def wants_the_cpu() -> None:
        worst = 0
        while not found:
            asleep = clock_of(machine, 0)
            machine.sleep(NAP)
            worst = max(worst, clock_of(machine, 0) - asleep - NAP)
        found[LATE] = worst

    machine.spawn("unmaps", 0, mm, unmaps)
    if call == "exit":
        mm.exit()  # the task is its last user
    if asked:
        machine.spawn("wants the CPU", 0, None, wants_the_cpu)
    machine.run_tasks()
    return found


def measure(name: str, effort: Effort) -> list[Row]:
    """munmap and exit of several sizes, alone and with a task that wants the CPU."""
    return [
        Row(
            f"{call}, {pages:,} pages{', a task wakes' if asked else ''}",
            {
                (figure, generation): value
                for generation in GENERATIONS
                for figure, value in unmapping(name, generation, call, pages, asked).items()
            },
        )
        for call, asked in (("munmap", False), ("exit", False), ("munmap", True))
        for pages in effort.pages
    ]


def judge(rows: Sequence[Row]) -> Verdict:
    """The time with preemption off must grow with the pages per CPU, and must not on the stack."""
    alone = [row for row in rows if row.case.startswith("munmap") and "wakes" not in row.case]
    times = {gen: [row.cells[OFF, gen] for row in alone] for gen in GENERATIONS}
    grows = {gen: each[-1] > 1.5 * each[0] for gen, each in times.items()}
    waits = {gen: max(row.cells.get((LATE, gen), 0) for row in rows) for gen in GENERATIONS}
    holds = {gen: max(row.cells[HOLD, gen] for row in rows) for gen in GENERATIONS}
    latest = list(GENERATIONS)[-1]
    said = [
        f"preemption is off for {times['percpu'][-1]:,} cycles per CPU, {times[latest][-1]:,} {latest}",
        f"a task that wakes waits {waits['percpu']:,} before, {waits[latest]:,} after",
        f"the lock is held {holds['percpu']:,} before, {holds[latest]:,} after",
    ]
    return Verdict(grows["percpu"] and not (grows["stack"] or grows["linked"]), "; ".join(said))


CLAIM = Claim(
    name="gather-latency",
    title="Preemption off while pages are unmapped",
    statement="""
        With a gather per CPU preemption is off from the gather to its finish, a time that grows with the pages
        unmapped, as long as nobody asks for the CPU. With a gather on the stack it is off for one hold of the
        page-table lock at a time, whatever the size.
    """,
    method=f"""
        One thread unmaps on CPU 0 of two, and no other CPU ever ran the mm. *a task wakes*: another task of that
        CPU sleeps {NAP} cycles at a time and, when it wakes, is wanted to run at once. The kernel gives way where
        it says so (between two page tables, where a lock is broken), not everywhere that preemption is on. The
        honest figure is the waiting task's: a gather per CPU is given up for it, so it never waits for the whole
        call.
    """,
    variants=tuple(GENERATIONS),
    figures=(HOLD, OFF, LATE, TOOK),
    measure=measure,
    judge=judge,
)
