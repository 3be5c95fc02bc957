"""free_pgtables against a brute-force oracle: a table goes exactly when no remaining vma touches what it covers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.events import Observer
from polymmu.hooks import ArchKernel
from polymmu.mm.gather import tlb_finish_mmu, tlb_gather_mmu
from polymmu.mm.pgtables import VmaList, free_pgd_range
from polymmu.mm.tables import alloc_entry
from polymmu.mm.vma import detach_vmas, vmas_of
from polymmu.structs import mm_struct
from tests.mm.toy import ARCHES, PAGE, PMD, PUD, TOP, add_vma, boot, live_tables, new_mm

MIB, GIB = 1 << 20, 1 << 30
KIB4 = 4096
WORD = 1 << 64

RULES = VmaList(boot())
within_neighbours, table_is_free = RULES.within_neighbours, RULES.table_is_free


def with_tables(mm: mm_struct, start: int, end: int) -> None:
    """A vma with every pte table it could have."""
    add_vma(mm, start, end)
    for addr in range(start & -PMD, end, PMD):
        assert alloc_entry(mm, addr) >= 0


def needed_by(vmas: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """The tables that these vmas need, by looking at every page."""
    pages = [page for start, end in vmas for page in range(start, end, PAGE)]
    return {(level, page // span * span) for page in pages for level, span in ((1, PUD), (2, PMD))}


def remove(mm: mm_struct, removed: list[tuple[int, int]]) -> None:
    """Take consecutive vmas off the mm and free their tables, as munmap does."""
    first, last = mm.vmas[removed[0][0]], mm.vmas[removed[-1][0]]
    prev, following = first.vm_prev, last.vm_next
    floor = prev.vm_end if prev is not None else 0
    ceiling = following.vm_start if following is not None else 0
    detach_vmas(mm, first, removed[-1][1])
    tlb = tlb_gather_mmu(mm)
    mm.kernel.variants.free_pgtables.free_pgtables(tlb, first, floor, ceiling)
    tlb_finish_mmu(tlb, removed[0][0], removed[-1][1])
    for vma in list(vmas_of(first)):
        mm.kernel.vmas.free(vma)


# Boundaries in units that make neighbours meet inside a page table, inside a pmd table, and not at all.
boundary = st.one_of(
    st.integers(0, TOP // PAGE),
    st.integers(0, TOP // PMD).map(lambda n: n * 16),
    st.integers(0, 40),
    st.integers(TOP // PAGE - 40, TOP // PAGE),
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.sets(boundary, min_size=2, max_size=14),
    st.integers(0, 6),
    st.integers(1, 6),
    st.sampled_from(sorted(ARCHES)),
)
def test_exactly_the_tables_that_no_remaining_vma_needs_are_freed(
    bounds: set[int], skip: int, many: int, arch: str
) -> None:
    edges = sorted(bounds)
    vmas = [(a * PAGE, min(b, a + 40) * PAGE) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    mm = new_mm(boot(ARCHES[arch]))
    for start, end in vmas:
        with_tables(mm, start, end)
    skip %= len(vmas)
    removed = vmas[skip : skip + many]
    kept = vmas[:skip] + vmas[skip + many :]
    remove(mm, removed)
    assert live_tables(mm) == needed_by(kept)
    assert mm.nr_tables == [0] + [sum(t[0] == level for t in live_tables(mm)) for level in (1, 2)]


# ------------------------------------------------------------------ the two ends of the address space
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 6 * 16), min_size=4, max_size=4), st.booleans(), st.booleans(), st.integers(0, 1)
)
def test_clipping_keeps_the_page_tables_without_neighbours_at_either_end(
    places: list[int], open_floor: bool, open_ceiling: bool, top: int
) -> None:
    """A window of six page tables at the bottom and at the very top, where ends wrap to 0 (A3.3 steps 0-4)."""
    floor, addr, end, ceiling = sorted(places)
    if addr == end:
        return
    base = WORD - 6 * PMD if top else 0
    low = 0 if open_floor else base + floor * PAGE
    high = WORD if open_ceiling else base + ceiling * PAGE
    start, stop = base + addr * PAGE, base + end * PAGE
    if not high:  # a neighbour that starts at 0 leaves no room for us
        return
    got = within_neighbours(start, stop % WORD, low, high % WORD, PMD)
    mine = [
        slot
        for slot in range(start // PMD, (stop - 1) // PMD + 1)
        if slot * PMD >= low and (slot + 1) * PMD <= high
    ]
    if got is None:
        assert mine == []
    else:
        assert list(range(got[0] // PMD, ((got[1] - 1) % WORD) // PMD + 1)) == mine


def test_worked_example_one_page_inside_a_shared_page_table() -> None:
    """A3.3: unmap [1G+4K, 1G+8K) below a neighbour that ends at 1G+4K: nothing may go."""
    assert within_neighbours(GIB + KIB4, GIB + 2 * KIB4, GIB + KIB4, 0, 2 * MIB) is None


@pytest.mark.parametrize(("next_start", "pmd_table_goes"), [(GIB, True), (6 * MIB, False)])
def test_worked_example_a_whole_page_table_and_its_pmd_table(next_start: int, pmd_table_goes: bool) -> None:
    """A3.3: unmap [2M, 4M) alone: its page table goes; the pmd table only if the next vma is beyond 1G."""
    assert within_neighbours(2 * MIB, 4 * MIB, 0, next_start, 2 * MIB) == (2 * MIB, 4 * MIB)
    assert table_is_free(2 * MIB, 4 * MIB, 0, next_start, GIB) is pmd_table_goes


def test_a_ceiling_below_the_first_page_table_is_not_the_top() -> None:
    assert within_neighbours(0, KIB4, 0, 2 * KIB4, 2 * MIB) is None
    assert not table_is_free(0, KIB4, 0, 2 * KIB4, GIB)


def test_an_address_that_wraps_when_rounded_up_frees_nothing() -> None:
    last = WORD - KIB4
    assert within_neighbours(last, 0, last, 0, 2 * MIB) is None


# ------------------------------------------------------------------ cost and order
class Visits(Observer):
    def __init__(self) -> None:
        self.entries = 0
        self.order: list[str] = []

    def entries_visited(self, mm: mm_struct, what: str, n: int) -> None:
        if what == "free_pgtables":
            self.entries += n

    def table_unhooked(self, mm: mm_struct, start: int, end: int) -> None:
        self.order.append(f"unhook {start:#x} {end:#x}")

    def gather_flush(self, mm: mm_struct, pages: int, tables: int) -> None:
        self.order.append(f"flush {tables}")

    def pages_freed(self, n: int) -> None:
        self.order.append(f"free {n}")


def test_one_page_costs_one_entry_per_level_wherever_it_is() -> None:
    visits = Visits()
    mm = new_mm(boot(observers=[visits]))
    for start in (0, 7 * PUD + 3 * PMD + 5 * PAGE, TOP - PAGE):
        with_tables(mm, start, start + PAGE)
        visits.entries = 0
        remove(mm, [(start, start + PAGE)])
        assert visits.entries == 2


def test_tables_are_unhooked_lowest_level_first_then_flushed_then_freed() -> None:
    visits = Visits()
    mm = new_mm(boot(observers=[visits]))
    with_tables(mm, PUD, PUD + PAGE)
    remove(mm, [(PUD, PUD + PAGE)])
    assert visits.order == [
        f"unhook {PUD:#x} {PUD + PMD:#x}",
        f"unhook {PUD:#x} {2 * PUD:#x}",
        "flush 2",
        "free 1",
        "free 1",
    ]


def test_free_pgd_range_leaves_a_floor_inside_the_table_alone(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    assert alloc_entry(mm, PMD) >= 0
    tlb = tlb_gather_mmu(mm)
    free_pgd_range(tlb, PMD + PAGE, 2 * PMD, PMD + PAGE, 0)
    assert live_tables(mm) == {(1, 0), (2, PMD)}
    free_pgd_range(tlb, PMD, 2 * PMD, 0, 0)
    assert live_tables(mm) == set()
    tlb_finish_mmu(tlb, PMD, 2 * PMD)
