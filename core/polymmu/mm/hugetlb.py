"""Huge pages: mappings whose every entry maps one block of frames, as large as the mapping's ``huge_size``.

A huge vma is like any other to ``find_vma``, mmap and munmap; what is done to its entries is done here, one huge
page at a time. Where an entry is, how wide a page it maps and how it is written are the architecture's answers
(``huge_pte_offset``, ``set_huge_pte``, ...); an entry is as wide as a pte, and its bits are those of
``shape.huge_formats``. A huge page is held, counted as mapped, and named by its first frame, and all of it is freed
with that; it is on no LRU list. There is no pool: a fault asks the page allocator for a block.

Order of an unmap, as in Linux from 2.6 to 3.5, outside of the gather: entries out, ``flush_tlb_range``, pages freed.
A private mapping of a file takes a page that is not cached yet for its own and never puts it into the cache.

First reading: ``hugetlb_fault``, ``unmap_hugepage_range``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np

from polymmu.errors import SegmentationFault, SyscallError, syscall_error
from polymmu.hardware.entry import EntryFormat
from polymmu.hooks import ArchKernel
from polymmu.mm.frames import alloc_pages, copy_pages, get_page, put_pages
from polymmu.mm.notifier import (
    mmu_notifier_invalidate_range,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from polymmu.mm.pagecache import find_or_read_page, is_cached_at
from polymmu.mm.protect import kept_bits, loses_right
from polymmu.mm.tables import read_pte
from polymmu.structs import PG_ANON, PG_DIRTY, VM_SHARED, VM_WRITE, address_space, mm_struct, vm_area_struct

__all__ = [
    "change_huge_protection",
    "copy_hugetlb_page_range",
    "flush_huge_pages",
    "hugetlb_fault",
    "order_in",
    "populate_huge",
    "take_huge_pages",
    "unmap_hugepage_range",
]


def format_in(vma: vm_area_struct) -> EntryFormat:
    """Format of the entries of a huge vma."""
    kernel: ArchKernel = vma.vm_mm.kernel
    return kernel.shape.huge_formats[vma.huge_size]


def order_in(vma: vm_area_struct) -> int:
    """log2 of the frames of each page of a huge vma."""
    return (vma.huge_size >> vma.vm_mm.layout.page_shift).bit_length() - 1


def head_of(vma: vm_area_struct, entry: int) -> int:
    """First frame of the huge page that ``entry`` of ``vma`` maps."""
    return format_in(vma).frame_of(entry) >> vma.vm_mm.layout.page_shift


def count_rss(mm: mm_struct, anon: int, pages: int) -> None:
    """``pages`` base pages more are present: of a private mapping's own (``anon``) or of a file."""
    if anon:
        mm.anon_rss += pages
    else:
        mm.file_rss += pages


def mapped_pages(
    mm: mm_struct, vma: vm_area_struct, start: int, end: int, what: str
) -> Iterator[tuple[int, int, int]]:
    """(address, entry's physical address, its value) of every huge page present in [start, end) of ``mm``."""
    kernel: ArchKernel = mm.kernel
    size, is_mapped = vma.huge_size, format_in(vma).is_mapped
    n = (end - start) // size
    kernel.events.entries_visited(mm, what, n)
    kernel.sched.spend(kernel.description.costs.entry_update * n, what)
    for page in range(start, end, size):
        ptep = kernel.ops.huge_pte_offset(mm, page, size)
        if ptep >= 0:
            value = read_pte(mm, ptep)
            if is_mapped(value):
                yield page, ptep, value


# ---------------------------------------------------------------------- faults
def hugetlb_fault(vma: vm_area_struct, addr: int, access: str) -> str:
    """Serve a fault at ``addr`` of a huge vma that allows it; the kind of fault it was.

    Raises SegmentationFault beyond the end of a file, SyscallError(ENOMEM) where no block or table is left.
    """
    mm = vma.vm_mm
    format = format_in(vma)
    page, write = addr & -vma.huge_size, access == "store"
    ptep = _alloc_entry(vma, page)
    if ptep < 0:
        raise syscall_error(errno.ENOMEM, "no frame left for a page table")
    value = read_pte(mm, ptep)
    if value == format.empty:
        if not _no_page(vma, page, ptep, write):
            raise SegmentationFault(addr, access, "beyond the end of the file")
        return "minor"
    mm.page_table_lock.lock()
    if read_pte(mm, ptep) != value:  # it changed before we had the lock: look again at the retry
        mm.page_table_lock.unlock()
        return "minor"
    if write and not format.write.test(value):
        return _do_wp_page(vma, page, ptep, value)
    _raise_to(vma, page, ptep, value, _touched(format, value, write))
    mm.page_table_lock.unlock()
    return "protection"


def _alloc_entry(vma: vm_area_struct, page: int) -> int:
    """Physical address of the entry for ``page``, made if need be; -1 where no table is left. May sleep."""
    kernel: ArchKernel = vma.vm_mm.kernel
    return kernel.ops.huge_pte_alloc(vma.vm_mm, page, vma.huge_size)


def _touched(format: EntryFormat, entry: int, write: bool) -> int:
    """``entry`` after an access: young, and after a store dirty."""
    for noted in (format.accessed, format.dirty if write else None):
        entry = noted.set(entry) if noted is not None else entry
    return entry


def _raise_to(vma: vm_area_struct, page: int, ptep: int, old: int, value: int) -> None:
    """Give a present entry more; where it has that already, this CPU acted on an older one."""
    kernel: ArchKernel = vma.vm_mm.kernel
    if value != old:
        kernel.ops.set_huge_pte(vma.vm_mm, page, ptep, value, vma.huge_size)
        kernel.ops.update_mmu_cache(vma, page, ptep, 1)
    kernel.ops.flush_tlb_range(vma, page, page + vma.huge_size)


def _no_page(vma: vm_area_struct, page: int, ptep: int, write: bool) -> bool:
    """First touch of a huge page. False: it is beyond the end of the file."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    frames, file = kernel.frames, vma.vm_file
    shift = mm.layout.page_shift
    index = vma.vm_pgoff + ((page - vma.vm_start) >> shift)
    if file is not None and index << shift >= file.size:
        return False
    pfn, own = _page_for(vma, index, write)
    mm.page_table_lock.lock()
    ours = read_pte(mm, ptep) == format_in(vma).empty and (
        file is None or (index << shift < file.size and (own or is_cached_at(file.mapping, index, pfn)))
    )
    if ours:
        frames.mapcount[pfn] += 1
        count_rss(mm, own, 1 << order_in(vma))
        if write and not own:
            frames.flags[pfn] |= PG_DIRTY
        _enter(vma, page, ptep, pfn, write)
    mm.page_table_lock.unlock()
    if not ours:
        put_pages(kernel, pfn, order_in(vma))
    return True


def _page_for(vma: vm_area_struct, index: int, write: bool) -> tuple[int, bool]:
    """The huge page for file page ``index`` with a reference, and whether it is the vma's own. May sleep."""
    kernel: ArchKernel = vma.vm_mm.kernel
    file = vma.vm_file
    cached: int | None = None
    if file is not None and (vma.vm_flags & VM_SHARED or index in file.mapping.pages):
        cached = find_or_read_page(kernel, file, index)
    if cached is None:
        pfn = _own_page(vma)
    elif cached < 0:
        pfn = -1
    elif vma.vm_flags & VM_SHARED or not write:
        return cached, False
    else:
        pfn = _own_page(vma, cached)
        put_pages(kernel, cached, order_in(vma))
    if pfn < 0:
        raise _out_of_blocks(vma)
    return pfn, True


def _own_page(vma: vm_area_struct, source: int = -1) -> int:
    """A new huge page with the bytes of ``source`` (-1: zeroes), or -1. May sleep."""
    kernel: ArchKernel = vma.vm_mm.kernel
    order = order_in(vma)
    pfn = alloc_pages(kernel, order, "anon", site="huge")
    if pfn >= 0:
        kernel.sched.spend(kernel.description.costs.page_clear << order, "page")
        if source >= 0:
            copy_pages(kernel, source, pfn, 1 << order)
    return pfn


def _out_of_blocks(vma: vm_area_struct) -> SyscallError:
    return syscall_error(errno.ENOMEM, f"no {vma.huge_size:#x} bytes of free frames in one block")


def _enter(vma: vm_area_struct, page: int, ptep: int, pfn: int, write: bool) -> None:
    """Set the entry for ``pfn``; the table lock is held and the entry is empty."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    format = format_in(vma)
    value = format.of_frame(pfn << mm.layout.page_shift) | vma.vm_page_prot
    if write:
        value = _touched(format, format.write.set(value), write)
    kernel.ops.set_huge_pte(mm, page, ptep, value, vma.huge_size)
    kernel.ops.update_mmu_cache(vma, page, ptep, 1)


def _do_wp_page(vma: vm_area_struct, page: int, ptep: int, value: int) -> str:
    """A store to a present huge page without the write right. Called with the table lock, which it drops."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    ops, frames, format, order = kernel.ops, kernel.frames, format_in(vma), order_in(vma)
    old = head_of(vma, value)
    anon = frames.flags[old] & PG_ANON
    shared = vma.vm_flags & VM_SHARED
    if shared or (anon and frames.mapcount[old] == 1):
        if shared:
            frames.flags[old] |= PG_DIRTY
        _raise_to(vma, page, ptep, value, _touched(format, format.write.set(value), True))
        mm.page_table_lock.unlock()
        return "protection"
    get_page(kernel, old)
    mm.page_table_lock.unlock()
    new = _own_page(vma, old)
    if new < 0:
        put_pages(kernel, old, order)
        raise _out_of_blocks(vma)
    end = page + vma.huge_size
    mmu_notifier_invalidate_range_start(mm, page, end)
    mm.page_table_lock.lock()
    ours = read_pte(mm, ptep) == value
    if ours:
        kernel.events.entries_changed(mm, page, end, 1, "replace")
        ops.huge_ptep_get_and_clear(mm, page, ptep, vma.huge_size)
        ops.flush_tlb_range(vma, page, end)
        mmu_notifier_invalidate_range(mm, page, end)
        frames.mapcount[new] = 1
        frames.mapcount[old] -= 1
        count_rss(mm, True, 1 << order)
        count_rss(mm, anon, -1 << order)
        _enter(vma, page, ptep, new, True)
    mm.page_table_lock.unlock()
    mmu_notifier_invalidate_range_end(mm, page, end)
    put_pages(kernel, old if ours else new, order)
    put_pages(kernel, old, order)
    return "cow" if ours else "minor"


def populate_huge(vma: vm_area_struct, start: int, end: int) -> None:
    """Bring the pages of [start, end) of ``vma`` as MAP_POPULATE does; as far as memory and the file go."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    write = vma.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE
    for page in range(start, end, vma.huge_size):
        ptep = _alloc_entry(vma, page)
        try:
            if ptep < 0 or not _no_page(vma, page, ptep, write):
                return
        except SyscallError:  # out of memory
            return
        kernel.events.fault(mm, page, "minor", 1)
        kernel.sched.cond_resched()


# ------------------------------------------------------------ unmap, mprotect, fork
def unmap_hugepage_range(
    vma: vm_area_struct, start: int, end: int, mapping: address_space | None = None
) -> None:
    """Remove the huge pages of [start, end); ``mapping``: only those that are in its cache. May sleep."""
    mm = vma.vm_mm
    mm.page_table_lock.lock()
    removed = [*take_huge_pages(vma, start, end, mapping)]
    if removed:
        flush_huge_pages(vma, start, end, len(removed))
    mm.page_table_lock.unlock()
    for pfn in removed:
        put_pages(mm.kernel, pfn, order_in(vma))


def take_huge_pages(
    vma: vm_area_struct, start: int, end: int, mapping: address_space | None
) -> Iterator[int]:
    """Take the entries of ``unmap_hugepage_range`` out, whose page table is locked; each one's first frame, still held.

    They may be in TLBs until ``flush_huge_pages``.
    """
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    frames, order, dirty = kernel.frames, order_in(vma), format_in(vma).dirty
    kernel.ops.flush_cache_range(vma, start, end)
    for page, ptep, value in mapped_pages(mm, vma, start, end, "zap"):
        pfn = head_of(vma, value)
        if mapping is not None and frames.mapping[pfn] != mapping.slot + 1:
            continue
        last = kernel.ops.huge_ptep_get_and_clear(mm, page, ptep, vma.huge_size)
        anon = frames.flags[pfn] & PG_ANON
        if dirty is not None and dirty.test(last) and not anon:
            frames.flags[pfn] |= PG_DIRTY
        frames.mapcount[pfn] -= 1
        count_rss(mm, anon, -1 << order)
        yield pfn


def flush_huge_pages(vma: vm_area_struct, start: int, end: int, n: int) -> None:
    """``n`` entries of [start, end) were taken out: every TLB forgets them."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    kernel.events.entries_changed(mm, start, end, n, "clear")
    kernel.ops.flush_tlb_range(vma, start, end)
    mmu_notifier_invalidate_range(mm, start, end)


def change_huge_protection(vma: vm_area_struct, start: int, end: int, prot: int) -> None:
    """``protect.change_protection`` for a huge vma. The caller flushes the TLB afterwards."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    format, size = format_in(vma), vma.huge_size
    keep = kept_bits(format)
    put = prot & ~keep
    had = []
    kernel.ops.flush_cache_range(vma, start, end)
    mm.page_table_lock.lock()
    for page, ptep, _ in mapped_pages(mm, vma, start, end, "protect"):
        old = kernel.ops.huge_ptep_get_and_clear(mm, page, ptep, size)
        kernel.ops.set_huge_pte(mm, page, ptep, old & keep | put, size)
        had.append(old & ~keep)
    mm.page_table_lock.unlock()
    if loses_right(format, np.array(had, dtype=np.uint64), put):
        kernel.events.entries_changed(mm, start, end, len(had), "wrprotect")


def copy_hugetlb_page_range(dst: mm_struct, src: mm_struct, vma: vm_area_struct) -> None:
    """Enter in ``dst`` the huge pages that ``src`` maps in its ``vma``; neither may write a private one.

    The caller flushes the parent's TLB afterwards. Raises ENOMEM where no table can be had.
    """
    kernel: ArchKernel = src.kernel
    ops, frames, size = kernel.ops, kernel.frames, vma.huge_size
    private, write, is_mapped = not vma.vm_flags & VM_SHARED, format_in(vma).write, format_in(vma).is_mapped
    for page, ptep, _ in mapped_pages(src, vma, vma.vm_start, vma.vm_end, "copy"):
        into = ops.huge_pte_alloc(dst, page, size)
        if into < 0:
            raise syscall_error(errno.ENOMEM, "no frame left for a child's page table")
        # Child's lock outside, parent's inside, as for small pages.
        dst.page_table_lock.lock()
        src.page_table_lock.lock(nested=True)
        value = read_pte(src, ptep)
        if not is_mapped(value):  # truncated meanwhile
            src.page_table_lock.unlock()
            dst.page_table_lock.unlock()
            continue
        if private:
            value = write.clear(ops.huge_ptep_get_and_clear(src, page, ptep, size))
            ops.set_huge_pte(src, page, ptep, value, size)
            kernel.events.entries_changed(src, page, page + size, 1, "wrprotect")
        pfn = head_of(vma, value)
        get_page(kernel, pfn)
        frames.mapcount[pfn] += 1
        count_rss(dst, frames.flags[pfn] & PG_ANON, 1 << order_in(vma))
        ops.set_huge_pte(dst, page, into, value, size)
        src.page_table_lock.unlock()
        dst.page_table_lock.unlock()
        kernel.sched.cond_resched()
