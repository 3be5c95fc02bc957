"""What the mm core asks of time: the driver's interface, and the solo driver.

``solo`` runs one task to its end on whichever CPU it was started; interrupts sent to other CPUs are carried
out at once and in CPU order, which is what a machine does whose other CPUs are idle in user mode. Clocks
are per CPU and count cycles from the machine file only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polymmu.hardware.cpu import Cpu

__all__ = ["Sched"]


class Sched:
    """The solo driver, and the interface every driver has."""

    __slots__ = ("clock", "cpu", "cpus", "max_hold", "preempt_count", "resched_due", "spent_on")

    name = "solo"

    def __init__(self, cpus: Sequence[Cpu]) -> None:
        self.cpus = tuple(cpus)
        self.cpu: Cpu = self.cpus[0]
        """The CPU that runs the mm core now."""
        self.preempt_count = 0
        self.resched_due = False
        """What need_resched answers; nobody sets it under solo."""
        self.clock: list[int] = [0] * len(self.cpus)
        """Cycles of kernel work per CPU."""
        self.spent_on: dict[str, int] = {}
        """Cycles of kernel work by what they went into."""
        self.max_hold: dict[str, int] = {}
        """Longest hold of each spinlock in cycles, by name."""

    # --- points where another driver may switch
    def point(self, kind: str, what: object) -> None:
        """A visible operation is about to happen. Nobody else can run under solo."""

    def might_sleep(self, why: str) -> None:
        """Called where the code may block: an error below a spinlock or with preemption off."""
        if self.preempt_count:
            raise AssertionError(f"sleeping in atomic context: {why}")

    def cond_resched(self) -> None:
        """Give way if somebody asked. The caller holds no spinlock."""
        self.might_sleep("cond_resched")

    def need_resched(self) -> bool:
        """Whether the current task was asked to give way."""
        return self.resched_due

    def need_lockbreak(self, lock: object) -> bool:
        """Whether somebody waits for ``lock``."""
        return False

    def preempt_disable(self) -> None:
        """No task switch until ``preempt_enable``."""
        self.preempt_count += 1

    def preempt_enable(self) -> None:
        """Undo one ``preempt_disable``."""
        if not self.preempt_count:
            raise AssertionError("preempt_enable without preempt_disable")
        self.preempt_count -= 1

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

    def call_rcu(self, function: Callable[[], None]) -> None:
        """Run ``function`` after every reader that exists now has left: at once, as there are none."""
        function()

    # --- time
    def spend(self, cycles: int, what: str) -> None:
        """The current CPU works for ``cycles`` on ``what``."""
        self.clock[self.cpu.index] += cycles
        self.spent_on[what] = self.spent_on.get(what, 0) + cycles

    def latency(self) -> dict[str, object]:
        """The ``latency`` section of a report. Nobody ever waits under solo; preemption is off below spinlocks."""
        return {
            "max_lock_hold": dict(sorted(self.max_hold.items())),
            "max_lock_wait": dict.fromkeys(sorted(self.max_hold), 0),
            "max_preempt_off": max(self.max_hold.values(), default=0),
        }
