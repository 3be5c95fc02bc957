"""gup_fast (A8.1): a frame held without a lock, and what would go wrong without the arch's protection."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence

import pytest

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.events import Events, Observer
from polymmu.hooks import ArchKernel
from polymmu.machine import Machine, Mm
from polymmu.mm import gup
from polymmu.mm.frames import alloc_page
from polymmu.registry import replaced
from polymmu.structs import VM_PFNMAP, mm_struct

BASE = 1 << 32
"""A place that every machine here translates."""


class Walkers(Observer):
    """Follows every lockless walk; ``stall``: cycles for which a walk is held up behind each entry it has read."""

    def __init__(self, stall: int = 0) -> None:
        self.kernel: ArchKernel
        self.stall = stall
        self.next_table: dict[int, tuple[int, int]] = {}
        self.reads = 0
        self.read_freed = 0

    def lockless_read(self, mm: mm_struct, cpu: int, rank: int, entry: int, table: int) -> None:
        generation, shift = self.kernel.frames.generation, mm.layout.page_shift
        self.reads += 1
        expected = self.next_table.pop(cpu, None)
        if expected is not None:
            self.read_freed += generation[expected[0] >> shift] != expected[1]
        if table >= 0:
            self.next_table[cpu] = table, generation[table >> shift]
        if self.stall:
            self.kernel.sched.spend(self.stall, "stall")
            self.kernel.sched.point("stall", None)


def build(
    name: str, *sets: str, driver: str = "solo", stall: int = 0, cpus: int = 3, broken: str = ""
) -> tuple[Machine, Walkers]:
    """A machine whose lockless walks are followed; ``broken``: the hook that protects them does nothing."""
    description, arch = Machine.describe(name, sets=(f"cpus={cpus}", "memory=256 MiB", *sets))
    if broken:
        arch = replaced(arch, broken, lambda cpu, mm: True)
    machine = Machine(description, arch, driver=driver)
    walkers = Walkers(stall)
    walkers.kernel = machine.kernel
    machine.kernel.events = Events((*machine.kernel.events.observers, walkers))
    return machine, walkers


def running(machine: Machine) -> Mm:
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    return mm


def race(machine: Machine, seed: int, rounds: int = 12) -> int:
    """CPU 0 maps, touches and unmaps four pages while CPUs 1 and 2 look for them; how often they found one.

    Nothing is left afterwards.
    """
    kernel, mm, page = machine.kernel, machine.new_mm(), machine.page_size
    found = 0

    def unmapper() -> None:
        chance = random.Random(seed)
        for _ in range(rounds):
            mm.mmap(4 * page, "rw", at=BASE, fixed=True)
            for n in range(4):
                machine.cpus[0].store(BASE + n * page, b"x")
            machine.work(chance.randrange(20_000))
            mm.munmap(BASE, 4 * page)

    def walker(cpu: int) -> Callable[[], None]:
        def run() -> None:
            nonlocal found
            chance = random.Random(seed * 7 + cpu)
            for _ in range(rounds * 6):
                machine.work(chance.randrange(400))
                try:
                    pfn = mm.gup_fast(BASE + chance.randrange(4) * page)
                except SegmentationFault:
                    continue
                found += 1
                born = kernel.frames.generation[pfn]
                machine.work(chance.randrange(300))
                assert kernel.frames.generation[pfn] == born, "a frame was freed while it was held"
                mm.put(pfn)

        return run

    machine.spawn("unmapper", 0, mm, unmapper)
    for cpu in (1, 2):
        machine.spawn(f"walker/{cpu}", cpu, mm, walker(cpu))
    free = kernel.free.free
    machine.run_tasks()
    mm.exit()
    assert kernel.free.free >= free  # and the mm's root
    assert not kernel.vmas.live
    return found


RADIX = ["x86", "x86-pae", "x86_64", "ppc64", "ppc64-64k", "s390", "s390-31"]
ALL = [*RADIX, "ia64", "sparc64"]
NEW_SPARC64 = ("sparc64.upper_entries=64",)


# ---------------------------------------------------------------------- one CPU, nobody else
@pytest.mark.parametrize("name", ALL)
def test_the_frame_is_the_one_that_the_program_sees(name: str) -> None:
    machine, _ = build(name)
    mm = running(machine)
    addr = mm.mmap(2 * machine.page_size, "rw")
    machine.cpus[0].store(addr + machine.page_size, b"here")
    pfn = mm.gup_fast(addr + machine.page_size + 3, write=True)
    assert machine.kernel.ram.read(pfn * machine.page_size, 4) == b"here"
    mm.exit()
    assert machine.kernel.frames.refcount[pfn] == 1
    free = machine.kernel.free.free
    mm.put(pfn)
    assert machine.kernel.free.free == free + 1


@pytest.mark.parametrize("name", RADIX)
def test_each_entry_is_read_once_and_the_leaf_once_more(name: str) -> None:
    """A8.1 steps 1 and 2."""
    machine, walkers = build(name)
    mm = running(machine)
    addr = mm.mmap(machine.page_size, "rw")
    machine.cpus[0].store(addr, b"x")
    walkers.reads = 0
    mm.put(mm.gup_fast(addr))
    assert walkers.reads == mm.struct.layout.levels + 1


@pytest.mark.parametrize(("name", "sets"), [("ia64", ()), ("sparc64", ()), ("ultrasparc3", ())])
def test_an_arch_without_gup_fast_goes_the_slow_way(name: str, sets: Sequence[str]) -> None:
    """ia64 never had one, sparc64 none before 3.1."""
    machine, walkers = build(name, *sets)
    mm = running(machine)
    mm.put(mm.gup_fast(mm.mmap(machine.page_size, "rw")))
    assert walkers.reads == 0
    assert machine.cpus[0].cpu.interrupts_enabled


def test_sparc64_has_a_lockless_walk_since_3_1() -> None:
    machine, walkers = build("sparc64", *NEW_SPARC64)
    mm = running(machine)
    addr = mm.mmap(machine.page_size, "rw")
    machine.cpus[0].store(addr, b"x")
    mm.put(mm.gup_fast(addr))
    assert walkers.reads == mm.struct.layout.levels + 1


def test_a_page_that_is_not_there_is_brought_in_and_may_be_written() -> None:
    machine, _ = build("x86_64")
    mm = running(machine)
    addr = mm.mmap(machine.page_size, "rw")
    zero = mm.gup_fast(addr)
    own = mm.gup_fast(addr, write=True)
    assert zero == machine.kernel.free.zero_page != own
    machine.kernel.ram.write(own * machine.page_size, b"device")
    assert machine.cpus[0].load(addr, 6) == b"device"


def test_a_page_shared_with_a_child_is_copied_before_it_is_given_for_writing() -> None:
    """FOLL_WRITE never degrades: the child must not see what is stored (INV-COW)."""
    machine, _ = build("x86_64")
    mm = running(machine)
    addr = mm.mmap(machine.page_size, "rw")
    machine.cpus[0].store(addr, b"old")
    child = mm.fork()
    read, written = mm.gup_fast(addr), mm.gup_fast(addr, write=True)
    assert read != written
    machine.kernel.ram.write(written * machine.page_size, b"new")
    machine.cpus[1].switch_mm(child)
    assert machine.cpus[1].load(addr, 3) == b"old"


def test_what_a_program_may_not_do_is_refused() -> None:
    machine, walkers = build("x86_64")
    mm = running(machine)
    page = machine.page_size
    addr = mm.mmap(2 * page, "r")
    with pytest.raises(SegmentationFault, match="not writable"):
        mm.gup_fast(addr, write=True)
    with pytest.raises(SegmentationFault):
        mm.gup_fast(addr + 64 * page)
    mm.put(mm.gup_fast(addr))
    mm.mprotect(addr, page, "")
    with pytest.raises(SegmentationFault):
        mm.gup_fast(addr)
    walkers.reads = 0
    with pytest.raises(SegmentationFault):  # would alias a low address if its upper bits were dropped
        mm.gup_fast(addr | 1 << 63)
    assert walkers.reads == 0


def test_a_devices_memory_has_no_frames() -> None:
    machine, _ = build("x86_64")
    mm = running(machine)
    addr = mm.mmap(machine.page_size, "rw")
    mm.struct.vmas[addr].vm_flags |= VM_PFNMAP
    with pytest.raises(SyscallError) as refused:
        mm.gup_fast(addr)
    assert refused.value.errno == errno.EFAULT


def test_an_mm_that_does_not_run_here_is_walked_below_its_lock() -> None:
    machine, walkers = build("x86_64")
    running(machine)
    other = machine.new_mm()
    addr = other.mmap(machine.page_size, "rw")
    other.put(other.gup_fast(addr))
    other.put(other.gup_fast(addr))
    assert walkers.reads == 0


@pytest.mark.parametrize(
    ("name", "huge"),
    [("x86", 4 << 20), ("x86-pae", 2 << 20), ("x86_64", 2 << 20), ("s390", 1 << 20), ("ppc64", 16 << 20),
     ("ppc64-64k", 16 << 20), ("sparc64", 4 << 20)],
)  # fmt: skip
def test_a_huge_page_is_held_by_its_first_frame_and_freed_whole(name: str, huge: int) -> None:
    machine, _ = build(name, *(NEW_SPARC64 if name == "sparc64" else ()))
    mm, page = running(machine), machine.page_size
    addr = mm.mmap(huge, "rw", huge=huge)
    machine.cpus[0].store(addr + 3 * page, b"huge")
    free = machine.kernel.free.free
    pfn = mm.gup_fast(addr + 3 * page + 1, write=True)
    assert machine.kernel.ram.read(pfn * page, 4) == b"huge"
    mm.munmap(addr, huge)
    assert machine.kernel.free.free - free < huge // page
    before = machine.kernel.free.free
    mm.put(pfn)
    assert machine.kernel.free.free - before == huge // page


def test_the_huge_page_is_found_at_the_level_where_its_entry_is() -> None:
    machine, walkers = build("x86_64")
    mm = running(machine)
    addr = mm.mmap(2 << 20, "rw", huge=2 << 20)
    machine.cpus[0].store(addr, b"x")
    mm.put(mm.gup_fast(addr))
    assert walkers.reads == 3 + 1  # pgd, pud, pmd, and the pmd entry again


# ---------------------------------------------------------------------- against munmap, in virtual time
SEEDS = range(12)


def freed_reads(name: str, *sets: str, stall: int = 0, broken: str = "") -> int:
    """Over all seeds: how often a walk read a table that had been freed."""
    count = found = 0
    for seed in SEEDS:
        machine, walkers = build(name, f"seed={seed}", *sets, driver="timed", stall=stall, broken=broken)
        found += race(machine, seed)
        count += walkers.read_freed
    assert found  # walks and mappings did meet
    return count


@pytest.mark.parametrize("stall", [0, 3000])
def test_interrupts_off_keep_x86_tables_while_a_walk_is_in_them(stall: int) -> None:
    assert freed_reads("x86_64", stall=stall) == 0


def test_with_interrupts_on_the_x86_walk_would_read_freed_tables() -> None:
    assert freed_reads("x86_64", stall=3000, broken="gup_fast_begin") > 0


IMMEDIATE = "kernel.table_free=immediate"


@pytest.mark.parametrize(("name", "sets"), [("s390", ()), ("ppc64", ()), ("sparc64", NEW_SPARC64)])
def test_flushes_that_interrupt_nobody_need_rcu(name: str, sets: Sequence[str]) -> None:
    """INV-WALK: broken as soon as tables are freed right after the flush, and kept by RCU."""
    assert freed_reads(name, IMMEDIATE, *sets, stall=300) > 0
    assert freed_reads(name, *sets, stall=300) == 0


@pytest.mark.parametrize("name", ["s390", "ppc64"])
@pytest.mark.parametrize("stall", [0, 3000])
def test_rcu_keeps_tables_however_long_a_walk_is_held_up(name: str, stall: int) -> None:
    assert freed_reads(name, stall=stall) == 0


class AtTheLeaf(Observer):
    """Does something once, when a walk has read the pte and not yet held the page."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def lockless_read(self, mm: mm_struct, cpu: int, rank: int, entry: int, table: int) -> None:
        if rank == -1 and self.action is not None:
            action, self.action = self.action, None
            action()


@pytest.mark.parametrize("reused", [False, True])
def test_a_page_that_went_before_it_was_held_is_not_given(reused: bool) -> None:
    """A8.1 step 2, on s390, whose IPTE interrupts nobody: the count may be zero, or somebody else's by then."""
    machine, _ = build("s390")
    kernel, mm = machine.kernel, running(machine)
    page = machine.page_size
    addr, other = mm.mmap(page, "rw"), mm.mmap(page, "rw")
    machine.cpus[0].store(addr, b"x")
    machine.cpus[0].store(other, b"x")
    pfn = mm.gup_fast(addr)
    mm.put(pfn)

    def go() -> None:
        mm.madvise(addr, page, "dontneed")
        assert not kernel.frames.refcount[pfn]
        if reused:
            assert alloc_page(kernel, "anon") == pfn
        mm.munmap(addr, page)

    kernel.events = Events((AtTheLeaf(go),))
    with pytest.raises(SegmentationFault):
        mm.gup_fast(addr)
    assert kernel.frames.refcount[pfn] == reused


def test_two_runs_of_one_seed_are_alike() -> None:
    def run() -> tuple[int, int, list[int]]:
        machine, walkers = build("s390", "seed=3", driver="timed")
        return race(machine, 3), walkers.reads, machine.kernel.sched.clock

    assert run() == run()


def test_a_walk_of_a_grown_mm_goes_on_in_the_shape_it_began_with() -> None:
    """s390 puts a root above the old one: a walk under way knows the old one's place and shape only."""
    machine, _ = build("s390")
    mm = running(machine)
    addr = mm.mmap(machine.page_size, "rw")
    machine.cpus[0].store(addr, b"x")
    grown: list[bool] = []

    class Grow(Observer):
        def lockless_read(self, struct: mm_struct, cpu: int, rank: int, entry: int, table: int) -> None:
            if not grown:
                grown.append(machine.kernel.ops.grow_task_size(struct, struct.task_size + 1))

    machine.kernel.events = Events((Grow(),))
    held = mm.gup_fast(addr)
    assert grown == [True]
    assert machine.kernel.ram.read(held * machine.page_size, 1) == b"x"
    assert gup.get_user_pages(mm.struct, addr) == held
