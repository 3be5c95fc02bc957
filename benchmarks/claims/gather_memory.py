"""What a gather occupies: an array per CPU, always, against batches while something is unmapped (A4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.claims.machines import BASE, GENERATIONS, made, several
from benchmarks.claims.model import Claim, Effort, Row, Verdict
from polymmu.api import Machine
from polymmu.events import Events, Observer
from polymmu.hardware.ram import FLAGS
from polymmu.mm.gather import tlb_finish_mmu, tlb_gather_mmu, tlb_room
from polymmu.structs import PG_GATHER, mm_struct

__all__ = ["CLAIM"]

REST, PEAK = "bytes held at rest", "peak while unmapping"
SLOT = 8
"""Bytes of a slot, on every machine of this model."""


class BatchPages(Observer):
    """The most batch pages in use at once."""

    def __init__(self, machine: Machine) -> None:
        self.flags = machine.kernel.frames.table[FLAGS]
        self.peak = 0

    def gather_batch(self, mm: mm_struct, got: bool) -> None:
        self.peak = max(self.peak, int(np.count_nonzero(self.flags & PG_GATHER)))


def array_of(name: str) -> int:
    """Bytes of one CPU's array, as large as this architecture had it; 0 where pages never wait in a gather."""
    machine = made(name, *GENERATIONS["percpu"], driver="solo")
    tlb = tlb_gather_mmu(machine.new_mm().struct)
    room = 0 if tlb.fast_mode else tlb_room(tlb)
    tlb_finish_mmu(tlb, 0, 0)
    return room * SLOT


def unmapping_everywhere(name: str, generation: str, cpus: int, busy: int, pages: int) -> int:
    """Bytes of batch pages at the peak: ``busy`` of the CPUs unmap so many pages each, at once."""
    machine = made(name, *GENERATIONS[generation], "memory=4 GiB", cpus=cpus)
    watch = BatchPages(machine)
    length = pages * machine.page_size
    for cpu in range(busy):
        mm = machine.new_mm()
        mm.mmap(length, at=BASE, fixed=True, populate=True)
        machine.spawn(f"unmaps {cpu}", cpu, mm, partial(mm.munmap, BASE, length))
    machine.kernel.events = Events((*machine.kernel.events.observers, watch))
    machine.run_tasks()
    return watch.peak * machine.page_size


def measure(name: str, effort: Effort) -> list[Row]:
    """By number of CPUs: at rest, one CPU unmapping, all of them."""
    array, pages = array_of(name), effort.pages[-1]
    rows = []
    for cpus in (count for count in effort.threads if count > 1):
        for busy in (1, cpus):
            who = "all unmap" if busy == cpus else "one unmaps"
            cells = {(REST, "percpu"): array * cpus, (PEAK, "percpu"): array * cpus}
            for generation in ("stack", "linked"):
                cells[REST, generation] = 0
                cells[PEAK, generation] = unmapping_everywhere(name, generation, cpus, busy, pages)
            rows.append(Row(f"{several(cpus, 'CPU')}, {who}", cells))
    return rows


def judge(rows: Sequence[Row]) -> Verdict:
    """At rest nothing may be held on the stack, and the arrays must grow with the CPUs."""
    rest = [row.cells[REST, "percpu"] for row in rows]
    if not any(rest):
        return Verdict(
            False, "pages never wait in a gather here: each is flushed before it is freed, by itself"
        )
    none = all(not row.cells[REST, gen] for row in rows for gen in ("stack", "linked"))
    peak = {gen: rows[-1].cells[PEAK, gen] for gen in GENERATIONS}
    more = [gen for gen in ("stack", "linked") if peak[gen] > peak["percpu"]]
    said = "in use no generation holds more than the arrays do"
    if more:
        said = "in use more is held than the arrays were: " + ", ".join(
            f"{gen} {peak[gen]:,} bytes against {peak['percpu']:,} when all unmap" for gen in more
        )
    return Verdict(none and 0 < rest[0] < rest[-1], said)


CLAIM = Claim(
    name="gather-memory",
    title="Memory held by gathers",
    statement="""
        A gather per CPU holds an array for each CPU of the machine for ever. On the stack nothing is held while
        nothing is unmapped.
    """,
    method="""
        Bytes of slots, eight each. A gather on the stack has 64 bytes there besides, which are not counted. The
        peak is that of the batch pages while CPUs unmap the largest size of this page, each an mm of its own. It is
        no part of the claim, and speaks against it: a linked gather may take 10,000 pages before it must flush.
    """,
    variants=tuple(GENERATIONS),
    figures=(REST, PEAK),
    measure=measure,
    judge=judge,
)
