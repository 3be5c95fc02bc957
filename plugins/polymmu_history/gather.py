"""The mmu_gather before Linux 3.0, and the first one on the stack: one array of pages, not a list (A4.1).

``percpu`` (2.5.32 to 2.6.39): one array per CPU, so nothing else may run there from gather to finish; a full array is
flushed and freed where that is noticed, below the page-table lock. ``stack`` (the first patch of the series for 3.0,
2011): eight slots in the gather, or one page if there is one to be had without waiting; a full gather is flushed
after the lock was dropped. ``stack-posted`` is that patch before it was mended.

On a machine with one CPU all free pages at once and flush at the end; from ``stack`` on half of what made that sound
is given up, for another thread may now run in between.

Page tables take slots of the same array. Where they wait for RCU, the architectures had lists of their own per CPU
(2.6.12 to 2.6.39): flushed, then freed at once if nobody else can be walking the mm, else by RCU.
"""

from __future__ import annotations

import numpy as np

from polymmu.description.model import KernelChoice
from polymmu.hooks import ArchKernel
from polymmu.mm.frames import alloc_page
from polymmu.mm.gather import (
    Rss,
    bundle,
    table_batch_capacity,
    tables_need_rcu,
    tlb_flush_mmu,
)
from polymmu.structs import GatherBatch, mm_struct, mmu_gather
from polymmu_history.linked import Linked30Gather, with_page

__all__ = ["FREE_PTE_NR", "PercpuGather", "StackGather", "StackPostedGather"]

FREE_PTE_NR = 506
"""Pages of the per-CPU array: with the rest of the gather and two words to spare they fill 4 KiB. x86_64 asked for 5350
in 2005, but what decided tested a misspelt name."""


class ArrayGather(Linked30Gather):
    """What they have in common."""

    def has_own(self, tlb: mmu_gather) -> bool:
        """An architecture's differed in size only."""
        return False

    # --- tables
    def tlb_remove_table(self, tlb: mmu_gather, level: int, table: int) -> None:
        if tables_need_rcu(tlb.mm):
            tlb.tables.append((level, table))
            if len(tlb.tables) >= (tlb.table_limit or table_batch_capacity(self.kernel)):
                tlb_flush_mmu(tlb)
        elif self.may_be_fast():
            self.kernel.ops.table_free(tlb.mm, level, table)
        else:
            tlb.tables.append((level, table))
            batch = tlb.batches[0]
            if batch.nr + len(tlb.tables) >= len(batch.pfns):
                tlb_flush_mmu(tlb)

    def tlb_table_flush(self, tlb: mmu_gather) -> None:
        mm, here = tlb.mm, self.kernel.sched.cpu
        alone = mm.mm_users < 2 or mm.cpu_mask == 1 << here.index
        if tlb.tables and tables_need_rcu(mm) and not alone:
            tlb.table_batch = alloc_page(self.kernel, "table_batch", zero=False)
            if tlb.table_batch < 0:
                tables, tlb.tables = tlb.tables, []
                for level, table in tables:
                    self.remove_table_one(tlb, level, table)
        super().tlb_table_flush(tlb)


class PercpuGather(ArrayGather):
    """One array per CPU, of 506 pages or what the arch had, and preemption off."""

    since = "2.5.32"
    wrong = (
        "of two gathers at a time in one mm each flushes its own only; dirty file pages and VM_PFNMAP ranges are "
        "flushed late"
    )

    def __init__(self, kernel: ArchKernel) -> None:
        super().__init__(kernel)
        self.in_use = [False] * len(kernel.cpus)

    @staticmethod
    def refuses(choice: KernelChoice) -> str:
        if choice.i_mmap_lock == "spin":  # and with it the anon_vmas'
            return ""
        return "a per-CPU gather cannot sleep on i_mmap_lock while it frees tables; add `i_mmap_lock: spin`"

    def tlb_gather_mmu(self, mm: mm_struct, fullmm: bool) -> mmu_gather:
        sched = self.kernel.sched
        sched.preempt_disable()
        if self.in_use[sched.cpu.index]:
            raise AssertionError(f"the gather of CPU {sched.cpu.index} is in use already")
        self.in_use[sched.cpu.index] = True
        tlb = self.begun(mmu_gather(mm, fullmm, []))
        tlb.batches.append(GatherBatch(np.empty(self.capacity(tlb), dtype=np.int64), -1))
        return tlb

    def capacity(self, tlb: mmu_gather) -> int:
        """Pages of the array; a machine may have it smaller."""
        return min(tlb.limit or FREE_PTE_NR, self.kernel.description.kernel.gather_batch)

    def more_room(self, tlb: mmu_gather) -> bool:
        """Made at once, whatever lock is held."""
        tlb_flush_mmu(tlb)
        return True

    def tlb_cond_resched(self, tlb: mmu_gather) -> None:
        """The array is given up and taken again."""
        sched = self.kernel.sched
        if not sched.need_resched():
            return
        vma = tlb.vma
        self.tlb_finish_mmu(tlb, tlb.start, tlb.end)
        sched.cond_resched()
        again = self.tlb_gather_mmu(tlb.mm, tlb.fullmm)
        tlb.batches, tlb.fast_mode, tlb.arch, tlb.vma = again.batches, again.fast_mode, again.arch, vma

    def tlb_finish_mmu(self, tlb: mmu_gather, start: int, end: int) -> None:
        self.end(tlb, start, end)
        sched = self.kernel.sched
        self.in_use[sched.cpu.index] = False
        sched.preempt_enable()


class StackGather(ArrayGather):
    """Eight slots, or one page of pointers."""

    since = "2011, patch 1 of the series for 3.0, mended"
    wrong = "on one CPU pages are freed before the flush, and another task may run in between; and as percpu"

    def tlb_gather_mmu(self, mm: mm_struct, fullmm: bool) -> mmu_gather:
        return with_page(self.begun(mmu_gather(mm, fullmm, [bundle()])))

    def more_room(self, tlb: mmu_gather) -> bool:
        """Only by a flush."""
        return False

    def tlb_flush_mmu_free(self, tlb: mmu_gather) -> None:
        """Then try for a page again: a flush that freed something may have brought one."""
        freed = tlb.queued
        super().tlb_flush_mmu_free(tlb)
        if freed:
            with_page(tlb)


class StackPostedGather(StackGather):
    """The zap goes back from a flush without moving on, and with what it had subtracted from rss."""

    since = "2011, patch 1 of the series for 3.0, as first posted"
    wrong = "the pages of a table that a flush interrupts are subtracted from rss again; and as stack"

    def tlb_retry(self, rss: Rss) -> int:
        return 1
