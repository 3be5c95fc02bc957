"""Huge mappings, on two toy architectures whose pmd entries map 64 KiB and whose pgd entries map 1 MiB.

Numbers are worked out by hand: 64 KiB are 16 frames; an address space with nothing but pages of 64 KiB needs a
pgd and a pmd, one with nothing but pages of 1 MiB the pgd alone.
"""

from __future__ import annotations

import numpy as np
import pytest

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hardware.ram import NONZERO
from polymmu.machine import CpuHandle, Machine, Mm
from polymmu.mm.frames import alloc_run, lru_add_drain, put_run
from tests.mm.huge import BIG, EINVAL, ENOMEM, GIANT, PLUGINS, Huge, machine, refusal
from tests.mm.toy import PAGE, PUD, TOP, Toy

BASE = 4 * PUD
BLOCK = BIG // PAGE


@pytest.fixture(params=sorted(PLUGINS))
def made(request: pytest.FixtureRequest) -> Machine:
    return machine(PLUGINS[request.param](), cpus=2)


def running(made: Machine) -> tuple[Mm, CpuHandle]:
    mm, cpu = made.new_mm(), made.cpus[0]
    cpu.switch_mm(mm)
    return mm, cpu


def free(made: Machine) -> int:
    lru_add_drain(made.kernel)
    return made.kernel.free.free


def faults(made: Machine) -> dict[str, int]:
    counted: dict[str, int] = made.report().value["faults"]
    return {kind: n for kind, n in counted.items() if n and kind != "total"}


# ------------------------------------------------------------------ first touch
def test_one_fault_brings_a_whole_aligned_block_of_zeroes(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(2 * BIG, huge=BIG)
    before = free(made)
    cpu.store(at + BIG - 3, b"abc")
    assert cpu.load(at, BIG) == bytes(BIG - 3) + b"abc"
    walk = cpu.cpu.translate(at + 5 * PAGE)
    assert walk.page_size == BIG
    assert walk.pa is not None
    assert walk.pa % BIG == 5 * PAGE
    assert faults(made) == {"minor": 1}
    assert mm.struct.nr_tables == [0, 1, 0]
    assert before - free(made) == BLOCK + 1  # and the pmd
    assert (mm.struct.anon_rss, mm.struct.total_vm) == (BLOCK, 2 * BLOCK)


def test_the_largest_pages_need_no_table_at_all(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(GIANT, huge=GIANT)
    cpu.store(at + GIANT - 1, b"!")
    assert cpu.cpu.translate(at).page_size == GIANT
    assert (mm.struct.nr_tables, mm.struct.anon_rss) == ([0, 0, 0], 256)


def test_a_load_brings_a_page_that_a_store_then_only_dirties(made: Machine) -> None:
    """There is no huge zero page; the page is the mapping's own, so nothing is copied."""
    mm, cpu = running(made)
    at = mm.mmap(BIG, huge=BIG)
    assert cpu.load(at, 4) == bytes(4)
    taken = free(made)
    cpu.store(at, b"x")
    assert free(made) == taken
    assert faults(made) == {"minor": 1, "protection": 1}


def test_a_block_is_clean_when_it_is_used_again(made: Machine) -> None:
    mm, cpu = running(made)
    for _ in range(2):
        at = mm.mmap(BIG, huge=BIG)
        assert cpu.load(at, BIG) == bytes(BIG)
        cpu.store(at, b"\xff" * BIG)
        mm.munmap(at, BIG)


def test_populating_brings_every_page_before_the_first_access(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(3 * BIG, huge=BIG, populate=True)
    assert (mm.struct.anon_rss, faults(made)) == (3 * BLOCK, {"minor": 3})
    cpu.store(at, b"x" * (3 * BIG))
    assert faults(made) == {"minor": 3}


# ------------------------------------------------------------------ and what is left of it
def test_nothing_is_left_when_the_program_exits(made: Machine) -> None:
    before = free(made)
    mm, cpu = running(made)
    for size in (BIG, GIANT):
        for shared in (False, True):
            at = mm.mmap(2 * size, huge=size, shared=shared)
            cpu.store(at, b"x" * (2 * size))
    child = mm.fork()
    mm.exit()
    child.exit()
    assert free(made) == before
    assert (made.kernel.vmas.live, made.kernel.mappings.live, made.kernel.mms.live) == (0, 0, 1)
    assert made.flushes.section()["missing"] == 0


def test_tables_go_with_the_last_mapping_that_needs_them(made: Machine) -> None:
    """A huge mapping between two small ones, all below one pmd; each small one has a pte table of its own."""
    mm, cpu = running(made)
    for at, length, huge in ((BASE, PAGE, 0), (BASE + BIG, BIG, BIG), (BASE + 2 * BIG, PAGE, 0)):
        mm.mmap(length, at=at, fixed=True, huge=huge)
        cpu.store(at, b"x")
    left = [list(mm.struct.nr_tables)]
    for at, length in ((BASE + BIG, BIG), (BASE, PAGE), (BASE + 2 * BIG, PAGE)):
        mm.munmap(at, length)
        left.append(list(mm.struct.nr_tables))
    assert left == [[0, 1, 2], [0, 1, 2], [0, 1, 1], [0, 0, 0]]


def test_tables_of_a_huge_mapping_are_freed_alone_by_the_architectures_own_way() -> None:
    plugin = Huge()
    mm, _ = running(machine(plugin))
    mm.mmap(PAGE, at=BASE - PAGE, fixed=True)
    for at, length, huge in ((BASE, BIG, 0), (BASE + BIG, 2 * BIG, BIG), (BASE + 3 * BIG, BIG, 0)):
        mm.mmap(length, at=at, fixed=True, huge=huge)
    mm.mmap(PAGE, at=BASE + 9 * BIG, fixed=True)
    mm.munmap(BASE, 4 * BIG)
    assert plugin.freed == [(BASE + BIG, BASE + 3 * BIG, BASE, BASE + 3 * BIG)]


def test_small_pages_may_follow_huge_ones_at_the_same_place(made: Machine) -> None:
    mm, cpu = running(made)
    for huge, tables in ((GIANT, [0, 0, 0]), (BIG, [0, 1, 0]), (0, [0, 1, 16]), (GIANT, [0, 0, 0])):
        mm.mmap(GIANT, at=BASE, fixed=True, huge=huge)
        assert cpu.load(BASE, GIANT) == bytes(GIANT)
        cpu.store(BASE, b"\xff" * GIANT)
        assert mm.struct.nr_tables == tables


def test_a_page_is_flushed_before_it_is_freed() -> None:
    plugin = Huge()
    made = machine(plugin)
    mm, cpu = running(made)
    at = mm.mmap(3 * BIG, huge=BIG)
    cpu.store(at, b"x" * (3 * BIG))
    held, plugin.flushed = free(made), []
    mm.munmap(at + BIG, 2 * BIG)
    assert plugin.flushed == [(at + BIG, at + 3 * BIG, held)]
    assert free(made) == held + 2 * BLOCK
    assert made.flushes.section()["missing"] == 0


def test_a_flush_that_an_architecture_forgets_is_noticed() -> None:
    plugin = Huge()
    made = machine(plugin)
    mm, cpu = running(made)
    at = mm.mmap(2 * BIG, huge=BIG)
    mm.mmap(PAGE, at=at - PAGE, fixed=True)
    cpu.store(at - 1, b"x" * (BIG + 2))  # the small page keeps the pmd, whose end would flush everything
    plugin.flushes = False
    mm.munmap(at, BIG)
    assert made.flushes.section()["missing"] == 1


def test_every_fragment_in_every_tlb_dies_with_the_page(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(BIG, huge=BIG)
    cpu.store(at, b"x" * BIG)
    other = made.cpus[1]
    other.switch_mm(mm)
    assert other.load(at, BIG) == b"x" * BIG
    mm.munmap(at, BIG)
    for each in (cpu, other):
        for page in range(at, at + BIG, PAGE):
            with pytest.raises(SegmentationFault):
                each.load(page, 1)
    assert made.flushes.section()["missing"] == 0


# ------------------------------------------------------------------ sharing
def test_parent_and_child_keep_their_own_bytes_after_a_fork(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(2 * BIG, huge=BIG)
    cpu.store(at, b"both" * (BIG // 2))
    child = mm.fork()
    taken = free(made)
    cpu.store(at + 7 * PAGE, b"mine")
    assert free(made) == taken - BLOCK
    cpu.switch_mm(child)
    assert cpu.load(at, 2 * BIG) == b"both" * (BIG // 2)
    cpu.store(at + BIG, b"hers")
    cpu.switch_mm(mm)
    assert cpu.load(at + 7 * PAGE, 8) == b"mineboth"
    assert cpu.load(at + BIG, 4) == b"both"
    assert (mm.struct.anon_rss, child.struct.anon_rss) == (2 * BLOCK, 2 * BLOCK)
    assert faults(made) == {"minor": 2, "cow": 2}
    assert made.flushes.section()["missing"] == 0


def test_the_last_of_a_family_writes_without_copying(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(BIG, huge=BIG)
    cpu.store(at, b"x")
    mm.fork().exit()
    taken = free(made)
    cpu.store(at, b"y")
    assert free(made) == taken
    assert faults(made) == {"minor": 1, "protection": 1}


def test_only_frames_that_hold_anything_are_copied(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(BIG, huge=BIG)
    cpu.store(at + 3 * PAGE, b"x")
    child = mm.fork()
    cpu.store(at + 9 * PAGE, b"y")
    first = (cpu.cpu.translate(at).pa or 0) // PAGE
    flags = made.kernel.frames.flags
    assert [n for n in range(BLOCK) if flags[first + n] & NONZERO] == [3, 9]
    child.exit()


def test_shared_huge_memory_stays_shared_and_outlives_its_maker(made: Machine) -> None:
    before = free(made)
    mm, cpu = running(made)
    at = mm.mmap(2 * BIG, huge=BIG, shared=True)
    cpu.store(at, b"from the parent")
    child = mm.fork()
    cpu.store(at + BIG, b"later")
    mm.exit()
    cpu.switch_mm(child)
    assert cpu.load(at, 15) == b"from the parent"
    assert cpu.load(at + BIG, 5) == b"later"
    assert (child.struct.file_rss, child.struct.anon_rss) == (2 * BLOCK, 0)
    child.exit()
    assert free(made) == before


def test_a_file_of_huge_pages_is_mapped_in_huge_pages(made: Machine) -> None:
    before = free(made)
    mm, cpu = running(made)
    file = made.new_file(3 * BIG, huge=BIG)
    shared = mm.mmap(3 * BIG, shared=True, file=file)
    private = mm.mmap(BIG, file=file, offset=BIG)
    cpu.store(shared + BIG, b"seen")
    assert cpu.load(private, 4) == b"seen"
    cpu.store(private, b"mine")
    assert cpu.load(shared + BIG, 4) == b"seen"
    assert (mm.struct.file_rss, mm.struct.anon_rss) == (BLOCK, BLOCK)
    mm.exit()
    file.close()
    assert free(made) == before


def test_a_private_mapping_puts_nothing_into_the_file(made: Machine) -> None:
    """hugetlbfs: a hole is filled with a page of the mapping's own, and one page is taken, not two."""
    mm, cpu = running(made)
    file = made.new_file(BIG, huge=BIG)
    private = mm.mmap(BIG, file=file)
    cpu.store(private, b"mine")
    assert (mm.struct.file_rss, mm.struct.anon_rss, len(file.file.mapping.pages)) == (0, BLOCK, 0)
    assert cpu.load(mm.mmap(BIG, shared=True, file=file), 4) == bytes(4)


def test_what_is_cut_off_a_file_leaves_every_mapping(made: Machine) -> None:
    mm, cpu = running(made)
    file = made.new_file(3 * BIG, huge=BIG)
    shared, private = mm.mmap(3 * BIG, shared=True, file=file), mm.mmap(3 * BIG, file=file)
    cpu.store(shared, b"x" * (3 * BIG))
    cpu.store(private, b"y" * (3 * BIG))
    held = free(made)
    file.truncate(BIG)
    assert free(made) == held + 4 * BLOCK
    for at in (shared, private):
        assert cpu.load(at + BIG - 1, 1) in (b"x", b"y")
        with pytest.raises(SegmentationFault, match="beyond the end of the file"):
            cpu.load(at + BIG, 1)
    file.truncate(2 * BIG)
    assert cpu.load(shared + BIG, BIG) == bytes(BIG)
    assert made.flushes.section()["missing"] == 0


# ------------------------------------------------------------------ rights
def test_mprotect_takes_and_gives_rights_of_pages_that_are_there(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(3 * BIG, huge=BIG)
    cpu.store(at, b"x" * (3 * BIG))
    mm.mprotect(at + BIG, BIG, "r")
    with pytest.raises(SegmentationFault, match="not writable"):
        cpu.store(at + BIG + PAGE, b"y")
    assert cpu.load(at + BIG + PAGE, 1) == b"x"
    mm.mprotect(at + BIG, BIG, "")
    with pytest.raises(SegmentationFault, match="not readable"):
        cpu.load(at + BIG, 1)
    cpu.store(at + BIG - 1, b"y")
    cpu.store(at + 2 * BIG, b"y")
    mm.mprotect(at + BIG, BIG, "rw")
    cpu.store(at + BIG, b"z")
    assert cpu.load(at + BIG - 1, 3) == b"yzx"
    assert [rights for _, _, rights in mm.mappings()] == ["rw", "rw", "rw"]  # huge mappings do not merge
    assert mm.struct.anon_rss == 3 * BLOCK
    assert made.flushes.section()["missing"] == 0


# ------------------------------------------------------------------ refusals
def test_a_huge_page_is_never_cut(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(2 * BIG, huge=BIG)
    cpu.store(at, b"x" * (2 * BIG))
    assert refusal(mm.munmap, at, PAGE) == EINVAL
    assert refusal(mm.munmap, at + PAGE, BIG - PAGE) == EINVAL
    assert refusal(mm.mprotect, at, PAGE, "r") == EINVAL
    assert refusal(mm.mmap, PAGE, at=at + PAGE, fixed=True) == EINVAL
    assert refusal(mm.madvise, at, BIG, "dontneed") == EINVAL
    assert refusal(mm.mremap, at, 2 * BIG, 3 * BIG) == EINVAL
    assert refusal(mm.mremap, at, 2 * BIG, 2 * BIG, to=BASE) == EINVAL
    assert refusal(mm.mremap, at, 2 * BIG, 2 * BIG - PAGE) == EINVAL
    assert cpu.load(at, 2 * BIG) == b"x" * (2 * BIG)
    assert mm.mremap(at, 2 * BIG, BIG) == at  # shrinking is an munmap
    assert [(low, high) for low, high, _ in mm.mappings()] == [(at, at + BIG)]


def test_what_cannot_be_a_huge_mapping_is_refused(made: Machine) -> None:
    mm, _ = running(made)
    small, huge = made.new_file(BIG), made.new_file(2 * BIG, huge=BIG)
    assert refusal(mm.mmap, 2 * PAGE, huge=2 * PAGE) == EINVAL
    assert refusal(mm.mmap, BIG + PAGE, huge=BIG) == EINVAL
    assert refusal(mm.mmap, BIG, huge=BIG, at=BASE + PAGE, fixed=True) == EINVAL
    assert refusal(mm.mmap, BIG, huge=BIG, grows_down=True) == EINVAL
    assert refusal(mm.mmap, BIG, huge=BIG, file=small) == EINVAL
    assert refusal(mm.mmap, GIANT, huge=GIANT, file=huge) == EINVAL
    assert refusal(mm.mmap, BIG, file=huge, offset=PAGE) == EINVAL
    assert refusal(mm.mmap, PAGE, file=huge) == EINVAL
    assert refusal(huge.truncate, PAGE) == EINVAL
    assert mm.mappings() == []


def test_an_unknown_size_is_told_with_the_known_ones(made: Machine) -> None:
    mm, _ = running(made)
    with pytest.raises(
        SyscallError, match="no huge pages of 0x2000 bytes; this machine has 0x10000, 0x100000"
    ):
        mm.mmap(BIG, huge=2 * PAGE)
    with pytest.raises(SyscallError, match="no huge pages of 0x10000 bytes; this machine has none"):
        machine_without().new_mm().mmap(BIG, huge=BIG)


def machine_without() -> Machine:
    plugin = Toy()
    return machine(plugin)  # type: ignore[arg-type]


# ------------------------------------------------------------------ memory
def test_memory_may_be_free_and_yet_hold_no_block(made: Machine) -> None:
    """Every block of 16 frames has one in use: 15 of 16 frames are free, and no huge page is to be had."""
    mm, cpu = running(made)
    at = mm.mmap(BIG, huge=BIG)
    with pytest.raises(SegmentationFault):
        cpu.load(at - 1, 1)
    pmd_first = mm.mmap(BIG, at=at - 4 * BIG, huge=BIG)
    cpu.load(pmd_first, 1)  # the pmd exists
    kernel = made.kernel
    everything = alloc_run(kernel, kernel.free.free, "anon")
    corner = everything % BLOCK == 0
    put_run(kernel, everything[~corner])
    with pytest.raises(SyscallError, match="no 0x10000 bytes of free frames in one block") as refused:
        cpu.store(at, b"x")
    assert refused.value.errno == ENOMEM
    assert made.kernel.free.free > 1500
    put_run(kernel, everything[corner][-1:])
    cpu.store(at, b"x" * BIG)
    assert cpu.load(at, BIG) == b"x" * BIG
    walk = cpu.cpu.translate(at)
    assert walk.pa == int(everything[corner][-1]) * PAGE


def test_a_page_without_memory_for_its_table_is_not_brought(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(BIG, huge=BIG, at=BASE)
    held = alloc_run(made.kernel, made.kernel.free.free, "anon")
    with pytest.raises(SyscallError, match="no frame left for a page table"):
        cpu.store(at, b"x")
    put_run(made.kernel, held)
    cpu.store(at, b"x")
    assert cpu.load(at, 2) == b"x\0"


def test_a_copy_that_finds_no_memory_leaves_both_as_they_were(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(BIG, huge=BIG)
    cpu.store(at, b"both")
    child = mm.fork()
    held = alloc_run(made.kernel, made.kernel.free.free, "anon")
    with pytest.raises(SyscallError) as refused:
        cpu.store(at, b"mine")
    assert refused.value.errno == ENOMEM
    put_run(made.kernel, held)
    cpu.store(at, b"mine")
    cpu.switch_mm(child)
    assert cpu.load(at, 4) == b"both"


def test_a_fork_without_memory_for_a_table_leaves_nothing_of_the_child(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(BIG, huge=BIG)
    cpu.store(at, b"mine")
    before = free(made)
    held = alloc_run(made.kernel, made.kernel.free.free - 1, "anon")
    assert refusal(mm.fork) == ENOMEM
    put_run(made.kernel, held)
    assert free(made) == before
    cpu.store(at, b"x")
    assert cpu.load(at, 4) == b"xine"


def test_the_frames_of_a_block_are_a_runs_worth_of_small_pages_again(made: Machine) -> None:
    mm, cpu = running(made)
    at = mm.mmap(BIG, huge=BIG, populate=True)
    mm.munmap(at, BIG)
    everything = alloc_run(made.kernel, made.kernel.free.free, "anon")
    assert len(np.unique(everything)) == len(everything)
    assert made.kernel.free.free == 0
    assert cpu.index == 0


# ------------------------------------------------------------------ places
def placing(**how: object) -> tuple[Machine, Mm]:
    plugin = Huge()
    for name, value in how.items():
        setattr(plugin, name, value)
    made = machine(plugin)
    return made, made.new_mm()


def test_without_a_rule_a_huge_mapping_is_the_highest_that_fits_below_mmap_base() -> None:
    """mmap_base is TOP - 1 MiB. A page below it pushes the next huge mapping one huge page down."""
    _, mm = placing()
    base = TOP - PUD
    assert mm.mmap(PAGE) == base - PAGE
    assert mm.mmap(BIG, huge=BIG) == base - 2 * BIG
    assert mm.mmap(BIG, huge=BIG) == base - 3 * BIG
    assert mm.mmap(GIANT, huge=GIANT) == base - 2 * GIANT
    assert mm.mmap(PAGE) == base - 2 * PAGE  # small ones still fill the gap
    assert mm.mmap(BIG, huge=BIG, at=BASE + 1) == BASE + BIG
    assert mm.mmap(BIG, huge=BIG, at=BASE + 1) == base - 4 * BIG  # the wish is taken


def test_huge_mappings_go_where_alone_they_may_be_and_small_ones_never_do() -> None:
    ranges = ((BASE + PUD, BASE + 2 * PUD), (BASE, BASE + BIG))
    _, mm = placing(huge_ranges=ranges)
    assert [mm.mmap(8 * BIG, huge=BIG) for _ in range(2)] == [BASE + PUD, BASE + PUD + 8 * BIG]
    assert mm.mmap(BIG, huge=BIG) == BASE
    assert refusal(mm.mmap, BIG, huge=BIG) == ENOMEM
    assert refusal(mm.mmap, BIG, huge=BIG, at=2 * PUD, fixed=True) == EINVAL
    mm.munmap(BASE + PUD, PUD)
    assert refusal(mm.mmap, PAGE, at=BASE + PUD, fixed=True) == EINVAL
    assert mm.mmap(BIG, huge=BIG, at=BASE + PUD + 5 * BIG, fixed=True) == BASE + PUD + 5 * BIG
    assert mm.mmap(BIG, huge=BIG, at=2 * PUD) == BASE + PUD  # a wish outside is none
    small = [mm.mmap(length) for length in (4 * PUD, 4 * PUD, 3 * PUD)]
    assert small == [11 * PUD, 7 * PUD, PUD]


def test_a_place_that_the_architecture_cannot_prepare_is_passed_over() -> None:
    _, mm = placing(huge_ranges=((BASE, BASE + PUD),), refused_below=BASE + 3 * BIG)
    assert mm.mmap(BIG, huge=BIG) == BASE + 3 * BIG
    assert mm.mmap(BIG, huge=BIG, at=BASE) == BASE + 4 * BIG
    assert refusal(mm.mmap, BIG, huge=BIG, at=BASE, fixed=True) == 16
    assert refusal(mm.mmap, 14 * BIG, huge=BIG) == ENOMEM
