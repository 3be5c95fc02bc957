"""Cost grows with the work, not with what else is mapped: times among many vmas, entries visited by free_pgtables.

Counts of entries are exact and the same on every computer; times are medians over many vmas, told as ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.measure import GIB, MIB, TIB, Row, Target
from benchmarks.workloads import Lab, machine
from polymmu.machine import Machine, Mm

__all__ = ["free_pgtables_visits", "growth"]

PAGE = 4096
SPACING = 4 * PAGE
BASE = 0x10_0000_0000
VMAS = (10, 100, 1_000, 10_000, 100_000)
CALLS = 200
FIND = "find_vma of another vma each time"
"""Less than a microsecond among few; a binary search among many misses the host's caches. No target."""
BRIEF = 5
"""Timed together: a single call is too short for the clock of a busy computer."""


def crowded(vmas: int) -> tuple[Machine, Mm]:
    """An address space of ``vmas`` one-page mappings that cannot merge, each page present."""
    crowd = machine(memory="4GiB", kernel__vm_max_map_count=2 * max(VMAS))
    mm = crowd.new_mm()
    for n in range(vmas):
        mm.mmap(PAGE, at=BASE + n * SPACING, fixed=True, populate=True)
    return crowd, mm


def timed(calls: Sequence[Callable[[], object]]) -> float:
    """Median seconds of one of ``calls``, measured in groups of ``BRIEF``."""
    taken: list[float] = []
    for first in range(0, len(calls), BRIEF):
        group = calls[first : first + BRIEF]
        start = time.process_time()
        for call in group:
            call()
        taken.append((time.process_time() - start) / len(group))
    return float(np.median(taken))


def costs_among(vmas: int) -> dict[str, float]:
    """Seconds of calls on an address space with ``vmas`` mappings, each on another one in turn."""
    crowd, mm = crowded(vmas)
    some = [int(n) for n in np.random.default_rng(vmas).integers(vmas, size=CALLS)]
    unmap: list[float] = []
    remap: list[float] = []
    # A page goes and comes back, so that each munmap finds the same number of vmas: as many at once as BRIEF,
    # of different vmas where there are that many.
    for first in range(0, CALLS, BRIEF):
        group = [BASE + n * SPACING for n in dict.fromkeys(some[first : first + BRIEF])]
        unmap.append(timed([lambda at=at: mm.munmap(at, PAGE) for at in group]))  # type: ignore[misc]
        remap.append(
            timed([lambda at=at: mm.mmap(PAGE, at=at, fixed=True, populate=True) for at in group])  # type: ignore[misc]
        )
    found = timed([lambda n=n: mm.is_mapped(BASE + n * SPACING) for n in some])  # type: ignore[misc]
    places: list[int] = []
    placed = timed([lambda: places.append(mm.mmap(PAGE, ("r", "rw")[len(places) % 2])) for _ in some])
    assert crowd.counters.calls["munmap"] >= len(unmap)
    return {
        "munmap of one page": float(np.median(unmap)),
        "mmap and populate of one page": float(np.median(remap)),
        FIND: found,
        "mmap without an address": placed,
    }


def free_pgtables_visits(length: int, pages: int, distance: int) -> tuple[int, int]:
    """(entries visited, tables freed) by free_pgtables when a vma of ``length`` with ``pages`` touched goes.

    Touched are pages ``distance`` bytes apart, from the vma's start on.
    """
    fresh = machine(memory="8GiB")
    mm = fresh.new_mm()
    start = mm.mmap(length, at=TIB, fixed=True)
    fresh.cpus[0].switch_mm(mm)
    vaddr = np.arange(pages, dtype=np.uint64) * np.uint64(distance) + np.uint64(start)
    fresh.cpus[0].replay(np.full(pages, 2, np.uint8), vaddr, np.full(pages, 8, np.uint8), 0, pages)
    mm.munmap(start, length)
    return fresh.counters.visited["free_pgtables"], fresh.counters.tables["freed"]


SHAPES = (
    ("dense: 2,048 pages in 8 MiB", 8 * MIB, 2_048, PAGE),
    ("dense: 16,384 pages in 64 MiB", 64 * MIB, 16_384, PAGE),
    ("dense: 131,072 pages in 512 MiB", 512 * MIB, 131_072, PAGE),
    ("sparse: 64 pages, 2 MiB apart", 128 * MIB, 64, 2 * MIB),
    ("sparse: 512 pages, 2 MiB apart", GIB, 512, 2 * MIB),
    ("sparse: 512 pages, 1 GiB apart", 512 * GIB, 512, GIB),
    ("one page in 1 TiB", TIB, 1, PAGE),
)


def growth(lab: Lab) -> list[Row]:
    """Rows of times by number of vmas, and of entries visited by shape of the mapping."""
    rows: list[Row] = []
    sizes = [size for size in VMAS if size <= lab.sized(max(VMAS))]
    measured = {size: costs_among(size) for size in sizes}
    fewest = sizes[0]
    for what in measured[fewest]:
        for size in sizes:
            ratio = measured[size][what] / measured[fewest][what]
            rows.append(
                Row(
                    group="growth",
                    what=f"{what} among {size:,} vmas",
                    figure=measured[size][what] * 1e6,
                    unit="us",
                    ratio=ratio,
                    reference=f"among {fewest:,}",
                    target=Target(2, at_most=True) if size == max(VMAS) and what != FIND else None,
                )
            )
    for what, length, pages, distance in SHAPES:
        visited, tables = free_pgtables_visits(length, pages, distance)
        rows.append(
            Row(
                group="growth",
                what=f"free_pgtables, {what}",
                figure=visited,
                unit="entries visited",
                ratio=visited / tables,
                reference="tables freed",
                note=f"{pages:,} pages, {tables:,} tables",
            )
        )
    return rows
