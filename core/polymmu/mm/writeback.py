"""Write a file's dirty pages out, so that every later store to them is seen (fsync, msync; Linux 2.6.19).

The last moment at which a page may be called clean is when no pte lets a store through that nobody hears of. So every
pte of it loses the write right and its dirty bit first, and every TLB with them; what was dirty there is so in the
page. Then it is written. A store that comes later faults, and makes it dirty again.

A pte that looks empty may have been cleared a moment ago, below a table lock that is held until TLBs are flushed, too:
so that lock is waited for all the same.

Ptes of nonlinear mappings are not looked at: a page that only they know to be dirty is written when they are zapped.
"""

from __future__ import annotations

import numpy as np

from polymmu.hooks import ArchKernel
from polymmu.mm.frames import get_page, put_page
from polymmu.mm.pagecache import is_cached_at, write_back
from polymmu.mm.pagelock import lock_page, unlock_page
from polymmu.mm.rmap import rmap_walk
from polymmu.mm.tables import read_pte
from polymmu.structs import PG_DIRTY, VM_SHARED, File, vm_area_struct

__all__ = ["page_mkclean", "sync_file"]


def sync_file(kernel: ArchKernel, file: File) -> int:
    """Write what was stored to ``file`` through shared mappings; how many pages. May sleep."""
    mapping, flags = file.mapping, kernel.frames.flags
    pages = 0
    for index in list(mapping.pages.irange()):
        pfn: int | None = mapping.pages.get(index)
        if pfn is None:
            continue
        get_page(kernel, pfn)
        lock_page(kernel, pfn)
        if is_cached_at(mapping, index, pfn):
            page_mkclean(kernel, pfn)
        if is_cached_at(mapping, index, pfn) and flags[pfn] & PG_DIRTY:
            write_back(kernel, pfn)
            pages += 1
        unlock_page(kernel, pfn)
        put_page(kernel, pfn)
    return pages


def page_mkclean(kernel: ArchKernel, pfn: int) -> None:
    """No store to a locked page of a file goes through from here on without a fault. Earlier ones are noted."""

    def visit(vma: vm_area_struct, addr: int, ptep: int) -> bool:
        if vma.vm_flags & VM_SHARED:
            clean_one(vma, addr, ptep, pfn)
        return True

    rmap_walk(kernel, pfn, visit, sync=True)
    if kernel.shape.pte.dirty is None and kernel.ops.page_test_and_clear_dirty(kernel, pfn):
        kernel.frames.flags[pfn] |= PG_DIRTY


def clean_one(vma: vm_area_struct, addr: int, ptep: int, pfn: int) -> None:
    """The same for one pte, its table lock held (Linux: page_mkclean_one)."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    pte = kernel.shape.pte
    value = read_pte(mm, ptep)
    if not pte.write.test(value) and (pte.dirty is None or not pte.dirty.test(value)):
        return
    kernel.events.entries_changed(mm, addr, addr + mm.layout.page_size, 1, "wrprotect")
    value = int(kernel.ops.ptep_clear_flush(vma, addr, ptep, 1)[0])
    if pte.dirty is not None:
        if pte.dirty.test(value):
            kernel.frames.flags[pfn] |= PG_DIRTY
        value = pte.dirty.clear(value)
    values = np.array((pte.write.clear(value),), dtype=np.uint64)
    kernel.ops.set_pte(mm, addr, ptep, values)
