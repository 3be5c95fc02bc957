"""What a flush has to do with what others do: judges, too, look at what CPUs have cached.

A flush and the free of a frame commute, unless the flush drops an entry that leads there: had the free come first, it
would have been too early. Nor does a flush that drops anything commute with a zap of the same mm, which looks for what
is unmapped and still cached; nor one that takes a suspect from a judge, with what would have made that one guilty. With
all else it does commute, which keeps executions few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polymmu.exploration.watch import silently
from polymmu.hardware.cpu import Cpu
from polymmu.hooks import ArchKernel
from polymmu.sanitize.cached_kernels import COLUMNS_OUT, entries_to_free_frames
from polymmu.sanitize.sanitizer import Sanitizer
from polymmu.sched.access import Mode
from polymmu.sched.exploring import ExploringSched
from polymmu.structs import mm_struct

__all__ = ["FlushWatcher", "depend_on_flushes"]

ENTRIES = 1024
"""Cached entries of one CPU that are looked at."""


class FlushWatcher:
    """Tells the explorer what each flush drops, on whichever CPU, and goes on to the judges."""

    def __init__(self, kernel: ArchKernel, sched: ExploringSched, sanitizer: Sanitizer) -> None:
        self.kernel = kernel
        self.sched = sched
        self.sanitizer = sanitizer
        self._judge_before = silently(sched, sanitizer.before_invalidate)
        self._judge_after = silently(sched, sanitizer.after_invalidate)
        self._all_free = np.zeros(kernel.frames.table.size, dtype=np.int64)
        self._out: NDArray[np.int64] = np.empty(ENTRIES * COLUMNS_OUT, dtype=np.int64)
        self._before: set[tuple[int, int, int]] = set()
        self._suspected = False

    def before_invalidate(self, cpu: Cpu, asid: int | None, start: int | None, end: int | None) -> None:
        """See ``Watcher``. What is done to another CPU is seen there, and any flush empties a store buffer: a run of
        such flushes is one operation, and what comes with the load of a root is a part of that."""
        sched = self.sched
        seen = cpu is not sched.cpu or (sched.buffers is not None and not sched.is_at("load_root", cpu))
        if sched.runs_tasks and seen and not sched.is_at("flush", (start, end)):
            sched.point("flush", (start, end))
        sched.did(Mode.WRITE, ("tlb", cpu.index))
        self._before = self._cached(cpu) if sched.tells else set()
        self._suspected = self.sanitizer.suspects(cpu)
        self._judge_before(cpu, asid, start, end)

    def after_invalidate(self, cpu: Cpu, dropped: int) -> None:
        """See ``Watcher``."""
        sched = self.sched
        gone = self._before and self._before - self._cached(cpu)
        for pfn in sorted({leads_to for _, _, leads_to in gone}):
            sched.did(Mode.READ, ("frame", pfn))
        if gone:
            sched.did(Mode.WRITE, ("zaps", cpu.space))
        if self._suspected:
            sched.did(Mode.WRITE, ("judged", cpu.index))
        self._judge_after(cpu, dropped)

    def _cached(self, cpu: Cpu) -> set[tuple[int, int, int]]:
        """What TLBs and walk caches hold: where, of which address, and the frame that it leads to."""
        frames = self.kernel.frames
        found = entries_to_free_frames(
            cpu.words, self._all_free, frames.page_shift, frames.count, 0, 0, self._out
        )
        rows = self._out[: found * COLUMNS_OUT].reshape(found, COLUMNS_OUT).tolist()
        return {(row[0], row[2], row[3] >> frames.page_shift) for row in rows}


def depend_on_flushes(kernel: ArchKernel, sched: ExploringSched, sanitizer: Sanitizer) -> None:
    """Let what makes judges look at caches be an access to what flushes drop, and where something was found, to the
    root without which a CPU cannot use it."""
    events: Any = kernel.events
    shift = kernel.frames.page_shift
    table_returned, zap_finds, gather_end = events.table_returned, events.zap_finds, events.gather_end

    def returned(mm: mm_struct, table: int, size: int) -> None:
        table_returned(mm, table, size)
        for pfn in range(table >> shift, (table + size - 1 >> shift) + 1):
            sched.did(Mode.WRITE, ("frame", pfn))
        for cpu in kernel.cpus:
            if sanitizer.suspects(cpu):
                sched.did(Mode.READ, ("root", cpu.index))

    def finds(mm: mm_struct, start: int, end: int) -> None:
        zap_finds(mm, start, end)
        sched.did(Mode.READ, ("zaps", mm.serial))

    def ends(mm: mm_struct) -> None:
        gather_end(mm)
        for cpu in kernel.cpus:
            sched.did(Mode.READ, ("judged", cpu.index))

    events.table_returned, events.zap_finds, events.gather_end = returned, finds, ends
