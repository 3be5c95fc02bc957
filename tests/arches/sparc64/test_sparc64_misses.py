"""What a miss costs and remembers: the TSB, the linear table, and what happens where nobody flushes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polymmu.arch import EntryRun, defaults, hookimpl, mm_struct, mmu_gather
from polymmu.errors import SegmentationFault
from polymmu.events import Events, Observer
from polymmu.machine import Machine, Mm
from polymmu.mm.mm import activate
from polymmu.mm.tables import find_entry, read_ptes
from polymmu_sparc64.miss import M_TSB
from polymmu_sparc64.tsb import load_tsbs_everywhere, tsb_words
from tests.arches.sparc64.machines import (
    PAGE,
    PMD,
    UPPER,
    entries_of,
    events,
    machine,
    stale_buffer_entries,
    stale_translations,
)


def program(emulated: Machine, pages: int) -> Mm:
    """An mm with ``pages`` stored pages at UPPER, running, nothing of it in a TLB."""
    mm = emulated.new_mm()
    emulated.cpus[0].switch_mm(mm)
    mm.mmap(pages * PAGE, "rw", at=UPPER, fixed=True)
    for n in range(pages):
        emulated.cpus[0].store(UPPER + n * PAGE, b"x")
    emulated.kernel.cpus[0].invalidate(asid=None)
    return mm


def clear_tsb(emulated: Machine, mm: Mm) -> None:
    tsb_words(emulated.kernel, mm.struct.context.tsb)[:, 0] = 1 << 46


def counted(emulated: Machine, va: int) -> dict[str, int]:
    """What one load counts."""
    before = events(emulated)
    emulated.cpus[0].load(va, 1)
    return {name: n - before[name] for name, n in events(emulated).items() if n != before[name]}


# ------------------------------------------------------------------------ TSB
def test_a_fault_fills_the_tsb_so_the_retry_hits_it() -> None:
    emulated = machine()
    program(emulated, 1)
    assert counted(emulated, UPPER) == {"count": 1, "references": 1, "traps": 1, "tsb_hits": 1}


def test_a_tsb_miss_walks_three_tables_and_fills_the_tsb() -> None:
    emulated = machine()
    mm = program(emulated, 1)
    clear_tsb(emulated, mm)
    assert counted(emulated, UPPER) == {"count": 1, "references": 4, "traps": 1, "tsb_misses": 1}
    emulated.kernel.cpus[0].invalidate(asid=None)
    assert counted(emulated, UPPER) == {"count": 1, "references": 1, "traps": 1, "tsb_hits": 1}
    assert list(entries_of(emulated, mm.struct.context.tsb)) == [UPPER]


def test_pages_512_apart_share_a_slot_of_the_smallest_tsb() -> None:
    emulated = machine()
    program(emulated, 1)
    mm = emulated.kernel.active_mm[0]
    assert mm is not None
    far = UPPER + 512 * PAGE
    Mm(emulated, mm).mmap(PAGE, "rw", at=far, fixed=True)
    emulated.cpus[0].store(far, b"y")
    emulated.kernel.cpus[0].invalidate(asid=None)
    assert "tsb_misses" in counted(emulated, UPPER)
    emulated.kernel.cpus[0].invalidate(asid=None)
    assert "tsb_misses" in counted(emulated, far)


@pytest.mark.parametrize(("pages", "entries"), [(384, 512), (385, 1024), (768, 1024), (769, 2048)])
def test_the_tsb_grows_when_three_quarters_are_exceeded(pages: int, entries: int) -> None:
    emulated = machine()
    mm = program(emulated, pages)
    tsb = mm.struct.context.tsb
    assert tsb.entries == entries
    assert tsb.base % (16 * entries) == 0
    assert emulated.kernel.cpus[0].mmu[10] == tsb.base | tsb.code


def test_a_grown_tsb_keeps_what_the_old_one_held() -> None:
    emulated = machine()
    mm = program(emulated, 385)
    held = entries_of(emulated, mm.struct.context.tsb)
    assert sorted(held) == [UPPER + n * PAGE for n in range(385)]
    assert not stale_buffer_entries(emulated, mm)
    assert "tsb_hits" in counted(emulated, UPPER)


def test_the_tsbs_go_with_their_mm() -> None:
    emulated = machine()
    before = emulated.kernel.free.free
    mm = program(emulated, 800)
    mm.exit()
    assert emulated.kernel.free.free == before


def test_without_memory_for_a_tsb_every_miss_walks() -> None:
    emulated = machine()
    asked = iter((True, False))
    emulated.kernel.free.fail_next = lambda what: what == "tsb" and next(asked, False)
    mm = program(emulated, 1)
    assert mm.struct.context.tsb is None
    for _ in range(2):
        emulated.kernel.cpus[0].invalidate(asid=None)
        assert counted(emulated, UPPER) == {"count": 1, "references": 3, "traps": 1, "tsb_misses": 1}
    mm.exit()


def test_a_cpu_that_went_to_another_program_keeps_that_ones_tsb() -> None:
    """The interrupt that announces a larger TSB may come when its CPU runs something else."""
    emulated = machine("tsb", "cpus=2")
    mm, other = program(emulated, 1), emulated.new_mm()
    emulated.cpus[1].switch_mm(mm)
    sched = emulated.kernel.sched
    sched.cpu = emulated.kernel.cpus[0]
    ipi = sched.ipi

    def late(mask: int, function: Any, cost: int) -> int:
        activate(emulated.kernel, emulated.kernel.cpus[1], other.struct)
        return ipi(mask, function, cost)

    sched.ipi = late  # type: ignore[method-assign]
    load_tsbs_everywhere(mm.struct)
    assert int(emulated.kernel.cpus[1].mmu[M_TSB]) == other.struct.context.tsb.base


def test_a_tsb_that_nobody_flushes_brings_the_unmapped_page_back() -> None:
    @hookimpl
    def ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, n: int, tlb: mmu_gather | None) -> EntryRun:
        return defaults.ptep_get_and_clear(mm, addr, ptep, n, tlb)

    emulated = machine(ptep_get_and_clear=ptep_get_and_clear)
    mm = program(emulated, 2)
    mm.munmap(UPPER, PAGE)
    assert stale_buffer_entries(emulated, mm) == 1
    assert emulated.cpus[0].load(UPPER, 1) == b"x"


# --------------------------------------------------------------- linear table
def test_a_miss_of_the_linear_table_walks_two_tables_and_loads_the_page_of_ptes() -> None:
    emulated = machine("vpte")
    program(emulated, 2)
    assert counted(emulated, UPPER) == {"count": 1, "references": 3, "traps": 1, "vpte_misses": 1}
    assert counted(emulated, UPPER + PAGE) == {"count": 1, "references": 1, "traps": 1}


def test_one_page_of_the_linear_table_serves_8_mib() -> None:
    emulated = machine("vpte")
    mm = program(emulated, 1)
    for at in (UPPER + PMD - PAGE, UPPER + PMD):
        mm.mmap(PAGE, "rw", at=at, fixed=True)
        emulated.cpus[0].store(at, b"x")
    emulated.kernel.cpus[0].invalidate(asid=None)
    emulated.cpus[0].load(UPPER, 1)
    assert "vpte_misses" not in counted(emulated, UPPER + PMD - PAGE)
    assert "vpte_misses" in counted(emulated, UPPER + PMD)


def test_a_program_may_not_read_the_linear_table() -> None:
    emulated = machine("vpte")
    program(emulated, 1)
    emulated.cpus[0].load(UPPER, 1)
    linear = (1 << 64) - (1 << 33) + ((UPPER - (1 << 64)) >> 13 << 3)
    for _ in range(2):
        with pytest.raises(SegmentationFault):
            emulated.cpus[0].load(linear, 8)


def unmapped_and_mapped_again(emulated: Machine) -> bytes:
    """What a program finds at an address whose table was freed and used for something else."""
    mm = program(emulated, 1)
    cpu = emulated.cpus[0]
    cpu.load(UPPER, 1)
    mm.munmap(UPPER, PAGE)
    assert mm.struct.nr_tables[2] == 0
    stale = stale_translations(emulated, mm)
    mm.mmap(PAGE, "rw", at=UPPER + PMD, fixed=True)
    mm.mmap(PAGE, "rw", at=UPPER, fixed=True)
    cpu.store(UPPER + PMD, b"other")  # takes the freed table, for other addresses
    return b"stale" if stale else cpu.load(UPPER, 5)


def test_tables_leave_the_linear_table_when_they_are_freed() -> None:
    assert unmapped_and_mapped_again(machine("vpte")) == bytes(5)


def test_without_flush_tlb_pgtables_the_linear_table_still_shows_a_freed_table() -> None:
    assert unmapped_and_mapped_again(machine("vpte", without="flush_tlb_pgtables")) == b"stale"


def test_a_stale_page_of_ptes_lets_a_program_write_its_own_translations() -> None:
    """The freed table's frame becomes a page of the program, which stores a TTE for a frame it never had."""
    emulated = machine("vpte", without="flush_tlb_pgtables")
    secret = emulated.kernel.ram.size - PAGE
    emulated.kernel.ram.write(secret, b"secret")
    mm = program(emulated, 1)
    cpu = emulated.cpus[0]
    cpu.load(UPPER, 1)
    mm.munmap(UPPER, PAGE)
    mm.mmap(PAGE, "rw", at=UPPER + 64 * PMD, fixed=True)
    cpu.store(UPPER + 64 * PMD, (1 << 63 | secret).to_bytes(8, "big"))
    assert cpu.load(UPPER, 6) == b"secret"


def test_the_audit_counts_what_the_generation_without_flushes_at_exit_saves() -> None:
    def flushes_at_exit(kind: str, *sets: str) -> int:
        emulated = machine(kind, *sets)
        program(emulated, 4).exit()
        tally = emulated.flushes.by_call.get("exit")
        return tally.issued if tally is not None else 0

    assert flushes_at_exit("tsb") == 0
    assert flushes_at_exit("vpte") == 1
    assert flushes_at_exit("vpte", "cpus=2") == 0


# -------------------------------------------------------------------- batches
class Watch(Observer):
    """Notes every shootdown, and at every free of pages how many stale translations still reach memory."""

    def __init__(self, emulated: Machine, mm: Mm) -> None:
        self.emulated, self.mm = emulated, mm
        self.shootdowns = 0
        self.reachable: list[tuple[int, int]] = []
        emulated.kernel.events = Events((*emulated.kernel.events.observers, self))

    def shootdown(self, mm: Any, kind: str, cpus: int) -> None:
        self.shootdowns += 1

    def pages_freed(self, n: int) -> None:
        self.reachable.append((n, stale_translations(self.emulated, self.mm)))


def test_a_batch_is_flushed_at_192_addresses() -> None:
    emulated = machine()
    mm = program(emulated, 385)
    watch = Watch(emulated, mm)
    mm.mprotect(UPPER, 192 * PAGE, "r")
    assert watch.shootdowns == 1
    mm.mprotect(UPPER + 192 * PAGE, 193 * PAGE, "r")
    assert watch.shootdowns == 3


def test_pages_are_freed_after_their_translations_unless_the_release_did_not() -> None:
    freed = {}
    for kind in ("tsb", "early"):
        emulated = machine(kind)
        mm = program(emulated, 4)
        for n in range(4):
            emulated.cpus[0].load(UPPER + n * PAGE, 1)
        watch = Watch(emulated, mm)
        mm.munmap(UPPER, 4 * PAGE)
        freed[kind] = watch.reachable
        assert not stale_translations(emulated, mm)
    table, pages = (1, 4), (4, 4)  # (freed, stale translations): the tables go at once in any case
    assert freed["tsb"] == [table, table, (4, 0)]
    assert freed["early"] == [table, table, pages]


def test_tables_with_wide_entries_wait_for_the_flush() -> None:
    emulated = machine("wide")
    mm = program(emulated, 4)
    emulated.cpus[0].load(UPPER, 1)
    watch = Watch(emulated, mm)
    mm.munmap(UPPER, 4 * PAGE)
    assert {stale for _, stale in watch.reachable} == {0}


# ----------------------------------------------------------------- huge pages
SIZES = pytest.mark.parametrize("size", [64 << 10, 512 << 10, 4 << 20], ids=["64K", "512K", "4M"])


@SIZES
@pytest.mark.parametrize("kind", ["tsb", "vpte", "sun4v", "wide"])
def test_a_huge_page_is_a_run_of_ptes_and_one_translation(kind: str, size: int) -> None:
    emulated = machine(kind, f"sparc64.huge_page={size}")
    before = emulated.kernel.free.free
    mm, cpu = emulated.new_mm(), emulated.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(2 * size, "rw", huge=size)
    cpu.store(at + size - 3, b"end")
    first = find_entry(mm.struct, at)
    entries = read_ptes(mm.struct, first, size // PAGE)
    tte = emulated.description.section.tte
    assert {tte.page_shift_of(entry) for entry in entries.tolist()} == {size.bit_length() - 1}
    assert (np.diff(entries) == PAGE).all()
    misses = emulated.kernel.cpus[0].counters()["tlb"]["D"]["misses"]
    for n in range(0, size, PAGE):
        cpu.load(at + n, 1)
    assert emulated.kernel.cpus[0].counters()["tlb"]["D"]["misses"] == misses
    child = mm.fork()
    cpu.store(at, b"parent")
    cpu.switch_mm(child)
    assert cpu.load(at + size - 3, 3) == b"end"
    assert cpu.load(at, 6) == bytes(6)
    cpu.switch_mm(mm)
    mm.munmap(at, size)
    assert not stale_translations(emulated, mm) + stale_buffer_entries(emulated, mm)
    assert not read_ptes(mm.struct, first, size // PAGE).any() or not mm.struct.nr_tables[2]
    child.exit()
    mm.exit()
    assert emulated.kernel.free.free == before


def test_a_huge_page_goes_into_the_second_tsb() -> None:
    emulated = machine()
    mm, cpu = emulated.new_mm(), emulated.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(4 << 20, "rw", huge=4 << 20)
    cpu.store(at, b"x")
    assert list(entries_of(emulated, mm.struct.context.huge_tsb)) == [at]
    assert not entries_of(emulated, mm.struct.context.tsb)
    emulated.kernel.cpus[0].invalidate(asid=None)
    assert counted(emulated, at + 77 * PAGE) == {"count": 1, "references": 2, "traps": 1, "tsb_hits": 1}


def test_a_stored_to_huge_page_is_dirty_in_every_pte() -> None:
    emulated = machine()
    mm, cpu = emulated.new_mm(), emulated.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(4 << 20, "rw", shared=True, huge=4 << 20)
    cpu.load(at, 1)
    cpu.store(at + (2 << 20), b"x")
    tte = emulated.description.section.tte
    entries = read_ptes(mm.struct, find_entry(mm.struct, at), 512)
    assert (entries & np.uint64(tte.modified) != 0).all()
    assert (entries & np.uint64(tte.writable) != 0).all()
