"""TLB flushes needed against flushes issued, per kind of mm call.

The emulator knows what every TLB and walk cache holds, so each invalidation can be judged: it was *needed*
if, at that moment, it dropped at least one translation that the tables no longer support (page gone, other
frame, fewer rights, or a cached table that is no longer linked), else *redundant*. A flush is *missing* if
such a translation is still held by a CPU when the call returns; it is counted once per CPU.

Only the hull of what a call changed is searched, so calls that change nothing cost nothing.
"""

from __future__ import annotations

import attrs

from polymmu.events import Observer
from polymmu.hardware.cpu import Cpu
from polymmu.hooks import ArchKernel
from polymmu.structs import mm_struct

__all__ = ["FlushAudit"]

TOP = 1 << 64


@attrs.define
class Tally:
    """Flushes of one kind of call."""

    issued: int = 0
    needed: int = 0
    redundant: int = 0
    missing: int = 0


@attrs.define
class Work:
    """What one task is in the middle of. ``hull``: mm slot -> the mm, and what was changed in it since the outermost
    ``call`` began."""

    call: str = ""
    depth: int = 0
    hull: dict[int, tuple[mm_struct, int, int]] = attrs.field(factory=dict)


class FlushAudit(Observer):
    """Judges every invalidation of ``kernel``'s CPUs. Also each CPU's watcher of invalidations.

    Changes and flushes are the current task's; an interrupt works for who asked for it. What a flush drops may be what
    another task has changed: then it was needed too.
    """

    def __init__(self, kernel: ArchKernel) -> None:
        self.kernel = kernel
        self.by_call: dict[str, Tally] = {}
        self._work: dict[object, Work] = {}
        self._switching = False

    def _mine(self) -> Work:
        context = self.kernel.sched.context
        context = getattr(context, "asker", None) or context
        work = self._work.get(context)
        if work is None:
            work = self._work[context] = Work()
        return work

    # --- what changed
    def mm_call_begin(self, mm: mm_struct, name: str) -> None:
        work = self._mine()
        if not work.depth:
            work.hull.clear()
            work.call = name
        work.depth += 1

    def mm_call_end(self, mm: mm_struct, name: str) -> None:
        work = self._mine()
        work.depth -= 1
        if not work.depth:
            self._settle(work, work.call)
            work.call = ""

    def fault(self, mm: mm_struct, addr: int, kind: str, n: int) -> None:
        work = self._mine()
        if work.hull and not work.depth:
            self._settle(work, "fault")

    def entries_changed(self, mm: mm_struct, start: int, end: int, n: int, what: str) -> None:
        widen(self._mine(), mm, start, end or TOP)

    def table_unhooked(self, mm: mm_struct, start: int, end: int) -> None:
        widen(self._mine(), mm, start, end or TOP)

    # --- what was flushed
    def before_invalidate(self, cpu: Cpu, asid: int | None, start: int | None, end: int | None) -> None:
        """``cpu`` is about to drop translations of ``asid`` (None: all) in [start, end) (None: everything)."""
        mm = self.kernel.active_mm[cpu.index]
        # Between loading a root and saying so. A broadcast also reaches CPUs that never ran a program.
        self._switching = cpu.root >= 0 and (mm is None or mm.serial != cpu.space)
        tally = self._tally("switch_mm" if self._switching else self._mine().call or "fault")
        tally.issued += 1
        if self._switching:
            return  # judged by what it drops
        if mm is not None and self._drops_stale(cpu, mm, start, end):
            tally.needed += 1
        else:
            tally.redundant += 1

    def _drops_stale(self, cpu: Cpu, mm: mm_struct, start: int | None, end: int | None) -> bool:
        for work in self._work.values():
            hull = work.hull.get(mm.slot)
            if hull is not None:
                low = hull[1] if start is None else max(start, hull[1])
                high = hull[2] if not end else min(end, hull[2])
                if low < high and cpu.count_stale(None, cpu.root, low, high):
                    return True
        return False

    def after_invalidate(self, cpu: Cpu, dropped: int) -> None:
        """The invalidation announced last dropped ``dropped`` entries."""
        if self._switching:
            tally = self._tally("switch_mm")
            if dropped:
                tally.needed += 1
            else:
                tally.redundant += 1

    def _settle(self, work: Work, call: str) -> None:
        """``call`` is over: its flushes must have come. Where another is at work in the same mm, that one is asked."""
        for slot, (mm, low, high) in work.hull.items():
            others = (each for each in self._work.values() if each is not work and each.depth)
            other = next((each for each in others if slot in each.hull), None)
            if other is not None:
                widen(other, mm, low, high)
                continue
            for cpu in self.kernel.cpus:
                if self.kernel.lazy >> cpu.index & 1:
                    continue  # it makes up for that when it comes back
                if self.kernel.active_mm[cpu.index] is mm and cpu.count_stale(None, cpu.root, low, high):
                    self._tally(call).missing += 1
        work.hull.clear()

    def _tally(self, call: str) -> Tally:
        tally = self.by_call.get(call)
        if tally is None:
            tally = self.by_call[call] = Tally()
        return tally

    def section(self) -> dict[str, object]:
        """The ``flushes`` section of a report."""
        total = {
            field: sum(getattr(tally, field) for tally in self.by_call.values())
            for field in ("issued", "needed", "redundant", "missing")
        }
        return {**total, "by_call": {name: attrs.asdict(self.by_call[name]) for name in sorted(self.by_call)}}


def widen(work: Work, mm: mm_struct, start: int, end: int) -> None:
    """``work`` has also changed [start, end) of ``mm``."""
    known = work.hull.get(mm.slot)
    if known is not None:
        start, end = min(start, known[1]), max(end, known[2])
    work.hull[mm.slot] = mm, start, end
