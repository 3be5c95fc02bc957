"""First touches and whole ranges: what the mm core does per second.

First touches come in three orders. In runs over one vma, a fault is handed the touches that follow and maps them
at once. In random order it is handed them too, but they lie in many tables. Alternating between two vmas nothing
can be handed over: that is one fault at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import GIB, MIB, Row, Subject, Target, side_by_side
from benchmarks.workloads import Lab, machine

__all__ = ["faults", "populating", "touching"]

PAGE = 4096
TOUCHES = 100_000
RANGE = GIB


def touching(pages: NDArray[np.int64], vmas: int, sanitize: bool = False) -> Subject:
    """Store once to each of ``pages``, dealt out in turn to ``vmas`` mappings."""
    count = len(pages)
    op, size = np.full(count, 2, np.uint8), np.full(count, 8, np.uint8)

    def prepare() -> Callable[[], object]:
        fresh = machine(memory="4GiB", sanitize=sanitize)
        mm = fresh.new_mm()
        length = (int(pages.max()) // vmas + 1) * PAGE
        starts = np.array([mm.mmap(length, ("rw", "rwx")[n % 2]) for n in range(vmas)], np.int64)
        vaddr = (starts[pages % vmas] + pages // vmas * PAGE).astype(np.uint64)
        cpu = fresh.cpus[0]
        cpu.switch_mm(mm)

        def touch() -> None:
            cpu.replay(op, vaddr, size, 0, count)
            if fresh.counters.faults["minor"] != count:
                raise AssertionError(f"{count} first touches made {fresh.counters.faults} faults")

        return touch

    return prepare


def populating(length: int, sanitize: bool = False) -> Subject:
    """mmap with populate, and munmap, of ``length`` bytes."""

    def prepare() -> Callable[[], object]:
        mm = machine(memory=str(max(2 * length, 2 * MIB)), sanitize=sanitize).new_mm()
        return lambda: mm.munmap(mm.mmap(length, populate=True), length)

    return prepare


def faults(lab: Lab) -> list[Row]:
    """Rows in faults and pages per second."""
    count, length = lab.sized(TOUCHES, 2), lab.sized(RANGE // PAGE, 1) * PAGE
    order = np.arange(count)
    words = np.zeros(length // 8, np.uint64)
    seconds = side_by_side(
        {
            "runs": touching(order, 1),
            "random": touching(np.random.default_rng(7).permutation(count), 1),
            "alternating": touching(order, 2),
            "range": populating(length),
            "clear": lambda: lambda: words.fill(1),
        },
        lab.rounds,
    )
    rate = {name: count / seconds[name] for name in ("runs", "random", "alternating")}
    pages = {name: length // PAGE / seconds[name] for name in ("range", "clear")}

    def row(what: str, name: str, at_least: float | None) -> Row:
        return Row(
            group="faults",
            what=what,
            figure=rate[name],
            unit="faults/s",
            ratio=rate[name] / rate["alternating"],
            reference="one at a time",
            target=None if at_least is None else Target(at_least, of_figure=True),
        )

    return [
        row("first touches of one vma, in order", "runs", 200_000),
        row("first touches of one vma, random order", "random", 100_000),
        row("first touches alternating between two vmas: one at a time", "alternating", 100_000),
        Row(
            group="faults",
            what="populate and munmap 1 GiB of 4 KiB pages",
            figure=pages["range"],
            unit="pages/s",
            ratio=pages["range"] / pages["clear"],
            reference="writing 1 GiB of host memory",
            target=Target(5e6, of_figure=True),
        ),
    ]
