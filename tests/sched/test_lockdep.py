"""The order of locks and the rules of holding them: each mistake is named with both places, before anybody hangs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from polymmu.machine import Machine
from polymmu.sched.driver import Sched
from polymmu.sched.lockdep import Lockdep, LockMistake, Mistake
from polymmu.sched.locks import Mutex, RwSem, Spinlock
from polymmu.sched.timed import TimedSched


def cpus(n: int) -> Any:
    return cast(Any, [SimpleNamespace(index=index, interrupts_enabled=True) for index in range(n)])


@pytest.fixture
def sched() -> Sched:
    return Sched(cpus(1))


@pytest.fixture
def told(sched: Sched) -> list[Mistake]:
    mistakes: list[Mistake] = []
    sched.lockdep = Lockdep(sched, mistakes.append)
    return mistakes


def nest(*locks: Spinlock | Mutex) -> None:
    for lock in locks:
        lock.lock()
    for lock in reversed(locks):
        lock.unlock()


def test_an_order_kept_is_no_mistake(sched: Sched, told: list[Mistake]) -> None:
    a, b, c = Mutex(sched, "a"), Mutex(sched, "b"), Spinlock(sched, "c")
    for _ in range(3):
        nest(a, b, c)
        nest(a, c)
        nest(b, c)
    assert told == []


def test_an_inversion_is_named_although_nobody_waits(sched: Sched, told: list[Mistake]) -> None:
    a, b = Spinlock(sched, "a"), Spinlock(sched, "b")
    nest(a, b)
    assert told == []
    nest(b, a)
    (mistake,) = told
    assert mistake.invariant == "INV-LOCK"
    assert mistake.text.startswith("lock order turned round: a inside b, but b inside a at test_lockdep.py:")
    assert mistake.first.endswith(" nest")
    assert mistake.second.startswith("test_lockdep.py:")


def test_a_circle_over_three_classes_is_an_inversion(sched: Sched, told: list[Mistake]) -> None:
    a, b, c = (Mutex(sched, name) for name in "abc")
    nest(a, b)
    nest(b, c)
    nest(c, a)
    assert [mistake.text.split(" at ")[0] for mistake in told] == [
        "lock order turned round: a inside c, but b inside a"
    ]
    assert "c inside b at" in told[0].text


def test_the_same_inversion_is_told_once(sched: Sched, told: list[Mistake]) -> None:
    a, b = Spinlock(sched, "a"), Spinlock(sched, "b")
    for _ in range(5):
        nest(a, b)
        nest(b, a)
    assert len(told) == 1


def test_locks_of_one_name_are_one_class(sched: Sched, told: list[Mistake]) -> None:
    a, first, second = Mutex(sched, "a"), Mutex(sched, "of an mm"), Mutex(sched, "of an mm")
    nest(a, first)
    nest(second, a)
    assert len(told) == 1


def test_two_of_one_class_need_nested(sched: Sched, told: list[Mistake]) -> None:
    parent, child = Spinlock(sched, "page_table_lock"), Spinlock(sched, "page_table_lock")
    parent.lock()
    child.lock(nested=True)
    child.unlock()
    assert told == []
    child.lock()
    assert [mistake.text.split(" (")[0] for mistake in told] == [
        "two of page_table_lock held, in no order that is known"
    ]


def test_a_trylock_is_no_edge_for_it_never_waits(sched: Sched, told: list[Mistake]) -> None:
    a, b = Spinlock(sched, "a"), Spinlock(sched, "b")
    nest(a, b)
    b.lock()
    assert a.trylock()
    a.unlock()
    b.unlock()
    assert told == []


def test_what_is_taken_below_a_trylocked_lock_is_an_edge(sched: Sched, told: list[Mistake]) -> None:
    a, b = Spinlock(sched, "a"), Spinlock(sched, "b")
    assert a.trylock()
    nest(b)
    a.unlock()
    nest(b, a)
    assert len(told) == 1


def test_a_recursive_take_is_named_before_it_hangs(sched: Sched) -> None:
    sched.lockdep = Lockdep(sched)
    lock = Spinlock(sched, "page_table_lock")
    lock.lock()
    with pytest.raises(LockMistake, match="page_table_lock taken again by who holds it"):
        lock.lock()


def test_reading_twice_is_recursive_too_for_a_writer_may_queue_between(sched: Sched) -> None:
    sched.lockdep = Lockdep(sched)
    lock = RwSem(sched, "mmap_lock")
    lock.down_read()
    with pytest.raises(LockMistake, match="mmap_lock taken again by who holds it"):
        lock.down_read()


@pytest.mark.parametrize("kind", [Spinlock, Mutex])
def test_a_double_unlock_is_named(sched: Sched, kind: type[Spinlock] | type[Mutex]) -> None:
    sched.lockdep = Lockdep(sched)
    lock = kind(sched, "a")
    nest(lock)
    with pytest.raises(LockMistake, match="a released by who does not hold it"):
        lock.unlock()


def test_a_read_hold_given_back_by_another_task_is_named() -> None:
    sched = TimedSched(cpus(2))
    mistakes: list[Mistake] = []
    sched.lockdep = Lockdep(sched, mistakes.append)
    lock = RwSem(sched, "mmap_lock")

    def reads() -> None:
        lock.down_read()
        sched.spend(1000, "work")

    def thief() -> None:
        sched.spend(500, "work")
        sched.point("late", None)
        lock.up_read()

    sched.spawn("reads", 0, reads)
    sched.spawn("thief", 1, thief)
    sched.run()
    assert [mistake.text.split(" (")[0] for mistake in mistakes] == [
        "mmap_lock released by who does not hold it"
    ]
    assert mistakes[0].first.endswith(" reads")
    assert mistakes[0].second.endswith(" thief")


def test_tasks_that_turn_an_order_round_are_named_though_they_never_meet() -> None:
    sched = TimedSched(cpus(2))
    mistakes: list[Mistake] = []
    sched.lockdep = Lockdep(sched, mistakes.append)
    a, b = Mutex(sched, "a"), Mutex(sched, "b")

    def late() -> None:
        sched.spend(100_000, "work")
        nest(b, a)

    sched.spawn("early", 0, lambda: nest(a, b))
    sched.spawn("late", 1, late)
    sched.run()
    assert len(mistakes) == 1


def test_sleeping_below_a_spinlock_names_the_lock(sched: Sched, told: list[Mistake]) -> None:
    spin, mutex = Spinlock(sched, "page_table_lock"), Mutex(sched, "i_mmap_lock")
    spin.lock()
    with pytest.raises(AssertionError, match="sleeping in atomic context"):
        mutex.lock()
    (mistake,) = told
    assert mistake.invariant == "INV-ATOMIC"
    assert "may sleep (i_mmap_lock) in atomic context below page_table_lock" in mistake.text


def test_sleeping_with_interrupts_off_is_named() -> None:
    two = cpus(1)
    sched = TimedSched(two)
    mistakes: list[Mistake] = []
    sched.lockdep = Lockdep(sched, mistakes.append)
    two[0].interrupts_enabled = False
    with pytest.raises(AssertionError, match="interrupts off"):
        sched.might_sleep("reading a page")
    assert [mistake.invariant for mistake in mistakes] == ["INV-ATOMIC"]


def test_who_holds_what_can_be_asked(sched: Sched, told: list[Mistake]) -> None:
    a, b = Mutex(sched, "a"), Mutex(sched, "b")
    a.lock()
    nest(b)
    assert [lock for lock, _ in sched.lockdep.held()] == [a]


@pytest.mark.parametrize("driver", ["solo", "timed"])
def test_the_mm_core_keeps_one_order(driver: str) -> None:
    description, arch = Machine.describe("x86_64", sets=["cpus=1"])
    machine = Machine(description, arch, driver=driver)
    sched = machine.kernel.sched
    sched.lockdep = Lockdep(sched)
    mm, file = machine.new_mm(), machine.new_file(16 * machine.page_size)
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    size = 16 * machine.page_size
    private, shared = mm.mmap(size), mm.mmap(size, file=file, shared=True)
    cpu.store(private, b"x" * size)
    cpu.store(shared, b"x" * size)
    child = mm.fork()
    cpu.store(private, b"y" * size)
    child.exit()
    mm.mremap(private, size, 4 * size)
    file.truncate(0)
    mm.exit()
    assert list(sched.lockdep.held()) == []
    assert {"page_table_lock", "pte_lock"} <= set(sched.lockdep.order["mmap_lock"])
    assert "pte_lock" in sched.lockdep.order["i_mmap_lock"]
    assert "pte_lock" not in sched.lockdep.order.get("page_table_lock", {})
