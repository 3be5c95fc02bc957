"""User code under the timed driver stops where something may happen, and goes on in one go where nothing can."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from polymmu.machine import Machine
from polymmu.sched.timed import TimedSched
from polymmu.sched.user import FEWEST, MOST
from tests.sched.test_timed import driver

ACCESS = 10
"""Cycles of a load that hits its TLB."""


def interrupts(sched: TimedSched, after: int, heard: list[int]) -> Callable[[], None]:
    """A task that interrupts CPU 1 after so many cycles; what it costs is 2,000, half of it on either side.

    It notes when it was sent, handled and acknowledged.
    """

    def body() -> None:
        sched.sleep(after)
        heard.append(sched.clock[0])
        sched.ipi(0b10, lambda cpu: heard.append(sched.clock[cpu.index]), 2000)
        heard.append(sched.clock[0])

    return body


def test_an_interrupt_does_not_wait_for_the_end_of_a_computation() -> None:
    sched = driver(2)
    heard: list[int] = []
    sched.spawn("interrupts", 0, interrupts(sched, 10_000, heard))
    sched.spawn("computes", 1, lambda: sched.user(lambda: 100_000))
    sched.run()
    assert heard == [10_000, 12_000, 12_000]  # due at 11,000, handled for 1,000
    assert sched.clock[1] == 101_000  # the handler's time comes on top


def test_two_computations_pass_in_one_go_each() -> None:
    sched = driver(2)
    for cpu in (0, 1):
        sched.spawn(f"computes {cpu}", cpu, lambda: sched.user(lambda: 1_000_000))
    sched.run()
    assert sched.clock == [1_000_000, 1_000_000]
    assert sched.switches <= 8


def test_a_computation_gives_the_cpu_to_a_task_that_waits_for_it_when_its_slice_is_over() -> None:
    sched = driver(1)
    sched.timeslice = 10_000
    order = []

    def computes() -> None:
        sched.user(lambda: 50_000)
        order.append(("computed", sched.clock[0]))

    def waits() -> None:
        sched.sleep(5000)
        order.append(("waited", sched.clock[0]))
        sched.spend(7000, "work")

    sched.spawn("waits", 0, waits)
    sched.spawn("computes", 0, computes)
    sched.run()
    # The computation begins at 0, is asked to give way at its end only if nothing happens before; the sleeper is ready
    # at 5,000, and the slice is over at 10,000.
    assert dict(order)["computed"] >= 50_000
    assert sched.clock[0] == 57_000


def program(cpus: int) -> tuple[Machine, Callable[[int], None]]:
    """A machine with a program on its last CPU, and what loads from one page of it so often."""
    sets = [f"cpus={cpus}", "memory=64 MiB", f"costs.access={ACCESS}", "costs.ipi=2000"]
    made = Machine.from_file("x86_64", sets=sets, driver="timed")
    mm = made.new_mm()
    va = mm.mmap(made.page_size, populate=True)

    def loads(n: int) -> None:
        op, size = np.ones(n, dtype=np.uint8), np.ones(n, dtype=np.uint8)
        made.cpus[-1].replay(op, np.full(n, va, dtype=np.uint64), size, 0, n)

    made.spawn("loads", cpus - 1, mm, lambda: loads(40_000))
    return made, loads


@pytest.mark.parametrize("after", [50_000, 123_456])
def test_the_acknowledgement_of_an_interrupt_does_not_wait_for_a_whole_slice(after: int) -> None:
    made, _ = program(2)
    sched = made.kernel.sched
    assert isinstance(sched, TimedSched)
    heard: list[int] = []
    made.spawn("interrupts", 0, None, interrupts(sched, after, heard))
    made.run_tasks()
    sent, handled, acknowledged = heard
    assert handled == acknowledged
    assert 0 <= handled - sent - 2000 <= FEWEST * ACCESS


def test_where_nobody_else_can_run_a_slice_is_as_long_as_it_may_be() -> None:
    made, _ = program(1)
    sched = made.kernel.sched
    assert isinstance(sched, TimedSched)
    slices = []
    user = sched.user

    def counted(work: Callable[[], int], more: int = 0) -> None:
        slices.append(work)
        user(work, more)

    sched.user = counted  # type: ignore[method-assign]
    made.run_tasks()
    assert MOST > 40_000
    assert len(slices) <= 2
