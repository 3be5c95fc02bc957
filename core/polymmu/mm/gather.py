"""Gather pages whose translations must die before the pages do.

Order, and the only order: unhook the entry, flush the TLB, free the page. A page freed before the flush can be
reused while a stale translation still reaches it. Everything in this file serves that sentence (A0.3, A4.2).

Pages are queued in a bundle of eight inside the gather, then in batch pages that are allocated without waiting;
when no more is to be had, or the total limit is reached, the caller must flush. In fast mode (one CPU, and
nobody else can run) pages are freed at once and the flush comes later.

How pages are gathered changed most over the years. ``LinkedGather`` is how it is since Linux 3.0; the machine file
names another class, whose steps are methods, to be asked instead (``kernel.gather``, ``polymmu.variants``). The
functions here are what the rest of the mm core calls.

Tables wait in a list of their own (A4.4), and after the flush for lockless walkers too where a flush does not
interrupt those: then the list lies in a page, and without one a table goes by itself after an interrupt to all.

First reading: ``LinkedGather``, ``tlb_remove_table``; ``more_room`` only keeps the queue in chunks.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from polymmu.hardware.cpu import Cpu
from polymmu.hooks import ArchKernel
from polymmu.mm.frames import alloc_page, free_page, put_run
from polymmu.mm.grab import mmdrop, mmgrab
from polymmu.mm.notifier import mmu_notifier_invalidate_range
from polymmu.mm.variant import Variant
from polymmu.structs import VM_PFNMAP, GatherBatch, mm_struct, mmu_gather, vm_area_struct

__all__ = [
    "BUNDLE",
    "LinkedGather",
    "Rss",
    "batch_capacity",
    "table_batch_capacity",
    "tables_need_rcu",
    "tlb_adjust_range",
    "tlb_cond_resched",
    "tlb_end_vma",
    "tlb_finish_mmu",
    "tlb_flush_dirty",
    "tlb_flush_mmu",
    "tlb_flush_mmu_tlbonly",
    "tlb_gather_mmu",
    "tlb_remove_page",
    "tlb_remove_pages",
    "tlb_remove_table",
    "tlb_retry",
    "tlb_room",
]

BUNDLE = 8
"""Pages a gather can queue without allocating anything (Linux: MMU_GATHER_BUNDLE)."""

WORD = (1 << 64) - 1


def batch_capacity(kernel: ArchKernel) -> int:
    """Pages one batch page holds: as many pointers as fit beside its header of two."""
    return kernel.shape.layout.page_size // 8 - 2


def table_batch_capacity(kernel: ArchKernel) -> int:
    """Tables one batch holds: what a machine says, or a page; its header, with what RCU needs, takes three words."""
    return kernel.description.kernel.table_batch or kernel.shape.layout.page_size // 8 - 3


# ------------------------------------------------------------------ the generation
class LinkedGather(Variant):
    """On the caller's stack, preemptible, with linked batches of pages; range, levels and freed tables are noted."""

    since = "4.20, the last step 5.19"
    wrong = ""

    def may_be_fast(self) -> bool:
        """Whether pages may be freed before the flush. From 3.10 on there was no such mode."""
        return self.kernel.description.kernel.fast_mode and len(self.kernel.cpus) == 1

    def tlb_gather_mmu(self, mm: mm_struct, fullmm: bool) -> mmu_gather:
        """A gather with the bundle only, of which others know by ``tlb_flush_pending``."""
        self.kernel.sched.atomic()
        mm.tlb_flush_pending += 1  # before the first entry changes (A4.3)
        return self.begun(mmu_gather(mm, fullmm, [bundle()]))

    def begun(self, tlb: mmu_gather) -> mmu_gather:
        """``tlb`` after the arch had its say."""
        tlb.fast_mode = self.may_be_fast()
        self.kernel.ops.tlb_gather(tlb)
        return tlb

    def tlb_remove_pages(self, tlb: mmu_gather, pfns: NDArray[np.int64]) -> bool:
        """See the function of this name."""
        if tlb.fast_mode:
            put_run(self.kernel, pfns)
            return False
        batch = tlb.batches[tlb.active]
        batch.pfns[batch.nr : batch.nr + len(pfns)] = pfns
        batch.nr += len(pfns)
        tlb.queued += len(pfns)
        return batch.nr == len(batch.pfns) and not self.more_room(tlb)

    def more_room(self, tlb: mmu_gather) -> bool:
        """Make room for more pages: a batch from before the last flush, or a new one, without waiting."""
        if tlb.active + 1 < len(tlb.batches):
            tlb.active += 1
            return True
        if len(tlb.batches) - 1 >= self.max_batches():
            return False
        batch = new_batch(tlb, batch_capacity(self.kernel))
        if batch is None:
            return False
        tlb.batches.append(batch)
        tlb.active += 1
        return True

    def max_batches(self) -> int:
        """How many batch pages a gather may have. The bundle does not count: 10,000 pages are nineteen of 510
        (Linux: MAX_GATHER_BATCH_COUNT)."""
        return self.kernel.description.kernel.gather_batch // batch_capacity(self.kernel)

    def tlb_flush(self, tlb: mmu_gather) -> None:
        """Let the arch flush the range that was recorded."""
        self.kernel.ops.tlb_flush(tlb)

    def tlb_flush_dirty(self, tlb: mmu_gather) -> bool:
        """See the function of this name: flush while the table lock is still held (Linux 3.15)."""
        tlb_flush_mmu_tlbonly(tlb)
        return True

    def tlb_retry(self, rss: Rss) -> int:
        """See the function of this name: what was subtracted is forgotten, and no entry seen again."""
        rss.anon = rss.file = 0
        return 0

    def tlb_end_vma(self, tlb: mmu_gather, vma: vm_area_struct) -> None:
        """See the function of this name. The frames of VM_PFNMAP have no mapcount: a truncation elsewhere would find
        nothing mapped and let the driver free them while our flush is still to come (A4.9, Linux 5.19)."""
        if vma.vm_flags & VM_PFNMAP and not tlb.fullmm:
            tlb_flush_mmu_tlbonly(tlb)

    def tlb_cond_resched(self, tlb: mmu_gather) -> None:
        """See the function of this name."""
        self.kernel.sched.cond_resched()

    def tlb_flush_mmu_free(self, tlb: mmu_gather) -> None:
        """Free what the gather holds; its translations were flushed. Batch pages stay for the next round."""
        self.tlb_table_flush(tlb)
        if tlb.queued:
            for batch in tlb.batches[: tlb.active + 1]:
                if batch.nr:
                    put_run(self.kernel, batch.pfns[: batch.nr])
                    batch.nr = 0
            tlb.queued = 0
            tlb.active = 0

    # --- tables
    def tlb_remove_table(self, tlb: mmu_gather, level: int, table: int) -> None:
        """See the function of this name: a list, which takes a page where RCU is to be waited for."""
        kernel = self.kernel
        if not tlb.tables and tables_need_rcu(tlb.mm):
            tlb.table_batch = alloc_page(kernel, "table_batch", zero=False)
            if tlb.table_batch < 0:
                self.no_batch(tlb, level, table)
                return
        tlb.tables.append((level, table))
        if len(tlb.tables) >= table_batch_capacity(kernel):
            self.tlb_table_invalidate(tlb)
            self.tlb_table_flush(tlb)

    def tlb_table_invalidate(self, tlb: mmu_gather) -> None:
        """Walk caches must not lead to a table when it is freed or begins to wait for RCU (2018, 2020)."""
        tlb_flush_mmu_tlbonly(tlb)

    def no_batch(self, tlb: mmu_gather, level: int, table: int) -> None:
        """There is no page to queue tables in: this one goes now."""
        self.tlb_table_invalidate(tlb)
        self.remove_table_one(tlb, level, table)

    def remove_table_one(self, tlb: mmu_gather, level: int, table: int) -> None:
        """Once every CPU took an interrupt, none is in a walk that had them off.

        That is no grace period: a reader with interrupts on is not waited for.
        """
        kernel = self.kernel
        kernel.sched.ipi((1 << len(kernel.cpus)) - 1, _acknowledge, kernel.description.costs.ipi)
        kernel.ops.table_free(tlb.mm, level, table)

    def tlb_table_flush(self, tlb: mmu_gather) -> None:
        """Free the queued tables, whose translations were flushed, or hand them to RCU."""
        mm, kernel = tlb.mm, self.kernel
        tables, batch = tlb.tables, tlb.table_batch
        if not tables:
            return
        tlb.tables, tlb.table_batch = [], -1

        def free_tables() -> None:
            for level, table in tables:
                kernel.ops.table_free(mm, level, table)

        def free_batch() -> None:
            free_tables()
            free_page(kernel, batch)
            mmdrop(mm)

        if batch < 0:
            free_tables()
        else:
            mmgrab(mm)  # an arch may keep an account of its tables in the mm
            kernel.sched.call_rcu(free_batch)

    # --- finish
    def tlb_finish_mmu(self, tlb: mmu_gather, start: int, end: int) -> None:
        """See the function of this name."""
        mm = tlb.mm
        if mm.tlb_flush_pending > 1:
            self.flush_nested(tlb, start, end)
        self.end(tlb, start, end)
        self.kernel.sched.atomic()
        mm.tlb_flush_pending -= 1  # last: the count covers the flush (A4.2 step 9)

    def flush_nested(self, tlb: mmu_gather, start: int, end: int) -> None:
        """Somebody else gathers in this mm: a pte we found empty may be one they cleared and have not flushed.

        Everything goes, walk caches too, so that no arch takes the full flush for the end of the mm (A4.7).
        """
        tlb.fullmm = tlb.need_flush = tlb.freed_tables = True
        tlb.start = tlb.end = 0

    def end(self, tlb: mmu_gather, start: int, end: int) -> None:
        """The last flush and free, then the batch pages go."""
        tlb_flush_mmu(tlb)
        self.kernel.ops.check_pgt_cache(tlb.mm)
        for batch in tlb.batches:
            if batch.frame >= 0:
                free_page(self.kernel, batch.frame)
        self.kernel.ops.tlb_finish(tlb, start, end)


@attrs.define
class Rss:
    """Pages of one table that its mm no longer counts, since ``tlb_retry`` or the first."""

    anon: int = 0
    file: int = 0


def bundle() -> GatherBatch:
    """The slots that a gather brings with it."""
    return GatherBatch(np.empty(BUNDLE, dtype=np.int64), -1)


def new_batch(tlb: mmu_gather, capacity: int) -> GatherBatch | None:
    """A batch in a page of its own, got without waiting, or None."""
    kernel: ArchKernel = tlb.mm.kernel
    frame = alloc_page(kernel, "gather", zero=False)
    kernel.events.gather_batch(tlb.mm, frame >= 0)
    return GatherBatch(np.empty(capacity, dtype=np.int64), frame) if frame >= 0 else None


def strategy_of(mm: mm_struct) -> LinkedGather:
    """The machine's way to gather."""
    strategy: LinkedGather = mm.kernel.variants.gather
    return strategy


# ------------------------------------------------------------------ pages
def tlb_gather_mmu(mm: mm_struct, fullmm: bool = False) -> mmu_gather:
    """Begin to gather. ``fullmm``: the whole address space goes, and nobody will use it again."""
    return strategy_of(mm).tlb_gather_mmu(mm, fullmm)


def tlb_adjust_range(tlb: mmu_gather, start: int, end: int, level: int) -> None:
    """Entries of ``level`` covering [start, end) were cleared: the next flush must cover them. ``end`` 0: the top."""
    if tlb.need_flush:
        tlb.start = min(tlb.start, start)
        if (end - 1) & WORD > (tlb.end - 1) & WORD:
            tlb.end = end
    else:
        tlb.need_flush = True
        tlb.start, tlb.end = start, end
    tlb.cleared_levels |= 1 << level


def tlb_room(tlb: mmu_gather) -> int:
    """Pages that can be queued before the next batch is needed; at least one. Without limit in fast mode."""
    if tlb.fast_mode:
        return 1 << 62
    batch = tlb.batches[tlb.active]
    return len(batch.pfns) - batch.nr


def tlb_remove_pages(tlb: mmu_gather, pfns: NDArray[np.int64]) -> bool:
    """Queue at most ``tlb_room`` pages, each with the reference its cleared pte held.

    All are taken. True: no slot is left, and the caller must ``tlb_flush_mmu`` before it clears more entries.
    """
    return strategy_of(tlb.mm).tlb_remove_pages(tlb, pfns)


def tlb_remove_page(tlb: mmu_gather, pfn: int) -> None:
    """Queue one page, flushing at once when that fills the gather. The caller holds no spinlock."""
    if tlb_remove_pages(tlb, np.array((pfn,), dtype=np.int64)):
        tlb_flush_mmu(tlb)


def tlb_flush_dirty(tlb: mmu_gather) -> bool:
    """Dirty file pages were cleared, and the table lock is still held: flush, if this gather does. True: it did,
    and the caller goes on with ``tlb_flush_mmu`` when it has dropped the lock."""
    return strategy_of(tlb.mm).tlb_flush_dirty(tlb)


def tlb_retry(tlb: mmu_gather, rss: Rss) -> int:
    """A full gather was flushed with the table lock dropped, and the caller goes back to its table (A2.4), where
    ``rss`` was subtracted so far. How many of the entries that it cleared it sees again."""
    return strategy_of(tlb.mm).tlb_retry(rss)


def tlb_end_vma(tlb: mmu_gather, vma: vm_area_struct) -> None:
    """The entries of a vma were cleared; its pages are in the gather. May flush."""
    kernel: ArchKernel = tlb.mm.kernel
    kernel.ops.tlb_end_vma(tlb, vma)
    strategy_of(tlb.mm).tlb_end_vma(tlb, vma)


def tlb_cond_resched(tlb: mmu_gather) -> None:
    """Give way between two tables if somebody asked. The caller holds no spinlock."""
    strategy_of(tlb.mm).tlb_cond_resched(tlb)


# ------------------------------------------------------------------ tables
def tables_need_rcu(mm: mm_struct) -> bool:
    """Whether tables of ``mm`` wait for lockless walkers after the flush."""
    kernel: ArchKernel = mm.kernel
    choice = kernel.description.kernel.table_free
    return kernel.ops.tables_need_rcu(mm) if choice == "auto" else choice == "rcu"


def tlb_remove_table(tlb: mmu_gather, level: int, table: int) -> None:
    """Queue an unhooked table of ``level`` until no TLB and no walker can reach it. May flush.

    The range it covered was recorded when it was unhooked (``tlb_adjust_range`` at its parent's level).
    """
    tlb.need_flush = True
    tlb.freed_tables = True
    strategy_of(tlb.mm).tlb_remove_table(tlb, level, table)


def _acknowledge(cpu: Cpu) -> None:
    """What an interrupt does that is sent only to be answered."""


# ------------------------------------------------------------------ flush, free, finish
def tlb_flush_mmu_tlbonly(tlb: mmu_gather) -> None:
    """Flush what was cleared since the last flush, if anything was. Nothing is freed yet."""
    if not tlb.need_flush:
        return
    strategy_of(tlb.mm).tlb_flush(tlb)
    kernel: ArchKernel = tlb.mm.kernel
    start, end = (0, 0) if tlb.fullmm else (tlb.start, tlb.end)
    mmu_notifier_invalidate_range(tlb.mm, start, end)
    kernel.events.gather_flush(tlb.mm, tlb.queued, len(tlb.tables))
    tlb.need_flush = False
    tlb.freed_tables = False
    tlb.cleared_levels = 0
    tlb.start = tlb.end = 0


def tlb_flush_mmu(tlb: mmu_gather) -> None:
    """Flush, then free: afterwards the gather is empty. The caller holds no spinlock."""
    tlb_flush_mmu_tlbonly(tlb)
    strategy_of(tlb.mm).tlb_flush_mmu_free(tlb)


def tlb_finish_mmu(tlb: mmu_gather, start: int, end: int) -> None:
    """End a gather that worked in [start, end): last flush and free, then its batch pages go."""
    strategy_of(tlb.mm).tlb_finish_mmu(tlb, start, end)
    kernel: ArchKernel = tlb.mm.kernel
    kernel.events.gather_end(tlb.mm)
