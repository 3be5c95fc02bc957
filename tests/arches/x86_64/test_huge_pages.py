"""Huge pages of x86 and x86_64: entries bit by bit (Intel SDM vol. 3A, "Paging"), tables, walks and flushes by hand."""

from __future__ import annotations

import pytest

from polymmu.errors import SegmentationFault
from polymmu.machine import CpuHandle, Machine, Mm

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
P, RW, US, A, D, PS, NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63

CASES = {
    # machine, size: tables below the root, references of a walk without walk caches, bytes of an entry
    "2M": ("x86_64", 2 * MIB, [0, 1, 1, 0], 3, 8),
    "1G": ("x86_64", GIB, [0, 1, 0, 0], 2, 8),
    "2M la57": ("x86_64-la57", 2 * MIB, [0, 1, 1, 1, 0], 4, 8),
    "4M": ("x86", 4 * MIB, [0, 0], 1, 4),
    # Four pmds come with the root, and CR3 holds the four top entries.
    "2M pae": ("x86-pae", 2 * MIB, [0, 4, 0], 1, 8),
}


def running(name: str) -> tuple[Machine, Mm, CpuHandle]:
    made = Machine.from_file(name)
    mm, cpu = made.new_mm(), made.cpus[0]
    cpu.switch_mm(mm)
    return made, mm, cpu


@pytest.mark.parametrize("case", CASES)
def test_a_huge_page_takes_no_table_of_its_own_and_one_tlb_entry(case: str) -> None:
    name, size, tables, references, width = CASES[case]
    made, mm, cpu = running(name)
    before = made.kernel.free.free
    at = mm.mmap(4 * size if size < GIB else size, huge=size)
    assert at % size == 0
    cpu.store(at + size - 5, b"bytes")
    assert mm.struct.nr_tables == tables
    assert mm.struct.anon_rss == size // (4 * KIB)
    walk = cpu.cpu.translate(at + 12345)
    assert walk.page_size == size
    assert walk.pa is not None
    frame = walk.pa - 12345
    assert frame % size == 0
    no_execute = NX if name != "x86" else 0
    entry = made.kernel.ram.read_entry(walk.path[-1][1], width, "little")
    assert entry == frame | P | RW | US | A | D | PS | no_execute

    cpu.cpu.invalidate(asid=None, include_global=True, walk_caches="all")
    cpu.cpu.reset_counters()
    for page in range(64):
        cpu.load(at + page * (size // 64), 8)
    counted = cpu.cpu.counters()
    assert (counted["walk"]["count"], counted["walk"]["references"]) == (1, references)

    mm.munmap(at, size)
    with pytest.raises(SegmentationFault):
        cpu.load(at, 1)
    mm.exit()
    assert made.kernel.free.free == before + 1 + (4 if case == "2M pae" else 0)  # the root, PAE's pmds
    assert made.flushes.section()["missing"] == 0


@pytest.mark.parametrize("case", ["2M", "4M", "2M pae"])
def test_two_processes_keep_their_own_huge_pages(case: str) -> None:
    name, size, _, _, _ = CASES[case]
    made, mm, cpu = running(name)
    at = mm.mmap(2 * size, huge=size)
    cpu.store(at, b"both")
    child = mm.fork()
    cpu.store(at + size, b"later")
    cpu.store(at, b"mine")
    cpu.switch_mm(child)
    assert cpu.load(at, 4) == b"both"
    assert cpu.load(at + size, 5) == bytes(5)
    mm.exit()
    child.exit()
    assert made.flushes.section()["missing"] == 0


@pytest.mark.parametrize("case", ["2M", "4M", "2M pae"])
def test_a_huge_page_without_rights_is_present_to_the_kernel_alone(case: str) -> None:
    name, size, _, _, _ = CASES[case]
    made, mm, cpu = running(name)
    at = mm.mmap(size, huge=size)
    cpu.store(at, b"kept")
    mm.mprotect(at, size, "")
    with pytest.raises(SegmentationFault, match="not readable"):
        cpu.load(at, 1)
    mm.mprotect(at, size, "rw")
    assert cpu.load(at, 4) == b"kept"
    assert made.flushes.section()["missing"] == 0


def test_one_invlpg_drops_a_huge_page() -> None:
    """Linux 4.20: a range of huge pages is flushed in their stride, four INVLPG here."""
    made, mm, cpu = running("x86_64")
    at = mm.mmap(4 * 2 * MIB, huge=2 * MIB)
    cpu.store(at, b"x" * (8 * MIB))
    mm.munmap(at, 8 * MIB)
    costs = made.description.costs
    flush = made.kernel.sched.spent_on["flush"]
    assert flush == (4 + 1) * costs.flush_page  # and one for the tables that went as well


def test_an_unmapped_neighbour_keeps_the_tables_that_a_huge_page_hangs_on() -> None:
    made, mm, cpu = running("x86_64")
    huge = mm.mmap(2 * MIB, at=GIB, fixed=True, huge=2 * MIB)
    small = mm.mmap(4 * KIB, at=GIB + 2 * MIB, fixed=True)
    for at in (huge, small):
        cpu.store(at, b"x")
    assert mm.struct.nr_tables == [0, 1, 1, 1]
    mm.munmap(small, 4 * KIB)
    assert mm.struct.nr_tables == [0, 1, 1, 0]
    assert cpu.load(huge, 1) == b"x"
    mm.munmap(huge, 2 * MIB)
    assert mm.struct.nr_tables == [0, 0, 0, 0]
    assert made.flushes.section()["missing"] == 0
