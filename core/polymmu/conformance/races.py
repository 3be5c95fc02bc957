"""``Races``: CPUs that run at once, under the timed driver with several seeds, watched by the sanitizer.

Lockless walkers (A8.1) read entries while others unhook and free the tables that those lead to. What keeps a table
until they are through is the arch's: a flush that waits for every CPU's interrupts, or RCU.
"""

from __future__ import annotations

import contextlib
import random
from functools import partial

import attrs

from polymmu.conformance.bench import Bench, NotApplicable, require
from polymmu.conformance.checks import Checks
from polymmu.errors import SegmentationFault
from polymmu.events import Events, Observer
from polymmu.machine import Machine

__all__ = ["Races", "race_of_walkers"]

SEEDS = 6
STALL = 3000
"""Cycles a walker waits behind each entry it has read: longer than a flush of another CPU takes."""


class Stall(Observer):
    """Holds a lockless walker up behind each entry, long enough for others to free the next table."""

    def __init__(self, made: Machine) -> None:
        self.sched = made.kernel.sched

    def lockless_read(self, mm: object, cpu: int, rank: int, entry: int, table: int) -> None:
        self.sched.spend(STALL, "stall")
        self.sched.point("stall", None)


def race_of_walkers(made: Machine, seed: int, at: int, rounds: int = 8) -> None:
    """CPU 0 maps and unmaps pages at ``at``, in tables of their own, while the other CPUs look for them without a lock.

    ``made``: a machine of the timed driver.
    """
    mm, page = made.new_mm(), made.page_size
    made.kernel.events = Events((*made.kernel.events.observers, Stall(made)))

    def unmaps() -> None:
        chance = random.Random(seed)
        for _ in range(rounds):
            mm.mmap(4 * page, at=at, fixed=True)
            made.cpus[0].store(at, b"x")
            made.work(chance.randrange(20_000))
            mm.munmap(at, 4 * page)

    def walks(cpu: int) -> None:
        chance = random.Random(seed * 3 + cpu)
        for _ in range(20 * rounds):
            with contextlib.suppress(SegmentationFault):
                mm.put(mm.gup_fast(at, chance.random() < 0.5))
            made.work(chance.randrange(2000))

    made.spawn("unmaps", 0, mm, unmaps)
    for cpu in range(1, len(made.cpus)):
        made.spawn(f"walks {cpu}", cpu, mm, partial(walks, cpu))
    made.run_tasks()
    mm.exit()


class Races(Checks):
    """At once."""

    def test_no_table_is_freed_under_a_lockless_walk(self, bench: Bench) -> None:
        cpu = bench.world().kernel.cpus[0]
        mm = bench.world().machine.new_mm().struct
        if not bench.arch.ops.gup_fast_begin(cpu, mm):
            raise NotApplicable("nobody walks its tables without a lock (gup_fast_begin answers no)")
        if "tables_freed_early" in bench.deviations:
            raise NotApplicable("it declares that tables are freed early")
        windows = bench.windows()
        places = [window for window in windows if window.name.startswith("boundary")] or windows
        for seed in range(SEEDS):
            description = attrs.evolve(bench.description, cpus=3, seed=seed)
            made = Machine(description, bench.arch, driver="timed", sanitize=True)
            race_of_walkers(made, seed, places[seed % len(places)].start)
            assert made.sanitizer is not None
            made.sanitizer.finish()
            found = [*map(str, made.sanitizer.violations), *made.sanitizer.balance()]
            require(not found, f"seed {seed}: {found[0] if found else ''}")
