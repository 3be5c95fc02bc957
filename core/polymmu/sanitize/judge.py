"""What every judge shares: the machine it watches, who is in the middle of something, and whom it tells."""

from __future__ import annotations

from polymmu.events import Observer
from polymmu.hardware.cpu import Cpu
from polymmu.hooks import ArchKernel
from polymmu.sanitize.violation import Happened, Violation
from polymmu.sched.lockdep import Lockdep, Mistake, place_here
from polymmu.structs import mm_struct

__all__ = ["Bench", "Judge"]

MOST = 100
"""Violations kept; one broken rule breaks at every step, and the first ones say it all."""


class Bench(Observer):
    """The verdicts, and what judges must know of others' work: calls and truncations that have not returned yet."""

    def __init__(self, kernel: ArchKernel) -> None:
        self.kernel = kernel
        self.violations: list[Violation] = []
        self.lockdep = Lockdep(kernel.sched, self._lock_mistake)
        self.mms: dict[int, mm_struct] = {}
        """serial -> every mm that has a root table now"""
        self.own_tables: dict[int, set[int]] = {}
        """serial -> tables that came with its root, or were its root; they may lie where no vma is"""
        self._roots: dict[int, int] = {}
        self._calls: dict[int, int] = {}
        self._truncations = 0

    # ------------------------------------------------------------------ telling
    def now(self, what: str) -> Happened:
        """``what`` happens, here and now."""
        sched = self.kernel.sched
        cpu = sched.cpu.index
        task = getattr(sched.context, "name", "the task")
        place = place_here(sched) if sched.tells_places else ""
        return Happened(what, cpu, task, sched.clock[cpu], place)

    def tell(self, invariant: str, first: Happened, second: str) -> None:
        """``invariant`` is broken: ``second`` happens now, after ``first``."""
        if len(self.violations) < MOST:
            self.violations.append(Violation(invariant=invariant, first=first, second=self.now(second)))

    def _lock_mistake(self, mistake: Mistake) -> None:
        now = self.now(mistake.text)
        first = Happened(what="lock taken", cpu=now.cpu, task="?", time=0, place=mistake.first)
        self.violations.append(Violation(invariant=mistake.invariant, first=first, second=now))

    # ------------------------------------------------------------------ who is at work
    def mm_call_begin(self, mm: mm_struct, name: str) -> None:
        self._calls[mm.serial] = self._calls.get(mm.serial, 0) + 1

    def mm_call_end(self, mm: mm_struct, name: str) -> None:
        self._calls[mm.serial] -= 1
        if not self._calls[mm.serial]:
            del self._calls[mm.serial]

    def truncation_begin(self, mapping: object) -> None:
        self._truncations += 1

    def truncation_end(self, mapping: object) -> None:
        self._truncations -= 1

    def table_allocated(self, mm: mm_struct, level: int, table: int, size: int) -> None:
        if level and mm.serial in self.mms:
            return
        own = self.own_tables.setdefault(mm.serial, set())
        if level:
            own.add(table)
            return
        if mm.serial in self.mms:  # a new root above the old one
            own.add(self._roots[mm.serial])
        self.mms[mm.serial] = mm
        self._roots[mm.serial] = table

    def table_freed(self, mm: mm_struct, level: int, table: int, size: int) -> None:
        if not level:
            self.mms.pop(mm.serial, None)
            self.own_tables.pop(mm.serial, None)
            self._roots.pop(mm.serial, None)
        else:
            self.own_tables.get(mm.serial, set()).discard(table)

    def is_shared(self, mm: mm_struct) -> bool:
        """Whether several are, or may be, in the middle of changing ``mm``."""
        return self._calls.get(mm.serial, 0) + self._truncations > 1

    def is_settled(self, mm: mm_struct) -> bool:
        """Whether nobody is in the middle of changing ``mm``: what it says now is what everybody must see."""
        return (
            mm.serial not in self._calls
            and not mm.tlb_flush_pending
            and not self._truncations
            and not any(lock.spins for lock, _ in self.lockdep.held())
        )


class Judge(Observer):
    """Watches over one or a few invariants. ``to_user`` is called before ``cpu`` makes accesses of user code."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.kernel = bench.kernel

    def to_user(self, cpu: Cpu) -> None:
        """``cpu`` is about to run user code: what it has cached may be used from now on."""

    def suspects_on(self, cpu: Cpu) -> bool:
        """Whether it makes a difference if ``cpu`` drops what it has cached before or after it runs user code."""
        return False

    def before_invalidate(self, cpu: Cpu) -> None:
        """``cpu`` is about to drop translations."""

    def after_invalidate(self, cpu: Cpu) -> None:
        """``cpu`` has dropped translations."""

    def finish(self) -> None:
        """The run is over: judge what nobody asked for yet."""
