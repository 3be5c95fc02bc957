"""The gathers from Linux 3.0 to 4.19 (A4.1, A2.4, A4.4): each is the one after it with steps taken back.

What they have in common: tables that wait for RCU are freed at once while the mm has one user, although another CPU
may have the mm loaded lazily; and they go to RCU, or without a batch page away, before TLBs and walk caches are
flushed (2018, 2020). Mappings without mapcounts are flushed with everything else (2022).

Two architectures had something of their own. One kept a gather with eight slots, or one page of them from the first
page that is queued on (``tlb.limit``); the other freed tables by a list that did it right, but for 3.0
(``tlb.table_limit``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polymmu.hooks import ArchKernel
from polymmu.mm.gather import LinkedGather, bundle, new_batch, tables_need_rcu, tlb_adjust_range, tlb_room
from polymmu.structs import mm_struct, mmu_gather, vm_area_struct

__all__ = ["Linked30Gather", "Linked38Gather", "Linked315Gather", "Linked413Gather", "with_page"]


def with_page(tlb: mmu_gather) -> mmu_gather:
    """``tlb``, empty, with a page of slots in place of its own eight, if there is one."""
    kernel: ArchKernel = tlb.mm.kernel
    if not tlb.fast_mode and tlb.batches[0].frame < 0:
        batch = new_batch(tlb, kernel.shape.layout.page_size // 8)
        if batch is not None:
            tlb.batches[0] = batch
    return tlb


class Linked413Gather(LinkedGather):
    """A gather that finds another one in its mm at the end flushes the range it was given, and that alone."""

    since = "4.13"
    wrong = (
        "tables are freed at once while the mm has one user, and wait for RCU unflushed (to 4.18); "
        "VM_PFNMAP ranges are flushed late (to 5.18)"
    )

    def flush_nested(self, tlb: mmu_gather, start: int, end: int) -> None:
        """No walk caches: tables were freed with mmap_lock held for writing, so by one gather at a time."""
        if not tlb.fullmm:
            layout = tlb.mm.layout
            tlb_adjust_range(tlb, start, end, layout.pte_level)
            self.kernel.ops.tlb_remove_tlb_entry(tlb, -1, start, (end - start) >> layout.page_shift)

    def tlb_end_vma(self, tlb: mmu_gather, vma: vm_area_struct) -> None:
        """Nothing: one flush at the end of the gather."""

    # --- pages
    def has_own(self, tlb: mmu_gather) -> bool:
        """Whether the arch's gather has but one page."""
        return tlb.limit > 0

    def tlb_remove_pages(self, tlb: mmu_gather, pfns: NDArray[np.int64]) -> bool:
        if self.has_own(tlb) and not tlb.queued:
            with_page(tlb)
        return super().tlb_remove_pages(tlb, pfns)

    def more_room(self, tlb: mmu_gather) -> bool:
        return not self.has_own(tlb) and super().more_room(tlb)

    # --- tables
    def is_generic(self, tlb: mmu_gather) -> bool:
        """Whether tables wait for RCU as the generic code has it."""
        return tables_need_rcu(tlb.mm) and not tlb.table_limit

    def tlb_remove_table(self, tlb: mmu_gather, level: int, table: int) -> None:
        if self.is_generic(tlb) and tlb.mm.mm_users < 2:
            self.kernel.ops.table_free(tlb.mm, level, table)
        else:
            super().tlb_remove_table(tlb, level, table)

    def tlb_table_invalidate(self, tlb: mmu_gather) -> None:
        if not self.is_generic(tlb):
            super().tlb_table_invalidate(tlb)


class Linked315Gather(Linked413Gather):
    """Nobody knows that a gather is under way."""

    since = "3.15"
    wrong = "of two gathers at a time in one mm each flushes its own only (to 4.12); and as 4.13"

    def tlb_gather_mmu(self, mm: mm_struct, fullmm: bool) -> mmu_gather:
        return self.begun(mmu_gather(mm, fullmm, [bundle()]))

    def tlb_finish_mmu(self, tlb: mmu_gather, start: int, end: int) -> None:
        self.end(tlb, start, end)


class Linked38Gather(Linked315Gather):
    """Dirty pages leave the table lock unflushed; the range of a flush is what the caller says."""

    since = "3.8"
    wrong = (
        "a full gather's flush leaves out the last page cleared (3.6 to 3.10); on one CPU pages are freed before the "
        "flush, and another task may run in between (to 3.9); dirty file pages are flushed late (to 3.14); and as 3.15"
    )

    def may_be_fast(self) -> bool:
        return len(self.kernel.cpus) == 1

    def tlb_flush_dirty(self, tlb: mmu_gather) -> bool:
        return False

    def tlb_flush(self, tlb: mmu_gather) -> None:
        """A full gather stopped the zap at the entry just cleared, and the flush ended there."""
        if not tlb_room(tlb):
            tlb.end -= tlb.mm.layout.page_size
        super().tlb_flush(tlb)

    def end(self, tlb: mmu_gather, start: int, end: int) -> None:
        if tlb.need_flush:
            tlb.start, tlb.end = start, end
        super().end(tlb, start, end)


class Linked30Gather(Linked38Gather):
    """As many batches as there is memory for, and no range: each flush is the whole mm's."""

    since = "3.0"
    wrong = "no limit to what a gather holds (to 3.7); and as 3.8, but for the range"

    def max_batches(self) -> int:
        return 1 << 62

    def tlb_flush(self, tlb: mmu_gather) -> None:
        tlb.start = tlb.end = 0
        super(Linked38Gather, self).tlb_flush(tlb)  # there is no range that could end early

    def is_generic(self, tlb: mmu_gather) -> bool:
        return tables_need_rcu(tlb.mm)
