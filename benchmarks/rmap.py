"""What it costs to find every pte that maps a page of a file, among 10 to 100,000 vmas of that file.

Cycles of the machine file, so the same on every computer. Each vma maps a window of four pages, the next one a page
further on: four of them have the page in question, however many there are. By page tables (2.4, which had no way
back from a page): every pte of every vma; by list: every vma; by tree: those that lie on the way.
"""

from __future__ import annotations

import attrs
import numpy as np

from benchmarks.measure import GIB, Row, Target
from benchmarks.workloads import Lab, machine
from polymmu.hooks import ArchKernel
from polymmu.machine import Machine
from polymmu.mm.rmap import rmap_walk
from polymmu.mm.tables import read_ptes, table_runs
from polymmu.structs import vm_area_struct

__all__ = ["VMAS", "WAYS", "Found", "finding", "rmap"]

PAGE = 4096
WINDOW = 4
SPACING = 2 * WINDOW * PAGE
BASE = 0x10_0000_0000
VMAS = (10, 100, 1_000, 10_000, 100_000)
WAYS = {"page tables": "list", "list": "list", "prio tree": "prio", "interval tree": "interval"}
"""How, and what the kernel keeps the vmas in."""


@attrs.frozen
class Found:
    """``mapped``: ptes that map the page. ``vmas``, ``ptes``: looked at, for so many ``cycles``."""

    mapped: int
    vmas: int
    ptes: int
    cycles: int


def mapped_by(vmas: int, tree: str, populate: bool) -> tuple[Machine, int]:
    """A machine with so many vmas of one file, and the frame of the page in the middle, mapped in four of them.

    ``populate``: all other pages are mapped too, so that no table is missing.
    """
    crowd = machine(
        memory="4GiB", kernel__vm_max_map_count=2 * max(VMAS), kernel__rmap_tree=tree, kernel__pagevec=1
    )
    mm, file = crowd.new_mm(), crowd.new_file(GIB)
    crowd.cpus[0].switch_mm(mm)
    for n in range(vmas):
        at, offset = BASE + n * SPACING, n * PAGE
        mm.mmap(
            WINDOW * PAGE, "rw", at=at, fixed=True, shared=True, file=file, offset=offset, populate=populate
        )
    page = vmas // 2
    for n in range(page - WINDOW + 1, page + 1):
        crowd.cpus[0].store(BASE + n * SPACING + (page - n) * PAGE, b"x")
    return crowd, file.file.mapping.pages[page]


def finding(vmas: int, way: str) -> Found:
    """Find the ptes of the page in one of ``WAYS``."""
    scans = way == "page tables"
    crowd, pfn = mapped_by(vmas, WAYS[way], populate=scans)
    return (by_tables if scans else by_walk)(crowd, pfn)


def by_walk(crowd: Machine, pfn: int) -> Found:
    """From the page, as the kernel does it."""
    kernel = crowd.kernel
    tree = kernel.mappings.objects[kernel.frames.mapping[pfn] - 1].i_mmap
    visited, clock = tree.visited, kernel.sched.clock[0]
    looked = crowd.counters.visited.get("rmap", 0)
    mapped = 0

    def visit(vma: vm_area_struct, addr: int, ptep: int) -> bool:
        nonlocal mapped
        mapped += 1
        return True

    rmap_walk(kernel, pfn, visit)
    ptes = crowd.counters.visited["rmap"] - looked
    return Found(mapped, tree.visited - visited, ptes, kernel.sched.clock[0] - clock)


def by_tables(crowd: Machine, pfn: int) -> Found:
    """Through all ptes of all vmas."""
    kernel: ArchKernel = crowd.kernel
    costs, shape = crowd.description.costs, kernel.shape
    vmas = ptes = mapped = 0
    for mm in kernel.mms.objects:
        for vma in mm.vmas.values():
            vmas += 1
            for ptep, addr, stop in table_runs(mm, vma.vm_start, vma.vm_end):
                n = stop - addr >> mm.layout.page_shift
                ptes += n
                values = read_ptes(mm, ptep, n)
                pfns = (values & np.uint64(shape.pte.frame_mask)) >> np.uint64(shape.pfn_shift)
                mapped += int(np.count_nonzero(shape.pte.mapped_in(values) & (pfns == pfn)))
    return Found(mapped, vmas, ptes, costs.vma_visit * vmas + costs.entry_update * ptes)


def rmap(lab: Lab) -> list[Row]:
    """Rows of cycles by number of vmas and by way; a tree's may grow with the logarithm, no faster."""
    rows: list[Row] = []
    sizes = [size for size in VMAS if size <= lab.sized(max(VMAS))]
    for way in WAYS:
        fewest = 0
        for size in sizes:
            found = finding(size, way)
            if found.mapped != WINDOW:
                raise AssertionError(f"{way} finds {found.mapped} of {WINDOW} ptes among {size} vmas")
            fewest = fewest or found.cycles
            rows.append(
                Row(
                    group="rmap",
                    what=f"all ptes of a page by {way}, among {size:,} vmas",
                    figure=found.cycles,
                    unit="cycles",
                    ratio=found.cycles / fewest,
                    reference=f"among {sizes[0]:,}",
                    target=Target(5, at_most=True) if size == max(VMAS) and "tree" in way else None,
                    note=f"{found.vmas:,} vmas and {found.ptes:,} ptes looked at",
                )
            )
    return rows
