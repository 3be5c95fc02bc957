"""Where a mapping goes that did not say where: the highest gap below ``mmap_base`` that is long enough.

The search walks the vmas downwards. So that it does not start at the top each time, the mm remembers two
numbers: no gap between ``free_area_cache`` and ``mmap_base`` is longer than ``cached_hole_size``. A longer
request starts at the cache, a shorter one at the top; either way the answer is the one a search of everything
would give. (Linux kept the same two numbers from 2.6.9 to 3.7, more loosely; its trees of gaps since 3.8 also
find the highest.)

A huge mapping goes where the architecture lets huge pages be; it is asked to prepare one candidate after the other.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from polymmu.errors import SyscallError, syscall_error
from polymmu.hooks import ArchKernel
from polymmu.mm.vma import find_vma, find_vma_intersection, find_vma_prev
from polymmu.structs import mm_struct, vm_area_struct

__all__ = ["area_was_freed", "check_fixed_area", "get_unmapped_area", "get_unmapped_huge_area"]


def get_unmapped_area(mm: mm_struct, addr: int | None, length: int) -> int:
    """An address where ``length`` bytes (whole pages) are free; ``addr`` if it is free, a wish only.

    Raises ENOMEM where no gap is long enough.
    """
    kernel: ArchKernel = mm.kernel
    page_mask = -mm.layout.page_size
    if addr is not None:
        wish = (addr + ~page_mask) & page_mask
        if _usable(mm, wish, wish + length):
            return wish
    if length <= mm.cached_hole_size:
        _forget(mm)
    found = _search_down(mm, length)
    if found is None and mm.free_area_cache != mm.mmap_base:
        # What a failed mapping gave back is above the cache and in nobody's books.
        _forget(mm)
        found = _search_down(mm, length)
    if found is None:
        found = _search_above_base(mm, length)
    if found is None and kernel.ops.grow_task_size(mm, mm.task_size + length):
        found = _search_above_base(mm, length)
    if found is None:
        raise syscall_error(errno.ENOMEM, f"no gap of {length:#x} bytes is left in the address space")
    return found


def get_unmapped_huge_area(mm: mm_struct, addr: int | None, length: int, huge_size: int) -> int:
    """As ``get_unmapped_area``, for whole huge pages of ``huge_size`` bytes; the architecture has prepared the range.

    The lowest place in the architecture's huge ranges; where it has none, the highest below ``mmap_base``.
    """
    kernel: ArchKernel = mm.kernel
    if length % huge_size:
        raise syscall_error(
            errno.EINVAL, f"length {length:#x} is no multiple of huge pages of {huge_size:#x}"
        )
    for place in _huge_places(mm, addr, length, huge_size):
        try:
            kernel.ops.prepare_hugepage_range(mm, place, length, huge_size)
        except SyscallError:
            continue
        return place
    raise syscall_error(errno.ENOMEM, f"no place is left for {length:#x} bytes of huge pages")


def _huge_places(mm: mm_struct, addr: int | None, length: int, huge_size: int) -> Iterator[int]:
    kernel: ArchKernel = mm.kernel
    lowest, ranges = _lowest_address(mm), kernel.shape.limits.huge_ranges

    def upwards(low: int, high: int) -> Iterator[int]:
        for bottom, top in _gaps(mm, low, min(high, mm.task_size)):
            yield from range(-(-bottom // huge_size) * huge_size, top - length + 1, huge_size)

    if addr is not None:
        wish = -(-addr // huge_size) * huge_size
        if (
            lowest <= wish <= mm.task_size - length
            and _may_be_huge(mm, wish, wish + length)
            and _hole_in(mm, wish, wish + length) is None
            and find_vma_intersection(mm, wish, wish + length) is None
        ):
            yield wish
    if ranges:
        for low, high in ranges:
            yield from upwards(max(low, lowest), high)
        return
    for bottom, top in reversed(list(_gaps(mm, lowest, mm.mmap_base))):
        yield from range((top - length) // huge_size * huge_size, bottom - 1, -huge_size)
    yield from upwards(mm.mmap_base, mm.task_size)
    if kernel.ops.grow_task_size(mm, mm.task_size + length):
        yield from upwards(mm.mmap_base, mm.task_size)


def _gaps(mm: mm_struct, low: int, high: int) -> Iterator[tuple[int, int]]:
    """What is neither mapped nor a hole of [low, high), ascending."""
    kernel: ArchKernel = mm.kernel
    mapped = [(vma.vm_start, vma.vm_end) for vma in mm.vmas.values()]
    for start, end in sorted([*mapped, *kernel.shape.limits.holes, (high, high)]):
        if low < min(start, high):
            yield low, min(start, high)
        low = max(low, end)


def _may_be_huge(mm: mm_struct, start: int, end: int) -> bool:
    kernel: ArchKernel = mm.kernel
    ranges = kernel.shape.limits.huge_ranges
    return not ranges or any(low <= start and end <= high for low, high in ranges)


def check_fixed_area(mm: mm_struct, addr: int, length: int, huge_size: int = 0) -> None:
    """Raise EINVAL or ENOMEM where no such mapping may be at all, whatever is mapped there now.

    ``huge_size``: of huge pages of so many bytes; the architecture then has prepared the range.
    """
    kernel: ArchKernel = mm.kernel
    limits = kernel.shape.limits
    if addr & (mm.layout.page_size - 1):
        raise syscall_error(errno.EINVAL, f"{addr:#x} is not a multiple of the page size")
    if addr + length > mm.task_size and not kernel.ops.grow_task_size(mm, addr + length):
        raise syscall_error(errno.ENOMEM, f"{addr:#x} + {length:#x} ends above {mm.task_size:#x}")
    if addr < limits.first_user_address:
        raise syscall_error(errno.EINVAL, f"{addr:#x} is below the first address of programs")
    if _hole_in(mm, addr, addr + length) is not None:
        raise syscall_error(errno.ENOMEM, f"{addr:#x} + {length:#x} is not translated by this MMU")
    if huge_size:
        if not _may_be_huge(mm, addr, addr + length):
            raise syscall_error(errno.EINVAL, f"{addr:#x} + {length:#x} is not for huge pages")
        kernel.ops.prepare_hugepage_range(mm, addr, length, huge_size)
    elif kernel.ops.is_hugepage_only_range(mm, addr, length):
        raise syscall_error(errno.EINVAL, f"{addr:#x} + {length:#x} is for huge pages only")


def area_was_freed(mm: mm_struct, end: int) -> None:
    """A range that ends at ``end`` was unmapped: a gap above the cache may be longer than the cache knows."""
    if end > mm.free_area_cache:
        above = find_vma(mm, end)
        mm.free_area_cache = mm.mmap_base if above is None else min(above.vm_start, mm.mmap_base)


def _forget(mm: mm_struct) -> None:
    mm.free_area_cache = mm.mmap_base
    mm.cached_hole_size = 0


def _search_down(mm: mm_struct, length: int) -> int | None:
    """The highest fit below the cache; moves the cache to it."""
    lowest = _lowest_address(mm)
    top = mm.free_area_cache
    above, below = find_vma_prev(mm, top)
    if above is not None and above.vm_start < top:
        top, below = above.vm_start, above.vm_prev
    while True:
        bottom = max(lowest, below.vm_end) if below is not None else lowest
        fit = _fit(mm, bottom, top, length)
        if fit is not None:
            mm.cached_hole_size = max(mm.cached_hole_size, top - (fit + length))
            mm.free_area_cache = fit
            return fit
        mm.cached_hole_size = max(mm.cached_hole_size, top - bottom)
        if below is None or bottom == lowest:
            mm.free_area_cache = lowest
            return None
        top, below = below.vm_start, below.vm_prev


def _search_above_base(mm: mm_struct, length: int) -> int | None:
    """A fit in the lowest gap above ``mmap_base``, as far from the stack as it goes."""
    bottom = mm.mmap_base
    vma: vm_area_struct | None = find_vma(mm, bottom)
    while True:
        top = vma.vm_start if vma is not None else mm.task_size
        for limit in (bottom + length, top):
            fit = _fit(mm, bottom, limit, length) if limit <= top else None
            if fit is not None:
                return fit
        if vma is None:
            return None
        bottom, vma = vma.vm_end, vma.vm_next


def _fit(mm: mm_struct, bottom: int, top: int, length: int) -> int | None:
    """The highest place for ``length`` bytes in [bottom, top) that the MMU can use for small pages."""
    kernel: ArchKernel = mm.kernel
    addr = top - length
    while addr >= bottom:
        hole = _hole_in(mm, addr, addr + length)
        if hole is not None:
            addr = hole[0] - length
        elif kernel.ops.is_hugepage_only_range(mm, addr, length):
            span = mm.layout.span_of(mm.layout.pmd_level)
            addr = (addr - 1) & -span
        else:
            return addr
    return None


def _usable(mm: mm_struct, start: int, end: int) -> bool:
    vma = find_vma(mm, start)
    return (
        (vma is None or end <= vma.vm_start)
        and start >= _lowest_address(mm)
        and (end <= mm.task_size and _fit(mm, start, end, end - start) == start)
    )


def _hole_in(mm: mm_struct, start: int, end: int) -> tuple[int, int] | None:
    kernel: ArchKernel = mm.kernel
    for hole in kernel.shape.limits.holes:
        if hole[0] < end and start < hole[1]:
            return hole
    return None


def _lowest_address(mm: mm_struct) -> int:
    """Page 0 is never given to who did not ask for it: a null pointer must fault."""
    kernel: ArchKernel = mm.kernel
    return max(kernel.shape.limits.first_user_address, mm.layout.page_size)
