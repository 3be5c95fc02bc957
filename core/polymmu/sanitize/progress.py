"""INV-PROG: a loop that lets go of its lock half way comes to an end all the same.

Only truncation has such a loop here. Each of its rounds completes a vma or moves on inside one, so what it visits
is bounded by what is mapped; far above that bound it goes round for ever. The run is ended then, for nothing else
would end it.
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
        self._allowance: dict[object, tuple[int, Happened]] = {}

    def truncation_begin(self, mapping: address_space) -> None:
        vmas = (*mapping.i_mmap, *mapping.i_mmap_nonlinear.values())
        mapped = sum(vma.vm_end - vma.vm_start for vma in vmas)
        pages = GENEROUS * (mapped >> self.kernel.shape.layout.page_shift) + FLOOR
        self._allowance[self.kernel.sched.context] = pages, self.bench.now("truncation begins")

    def truncation_end(self, mapping: address_space) -> None:
        self._allowance.pop(self.kernel.sched.context, None)

    def entries_visited(self, mm: mm_struct, what: str, n: int) -> None:
        known = self._allowance.get(self.kernel.sched.context)
        if known is None or what != "zap":
            return
        left, began = known
        self._allowance[self.kernel.sched.context] = left - n, began
        if left < n:
            self.bench.tell("INV-PROG", began, "truncation visits the same entries again and again")
            raise NoProgress(str(self.bench.violations[-1]))
