"""The mmu_gather before Linux 3.0, and the first one on the stack (A4.1).

``percpu`` (2.5.32 to 2.6.39): one array per CPU, so nothing else may run there from gather to finish; a full array is
flushed and freed where that is noticed, below the page-table lock. ``stack`` (the first patch of the series for 3.0,
2011): eight slots in the gather, or one page if there is one to be had without waiting; a full gather is flushed
after the lock was dropped. On a machine with one CPU both free pages at once and flush at the end; ``stack`` gave up
half of what made that sound, for another thread may now run in between.

Neither tells anybody that a gather is under way, so of two at a time in one mm (madvise) each flushes its own only
(2017), nor flushes dirty file pages before the lock is dropped (2014).
"""

from __future__ import annotations

import numpy as np

from polymmu.description.model import KernelChoice
from polymmu.hooks import ArchKernel
from polymmu.mm.gather import BUNDLE, LinkedGather, new_batch, tlb_flush_mmu
from polymmu.structs import GatherBatch, mm_struct, mmu_gather

__all__ = ["FREE_PTE_NR", "PercpuGather", "StackGather"]

FREE_PTE_NR = 506
"""Pages of the per-CPU array: with the rest of the gather and two words to spare they fill 4 KiB."""


class UnannouncedGather(LinkedGather):
    """What both have in common."""

    def may_be_fast(self) -> bool:
        return len(self.kernel.cpus) == 1

    def tlb_flush_dirty(self, tlb: mmu_gather) -> bool:
        return False

    def begun(self, tlb: mmu_gather) -> mmu_gather:
        """``tlb`` after the arch had its say."""
        tlb.fast_mode = self.may_be_fast()
        self.kernel.ops.tlb_gather(tlb)
        return tlb

    def tlb_finish_mmu(self, tlb: mmu_gather, start: int, end: int) -> None:
        self.end(tlb, start, end)


class PercpuGather(UnannouncedGather):
    """One array per CPU and preemption off; the arch may have had a larger or smaller one (``tlb.limit``)."""

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
        tlb.batches.append(GatherBatch(np.empty(tlb.limit or FREE_PTE_NR, dtype=np.int64), -1))
        return tlb

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


class StackGather(UnannouncedGather):
    """Eight slots, or one page of pointers."""

    def tlb_gather_mmu(self, mm: mm_struct, fullmm: bool) -> mmu_gather:
        bundle = GatherBatch(np.empty(BUNDLE, dtype=np.int64), -1)
        return self.with_page(self.begun(mmu_gather(mm, fullmm, [bundle])))

    def with_page(self, tlb: mmu_gather) -> mmu_gather:
        """``tlb``, empty, with a page of slots in place of its own eight, if there is one."""
        if not tlb.fast_mode and tlb.batches[0].frame < 0:
            batch = new_batch(tlb, self.kernel.shape.layout.page_size // 8)
            if batch is not None:
                tlb.batches[0] = batch
        return tlb

    def more_room(self, tlb: mmu_gather) -> bool:
        """Only by a flush."""
        return False

    def tlb_flush_mmu_free(self, tlb: mmu_gather) -> None:
        """Then try for a page again: a flush that freed something may have brought one."""
        freed = tlb.queued
        super().tlb_flush_mmu_free(tlb)
        if freed:
            self.with_page(tlb)
