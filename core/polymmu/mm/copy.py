"""Copy a vma's pages to a child at fork (A7.5): the child maps the same frames, and neither may write them.

What a fault can bring back is not copied: a vma that never had a private page is skipped whole, unless its pages
stand in an order that only its ptes know. Entries without a page are copied as they are; the swap area counts them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from polymmu.errors import syscall_error
from polymmu.hardware.scans import account_ptes
from polymmu.hooks import ArchKernel
from polymmu.mm.hugetlb import copy_hugetlb_page_range
from polymmu.mm.swap import swap_duplicate_in
from polymmu.mm.tables import alloc_entry, entries_in, format_of, pte_lock, pte_unlock, read_ptes
from polymmu.structs import VM_NONLINEAR, VM_PFNMAP, VM_SHARED, EntryRun, mm_struct, vm_area_struct

__all__ = ["copy_page_range"]


def copy_page_range(dst: mm_struct, src: mm_struct, vma: vm_area_struct) -> None:
    """Enter in ``dst`` what ``src`` maps in its ``vma``. The caller flushes the parent's TLB afterwards.

    Raises ENOMEM where no table can be had; what was copied until then goes with the child.
    """
    kernel: ArchKernel = src.kernel
    if vma.huge_size:
        copy_hugetlb_page_range(dst, src, vma)
        return
    if not vma.vm_flags & (VM_PFNMAP | VM_NONLINEAR) and vma.anon_vma is None:
        return
    for into, ptep, addr, end in _tables_for(dst, src, 0, src.pgd, vma.vm_start, vma.vm_end):
        # Child's lock outside, parent's inside: nobody else knows the child's tables yet.
        pte_lock(dst, into)
        pte_lock(src, ptep, nested=True)
        _copy_ptes(dst, src, vma, into, ptep, addr, end)
        pte_unlock(src, ptep)
        pte_unlock(dst, into)
        kernel.sched.cond_resched()


def _tables_for(
    dst: mm_struct, src: mm_struct, level: int, table: int, addr: int, end: int
) -> Iterator[tuple[int, int, int, int]]:
    """Give ``dst`` each table that ``src`` has below ``table`` (of ``level``) in [addr, end), empty ones too.

    Yields for every pte table (the first pte in ``dst``, the first pte in ``src``, addr, end).
    """
    layout = src.layout
    below = level + 1
    for _, value, start, stop in entries_in(src, level, table, addr, end):
        child = format_of(src, level).table_of(value)
        into = alloc_entry(dst, start, below)
        if into < 0:
            raise syscall_error(errno.ENOMEM, "no frame left for a child's page table")
        if below == layout.pte_level:
            yield into, layout.entry_address(below, child, start), start, stop
        else:
            yield from _tables_for(dst, src, below, child, start, stop)


def _copy_ptes(
    dst: mm_struct, src: mm_struct, vma: vm_area_struct, into: int, ptep: int, addr: int, end: int
) -> None:
    kernel: ArchKernel = src.kernel
    ops, frames, shape = kernel.ops, kernel.frames, kernel.shape
    n = (end - addr) >> src.layout.page_shift
    kernel.events.entries_visited(src, "copy", n)
    kernel.sched.spend(kernel.description.costs.entry_update * n, "copy")
    values = read_ptes(src, ptep, n)
    filled = np.flatnonzero(values != np.uint64(shape.pte.empty))
    if not len(filled):
        return
    first, n = int(filled[0]), int(filled[-1] - filled[0]) + 1
    addr += first << src.layout.page_shift
    ptep += first * src.layout.entry_bytes[-1]
    into += first * src.layout.entry_bytes[-1]
    values = values[first : first + n]
    private = not vma.vm_flags & VM_SHARED
    if private:
        ops.set_wrprotect(src, addr, ptep, n)
        kernel.events.entries_changed(src, addr, addr + (n << src.layout.page_shift), n, "wrprotect")
        values = read_ptes(src, ptep, n)  # how an entry without rights is protected, the arch knows
    if not vma.vm_flags & VM_PFNMAP:
        pfns: NDArray[np.int64] = np.empty(n, dtype=np.int64)
        pages, anon, _ = account_ptes(values, frames.table, shape.account_masks, frames.count, 1, pfns)
        dst.anon_rss += anon
        dst.file_rss += pages - anon
    swap_duplicate_in(dst, values)
    ops.set_pte(dst, addr, into, _as_childs(kernel, values, private))


def _as_childs(kernel: ArchKernel, values: EntryRun, private: bool) -> EntryRun:
    """The child's entries: old, and clean where shared; ``values`` are protected already where private."""
    pte = kernel.shape.pte
    keep, put = (1 << 64) - 1, 0
    for field in (None if private else pte.dirty, pte.accessed):
        if field is not None:
            keep &= ~(field.mask | field.with_off)
            put = put & ~field.mask | field.off
    return np.where(pte.mapped_in(values), values & np.uint64(keep) | np.uint64(put), values)
