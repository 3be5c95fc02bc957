"""Which instruction purges what, when none is needed, and what storage keys know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest

from polymmu.events import Events, Observer
from polymmu.machine import CpuHandle, Machine, Mm
from polymmu.mm.fork import dup_mm
from polymmu.mm.tables import find_entry, pfn_of, read_pte
from polymmu.mm.vma import find_vma
from polymmu.structs import PG_DIRTY, mm_struct, vm_area_struct
from polymmu_s390.keys import keys_of
from polymmu_s390.tlbflush import context_of, tag_of

PAGE = 4096
MIB = 1 << 20


@attrs.define(eq=False)
class Purges(Observer):
    """What was purged: (kind of instruction by its reach, what it dropped) in order."""

    seen: list[tuple[int, int | None, int | None, int | None]] = attrs.field(factory=list)
    """(CPU, tag, start, end) of every purge."""

    def before_invalidate(self, cpu: Any, asid: int | None, start: int | None, end: int | None) -> None:
        self.seen.append((cpu.index, asid, start, end))

    def after_invalidate(self, cpu: Any, dropped: int) -> None:
        """Nothing."""


class Bench:
    """Three CPUs; CPU 0 runs ``mm``. ``purged`` is what the last call of ``of`` purged."""

    def __init__(self, name: str = "s390", *sets: str) -> None:
        self.machine = Machine.from_file(name, sets=("memory=64MiB", "cpus=3", *sets))
        self.purges = Purges()
        for cpu in self.machine.kernel.cpus:
            cpu.watcher = self.purges
        self.mm = self.machine.new_mm()
        self.run_on(0)

    def run_on(self, cpu: int) -> CpuHandle:
        handle = self.machine.cpus[cpu]
        handle.switch_mm(self.mm)
        return handle

    def touched(self, pages: int = 4) -> int:
        """Fresh pages, stored to on CPU 0."""
        at = self.mm.mmap(pages * PAGE)
        for page in range(pages):
            self.machine.cpus[0].store(at + page * PAGE, b"x")
        return at

    def of(self, call: Callable[[], Any]) -> list[tuple[int, int | None, int | None, int | None]]:
        self.purges.seen.clear()
        with self.machine.cpus[0]:
            call()
        return list(self.purges.seen)

    @property
    def tag(self) -> int:
        return tag_of(self.mm.struct)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def everywhere(tag: int | None, start: int | None = None, end: int | None = None) -> list[Any]:
    return [(cpu, tag, start, end) for cpu in range(3)]


def vma_at(mm: Mm, addr: int) -> vm_area_struct:
    vma = find_vma(mm.struct, addr)
    assert vma is not None
    return vma


# ---------------------------------------------------------------------- instructions
def test_unmapping_purges_each_run_of_ptes_on_every_cpu_and_then_what_led_to_the_table(bench: Bench) -> None:
    at = bench.touched()
    seen = bench.of(lambda: bench.mm.munmap(at + PAGE, 2 * PAGE))
    assert seen == everywhere(bench.tag, at + PAGE, at + 3 * PAGE)
    seen = bench.of(lambda: bench.mm.munmap(at, 4 * PAGE))  # its tables go too
    first, last = everywhere(bench.tag, at, at + PAGE), everywhere(bench.tag, at + 3 * PAGE, at + 4 * PAGE)
    assert seen == first + last + everywhere(bench.tag)


def test_only_valid_ptes_are_purged(bench: Bench) -> None:
    at = bench.mm.mmap(8 * PAGE)
    assert bench.of(lambda: bench.mm.madvise(at, 8 * PAGE, "dontneed")) == []
    bench.machine.cpus[0].store(at + 3 * PAGE, b"x")
    seen = bench.of(lambda: bench.mm.madvise(at, 8 * PAGE, "dontneed"))
    assert seen == everywhere(bench.tag, at + 3 * PAGE, at + 4 * PAGE)


def test_a_mm_that_no_other_cpu_has_loaded_is_protected_by_stores_and_flushed_once(bench: Bench) -> None:
    at = bench.touched()
    assert bench.of(lambda: bench.mm.mprotect(at, 4 * PAGE, "r")) == everywhere(bench.tag)
    assert not context_of(bench.mm.struct).flush_mm


def test_a_mm_that_two_cpus_have_loaded_is_protected_by_ipte(bench: Bench) -> None:
    at = bench.touched()
    bench.run_on(1)
    seen = bench.of(lambda: bench.mm.mprotect(at, 4 * PAGE, "r"))
    assert seen == everywhere(bench.tag, at, at + 4 * PAGE) + everywhere(bench.tag)


def test_a_fork_purges_by_ipte_only_where_another_cpu_may_use_the_parent(bench: Bench) -> None:
    at = bench.touched()
    assert bench.of(bench.mm.fork) == everywhere(bench.tag)
    for page in range(4):
        bench.machine.cpus[0].store(at + page * PAGE, b"y")
    bench.run_on(2)
    seen = bench.of(bench.mm.fork)
    assert seen[:3] == everywhere(bench.tag, at, at + 4 * PAGE)


def test_a_call_on_a_mm_that_runs_elsewhere_purges_by_ipte(bench: Bench) -> None:
    """Loaded once, but not where the call is made: the CPU that has it may use it."""
    at = bench.touched()
    other = bench.machine.new_mm()
    bench.run_on(1)
    bench.machine.cpus[0].switch_mm(other)
    seen = bench.of(lambda: bench.mm.mprotect(at, 4 * PAGE, "r"))
    assert seen[:3] == everywhere(bench.tag, at, at + 4 * PAGE)


def test_a_switch_flushes_nothing_and_what_was_cached_is_found_again(bench: Bench) -> None:
    at = bench.touched(1)
    other = bench.machine.new_mm()
    cpu = bench.machine.cpus[0]
    assert bench.of(lambda: cpu.switch_mm(other)) == []
    assert bench.of(lambda: cpu.switch_mm(bench.mm)) == []
    walks = cpu.cpu.counters()["walk"]["count"]
    cpu.load(at, 1)
    assert cpu.cpu.counters()["walk"]["count"] == walks
    assert bench.mm.struct.cpu_mask == 1


def test_a_switch_pays_a_flush_that_is_owed(bench: Bench) -> None:
    bench.touched(1)
    context_of(bench.mm.struct).flush_mm = True
    assert bench.of(lambda: bench.run_on(1)) == everywhere(bench.tag)
    assert bench.of(lambda: bench.run_on(2)) == []


def test_a_cpu_stays_in_the_mask_and_leaves_the_count(bench: Bench) -> None:
    struct = bench.mm.struct
    bench.run_on(1)
    assert (struct.cpu_mask, context_of(struct).attach_count) == (0b11, 2)
    bench.machine.cpus[1].switch_mm(bench.machine.new_mm())
    assert (struct.cpu_mask, context_of(struct).attach_count) == (0b11, 1)


def test_a_program_that_ends_is_flushed_once_and_first(bench: Bench) -> None:
    bench.touched(300)
    tag = bench.tag
    assert bench.of(bench.mm.exit) == everywhere(tag)


def test_the_next_owner_of_a_root_finds_nothing_of_the_last_one(bench: Bench) -> None:
    at = bench.touched(1)
    pgd = bench.mm.struct.pgd
    cpu = bench.machine.cpus[0]
    bench.mm.exit()
    heir = bench.machine.new_mm()
    assert heir.struct.pgd == pgd
    cpu.switch_mm(heir)
    heir.mmap(PAGE, at=at, fixed=True)
    assert cpu.load(at, 1) == b"\0"


def test_without_idte_one_cpus_program_costs_a_local_purge_and_others_one_everywhere() -> None:
    bench = Bench("s390-31")
    at = bench.touched()
    assert bench.of(lambda: bench.mm.mprotect(at, 4 * PAGE, "r")) == [(0, None, None, None)]
    bench.run_on(1)
    seen = bench.of(lambda: bench.mm.mprotect(at, 4 * PAGE, "rw"))
    assert seen == everywhere(bench.tag, at, at + 4 * PAGE) + everywhere(None)


def test_instructions_that_act_everywhere_interrupt_nobody(bench: Bench) -> None:
    at = bench.touched()
    bench.run_on(1)
    bench.mm.munmap(at, 4 * PAGE)
    assert bench.machine.counters.shootdowns["ipis"] == 0
    assert bench.machine.counters.shootdowns["broadcast"] > 0


def test_ipte_leaves_cached_segment_entries_and_the_flush_of_a_freed_table_does_not(bench: Bench) -> None:
    at = bench.touched()
    cpu = bench.machine.cpus[0].cpu
    bench.mm.munmap(at, 2 * PAGE)
    before = cpu.counters()["walk"]["cache_hits"]
    bench.machine.cpus[0].cpu.invalidate(asid=bench.tag, start=at + 2 * PAGE, walk_caches="none")
    bench.machine.cpus[0].load(at + 2 * PAGE, 1)
    assert cpu.counters()["walk"]["cache_hits"] == before + 1
    bench.mm.munmap(at + 2 * PAGE, 2 * PAGE)
    assert cpu.invalidate(asid=bench.tag) == 0


def test_pages_are_freed_at_once_and_tables_after_the_flush(bench: Bench) -> None:
    """IPTE was the flush of the pages; a cached segment entry still leads to the table."""
    at = bench.touched(2)
    kernel = bench.machine.kernel
    events: list[str] = []

    class Order(Observer):
        def shootdown(self, mm: mm_struct, kind: str, cpus: int) -> None:
            events.append("purge")

        def pages_freed(self, n: int) -> None:
            events.append(f"free {n}")

        def table_freed(self, mm: mm_struct, level: int, table: int, size: int) -> None:
            events.append("unhook")

    kernel.events = Events((Order(),))
    bench.mm.munmap(at, 2 * PAGE)
    assert events == ["purge", "free 2", "unhook", "unhook", "purge", "free 1", "free 4", "free 1"]
    # the last one held the list of the tables


# ---------------------------------------------------------------------- storage keys
def frame_at(bench: Bench, addr: int) -> int:
    struct = bench.mm.struct
    return pfn_of(bench.machine.kernel.shape, read_pte(struct, find_entry(struct, addr)))


@pytest.mark.parametrize("name", ["s390", "s390-31"])
def test_a_load_refers_to_a_frame_and_only_a_store_changes_it(name: str) -> None:
    bench = Bench(name)
    file = bench.machine.new_file(2 * PAGE)
    at = bench.mm.mmap(2 * PAGE, file=file, shared=True)
    cpu = bench.machine.cpus[0]
    cpu.load(at, 1)
    pfn, keys = frame_at(bench, at), keys_of(bench.machine.kernel)
    assert keys[pfn] == 0x04
    cpu.store(at, b"x")
    assert keys[pfn] == 0x06
    cpu.store(at + PAGE, b"y")
    assert keys[frame_at(bench, at + PAGE)] == 0x06
    assert np.count_nonzero(keys) == 2


def test_a_first_store_through_a_cached_translation_walks_again_and_the_second_does_not(bench: Bench) -> None:
    file = bench.machine.new_file(PAGE)
    at = bench.mm.mmap(PAGE, file=file, shared=True)
    cpu = bench.machine.cpus[0]
    cpu.load(at, 1)
    walks = [cpu.cpu.counters()["walk"]["count"]]
    for _ in range(2):
        cpu.store(at, b"x")
        walks.append(cpu.cpu.counters()["walk"]["count"])
    assert [walks[1] - walks[0], walks[2] - walks[1]] == [1, 0]


@pytest.mark.parametrize("by", ["munmap", "exit"])
@pytest.mark.parametrize("stores", [False, True])
def test_the_last_unmapping_tells_a_file_that_its_page_was_written(
    bench: Bench, by: str, stores: bool
) -> None:
    """A load brought the page, so no fault saw the store: only the key knows."""
    machine = bench.machine
    file = machine.new_file(PAGE)
    at = bench.mm.mmap(PAGE, file=file, shared=True)
    cpu = machine.cpus[0]
    cpu.load(at, 1)
    if stores:
        cpu.store(at, b"x")
    pfn = frame_at(bench, at)
    keys = keys_of(machine.kernel)
    assert not machine.kernel.frames.flags[pfn] & PG_DIRTY
    second = machine.new_mm()
    other = second.mmap(PAGE, file=file, shared=True)
    machine.cpus[1].switch_mm(second)
    machine.cpus[1].load(other, 1)
    bench.mm.munmap(at, PAGE) if by == "munmap" else bench.mm.exit()
    assert bool(keys[pfn] & 0x02) == stores  # one mapping is left
    second.munmap(other, PAGE)
    assert bool(machine.kernel.frames.flags[pfn] & PG_DIRTY) == stores
    assert not keys[pfn] & 0x02


def test_a_frames_next_owner_does_not_inherit_a_changed_key(bench: Bench) -> None:
    at = bench.touched(4)
    pfns = [frame_at(bench, at + page * PAGE) for page in range(4)]
    keys = keys_of(bench.machine.kernel)
    assert all(keys[pfn] & 0x02 for pfn in pfns)
    bench.mm.munmap(at, 4 * PAGE)
    assert not any(keys[pfn] & 0x02 for pfn in pfns)


def test_young_pages_are_those_whose_frames_were_referred_to_since(bench: Bench) -> None:
    at = bench.touched(4)
    kernel, vma = bench.machine.kernel, vma_at(bench.mm, at)
    ptep = find_entry(bench.mm.struct, at)
    assert kernel.ops.test_and_clear_young(vma, at, ptep, 4) == 4
    assert kernel.ops.test_and_clear_young(vma, at, ptep, 4) == 0
    cpu = bench.machine.cpus[0]
    cpu.load(at, 1)  # through a TLB entry from before
    assert kernel.ops.test_and_clear_young(vma, at, ptep, 4) == 0
    cpu.cpu.invalidate(asid=None)
    cpu.load(at + PAGE, 1)
    assert kernel.ops.test_and_clear_young(vma, at, ptep, 4) == 1


# ---------------------------------------------------------------------- large pages
def test_a_large_page_is_one_segment_entry_and_idte_purges_it(bench: Bench) -> None:
    mm, cpu = bench.mm, bench.machine.cpus[0]
    at = mm.mmap(2 * MIB, huge=MIB)
    cpu.load(at, 1)
    entry = find_entry(mm.struct, at, mm.struct.layout.pmd_level)
    ram = bench.machine.kernel.ram
    assert ram.read_entry(entry, 8, "big") & 0xFFFFF == 0x700
    cpu.store(at + MIB, b"x")
    assert ram.read_entry(entry + 8, 8, "big") & 0xFFFFF == 0x500
    bench.run_on(1)
    seen = bench.of(lambda: mm.munmap(at, MIB))
    assert seen[:3] == everywhere(bench.tag, at, at + MIB)
    assert ram.read_entry(entry, 8, "big") == 0x20
    assert cpu.load(at + MIB, 1) == b"x"
    assert not np.count_nonzero(keys_of(bench.machine.kernel) & 0x02)  # change-recording override
    mm.exit()


def test_a_large_page_is_copied_on_write_and_protected(bench: Bench) -> None:
    mm, cpu = bench.mm, bench.machine.cpus[0]
    at = mm.mmap(MIB, huge=MIB)
    cpu.store(at + 5 * PAGE, b"parent")
    child = Mm(bench.machine, dup_mm(mm.struct))
    other = bench.machine.cpus[1]
    other.switch_mm(child)
    cpu.store(at + 5 * PAGE, b"PARENT")
    assert other.load(at + 5 * PAGE, 6) == b"parent"
    child.mprotect(at, MIB, "")
    entry = find_entry(child.struct, at, child.struct.layout.pmd_level)
    assert bench.machine.kernel.ram.read_entry(entry, 8, "big") & 0x420 == 0x420
    child.mprotect(at, MIB, "rw")
    assert other.load(at + 5 * PAGE, 6) == b"parent"
    child.exit()
    mm.exit()


def test_without_idte_a_large_page_costs_a_purge_of_everything() -> None:
    bench = Bench("s390", "s390.idte=false")
    at = bench.mm.mmap(MIB, huge=MIB)
    bench.machine.cpus[0].store(at, b"x")
    assert bench.of(lambda: bench.mm.munmap(at, MIB))[:3] == everywhere(None)


def test_a_machine_without_edat_has_no_large_pages() -> None:
    assert Bench("s390", "s390.edat=0").machine.huge_page_sizes == ()
    assert Bench("s390-31").machine.huge_page_sizes == ()


# ---------------------------------------------------------------------- lockless walkers
def test_tables_wait_for_walkers_that_only_interrupts_off_protects(bench: Bench) -> None:
    ops, cpu = bench.machine.kernel.ops, bench.machine.cpus[0].cpu
    assert ops.tables_need_rcu(bench.mm.struct)
    assert ops.gup_fast_begin(cpu, bench.mm.struct)
    assert not cpu.interrupts_enabled
    ops.gup_fast_end(cpu, bench.mm.struct)
    assert cpu.interrupts_enabled
