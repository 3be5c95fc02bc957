"""A recorded program with two threads, each on a CPU of its own: TLBs, shootdowns and latencies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import attrs

from benchmarks.claims.machines import GENERATIONS, longest, made
from benchmarks.claims.model import Claim, Effort, Row, Verdict
from benchmarks.workloads import TRACES
from polymmu.workload.model import AccessColumns, Workload
from polymmu.workload.readers import open_workload

__all__ = ["CLAIM"]

COUNT = "count, or cycles"
INTERRUPTED, BROADCASTS, GATHERED, ELAPSED = (
    "CPUs interrupted",
    "broadcasts",
    "pages freed by gathers",
    "cycles elapsed",
)
OFF = "longest preemption off"
ONE, BEFORE, AFTER = "1 CPU, linked", "2 CPUs, percpu", "2 CPUs, linked"
RUNS = {ONE: (1, "linked"), BEFORE: (2, "percpu"), AFTER: (2, "linked")}


@cache
def program(accesses: int) -> Workload:
    """A Python interpreter whose worker threads map, touch and unmap; its last ``accesses``."""
    whole = open_workload(TRACES / "threads.npz")
    columns = whole.accesses
    assert isinstance(columns, AccessColumns)
    cut = max(len(columns) - accesses, 0)
    # Calls before the window are made all the same, and at once: they say what is mapped in it.
    return attrs.evolve(
        whole,
        accesses=AccessColumns(columns.op[cut:], columns.vaddr[cut:], columns.size[cut:]),
        calls=tuple(attrs.evolve(call, pos=max(call.pos - cut, 0)) for call in whole.calls),
        threads=tuple(attrs.evolve(each, pos=max(each.pos - cut, 0)) for each in whole.threads),
    )


def measured(name: str, cpus: int, generation: str, accesses: int) -> dict[str, int]:
    """One run."""
    machine = made(name, *GENERATIONS[generation], cpus=cpus)
    report: dict[str, Any] = machine.run(program(accesses)).to_dict()
    found: dict[str, int] = {}
    for cpu in machine.kernel.cpus:
        counted, own = cpu.counters(), [tlb for tlb in report["tlb"] if tlb["cpu"] == cpu.index]
        found[f"CPU {cpu.index}: accesses"] = sum(counted["accesses"].values())
        found[f"CPU {cpu.index}: walks"] = counted["walk"]["count"]
        found[f"CPU {cpu.index}: TLB entries flushed"] = sum(tlb["flushed"] for tlb in own)
    latency = report["latency"]
    return {
        **found,
        "local flushes": report["shootdown"]["local"],
        INTERRUPTED: report["shootdown"]["ipis"],
        BROADCASTS: report["shootdown"]["broadcast"],
        GATHERED: report["gather"]["pages"],
        "longest page-table lock hold": longest(latency["max_lock_hold"]),
        "longest page-table lock wait": longest(latency["max_lock_wait"]),
        OFF: latency["max_preempt_off"],
        ELAPSED: report["elapsed"],
    }


def measure(name: str, effort: Effort) -> list[Row]:
    """One CPU, then two, before and after."""
    runs = {
        run: measured(name, cpus, generation, effort.accesses) for run, (cpus, generation) in RUNS.items()
    }
    return [
        Row(case, {(COUNT, run): found[case] for run, found in runs.items() if case in found})
        for case in runs[AFTER]
    ]


def judge(rows: Sequence[Row]) -> Verdict:
    """One CPU must interrupt nobody, two must tell each other what they unmap."""
    by = {row.case: {run: row.cells.get((COUNT, run), 0) for run in RUNS} for row in rows}
    interrupted, told = by[INTERRUPTED], by[BROADCASTS]
    off = by[OFF]
    changed = (
        f"preemption is off for {off[BEFORE]:,} cycles per CPU and {off[AFTER]:,} linked"
        if off[BEFORE] != off[AFTER]
        else f"the generation of the gather changes nothing ({off[AFTER]:,} cycles with preemption off in both)"
    )
    how = (
        f"{interrupted[AFTER]:,} interrupts"
        if interrupted[AFTER]
        else f"{told[AFTER]:,} broadcasts, no interrupt"
    )
    return Verdict(interrupted[ONE] == 0 < interrupted[AFTER] + told[AFTER], f"{how}; {changed}")


CLAIM = Claim(
    name="program",
    title="A recorded program with two threads",
    statement="""
        On one CPU a program interrupts nobody. With its threads on CPUs of their own each CPU has TLBs of its own,
        and what is unmapped, protected or copied must be told to the others.
    """,
    method="""
        A Python interpreter with worker threads that map, touch and unmap memory, recorded in one order. On two
        CPUs each thread has its own; the mm calls keep their recorded order, and between two calls that change
        mappings the threads run at once. This program makes such calls so often, and so small ones, that little is
        done at once, and that gathers hold few pages: nothing to be expected of a better one.
    """,
    variants=tuple(RUNS),
    figures=(COUNT,),
    measure=measure,
    judge=judge,
)
