"""Page-table fragments, empty entries, and address spaces that get another level at run time."""

from __future__ import annotations

import pytest

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.events import Events, Observer
from polymmu.hooks import ArchKernel
from polymmu.machine import CpuHandle, Machine, Mm
from polymmu.mm.tables import find_entry
from polymmu.structs import mm_struct
from polymmu_s390 import S390Config
from polymmu_s390.formats import ESA, LAYOUTS, TASK_SIZE
from polymmu_s390.tables import grow_task_size, page_table_alloc, page_table_free

PAGE = 4096
MIB, TIB = 1 << 20, 1 << 40


def machine(name: str = "s390", *sets: str) -> Machine:
    return Machine.from_file(name, sets=("memory=64MiB", *sets))


def running(machine: Machine) -> tuple[Mm, CpuHandle]:
    mm, cpu = machine.new_mm(), machine.cpus[0]
    cpu.switch_mm(mm)
    return mm, cpu


# ---------------------------------------------------------------------- fragments
@pytest.mark.parametrize(("name", "per_frame", "size"), [("s390", 2, 2048), ("s390-31", 4, 1024)])
def test_page_tables_share_frames(name: str, per_frame: int, size: int) -> None:
    emulated = machine(name)
    mm = emulated.new_mm().struct
    tables = [page_table_alloc(mm) for _ in range(2 * per_frame)]
    assert [table - tables[0] for table in tables[:per_frame]] == [n * size for n in range(per_frame)]
    assert len({table // PAGE for table in tables}) == 2
    width = size // 256
    empty = (0x400).to_bytes(width, "big") * 256
    assert all(emulated.kernel.ram.read(table, size) == empty for table in tables)


def test_a_frame_goes_with_its_last_fragment_and_gives_out_what_came_back() -> None:
    emulated = machine()
    kernel = emulated.kernel
    mm = emulated.new_mm().struct
    free = kernel.free.free
    first, second = page_table_alloc(mm), page_table_alloc(mm)
    assert kernel.free.free == free - 1
    page_table_free(mm, first)
    assert page_table_alloc(mm) == first
    page_table_free(mm, second)
    page_table_free(mm, first)
    assert kernel.free.free == free


def test_a_fragment_that_waits_is_given_to_nobody_and_its_neighbour_is() -> None:
    """The states of Linux 3.0: (use, pending) (0,0) -> (1,0) -> (0,1) -> (0,0), read in the frame's bits."""
    emulated = machine()
    kernel = emulated.kernel
    mm = emulated.new_mm().struct
    private = kernel.frames.private
    one, two = page_table_alloc(mm), page_table_alloc(mm)
    pfn = one // PAGE
    assert (two - one, private[pfn]) == (2048, 0x03)
    page_table_free(mm, two, waits=True)
    assert private[pfn] == 0x21
    other = page_table_alloc(mm)
    assert other // PAGE != pfn
    page_table_free(mm, two)
    assert private[pfn] == 0x01
    page_table_free(mm, other)
    assert page_table_alloc(mm) == two
    page_table_free(mm, one, waits=True)
    page_table_free(mm, two, waits=True)
    assert private[pfn] == 0x30
    free = kernel.free.free
    page_table_free(mm, one)
    page_table_free(mm, two)
    assert (private[pfn], kernel.free.free) == (0, free + 1)


def test_unmapping_frees_one_half_of_a_frame_and_the_other_keeps_its_pages() -> None:
    emulated = machine()
    mm, cpu = running(emulated)
    at = mm.mmap(2 * MIB, at=4 * MIB, fixed=True)
    cpu.store(at, b"low")
    cpu.store(at + MIB, b"high")
    halves = [find_entry(mm.struct, at + n * MIB) & -2048 for n in range(2)]
    assert halves[0] // PAGE == halves[1] // PAGE
    mm.munmap(at, MIB)
    assert mm.struct.nr_tables[-1] == 1
    assert cpu.load(at + MIB, 4) == b"high"
    assert emulated.kernel.frames.private[halves[0] // PAGE] == 2
    mm.exit()
    assert emulated.kernel.frames.private[halves[0] // PAGE] == 0


def test_an_unhooked_table_waits_in_its_frame_until_the_flush_is_over() -> None:
    emulated = machine()
    kernel = emulated.kernel
    mm, cpu = running(emulated)
    at = mm.mmap(2 * MIB, at=4 * MIB, fixed=True)
    cpu.store(at, b"low")
    cpu.store(at + MIB, b"high")
    pfn = find_entry(mm.struct, at) // PAGE
    seen = []

    class Flush(Observer):
        def gather_flush(self, mm: mm_struct, pages: int, tables: int) -> None:
            seen.append(kernel.frames.private[pfn])

    kernel.events = Events((Flush(),))
    mm.munmap(at, MIB)
    assert (seen, kernel.frames.private[pfn]) == ([0x12], 0x02)


# ---------------------------------------------------------------------- empty entries
@pytest.mark.parametrize(
    ("name", "sets", "entries", "width", "empty"),
    [
        ("s390", ("s390.levels=2",), 2048, 8, 0x20),
        ("s390", (), 2048, 8, 0x24),
        ("s390", ("s390.levels=4",), 2048, 8, 0x28),
        ("s390-31", (), 2048, 4, 0x20),
    ],
)
def test_a_new_root_is_full_of_the_empty_value_of_its_level(
    name: str, sets: tuple[str, ...], entries: int, width: int, empty: int
) -> None:
    emulated = machine(name, *sets)
    mm = emulated.new_mm().struct
    assert emulated.kernel.ram.read(mm.pgd, entries * width) == empty.to_bytes(width, "big") * entries
    assert mm.pgd % (entries * width) == 0


@pytest.mark.parametrize(
    ("name", "sets", "designation"),
    [("s390", ("s390.levels=2",), 0x1C3), ("s390", (), 0x1C7), ("s390", ("s390.levels=4",), 0x1CB)],
)
def test_a_cpu_is_given_the_designation_of_as_many_levels(
    name: str, sets: tuple[str, ...], designation: int
) -> None:
    emulated = machine(name, *sets)
    mm, cpu = running(emulated)
    assert cpu.cpu.root == mm.struct.pgd | designation


# ---------------------------------------------------------------------- growth
def check_four_levels(mm: Mm, kernel: ArchKernel, old: int) -> None:
    struct = mm.struct
    assert struct.layout == LAYOUTS[4]
    assert struct.task_size == 1 << 53
    assert kernel.ram.read_entry(struct.pgd, 8, "big") == old | 0x0B
    assert kernel.ram.read_entry(struct.pgd + 8, 8, "big") == 0x28
    for cpu in kernel.cpus:
        if kernel.active_mm[cpu.index] is struct:
            assert cpu.root == struct.pgd | 0x1CB


def test_a_program_grows_from_4_tib_to_8_pib_when_it_asks_for_more() -> None:
    emulated = machine("s390", "cpus=3")
    mm, cpu = running(emulated)
    emulated.cpus[2].switch_mm(mm)
    assert (mm.struct.layout, mm.struct.task_size) == (LAYOUTS[3], 1 << 42)
    low = mm.mmap(PAGE)
    cpu.store(low, b"low")
    old = mm.struct.pgd
    high = mm.mmap(PAGE, at=1 << 52, fixed=True)
    check_four_levels(mm, emulated.kernel, old)
    cpu.store(high, b"high")
    for each in (emulated.cpus[0], emulated.cpus[2]):
        assert (each.load(low, 3), each.load(high, 4)) == (b"low", b"high")
    assert mm.struct.nr_tables == [0, 2, 2, 2]
    levels = emulated.counters.levels
    assert {name: each["live"] for name, each in levels.items()} == {"pgd": 1, "pud": 2, "pmd": 2, "pte": 2}
    mm.exit()
    assert emulated.counters.tables["live"] == 0


def test_a_mapping_that_fits_nowhere_below_makes_the_program_grow() -> None:
    mm, cpu = running(machine())
    at = mm.mmap(4 * TIB, "r")
    assert at + 4 * TIB > 4 * TIB
    assert cpu.load(at + 4 * TIB - 1, 1) == b"\0"
    mm.exit()


def test_what_is_below_an_unused_first_entry_is_freed_with_the_program() -> None:
    emulated = machine()
    free = emulated.kernel.free.free
    mm, cpu = running(emulated)
    at = mm.mmap(PAGE, at=5 * TIB, fixed=True)
    cpu.store(at, b"x")
    assert mm.struct.nr_tables == [0, 2, 1, 1]  # the old root, in which nothing is
    mm.exit()
    assert emulated.kernel.free.free == free
    assert emulated.counters.tables["live"] == 0


def test_unmapping_everything_below_4_tib_frees_the_old_root_too() -> None:
    emulated = machine()
    mm, cpu = running(emulated)
    low = mm.mmap(PAGE)
    cpu.store(low, b"x")
    high = mm.mmap(PAGE, at=5 * TIB, fixed=True)
    cpu.store(high, b"y")
    mm.munmap(low, PAGE)
    assert mm.struct.nr_tables == [0, 1, 1, 1]
    assert cpu.load(high, 1) == b"y"
    mm.exit()


def test_nothing_of_the_old_designation_is_cached_after_the_growth() -> None:
    """The old root may be another mm's one day, with the same tag."""
    emulated = machine()
    mm, cpu = running(emulated)
    low = mm.mmap(PAGE)
    cpu.store(low, b"x")
    before = cpu.cpu.asid
    mm.mmap(PAGE, at=5 * TIB, fixed=True)
    assert cpu.cpu.asid != before
    assert cpu.cpu.invalidate(asid=before) == 0


def test_a_child_has_as_many_levels_as_its_parent() -> None:
    emulated = machine()
    mm, cpu = running(emulated)
    high = mm.mmap(PAGE, at=5 * TIB, fixed=True)
    cpu.store(high, b"parent")
    child = mm.fork()
    assert (child.struct.layout, child.struct.task_size) == (LAYOUTS[4], 1 << 53)
    cpu.switch_mm(child)
    assert cpu.load(high, 6) == b"parent"
    fresh = child.exec()
    assert (fresh.struct.layout, fresh.struct.task_size) == (LAYOUTS[3], 1 << 42)
    fresh.exit()
    mm.exit()


def test_a_program_that_cannot_have_a_new_root_stays_as_it_was() -> None:
    emulated = machine()
    kernel = emulated.kernel
    mm, cpu = running(emulated)
    at = mm.mmap(PAGE)
    cpu.store(at, b"x")
    pgd = mm.struct.pgd
    kernel.free.fail_next = lambda what: what.startswith("table.")
    with pytest.raises(SyscallError):
        mm.mmap(PAGE, at=5 * TIB, fixed=True)
    kernel.free.fail_next = None
    assert (mm.struct.pgd, mm.struct.layout, mm.struct.task_size) == (pgd, LAYOUTS[3], 1 << 42)
    assert cpu.load(at, 1) == b"x"
    mm.exit()


@pytest.mark.parametrize(("name", "sets"), [("s390", ("s390.levels=2",)), ("s390-31", ())])
def test_a_31_bit_program_never_grows(name: str, sets: tuple[str, ...]) -> None:
    mm, cpu = running(machine(name, *sets))
    with pytest.raises(SyscallError):
        mm.mmap(PAGE, at=1 << 31, fixed=True)
    with pytest.raises(SyscallError):
        mm.mmap(1 << 31)
    with pytest.raises(SegmentationFault):
        cpu.load(1 << 31, 1)
    assert mm.mmap(PAGE, at=(1 << 31) - PAGE, fixed=True) == (1 << 31) - PAGE


def test_beyond_8_pib_there_is_nothing() -> None:
    mm, cpu = running(machine())
    assert not grow_task_size(mm.struct, (1 << 53) + PAGE)
    assert mm.struct.layout == LAYOUTS[3]
    with pytest.raises(SyscallError):
        mm.mmap(PAGE, at=1 << 53, fixed=True)
    with pytest.raises(SegmentationFault):
        cpu.load(1 << 60, 1)


def test_programs_begin_below_what_their_first_levels_reach() -> None:
    for levels in (2, 3, 4, 5):
        emulated = machine("s390", f"s390.levels={levels}")
        mm = emulated.new_mm().struct
        assert mm.task_size == TASK_SIZE[levels]
        assert max(mm.start_brk, mm.mmap_base, mm.start_stack) <= TASK_SIZE[min(levels, 3)]
    assert machine("s390-31").new_mm().struct.layout is ESA
    assert not S390Config(mode="esa", edat=2, idte=True).has_idte


def test_with_five_levels_programs_have_all_but_the_last_page_of_the_word() -> None:
    """From the bottom to the top, and nothing is left; a root entry covers 2**53 bytes."""
    emulated = machine("s390", "s390.levels=5")
    mm, cpu = running(emulated)
    top = (1 << 64) - PAGE
    places = [PAGE, 1 << 31, 1 << 42, 1 << 53, 1 << 63, top - PAGE]
    for at in places:
        mm.mmap(PAGE, at=at, fixed=True)
        cpu.store(at, at.to_bytes(8, "big"))
    assert [int.from_bytes(cpu.load(at, 8), "big") for at in places] == places
    # Their addresses without 53 bits are four, without 42 five, without 31 and without 20 six.
    assert mm.struct.nr_tables[1:] == [4, 5, 6, 6]
    with pytest.raises(SyscallError):
        mm.mmap(PAGE, at=top, fixed=True)
    assert mm.struct.layout is LAYOUTS[5]
    for at in reversed(places):
        mm.munmap(at, PAGE)
    assert mm.struct.nr_tables[1:] == [0, 0, 0, 0]
    mm.exit()
