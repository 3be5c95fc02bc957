"""From a page to every pte that maps it.

An anonymous page names its family of vmas, a page of a file the file; its index says where each of them would have
it; there the pte is looked at, again below the table lock. That finds every pte (INV-RMAP): vmas enter the family's
list or the file's tree before they can map a page, and leave before their tables go; who moves ptes holds the locks
taken here. Only nonlinear vmas have pages anywhere: they are scanned by clusters (``mm.clusters``).

Order: page lock, i_mmap_lock or the family's lock, table lock (A0.1). A reference of the page is the caller's.

First reading: ``try_to_unmap``, ``_walk``; then ``page_lock_anon_vma``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

import numpy as np

from polymmu.hooks import ArchKernel
from polymmu.mm.anon_vma import page_anon_vma, put_anon_vma
from polymmu.mm.frames import put_page
from polymmu.mm.linear import linear_index, vma_address
from polymmu.mm.swap import swap_duplicate_in
from polymmu.mm.tables import find_entry, pfn_of, pte_lock, pte_unlock, read_pte
from polymmu.mm.variant import Variant
from polymmu.mm.zap import collect_dirt, update_hiwater_rss
from polymmu.structs import (
    PG_ANON,
    PG_DIRTY,
    PG_REFERENCED,
    VM_NONLINEAR,
    VM_PFNMAP,
    address_space,
    anon_vma,
    mm_struct,
    vm_area_struct,
)

__all__ = [
    "FlushEach",
    "Unmapped",
    "clear_young",
    "page_lock_anon_vma",
    "page_referenced",
    "rmap_walk",
    "try_to_unmap",
    "unmap_one",
]

Visit = Callable[[vm_area_struct, int, int], bool]
"""``visit(vma, addr, ptep)``: called with the table lock of a pte that maps the page; False ends the walk."""


class Unmapped(enum.Enum):
    """What came of ``try_to_unmap``, in Linux's words."""

    SWAP_SUCCESS = "no pte maps the page any more"
    SWAP_AGAIN = "some pte still maps it; another try may find it"
    SWAP_FAIL = "some pte maps it where we may not look"


def page_referenced(kernel: ArchKernel, pfn: int) -> int:
    """Through how many ptes the page was used since the last call, and one more if it was marked; all forgotten now.

    Ends with the last pte that maps the page. Nonlinear vmas are not looked at (A6.2).
    """
    frames = kernel.frames
    used = int(frames.flags[pfn] & PG_REFERENCED > 0)
    frames.flags[pfn] &= ~PG_REFERENCED
    left = frames.mapcount[pfn]

    def visit(vma: vm_area_struct, addr: int, ptep: int) -> bool:
        nonlocal used, left
        used += clear_young(vma, addr, ptep)
        left -= 1
        return left > 0

    if left:
        rmap_walk(kernel, pfn, visit)
    return used


def try_to_unmap(kernel: ArchKernel, pfn: int, entry: int | None) -> Unmapped:
    """Take a page out of every pte. ``entry`` stands there afterwards (a swap entry); None: nothing.

    The caller holds the page lock. What was dirty in a pte is so in the page, and no TLB knows the page any more.
    """
    frames = kernel.frames

    def visit(vma: vm_area_struct, addr: int, ptep: int) -> bool:
        unmap_one(vma, addr, ptep, entry)
        return frames.mapcount[pfn] > 0

    result = Unmapped.SWAP_AGAIN
    mapping = page_mapping(kernel, pfn)
    if mapping is None:
        rmap_walk(kernel, pfn, visit)
    else:  # A6.1
        mapping.i_mmap_lock.lock()
        _walk_file(kernel, pfn, mapping, visit)
        left = frames.mapcount[pfn]
        if left and mapping.i_mmap_nonlinear and not kernel.variants.cluster_scan.unmap(mapping, left):
            result = Unmapped.SWAP_FAIL
        mapping.i_mmap_lock.unlock()
    return result if frames.mapcount[pfn] else Unmapped.SWAP_SUCCESS


# ------------------------------------------------------------------ walks
def rmap_walk(kernel: ArchKernel, pfn: int, visit: Visit, *, sync: bool = False) -> None:
    """Call ``visit`` for each pte that maps the page, nonlinear vmas' excepted, below the lock of the walk.

    ``sync``: whoever cleared a pte of a file's page has let go of its table lock when the walk is over.
    """
    mapping = page_mapping(kernel, pfn)
    if mapping is not None:
        mapping.i_mmap_lock.lock()
        _walk_file(kernel, pfn, mapping, visit, sync=sync)
        mapping.i_mmap_lock.unlock()
        return
    anon = page_lock_anon_vma(kernel, pfn)
    if anon is not None:
        kernel.sched.spend(kernel.description.costs.vma_visit * len(anon.vmas), "rmap")
        _walk(kernel, pfn, anon.vmas.values(), visit)
        anon.lock.unlock()


def page_mapping(kernel: ArchKernel, pfn: int) -> address_space | None:
    """The file that a page belongs to; None: it is anonymous, or was taken out of its file."""
    mapping = kernel.frames.mapping[pfn]
    return kernel.mappings.objects[mapping - 1] if mapping > 0 else None


def _walk_file(
    kernel: ArchKernel, pfn: int, mapping: address_space, visit: Visit, *, sync: bool = False
) -> None:
    index = kernel.frames.index[pfn]
    before = mapping.i_mmap.visited
    _walk(kernel, pfn, mapping.i_mmap.overlapping(index, index), visit, sync=sync)
    nodes = mapping.i_mmap.visited - before
    kernel.sched.spend(kernel.description.costs.vma_visit * nodes, "rmap")


def _walk(
    kernel: ArchKernel, pfn: int, vmas: Iterable[vm_area_struct], visit: Visit, *, sync: bool = False
) -> None:
    index = kernel.frames.index[pfn]
    for vma in vmas:
        addr = vma_address(vma, index)
        if addr < 0 or vma.huge_size or vma.vm_flags & VM_PFNMAP:
            continue
        ptep = page_check_address(vma, addr, pfn, sync=sync)
        if ptep >= 0:
            goes_on = visit(vma, addr, ptep)
            pte_unlock(vma.vm_mm, ptep)
            if not goes_on:
                return


def page_check_address(vma: vm_area_struct, addr: int, pfn: int, *, sync: bool) -> int:
    """The pte at ``addr``, locked, if it maps the page; else -1. ``sync``: said below the lock only (2.6.27)."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    shape = kernel.shape

    def maps_it() -> bool:
        value = read_pte(mm, ptep)
        return shape.pte.is_mapped(value) and pfn_of(shape, value) == pfn

    kernel.events.entries_visited(mm, "rmap", 1)
    kernel.sched.spend(kernel.description.costs.entry_update, "rmap")
    ptep = find_entry(mm, addr)
    if ptep < 0 or not (sync or maps_it()):
        return -1
    pte_lock(mm, ptep)
    if maps_it():
        return ptep
    pte_unlock(mm, ptep)
    return -1


def page_lock_anon_vma(kernel: ArchKernel, pfn: int) -> anon_vma | None:
    """Lock the family of an anonymous page; None if the page is mapped nowhere, and its anon_vma perhaps another's.

    A8.3: what the page names is a freed anon_vma, even a reused one, once no pte maps the page; but it stays an
    anon_vma as long as we are an RCU reader, so that its lock may be taken and the page looked at again. To sleep on
    a mutex we leave RCU, with a reference instead, and back out if that is the last one by then.
    """
    sched, mapcount = kernel.sched, kernel.frames.mapcount
    sched.preempt_disable()  # an RCU reader
    anon = page_anon_vma(kernel, pfn)
    if anon is None or not mapcount[pfn]:
        sched.preempt_enable()
        return None
    if anon.lock.spins:
        anon.lock.lock()
        taken = True
    else:
        taken = anon.lock.trylock()
    if taken:
        sched.preempt_enable()
        if mapcount[pfn]:
            return anon
        anon.lock.unlock()
        return None
    held = anon.references > 0
    anon.references += held
    sched.preempt_enable()
    if not held:
        return None
    if not mapcount[pfn]:
        put_anon_vma(kernel, anon)
        return None
    anon.lock.lock()
    if anon.references > 1:
        anon.references -= 1
        return anon
    anon.lock.unlock()
    put_anon_vma(kernel, anon)
    return None


# ------------------------------------------------------------------ one pte, its table lock held
def clear_young(vma: vm_area_struct, addr: int, ptep: int) -> int:
    """Whether the page was used through this pte, which is old now in every TLB too (since 2004-06)."""
    kernel: ArchKernel = vma.vm_mm.kernel
    young = kernel.ops.test_and_clear_young(vma, addr, ptep, 1)
    if young:
        kernel.ops.flush_tlb_page(vma, addr)
    return young


def unmap_one(vma: vm_area_struct, addr: int, ptep: int, entry: int | None = None) -> None:
    """Take the page out of one pte, in the order of A0.3: clear and flush, dirty to the page, mapping and reference.

    ``entry`` takes its place; without one a page that is not at its linear place leaves a file pte, so that the next
    fault brings the same page.
    """
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    frames, shape = kernel.frames, kernel.shape
    update_hiwater_rss(mm)
    kernel.events.entries_changed(mm, addr, addr + mm.layout.page_size, 1, "clear")
    value = int(kernel.ops.ptep_clear_flush(vma, addr, ptep, 1)[0])
    pfn = pfn_of(shape, value)
    if vma.vm_flags & VM_NONLINEAR and frames.index[pfn] != linear_index(vma, addr):
        assert shape.pte.file is not None
        entry = shape.pte.file.make(frames.index[pfn])
    if entry is not None:
        values = np.array((entry,), dtype=np.uint64)
        swap_duplicate_in(mm, values)
        kernel.ops.set_pte(mm, addr, ptep, values)
    if shape.pte.dirty is not None and shape.pte.dirty.test(value):
        frames.flags[pfn] |= PG_DIRTY
    kernel.variants.try_to_unmap.uncount(mm, pfn)
    frames.mapcount[pfn] -= 1
    collect_dirt(kernel, np.array((pfn,), dtype=np.int64))
    put_page(kernel, pfn)


class FlushEach(Variant):
    """One pte at a time, each counted for itself; the machine file may name another class (``kernel.try_to_unmap``)."""

    since = "2.5.27"
    wrong = ""

    def uncount(self, mm: mm_struct, pfn: int) -> None:
        """``mm`` has a page less."""
        if self.kernel.frames.flags[pfn] & PG_ANON:
            mm.anon_rss -= 1
        else:
            mm.file_rss -= 1
