"""Today's gather beside others: tables that wait for walkers (A4.4), gathers at the same time (A4.3)."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest

from polymmu.errors import UserMistake
from polymmu.machine import Machine
from polymmu.mm import gather
from polymmu.registry import replaced
from polymmu.structs import mmu_gather
from tests.mm.test_gup import build, race
from tests.mm.toy import boot


def munmap_one(machine: Machine) -> None:
    """Map a page where no table is yet, touch it, unmap it."""
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    addr = mm.mmap(machine.page_size, "rw")
    machine.cpus[0].store(addr, b"x")
    mm.munmap(addr, machine.page_size)
    mm.exit()


class Graces:
    """Stands in for RCU: callbacks wait until they are let go."""

    def __init__(self, machine: Machine) -> None:
        self.waiting: list[Callable[[], None]] = []
        machine.kernel.sched.call_rcu = self.waiting.append  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize(
    ("name", "choice", "waits"),
    [("x86_64", "auto", False), ("x86_64", "rcu", True), ("x86_64", "immediate", False), ("s390", "auto", True),
     ("s390", "immediate", False), ("ppc64", "auto", True), ("ppc64", "immediate", False)],
)  # fmt: skip
def test_tables_wait_for_walkers_where_the_arch_or_the_user_says_so(
    name: str, choice: str, waits: bool
) -> None:
    machine, _ = build(name, f"kernel.table_free={choice}")
    graces = Graces(machine)
    munmap_one(machine)
    assert bool(graces.waiting) == waits


def test_a_waiting_batch_keeps_its_tables_its_page_and_its_mm() -> None:
    """The mm may be gone from its slab by the time the tables are freed, and its arch keeps account of them there."""
    machine, _ = build("s390")
    kernel = machine.kernel
    before, live = kernel.free.free, kernel.mms.live
    graces = Graces(machine)
    munmap_one(machine)
    assert kernel.free.free < before
    assert kernel.mms.live == live + 1
    for callback in graces.waiting:
        callback()
    assert kernel.free.free == before
    assert kernel.mms.live == live


def test_without_a_page_for_the_batch_each_table_goes_by_itself_after_an_interrupt_to_all() -> None:
    machine, _ = build("s390")
    kernel = machine.kernel
    kernel.free.fail_next = lambda what: what == "table_batch"
    graces = Graces(machine)
    munmap_one(machine)
    assert graces.waiting == []
    # Page table, segment table and region table each interrupt the two other CPUs.
    assert kernel.sched.spent_on["ipi"] == 2 * kernel.description.costs.ipi * 2
    assert kernel.free.free == kernel.frames.count - 2 - used_by_boot(machine)


def used_by_boot(machine: Machine) -> int:
    """Frames that a machine holds before any program."""
    fresh = Machine(machine.description, machine.arch)
    return fresh.kernel.frames.count - 2 - fresh.kernel.free.free


@pytest.mark.parametrize("name", ["s390", "ppc64"])
def test_the_interrupt_waits_for_walkers_with_interrupts_off(name: str) -> None:
    """The fallback is not a grace period, yet enough for gup_fast."""
    for seed in range(6):
        machine, walkers = build(name, f"seed={seed}", driver="timed", stall=3000)
        machine.kernel.free.fail_next = lambda what: what == "table_batch"
        assert race(machine, seed)
        assert walkers.read_freed == 0


@pytest.mark.parametrize("name", ["s390", "ppc64"])
def test_without_that_interrupt_walkers_read_freed_tables(name: str) -> None:
    freed = 0
    for seed in range(6):
        machine, walkers = build(name, f"seed={seed}", driver="timed", stall=3000)
        machine.kernel.free.fail_next = lambda what: what == "table_batch"
        machine.kernel.sched.ipi = lambda mask, function, cost: 0  # type: ignore[method-assign]
        race(machine, seed)
        freed += walkers.read_freed
    assert freed


def test_gathers_at_the_same_time_are_counted_and_force_the_flush_of_everything() -> None:
    """A4.3: madvise holds mmap_lock for reading only, so two CPUs gather in one mm at once."""
    seen: list[tuple[int, bool]] = []
    description, arch = Machine.describe("x86_64", sets=["cpus=3", "memory=256 MiB"])

    def tlb_flush(tlb: mmu_gather) -> None:
        seen.append((tlb.mm.tlb_flush_pending, tlb.fullmm))
        arch.ops.tlb_flush(tlb)

    machine = Machine(description, replaced(arch, "tlb_flush", tlb_flush), driver="timed")
    mm, page = machine.new_mm(), machine.page_size
    addr = mm.mmap(512 * page, "rw")

    def madvise(cpu: int) -> None:
        chance = random.Random(cpu)
        for _ in range(20):
            machine.work(chance.randrange(200_000))
            for n in range(0, 512, 16):
                machine.cpus[cpu].store(addr + (n + cpu) * page, b"x")
            mm.madvise(addr, 512 * page, "dontneed")

    for cpu in range(3):
        machine.spawn(f"madvise/{cpu}", cpu, mm, functools.partial(madvise, cpu))
    machine.run_tasks()
    assert {pending for pending, _ in seen} >= {1, 2}
    assert all(everything for pending, everything in seen if pending > 1)
    assert mm.struct.tlb_flush_pending == 0
    mm.exit()


def test_an_unknown_gather_is_told_with_the_known_ones() -> None:
    with pytest.raises(UserMistake, match=r"kernel\.gather: unknown gather 'linkd' .*did you mean 'linked'"):
        boot(gather="linkd")


def test_table_batches_hold_what_fits_beside_their_header() -> None:
    """(PAGE_SIZE - 24) / 8."""
    assert gather.table_batch_capacity(boot()) == 509
