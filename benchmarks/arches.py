"""Replay on every architecture: no MMU of its own kind may slow down accesses that its TLBs serve.

Two subjects per machine, on memory that was touched before: a loop over a few pages, which stays in the first-level
TLBs, and a pointer chase, where nearly every load misses and the architecture's own miss routine decides. Only the
loop has a target; the chase says what a miss costs here (a hash search or a trap does more than a radix walk).
"""

from __future__ import annotations

import numpy as np

from benchmarks.measure import KIB, MIB, Row, Subject, Target, side_by_side
from benchmarks.workloads import Lab, pointer_chase
from polymmu.api import Machine
from polymmu.workload.model import AccessColumns

__all__ = ["MACHINES", "arches", "page_loop"]

REFERENCE = "x86_64"
MACHINES = (REFERENCE, "x86", "x86-pae", "ia64", "ppc64", "ppc64-64k", "sparc64", "s390", "s390-31")
"""The plain machine of every architecture, and of every page-table format that differs."""

LOOP_ACCESSES = 4_000_000
LOOP_PAGES = 8
CHASE_ACCESSES = 1_000_000
CHASE_BYTES = 16 * MIB


def page_loop(accesses: int, page_size: int) -> AccessColumns:
    """A program with eight pages: five fetches, a load and a store in turn, each time in a page drawn at random.

    Addresses count from 0.
    """
    random = np.random.default_rng(8)
    op = np.tile(np.array([0, 0, 1, 0, 0, 2, 0], dtype=np.uint8), accesses // 7 + 1)[:accesses]
    pages = random.integers(0, LOOP_PAGES, accesses).astype(np.uint64)
    inside = random.integers(0, page_size // 8, accesses).astype(np.uint64) * np.uint64(8)
    return AccessColumns(op, pages * np.uint64(page_size) + inside, np.full(accesses, 4, dtype=np.uint8))


def ready(name: str, accesses: AccessColumns, length: int) -> Subject:
    """Replay of ``accesses`` (addresses counted from 0) in a mapping of ``length`` bytes whose pages were stored to."""
    machine = Machine.from_file(name)
    mm = machine.new_mm()
    at = mm.mmap(length, "rwx", populate=True)
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    columns = (accesses.op, accesses.vaddr + np.uint64(at), accesses.size)
    cpu.replay(*columns, 0, len(accesses))
    return lambda: lambda: cpu.replay(*columns, 0, len(accesses))


def arches(lab: Lab) -> list[Row]:
    """Rows in accesses per second, against the same on x86_64."""
    count, chased = lab.sized(LOOP_ACCESSES), lab.sized(CHASE_ACCESSES)
    span = lab.sized(CHASE_BYTES, 64 * KIB)
    chase = pointer_chase(chased, span)
    fetched = np.uint64(span)
    chase = AccessColumns(
        chase.op,
        np.where(
            chase.op == 0,
            fetched + chase.vaddr % np.uint64(4 * KIB),
            chase.vaddr - chase.vaddr[chase.op == 1].min(),
        ),
        chase.size,
    )
    subjects: dict[str, Subject] = {}
    for name in MACHINES:
        page = Machine.from_file(name).page_size
        subjects[f"{name} loop"] = ready(name, page_loop(count, page), LOOP_PAGES * page)
        subjects[f"{name} chase"] = ready(name, chase, span + 64 * KIB)
    seconds = side_by_side(subjects, lab.rounds)
    rows = []
    for kind, what, accesses in (
        ("loop", "a loop over 8 pages", count),
        ("chase", f"a pointer chase over {span // KIB} KiB", chased),
    ):
        for name in MACHINES:
            rate = accesses / seconds[f"{name} {kind}"] / 1e6
            base = accesses / seconds[f"{REFERENCE} {kind}"] / 1e6
            rows.append(
                Row(
                    group="arches",
                    what=f"{name}: {what}",
                    figure=rate,
                    unit="M accesses/s",
                    ratio=rate / base,
                    reference=REFERENCE,
                    target=Target(0.5) if kind == "loop" else None,
                )
            )
    return rows
