"""The timed driver by hand: what happens in virtual time, worked out on paper, with CPUs that only have an index."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from polymmu.sched.locks import Mutex, RwSem, Spinlock
from polymmu.sched.timed import Deadlock, TimedSched


class BareCpu:
    """What the driver needs of a CPU."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.interrupts_enabled = True


def driver(cpus: int = 2, seed: int = 0) -> TimedSched:
    bare: list[Any] = [BareCpu(index) for index in range(cpus)]
    return TimedSched(bare, seed)


def holder(
    sched: TimedSched, lock: Spinlock | Mutex, cycles: int, log: list[tuple[int, int]]
) -> Callable[[], None]:
    """A task that takes ``lock``, works below it, and notes when it held it."""

    def body() -> None:
        lock.lock()
        start = sched.clock[sched.cpu.index]
        sched.spend(cycles, "work")
        log.append((start, sched.clock[sched.cpu.index]))
        lock.unlock()

    return body


@pytest.mark.parametrize("kind", [Spinlock, Mutex])
@pytest.mark.parametrize("seed", range(5))
def test_holds_of_one_lock_never_overlap_in_time_and_waits_are_as_long_as_the_holds_before(
    kind: type[Spinlock | Mutex], seed: int
) -> None:
    sched = driver(3, seed)
    lock, log = kind(sched, "a"), list[tuple[int, int]]()
    for cpu in range(3):
        for n in range(2):
            sched.spawn(f"{cpu}.{n}", cpu, holder(sched, lock, 100, log))
    sched.run()
    log.sort()
    assert [end - start for start, end in log] == [100] * 6
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(log))
    if seed == 0:
        # Spinning keeps the CPU: three ask at time 0, the last waits for two holds. Sleeping lets the next ask: on the
        # holder's CPU that is at 100, behind four that asked at 0.
        assert sched.max_wait["a"] == (200 if kind is Spinlock else 400)


def test_a_spinlock_passes_to_waiters_in_the_order_they_came() -> None:
    sched = driver(3)
    lock, order = Spinlock(sched, "a"), list[int]()

    def body(cpu: int) -> Callable[[], None]:
        def run() -> None:
            sched.spend(10 * cpu, "before")
            lock.lock()
            order.append(cpu)
            sched.spend(1000, "work")
            lock.unlock()

        return run

    for cpu in (2, 0, 1):
        sched.spawn(f"t{cpu}", cpu, body(cpu))
    sched.run()
    assert order == [0, 1, 2]


def test_a_reader_behind_a_waiting_writer_waits_and_readers_share() -> None:
    sched = driver(3)
    sem, log = RwSem(sched, "mmap_lock"), list[tuple[str, int, int]]()

    def reader(name: str, after: int) -> Callable[[], None]:
        def run() -> None:
            sched.spend(after, "before")
            sem.down_read()
            start = sched.clock[sched.cpu.index]
            sched.spend(100, "read")
            log.append((name, start, sched.clock[sched.cpu.index]))
            sem.up_read()

        return run

    def writer() -> None:
        sched.spend(10, "before")
        sem.down_write()
        start = sched.clock[sched.cpu.index]
        sched.spend(50, "write")
        log.append(("w", start, sched.clock[sched.cpu.index]))
        sem.up_write()

    sched.spawn("r0", 0, reader("r0", 0))
    sched.spawn("w", 1, writer)
    sched.spawn("r2", 2, reader("r2", 20))
    sched.run()
    assert sorted(log, key=lambda row: row[1]) == [("r0", 0, 100), ("w", 100, 150), ("r2", 150, 250)]


def test_two_tasks_that_wait_for_each_other_are_told_with_the_place_of_both() -> None:
    sched = driver()
    a, b = Spinlock(sched, "a"), Spinlock(sched, "b")

    def both(first: Spinlock, second: Spinlock) -> Callable[[], None]:
        def run() -> None:
            first.lock()
            sched.spend(10, "work")
            second.lock()

        return run

    sched.spawn("x", 0, both(a, b))
    sched.spawn("y", 1, both(b, a))
    with pytest.raises(Deadlock) as told:
        sched.run()
    text = str(told.value)
    assert "x on CPU 0 is spinning, waits for b, held by y" in text
    assert "y on CPU 1 is spinning, waits for a, held by x" in text
    assert text.count("test_timed.py") == 2


def test_an_interrupt_waits_until_interrupts_are_on_and_its_sender_for_the_acknowledgement() -> None:
    sched = driver()
    handled: list[int] = []

    def deaf() -> None:
        sched.cpu.interrupts_enabled = False
        sched.spend(5000, "work")
        sched.point("read", None)
        assert not handled
        sched.cpu.interrupts_enabled = True
        sched.point("read", None)

    def sender() -> None:
        sched.ipi(0b11, lambda cpu: handled.append(sched.clock[cpu.index]), 1000)
        assert handled
        assert sched.clock[sched.cpu.index] >= handled[0]

    sched.spawn("deaf", 0, deaf)
    sched.spawn("sender", 1, sender)
    sched.run()
    assert handled[0] >= 5000


def test_waiting_for_other_cpus_with_interrupts_off_is_refused() -> None:
    sched = driver()

    def body() -> None:
        sched.cpu.interrupts_enabled = False
        sched.ipi(0b11, lambda cpu: None, 10)

    sched.spawn("t", 0, body)
    with pytest.raises(AssertionError, match="interrupts off"):
        sched.run()


def test_an_rcu_callback_runs_only_after_every_cpu_has_left_what_it_was_in() -> None:
    sched = driver()
    freed: list[int] = []

    def reader() -> None:
        sched.cpu.interrupts_enabled = False
        for _ in range(10):
            sched.spend(100, "walk")
            sched.point("read", None)
            assert not freed
        sched.cpu.interrupts_enabled = True

    def freer() -> None:
        sched.spend(50, "work")
        sched.call_rcu(lambda: freed.append(1))

    sched.spawn("reader", 0, reader)
    sched.spawn("freer", 1, freer)
    sched.run()
    assert freed == [1]


def test_two_runs_are_alike_and_another_seed_may_differ() -> None:
    def history(seed: int) -> list[tuple[int, int]]:
        sched = driver(3, seed)
        lock, log = Spinlock(sched, "a"), list[tuple[int, int]]()
        for cpu in range(3):
            sched.spawn(str(cpu), cpu, holder(sched, lock, 70 + cpu, log))
        sched.run()
        return log

    assert history(1) == history(1)
    assert len({tuple(history(seed)) for seed in range(6)}) > 1
