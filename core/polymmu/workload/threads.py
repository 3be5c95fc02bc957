"""A recorded program whose threads run at once, each a task on a CPU of its own (timed driver).

The recording has one order of everything; real time it has not. So the memory system calls keep their recorded order,
and each is made when every access recorded before it is done and before any recorded after it: the mappings are at
each access those that the program had. Between two calls the threads run at once. Calls that change no mapping
(opening a file) hold nobody up; they are made together with the next one that does.

First reading: ``ThreadedExecutor._thread``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import attrs

from polymmu.workload import syscalls as sys
from polymmu.workload.executor import SLICE, Executor
from polymmu.workload.handles import CpuHandle
from polymmu.workload.model import MmCall
from polymmu.workload.replay import Replayer
from polymmu.workload.space import Space

__all__ = ["ThreadedExecutor"]

CHANGES_MAPPINGS = sys.FORKS | {
    *("mmap", "munmap", "mprotect", "mremap", "brk", "madvise", "truncate", "ftruncate"),
    *("execve", "execveat", "exit", "exit_group", "wait4"),
}


@attrs.define(eq=False)
class Epoch:
    """Rows [start, stop) of accesses, and the calls that end it, made by thread ``caller``."""

    start: int
    stop: int
    caller: int
    calls: list[MmCall]
    pieces: dict[int, list[tuple[int, int]]] = attrs.field(factory=dict[int, list[tuple[int, int]]])
    """For each thread the rows that it executes, in order."""


class ThreadedExecutor(Executor):
    """One run, threads at once."""

    def run(self) -> None:
        """Initial mappings, then every thread as a task."""
        main = self._begin()
        self.tids = list(dict.fromkeys(each.tid for each in self.workload.threads)) or [self.main]
        self.epochs = self._epochs()
        self._deal()
        self.spans = {tid: self._span(tid) for tid in self.tids}
        self.queue = self.machine.wait_queue("the recorded order of calls", idle=False)
        self.arrived = self.passed = 0
        self.killed = self.mapping = False
        self._start(0, main)
        self.machine.run_tasks()

    def _start(self, number: int, space: Space) -> None:
        """Start the threads that do something in epoch ``number`` for the first time."""
        cpus = self.machine.cpus
        for place, tid in enumerate(self.tids):
            if self.spans[tid][0] == number:
                cpu = cpus[place % len(cpus)]
                self.machine.spawn(f"thread {tid}", cpu.index, space.mm, partial(self._thread, tid, cpu))

    # --- who does what when
    def _epochs(self) -> list[Epoch]:
        """The run cut where a call changes mappings; calls of one thread with no access between are one cut."""
        epochs: list[Epoch] = []
        start, waiting = 0, list[MmCall]()
        for call, row in zip(self.calls, self._rows(), strict=True):
            waiting.append(call)
            if call.failed or call.name not in CHANGES_MAPPINGS:
                continue
            caller = call.tid if call.tid in self.tids else self.tids[0]
            if epochs and epochs[-1].stop == row and epochs[-1].caller == caller:
                epochs[-1].calls += waiting
            else:
                epochs.append(Epoch(start, row, caller, waiting))
            start, waiting = row, []
        return [*epochs, Epoch(start, self.result.total, self.tids[0], waiting)]

    def _deal(self) -> None:
        """Give each thread its rows of each epoch."""
        rows = self._rows_at([each.pos for each in self.workload.threads])
        turns = [(row, each.tid) for row, each in zip(rows, self.workload.threads, strict=True)]
        turns = turns if turns and turns[0][0] == 0 else [(0, self.tids[0]), *turns]
        turn = 0
        for epoch in self.epochs:
            low = epoch.start
            while low < epoch.stop:
                while turn + 1 < len(turns) and turns[turn + 1][0] <= low:
                    turn += 1
                high = min(epoch.stop, turns[turn + 1][0] if turn + 1 < len(turns) else epoch.stop)
                epoch.pieces.setdefault(turns[turn][1], []).append((low, high))
                low = high

    def _span(self, tid: int) -> range:
        """The epochs from the first in which ``tid`` does something to the last."""
        busy = [n for n, epoch in enumerate(self.epochs) if tid in epoch.pieces or tid == epoch.caller]
        return range(busy[0], busy[-1] + 1)

    # --- one thread
    def _thread(self, tid: int, cpu: CpuHandle) -> None:
        """The life of thread ``tid``."""
        assert self.columns is not None or not self.result.total
        replayer = Replayer(self.machine, self.columns, cpu, self._alone) if self.columns else None
        for number in self.spans[tid]:
            for low, high in self.epochs[number].pieces.get(tid, ()):
                assert replayer is not None
                replayer.done = low
                self._run_rows(replayer, high)
            if not self._meet(number, tid, cpu):
                return

    def _run_rows(self, replayer: Replayer, stop: int) -> None:
        process = self.processes.get(self.main)
        if process is None:
            self.killed = True  # the program has exited; accesses after that cannot be its own
            return
        replayer.cpu.switch_mm(process.space.mm)
        while replayer.done < stop and not self.killed:
            before = replayer.done
            if replayer.some(process.space, min(before + SLICE, stop)):
                self.result.done += replayer.done - before
            else:
                self.killed = True
                self.result.done, self.result.segfault = replayer.done, replayer.segfault
            if self.progress is not None:
                self.progress(self.result.done, self.result.total)

    def _meet(self, number: int, tid: int, cpu: CpuHandle) -> bool:
        """Wait until all threads have done their rows of epoch ``number`` and one of them its calls.

        False if the program was killed.
        """
        epoch = self.epochs[number]
        self.arrived += 1
        if tid == epoch.caller:
            everybody = sum(number in span for span in self.spans.values())
            self.queue.wait_event(lambda: self.killed or self.arrived == everybody)
            if not self.killed:
                self.cpu, self.current = cpu, None
                for call in epoch.calls:
                    self._call(call)
                self.arrived = 0
                self.passed += 1
                if self.main in self.processes:
                    self._start(self.passed, self.processes[self.main].space)
                else:
                    self.killed = any(span[0] == self.passed for span in self.spans.values())
            self.queue.wake_up_all()
        else:
            self.queue.wake_up_all()
            self.queue.wait_event(lambda: self.killed or self.passed > number)
        if self.main not in self.processes:
            self.machine.exit_mm()
        return not self.killed

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread changes the map of the space meanwhile."""
        self.queue.wait_event(lambda: not self.mapping)
        self.mapping = True
        try:
            yield
        finally:
            self.mapping = False
            self.queue.wake_up_all()
