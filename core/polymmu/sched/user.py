"""User code under the timed driver: a CPU's accesses in slices, and their cycles on its clock.

Compiled replay knows no clock. So it runs a slice of accesses at a time, and what those cost (by the CPU's counters
and the machine file's costs) is charged to the CPU's clock at the slice's end, and at each fault before the handler
runs. Between two slices other CPUs go on and interrupts are taken.

A slice ends about when the next event is due, by what an access cost in the slice before: everything in one go where
nobody else can run, a few accesses while another CPU is in the kernel and may interrupt this one. Nobody knows when
other user code will fault; it is given the time of ``SLICE`` accesses.

While a fault is handled another task may run on the CPU; what the interrupted program had in the CPU is put aside
for that time. Such a fault may come again when the program goes on, as others may have undone what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from polymmu.errors import UserMistake
from polymmu.hardware.cpu import Cpu
from polymmu.sched.driver import TaskSched

__all__ = ["FEWEST", "MOST", "UserCode"]

T = TypeVar("T")

SLICE = 1000
"""Accesses of user code beside other user code: about as many cycles as half an interrupt of another CPU takes."""
FEWEST, MOST = 32, 1 << 16
"""Accesses of a slice: fewer cost more than they tell; more would keep Ctrl-C waiting."""


class UserCode:
    """What programs do on one CPU; stands in for its ``Cpu`` where accesses come from.

    A load or store of bytes on several pages is one access to each: another CPU may come between.
    """

    def __init__(self, cpu: Cpu, sched: TaskSched, cycles_of: Callable[[Cpu], int]) -> None:
        self.cpu = cpu
        self._sched = sched
        self._cycles_of = cycles_of
        self._charged = 0
        self._cost = 1, 1
        """Cycles that so many accesses took in the last slice."""

    # --- accesses, as Cpu has them
    def load(self, va: int, size: int) -> bytes:
        """The ``size`` bytes at ``va``."""
        return b"".join([self._run(self.cpu.load, at, n) for at, n in self._pieces(va, size)])

    def fetch(self, va: int, size: int) -> bytes:
        """The ``size`` bytes of instructions at ``va``."""
        return b"".join([self._run(self.cpu.fetch, at, n) for at, n in self._pieces(va, size)])

    def store(self, va: int, data: bytes) -> None:
        """Store ``data`` at ``va``."""
        for at, n in self._pieces(va, len(data)):
            self._run(self.cpu.store, at, data[at - va : at - va + n])

    def replay(self, op: NDArray[Any], vaddr: NDArray[Any], size: NDArray[Any], start: int, stop: int) -> int:
        """Do the accesses [start, stop)."""
        # Converted once: the CPU would do it for each slice, and knows a batch again by its identity.
        op, size = _ready(op, np.uint8), _ready(size, np.uint8)
        vaddr = _ready(vaddr, np.uint64)
        for low, high in self._slices(start, stop):
            self._run(self.cpu.replay, op, vaddr, size, low, high)
        return stop

    def replay_runs(
        self,
        vpn: NDArray[Any],
        data: NDArray[Any],
        write: NDArray[Any],
        count: NDArray[Any],
        start: int,
        stop: int,
    ) -> int:
        """Do the page runs [start, stop)."""
        vpn, count = _ready(vpn, np.uint64), _ready(count, np.uint32)
        data, write = _ready(data, np.uint8), _ready(write, np.uint8)
        for low, high in self._slices(start, stop):
            self._run(self.cpu.replay_runs, vpn, data, write, count, low, high)
        return stop

    def _pieces(self, va: int, size: int) -> Iterator[tuple[int, int]]:
        page = 1 << self.cpu.translation.page_shift
        end = va + size
        while True:
            n = min(end, (va | (page - 1)) + 1) - va
            yield va, n
            va += n
            if va >= end:
                return

    # --- time
    def _slices(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Parts of [start, stop), each cut off where the next event is to be expected."""
        sched, clock, index = self._sched, self._sched.clock, self.cpu.index
        while start < stop:
            cycles, accesses = self._cost
            left = sched.next_event() - clock[index] if sched.runs_tasks else MOST * cycles
            end = min(stop, start + max(FEWEST, min(MOST, left * accesses // cycles)))
            before = self._charged
            yield start, end
            self._cost = max(self._charged - before, 1), end - start
            start = end

    def _run(self, work: Callable[..., T], *args: Any) -> T:
        """``work(*args)`` as a slice of user code."""
        if not self._sched.runs_tasks:
            self._sched.cpu = self.cpu
        elif self._sched.cpu is not self.cpu:
            raise UserMistake(
                f"a task on CPU {self._sched.cpu.index} uses CPU {self.cpu.index}; a task has its own CPU only"
            )
        done: list[T] = []

        def run() -> int:
            try:
                done.append(work(*args))
            finally:
                self._charge()
            return 0

        cycles, accesses = self._cost
        self._sched.user(run, SLICE * cycles // accesses)
        return done[0]

    def _charge(self) -> None:
        """Cycles of accesses since the last time go to the clock."""
        cycles = self._cycles_of(self.cpu)
        self._sched.clock[self.cpu.index] += cycles - self._charged
        self._charged = cycles

    def trap(self, handler: Callable[[], None]) -> None:
        """A program's access faulted: ``handler`` runs as kernel code, and others may run meanwhile."""
        self._charge()
        suspended, switches = self.cpu.suspend(), self._sched.switches
        try:
            self._sched.trap(handler)
        finally:
            self.cpu.resume(suspended, may_fault_again=self._sched.switches != switches)


def _ready(column: NDArray[Any], kind: type) -> NDArray[Any]:
    """A column that ``Cpu`` takes as it is."""
    ready: NDArray[Any] = np.ascontiguousarray(column, dtype=kind)
    return ready if ready.flags.writeable else ready.copy()
