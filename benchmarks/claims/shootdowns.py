"""Flushes and who they reach, per munmap: by architecture, CPUs that ran the mm, and generation of the gather."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.claims.machines import BASE, GENERATIONS, made, several
from benchmarks.claims.model import Claim, Effort, Row, Verdict

__all__ = ["CLAIM"]

IPIS, BROADCASTS, LOCAL, FLUSHES = "CPUs interrupted", "broadcasts", "local flushes", "gather flushes"


def unmapping(name: str, generation: str, threads: int, cpus: int, pages: int) -> dict[str, int]:
    """One munmap on CPU 0 after ``threads`` CPUs used the pages."""
    machine = made(name, *GENERATIONS[generation], cpus=cpus, driver="solo")
    mm, page = machine.new_mm(), machine.page_size
    mm.mmap(pages * page, at=BASE, fixed=True, populate=True)
    for cpu in reversed(machine.cpus[:threads]):
        cpu.switch_mm(mm)
        for n in range(0, pages, max(pages // 64, 1)):
            cpu.load(BASE + n * page, 1)
    counted, gather = machine.counters.shootdowns, machine.counters.gather
    before, flushes = dict(counted), gather["flushes"]
    with machine.cpus[0]:
        mm.munmap(BASE, pages * page)
    after = {kind: counted[kind] - before[kind] for kind in counted}
    return {
        IPIS: after["ipis"],
        BROADCASTS: after["broadcast"],
        LOCAL: after["local"],
        FLUSHES: gather["flushes"] - flushes,
    }


def measure(name: str, effort: Effort) -> list[Row]:
    """One page, and many, by number of CPUs that ran the mm."""
    return [
        Row(
            f"{several(pages, 'page')}, {several(threads, 'CPU')} ran the mm",
            {
                (figure, generation): value
                for generation in GENERATIONS
                for figure, value in unmapping(name, generation, threads, max(effort.threads), pages).items()
            },
        )
        for pages in (1, effort.pages[-1])
        for threads in effort.threads
    ]


def judge(rows: Sequence[Row]) -> Verdict:
    """Who is interrupted must be interrupted less often the more a gather holds, and never for one's own pages."""
    many, alone = rows[-1].cells, [row for row in rows if ", 1 CPU " in row.case]
    ipis = {gen: many[IPIS, gen] for gen in GENERATIONS}
    broadcasts = {gen: many[BROADCASTS, gen] for gen in GENERATIONS}
    spared = not any(row.cells[IPIS, gen] for row in alone for gen in GENERATIONS)
    if any(ipis.values()):
        told = ", ".join(f"{gen} {n:,}" for gen, n in ipis.items())
        less = ipis["linked"] < ipis["percpu"]
        return Verdict(spared and less, f"CPUs interrupted by the last munmap of the table: {told}")
    told = ", ".join(f"{gen} {n:,}" for gen, n in broadcasts.items())
    if broadcasts["linked"] < broadcasts["percpu"]:
        return Verdict(True, f"nobody is interrupted; broadcasts: {told}")
    why = (
        "the gather flushes nothing, entries do"
        if not any(many[FLUSHES, gen] > 1 for gen in GENERATIONS)
        else ("what is flushed does not go by the gather")
    )
    return Verdict(
        False, f"nobody is interrupted and the gather's size changes nothing ({told} broadcasts): {why}"
    )


CLAIM = Claim(
    name="shootdowns",
    title="Shootdowns per munmap",
    statement="""
        The more pages a gather holds, the fewer flushes one munmap takes, and the less often the other CPUs that
        ran the mm are interrupted; an mm that ran on one CPU interrupts nobody. It is so where the gather flushes.
    """,
    method="""
        Every CPU in question loads some of the pages, then CPU 0 unmaps them. An interrupt of seven CPUs counts
        seven; a broadcast instruction counts once, however many CPUs there are.
    """,
    variants=tuple(GENERATIONS),
    figures=(IPIS, BROADCASTS, LOCAL, FLUSHES),
    measure=measure,
    judge=judge,
)
