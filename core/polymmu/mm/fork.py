"""fork: a second address space that shows the same bytes, shared until one of the two writes.

The child is linked vma by vma, each into its file's i_mmap behind its parent's before its ptes are copied: a
truncation that has passed the parent then still meets the child (A7.5). Where both could write, both lose the
right; the parent's TLBs forget it before it runs on (INV-COW).
"""

from __future__ import annotations

from polymmu.errors import SyscallError
from polymmu.mm.calls import mm_call
from polymmu.mm.commit import vm_acct_memory
from polymmu.mm.copy import copy_page_range
from polymmu.mm.mm import mm_alloc, mmput
from polymmu.mm.notifier import (
    mmu_notifier_invalidate_range,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from polymmu.mm.pagecache import get_file
from polymmu.mm.vma import anon_vma_fork, remove_vma, vma_copy, vma_link, vma_pages, vmas_of
from polymmu.structs import VM_ACCOUNT, VM_DONTCOPY, mm_struct

__all__ = ["dup_mm"]


def dup_mm(mm: mm_struct) -> mm_struct:
    """A child of ``mm``. Raises ENOMEM, with nothing left of the child."""
    with mm_call(mm, "fork") as kernel:
        child = mm_alloc(kernel, like=mm)
        if mm.exe_file is not None:
            child.exe_file = get_file(mm.exe_file)
        kernel.ops.flush_cache_mm(mm)
        mmu_notifier_invalidate_range_start(mm, 0, 0)
        try:
            try:
                _dup_mmap(child, mm)
            finally:
                # Also after a failure: what was copied has lost its write right in the parent already.
                kernel.ops.flush_tlb_mm(mm)
                mmu_notifier_invalidate_range(mm, 0, 0)
                mmu_notifier_invalidate_range_end(mm, 0, 0)
        except SyscallError:
            mmput(child)
            raise
        return child


def _dup_mmap(child: mm_struct, mm: mm_struct) -> None:
    """Copy vmas and ptes. Guard: the parent's mmap_lock for writing; nobody else knows the child."""
    last = None
    for vma in vmas_of(mm.mmap):
        if vma.vm_flags & VM_DONTCOPY:
            continue
        copy = vma_copy(vma, child)
        try:
            anon_vma_fork(copy)
            if vma.vm_flags & VM_ACCOUNT:
                vm_acct_memory(mm.kernel, vma_pages(vma))
        except SyscallError:
            remove_vma(copy)
            raise
        vma_link(copy, last, parent=vma)
        last = copy
        child.total_vm += vma_pages(copy)
        copy_page_range(child, mm, vma)
