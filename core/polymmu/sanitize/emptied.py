"""INV-TLB: what a zap finds empty nobody reaches any more when the zap is over, whoever emptied it.

Of two calls that drop the same page one clears the pte, and the other finds nothing to do. If that one returns before
the first has flushed, its caller goes on to use a page that it has just given up. So whatever is unmapped and still
cached when a zap comes by, under the table's lock, must be gone from the TLBs of all CPUs by the end of its gather.

Only entries whose page is unmapped count: rights are another judge's, and so is a frame that was freed.
"""

from __future__ import annotations

import attrs

from polymmu.hardware.cpu import Cpu
from polymmu.sanitize.judge import Bench, Judge
from polymmu.sanitize.violation import Happened
from polymmu.structs import mm_struct

__all__ = ["Emptied"]

SUSPECTS = 16
"""Pages noted at one look, per CPU; more of them are the same mistake."""


@attrs.frozen(eq=False)
class Suspect:
    """An unmapped page that a CPU has cached."""

    cpu: Cpu
    mm: mm_struct
    page: int
    found: Happened


class Emptied(Judge):
    """See the top of the module."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.page_size = self.kernel.shape.layout.page_size
        self._open: dict[object, list[Suspect]] = {}
        """By context: what its gather has come by."""
        self._guilty: list[Suspect] = []
        """What is still there after the gather that came by: told when its CPU next runs user code."""

    def zap_finds(self, mm: mm_struct, start: int, end: int) -> None:
        if not self.bench.is_shared(mm):
            return  # whatever is gone went in calls that are over
        for cpu in self.kernel.cpus:
            if self._runs(cpu, mm):
                found = [
                    Suspect(cpu, mm, page, self.bench.now(f"a zap finds {page:#x} unmapped"))
                    for page in self._stale_pages(cpu, start, end)
                    if cpu.translate(page).pa is None
                ]
                if found:
                    self._open.setdefault(self.kernel.sched.context, []).extend(found)

    def gather_end(self, mm: mm_struct) -> None:
        self._guilty += self._open.pop(self.kernel.sched.context, ())

    def suspects_on(self, cpu: Cpu) -> bool:
        return any(each.cpu is cpu for found in (*self._open.values(), self._guilty) for each in found)

    def after_invalidate(self, cpu: Cpu) -> None:
        self._review(cpu)

    def fault(self, mm: mm_struct, addr: int, kind: str, n: int) -> None:
        """What is mapped again may be used."""
        for cpu in self.kernel.cpus:
            self._review(cpu)

    def to_user(self, cpu: Cpu) -> None:
        if not self._guilty:
            return
        self._review(cpu)
        told, self._guilty = (
            [each for each in self._guilty if each.cpu is cpu],
            [each for each in self._guilty if each.cpu is not cpu],
        )
        for suspect in told[:1]:
            self.bench.tell(
                "INV-TLB",
                suspect.found,
                f"CPU {cpu.index} runs on, its TLB still has {suspect.page:#x}, and that zap is over",
            )

    def finish(self) -> None:
        for cpu in self.kernel.cpus:
            self.to_user(cpu)

    # ------------------------------------------------------------------ what is cached
    def _runs(self, cpu: Cpu, mm: mm_struct) -> bool:
        """Whether ``cpu`` runs ``mm``; a lazy one makes up for what it missed before it does again."""
        index = cpu.index
        return (
            self.kernel.active_mm[index] is mm
            and cpu.space == mm.serial
            and not self.kernel.lazy >> index & 1
        )

    def _review(self, cpu: Cpu) -> None:
        """Drop what ``cpu`` has forgotten, and what is mapped again."""
        if self._open:
            self._open = {context: self._left(cpu, found) for context, found in self._open.items()}
        if self._guilty:
            self._guilty = self._left(cpu, self._guilty)

    def _left(self, cpu: Cpu, suspects: list[Suspect]) -> list[Suspect]:
        return [
            each
            for each in suspects
            if each.cpu is not cpu
            or (self._runs(cpu, each.mm) and self._is_stale(cpu, each.page, each.page + self.page_size))
        ]

    def _is_stale(self, cpu: Cpu, start: int, end: int) -> bool:
        return cpu.count_stale(None, cpu.root, start, end, False) > 0

    def _stale_pages(self, cpu: Cpu, start: int, end: int) -> list[int]:
        """The first pages of [start, end) of which ``cpu`` has cached more than the tables say."""
        found: list[int] = []
        todo = [(start, end)]
        while todo and len(found) < SUSPECTS:
            low, high = todo.pop()
            if not self._is_stale(cpu, low, high):
                continue
            if high - low <= self.page_size:
                found.append(low)
                continue
            middle = low + (high - low) // 2 & -self.page_size
            todo += [(middle, high), (low, middle)]
        return found
