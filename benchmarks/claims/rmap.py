"""From a page of a file to every pte that maps it: by page tables, by list, by tree (A6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.claims.machines import BASE, made
from benchmarks.claims.model import Claim, Effort, Row, Verdict
from polymmu.api import Machine
from polymmu.hooks import ArchKernel
from polymmu.mm.interval_tree import IntervalTrees
from polymmu.mm.prio_tree import PrioTrees
from polymmu.mm.rmap import rmap_walk
from polymmu.mm.tables import read_ptes, table_runs
from polymmu.structs import VmaTree, vm_area_struct
from polymmu_history.vma_trees import VmaLists

__all__ = ["CLAIM"]

SCAN, LIST, PRIO, INTERVAL = "page tables", "list", "prio tree", "interval tree"
TREES: dict[str, type[VmaLists | PrioTrees | IntervalTrees]] = {
    LIST: VmaLists,
    PRIO: PrioTrees,
    INTERVAL: IntervalTrees,
}
CYCLES, VMAS, PTES = "cycles", "vmas looked at", "ptes looked at"
WINDOW = 4
"""Pages that each vma maps; the next one's begin one page further on, so that four vmas have a page in common."""


class Crowd:
    """A file that ever more vmas map, kept in a tree of each kind: the machine's own could be any of them."""

    def __init__(self, name: str, most: int) -> None:
        sets = (f"kernel.vm_max_map_count={2 * most}", "kernel.pagevec=1")
        self.machine: Machine = made(name, *sets, cpus=1, driver="solo")
        self.page = self.machine.page_size
        self.mm = self.machine.new_mm()
        self.file = self.machine.new_file((most + WINDOW) * self.page)
        self.machine.cpus[0].switch_mm(self.mm)
        self.own = self.file.file.mapping.i_mmap
        self.trees: dict[str, VmaTree] = {
            kind: trees(self.machine.kernel).new_tree() for kind, trees in TREES.items()
        }
        self.vmas = 0

    def at(self, vma: int) -> int:
        """Where it is; its neighbours are not merged with it, as their pages are others."""
        return BASE + vma * WINDOW * self.page

    def grow(self, vmas: int) -> None:
        """Map the file in more places, up to so many."""
        layout = self.machine.kernel.shape.layout
        table = layout.span_of(layout.pmd_level)
        for n in range(self.vmas, vmas):
            at = self.at(n)
            self.mm.mmap(
                WINDOW * self.page, "rw", at=at, fixed=True, shared=True, file=self.file, offset=n * self.page
            )
            if n == self.vmas or at // table != self.at(n - 1) // table:
                self.machine.cpus[0].store(at, b"x")  # no page table is missing
        for vma in list(self.mm.struct.vmas.values())[self.vmas :]:
            for tree in self.trees.values():
                tree.insert(vma)
        self.vmas = vmas

    def middle(self) -> int:
        """The frame of a page that is mapped in ``WINDOW`` vmas."""
        page = self.vmas // 2
        for n in range(page - WINDOW + 1, page + 1):
            self.machine.cpus[0].store(self.at(n) + (page - n) * self.page, b"x")
        pfn: int = self.file.file.mapping.pages[page]
        return pfn

    def found(self, way: str, pfn: int) -> dict[str, int]:
        """What it costs to find the ptes of that page in this way."""
        mapped, figures = self.by_tables(pfn) if way == SCAN else self.by_walk(self.trees[way], pfn)
        if mapped != WINDOW:
            raise AssertionError(f"{way} finds {mapped} of {WINDOW} ptes among {self.vmas} vmas")
        return figures

    def by_walk(self, tree: VmaTree, pfn: int) -> tuple[int, dict[str, int]]:
        """From the page, as the kernel does it."""
        kernel, mapping = self.machine.kernel, self.file.file.mapping
        visited, clock = tree.visited, kernel.sched.clock[0]
        looked = self.machine.counters.visited.get("rmap", 0)
        mapped: list[int] = []

        def visit(vma: vm_area_struct, addr: int, ptep: int) -> bool:
            mapped.append(addr)
            return True

        mapping.i_mmap = tree
        rmap_walk(kernel, pfn, visit)
        mapping.i_mmap = self.own
        return len(mapped), {
            CYCLES: kernel.sched.clock[0] - clock,
            VMAS: tree.visited - visited,
            PTES: self.machine.counters.visited["rmap"] - looked,
        }

    def by_tables(self, pfn: int) -> tuple[int, dict[str, int]]:
        """Through all ptes of all vmas: 2.4 had no way back from a page."""
        kernel: ArchKernel = self.machine.kernel
        costs, shape, mm = kernel.description.costs, kernel.shape, self.mm.struct
        vmas = ptes = mapped = 0
        for vma in mm.vmas.values():
            vmas += 1
            for ptep, addr, stop in table_runs(mm, vma.vm_start, vma.vm_end):
                n = stop - addr >> mm.layout.page_shift
                ptes += n
                values = read_ptes(mm, ptep, n)
                pfns = (values & np.uint64(shape.pte.frame_mask)) >> np.uint64(shape.pfn_shift)
                mapped += int(np.count_nonzero(shape.pte.mapped_in(values) & (pfns == pfn)))
        return mapped, {CYCLES: costs.vma_visit * vmas + costs.entry_update * ptes, VMAS: vmas, PTES: ptes}


def rows_of(name: str, sizes: Sequence[int]) -> Iterator[Row]:
    """One crowd that grows."""
    crowd = Crowd(name, sizes[-1])
    for size in sizes:
        crowd.grow(size)
        pfn = crowd.middle()
        yield Row(
            f"{size:,} vmas",
            {
                (figure, way): value
                for way in CLAIM.variants
                for figure, value in crowd.found(way, pfn).items()
            },
        )


def measure(name: str, effort: Effort) -> list[Row]:
    """By number of vmas."""
    return list(rows_of(name, effort.vmas))


def judge(rows: Sequence[Row]) -> Verdict:
    """Tables and list must grow with the vmas, the trees hardly."""
    first, last = rows[0].cells, rows[-1].cells
    more = {way: last[CYCLES, way] / first[CYCLES, way] for way in CLAIM.variants}
    crowd = last[VMAS, LIST] / first[VMAS, LIST]
    holds = all(more[way] < 5 for way in (PRIO, INTERVAL)) and all(
        more[way] > crowd / 20 for way in (SCAN, LIST)
    )
    said = ", ".join(f"{last[CYCLES, way]:,} cycles by {way}" for way in CLAIM.variants)
    even = next((row.case for row in rows if row.cells[CYCLES, INTERVAL] < row.cells[CYCLES, LIST]), "never")
    return Verdict(holds, f"{said}, among {rows[-1].case}; the interval tree beats the list from {even} on")


CLAIM = Claim(
    name="rmap",
    title="From a page to its ptes",
    statement="""
        To find the ptes that map a page of a file, page tables cost every pte of every vma of every mm, a list (to
        2.6.6) every vma of the file, a tree (priority search since 2.6.7, intervals since 3.7) those on the way: in
        a crowd of vmas, where few of them map the page, thousands of times less.
    """,
    method=f"""
        Each vma maps {WINDOW} pages of a file, the next one begins a page further on; so {WINDOW} of them map the
        page in the middle, however many there are. The scan of tables is counted, not run: every vma and every pte
        in it. Few tables and one mm make the scan look better than it is.
    """,
    variants=(SCAN, *TREES),
    figures=(CYCLES, VMAS, PTES),
    measure=measure,
    judge=judge,
)
