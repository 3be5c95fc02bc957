"""What the sanitizer costs: the same work with it and without, alone and on CPUs that run at once.

Switched off it costs nothing that could be measured; what it needs is asked for only when a machine is built with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs
import numpy as np

from benchmarks.faults import PAGE, populating, touching
from benchmarks.measure import MIB, Row, Subject, side_by_side
from benchmarks.workloads import TRACES, Lab, machine
from polymmu.api import Machine
from polymmu.description.load_scenario import ScenarioFile
from polymmu.workload.model import AccessColumns, Workload
from polymmu.workload.readers import open_any, open_workload

__all__ = ["sanitizer"]

TOUCHES = 20_000
RANGE = 64 * MIB
SCENARIO = "threads-share-an-mm"


def shortened(lab: Lab, name: str) -> Workload:
    """A recorded program, as long as the lab wants it."""
    whole = open_workload(TRACES / name)
    columns = whole.accesses
    assert isinstance(columns, AccessColumns)
    stop = lab.sized(len(columns))
    return attrs.evolve(
        whole,
        accesses=AccessColumns(columns.op[:stop], columns.vaddr[:stop], columns.size[:stop]),
        calls=tuple(call for call in whole.calls if call.pos <= stop),
        threads=tuple(each for each in whole.threads if each.pos < stop),
    )


def running(build: Callable[[bool], Machine], workload: Workload | ScenarioFile, sanitize: bool) -> Subject:
    """A whole run on a machine that ``build`` makes."""

    def prepare() -> Callable[[], object]:
        fresh = build(sanitize)
        return lambda: fresh.run(workload)

    return prepare


def sanitizer(lab: Lab) -> list[Row]:
    """Rows in milliseconds with the sanitizer, against without."""
    cc1, threads, scenario = shortened(lab, "cc1.npz"), shortened(lab, "threads.npz"), open_any(SCENARIO)
    pages, length = np.arange(lab.sized(TOUCHES, 2)), lab.sized(RANGE // PAGE, 1) * PAGE

    def suited(workload: Workload | ScenarioFile, sanitize: bool) -> Machine:
        return Machine.to_run("x86_64", workload, sets=["cpus=3"], sanitize=sanitize)

    work: dict[str, Callable[[bool], Subject]] = {
        "cc1 from an empty machine": partial(running, lambda on: machine(sanitize=on), cc1),
        "first touches alternating between two vmas": partial(touching, pages, 2),
        f"populate and munmap {length // MIB} MiB": partial(populating, length),
        "threads.npz on three CPUs": partial(running, partial(suited, threads), threads),
        f"scenario {SCENARIO}": partial(running, partial(suited, scenario), scenario),
    }
    seconds = side_by_side(
        {f"{name} {on}": make(on) for name, make in work.items() for on in (False, True)}, lab.rounds
    )
    return [
        Row(
            group="sanitizer",
            what=name,
            figure=seconds[f"{name} True"] * 1e3,
            unit="ms watched",
            ratio=seconds[f"{name} True"] / seconds[f"{name} False"],
            reference="unwatched",
        )
        for name in work
    ]
