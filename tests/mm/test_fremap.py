"""remap_file_pages and what becomes of nonlinear mappings (A1.9, A2.3), on machines of all kinds of entries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.machine import Machine, Mm
from polymmu.mm.tables import find_entry, read_pte
from polymmu.mm.truncate import unmap_mapping_range
from polymmu.sanitize.balance import check_balance, frames_held
from polymmu.structs import PG_DIRTY, VM_NONLINEAR

MACHINES = ("x86-pae", "ia64", "ppc64", "s390")
PAGES = 8


class World:
    """A machine with a file whose page n begins with the byte n, mapped shared from its start."""

    def __init__(self, name: str) -> None:
        self.machine = Machine.from_file(name, sets=("memory=32 MiB",), sanitize=True)
        self.kernel = self.machine.kernel
        self.held = frames_held(self.kernel)
        self.page = self.machine.page_size
        self.mm = self.program()
        self.file = self.machine.new_file(PAGES * self.page)
        self.at = self.mm.mmap(PAGES * self.page, shared=True, file=self.file)
        for n in range(PAGES):
            self.machine.cpus[0].store(self.at + n * self.page, bytes([n]))
        self.others: list[Mm] = []

    def program(self) -> Mm:
        mm = self.machine.new_mm()
        self.machine.cpus[0].switch_mm(mm)
        return mm

    def remap(self, page: int, pages: int, shown: int, populate: bool = True) -> None:
        """Show file pages from ``shown`` on at ``pages`` pages from ``page`` on."""
        self.mm.remap_file_pages(
            self.at + page * self.page, pages * self.page, shown * self.page, populate=populate
        )

    def seen(self, mm: Mm | None = None, at: int | None = None) -> list[int]:
        """The first byte of each page; -1 where there is none."""
        self.machine.cpus[0].switch_mm(mm or self.mm)
        found = []
        for n in range(PAGES):
            try:
                found.append(self.machine.cpus[0].load((at or self.at) + n * self.page, 1)[0])
            except SegmentationFault:
                found.append(-1)
        return found

    def kinds(self, mm: Mm | None = None, at: int | None = None) -> str:
        """What stands in each pte: p a page, f a file pte, - nothing."""
        pte = self.kernel.shape.pte
        assert pte.file is not None
        text = ""
        for n in range(PAGES):
            struct = (mm or self.mm).struct
            value = read_pte(struct, find_entry(struct, (at or self.at) + n * self.page))
            text += "p" if pte.is_mapped(value) else "f" if pte.file.test(value) else "-"
            assert text[-1] != "-" or value == pte.empty
        return text

    def invalidate(self, first: int, pages: int) -> None:
        """Drop what maps these pages of the file, and leave the file as it is."""
        unmap_mapping_range(
            self.kernel, self.file.file.mapping, first * self.page, pages * self.page, even_cows=False
        )

    def close(self) -> None:
        for mm in (self.mm, *self.others):
            mm.exit()
        self.file.close()
        assert self.machine.sanitizer is not None
        self.machine.sanitizer.finish()
        assert not self.machine.sanitizer.violations
        assert not check_balance(self.kernel, self.held)


@pytest.fixture(params=MACHINES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(request.param)
    yield made
    made.close()


def test_pages_are_seen_in_the_new_order_and_stores_reach_the_file(world: World) -> None:
    world.remap(0, 3, 5)
    assert world.seen() == [5, 6, 7, 3, 4, 5, 6, 7]
    world.machine.cpus[0].store(world.at + world.page, b"\x66")
    assert world.seen() == [5, 0x66, 7, 3, 4, 5, 0x66, 7]


def test_without_populate_ptes_name_the_pages_and_faults_bring_them(world: World) -> None:
    world.remap(0, 3, 5, populate=False)
    assert world.kinds() == "fffppppp"
    assert world.mm.struct.file_rss == 5
    assert world.seen()[:3] == [5, 6, 7]
    assert world.kinds() == "pppppppp"


def test_pages_in_the_files_own_order_need_no_other_list(world: World) -> None:
    world.remap(2, 2, 2)
    vma = world.mm.struct.mmap
    assert vma is not None
    assert not vma.vm_flags & VM_NONLINEAR
    assert list(world.file.file.mapping.i_mmap) == [vma]


def test_a_reordered_vma_moves_to_the_list_and_takes_its_pieces_along(world: World) -> None:
    mapping = world.file.file.mapping
    world.remap(0, 1, 7)
    assert not mapping.i_mmap
    assert len(mapping.i_mmap_nonlinear) == 1
    world.mm.munmap(world.at + 3 * world.page, world.page)
    assert len(mapping.i_mmap_nonlinear) == 2
    assert world.seen() == [7, 1, 2, -1, 4, 5, 6, 7]


def test_a1_9_zap_leaves_a_file_pte_where_a_page_was_off_its_place(world: World) -> None:
    world.remap(0, 2, 4)  # page 4 at 0 and at 4, page 5 at 1 and at 5
    world.invalidate(4, 2)
    assert world.kinds() == "ffpp--pp"
    assert world.seen() == [4, 5, 2, 3, 4, 5, 6, 7]


def test_a1_9_the_index_is_looked_at_page_by_page(world: World) -> None:
    world.remap(0, 1, 7)
    world.remap(7, 1, 0)
    world.invalidate(0, 4)  # file pages 0 to 3: at 7, 1, 2 and 3
    assert world.kinds() == "p---pppf"
    assert world.seen() == [7, 1, 2, 3, 4, 5, 6, 0]


def test_a1_9_file_ptes_are_left_alone_whenever_details_are_given(world: World) -> None:
    world.remap(0, 8, 0)
    world.remap(0, 2, 6, populate=False)
    world.invalidate(0, PAGES)
    assert world.kinds() == "ff------"
    world.mm.madvise(world.at, PAGES * world.page, "dontneed")
    assert world.kinds() == "ff------"
    assert world.seen() == [6, 7, 2, 3, 4, 5, 6, 7]


def test_a1_9_file_ptes_between_pages_that_go_stay(world: World) -> None:
    world.remap(3, 2, 6, populate=False)
    world.invalidate(0, PAGES)
    assert world.kinds() == "---ff---"
    assert world.seen() == [0, 1, 2, 6, 7, 5, 6, 7]


def test_dontneed_remembers_which_page_was_there(world: World) -> None:
    world.remap(0, 2, 6)
    world.mm.madvise(world.at, PAGES * world.page, "dontneed")
    assert world.kinds() == "ff------"
    assert world.mm.struct.file_rss == 0


def test_truncation_takes_cut_off_pages_wherever_they_stand(world: World) -> None:
    world.remap(0, 2, 6)
    world.remap(6, 2, 0)
    world.file.truncate(5 * world.page)
    assert world.kinds() == "ffppp-pp"
    assert world.seen() == [-1, -1, 2, 3, 4, -1, 0, 1]


def test_a_linear_mapping_of_the_same_file_is_unmapped_as_before(world: World) -> None:
    other = world.program()
    world.others.append(other)
    at = other.mmap(PAGES * world.page, shared=True, file=world.file)
    assert world.seen(other, at) == list(range(PAGES))
    world.remap(0, 1, 7)
    world.file.truncate(4 * world.page)
    assert world.seen(other, at) == [0, 1, 2, 3, -1, -1, -1, -1]
    assert world.seen() == [-1, 1, 2, 3, -1, -1, -1, -1]


def test_a_child_sees_the_same_order(world: World) -> None:
    world.remap(0, 4, 4, populate=False)
    world.remap(4, 2, 0)
    child = world.mm.fork()
    world.others.append(child)
    assert world.kinds(child) == "ffffpppp"
    assert world.seen(child) == [4, 5, 6, 7, 0, 1, 6, 7]


def test_the_order_moves_with_the_mapping(world: World) -> None:
    world.remap(0, 2, 6, populate=False)
    world.remap(2, 2, 0)
    to = world.mm.mmap(PAGES * world.page, "")
    world.mm.munmap(to, PAGES * world.page)
    world.mm.mremap(world.at, PAGES * world.page, PAGES * world.page, to=to)
    world.at = to
    assert world.kinds() == "ffpppppp"
    assert world.seen() == [6, 7, 0, 1, 4, 5, 6, 7]


def test_mprotect_changes_rights_and_not_the_order(world: World) -> None:
    world.remap(0, 2, 6, populate=False)
    world.mm.mprotect(world.at, PAGES * world.page, "r")
    assert world.kinds() == "ffpppppp"
    assert world.seen() == [6, 7, 2, 3, 4, 5, 6, 7]
    with pytest.raises(SegmentationFault):
        world.machine.cpus[0].store(world.at, b"x")


def test_munmap_leaves_nothing_of_file_ptes(world: World) -> None:
    world.remap(0, 4, 4, populate=False)
    world.mm.munmap(world.at, PAGES * world.page)
    world.at = world.mm.mmap(PAGES * world.page, at=world.at, fixed=True)
    assert world.seen() == [0] * PAGES


def test_a_second_order_replaces_the_first_and_forgets_no_store(world: World) -> None:
    world.remap(0, 2, 6)
    world.machine.cpus[0].store(world.at, b"\x77")
    world.remap(0, 2, 2)
    assert world.seen() == [2, 3, 2, 3, 4, 5, 0x77, 7]


def test_a_store_that_only_the_hardware_noted_is_the_pages_when_its_pte_goes(world: World) -> None:
    frames, pages = world.kernel.frames, world.file.file.mapping.pages
    world.invalidate(0, PAGES)
    frames.flags[pages[0]] &= ~PG_DIRTY
    world.seen()
    assert not frames.flags[pages[0]] & PG_DIRTY
    world.machine.cpus[0].store(world.at, b"\x11")
    world.remap(0, 1, 5)
    assert frames.flags[pages[0]] & PG_DIRTY


@pytest.mark.parametrize(
    ("shared", "whole", "offset", "reason"),
    [
        (False, True, 0, "is not a shared one of a file"),
        (True, False, 0, "is not within one mapping"),
        (True, True, -1, "makes no sense"),
    ],
)
def test_what_cannot_be_reordered_is_refused(
    world: World, shared: bool, whole: bool, offset: int, reason: str
) -> None:
    at = world.mm.mmap(2 * world.page, shared=shared, file=world.file)
    with pytest.raises(SyscallError) as refusal:
        world.mm.remap_file_pages(at, (2 if whole else 3) * world.page, offset * world.page)
    assert reason in refusal.value.reason


def test_a_page_that_no_pte_can_name_is_refused() -> None:
    machine = Machine.from_file("s390-31", sets=("memory=32 MiB",))  # 26 bits
    mm = machine.new_mm()
    file = machine.new_file(machine.page_size)
    at = mm.mmap(2 * machine.page_size, shared=True, file=file)
    mm.remap_file_pages(at, 2 * machine.page_size, ((1 << 26) - 2) * machine.page_size)
    with pytest.raises(SyscallError) as refusal:
        mm.remap_file_pages(at, 2 * machine.page_size, ((1 << 26) - 1) * machine.page_size)
    assert "0x3ffffff" in refusal.value.reason


def test_fork_of_pages_without_rights_is_no_file_pte() -> None:
    """s390 tells the two apart by the protection bit, which fork sets elsewhere."""
    machine = Machine.from_file("s390", sets=("memory=32 MiB",))
    mm = machine.new_mm()
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(machine.page_size)
    cpu.store(at, b"x")
    mm.mprotect(at, machine.page_size, "")
    child = mm.fork()
    for each in (mm, child):
        value = read_pte(each.struct, find_entry(each.struct, at))
        assert value & 0x603 == 0x401
        each.mprotect(at, machine.page_size, "rw")
        cpu.switch_mm(each)
        assert cpu.load(at, 1) == b"x"
