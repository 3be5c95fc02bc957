"""A lock per pte table (Linux 2.6.15) or one per mm: who waits for whom, in which order, and when a lock is gone."""

from __future__ import annotations

import functools

import pytest

import polymmu_history
from polymmu.machine import Machine
from polymmu.mm.mm import mmput
from polymmu.mm.ptlock import SplitTableLocks
from polymmu.mm.tables import find_entry, pte_lock, pte_lock_second, pte_unlock, pte_unlock_second, table_at
from polymmu.sched.lockdep import Lockdep, LockMistake
from polymmu.structs import mm_struct
from tests.mm.toy import PAGE, PMD, PUD, add_vma, boot, new_mm, touch

ARCHES = ["x86_64", "x86", "ia64", "ppc64", "s390", "sparc64"]


def machine(name: str, lock: str, cpus: int = 4) -> Machine:
    description, arch = Machine.describe(
        name, sets=["memory=256 MiB", f"cpus={cpus}", f"kernel.page_table_lock={lock}"]
    )
    return Machine(description, arch, driver="timed", sanitize=True)


def locks_of(mm: mm_struct) -> dict[int, object]:
    """Every pte table's lock that exists, by frame."""
    locks: dict[int, object] = mm.kernel.variants.page_table_lock._locks
    return locks


def test_a_machine_file_names_which() -> None:
    assert type(boot().variants.page_table_lock) is SplitTableLocks
    assert type(boot(page_table_lock="mm").variants.page_table_lock) is polymmu_history.MmTableLock


# ------------------------------------------------------------------ its life
def test_a_lock_is_made_with_its_table_and_gone_with_it() -> None:
    kernel = boot()
    mm = new_mm(kernel)
    add_vma(mm, 0, 2 * PMD)
    assert not locks_of(mm)
    touch(mm, 0)
    touch(mm, PMD)
    assert set(locks_of(mm)) == {find_entry(mm, at) // PAGE for at in (0, PMD)}
    mmput(mm)
    assert not locks_of(mm)


def test_a_lock_freed_while_it_is_held_is_an_error_with_both_places() -> None:
    kernel = boot()
    mm = new_mm(kernel)
    add_vma(mm, 0, PMD)
    touch(mm, 0)
    ptep = find_entry(mm, 0)
    kernel.sched.lockdep = Lockdep(kernel.sched)
    pte_lock(mm, ptep)
    with pytest.raises(
        LockMistake, match=r"pte_lock freed while it is held .*test_ptlock.*test_a_lock_freed"
    ):
        kernel.variants.page_table_lock.table_gone(mm, table_at(mm, ptep))


def test_a_table_that_lost_the_race_takes_its_lock_along() -> None:
    """A8.7: the loser frees its own table, with its destructor."""
    made = machine("x86_64", "split", cpus=2)
    kernel = made.kernel
    mm = made.new_mm()
    va = mm.mmap(2 * made.page_size, at=1 << 30, fixed=True)

    def body(cpu: int) -> None:
        made.cpus[cpu].store(va + cpu * made.page_size, b"x")

    for cpu in range(2):
        made.spawn(f"t{cpu}", cpu, mm, functools.partial(body, cpu))
    made.run_tasks()
    assert (
        made.counters.sections()["pages"]["allocated"] > made.counters.sections()["tables"]["allocated"] + 2
    )
    assert len(locks_of(mm.struct)) == 1
    mm.exit()
    assert not kernel.variants.page_table_lock._locks
    assert not made.sanitizer.violations  # type: ignore[union-attr]


# ------------------------------------------------------------------ who waits
def waits(name: str, lock: str, apart: int) -> dict[str, int]:
    """Four CPUs fault pages in, each in its own part of one mm, ``apart`` bytes from the next; the longest waits."""
    made = machine(name, lock)
    mm, page = made.new_mm(), made.page_size
    va = mm.mmap(4 * apart, "rw", at=apart * 8, fixed=True)
    pages = 12

    def body(cpu: int) -> None:
        for n in range(pages):
            made.cpus[cpu].store(va + cpu * apart + n * page, b"x")

    for cpu in range(4):
        made.spawn(f"t{cpu}", cpu, mm, functools.partial(body, cpu))
    made.run_tasks()
    # Counters that the one lock used to guard.
    assert mm.struct.anon_rss == 4 * pages
    assert sum(mm.struct.nr_tables) >= 4
    assert not made.sanitizer.violations  # type: ignore[union-attr]
    latency = made.kernel.sched.latency()["max_lock_wait"]
    mm.exit()
    assert isinstance(latency, dict)
    return latency


def test_faults_in_different_tables_wait_for_each_other_only_below_the_mms_lock() -> None:
    """Entering a page below the lock must cost something for a wait to show: on ppc64 it does (the hash table)."""
    span = 1 << 30
    assert waits("ppc64", "split", span)["pte_lock"] == 0
    below_one = waits("ppc64", "mm", span)
    assert "pte_lock" not in below_one
    assert below_one["page_table_lock"] > 0


@pytest.mark.parametrize("name", ARCHES)
def test_counters_are_right_with_a_lock_per_table_on_every_arch(name: str) -> None:
    span = 1 << 23 if name == "x86" else 1 << 28
    waits(name, "split", span)


# ------------------------------------------------------------------ two at once
def two_tables() -> tuple[mm_struct, int, int]:
    kernel = boot()
    mm = new_mm(kernel)
    add_vma(mm, 0, PMD)
    add_vma(mm, PUD, PUD + PMD)
    touch(mm, 0)
    touch(mm, PUD)
    kernel.sched.lockdep = Lockdep(kernel.sched)
    return mm, find_entry(mm, 0), find_entry(mm, PUD)


def test_two_tables_of_one_mm_are_locked_at_once_only_by_who_may_write_its_mappings() -> None:
    """A0.1 rule c."""
    mm, first, second = two_tables()
    mm.mmap_lock.down_read()
    pte_lock(mm, first)
    with pytest.raises(LockMistake, match="two of pte_lock held without mmap_lock for writing"):
        pte_lock_second(mm, second, first)


@pytest.mark.parametrize("turned", [False, True])
def test_the_writer_locks_two_tables_in_any_order(turned: bool) -> None:
    mm, first, second = two_tables()
    if turned:
        first, second = second, first
    mm.mmap_lock.down_write()
    pte_lock(mm, first)
    pte_lock_second(mm, second, first)
    assert [lock.name for lock, _ in mm.kernel.sched.lockdep.held()] == ["mmap_lock", "pte_lock", "pte_lock"]
    pte_unlock_second(mm, second, first)
    pte_unlock(mm, first)
    mm.mmap_lock.up_write()
    assert not list(mm.kernel.sched.lockdep.held())


def test_tables_that_share_a_frame_share_its_lock() -> None:
    """s390: two tables of 2 KiB in a frame of 4 KiB; a move from one to the other takes the lock once."""
    made = machine("s390", "split", cpus=1)
    mm, page, span = made.new_mm(), made.page_size, 1 << 20
    va = mm.mmap(page, "rw", at=16 * span, fixed=True)
    made.cpus[0].switch_mm(mm)
    made.cpus[0].store(va, b"moved")
    other = mm.mmap(page, "rw", at=20 * span, fixed=True)
    made.cpus[0].store(other, b"x")
    one, two = (find_entry(mm.struct, at) for at in (va, other))
    assert one // page == two // page
    assert table_at(mm.struct, one) != table_at(mm.struct, two)
    assert len(locks_of(mm.struct)) == 1
    to = mm.mremap(va, page, page, to=20 * span + 4 * page)
    assert made.cpus[0].load(to, 5) == b"moved"
    mm.munmap(other, page)
    assert len(locks_of(mm.struct)) == 1  # the moved page's table is in the frame yet
    mm.exit()
    assert not made.sanitizer.violations  # type: ignore[union-attr]


@pytest.mark.parametrize("lock", ["split", "mm"])
@pytest.mark.parametrize("name", ARCHES)
def test_fork_move_and_unmap_at_once_leave_nothing_on_every_arch(name: str, lock: str) -> None:
    made = machine(name, lock, cpus=3)
    page = made.page_size
    mms = [made.new_mm() for _ in range(3)]

    def body(cpu: int) -> None:
        mm, here = mms[cpu % 2], made.cpus[cpu]
        for n in range(4):
            at = (64 + 64 * cpu) << 20
            mm.mmap(40 * page, "rw", at=at, fixed=True)
            for k in range(0, 40, 3):
                here.store(at + k * page, b"x")
            child = mm.fork()
            moved = mm.mremap(at, 40 * page, 40 * page, to=at + (16 << 20) + n * page)
            here.store(moved, b"y")
            mm.madvise(moved, 9 * page, "dontneed")
            mm.munmap(moved, 40 * page)
            child.exit()

    for cpu in range(3):
        made.spawn(f"t{cpu}", cpu, mms[cpu % 2], functools.partial(body, cpu))
    made.run_tasks()
    for mm in mms:
        mm.exit()
    assert not made.sanitizer.violations  # type: ignore[union-attr]
    assert made.sanitizer.balance() == []  # type: ignore[union-attr]
    assert not getattr(made.kernel.variants.page_table_lock, "_locks", None)
