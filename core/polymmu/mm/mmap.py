"""mmap, munmap, brk and madvise: making and taking back mappings.

A mapping is a promise only: mmap makes a vma and no page. munmap is where things can go wrong, and its order
is the order of this file's ``unmap_area``: split what is half inside, take the vmas off the list so that no
fault finds them, clear the ptes, free the tables, flush, and only then free pages and vmas.

Functions named ``do_...`` are system calls; ``unmap_area`` and ``mmap_region`` are their insides, for callers
that hold the mmap_lock for writing. Lengths are bytes, rounded up to whole pages here.
"""

from __future__ import annotations

import errno

from polymmu.errors import SyscallError, syscall_error
from polymmu.hooks import ArchKernel
from polymmu.mm.calls import mm_call
from polymmu.mm.commit import accountable, vm_acct_memory
from polymmu.mm.fault import populate as populate_vma
from polymmu.mm.pagecache import new_file, put_file
from polymmu.mm.unmap import unmap_region
from polymmu.mm.unmapped_area import (
    area_was_freed,
    check_fixed_area,
    get_unmapped_area,
    get_unmapped_huge_area,
)
from polymmu.mm.vma import (
    detach_vmas,
    find_vma,
    find_vma_intersection,
    find_vma_prev,
    remove_vma,
    split_vma,
    vma_alloc,
    vma_link,
    vma_merge,
    vma_pages,
    vmas_of,
)
from polymmu.mm.zap import ZapDetails, zap_page_range
from polymmu.structs import (
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_NONLINEAR,
    VM_NORESERVE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    File,
    mm_struct,
    vm_area_struct,
)

__all__ = [
    "do_brk",
    "do_madvise_dontneed",
    "do_mmap",
    "do_munmap",
    "mmap_region",
    "page_align",
    "unmap_area",
]


def page_align(mm: mm_struct, size: int) -> int:
    """``size`` rounded up to whole base pages."""
    page_size = mm.layout.page_size
    return (size + page_size - 1) & -page_size


# ----------------------------------------------------------------------- mmap
def do_mmap(
    mm: mm_struct,
    addr: int | None,
    length: int,
    vm_flags: int,
    *,
    fixed: bool = False,
    noreplace: bool = False,
    file: File | None = None,
    pgoff: int = 0,
    populate: bool = False,
    huge_size: int = 0,
) -> int:
    """Map ``length`` bytes and return their address.

    ``addr`` is a wish; with ``fixed`` it is where the mapping goes, replacing what is there, with
    ``noreplace`` refusing to (EEXIST). ``pgoff``: page of ``file`` that comes first. VM_SHARED without a
    file: shared anonymous memory. ``populate``: all pages at once, as far as memory goes. ``huge_size``: of huge
    pages of so many bytes, and so is every mapping of a file of huge pages; ``length``, ``addr`` if fixed, and
    ``pgoff`` are then whole huge pages. Raises SyscallError as mmap(2) does.
    """
    with mm_call(mm, "mmap") as kernel:
        if length <= 0:
            raise syscall_error(errno.EINVAL, f"length {length} is not positive")
        if pgoff < 0:
            raise syscall_error(errno.EINVAL, f"file page {pgoff} is negative")
        huge_size = _checked_huge_size(mm, huge_size, file, pgoff)
        if vm_flags & VM_GROWSDOWN and (vm_flags & VM_SHARED or file is not None or huge_size):
            raise syscall_error(errno.EINVAL, "only private anonymous memory of small pages grows down")
        length = page_align(mm, length)
        if length > kernel.shape.limits.task_size:
            raise syscall_error(errno.ENOMEM, f"length {length:#x} is more than the address space")
        if mm.map_count > kernel.description.kernel.vm_max_map_count:
            raise syscall_error(errno.ENOMEM, f"no more than {mm.map_count} mappings in one address space")
        if fixed or noreplace:
            if addr is None or addr < 0:
                raise syscall_error(errno.EINVAL, "a fixed mapping needs an address")
            check_fixed_area(mm, addr, length, huge_size)
            if noreplace and find_vma_intersection(mm, addr, addr + length) is not None:
                raise syscall_error(errno.EEXIST, f"{addr:#x} + {length:#x} is in use")
            unmap_area(mm, addr, length)
        elif huge_size:
            addr = get_unmapped_huge_area(mm, addr, length, huge_size)
        else:
            addr = get_unmapped_area(mm, addr, length)
        if huge_size:
            kernel.variants.free_pgtables.room_for_huge(mm, addr, addr + length, huge_size)
        if file is None and vm_flags & VM_SHARED:
            memory = new_file(kernel, "dev/zero", length, anonymous=True, huge_size=huge_size)
            try:
                if not huge_size and not vm_flags & VM_NORESERVE:
                    pages = length >> mm.layout.page_shift
                    vm_acct_memory(kernel, pages)
                    memory.committed = pages
                addr = mmap_region(mm, addr, length, vm_flags, file=memory, huge_size=huge_size)
            finally:
                put_file(kernel, memory)
        else:
            addr = mmap_region(mm, addr, length, vm_flags, file=file, pgoff=pgoff, huge_size=huge_size)
        if populate:
            vma = find_vma(mm, addr)
            assert vma is not None
            populate_vma(vma, addr, addr + length)
        return addr


def _checked_huge_size(mm: mm_struct, huge_size: int, file: File | None, pgoff: int) -> int:
    """The size of a new mapping's huge pages: ``huge_size``, or its file's. Raises EINVAL where it makes no sense."""
    if file is not None:
        if huge_size not in (0, file.huge_size):
            raise syscall_error(errno.EINVAL, f"the file's pages are not huge ones of {huge_size:#x} bytes")
        huge_size = file.huge_size
    if not huge_size:
        return 0
    sizes = mm.kernel.shape.huge_page_sizes
    if huge_size not in sizes:
        known = ", ".join(f"{size:#x}" for size in sizes) or "none"
        raise syscall_error(errno.EINVAL, f"no huge pages of {huge_size:#x} bytes; this machine has {known}")
    if pgoff << mm.layout.page_shift & (huge_size - 1):
        raise syscall_error(
            errno.EINVAL, f"file page {pgoff} lies inside a huge page of {huge_size:#x} bytes"
        )
    return huge_size


def mmap_region(
    mm: mm_struct,
    addr: int,
    length: int,
    vm_flags: int,
    *,
    file: File | None = None,
    pgoff: int = 0,
    huge_size: int = 0,
) -> int:
    """Make the vma for a range that is free, by growing a neighbour where one is alike (A7.1). Its address.

    The file's driver may have its own idea of flags and contents, or refuse. Raises ENOMEM where so much memory may
    not be committed.
    """
    end = addr + length
    charged = length >> mm.layout.page_shift if accountable(vm_flags) and not huge_size else 0
    if charged:
        vm_acct_memory(mm.kernel, charged)
        vm_flags |= VM_ACCOUNT
    _, prev = find_vma_prev(mm, addr)
    first_page = pgoff if file is not None else addr >> mm.layout.page_shift
    # What a driver makes is its own: only it knows whether two mappings of it are alike.
    mergeable = (file is None or file.mmap is None) and not huge_size
    if mergeable and vma_merge(mm, prev, addr, end, vm_flags, file=file, pgoff=first_page) is not None:
        mm.total_vm += length >> mm.layout.page_shift
        return addr
    try:
        vma = vma_alloc(mm, addr, end, vm_flags, file=file, pgoff=first_page, huge_size=huge_size)
    except SyscallError:
        mm.kernel.vm_committed -= charged
        raise
    if file is not None and file.mmap is not None:
        _call_driver(file, vma, prev, charged)
        _, prev = find_vma_prev(mm, vma.vm_start)
    vma_link(vma, prev)
    mm.total_vm += vma_pages(vma)
    return vma.vm_start


def _call_driver(file: File, vma: vm_area_struct, prev: vm_area_struct | None, charged: int) -> None:
    """The file's own mmap operation. Where it refuses, what it mapped so far goes, tables included (A3.4), and the
    ``charged`` pages, once."""
    assert file.mmap is not None
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    try:
        file.mmap(file, vma)
    except SyscallError:
        vma.vm_file = None
        put_file(kernel, file)
        if kernel.variants.free_pgtables.driver_failed(vma, prev):
            charged = 0
        remove_vma(vma)
        kernel.vm_committed -= charged
        raise


# --------------------------------------------------------------------- munmap
def do_munmap(mm: mm_struct, start: int, length: int) -> None:
    """Take back what is mapped in [start, start + length). Raises EINVAL, or ENOMEM where a split fails."""
    with mm_call(mm, "munmap"):
        unmap_area(mm, start, length)


def unmap_area(mm: mm_struct, start: int, length: int) -> None:
    """What munmap does, for a caller that holds the mmap_lock for writing (A7.2)."""
    kernel: ArchKernel = mm.kernel
    if start < 0 or start & (mm.layout.page_size - 1):
        raise syscall_error(errno.EINVAL, f"{start:#x} is not a multiple of the page size")
    length = page_align(mm, length)
    end = start + length
    if length <= 0 or end > mm.task_size:
        raise syscall_error(errno.EINVAL, f"{start:#x} + {length:#x} is not a range of the address space")
    vma = find_vma_intersection(mm, start, end)
    if vma is None:
        return
    # Step 1. The first split must not succeed where the second cannot: nothing would be unmapped, one vma
    # more.
    if vma.vm_start < start:
        if end < vma.vm_end and mm.map_count + 1 >= kernel.description.kernel.vm_max_map_count:
            raise syscall_error(errno.ENOMEM, f"no more than {mm.map_count} mappings in one address space")
        vma = split_vma(vma, start, new_below=False)
    prev = vma.vm_prev
    last = find_vma(mm, end)
    if last is not None and last.vm_start < end:
        split_vma(last, end, new_below=True)
    first = prev.vm_next if prev is not None else mm.mmap
    assert first is not None
    detach_vmas(mm, first, end)  # step 2
    area_was_freed(mm, end)
    unmap_region(mm, first, prev, start, end)  # step 3
    mm.hiwater_vm = max(mm.hiwater_vm, mm.total_vm)
    for vma in vmas_of(first):  # step 4
        mm.total_vm -= vma_pages(vma)
        remove_vma(vma)


# ------------------------------------------------------------------------ brk
def do_brk(mm: mm_struct, new_brk: int) -> int:
    """Move the heap's end to ``new_brk`` and return where it is now: where it was, if that was refused."""
    with mm_call(mm, "brk"):
        if new_brk < mm.start_brk:
            return mm.brk
        old_end, new_end = page_align(mm, mm.brk), page_align(mm, new_brk)
        try:
            if new_end < old_end:
                unmap_area(mm, new_end, old_end - new_end)
            elif new_end > old_end:
                _grow_heap(mm, old_end, new_end)
        except SyscallError:
            return mm.brk
        mm.brk = new_brk
        return new_brk


def _grow_heap(mm: mm_struct, start: int, end: int) -> None:
    kernel: ArchKernel = mm.kernel
    check_fixed_area(mm, start, end - start)
    # One page more, so that the heap never touches what is above it.
    if find_vma_intersection(mm, start, end + mm.layout.page_size) is not None:
        raise syscall_error(errno.ENOMEM, f"the heap cannot grow to {end:#x}: a mapping is in the way")
    if mm.map_count > kernel.description.kernel.vm_max_map_count:
        raise syscall_error(errno.ENOMEM, f"no more than {mm.map_count} mappings in one address space")
    mmap_region(mm, start, end - start, VM_READ | VM_WRITE)


# -------------------------------------------------------------------- madvise
def do_madvise_dontneed(mm: mm_struct, start: int, length: int) -> None:
    """Drop the pages of [start, start + length): the next touch finds zeroes, or the file's bytes.

    Raises EINVAL for a range that makes no sense or a driver's mapping, ENOMEM for a part that is not mapped;
    what is mapped is dropped all the same.
    """
    with mm_call(mm, "madvise", write=False):
        if start < 0 or start & (mm.layout.page_size - 1):
            raise syscall_error(errno.EINVAL, f"{start:#x} is not a multiple of the page size")
        end = start + page_align(mm, length)
        if length < 0:
            raise syscall_error(errno.EINVAL, f"length {length} is negative")
        at, unmapped = start, None
        for vma in vmas_of(find_vma(mm, start)):
            if at >= end or vma.vm_start >= end:
                break
            if at < vma.vm_start and unmapped is None:
                unmapped = at
            at = max(at, vma.vm_start)
            if vma.vm_flags & (VM_PFNMAP | VM_HUGETLB):
                raise syscall_error(errno.EINVAL, f"the mapping at {vma.vm_start:#x} keeps its pages")
            stop = min(end, vma.vm_end)
            # A nonlinear vma must remember which pages were there.
            zap_page_range(vma, at, stop - at, ZapDetails() if vma.vm_flags & VM_NONLINEAR else None)
            at = stop
        if at < end and unmapped is None:
            unmapped = at
        if unmapped is not None:
            raise syscall_error(errno.ENOMEM, f"nothing is mapped at {unmapped:#x}")
