"""Gather pages whose translations must die before the pages do.

Order, and the only order: unhook the entry, flush the TLB, free the page. A page freed before the flush can be
reused while a stale translation still reaches it. Everything in this file serves that sentence (A0.3, A4.2).

Pages are queued in a bundle of eight inside the gather, then in batch pages that are allocated without waiting;
when no more is to be had, or the total limit is reached, the caller must flush. In fast mode (one CPU, and
nobody else can run) pages are freed at once and the flush comes later. Tables wait in a list of their own.

First reading: ``tlb_gather_mmu``, ``tlb_flush_mmu``, ``tlb_finish_mmu``; ``next_batch`` only keeps the queue in
chunks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polymmu.hooks import ArchKernel
from polymmu.mm.frames import alloc_page, free_page, put_run
from polymmu.structs import GatherBatch, mm_struct, mmu_gather

__all__ = [
    "batch_capacity",
    "tlb_adjust_range",
    "tlb_finish_mmu",
    "tlb_flush_mmu",
    "tlb_flush_mmu_free",
    "tlb_flush_mmu_tlbonly",
    "tlb_gather_mmu",
    "tlb_remove_page",
    "tlb_remove_pages",
    "tlb_remove_table",
    "tlb_room",
]

BUNDLE = 8
"""Pages a gather can queue without allocating anything (Linux: MMU_GATHER_BUNDLE)."""

WORD = (1 << 64) - 1


def batch_capacity(kernel: ArchKernel) -> int:
    """Pages one batch page holds: as many pointers as fit beside its header of two."""
    return kernel.shape.layout.page_size // 8 - 2


def tlb_gather_mmu(mm: mm_struct, fullmm: bool = False) -> mmu_gather:
    """Begin to gather. ``fullmm``: the whole address space goes, and nobody will use it again.

    Until ``tlb_finish_mmu`` the count ``mm.tlb_flush_pending`` says that cleared entries may still be cached.
    """
    kernel: ArchKernel = mm.kernel
    tlb = mmu_gather(mm, fullmm, [GatherBatch(np.empty(BUNDLE, dtype=np.int64), -1)])
    mm.tlb_flush_pending += 1  # before the first entry changes (A4.3)
    kernel.ops.tlb_gather(tlb)
    return tlb


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


# ------------------------------------------------------------------ pages
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
    kernel: ArchKernel = tlb.mm.kernel
    if tlb.fast_mode:
        put_run(kernel, pfns)
        return False
    batch = tlb.batches[tlb.active]
    batch.pfns[batch.nr : batch.nr + len(pfns)] = pfns
    batch.nr += len(pfns)
    tlb.queued += len(pfns)
    return batch.nr == len(batch.pfns) and not _next_batch(tlb)


def tlb_remove_page(tlb: mmu_gather, pfn: int) -> None:
    """Queue one page, flushing at once when that fills the gather. The caller holds no spinlock."""
    if tlb_remove_pages(tlb, np.array((pfn,), dtype=np.int64)):
        tlb_flush_mmu(tlb)


def _next_batch(tlb: mmu_gather) -> bool:
    """Make room for more pages: a batch from before the last flush, or a new one, without waiting."""
    kernel: ArchKernel = tlb.mm.kernel
    if tlb.active + 1 < len(tlb.batches):
        tlb.active += 1
        return True
    capacity = batch_capacity(kernel)
    # The bundle does not count: 10,000 pages are nineteen batch pages of 510 (Linux: MAX_GATHER_BATCH_COUNT).
    if len(tlb.batches) - 1 >= kernel.description.kernel.gather_batch // capacity:
        return False
    frame = alloc_page(kernel, "gather", zero=False)
    kernel.events.gather_batch(tlb.mm, frame >= 0)
    if frame < 0:
        return False
    tlb.batches.append(GatherBatch(np.empty(capacity, dtype=np.int64), frame))
    tlb.active += 1
    return True


# ------------------------------------------------------------------ tables
def tlb_remove_table(tlb: mmu_gather, level: int, table: int) -> None:
    """Queue an unhooked table of ``level`` until no TLB and no walk cache can reach it. May flush.

    The range it covered was recorded when it was unhooked (``tlb_adjust_range`` at its parent's level).
    """
    kernel: ArchKernel = tlb.mm.kernel
    tlb.need_flush = True
    tlb.freed_tables = True
    tlb.tables.append((level, table))
    if len(tlb.tables) >= batch_capacity(kernel):
        tlb_flush_mmu(tlb)


# ------------------------------------------------------------------ flush, free, finish
def tlb_flush_mmu_tlbonly(tlb: mmu_gather) -> None:
    """Flush what was cleared since the last flush, if anything was. Nothing is freed yet."""
    if not tlb.need_flush:
        return
    kernel: ArchKernel = tlb.mm.kernel
    kernel.ops.tlb_flush(tlb)
    kernel.events.gather_flush(tlb.mm, tlb.queued, len(tlb.tables))
    tlb.need_flush = False
    tlb.freed_tables = False
    tlb.cleared_levels = 0
    tlb.start = tlb.end = 0


def tlb_flush_mmu_free(tlb: mmu_gather) -> None:
    """Free what the gather holds; its translations were flushed. Batch pages stay for the next round."""
    mm = tlb.mm
    kernel: ArchKernel = mm.kernel
    if tlb.tables:
        tables = tlb.tables
        tlb.tables = []

        def free_tables() -> None:
            for level, table in tables:
                kernel.ops.table_free(mm, level, table)

        if kernel.ops.tables_need_rcu(mm):
            kernel.sched.call_rcu(free_tables)
        else:
            free_tables()
    if tlb.queued:
        for batch in tlb.batches[: tlb.active + 1]:
            if batch.nr:
                put_run(kernel, batch.pfns[: batch.nr])
                batch.nr = 0
        tlb.queued = 0
        tlb.active = 0


def tlb_flush_mmu(tlb: mmu_gather) -> None:
    """Flush, then free: afterwards the gather is empty. The caller holds no spinlock."""
    tlb_flush_mmu_tlbonly(tlb)
    tlb_flush_mmu_free(tlb)


def tlb_finish_mmu(tlb: mmu_gather, start: int, end: int) -> None:
    """End a gather that worked in [start, end): last flush and free, then its batch pages go."""
    mm = tlb.mm
    kernel: ArchKernel = mm.kernel
    if mm.tlb_flush_pending > 1:
        # Somebody else gathers in this mm: a pte we found empty may be one they cleared and have not flushed.
        # Everything goes, walk caches too, so that no arch takes the full flush for the end of the mm (A4.7).
        tlb.fullmm = tlb.need_flush = tlb.freed_tables = True
        tlb.start = tlb.end = 0
    tlb_flush_mmu(tlb)
    kernel.ops.check_pgt_cache(mm)
    for batch in tlb.batches[1:]:
        free_page(kernel, batch.frame)
    kernel.ops.tlb_finish(tlb, start, end)
    mm.tlb_flush_pending -= 1  # last: the count covers the flush (A4.2 step 9)
