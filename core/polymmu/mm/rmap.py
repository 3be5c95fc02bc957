"""From a page to the ptes that map it, found by looking through every address space's tables.

Each entry is looked at again below the table lock: a walk that came without a lock may be late.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import numpy as np

from polymmu.hooks import ArchKernel
from polymmu.mm.frames import put_page
from polymmu.mm.swap import swap_duplicate_in
from polymmu.mm.tables import find_entry, pfn_of, pte_lock, pte_unlock, read_pte, read_ptes, table_runs
from polymmu.mm.vma import linear_index
from polymmu.mm.zap import collect_dirt, update_hiwater_rss
from polymmu.structs import PG_ANON, PG_DIRTY, VM_NONLINEAR, VM_PFNMAP, vm_area_struct

__all__ = ["Unmapped", "page_referenced", "try_to_unmap"]


class Unmapped(enum.Enum):
    """What came of ``try_to_unmap``, in Linux's words."""

    SWAP_SUCCESS = "no pte maps the page any more"
    SWAP_AGAIN = "some pte could not be looked at now"
    SWAP_FAIL = "some pte must stay"


def page_referenced(kernel: ArchKernel, pfn: int) -> int:
    """Through how many ptes the page was used since the last call; they are old afterwards."""
    used = 0
    for vma, addr, ptep in _mappings(kernel, pfn):
        young = kernel.ops.test_and_clear_young(vma, addr, ptep, 1)
        if young:
            kernel.ops.flush_tlb_page(vma, addr)
        used += young
    return used


def try_to_unmap(kernel: ArchKernel, pfn: int, entry: int | None) -> Unmapped:
    """Take a locked page out of every pte. ``entry`` stands there afterwards; None: nothing, or the page of the file.

    The caller holds a reference. Dirty state is the page's afterwards; the page is in no TLB any more.
    """
    frames, shape = kernel.frames, kernel.shape
    for vma, addr, ptep in _mappings(kernel, pfn):
        mm = vma.vm_mm
        update_hiwater_rss(mm)
        kernel.events.entries_changed(mm, addr, addr + mm.layout.page_size, 1, "clear")
        value = int(kernel.ops.ptep_clear_flush(vma, addr, ptep, 1)[0])
        if shape.pte.dirty is not None and shape.pte.dirty.test(value):
            frames.flags[pfn] |= PG_DIRTY
        left = entry
        index = frames.index[pfn]
        if vma.vm_flags & VM_NONLINEAR and index != linear_index(vma, addr):
            assert shape.pte.file is not None
            left = shape.pte.file.make(index)
        if left is not None:
            values = np.array((left,), dtype=np.uint64)
            swap_duplicate_in(mm, values)
            kernel.ops.set_pte(mm, addr, ptep, values)
        if frames.flags[pfn] & PG_ANON:
            mm.anon_rss -= 1
        else:
            mm.file_rss -= 1
        frames.mapcount[pfn] -= 1
        put_page(kernel, pfn)
        collect_dirt(kernel, np.array((pfn,), dtype=np.int64))
    return Unmapped.SWAP_AGAIN if frames.mapcount[pfn] else Unmapped.SWAP_SUCCESS


def _mappings(kernel: ArchKernel, pfn: int) -> Iterator[tuple[vm_area_struct, int, int]]:
    """Each (vma, address, pte) that maps ``pfn``, one at a time below its table lock; ends when there is none."""
    shape = kernel.shape
    for mm in [mm for mm in kernel.mms.objects if mm.mm_users]:
        for vma in list(mm.vmas.values()):
            if vma.huge_size or vma.vm_flags & VM_PFNMAP or not kernel.frames.mapcount[pfn]:
                continue
            found = []
            for ptep, addr, stop in table_runs(mm, vma.vm_start, vma.vm_end):
                n = (stop - addr) >> mm.layout.page_shift
                kernel.events.entries_visited(mm, "rmap", n)
                values = read_ptes(mm, ptep, n)
                pfns = (values & np.uint64(shape.pte.frame_mask)) >> np.uint64(shape.pfn_shift)
                hits = np.flatnonzero(shape.pte.mapped_in(values) & (pfns == np.uint64(pfn)))
                found += [addr + (hit << mm.layout.page_shift) for hit in hits.tolist()]
            for addr in found:
                ptep = find_entry(mm, addr) if mm.vmas.get(vma.vm_start) is vma else -1
                if ptep < 0:
                    continue
                pte_lock(mm, ptep)
                value = read_pte(mm, ptep)
                if shape.pte.is_mapped(value) and pfn_of(shape, value) == pfn:
                    yield vma, addr, ptep
                pte_unlock(mm, ptep)
