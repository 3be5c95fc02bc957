"""mprotect: change the rights of mappings and of the pages already in them.

Each vma in the range is merged into a neighbour that already has the new rights, or cut so that exactly the
range gets them; then its present ptes change, then the TLBs forget the old rights. Only after that may the
caller rely on an access being refused (INV-PERM).
"""

from __future__ import annotations

import errno

from polymmu.errors import SyscallError, syscall_error
from polymmu.hooks import ArchKernel
from polymmu.mm.calls import mm_call
from polymmu.mm.commit import accountable, vm_acct_memory
from polymmu.mm.hugetlb import change_huge_protection
from polymmu.mm.mmap import page_align
from polymmu.mm.notifier import (
    mmu_notifier_invalidate_range,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from polymmu.mm.protect import change_protection
from polymmu.mm.vma import VM_RIGHTS, find_vma, set_vma_flags, split_vma, vma_merge
from polymmu.structs import VM_ACCOUNT, mm_struct, vm_area_struct

__all__ = ["do_mprotect"]


def do_mprotect(mm: mm_struct, start: int, length: int, vm_rights: int) -> None:
    """Give [start, start + length) the rights ``vm_rights`` (VM_READ | VM_WRITE | VM_EXEC, or none of them).

    Raises EINVAL for arguments that make no sense, ENOMEM where a part is not mapped (what lies before it has
    changed by then, as in Linux) or too many mappings or too much committed memory would come of it, EINVAL for a
    part of a huge page.
    """
    with mm_call(mm, "mprotect"):
        if start < 0 or start & (mm.layout.page_size - 1):
            raise syscall_error(errno.EINVAL, f"{start:#x} is not a multiple of the page size")
        if length < 0 or vm_rights & ~VM_RIGHTS:
            raise syscall_error(errno.EINVAL, f"length {length} or rights {vm_rights:#x} make no sense")
        end = start + page_align(mm, length)
        at = start
        while at < end:
            vma = find_vma(mm, at)
            if vma is None or at < vma.vm_start:
                raise syscall_error(errno.ENOMEM, f"nothing is mapped at {at:#x}")
            stop = min(end, vma.vm_end)
            _fix_up(vma, at, stop, vma.vm_flags & ~VM_RIGHTS | vm_rights)
            at = stop


def _fix_up(vma: vm_area_struct, start: int, end: int, vm_flags: int) -> None:
    """Give the part [start, end) of ``vma`` new flags: boundaries first, then ptes."""
    if vm_flags == vma.vm_flags:
        return
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    vm_flags, charged = _account(vma, vm_flags, (end - start) >> mm.layout.page_shift)
    try:
        holder = _part_with(vma, start, end, vm_flags)
    except SyscallError:
        kernel.vm_committed -= charged
        raise
    change = change_huge_protection if holder.huge_size else change_protection
    mmu_notifier_invalidate_range_start(mm, start, end)
    change(holder, start, end, holder.vm_page_prot)
    kernel.ops.flush_tlb_range(holder, start, end)
    mmu_notifier_invalidate_range(mm, start, end)
    mmu_notifier_invalidate_range_end(mm, start, end)


def _account(vma: vm_area_struct, vm_flags: int, pages: int) -> tuple[int, int]:
    """``vm_flags`` with VM_ACCOUNT as it should be, and how many of a part's ``pages`` were charged for that.

    A part is charged when it becomes writable. When it no longer is it gives that back if it has no page of its own,
    so that it is again like neighbours that never were (Linux 6.6, there for anonymous memory only).
    """
    kernel: ArchKernel = vma.vm_mm.kernel
    if accountable(vm_flags) and not vm_flags & VM_ACCOUNT:
        vm_acct_memory(kernel, pages)
        return vm_flags | VM_ACCOUNT, pages
    if vm_flags & VM_ACCOUNT and not accountable(vm_flags) and vma.anon_vma is None:
        kernel.vm_committed -= pages
        return vm_flags & ~VM_ACCOUNT, -pages
    return vm_flags, 0


def _part_with(vma: vm_area_struct, start: int, end: int, vm_flags: int) -> vm_area_struct:
    """The vma that holds the part [start, end) of ``vma``, with ``vm_flags``: a neighbour that is alike, or a new one.

    Raises ENOMEM for too many mappings, EINVAL inside a huge page.
    """
    mm = vma.vm_mm
    pgoff = vma.vm_pgoff + ((start - vma.vm_start) >> mm.layout.page_shift)
    below = vma if vma.vm_start < start else vma.vm_prev
    holder = vma_merge(mm, below, start, end, vm_flags, anon=vma.anon_vma, file=vma.vm_file, pgoff=pgoff)
    if holder is not None:
        return holder
    if vma.vm_start < start:
        split_vma(vma, start, new_below=True)
    if end < vma.vm_end:
        split_vma(vma, end, new_below=False)
    set_vma_flags(vma, vm_flags)
    return vma
