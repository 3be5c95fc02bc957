"""Who maps a page, by reading every table of every address space."""

from __future__ import annotations

from collections.abc import Iterator

from polymmu.hooks import ArchKernel
from polymmu.mm.rmap import rmap_walk
from polymmu.mm.tables import pfn_of, read_ptes, table_runs
from polymmu.structs import PG_RESERVED, mm_struct, vm_area_struct

Mappings = dict[int, list[tuple[int, int]]]
"""Frame -> (mm's slot, address) of each pte that maps it, sorted."""


def ptes_of(mm: mm_struct) -> Iterator[tuple[int, int, int]]:
    """(address, physical address of the pte, its value) of each present pte."""
    kernel: ArchKernel = mm.kernel
    width = mm.layout.entry_bytes[-1]
    for vma in mm.vmas.values():
        if vma.huge_size:
            continue
        for ptep, addr, stop in table_runs(mm, vma.vm_start, vma.vm_end):
            values = read_ptes(mm, ptep, stop - addr >> mm.layout.page_shift)
            for n in kernel.shape.pte.mapped_in(values).nonzero()[0].tolist():
                yield addr + (n << mm.layout.page_shift), ptep + n * width, int(values[n])


def all_mappings(kernel: ArchKernel) -> Mappings:
    found: Mappings = {}
    for mm in kernel.mms.objects:
        if mm.mm_users and mm is not kernel.init_mm:
            for addr, _, value in ptes_of(mm):
                pfn = pfn_of(kernel.shape, value)
                if pfn < kernel.frames.count and not kernel.frames.flags[pfn] & PG_RESERVED:
                    found.setdefault(pfn, []).append((mm.slot, addr))
    return {pfn: sorted(places) for pfn, places in found.items()}


def walked(kernel: ArchKernel, pfn: int) -> list[tuple[int, int]]:
    """What a walk from the page finds; a pte that is found twice is there twice."""
    places: list[tuple[int, int]] = []

    def visit(vma: vm_area_struct, addr: int, ptep: int) -> bool:
        places.append((vma.vm_mm.slot, addr))
        return True

    rmap_walk(kernel, pfn, visit)
    return sorted(places)
