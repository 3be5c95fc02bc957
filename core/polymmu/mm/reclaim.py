"""Make room: write pages out and free them, the coldest first.

A page goes in four steps, its lock held throughout: anonymous ones get a slot of the swap area; every pte forgets the
page; what was written to it goes out; and only if nobody else took hold of it meanwhile is it freed (A0.3 rule 4). Any
step may fail, and then the page stays as it is by then, perhaps unmapped but in a cache, where the next fault finds it.

Who asks: an allocation that found nothing (``try_to_free_pages``), a kernel thread (``shrink_list``), or a program that
names the pages (``do_swap_out``, as MADV_PAGEOUT).

First reading: ``shrink_list``, ``_pageout``.
"""

from __future__ import annotations

import errno

from polymmu.errors import syscall_error
from polymmu.hardware.scans import LENGTH
from polymmu.hooks import ArchKernel
from polymmu.mm.calls import mm_call
from polymmu.mm.frames import lru_add_drain, lru_coldest, lru_isolate, lru_putback, put_page
from polymmu.mm.pagecache import remove_mapping, write_back
from polymmu.mm.pagelock import trylock_page, unlock_page
from polymmu.mm.rmap import Unmapped, page_referenced, try_to_unmap
from polymmu.mm.swap import (
    add_to_swap,
    delete_from_swap_cache,
    swap_entry,
    try_to_free_swap,
    write_swap_page,
)
from polymmu.mm.tables import find_entry, pfn_of, read_pte
from polymmu.mm.vma import find_vma, vmas_of
from polymmu.structs import (
    PG_ANON,
    PG_CACHE,
    PG_DIRTY,
    PG_REFERENCED,
    PG_RESERVED,
    PG_SWAPCACHE,
    VM_PFNMAP,
    mm_struct,
)

__all__ = ["do_swap_out", "shrink_list", "try_to_free_pages"]

SWAP_CLUSTER_MAX = 32
"""Pages that an allocation in need tries to free (Linux's number)."""


def try_to_free_pages(kernel: ArchKernel) -> bool:
    """Called by an allocation that found no free frame. Whether there is one now. May sleep."""
    return shrink_list(kernel, SWAP_CLUSTER_MAX) > 0


def shrink_list(kernel: ArchKernel, n: int) -> int:
    """Free up to ``n`` pages from the cold end of the LRU; how many. A page that was used is hot again, once.

    Stops when every page was looked at twice. May sleep; the caller holds no lock that a fault takes after mmap_lock.
    """
    kernel.sched.might_sleep("reclaim")
    lru_add_drain(kernel)
    freed = 0
    for _ in range(2 * int(kernel.free.lru[LENGTH])):
        pfn = lru_coldest(kernel)
        if not pfn or freed == n:
            break
        lru_isolate(kernel, pfn)
        if _was_used(kernel, pfn):
            lru_putback(kernel, pfn)
        else:
            freed += _pageout(kernel, pfn)
        kernel.sched.cond_resched()
    return freed


def do_swap_out(mm: mm_struct, start: int, length: int) -> int:
    """Write out and free the pages of [start, start + length), used or not; how many went.

    Raises EINVAL for a range that makes no sense, or where there is no swap area.
    """
    with mm_call(mm, "swap_out", write=False) as kernel:
        if kernel.swap is None:
            raise syscall_error(errno.EINVAL, "this machine has no swap area (swap: 64 MiB)")
        if start < 0 or start & (mm.layout.page_size - 1) or length < 0:
            raise syscall_error(errno.EINVAL, f"{start:#x} + {length:#x} is no range of whole pages")
        lru_add_drain(kernel)
        return sum(_pageout(kernel, pfn) for pfn in _isolate_in(mm, start, start + length))


def _isolate_in(mm: mm_struct, start: int, end: int) -> list[int]:
    """The pages that ptes of a range map, each isolated."""
    kernel: ArchKernel = mm.kernel
    shape, flags = kernel.shape, kernel.frames.flags
    found: list[int] = []
    for vma in vmas_of(find_vma(mm, start)):
        if vma.vm_start >= end:
            break
        if vma.huge_size or vma.vm_flags & VM_PFNMAP:
            continue
        for addr in range(max(start, vma.vm_start), min(end, vma.vm_end), mm.layout.page_size):
            ptep = find_entry(mm, addr)
            value = read_pte(mm, ptep) if ptep >= 0 else shape.pte.empty
            pfn = pfn_of(shape, value)
            if shape.pte.is_mapped(value) and not flags[pfn] & PG_RESERVED and pfn not in found:
                lru_isolate(kernel, pfn)
                found.append(pfn)
    return found


def _was_used(kernel: ArchKernel, pfn: int) -> bool:
    """Whether an isolated page was used since it was last looked at."""
    flags = kernel.frames.flags
    used = page_referenced(kernel, pfn) > 0 or bool(flags[pfn] & PG_REFERENCED)
    flags[pfn] &= ~PG_REFERENCED
    return used


def _pageout(kernel: ArchKernel, pfn: int) -> bool:
    """Write an isolated page out and free it. False where it stays; then it is on the LRU again."""
    if not trylock_page(kernel, pfn):
        lru_putback(kernel, pfn)
        return False
    gone = _unmap_and_write(kernel, pfn)
    if gone and kernel.frames.flags[pfn] & PG_ANON:
        delete_from_swap_cache(kernel, pfn)
    elif gone:
        mapping = kernel.mappings.objects[kernel.frames.mapping[pfn] - 1]
        gone = remove_mapping(kernel, mapping, kernel.frames.index[pfn], pfn)
    else:
        try_to_free_swap(kernel, pfn)
    unlock_page(kernel, pfn)
    if gone:
        put_page(kernel, pfn)
    else:
        lru_putback(kernel, pfn)
    return gone


def _unmap_and_write(kernel: ArchKernel, pfn: int) -> bool:
    """Whether a locked page is clean, mapped nowhere, and held by its cache and by us alone, after we tried."""
    frames = kernel.frames
    anonymous = bool(frames.flags[pfn] & PG_ANON)
    if anonymous:
        if not frames.flags[pfn] & PG_SWAPCACHE and not add_to_swap(kernel, pfn):
            return False
    elif not frames.flags[pfn] & PG_CACHE:
        return False
    entry = swap_entry(kernel, frames.private[pfn]) if anonymous else None
    if frames.mapcount[pfn] and try_to_unmap(kernel, pfn, entry) is not Unmapped.SWAP_SUCCESS:
        return False
    if not _is_freeable(kernel, pfn):
        return False
    if frames.flags[pfn] & PG_DIRTY:
        (write_swap_page if anonymous else write_back)(kernel, pfn)
    return _is_freeable(kernel, pfn) and not frames.flags[pfn] & PG_DIRTY


def _is_freeable(kernel: ArchKernel, pfn: int) -> bool:
    """Whether nobody but a cache and we hold the page; while it is written out others may take hold of it."""
    frames = kernel.frames
    cached = frames.flags[pfn] & (PG_SWAPCACHE | PG_CACHE)
    return bool(cached) and frames.refcount[pfn] == 2 and not frames.mapcount[pfn]
