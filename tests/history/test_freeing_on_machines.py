"""What each generation of table freeing leaves on real layouts, against a model from A3.1's text by table paths.

The model knows an address space as its pages: which root entry, which table of each level a page needs, by arithmetic
on the layout alone. It works inside one run of addresses without holes, which is where the rules are plain.
"""

from __future__ import annotations

import random

import pytest

from polymmu.conformance.bench import Path, tables_for, tables_in_memory
from polymmu.machine import Machine, Mm
from polymmu.structs import mm_struct

Range = tuple[int, int]
GENERATIONS = ("vma_list", "clear_page_range", "clear_page_tables")
PLAIN = (
    "x86",
    "x86-pae",
    "x86_64",
    "x86_64-la57",
    "ia64",
    "ppc64",
    "ppc64-64k",
    "s390",
    "s390-31",
    "sparc64",
)


class Model:
    """Tables as {path: (first address, end)} in a window that begins at ``base``, a multiple of a root entry's span."""

    def __init__(self, mm: mm_struct) -> None:
        self.mm = mm
        self.layout = mm.layout
        self.tables: dict[Path, Range] = {}

    def mapped(self, start: int, end: int) -> None:
        """Every page table of [start, end) comes into being, and what is above it."""
        pmd = self.layout.span_of(self.layout.pmd_level)
        for va in range(start & -pmd, end, pmd):
            path: Path = ()
            for level in range(self.layout.pte_level):
                path = (*path, self.layout.index_of(level, va))
                span = self.layout.span_of(level)
                self.tables[path] = va & -span, (va & -span) + span

    def unmapped(self, generation: str, kept: list[Range], start: int, end: int) -> None:
        """munmap of [start, end), which leaves the vmas ``kept``."""
        pgdir, pmd = self.layout.span_of(0), self.layout.span_of(self.layout.pmd_level)
        below = max((high for _, high in kept if high <= start), default=0)
        above = min((low for low, _ in kept if low >= end), default=1 << 64)
        if generation == "vma_list":
            gone = {
                path
                for path, (low, high) in self.tables.items()
                if not any(a < high and low < b for a, b in kept)
            }
        elif generation == "clear_page_range":
            first, last = max(start // pgdir * pgdir, below), min(end + pgdir - 1, above)
            inside = first // pmd < last // pmd
            gone = {
                path for path, (low, high) in self.tables.items() if inside and first <= low and high <= last
            }
        else:
            first = start // pgdir * pgdir
            if below > first:
                first = -(-below // pgdir) * pgdir
            last = min(end + pgdir - 1, above) // pgdir * pgdir
            gone = {path for path, (low, high) in self.tables.items() if first <= low and high <= last}
        for path in gone:
            del self.tables[path]


def window_of(machine: Machine) -> Range:
    """Four root entries between holes and ends, none of them the last before one; fewer where there are not."""
    limits, layout = machine.kernel.shape.limits, machine.new_mm().struct.layout
    span = layout.span_of(0)
    top = min([limits.stack_top, *(low for low, _ in limits.holes)])
    entries = min(top // span, 6)
    return (span, min(entries - 1, 5) * span) if entries > 2 else (0, top)


def ranges(machine: Machine, rng: random.Random, base: int, end: int) -> list[Range]:
    """Disjoint, ascending; around the boundaries of every level, and inside page tables."""
    page, layout = machine.page_size, machine.kernel.shape.layout
    marks: set[int] = set()
    while len(marks) < 12:
        span = layout.span_of(rng.randrange(layout.pte_level))
        edge = rng.randrange(base, end) // span * span + rng.choice((-2, -1, 0, 0, 0, 1, 2, 9)) * page
        if base + page <= edge <= end - 64 * page:
            marks.add(edge)
    edges = sorted(marks)
    longest = 40 * page
    return [
        (a, min(a + longest, b)) for a, b in zip(edges, [*edges[1:], end], strict=True) if rng.random() < 0.8
    ]


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", PLAIN)
def test_what_is_left_is_what_the_rules_say(name: str, generation: str) -> None:
    machine = Machine.from_file(name, sets=["memory=256 MiB", f"kernel.free_pgtables={generation}"])
    base, end = window_of(machine)
    surplus = 0
    for seed in range(4):
        rng = random.Random(seed)
        mm: Mm = machine.new_mm()
        machine.cpus[0].switch_mm(mm)
        bare = tables_in_memory(mm.struct)
        vmas = ranges(machine, rng, base, end)
        model = Model(mm.struct)
        for start, stop in vmas:
            mm.mmap(stop - start, at=start, fixed=True)
            pmd = model.layout.span_of(model.layout.pmd_level)
            for va in sorted({start, *range((start & -pmd) + pmd, stop, pmd)}):
                machine.cpus[0].store(va, b"t")
            model.mapped(start, stop)
            assert tables_for(mm.struct, start, stop) <= set(model.tables)
        while vmas:
            first = rng.randrange(len(vmas))
            many = rng.randrange(1, 4)
            gone, vmas = vmas[first : first + many], vmas[:first] + vmas[first + many :]
            mm.munmap(gone[0][0], gone[-1][1] - gone[0][0])
            model.unmapped(generation, vmas, gone[0][0], gone[-1][1])
            now = tables_in_memory(mm.struct)
            assert now - bare == set(model.tables) - bare
            surplus += len(set(model.tables)) - len(
                {p for low, high in vmas for p in tables_for(mm.struct, low, high)}
            )
        mm.exit()
    # Away from holes and huge pages 2.6.11 finds whatever a munmap makes superfluous, for a table that no vma overlaps
    # lies between the vmas on either side. With two levels a root entry has one page table, and 2.6.10 does so too.
    finds_all = generation != "clear_page_tables" or machine.kernel.shape.layout.levels == 2
    assert (surplus == 0) == finds_all
