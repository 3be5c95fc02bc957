"""What splitting a search costs: CPU seconds of the workers and the coordinator beside those of one process.

The truncation race with three breaks, the same number of executions both ways. CPU seconds, not wall: what two
processes gain in time is for the host's scheduler to say. Importing is not counted, making the machines is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Row, Target
from benchmarks.workloads import Lab
from polymmu.description.load_scenario import ScenarioFile, load_scenario
from polymmu.exploration.explorer import Limits, search
from polymmu.exploration.scenario import Explored
from polymmu.workers import Workers, processes

__all__ = ["explore_split"]

EXECUTIONS = 10_000
PROCESSES = 2
SCENARIO = "001-restart-vma-reused"


class Clocked:
    """Workers whose CPU seconds are counted."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.count = workers.count
        self.seconds = 0.0
        self.jobs = 0

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """See ``Workers``."""
        told: Future[Any] = Future()

        def done(future: Future[tuple[Any, float]]) -> None:
            if future.cancelled() or not told.set_running_or_notify_cancel():
                return
            error = future.exception()
            if error is not None:
                told.set_exception(error)
                return
            value, seconds = future.result()
            self.seconds += seconds
            self.jobs += 1
            told.set_result(value)

        self.workers.submit(clocked, function, *args).add_done_callback(done)
        return told


def clocked(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What ``function`` returns, and the CPU seconds it took."""
    began = time.process_time()
    return function(*args), time.process_time() - began


def many_breaks() -> ScenarioFile:
    """The gallery's first entry with so many breaks that nobody sees the end of it."""
    text = Path(load_scenario(SCENARIO).filename).read_text(encoding="utf-8")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "many-breaks.yaml"
        path.write_text(text.replace("i_mmap_lock_break: 1", "i_mmap_lock_break: 3"), encoding="utf-8")
        return load_scenario(str(path))


def explore_split(lab: Lab) -> list[Row]:
    """Rows in executions per CPU second."""
    group = "split"
    executions = lab.sized(EXECUTIONS, 50)
    limits = Limits(executions=executions, seconds=1e9)
    program = Explored("x86_64", many_breaks())

    began = time.process_time()
    alone = search(program, "dpor", limits=limits)
    alone_seconds = time.process_time() - began

    with processes(PROCESSES, "polymmu.exploration.items") as pool:
        workers = Clocked(pool)
        began = time.process_time()
        shared = search(program, "dpor", limits=limits, workers=workers)
        coordinator = time.process_time() - began
    assert alone.executions == shared.executions == executions
    one, two = executions / alone_seconds, executions / (coordinator + workers.seconds)
    unit = "executions/CPU s"
    return [
        Row(group=group, what=f"{executions} executions, one process", figure=one, unit=unit),
        Row(
            group=group,
            what=f"the same by {PROCESSES} processes and a coordinator",
            figure=two,
            unit=unit,
            ratio=two / one,
            reference="one process",
            target=Target(0.85),
            note=f"{workers.jobs} items; the coordinator took {coordinator:.2f} s of CPU",
        ),
    ]
