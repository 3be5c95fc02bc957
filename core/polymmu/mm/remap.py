"""For drivers: map frames that the mm core does not manage into a vma (Linux: remap_pfn_range)."""

from __future__ import annotations

import errno

import numpy as np

from polymmu.errors import syscall_error
from polymmu.hooks import ArchKernel
from polymmu.mm.tables import alloc_entry, pte_lock, pte_unlock
from polymmu.structs import VM_DONTEXPAND, VM_PFNMAP, vm_area_struct

__all__ = ["remap_pfn_range"]


def remap_pfn_range(vma: vm_area_struct, addr: int, pfn: int, pages: int) -> None:
    """Map ``pages`` frames from ``pfn`` on at ``addr`` of ``vma``, where nothing is mapped. Called by a driver's mmap.

    Raises ENOMEM where a table cannot be had, with nothing of the range mapped any more: the caller will free its
    frames (Linux 6.12).
    """
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    shape, page = kernel.shape, mm.layout.page_size
    vma.vm_flags |= VM_PFNMAP | VM_DONTEXPAND
    for n in range(pages):
        at = addr + n * page
        ptep = alloc_entry(mm, at)
        if ptep < 0:
            kernel.variants.free_pgtables.remap_failed(vma, addr, at)
            raise syscall_error(errno.ENOMEM, "no frame left for a driver's page table")
        value = shape.pte.of_frame((pfn + n) * page) | vma.vm_page_prot
        pte_lock(mm, ptep)
        kernel.ops.set_pte(mm, at, ptep, np.array((value,), dtype=np.uint64))
        pte_unlock(mm, ptep)
