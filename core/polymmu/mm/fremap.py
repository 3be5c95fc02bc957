"""remap_file_pages: put the pages of a shared file mapping in another order without making more vmas (A1.9).

Each pte of the range becomes a file pte, which says which page belongs there, and faults bring the pages; so it was
from Linux 2.6.23 on (before, each page was read and installed at once). After that no address says which page of the
file it shows, and the vma moves to its mapping's list of nonlinear ones, which truncation looks through page by page.
"""

from __future__ import annotations

import errno

import numpy as np
from numpy.typing import NDArray

from polymmu.errors import syscall_error
from polymmu.hardware.scans import account_ptes
from polymmu.hooks import ArchKernel
from polymmu.mm.calls import mm_call
from polymmu.mm.fault import serve_fault
from polymmu.mm.frames import put_run
from polymmu.mm.tables import (
    alloc_entry,
    find_entry,
    pte_lock,
    pte_unlock,
    read_pte,
    read_ptes,
    table_runs,
)
from polymmu.mm.vma import find_vma, linear_index, vma_make_nonlinear
from polymmu.mm.zap import collect_dirt, update_hiwater_rss
from polymmu.structs import VM_NONLINEAR, VM_SHARED, mm_struct, vm_area_struct

__all__ = ["do_remap_file_pages"]


def do_remap_file_pages(mm: mm_struct, start: int, length: int, pgoff: int, *, populate: bool = True) -> None:
    """Show the pages of the file from ``pgoff`` on at [start, start + length), which lies within one shared mapping.

    ``populate``: bring them in, as far as the file and memory go (without: MAP_NONBLOCK). Start and length are cut to
    whole pages. Raises EINVAL for a range that makes no sense, a mapping that cannot be reordered, or pages that a
    pte cannot name; ENOMEM where no table can be had.
    """
    with mm_call(mm, "remap_file_pages") as kernel:
        page_size = mm.layout.page_size
        start, length = start & -page_size, length & -page_size
        end = start + length
        file_pte = kernel.shape.pte.file
        if file_pte is None:
            raise syscall_error(errno.EINVAL, "a pte of this machine cannot name a page of a file")
        if length <= 0 or start < 0 or pgoff < 0:
            raise syscall_error(errno.EINVAL, f"{start:#x} + {length:#x} at file page {pgoff} makes no sense")
        if pgoff + length // page_size - 1 > file_pte.max_offset:
            raise syscall_error(
                errno.EINVAL, f"a pte of this machine names no file page above {file_pte.max_offset:#x}"
            )
        vma = find_vma(mm, start)
        if vma is None or start < vma.vm_start or vma.vm_end < end:
            raise syscall_error(errno.EINVAL, f"{start:#x} + {length:#x} is not within one mapping")
        reason = _keeps_order(vma)
        if reason:
            raise syscall_error(errno.EINVAL, f"the mapping at {vma.vm_start:#x} {reason}")
        if pgoff != linear_index(vma, start) and not vma.vm_flags & VM_NONLINEAR:
            vma_make_nonlinear(vma)
        if vma.vm_flags & VM_NONLINEAR:
            _install_file_ptes(vma, start, end, pgoff)
        if populate:
            _make_present(vma, start, end, pgoff)


def _keeps_order(vma: vm_area_struct) -> str:
    """Why the pages of ``vma`` cannot be put in another order, if they cannot."""
    if not vma.vm_flags & VM_SHARED or vma.vm_file is None:
        return "is not a shared one of a file"
    if vma.huge_size:
        return "has huge pages"
    if vma.vm_file.mmap is not None:
        return "is a driver's"
    return ""


def _install_file_ptes(vma: vm_area_struct, start: int, end: int, pgoff: int) -> None:
    """Every pte of [start, end) names its page of the file; what was mapped goes, flushed below the table lock."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    span = mm.layout.span_of(mm.layout.pmd_level)
    for addr in range(start & -span, end, span):
        if alloc_entry(mm, max(addr, start)) < 0:
            raise syscall_error(errno.ENOMEM, "no frame left for a page table")
    update_hiwater_rss(mm)
    shift = mm.layout.page_shift
    for ptep, addr, stop in table_runs(mm, start, end):
        n = (stop - addr) >> shift
        kernel.events.entries_visited(mm, "remap", n)
        kernel.sched.spend(kernel.description.costs.entry_update * n, "remap")
        pte_lock(mm, ptep)
        pfns = _unmap_run(vma, ptep, addr, n)
        kernel.ops.set_pte(mm, addr, ptep, _file_ptes(kernel, pgoff + ((addr - start) >> shift), n))
        pte_unlock(mm, ptep)
        put_run(kernel, pfns)
        kernel.sched.cond_resched()


def _unmap_run(vma: vm_area_struct, ptep: int, addr: int, n: int) -> NDArray[np.int64]:
    """Clear ``n`` ptes; the pages that they mapped, each with the pte's reference, out of every TLB."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    shape = kernel.shape
    pfns: NDArray[np.int64] = np.empty(n, dtype=np.int64)
    if not shape.pte.mapped_in(read_ptes(mm, ptep, n)).any():
        return pfns[:0]
    kernel.events.entries_changed(mm, addr, addr + (n << mm.layout.page_shift), n, "clear")
    values = kernel.ops.ptep_clear_flush(vma, addr, ptep, n)
    pages, anon, _ = account_ptes(
        values, kernel.frames.table, shape.account_masks, kernel.frames.count, -1, pfns
    )
    assert not anon, "a shared mapping of a file has no private pages"
    mm.file_rss -= pages
    collect_dirt(kernel, pfns[:pages])
    return pfns[:pages]


def _file_ptes(kernel: ArchKernel, index: int, n: int) -> NDArray[np.uint64]:
    """File ptes of ``n`` pages from ``index`` on."""
    file_pte = kernel.shape.pte.file
    assert file_pte is not None
    return np.array([file_pte.make(index + k) for k in range(n)], dtype=np.uint64)


def _make_present(vma: vm_area_struct, start: int, end: int, pgoff: int) -> None:
    """Bring the pages in, up to the file's end."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    assert vma.vm_file is not None
    page_size = mm.layout.page_size
    pages = max(-(-vma.vm_file.size // page_size) - pgoff, 0)
    for addr in range(start, min(end, start + pages * page_size), page_size):
        ptep = find_entry(mm, addr)
        if ptep < 0 or not kernel.shape.pte.is_mapped(read_pte(mm, ptep)):
            kind, n = serve_fault(vma, addr, "load")
            kernel.events.fault(mm, addr, kind, n)
        kernel.sched.cond_resched()
