"""Swap out, the swap cache, swap in at a fault (A7.6, corpus 86), and reclaim, on machines of all kinds of entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from polymmu.errors import SegmentationFault, SyscallError, UserMistake
from polymmu.hooks import ArchKernel
from polymmu.machine import Machine, Mm
from polymmu.mm import pagecache, reclaim, swap, truncate
from polymmu.mm.pagelock import lock_page as lock_now
from polymmu.mm.rmap import page_referenced
from polymmu.mm.swap import SwapIn
from polymmu.mm.tables import find_entry, read_pte
from polymmu.mm.truncate import unmap_mapping_range
from polymmu.sanitize.balance import check_balance, frames_held
from polymmu.structs import PG_SWAPCACHE

MACHINES = ("x86-pae", "ia64", "ppc64", "s390")
PAGES = 8


class World:
    """A machine with a swap area and a program whose page n begins with the byte n."""

    def __init__(self, name: str, *, sanitize: bool = True) -> None:
        self.machine = Machine.from_file(name, sets=("memory=32 MiB", "swap=4 MiB"), sanitize=sanitize)
        self.kernel = self.machine.kernel
        self.held = frames_held(self.kernel)
        self.page = self.machine.page_size
        self.mms = [self.machine.new_mm()]
        self.at = self.mm.mmap(PAGES * self.page)
        for n in range(PAGES):
            self.store(n, n)

    @property
    def mm(self) -> Mm:
        return self.mms[0]

    @property
    def area(self) -> Any:
        return self.kernel.swap

    def fork(self) -> Mm:
        self.mms.append(self.mm.fork())
        return self.mms[-1]

    def store(self, n: int, byte: int, mm: Mm | None = None) -> None:
        self.machine.cpus[0].switch_mm(mm or self.mm)
        self.machine.cpus[0].store(self.at + n * self.page, bytes([byte]))

    def load(self, n: int, mm: Mm | None = None) -> int:
        self.machine.cpus[0].switch_mm(mm or self.mm)
        return self.machine.cpus[0].load(self.at + n * self.page, 1)[0]

    def seen(self, mm: Mm | None = None) -> list[int]:
        return [self.load(n, mm) for n in range(PAGES)]

    def out(self, first: int = 0, pages: int = PAGES, mm: Mm | None = None) -> int:
        return (mm or self.mm).swap_out(self.at + first * self.page, pages * self.page)

    def pte(self, n: int, mm: Mm | None = None) -> int:
        struct = (mm or self.mm).struct
        return read_pte(struct, find_entry(struct, self.at + n * self.page))

    def frame(self, n: int, mm: Mm | None = None) -> int:
        """The frame of page n; -1 where none is mapped."""
        value, shape = self.pte(n, mm), self.kernel.shape
        return shape.pte.frame_of(value) >> shape.layout.page_shift if shape.pte.is_mapped(value) else -1

    def slot(self, n: int, mm: Mm | None = None) -> int:
        """Where page n is in the swap area; 0: nowhere."""
        kind = self.kernel.shape.pte.swap
        assert kind is not None
        value = self.pte(n, mm)
        return kind.split(value)[1] if kind.test(value) else 0

    def close(self) -> None:
        for mm in self.mms:
            mm.exit()
        if self.machine.sanitizer is not None:
            self.machine.sanitizer.finish()
            assert not self.machine.sanitizer.violations
        assert not check_balance(self.kernel, self.held)


@pytest.fixture(params=MACHINES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(request.param)
    yield made
    made.close()


@pytest.fixture
def x86() -> Iterator[World]:
    made = World("x86")
    yield made
    made.close()


# ------------------------------------------------------------------ out and in
def test_pages_go_out_and_come_back_with_their_bytes(world: World) -> None:
    free = world.kernel.free.free
    assert world.out() == PAGES
    assert world.kernel.free.free == free + PAGES
    assert (world.mm.struct.anon_rss, world.mm.struct.swapents) == (0, PAGES)
    assert all(world.slot(n) for n in range(PAGES))
    assert world.seen() == list(range(PAGES))
    assert (world.mm.struct.anon_rss, world.mm.struct.swapents) == (PAGES, 0)


def test_a_page_that_nobody_else_wants_leaves_the_area_when_it_comes_back(world: World) -> None:
    world.out()
    world.seen()
    assert not world.area.swap_map
    assert not world.area.contents
    world.store(3, 33)
    world.out()
    assert world.seen() == [0, 1, 2, 33, 4, 5, 6, 7]


def test_a_store_brings_a_page_back_writable_with_one_fault(x86: World) -> None:
    x86.out()
    faults = dict(x86.machine.counters.faults)
    x86.store(2, 22)
    assert x86.machine.counters.faults == {**faults, "major": 1}
    assert x86.seen() == [0, 1, 22, 3, 4, 5, 6, 7]


def test_reading_back_takes_as_long_as_the_machine_file_says(x86: World) -> None:
    clock = x86.kernel.sched.clock
    x86.out()
    before = clock[0]
    x86.load(0)
    assert clock[0] - before >= x86.machine.description.costs.page_io


def test_the_zero_page_does_not_go_out(x86: World) -> None:
    at = x86.mm.mmap(x86.page)
    x86.machine.cpus[0].load(at, 1)
    assert x86.mm.swap_out(at, x86.page) == 0


def test_a_page_that_somebody_holds_stays_and_is_found_again(world: World) -> None:
    world.machine.cpus[0].switch_mm(world.mm)
    frame = world.mm.gup_fast(world.at)
    assert world.out(0, 1) == 0
    assert world.slot(0)
    assert world.load(0) == 0
    assert world.frame(0) == frame
    world.mm.put(frame)
    assert world.out(0, 1) == 1


# ------------------------------------------------------------------ who shares a slot
def test_fork_duplicates_entries_and_each_gets_a_page_of_its_own(world: World) -> None:
    world.out()
    child = world.fork()
    slot = world.slot(5)
    assert world.slot(5, child) == slot
    assert world.area.swap_map[slot] == 2
    world.store(5, 55)
    world.store(5, 66, child)
    assert (world.load(5), world.load(5, child)) == (55, 66)
    assert world.seen(child)[:5] == world.seen()[:5] == [0, 1, 2, 3, 4]


def test_every_pte_that_maps_a_page_gets_its_entry(world: World) -> None:
    child = world.fork()
    assert world.out() == PAGES
    assert world.slot(4) == world.slot(4, child) != 0
    assert (world.mm.struct.swapents, child.struct.swapents) == (PAGES, PAGES)


def test_who_comes_second_finds_the_page_in_the_swap_cache(world: World) -> None:
    child = world.fork()
    world.out()
    slot = world.slot(1)
    world.load(1)
    assert world.area.cache == {slot: world.frame(1)}
    read = world.area.read
    assert world.load(1, child) == 1
    assert world.area.read == read
    assert world.frame(1) == world.frame(1, child)
    assert not world.area.cache


def test_a_store_to_a_page_whose_slot_is_named_elsewhere_copies_it(world: World) -> None:
    child = world.fork()
    world.out()
    world.load(6)
    cached = world.frame(6)
    world.store(6, 60)
    assert world.frame(6) != cached
    assert world.load(6, child) == 6
    assert world.load(6) == 60


def test_a_page_in_both_places_is_dropped_from_memory_without_writing(world: World) -> None:
    world.fork()
    world.out()
    world.load(2)
    written = world.area.written
    assert world.out(2, 1) == 1
    assert world.area.written == written
    assert world.load(2) == 2


# ------------------------------------------------------------------ calls that meet entries
def test_munmap_frees_slots(world: World) -> None:
    world.out()
    world.mm.munmap(world.at + 2 * world.page, 3 * world.page)
    assert len(world.area.swap_map) == PAGES - 3
    assert world.mm.struct.swapents == PAGES - 3
    world.mm.mmap(3 * world.page, at=world.at + 2 * world.page, fixed=True)
    assert world.seen() == [0, 1, 0, 0, 0, 5, 6, 7]


def test_the_last_name_takes_a_cached_page_along(world: World) -> None:
    child = world.fork()
    world.out()
    world.load(3)
    child.munmap(world.at, PAGES * world.page)
    assert not world.area.cache
    assert len(world.area.swap_map) == PAGES - 1
    world.store(3, 30)
    assert world.load(3) == 30


def test_a_freed_slot_is_the_next_to_be_used(x86: World) -> None:
    x86.out(0, 2)
    slot = x86.slot(1)
    x86.mm.munmap(x86.at + x86.page, x86.page)
    x86.out(2, 1)
    assert x86.slot(2) == slot
    x86.mm.mmap(x86.page, at=x86.at + x86.page, fixed=True)


def test_dontneed_frees_slots_and_zeroes_come_back(world: World) -> None:
    world.out()
    world.mm.madvise(world.at, PAGES * world.page, "dontneed")
    assert not world.area.swap_map
    assert world.seen() == [0] * PAGES


def test_mremap_moves_entries(world: World) -> None:
    world.out(0, 4)
    to = world.mm.mmap(PAGES * world.page, "")
    world.mm.munmap(to, PAGES * world.page)
    world.mm.mremap(world.at, PAGES * world.page, PAGES * world.page, to=to)
    world.at = to
    assert world.mm.struct.swapents == 4
    assert world.seen() == list(range(PAGES))


def test_mprotect_leaves_entries_and_their_pages_obey_it(world: World) -> None:
    world.out()
    slots = [world.slot(n) for n in range(PAGES)]
    world.mm.mprotect(world.at, PAGES * world.page, "r")
    assert [world.slot(n) for n in range(PAGES)] == slots
    assert world.seen() == list(range(PAGES))
    with pytest.raises(SegmentationFault):
        world.store(0, 1)


def test_a1_1_truncation_frees_private_copies_in_the_area_and_invalidation_leaves_them(world: World) -> None:
    file = world.machine.new_file(PAGES * world.page)
    world.at = world.mm.mmap(PAGES * world.page, file=file)
    for n in range(PAGES):
        world.store(n, 0x40 + n)
    assert world.out() == PAGES
    unmap_mapping_range(world.kernel, file.file.mapping, 0, 0, even_cows=False)
    assert world.mm.struct.swapents == PAGES
    file.truncate(5 * world.page)
    assert world.mm.struct.swapents == 5
    assert [world.load(n) for n in range(5)] == [0x40 + n for n in range(5)]
    file.close()


def test_exit_with_everything_out_leaves_no_slot(world: World) -> None:
    world.out()
    child = world.fork()
    world.mms.remove(child)
    child.exit()
    assert set(world.area.swap_map.values()) == {1}


# ------------------------------------------------------------------ files
def test_a_dirty_page_of_a_file_is_written_back_and_a_clean_one_dropped(world: World) -> None:
    file = world.machine.new_file(PAGES * world.page)
    world.at = world.mm.mmap(PAGES * world.page, shared=True, file=file)
    world.store(1, 11)
    world.load(2)
    assert world.out() == 2
    assert list(file.file.written) == [1]
    assert not file.file.mapping.pages
    assert [world.load(n) for n in range(3)] == [0, 11, 0]
    assert world.area.written == 0
    file.close()


def test_what_was_written_back_ends_where_the_file_is_cut(world: World) -> None:
    file = world.machine.new_file(PAGES * world.page)
    world.at = world.mm.mmap(PAGES * world.page, shared=True, file=file)
    for n in range(PAGES):
        world.machine.cpus[0].store(world.at + n * world.page, b"\x55" * 32)
    world.out()
    file.truncate(world.page + 16)
    file.truncate(PAGES * world.page)
    assert world.load(0) == 0x55
    assert world.machine.cpus[0].load(world.at + world.page, 32) == b"\x55" * 16 + bytes(16)
    assert world.load(2) == 0
    file.close()


def test_what_is_written_back_while_a_file_is_cut_is_cut_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages are unmapped already, and still cached."""
    file = world.machine.new_file(PAGES * world.page)
    world.at = world.mm.mmap(PAGES * world.page, shared=True, file=file)
    for n in range(PAGES):
        world.store(n, 0x55)
    drop = pagecache.drop_page_cache

    def written_first(*arguments: Any) -> None:
        world.machine.reclaim(1 << 10)
        assert 2 in file.file.written
        drop(*arguments)

    monkeypatch.setattr(truncate, "drop_page_cache", written_first)
    file.truncate(world.page)
    file.truncate(PAGES * world.page)
    assert world.seen() == [0x55] + [0] * (PAGES - 1)
    file.close()


# ------------------------------------------------------------------ corpus 86
def stale_identity(name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """What the program reads at page 0 when page and slot were used again while it waited for the page lock.

    Other threads run, nested, when its fault has found the page in the swap cache and is about to lock it.
    """
    world = World(name, sanitize=False)
    child = world.fork()
    world.out(0, 1)
    world.load(0, child)  # in the cache for the sake of our entry, and mapped by the child
    slot, page = world.slot(0), world.frame(0, child)

    def lock_page(kernel: ArchKernel, pfn: int) -> None:
        monkeypatch.setattr(swap, "lock_page", lock_now)
        assert pfn == page
        world.load(0)  # another thread brings the page in ...
        world.store(0, 99)  # ... and stores: the page is the child's too, so this is a copy
        assert world.frame(0) != page
        world.out(0, 1)  # the slot is free by now, and the copy gets it
        assert world.slot(0) == slot
        world.out(0, 1, child)  # the first page gets another one
        assert world.slot(0, child) not in (0, slot)
        assert world.area.cache == {world.slot(0, child): page}
        world.machine.cpus[0].switch_mm(world.mm)
        lock_now(kernel, pfn)

    monkeypatch.setattr(swap, "lock_page", lock_page)
    found = world.load(0)
    if found == 99:
        world.close()
    return found


@pytest.mark.parametrize("name", MACHINES)
def test_corpus_86_a_page_of_another_slot_is_not_mapped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stale_identity(name, monkeypatch) == 99


def test_corpus_86_asking_only_whether_it_is_in_the_cache_maps_foreign_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_in_cache(strategy: SwapIn, pfn: int, slot: int) -> bool:
        return bool(strategy.kernel.frames.flags[pfn] & PG_SWAPCACHE)

    monkeypatch.setattr(SwapIn, "is_page_of", only_in_cache)
    assert stale_identity("x86", monkeypatch) == 0


# ------------------------------------------------------------------ reclaim
def test_a_program_larger_than_memory_keeps_every_byte() -> None:
    machine = Machine.from_file("x86", sets=("memory=1 MiB", "swap=4 MiB"), sanitize=True)
    held = frames_held(machine.kernel)
    mm = machine.new_mm()
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    pages = 600  # of 254 frames
    at = mm.mmap(pages * machine.page_size)
    for n in range(pages):
        cpu.store(at + n * machine.page_size, n.to_bytes(2, "little"))
    for n in range(pages):
        assert cpu.load(at + n * machine.page_size, 2) == n.to_bytes(2, "little")
    report = machine.report().to_dict()["swap"]
    assert report["out"] >= 2 * (pages - 254)
    assert report["in"] >= pages - 254
    mm.exit()
    assert machine.sanitizer is not None
    machine.sanitizer.finish()
    assert not machine.sanitizer.violations
    assert not check_balance(machine.kernel, held)


def test_without_a_swap_area_memory_ends_as_before() -> None:
    machine = Machine.from_file("x86", sets=("memory=1 MiB",))
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    at = mm.mmap(600 * machine.page_size)
    with pytest.raises(SyscallError):
        for n in range(600):
            machine.cpus[0].store(at + n * machine.page_size, b"x")
    assert "swap" not in machine.report().to_dict()


def test_a_full_area_is_the_end_of_memory() -> None:
    machine = Machine.from_file("x86", sets=("memory=1 MiB", "swap=1 MiB"))
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    at = mm.mmap(600 * machine.page_size)
    done = 0
    with pytest.raises(SyscallError):
        for n in range(600):
            machine.cpus[0].store(at + n * machine.page_size, b"x")
            done += 1
    assert 254 + 255 - 10 < done <= 254 + 255


def test_the_page_that_was_not_used_goes_first(x86: World) -> None:
    world = x86
    reclaim.shrink_list(world.kernel, 0)  # pages reach the LRU
    for n in range(PAGES):  # all old
        assert world.kernel.frames.mapcount[world.frame(n)] == 1
        page_referenced(world.kernel, world.frame(n))
    world.load(0)
    world.load(1)
    assert world.machine.reclaim(1) == 1
    assert [n for n in range(PAGES) if world.slot(n)] == [2]


def test_reclaim_takes_what_was_asked_for_and_no_more(world: World) -> None:
    assert world.machine.reclaim(3) == 3
    assert world.mm.struct.swapents == 3
    assert world.machine.reclaim(100) == PAGES - 3
    assert world.machine.reclaim(1) == 0


# ------------------------------------------------------------------ mistakes
def test_an_area_that_entries_cannot_reach_is_refused() -> None:
    with pytest.raises(UserMistake) as mistake:
        Machine.from_file("s390-31", sets=("swap=5 GiB",))  # 20 bits of 4 KiB: 4 GiB
    assert str(mistake.value) == "swap: a swap entry of this machine reaches 4096 MiB, not 5120"


def test_swapping_out_on_a_machine_without_an_area_is_refused() -> None:
    machine = Machine.from_file("x86")
    with pytest.raises(SyscallError) as refusal:
        machine.new_mm().swap_out(0, machine.page_size)
    assert "no swap area" in refusal.value.reason
    with pytest.raises(UserMistake):
        machine.reclaim(1)
