"""Take a range of an address space apart: for munmap, and where a driver's mmap fails half way.

The order is what matters: clear the ptes, free the tables, flush, and only then free pages (A0.3). Which tables go
is for ``kernel.free_pgtables`` to say.
"""

from __future__ import annotations

from polymmu.hooks import ArchKernel
from polymmu.mm.commit import vm_unacct_vmas
from polymmu.mm.frames import lru_add_drain
from polymmu.mm.gather import tlb_finish_mmu, tlb_gather_mmu
from polymmu.mm.notifier import mmu_notifier_invalidate_range_end, mmu_notifier_invalidate_range_start
from polymmu.mm.zap import unmap_vmas, update_hiwater_rss
from polymmu.structs import mm_struct, vm_area_struct

__all__ = ["unmap_region"]


def unmap_region(
    mm: mm_struct, first: vm_area_struct, prev: vm_area_struct | None, start: int, end: int
) -> None:
    """Empty [start, end) of the vmas from ``first`` on, which are not in the list behind ``prev`` (A7.2 step 3).

    The memory committed to them is given back.
    """
    kernel: ArchKernel = mm.kernel
    lru_add_drain(kernel)  # a pagevec's reference would keep fresh pages beyond the unmap
    update_hiwater_rss(mm)
    mmu_notifier_invalidate_range_start(mm, start, end)
    tlb = tlb_gather_mmu(mm)
    unmap_vmas(tlb, first, start, end)
    vm_unacct_vmas(first)
    kernel.variants.free_pgtables.unmapped(tlb, first, prev, start, end)
    tlb_finish_mmu(tlb, start, end)
    mmu_notifier_invalidate_range_end(mm, start, end)
