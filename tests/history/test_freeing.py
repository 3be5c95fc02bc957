"""Page tables freed in three generations (A3.1 to A3.3), each against a model of its own, and the known bugs caught."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu import defaults
from polymmu.errors import SyscallError
from polymmu.hooks import hookimpl
from polymmu.machine import Machine, Mm
from polymmu.mm.mm import mmput
from polymmu.mm.mmap import do_mmap, do_munmap
from polymmu.mm.pagecache import new_file, put_file
from polymmu.mm.pgtables import VmaList
from polymmu.mm.remap import remap_pfn_range
from polymmu.mm.tables import account_table, alloc_entry, find_entry
from polymmu.registry import resolve
from polymmu.sanitize.sanitizer import Sanitizer
from polymmu.structs import AddressLimits, File, mm_struct, vm_area_struct
from polymmu_history.freeing import ClearPageRange, ClearPageTables
from polymmu_history.freeing_bugs import FREEING_BUGS, WrapsAtTheTop
from tests.mm.toy import ARCHES, PAGE, PMD, PUD, RW, TOP, Toy, add_vma, boot, live_tables, new_mm, store

Range = tuple[int, int]
Table = tuple[int, int]
"""(level, first address it covers)"""
SPAN = {1: PUD, 2: PMD}

GENERATIONS: dict[str, type[VmaList]] = {
    "vma_list": VmaList,
    "clear_page_range": ClearPageRange,
    "clear_page_tables": ClearPageTables,
}
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


# ------------------------------------------------------------------ models
def needed(vmas: list[Range]) -> set[Table]:
    """The tables that every page of ``vmas`` needs."""
    pages = [page for start, end in vmas for page in range(start, end, PAGE)]
    return {(level, page // span * span) for page in pages for level, span in SPAN.items()}


def left_by_clear_page_range(tables: set[Table], kept: list[Range], start: int, end: int) -> set[Table]:
    """A3.1, in pages: the units between the vmas on either side, cut to the entries of the root that were touched."""
    below = max([b for _, b in kept if b <= start], default=0)
    above = min([a for a, _ in kept if a >= end], default=TOP)
    low = max(start // PUD * PUD, below)
    high = min(end + PUD - 1, above, TOP)
    if low // PMD >= high // PMD:
        return tables
    return {(level, base) for level, base in tables if not (low <= base and base + SPAN[level] <= high)}


def left_by_clear_page_tables(tables: set[Table], kept: list[Range], start: int, end: int) -> set[Table]:
    """A3.1: whole entries of the root, from the one of ``start`` or behind the vma below, up to but without the one
    in which ``end`` + PGDIR_SIZE - 1 or the vma above lies. The last index wraps to 0 at the top."""
    below = max([b for _, b in kept if b <= start], default=0)
    above = min([a for a, _ in kept if a >= end], default=1 << 64)
    first = start // PUD
    if below > first * PUD:
        first = -(-below // PUD)
    last = min(end + PUD - 1, above) // PUD % (TOP // PUD)
    return {(level, base) for level, base in tables if not first <= base // PUD < last}


MODELS: dict[str, Callable[[set[Table], list[Range], int, int], set[Table]]] = {
    "vma_list": lambda tables, kept, start, end: needed(kept),
    "clear_page_range": left_by_clear_page_range,
    "clear_page_tables": left_by_clear_page_tables,
}

boundary = st.one_of(
    st.integers(0, TOP // PAGE),
    st.integers(0, TOP // PMD).map(lambda n: n * 16),
    st.integers(0, TOP // PUD).map(lambda n: n * 256),
    st.integers(0, 40),
    st.integers(TOP // PAGE - 40, TOP // PAGE),
)


@pytest.mark.parametrize("generation", GENERATIONS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_each_generation_leaves_exactly_what_its_rules_say(generation: str, data: st.DataObject) -> None:
    """Several munmaps one after another: what one leaves, a later one may find."""
    edges = sorted(data.draw(st.sets(boundary, min_size=2, max_size=14)))
    vmas = [(a * PAGE, min(b, a + 600) * PAGE) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    kernel = boot(ARCHES[data.draw(st.sampled_from(sorted(ARCHES)))], free_pgtables=generation)
    mm = new_mm(kernel)
    for start, end in vmas:
        add_vma(mm, start, end)
        for addr in range(start & -PMD, end, PMD):
            assert alloc_entry(mm, addr) >= 0
    mm.total_vm = sum(end - start for start, end in vmas) // PAGE
    tables = needed(vmas)
    assert live_tables(mm) == tables
    while vmas:
        first = data.draw(st.integers(0, len(vmas) - 1))
        many = data.draw(st.integers(1, 3))
        start, end = vmas[first][0], vmas[min(first + many, len(vmas)) - 1][1]
        vmas = vmas[:first] + vmas[first + many :]
        do_munmap(mm, start, end - start)
        tables = MODELS[generation](tables, vmas, start, end)
        assert live_tables(mm) == tables
        assert mm.nr_tables == [0] + [sum(t[0] == level for t in tables) for level in (1, 2)]
    mmput(mm)  # takes all of it down, or raises


@pytest.mark.parametrize(
    ("start", "end", "kept", "range_", "tables"),
    [
        # PGDIR 1 MiB, PMD 64 KiB. All of one root entry, nobody else: step 1 takes it whole.
        (PUD, PUD + PAGE, [], (PUD, 2 * PUD + PAGE - 1), {}),
        # A neighbour below in the same root entry: from its end on, unrounded (step 3); the pmd table stays.
        (PUD + PMD, PUD + 2 * PMD, [(PUD, PUD + PAGE)], (PUD + PAGE, 2 * PUD + 2 * PMD - 1 - PMD + PMD), {1}),
        # A neighbour above in the same page table: first and last lie in one PMD (step 5): nothing.
        (0, PAGE, [(2 * PAGE, 3 * PAGE)], None, {1, 2}),
        # The last root entry: last is cut at MM_VM_SIZE (step 1).
        (TOP - PAGE, TOP, [], (TOP - PUD, TOP), {}),
    ],
)
def test_the_range_of_2_6_11_by_hand(
    start: int, end: int, kept: list[Range], range_: Range | None, tables: set[int]
) -> None:
    kernel = boot(free_pgtables="clear_page_range")
    mm = new_mm(kernel)
    for low, high in kept:
        add_vma(mm, low, high)
    prev = next((vma for vma in mm.vmas.values() if vma.vm_end <= start), None)
    assert kernel.variants.free_pgtables.range_around(mm, prev, start, end) == range_
    add_vma(mm, start, end)
    assert alloc_entry(mm, start) >= 0
    do_munmap(mm, start, end - start)
    assert {level for level, _ in live_tables(mm)} == set(tables)


def test_exit_of_2_6_11_reads_every_entry_of_the_root_that_is_below_mm_vm_size() -> None:
    seen: dict[str, int] = {}
    for name in GENERATIONS:
        machine = Machine.from_file("x86_64", sets=[f"kernel.free_pgtables={name}"])
        mm = machine.new_mm()
        machine.cpus[0].switch_mm(mm)
        machine.cpus[0].store(mm.mmap(4096), b"x")
        mm.exit()
        seen[name] = machine.counters.visited["free_pgtables"]
    # 256 entries of the root, then all 512 of the one pud table and of the one pmd table.
    assert seen == {"vma_list": 3, "clear_page_range": 1280, "clear_page_tables": 1280}


# ------------------------------------------------------------------ real architectures
def program(machine: Machine, seed: int) -> None:
    """Mappings that come and go in all corners, a child, a new program."""
    rng = random.Random(seed)
    page, limits = machine.page_size, machine.kernel.shape.limits
    span = machine.kernel.shape.layout.span_of(machine.kernel.shape.layout.pmd_level)
    mm = machine.new_mm()
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    holes = [edge for hole in limits.holes for edge in hole]
    corners = [limits.first_user_address + page, limits.mmap_base, limits.stack_top, *holes]
    made: list[Range] = []
    for _ in range(30):
        length = page * rng.choice((1, 3, 20))
        at = rng.choice(corners) + rng.randrange(-3, 4) * span + rng.randrange(-3, 3) * page
        try:
            va = mm.mmap(length, at=at & -page, fixed=True)
        except SyscallError:
            continue
        cpu.store(va, b"1")
        cpu.store(va + length - 1, b"2")
        made.append((va, length))
        if rng.random() < 0.6:
            va, length = made.pop(rng.randrange(len(made)))
            mm.munmap(va, length)
    assert made
    child = mm.fork()
    cpu.store(made[0][0], b"3")
    child.exit()
    new = mm.exec(arguments=2, stack_shift=5 * page)
    cpu.switch_mm(new)
    cpu.store(new.mmap(page), b"x")
    new.exit()


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", PLAIN)
def test_nothing_is_left_and_nothing_is_broken_on_any_architecture(name: str, generation: str) -> None:
    machine = Machine.from_file(
        name, sets=["memory=128 MiB", f"kernel.free_pgtables={generation}"], sanitize=True
    )
    assert machine.sanitizer is not None
    program(machine, 1)
    machine.sanitizer.finish()
    assert machine.sanitizer.violations == []
    assert machine.sanitizer.balance() == []


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", ["x86", "x86_64", "ia64", "ppc64", "s390", "sparc64"])
def test_a_huge_page_comes_where_small_ones_left_their_tables(name: str, generation: str) -> None:
    machine = Machine.from_file(
        name, sets=["memory=1 GiB", f"kernel.free_pgtables={generation}"], sanitize=True
    )
    assert machine.sanitizer is not None
    if not machine.huge_page_sizes:
        pytest.skip("it has no huge pages")
    size = machine.huge_page_sizes[0]
    mm = machine.new_mm()
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(2 * size, huge=size)
    mm.munmap(at, 2 * size)
    if not machine.kernel.ops.is_hugepage_only_range(mm.struct, at, size):
        small = mm.mmap(size, at=at, fixed=True)
        cpu.store(small, b"small")
        mm.munmap(small, size)
    mm.mmap(size, at=at, fixed=True, huge=size)
    cpu.store(at, b"huge")
    assert cpu.load(at, 4) == b"huge"
    below = at - size if machine.kernel.ops.is_hugepage_only_range(mm.struct, at, size) else at - PAGE
    assert below >= 0
    mm.exit()
    machine.sanitizer.finish()
    assert machine.sanitizer.violations == []
    assert machine.sanitizer.balance() == []


@pytest.mark.parametrize("generation", GENERATIONS)
def test_inv_ptall_is_excused_only_where_tables_are_left_by_design(generation: str) -> None:
    machine = Machine.from_file("x86_64", sets=[f"kernel.free_pgtables={generation}"], sanitize=True)
    assert machine.sanitizer is not None
    mm = machine.new_mm()
    assert alloc_entry(mm.struct, 1 << 40) >= 0  # a table without a vma
    machine.sanitizer.finish()
    found = {violation.invariant for violation in machine.sanitizer.violations}
    assert found == ({"INV-PTALL"} if generation == "vma_list" else set())


# ------------------------------------------------------------------ ptes outside any vma (corpus 20)
def with_a_page_at_0xffffe000(generation: str) -> tuple[Machine, Mm]:
    """The 32-bit vdso of x86_64 before it got a vma: a page of the kernel's, entered by the fault handler."""
    machine = Machine.from_file("x86_64", sets=[f"kernel.free_pgtables={generation}"])
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    mm.mmap(0x21000, at=0xBFFDF000, fixed=True)  # the stack of a program that ends at 3 GiB
    machine.cpus[0].store(0xBFFFF000, b"x")
    kernel = machine.kernel
    value = kernel.shape.pte.of_frame(kernel.free.zero_page * 4096) | kernel.shape.protections[1]
    ptep = alloc_entry(mm.struct, 0xFFFFE000)
    kernel.ops.set_pte(mm.struct, 0xFFFFE000, ptep, np.array((value,), dtype=np.uint64))
    return machine, mm


def test_corpus_20_exit_of_2_6_11_found_the_table_of_a_page_without_a_vma() -> None:
    machine, mm = with_a_page_at_0xffffe000("clear_page_range")
    assert mm.struct.nr_tables[3] == 2
    mm.exit()
    assert machine.counters.tables["live"] <= 1  # the kernel's own root


def test_corpus_20_by_vma_list_it_is_left_and_exit_says_so() -> None:
    _, mm = with_a_page_at_0xffffe000("vma_list")
    with pytest.raises(AssertionError, match=r"exits with 1 page tables"):
        mm.exit()


def test_corpus_20_a_vma_around_it_is_all_it_takes() -> None:
    _, mm = with_a_page_at_0xffffe000("vma_list")
    mm.mmap(0x1000, "r", at=0xFFFFE000)
    mm.exit()


# ------------------------------------------------------------------ known bugs
def judged(machine: Machine, work: Callable[[], object]) -> set[str]:
    """The invariants that ``work`` broke; the kernel may have stopped at it."""
    assert machine.sanitizer is not None
    try:
        work()
        machine.sanitizer.finish()
    except AssertionError:
        pass
    return {violation.invariant for violation in machine.sanitizer.violations}


def watched(name: str, choice: str, *more: str) -> tuple[Machine, Mm]:
    machine = Machine.from_file(name, sets=[f"kernel.free_pgtables={choice}", *more], sanitize=True)
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    return machine, mm


def test_every_bug_has_a_name_in_the_corpus_and_says_what_it_gets_wrong() -> None:
    for name, bug in FREEING_BUGS.items():
        number = name.removeprefix("bug-")
        assert (bug.__doc__ or "").startswith(f"{number}: ")


def refusing(maps: int) -> Callable[[File, vm_area_struct], None]:
    """A driver's mmap that maps a frame of the device's, and fails."""

    def mmap(file: File, vma: vm_area_struct) -> None:
        remap_pfn_range(vma, vma.vm_start, vma.vm_mm.kernel.frames.count, maps)
        raise SyscallError(errno.ENODEV, "the device is gone")

    return mmap


def a_driver_refuses(machine: Machine, mm: Mm) -> None:
    file = new_file(machine.kernel, "dev", 0, mmap=refusing(3))
    with pytest.raises(SyscallError, match="the device is gone"):
        do_mmap(mm.struct, 1 << 32, 8 * 4096, RW, fixed=True, file=file)
    put_file(machine.kernel, file)


@pytest.mark.parametrize(
    ("choice", "broken"), [("vma_list", set()), ("bug-14", {"INV-PTALL"}), ("bug-15", {"INV-REF"})]
)
def test_corpus_14_and_15_a_driver_that_refuses_half_way(choice: str, broken: set[str]) -> None:
    machine, mm = watched("x86_64", choice)

    def work() -> None:
        a_driver_refuses(machine, mm)
        machine.sanitizer.finish()  # type: ignore[union-attr]
        mm.exit()

    assert judged(machine, work) == broken
    if choice == "bug-15":
        assert machine.kernel.vm_committed == -8


@pytest.mark.parametrize("generation", ["clear_page_range", "clear_page_tables"])
def test_before_freepgt_the_tables_of_a_refused_mapping_waited_for_exit(generation: str) -> None:
    machine, mm = watched("x86_64", generation)
    a_driver_refuses(machine, mm)
    assert (mm.struct.nr_tables[3], machine.kernel.vm_committed) == (1, 0)
    assert judged(machine, mm.exit) == set()


@pytest.mark.parametrize(("choice", "reached"), [("vma_list", False), ("bug-94", True)])
def test_corpus_94_another_thread_reads_through_a_half_made_mapping(choice: str, reached: bool) -> None:
    """The driver frees its memory when remap_pfn_range fails; the page is in reach until the core unmaps it."""
    machine, mm = watched("x86_64", choice, "cpus=2")
    machine.cpus[1].switch_mm(mm)
    kernel, span = machine.kernel, 1 << 21
    at = (1 << 32) + span - 4096
    read: list[bytes] = []

    def mmap(file: File, vma: vm_area_struct) -> None:
        tables = [0]

        def only_the_first(what: str) -> bool:
            tables[0] += what.startswith("table.")
            return tables[0] > 3  # pud, pmd, pte; not the next pte table

        kernel.free.fail_next = only_the_first
        try:
            remap_pfn_range(vma, vma.vm_start, 512, 2)
        except SyscallError:
            kernel.free.fail_next = None
            kernel.ram.write(512 * 4096, b"somebody else's")
            ptep = find_entry(vma.vm_mm, vma.vm_start)
            if ptep >= 0 and kernel.ram.read_entry(ptep, 8, "little"):
                read.append(machine.cpus[1].load(vma.vm_start, 8))
            raise

    file = new_file(kernel, "dev", 0, mmap=mmap)
    with pytest.raises(SyscallError):
        do_mmap(mm.struct, at, 2 * 4096, RW, fixed=True, file=file)
    assert read == ([b"somebody"] if reached else [])


def loses_a_neighbour(machine: Machine, mm: Mm, stays: int, goes: int) -> bool:
    """Two pages in one table; one is unmapped. Whether the other one's table went with it."""
    for at in (stays, goes):
        mm.mmap(4096, at=at, fixed=True)
        machine.cpus[0].store(at, b"1")
    mm.munmap(goes, 4096)
    return find_entry(mm.struct, stays) < 0


@pytest.mark.parametrize("choice", ["vma_list", "bug-16a"])
def test_corpus_16a_a_ceiling_below_the_first_table_is_not_the_top(choice: str) -> None:
    machine, mm = watched("x86_64", choice)
    lost: list[bool] = []
    found = judged(machine, lambda: lost.append(loses_a_neighbour(machine, mm, 0x12000, 0x10000)))
    assert lost == [choice == "bug-16a"]
    assert ("INV-REF" in found) == (choice == "bug-16a")


@pytest.mark.parametrize("choice", ["vma_list", "bug-16b"])
def test_corpus_16b_everything_is_above_a_ceiling_of_0_if_ends_are_compared_as_they_are(choice: str) -> None:
    machine, mm = watched("x86_64", choice)
    machine.cpus[0].store(mm.mmap(4096), b"x")
    assert judged(machine, mm.exit) == (set() if choice == "vma_list" else {"INV-PTALL"})


@pytest.mark.parametrize("choice", ["vma_list", "bug-16c"])
def test_corpus_16c_without_a_floor_the_table_of_the_vma_below_goes(choice: str) -> None:
    machine, mm = watched("x86_64", choice)
    at, lost = 1 << 32, list[bool]()
    found = judged(machine, lambda: lost.append(loses_a_neighbour(machine, mm, at, at + 0x2000)))
    assert lost == [choice == "bug-16c"]
    assert ("INV-REF" in found) == (choice == "bug-16c")


def test_corpus_16d_above_the_last_table_of_the_word_comes_nothing() -> None:
    """Only an address space that goes to the top of the word gets there: none of ours."""
    last = (1 << 64) - 4096
    kernel = boot()
    assert VmaList(kernel).within_neighbours(last, 0, last, 0, PMD) is None
    assert WrapsAtTheTop(kernel).within_neighbours(last, 0, last, 0, PMD) == (0, 0)  # all there is


@pytest.mark.parametrize("choice", ["vma_list", "bug-17"])
def test_corpus_17_truncation_meets_no_table_that_is_gone(choice: str) -> None:
    """At the moment a table is unhooked nobody may find the vma from its file any more (A3.2 step 2)."""
    machine, mm = watched("x86_64", choice)
    file = machine.new_file(4096)
    at = mm.mmap(4096, shared=True, file=file)
    machine.cpus[0].store(at, b"x")
    anonymous = mm.mmap(4096, at=at - (1 << 30), fixed=True)
    machine.cpus[0].store(anonymous, b"x")
    found: list[bool] = []
    vmas = list(mm.struct.vmas.values())
    unhooked = machine.kernel.events.table_unhooked

    def looking(mm: Any, start: int, end: int) -> None:
        inside = [vma for vma in vmas if vma.vm_start < end and start < vma.vm_end]
        listed = file.file.mapping.i_mmap
        found.extend(vma.anon_vma is not None or vma in listed for vma in inside)
        unhooked(mm, start, end)

    machine.kernel.events.table_unhooked = looking  # type: ignore[method-assign]
    mm.munmap(anonymous, at + 4096 - anonymous)
    assert found
    assert any(found) == (choice == "bug-17")
    assert not file.file.mapping.i_mmap
    mm.exit()


@pytest.mark.parametrize("choice", ["vma_list", "bug-18"])
def test_corpus_18_a_huge_vma_is_not_freed_as_its_small_neighbour_is(choice: str) -> None:
    """On ppc64 the entry above a huge page's own table looks like a table to who does not know it."""
    machine, mm = watched("ppc64", choice, "memory=1 GiB")
    page, size = machine.page_size, machine.huge_page_sizes[0]
    at = mm.mmap(size, huge=size)
    mm.mmap(page, at=at - page, fixed=True)
    for each in (at - page, at):
        machine.cpus[0].store(each, b"x")
    mm.munmap(at - page, page + size)
    counted = mm.struct.nr_tables[1:]
    assert all(n >= 0 for n in counted) == (choice == "vma_list")


@pytest.mark.parametrize("choice", ["vma_list", "bug-19"])
def test_corpus_19_an_ia64_huge_page_has_its_tables_where_its_scaled_address_leads(choice: str) -> None:
    machine, mm = watched("ia64", choice, "memory=1 GiB")
    size = machine.huge_page_sizes[0]
    at = mm.mmap(size, at=(4 << 61) + (1 << 40), fixed=True, huge=size)
    machine.cpus[0].store(at, b"x")
    assert judged(machine, mm.exit) == (set() if choice == "vma_list" else {"INV-PTALL"})


# ------------------------------------------------------------------ the first user address
class Vectors(Toy):
    """A table at the bottom that comes with the root, for a page of the arch's own, as on ARM."""

    @hookimpl
    def address_limits(self) -> AddressLimits:
        return attrs.evolve(super().address_limits(), first_user_address=PAGE)

    @hookimpl
    def pgd_alloc(self, mm: mm_struct) -> int:
        pgd = mm.pgd = defaults.pgd_alloc(mm)
        assert alloc_entry(mm, 0) >= 0
        return pgd

    @hookimpl
    def pgd_free(self, mm: mm_struct, pgd: int) -> None:
        for level in (2, 1):
            entry = find_entry(mm, 0, level - 1)
            table = mm.kernel.shape.formats[level - 1].table_of(mm.kernel.ram.read_entry(entry, 8, "little"))
            account_table(mm, level, table, -1)
            defaults.table_free(mm, level, table)
        defaults.pgd_free(mm, pgd)


def test_the_first_user_address_is_the_floor_and_exit_allows_the_table_below_it() -> None:
    """A3.2, corpus 20: at the next page up begins user space, in the same page table."""
    kernel = boot(resolve("vectors", Vectors()))
    sanitizer = Sanitizer(kernel)
    mm = new_mm(kernel)
    vectors = live_tables(mm)
    assert vectors == {(1, 0), (2, 0)}
    add_vma(mm, PAGE, 2 * PAGE)
    add_vma(mm, 5 * PMD, 6 * PMD)
    mm.total_vm = 17
    for at in (PAGE, 5 * PMD):
        store(mm, at)
    do_munmap(mm, PAGE, PAGE)
    assert live_tables(mm) == {(1, 0), (2, 0), (2, 5 * PMD)}
    store_again = add_vma(mm, PAGE, 2 * PAGE)
    mm.total_vm += 1
    store(mm, store_again.vm_start)
    mmput(mm)  # no complaint
    sanitizer.finish()
    assert sanitizer.violations == []
