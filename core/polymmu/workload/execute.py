"""Run a workload on a machine, the way the machine's driver has it."""

from __future__ import annotations

from polymmu.errors import UserMistake
from polymmu.workload.executor import Executor, Progress
from polymmu.workload.handles import MachineHandle
from polymmu.workload.model import PageRuns, Workload
from polymmu.workload.result import ExecutionResult
from polymmu.workload.threads import ThreadedExecutor

__all__ = ["execute"]


def execute(
    machine: MachineHandle,
    workload: Workload,
    *,
    ignore_mm_calls: bool = False,
    progress: Progress | None = None,
) -> ExecutionResult:
    """Run ``workload`` on ``machine``: on CPU 0, or under the timed driver each thread on a CPU of its own.

    ``ignore_mm_calls`` replays accesses alone: no recorded call, no initial mapping; what they touch maps
    itself. ``progress(done, total)`` is called every few milliseconds with rows. Raises ``UserMistake`` if a
    mapping has no place on this machine; what the program itself did wrong is in the result.
    """
    if isinstance(workload.accesses, PageRuns) and 1 << workload.accesses.page_shift > machine.page_size:
        raise UserMistake(
            f"page runs of {1 << workload.accesses.page_shift} bytes cannot be replayed on pages of "
            f"{machine.page_size}; take a trace of single accesses",
            place=workload.name,
        )
    if ignore_mm_calls and workload.accesses is None:
        raise UserMistake(
            "holds system calls and no accesses: nothing is left to replay without its calls",
            place=workload.name,
        )
    kind = ThreadedExecutor if machine.driver == "timed" else Executor
    executor = kind(machine, workload, ignore_mm_calls, progress)
    try:
        executor.run()
    except KeyboardInterrupt:
        executor.result.partial = True
    executor.result.relocations = executor.outcome.relocations
    executor.result.self_mapped_pages = executor.outcome.self_mapped_pages
    return executor.result
