"""What the mm core asks of time: the interface every driver has, and the solo driver.

``solo`` runs one task to its end on whichever CPU it was started; interrupts sent to other CPUs are carried
out at once and in CPU order, which is what a machine does whose other CPUs are idle in user mode. Clocks
are per CPU and count cycles from the machine file only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polymmu.hardware.cpu import Cpu

if TYPE_CHECKING:
    from polymmu.sched.locks import Lock

__all__ = ["Sched", "TaskSched"]


class Sched:
    """The solo driver, and the interface every driver has."""

    name = "solo"
    tells_places = True
    """Whether whoever watches is told where in the code things happen; finding out takes longer than most of them."""
    runs_tasks = False
    """Whether the caller is a task that shares the machine with others."""

    def __init__(self, cpus: Sequence[Cpu]) -> None:
        self.cpus = tuple(cpus)
        self.cpu: Cpu = self.cpus[0]
        """The CPU that runs the mm core now."""
        self.context: Any = self
        """Who runs there: holds locks."""
        self.preemptible = True
        """Whether the kernel is built to be preempted: only then may who waits for a lock ask for it."""
        self.preempt_count = 0
        self.preempt_since = 0
        self.max_preempt_off = 0
        self.clock: list[int] = [0] * len(self.cpus)
        """Cycles per CPU: of kernel work, and of user work where a driver times it."""
        self.spent_on: dict[str, int] = {}
        """Cycles of kernel work by what they went into."""
        self.max_hold: dict[str, int] = {}
        """Longest hold of each spinlock in cycles, by name."""
        self.max_wait: dict[str, int] = {}
        """Longest wait for each lock in cycles, by name."""
        self.lockdep: Any = None
        """Who checks the order of locks (``sched.lockdep``), if anybody."""

    # --- points where another driver may switch
    def point(self, kind: str, what: object) -> None:
        """A visible operation is about to happen. Nobody else can run under solo."""

    def atomic(self) -> None:
        """The change of a shared field that follows is one atomic instruction, and a full barrier: a bit set or
        cleared, a number added (``x.f += 1``), or a new value. Alone a CPU notices no difference."""

    def smp_mb(self) -> None:
        """A full barrier: what this CPU stored is seen by all before it goes on."""

    def frames_put(self, pfns: NDArray[np.int64]) -> None:
        """Somebody gives up a hold on each of these frames, or tries to get one: part of the operation in progress."""

    def might_sleep(self, why: str) -> None:
        """Called where the code may block: an error below a spinlock or with preemption or interrupts off."""
        if self.preempt_count:
            if self.lockdep is not None:
                self.lockdep.sleeping(why, "in atomic context")
            raise AssertionError(f"sleeping in atomic context: {why}")

    def cond_resched(self) -> None:
        """Give way if somebody asked. The caller holds no spinlock."""
        self.might_sleep("cond_resched")

    def need_resched(self) -> bool:
        """Whether the current task was asked to give way; nobody asks under solo."""
        return False

    def need_lockbreak(self, lock: Lock) -> bool:
        """Whether somebody waits for ``lock``, and may ask."""
        return self.preemptible and bool(lock.waiters)

    def preempt_disable(self) -> None:
        """No task switch until ``preempt_enable``."""
        if not self.preempt_count:
            self.preempt_since = self.clock[self.cpu.index]
        self.preempt_count += 1

    def preempt_enable(self) -> None:
        """Undo one ``preempt_disable``."""
        self.preempt_count -= 1
        if self.preempt_count <= 0:
            if self.preempt_count < 0:
                raise AssertionError("preempt_enable without preempt_disable")
            cycles = self.clock[self.cpu.index] - self.preempt_since
            self.max_preempt_off = max(self.max_preempt_off, cycles)

    # --- waiting
    def sleep(self, cycles: int) -> None:
        """The current task sleeps for so many cycles; others may run on its CPU."""
        self.might_sleep("sleep")
        self.clock[self.cpu.index] += cycles

    def wait(self, lock: Lock) -> None:
        """The current context, last in the lock's queue, waits until it was handed the lock."""
        raise AssertionError(f"{lock.name}: taken twice, or never released")

    def wake(self, context: object) -> None:
        """``context`` was handed what it waits for."""

    # --- other CPUs
    def ipi(self, mask: int, function: Callable[[Cpu], None], cost: int) -> int:
        """Run ``function`` on every CPU of ``mask`` but the current one, wait until all have; their number.

        ``cost`` cycles are spent by the sender per CPU interrupted.
        """
        others = [cpu for cpu in self.cpus if mask >> cpu.index & 1 and cpu is not self.cpu]
        for cpu in others:
            function(cpu)
        if others:
            self.spend(cost * len(others), "ipi")
        return len(others)

    def cross_call(self, mask: int, function: Callable[[Cpu], None], cost: int) -> int:
        """As ``ipi``, by an interrupt that no CPU holds back: it is taken also where interrupts are off."""
        return Sched.ipi(self, mask, function, cost)

    def call_rcu(self, function: Callable[[], None]) -> None:
        """Run ``function`` after every reader that exists now has left: at once, as there are none."""
        function()

    # --- time
    def spend(self, cycles: int, what: str) -> None:
        """The current CPU works for ``cycles`` on ``what``."""
        self.clock[self.cpu.index] += cycles
        self.spent_on[what] = self.spent_on.get(what, 0) + cycles

    def latency(self) -> dict[str, object]:
        """The ``latency`` section of a report."""
        waits = dict.fromkeys(self.max_hold, 0) | self.max_wait
        return {
            "max_lock_hold": dict(sorted(self.max_hold.items())),
            "max_lock_wait": dict(sorted(waits.items())),
            "max_preempt_off": self.max_preempt_off,
        }


class TaskSched(Sched):
    """A driver that runs tasks."""

    switches = 0
    """How often the simulation went from one task to another."""
    went_idle: Callable[[Cpu], None] | None = None
    """Told of a CPU that has nothing left to run."""

    def next_event(self) -> int:
        """When, on this CPU's clock, user code has to stop for others to be let in."""
        raise NotImplementedError

    def spawn(
        self, name: str, cpu: int, body: Callable[[], None], switched_to: Callable[[], None] | None = None
    ) -> Any:
        """A new task on CPU ``cpu``; ``switched_to`` is called on its CPU each time it begins or goes on there."""
        raise NotImplementedError

    def user(self, work: Callable[[], int], more: int = 0) -> None:
        """Run user code: ``work`` does some of it and returns the cycles it took.

        ``more``: cycles for which others need not expect anything but more of the same.
        """
        raise NotImplementedError

    def trap(self, handler: Callable[[], None]) -> None:
        """Run kernel code that user code, inside ``user``, trapped into."""
        raise NotImplementedError

    def block(self, what: object, idle: bool = True) -> None:
        """The current task sleeps until somebody calls ``wake`` for it; ``what`` it waits for is told in a deadlock.

        ``idle`` False: its CPU does not count as idle meanwhile.
        """
        raise NotImplementedError
