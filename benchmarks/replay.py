"""Replay against the streaming limit: single accesses, a pointer chase, page runs, and a whole run with its faults.

Three subjects show where time goes: accesses with everything mapped (the hardware alone), the chase (nearly every
load misses every TLB), and ``Machine.run`` on an empty machine (each page's first fault and each mm call as well).
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measure import Row, Target, side_by_side
from benchmarks.workloads import Lab, machine
from polymmu.workload.model import AccessColumns, PageRuns, Workload

__all__ = ["replay"]

LIMIT = "streaming limit"


def replay(lab: Lab) -> list[Row]:
    """Rows in accesses per second."""
    group = "replay"
    accesses, runs, chase, numpy_runs = lab.cc1_accesses, lab.cc1_runs, lab.chase, lab.numpy_runs
    whole = Workload(
        name="cc1.npz",
        sha256="",
        format="",
        accesses=accesses,
        calls=tuple(call for call in lab.cc1.calls if call.pos <= len(accesses)),
        initial=lab.cc1.initial,
    )

    def from_nothing() -> Callable[[], object]:
        fresh = machine()
        return lambda: fresh.run(whole)

    seconds = side_by_side(
        {
            "limit": lab.streaming(accesses.vaddr),
            "replay": lab.replay(accesses),
            "runs": lab.replay_runs(runs),
            "numpy": lab.replay_runs(numpy_runs),
            "run": from_nothing,
            "chase limit": lab.streaming(chase.vaddr),
            "chase": lab.replay(chase),
        },
        lab.rounds,
    )
    touches = {name: len(accesses) for name in ("limit", "replay", "run")}
    touches |= {name: len(chase) for name in ("chase limit", "chase")}
    touches |= {"runs": int(runs.count.sum()), "numpy": int(numpy_runs.count.sum())}
    rate = {name: touches[name] / taken / 1e6 for name, taken in seconds.items()}

    def row(
        what: str, name: str, reference: str = "", against: str = "", at_least: float = 0, note: str = ""
    ) -> Row:
        return Row(
            group=group,
            what=what,
            figure=rate[name],
            unit="M accesses/s",
            ratio=rate[name] / rate[against] if against else None,
            reference=reference,
            target=Target(at_least) if at_least else None,
            note=note,
        )

    return [
        row("streaming limit: sum of cc1's addresses", "limit"),
        row("cc1, everything mapped", "replay", LIMIT, "limit", 0.1),
        row("cc1 from an empty machine: faults and mm calls too", "run", LIMIT, "limit"),
        row("streaming limit: sum of the chase's addresses", "chase limit"),
        row("pointer chase over 64 MiB", "chase", LIMIT, "chase limit", 0.05, missing(lab)),
        row("cc1 as page runs, accesses represented", "runs", LIMIT, "limit", 0.5, per_run(accesses, runs)),
        row("cc1 as page runs, against single accesses", "runs", "cc1, everything mapped", "replay"),
        row(
            "numpy_runs, recorded as page runs", "numpy", LIMIT, "limit", 0.5, per_run(numpy_runs, numpy_runs)
        ),
    ]


def per_run(accesses: AccessColumns | PageRuns, runs: PageRuns) -> str:
    """How far the runs collapse what they represent."""
    count = len(accesses) if isinstance(accesses, AccessColumns) else int(accesses.count.sum())
    return f"{count / len(runs):.1f} accesses per run"


def missing(lab: Lab) -> str:
    """How many of the chase's accesses miss every TLB."""
    cpu = lab.mapped(lab.chase).cpus[0].cpu
    cpu.reset_counters()
    cpu.replay(lab.chase.op, lab.chase.vaddr, lab.chase.size, 0, len(lab.chase))
    return f"{cpu.counters()['walk']['count'] / len(lab.chase):.1%} miss every TLB"
