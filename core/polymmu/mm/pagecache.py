"""Files, and the page cache that holds their contents.

A file here is an open file with its inode in one. Its pages live in its ``address_space``, in index order; the
cache holds one reference of each, and a page's MAPPING and INDEX columns say where it belongs (MAPPING is the
mapping's slot plus one; 0: in no cache). Contents come from what reclaim wrote back, from the file's ``read_page``, or
are zeroes.

A file of huge pages caches each as its first frame, at the index of its first base page, and off the LRU.

First reading: ``find_or_read_page``, ``remove_from_page_cache``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polymmu.hardware.ram import NONZERO
from polymmu.mm.frames import (
    alloc_page,
    alloc_pages,
    get_page,
    lru_add_drain,
    lru_cache_add,
    put_page,
    put_pages,
)
from polymmu.mm.truncate_count import truncate_counts
from polymmu.structs import PG_CACHE, PG_DIRTY, File, Kernel, address_space, vm_area_struct

__all__ = [
    "drop_page_cache",
    "find_or_read_page",
    "get_file",
    "is_cached_at",
    "new_file",
    "put_file",
    "remove_from_page_cache",
    "remove_mapping",
    "write_back",
]

AnyKernel = Kernel[Any]


def new_file(
    kernel: AnyKernel,
    name: str,
    size: int,
    *,
    anonymous: bool = False,
    huge_size: int = 0,
    read_page: Callable[[int], bytes] | None = None,
    mmap: Callable[[File, vm_area_struct], None] | None = None,
) -> File:
    """A file of ``size`` bytes with one reference, the caller's, and nothing cached.

    ``huge_size``: its pages have so many bytes, and ``size`` is a multiple of that.
    """
    mapping = kernel.mappings.alloc()
    mapping.truncate_count = truncate_counts(kernel).first_count
    file = File(name, size, mapping, anonymous=anonymous, huge_size=huge_size, read_page=read_page, mmap=mmap)
    mapping.host = file
    return file


def get_file(file: File) -> File:
    """One more reference: an open, or a vma that maps it."""
    file.references += 1
    return file


def put_file(kernel: AnyKernel, file: File) -> None:
    """One reference less; with the last one the file's pages and its mapping go. May sleep."""
    kernel.sched.might_sleep("put_file")
    file.references -= 1
    if file.references:
        return
    mapping = file.mapping
    mapped = len(mapping.i_mmap) + len(mapping.i_mmap_nonlinear)
    if mapped:
        raise AssertionError(f"file {file.name} is freed while {mapped} vmas map it")
    drop_page_cache(kernel, mapping, 0)
    kernel.vm_committed -= file.committed
    if file.release is not None:
        file.release()
    mapping.host = None
    kernel.mappings.free(mapping)


def find_or_read_page(kernel: AnyKernel, file: File, index: int) -> int:
    """The cached page ``index`` of ``file``, read in if need be, with a reference for the caller; -1: no memory.

    May sleep. The caller checks afterwards that the page still belongs to the file (``is_cached_at``).
    """
    mapping = file.mapping
    found: int | None = mapping.pages.get(index)
    if found is not None:
        get_page(kernel, found)
        return found
    kernel.sched.might_sleep("reading a page")
    order = _order_of(kernel, mapping)
    pfn = alloc_pages(kernel, order, "file", site="huge") if order else alloc_page(kernel, "file")
    if pfn < 0:
        return -1
    if index in file.written:
        content = file.written[index]
    else:
        content = file.read_page(index) if file.read_page is not None else b""
    page_size = kernel.shape.layout.page_size
    content = content[
        : max(min(page_size, file.size - index * page_size), 0)
    ]  # it may have been cut meanwhile
    if content:
        kernel.ram.write(pfn * page_size, content)
        kernel.frames.flags[pfn] |= NONZERO
    kernel.sched.spend(kernel.description.costs.page_clear << order, "page")
    won: int | None = mapping.pages.get(index)
    if won is not None:  # somebody else read it meanwhile
        _put(kernel, pfn, order)
        get_page(kernel, won)
        return won
    frames = kernel.frames
    frames.mapping[pfn] = mapping.slot + 1
    frames.index[pfn] = index
    frames.flags[pfn] |= PG_CACHE
    mapping.pages[index] = pfn
    get_page(kernel, pfn)  # the cache's own
    if not order:
        lru_cache_add(kernel, pfn)
    return pfn


def _order_of(kernel: AnyKernel, mapping: address_space) -> int:
    """log2 of the frames of each page of a file."""
    assert mapping.host is not None
    return max((mapping.host.huge_size >> kernel.shape.layout.page_shift).bit_length() - 1, 0)


def _put(kernel: AnyKernel, pfn: int, order: int) -> None:
    if order:
        put_pages(kernel, pfn, order)
    else:
        put_page(kernel, pfn)


def is_cached_at(mapping: address_space, index: int, pfn: int) -> bool:
    """Whether ``pfn`` is page ``index`` of ``mapping`` now: truncation may have taken it out (A1.8)."""
    cached: int | None = mapping.pages.get(index)
    return cached == pfn


def remove_from_page_cache(kernel: AnyKernel, mapping: address_space, index: int) -> None:
    """Take one page out and drop the cache's reference, unless reclaim was quicker. No pte may map it any more
    (INV-TRUNC)."""
    pfn = mapping.pages.get(index)
    if pfn is not None:
        _take_out(kernel, mapping, index, pfn)


def remove_mapping(kernel: AnyKernel, mapping: address_space, index: int, pfn: int) -> bool:
    """The same for reclaim, which holds the page ``pfn``, too: False if somebody else has taken hold of it, stored to
    it, or cut it off.

    That is asked where the page is looked up to be taken out: who comes later does not find it any more.
    """
    frames = kernel.frames
    if not is_cached_at(mapping, index, pfn):
        return False
    if frames.refcount[pfn] != 2 or frames.mapcount[pfn] or frames.flags[pfn] & PG_DIRTY:
        return False
    _take_out(kernel, mapping, index, pfn)
    return True


def _take_out(kernel: AnyKernel, mapping: address_space, index: int, pfn: int) -> None:
    frames = kernel.frames
    kernel.events.page_uncached(mapping, index, pfn)
    if frames.mapcount[pfn]:
        raise AssertionError(
            f"page {index} of {mapping.slot} is dropped while {frames.mapcount[pfn]} ptes map it"
        )
    del mapping.pages[index]
    frames.mapping[pfn] = 0
    frames.index[pfn] = 0
    frames.flags[pfn] &= ~(PG_CACHE | PG_DIRTY)
    _put(kernel, pfn, _order_of(kernel, mapping))


def drop_page_cache(kernel: AnyKernel, mapping: address_space, first: int, last: int | None = None) -> None:
    """Take out every page from index ``first`` on, up to ``last`` where that is given."""
    lru_add_drain(kernel)
    for index in list(mapping.pages.irange(first, last)):
        remove_from_page_cache(kernel, mapping, index)


def write_back(kernel: AnyKernel, pfn: int) -> None:
    """Write a dirty page of the cache to its file. Sleeps as long as that takes."""
    frames = kernel.frames
    size = kernel.shape.layout.page_size
    file = kernel.mappings.objects[frames.mapping[pfn] - 1].host
    assert file is not None
    frames.flags[pfn] &= ~PG_DIRTY
    kernel.events.page_cleaned(pfn)
    file.written[frames.index[pfn]] = kernel.ram.read(pfn * size, size)
    kernel.sched.sleep(kernel.description.costs.page_io)
