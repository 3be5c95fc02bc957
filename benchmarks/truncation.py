"""How long one waits for i_mmap_lock while a file is truncated, in every generation; cycles, the same everywhere.

A program maps a file in many places, a second CPU cuts it, and a third maps and unmaps the same file all the time:
that takes the lock which the truncation holds. The longest wait is what the lock breaks of 2004 were made for. Without
preemption a waiter cannot ask, only the tick can: there another task is ready on the truncating CPU.

In the notes: entries visited by zaps must not grow with the rounds, vmas visited do.
"""

from __future__ import annotations

from typing import Any

import attrs

from benchmarks.measure import Row
from benchmarks.workloads import Lab
from polymmu.events import Events, Observer
from polymmu.machine import Machine
from polymmu.sched.timed import TimedSched

__all__ = ["GENERATIONS", "Figures", "contended", "truncation"]

SPIN: dict[str, Any] = {"i_mmap_lock": "spin", "page_table_lock": "mm"}
BLOCKS: dict[str, Any] = {**SPIN, "unmap_vmas": "blocks"}
GENERATIONS: dict[str, dict[str, Any]] = {
    "no-break": {**BLOCKS, "truncate": "no-break"},
    "restart-vma": {**BLOCKS, "truncate": "restart-vma"},
    "restart-count-2004": {**BLOCKS, "truncate": "restart-count-2004"},
    "restart-count": {**SPIN, "truncate": "restart-count"},
    "mutex": {"truncate": "mutex"},
}
"""Each with the loop and the lock of its time."""
SIZES = ((1_024, 16), (4_096, 16), (16_384, 16), (16_384, 256))
"""Ptes in all, and the vmas they are in."""
TICK = 20_000
"""Cycles between two ticks: short beside a real one, as these files are."""


@attrs.define
class Figures(Observer):
    """What one run came to. Rounds: walks over the file's vmas in the first unmapping."""

    kernel: Any
    truncating_cpu: int = 0
    entries: int = 0
    vmas: int = 0
    rounds: int = 0
    longest_wait: int = 0
    waited: int = 0
    """How often the other one got the lock while the file was being cut."""
    unmapping: bool = True

    def page_uncached(self, mapping: Any, index: int, pfn: int) -> None:
        self.unmapping = False

    def entries_visited(self, mm: Any, what: str, n: int) -> None:
        if what == "zap" and self.unmapping and self.kernel.sched.cpu.index == self.truncating_cpu:
            self.entries += n

    def vmas_visited(self, mapping: Any, n: int) -> None:
        if self.unmapping:
            self.vmas += n
            self.rounds += 1


def contended(choice: dict[str, Any], preempt: bool, ptes: int, vmas: int) -> Figures:
    """Cut a file that ``vmas`` mappings show, ``ptes`` in all, while another CPU wants its lock."""
    sets = ["cpus=2", "memory=1 GiB", f"kernel.preempt={str(preempt).lower()}"]
    sets += [f"kernel.{key}={value}" for key, value in choice.items()]
    description, arch = Machine.describe("x86_64", sets=sets)
    made = Machine(description, arch, driver="timed")
    sched = made.kernel.sched
    assert isinstance(sched, TimedSched)
    sched.timeslice = TICK
    page = made.page_size
    pages = ptes // vmas
    file = made.new_file(pages * page)
    mm, other = made.new_mm(), made.new_mm()
    for _ in range(vmas):
        mm.mmap(pages * page, shared=True, file=file, populate=True)
    figures = Figures(made.kernel)
    made.kernel.events = Events((*made.kernel.events.observers, figures))
    sched.max_wait.clear()
    cut = [False]

    def truncates() -> None:
        file.truncate(0)
        cut[0] = True

    def wants_the_lock() -> None:
        while not cut[0]:
            at = other.mmap(page, shared=True, file=file)
            other.munmap(at, page)
            figures.waited += 1

    def computes() -> None:
        while not cut[0]:
            made.work(1_000)

    made.spawn("truncates", 0, None, truncates)
    made.spawn("computes", 0, mm, computes)
    made.spawn("wants the lock", 1, other, wants_the_lock)
    made.run_tasks()
    figures.longest_wait = sched.max_wait.get("i_mmap_lock", 0)
    mm.exit()
    other.exit()
    file.close()
    return figures


def truncation(lab: Lab) -> list[Row]:
    """A row per generation, preemption and size: the longest wait, beside that of the smallest size."""
    rows: list[Row] = []
    for preempt in (True, False):
        for name, choice in GENERATIONS.items():
            first: int | None = None
            for ptes, vmas in SIZES:
                if ptes > lab.sized(SIZES[-1][0]) and first is not None:
                    continue
                seen = contended(choice, preempt, ptes, vmas)
                first = first or seen.longest_wait
                rows.append(
                    Row(
                        group=f"truncation, {'preemptible' if preempt else 'not preemptible'}",
                        what=f"{name}: {ptes:,} ptes in {vmas} vmas",
                        figure=seen.longest_wait,
                        unit="cycles waited",
                        ratio=seen.longest_wait / first,
                        reference=f"{SIZES[0][0]:,} ptes",
                        note=f"{seen.rounds:,} rounds, {seen.entries:,} entries, {seen.vmas:,} vmas visited",
                    )
                )
    return rows
