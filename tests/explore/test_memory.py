"""Nothing is kept of an execution that is over."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import pytest

from polymmu.description.load_scenario import load_scenario
from polymmu.exploration.explorer import Limits, Progress, search
from polymmu.exploration.scenario import Explored

KIB = 1 << 10
WARM, MANY = 300, 2000


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pct", "naive"])
def test_a_thousand_executions_more_take_no_more_memory(strategy: str) -> None:
    """``naive`` never ends here, so its stack is at its deepest all the time; RSS over 100,000 is measured by hand."""
    held: dict[int, int] = {}

    def look(progress: Progress) -> None:
        if progress.executions in (WARM, MANY):
            gc.collect()
            held[progress.executions] = tracemalloc.get_traced_memory()[0]

    program = Explored("s390", load_scenario("gup-fast-against-munmap"))
    tracemalloc.start()
    try:
        limits = Limits(random=MANY, executions=MANY, seconds=3600)
        assert search(program, strategy, limits=limits, tell=look).executions == MANY
    finally:
        tracemalloc.stop()
    assert held[MANY] - held[WARM] < 64 * KIB


def test_nothing_is_kept_of_a_machine_that_nobody_explores_any_more() -> None:
    """Its tasks' stacks wait for the next execution, and must not be what keeps it."""
    program = Explored("s390", load_scenario("gup-fast-against-munmap"))
    assert search(program, "pct", limits=Limits(random=5)).executions
    driver = weakref.ref(program.sched)
    del program
    gc.collect()
    assert driver() is None
