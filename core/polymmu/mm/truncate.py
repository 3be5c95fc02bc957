"""Cut a file, and take its pages out of every address space that maps them (A1).

``unmap_mapping_range`` walks the vmas that map a file below ``i_mmap_lock`` and may have to let go of it half way.
Each vma therefore remembers in ``vm_truncate_count`` how far it is: a count says "done in that call", an address
(its low bits are zero) "zapped up to here", 0 "scan it all". The restart point travels with the struct through
splits and forks, so a vma struct that was freed and reused carries no stale one (A1.4, A1.6). Calls are numbered
per mapping, leaping over the numbers that would look like addresses (A1.5).

Order of a truncation: size, unmap, drop the pages, unmap again. Between the first unmap and the drop a fault can
still copy a cached page into a private one, which has to go too (A1.1).

First reading: ``do_truncate``; then ``_unmap_one``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from polymmu.errors import syscall_error
from polymmu.hooks import ArchKernel
from polymmu.mm.pagecache import drop_page_cache
from polymmu.mm.zap import ZapDetails, zap_page_range
from polymmu.structs import File, address_space, vm_area_struct

__all__ = ["do_truncate", "unmap_mapping_range"]

COUNT_BITS = 32
"""Width of a mapping's truncate count (Linux: unsigned int)."""


def do_truncate(kernel: ArchKernel, file: File, size: int) -> None:
    """Make ``file`` ``size`` bytes long (ftruncate). What is cut off reads as zeroes if the file grows again.

    Raises EINVAL for a part of a huge page.
    """
    if file.huge_size and size % file.huge_size:
        raise syscall_error(
            errno.EINVAL, f"size {size:#x} is no multiple of the file's huge pages of {file.huge_size:#x}"
        )
    mapping = file.mapping
    mapping.i_mutex.lock()
    if size >= file.size:
        file.size = size
    else:
        _shrink(kernel, file, size)
    mapping.i_mutex.unlock()


def _shrink(kernel: ArchKernel, file: File, size: int) -> None:
    mapping = file.mapping
    page_size = kernel.shape.layout.page_size
    kernel.events.truncation_begin(mapping)
    file.size = size
    if file.read_page is not None:
        file.read_page = _cut(file.read_page, size, page_size)
    file.written = {
        index: data[: size - index * page_size]
        for index, data in file.written.items()
        if index * page_size < size
    }
    first = -(-size // page_size)
    unmap_mapping_range(kernel, mapping, first * page_size, 0, True)
    drop_page_cache(kernel, mapping, first)
    unmap_mapping_range(kernel, mapping, first * page_size, 0, True)
    tail = size % page_size
    partial: int | None = mapping.pages.get(size // page_size) if tail else None
    if partial is not None:
        kernel.ram.write(partial * page_size + tail, bytes(page_size - tail))
    kernel.events.truncation_end(mapping)


def _cut(read_page: Callable[[int], bytes], size: int, page_size: int) -> Callable[[int], bytes]:
    def read(index: int) -> bytes:
        left = size - index * page_size
        return read_page(index)[:left] if left > 0 else b""

    return read


def unmap_mapping_range(
    kernel: ArchKernel, mapping: address_space, start: int, length: int, even_cows: bool
) -> None:
    """Remove every pte that maps bytes [start, start + length) of a file, in every mm. ``length`` 0: to the end.

    ``even_cows``: private copies too (truncation); without it only pages of the cache go (invalidation).
    """
    page_size = kernel.shape.layout.page_size
    first = start // page_size
    last = -(-(start + length) // page_size) - 1 if length else (1 << 63) - 1
    lock = mapping.i_mmap_lock
    details = ZapDetails(
        check_mapping=None if even_cows else mapping, i_mmap_lock=lock, first_index=first, last_index=last
    )
    # Two calls at once would overwrite each other's restart points, and might never end (Linux 2.6.38, A1.10).
    mapping.unmap_mutex.lock()
    kernel.events.truncation_begin(mapping)
    lock.lock()
    count = _next_count(mapping, page_size)
    # Terminates: each round completes a vma, which later rounds skip, or moves the restart address inside one.
    while any(
        _unmap_one(kernel, vma, first, last, details, count)
        for vma in mapping.i_mmap.overlapping(first, last)
        if vma.vm_truncate_count != count
    ):
        pass
    # These come last: with the lock dropped a vma may become one of them, and never ceases to be (A1.2 step 5).
    while any(
        _unmap_range(kernel, vma, vma.vm_start, vma.vm_end, details, count)
        for vma in mapping.i_mmap_nonlinear.values()
        if vma.vm_truncate_count != count
    ):
        pass
    lock.unlock()
    kernel.events.truncation_end(mapping)
    mapping.unmap_mutex.unlock()


def _next_count(mapping: address_space, page_size: int) -> int:
    """Number this call; every vma's count is void when the numbers begin again (A1.5)."""
    count = (mapping.truncate_count + 1) % (1 << COUNT_BITS)
    if count % page_size == 0:
        if not count:
            for vma in (*mapping.i_mmap, *mapping.i_mmap_nonlinear.values()):
                vma.vm_truncate_count = 0
        count += 1
    mapping.truncate_count = count
    return count


def _unmap_one(
    kernel: ArchKernel, vma: vm_area_struct, first: int, last: int, details: ZapDetails, count: int
) -> bool:
    """Zap what ``vma`` maps of file pages ``first`` to ``last``. True: the lock was dropped, walk again."""
    shift = kernel.shape.layout.page_shift
    pages = (vma.vm_end - vma.vm_start) >> shift
    low, high = max(first, vma.vm_pgoff), min(last, vma.vm_pgoff + pages - 1)
    if low > high:
        return False
    start = vma.vm_start + (low - vma.vm_pgoff << shift)
    end = vma.vm_start + (high - vma.vm_pgoff + 1 << shift)
    return _unmap_range(kernel, vma, start, end, details, count)


def _unmap_range(
    kernel: ArchKernel, vma: vm_area_struct, start: int, end: int, details: ZapDetails, count: int
) -> bool:
    """Zap [start, end) of ``vma`` as far as ``details`` says. True: the lock was dropped, walk again."""
    sched = kernel.sched
    lock = details.i_mmap_lock
    assert lock is not None
    shift = kernel.shape.layout.page_shift
    while True:
        restart = vma.vm_truncate_count
        if not restart % (1 << shift) and start < restart:
            start = restart
            if start >= end:  # the rest was split off since, and is a vma of its own
                vma.vm_truncate_count = count
                return False
        reached = zap_page_range(vma, start, end - start, details)
        wanted = sched.need_resched() or sched.need_lockbreak(lock)
        complete = reached >= end
        vma.vm_truncate_count = count if complete else reached
        if wanted:
            lock.unlock()
            sched.cond_resched()
            lock.lock()
            return True
        if complete:
            return False
