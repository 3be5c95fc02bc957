"""The machines the claims are measured on, and what several of them do there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from polymmu.api import Machine
from polymmu.registry import replaced
from polymmu.sched.timed import TimedSched

__all__ = [
    "BASE",
    "GENERATIONS",
    "MACHINES",
    "RCU_AGE",
    "clock_of",
    "hold",
    "longest",
    "made",
    "sched_of",
    "several",
]

MACHINES = ("x86", "x86_64", "ia64", "ppc64", "sparc64", "s390")
"""The plain machine of each architecture."""

GENERATIONS: dict[str, tuple[str, ...]] = {
    "percpu": ("kernel.gather=percpu", "kernel.i_mmap_lock=spin"),
    "stack": ("kernel.gather=stack",),
    "linked": (),
}
"""How pages are gathered, by age: settings of the machine file."""

RCU_AGE: dict[str, tuple[str, ...]] = {"sparc64": ("sparc64.upper_entries=64",)}
"""Settings of machines whose plain form is older than lockless walks (sparc64: Linux 3.1)."""

TABLE_LOCKS = ("page_table_lock", "pte_lock")
"""The mm's one, and those of single tables."""

BASE = 1 << 30
"""Where things are mapped: at the beginning of a page table on every machine, and above any program's own."""


def made(
    name: str,
    *sets: str,
    cpus: int = 2,
    driver: str = "timed",
    sanitize: bool = False,
    seed: int = 0,
    **hooks: Callable[..., Any],
) -> Machine:
    """The machine ``name`` with its settings; ``hooks`` are answered otherwise than its architecture does."""
    description, arch = Machine.describe(name, sets=[f"cpus={cpus}", "memory=1 GiB", f"seed={seed}", *sets])
    for hook, function in hooks.items():
        arch = replaced(arch, hook, function)
    return Machine(description, arch, driver=driver, sanitize=sanitize)


def sched_of(machine: Machine) -> TimedSched:
    """Who keeps a timed machine's clocks."""
    sched = machine.kernel.sched
    assert isinstance(sched, TimedSched)
    return sched


def clock_of(machine: Machine, cpu: int) -> int:
    """Cycles that have passed on a CPU."""
    return machine.kernel.sched.clock[cpu]


def hold(machine: Machine) -> int:
    """Longest hold of a lock of page tables so far, in cycles."""
    return longest(machine.kernel.sched.max_hold)


def longest(cycles: Mapping[str, int]) -> int:
    """The longest of what is known by lock, of the locks of page tables."""
    return max(cycles.get(lock, 0) for lock in TABLE_LOCKS)


def several(n: int, one: str, more: str = "") -> str:
    """``3 CPUs``."""
    return f"{n:,} {one if n == 1 else more or one + 's'}"
