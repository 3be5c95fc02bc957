"""Page tables freed right after the flush or after a grace period: what keeps gup_fast safe, and its price (A4.4)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.claims.machines import BASE, RCU_AGE, clock_of, made
from benchmarks.claims.model import Claim, Effort, Row, Verdict
from polymmu.errors import SegmentationFault
from polymmu.events import Events, Observer
from polymmu.machine import Machine, Mm
from polymmu.structs import mm_struct

__all__ = ["CLAIM", "race"]

WALKS, BROKEN, HELD, CYCLES, IPIS = (
    "lockless walks",
    "violations",
    "tables held, peak",
    "cycles a munmap",
    "CPUs interrupted",
)
STALL = 3000
"""Cycles a walker may be held up behind one entry: longer than an interrupt takes to be answered."""
STALLS = 0, STALL, 100_000
TABLES, ROUNDS = 16, 8


class Walkers(Observer):
    """Counts lockless walks, and with ``stall`` holds each up behind every entry it has read."""

    def __init__(self, machine: Machine, stall: int) -> None:
        self.sched = machine.kernel.sched
        self.stall = stall
        self.walks = 0

    def lockless_read(self, mm: object, cpu: int, rank: int, entry: int, table: int) -> None:
        self.walks += table >= 0 and rank == -mm_levels(mm)
        self.sched.spend(self.stall, "stall")
        self.sched.point("stall", None)


def mm_levels(mm: Any) -> int:
    levels: int = mm.layout.levels
    return levels


class HeldTables(Observer):
    """Tables that were unhooked and are not free yet, at the peak."""

    def __init__(self) -> None:
        self.waiting: set[int] = set()
        self.peak = 0

    def table_freed(self, mm: Any, level: int, table: int, size: int) -> None:
        if level:
            self.waiting.add(table)
            self.peak = max(self.peak, len(self.waiting))

    def watching(self, table_free: Callable[..., None]) -> Callable[..., None]:
        """The architecture's hook, seen."""

        def watched(mm: mm_struct, level: int, table: int) -> None:
            self.waiting.discard(table)
            table_free(mm, level, table)

        return watched


def settings(name: str, choice: str) -> tuple[str, ...]:
    """Of a machine where gup_fast may walk, if there is any."""
    return (*RCU_AGE.get(name, ()), f"kernel.table_free={choice}")


def walk_for(machine: Machine, mm: Mm, cpu: int, seed: int, done: Callable[[], bool], at: int) -> None:
    """A task that looks for a page without a lock, over and over."""
    chance = random.Random(seed * 3 + cpu)
    while not done():
        with contextlib.suppress(SegmentationFault):
            mm.put(mm.gup_fast(at))
        machine.work(chance.randrange(2000))


def race(name: str, choice: str, seed: int) -> dict[str, int]:
    """Two CPUs walk tables that a third one unmaps and frees; how often the sanitizer caught a walk of a free one."""
    machine = made(name, *settings(name, choice), cpus=3, sanitize=True, seed=seed)
    mm, page = machine.new_mm(), machine.page_size
    watch = Walkers(machine, STALL)
    machine.kernel.events = Events((*machine.kernel.events.observers, watch))
    rounds: list[int] = []

    def unmaps() -> None:
        chance = random.Random(seed)
        for round_ in range(ROUNDS):
            mm.mmap(4 * page, at=BASE, fixed=True)
            machine.cpus[0].store(BASE, b"x")
            machine.work(chance.randrange(20_000))
            mm.munmap(BASE, 4 * page)
            rounds.append(round_)

    machine.spawn("unmaps", 0, mm, unmaps)
    for cpu in (1, 2):
        done = partial(lambda: len(rounds) == ROUNDS)
        machine.spawn(f"walks {cpu}", cpu, mm, partial(walk_for, machine, mm, cpu, seed, done, BASE))
    machine.run_tasks()
    mm.exit()
    assert machine.sanitizer is not None
    machine.sanitizer.finish()
    return {WALKS: watch.walks, BROKEN: len(machine.sanitizer.violations)}


def price(name: str, choice: str, stall: int) -> dict[str, int]:
    """munmaps of several tables each in a row, while two CPUs walk: what they cost, and how many tables wait."""
    held = HeldTables()
    hook = Machine.describe(name)[1].ops.table_free
    machine = made(name, *settings(name, choice), cpus=3, table_free=held.watching(hook))
    layout = machine.kernel.shape.layout
    span = layout.span_of(layout.pmd_level)
    length = TABLES * span
    watch = Walkers(machine, stall)
    machine.kernel.events = Events((*machine.kernel.events.observers, watch, held))
    mm = machine.new_mm()
    walked = mm.mmap(machine.page_size, at=BASE + ROUNDS * length, fixed=True)
    found = {CYCLES: 0}
    rounds: list[int] = []

    def unmaps() -> None:
        mm.mmap(ROUNDS * length, at=BASE, fixed=True)
        for at in range(BASE, BASE + ROUNDS * length, span):
            machine.cpus[0].store(at, b"x")
        for round_ in range(ROUNDS):
            began = clock_of(machine, 0)
            mm.munmap(BASE + round_ * length, length)
            found[CYCLES] += (clock_of(machine, 0) - began) // ROUNDS
            machine.work(1)  # back in user mode: this CPU holds no grace period up itself
            rounds.append(round_)

    machine.spawn("unmaps", 0, mm, unmaps)
    for cpu in (1, 2):
        done = partial(lambda: len(rounds) == ROUNDS)
        machine.spawn(f"walks {cpu}", cpu, mm, partial(walk_for, machine, mm, cpu, 0, done, walked))
    machine.run_tasks()
    mm.exit()
    return {**found, WALKS: watch.walks, HELD: held.peak, IPIS: machine.counters.shootdowns["ipis"]}


def measure(name: str, effort: Effort) -> list[Row]:
    """The race under many seeds, and the price with walkers that are held up not, a little, and long."""
    variants = CLAIM.variants
    raced: dict[tuple[str, str], int] = {}
    for choice in variants:
        for seed in range(effort.seeds):
            for figure, value in race(name, choice, seed).items():
                raced[figure, choice] = raced.get((figure, choice), 0) + value
    rows = [Row(f"race, {effort.seeds} seeds", raced)]
    for stall in STALLS:
        cells = {
            (figure, choice): value
            for choice in variants
            for figure, value in price(name, choice, stall).items()
        }
        rows.append(Row(f"price, held up {stall:,}", cells))
    return rows


def judge(rows: Sequence[Row]) -> Verdict:
    """Grace periods must always do; freeing at once may, where the flush interrupts."""
    raced, normal = rows[0].cells, rows[1].cells
    broken = {choice: raced[BROKEN, choice] for choice in CLAIM.variants}
    if not raced[WALKS, "immediate"]:
        return Verdict(
            False, "no walk goes without mmap_lock here, so there is nothing that a grace period could save"
        )
    slow = rows[-1].cells
    cost = (
        f"while walkers are held up long, {slow[HELD, 'rcu']:,} tables are held at the peak against "
        f"{slow[HELD, 'immediate']:,}, and a munmap takes {slow[CYCLES, 'rcu']:,} cycles against "
        f"{slow[CYCLES, 'immediate']:,}"
    )
    if broken["immediate"]:
        because = f"{broken['immediate']} violations with immediate freeing, {broken['rcu']} with rcu; {cost}"
        return Verdict(not broken["rcu"], because)
    because = f"no violation with immediate freeing, as the flush waits for the walkers; {cost}"
    return Verdict(not broken["rcu"] and normal[IPIS, "immediate"] > 0, because)


CLAIM = Claim(
    name="table-freeing",
    title="Freeing page tables after a grace period",
    statement="""
        Lockless walkers (gup_fast) are safe without any interrupt when tables wait for RCU; with immediate freeing
        they are safe only where the flush is an interrupt that their CPU holds off (sparc64's cross-calls it cannot).
        The price is tables that are held until the grace period ends.
    """,
    method=f"""
        *race*: CPU 0 maps, touches and unmaps pages in a table of their own; CPUs 1 and 2 look for them by
        gup_fast, held up for {STALL:,} cycles behind each entry they read, and the sanitizer judges (INV-WALK).
        *price*: munmaps of {TABLES} tables with a page each, {ROUNDS} in a row, while CPUs 1 and 2 walk elsewhere;
        so many cycles are these *held up* behind each entry. CPUs interrupted: in the whole run.
        sparc64 is as from Linux 3.1 on here (`upper_entries: 64`). Neither freeing a table nor an RCU callback
        costs cycles in this model.
    """,
    variants=("immediate", "rcu"),
    figures=(WALKS, BROKEN, HELD, CYCLES, IPIS),
    measure=measure,
    judge=judge,
)
