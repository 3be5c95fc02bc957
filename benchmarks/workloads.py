"""What the benchmarks replay: a real compiler's accesses, a pointer chase made here, and machines that ran them.

``Lab`` makes each of them once, when somebody asks; ``scale`` below 1 makes everything smaller, for the tests.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import KIB, MIB, Subject
from polymmu.api import Machine
from polymmu.workload.model import AccessColumns, PageRuns, Workload
from polymmu.workload.pages import to_page_runs
from polymmu.workload.readers import open_workload

__all__ = ["TRACES", "Lab", "machine", "pointer_chase"]

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"

CHASE_BYTES = 64 * MIB
CHASE_ACCESSES = 10_000_000
NODE_BYTES = 64
FETCHES_PER_STEP = 6
"""Instructions around each load of a chase compiled without optimisation: one access in seven goes to memory."""


def machine(*, sanitize: bool = False, **settings: object) -> Machine:
    """The machine all benchmarks use: split L1 of 64x4, L2 of 1024x4, paging-structure caches, PCIDs, 4 levels.

    ``settings``: more of ``--set``, with ``__`` for a dot.
    """
    sets = ["x86_64.pcid=true", *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())]
    return Machine.from_file("x86_64", sets=sets, sanitize=sanitize)


def pointer_chase(accesses: int, span: int) -> AccessColumns:
    """A loop that follows pointers through ``span`` bytes: every node once, in random order, round and round."""
    step = FETCHES_PER_STEP + 1
    nodes = span // NODE_BYTES
    order = np.random.default_rng(64).permutation(nodes).astype(np.uint64)
    row = np.arange(accesses)
    is_load = row % step == FETCHES_PER_STEP
    loads = np.uint64(0x7F00_0000_0000) + order[row // step % nodes] * np.uint64(NODE_BYTES)
    fetches = (0x40_0000 + row % step * 4).astype(np.uint64)
    return AccessColumns(
        is_load.astype(np.uint8),
        np.where(is_load, loads, fetches),
        np.where(is_load, 8, 4).astype(np.uint8),
    )


@numba.njit(cache=True)
def _sum(column: NDArray[Any]) -> int:  # pragma: no cover - compiled
    total = np.uint64(0)
    for value in column:
        total += value
    return int(total)


class Lab:
    """The inputs, each made once."""

    def __init__(self, scale: float = 1.0, rounds: int = 7) -> None:
        self.scale = scale
        self.rounds = rounds

    def sized(self, count: int, least: int = 1) -> int:
        """``count`` at this scale."""
        return max(int(count * self.scale), least)

    @cached_property
    def cc1(self) -> Workload:
        """GCC's compiler proper: 6 million accesses and 107 mm calls."""
        return open_workload(TRACES / "cc1.npz")

    @cached_property
    def cc1_accesses(self) -> AccessColumns:
        """The accesses of ``cc1``."""
        accesses = self.cc1.accesses
        assert isinstance(accesses, AccessColumns)
        stop = self.sized(len(accesses))
        return AccessColumns(accesses.op[:stop], accesses.vaddr[:stop], accesses.size[:stop])

    @cached_property
    def cc1_runs(self) -> PageRuns:
        """``cc1_accesses`` collapsed to page runs."""
        return to_page_runs(self.cc1_accesses)

    @cached_property
    def numpy_runs(self) -> PageRuns:
        """A NumPy program's page runs, as recorded."""
        runs = open_workload(TRACES / "numpy_runs.npz").accesses
        assert isinstance(runs, PageRuns)
        return runs

    @cached_property
    def chase(self) -> AccessColumns:
        """10 million accesses of a chase over 64 MiB."""
        return pointer_chase(self.sized(CHASE_ACCESSES), self.sized(CHASE_BYTES, 64 * KIB))

    @staticmethod
    def mapped(accesses: AccessColumns | PageRuns) -> Machine:
        """A machine where everything that ``accesses`` touch is mapped and was touched."""
        ready = machine()
        ready.run(Workload(name="warm-up", sha256="", format="", accesses=accesses), ignore_mm_calls=True)
        return ready

    @staticmethod
    def streaming(column: NDArray[np.uint64]) -> Subject:
        """The streaming limit: the sum of one column, which no replay of it can beat."""
        _sum(column[:1])
        return lambda: lambda: _sum(column)

    def replay(self, accesses: AccessColumns) -> Subject:
        """Replay on a machine where all is mapped."""
        cpu = self.mapped(accesses).cpus[0]
        columns = (accesses.op, accesses.vaddr, accesses.size)
        return lambda: lambda: cpu.replay(*columns, 0, len(accesses))

    def replay_runs(self, runs: PageRuns) -> Subject:
        """The same for page runs."""
        cpu = self.mapped(runs).cpus[0]
        columns = (runs.vpn, runs.data, runs.write, runs.count)
        return lambda: lambda: cpu.replay_runs(*columns, 0, len(runs))
