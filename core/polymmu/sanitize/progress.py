"""INV-PROG: a loop that lets go of its lock half way comes to an end all the same.

Whatever a call or a truncation visits is bounded by what is mapped, however often it gives way: each of its rounds
completes something or moves on. Far above that bound it goes round for ever. The run is ended then, for nothing else
would end it.

A loop is judged by its own visits: a call that has to make room first walks from pages to their ptes in everybody's
tables, as often as there are pages, and that says nothing about it.
"""

from __future__ import annotations

from polymmu.sanitize.judge import Bench, Judge
from polymmu.sanitize.violation import Happened
from polymmu.structs import address_space, mm_struct

__all__ = ["NoProgress", "Progress"]

GENEROUS = 8
"""Times what is mapped may be visited: forks and splits meanwhile add to it."""
FLOOR = 1 << 13


class NoProgress(AssertionError):
    """A loop does not end."""


class Progress(Judge):
    """See the top of the module."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._at_work: dict[object, list[tuple[str, int, Happened]]] = {}
        """Context -> what it is in, innermost last: its name, the entries that it may still visit, when it began."""

    def truncation_begin(self, mapping: address_space) -> None:
        vmas = (*mapping.i_mmap, *mapping.i_mmap_nonlinear.values())
        mapped = sum(vma.vm_end - vma.vm_start for vma in vmas)
        self._begin("truncation", mapped >> self.kernel.shape.layout.page_shift)

    def truncation_end(self, mapping: address_space) -> None:
        self._end()

    def mm_call_begin(self, mm: mm_struct, name: str) -> None:
        upper = sum(mm.layout.entries_of(level) for level in range(mm.layout.pte_level))
        self._begin(name, mm.total_vm + (mm.map_count + 1) * upper)

    def mm_call_end(self, mm: mm_struct, name: str) -> None:
        self._end()

    def _begin(self, name: str, entries: int) -> None:
        began = self.bench.now(f"{name} begins")
        self._at_work.setdefault(self.kernel.sched.context, []).append(
            (name, GENEROUS * entries + FLOOR, began)
        )

    def _end(self) -> None:
        self._at_work[self.kernel.sched.context].pop()

    def entries_visited(self, mm: mm_struct, what: str, n: int) -> None:
        at_work = self._at_work.get(self.kernel.sched.context)
        if not at_work or what == "rmap":
            return
        name, left, began = at_work[-1]
        at_work[-1] = name, left - n, began
        if left < n:
            self.bench.tell("INV-PROG", began, f"{name} visits the same entries again and again ({what})")
            raise NoProgress(str(self.bench.violations[-1]))
