"""Where a vma has a page: addresses and page indices, which go up together (except in a nonlinear vma).

An index counts pages of the file, or, in an anonymous vma, virtual pages from where it was made.
"""

from __future__ import annotations

from polymmu.structs import vm_area_struct

__all__ = ["last_index", "linear_index", "vma_address", "vma_pages"]


def vma_pages(vma: vm_area_struct) -> int:
    """Base pages that ``vma`` covers."""
    return (vma.vm_end - vma.vm_start) >> vma.vm_mm.layout.page_shift


def last_index(vma: vm_area_struct) -> int:
    """Index of the last page of ``vma``; that of the first is ``vm_pgoff``."""
    return vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> vma.vm_mm.layout.page_shift) - 1


def linear_index(vma: vm_area_struct, addr: int) -> int:
    """Index of the page at ``addr``."""
    return vma.vm_pgoff + ((addr - vma.vm_start) >> vma.vm_mm.layout.page_shift)


def vma_address(vma: vm_area_struct, index: int) -> int:
    """Where ``vma`` has page ``index``; -1: nowhere."""
    addr = vma.vm_start + (index - vma.vm_pgoff << vma.vm_mm.layout.page_shift)
    return addr if vma.vm_start <= addr < vma.vm_end else -1
