"""INV-WALK, INV-COW and INV-RMAP: what the kernel holds of a program's pages must be what the program has there.

A walk without locks takes a frame by what it read. Where the frame was given back meanwhile it is somebody else's,
unless the entry leads there again (INV-WALK). A store in the name of a private mapping goes to a page of its own: one
that belongs to a file others would see (INV-COW). What comes back from the swap area is what went there (INV-RMAP).
"""

from __future__ import annotations

from polymmu.mm.tables import pfn_of, read_pte
from polymmu.mm.vma import find_vma
from polymmu.sanitize.judge import Bench, Judge
from polymmu.sanitize.violation import Happened
from polymmu.structs import PG_ANON, PG_SWAPCACHE, VM_SHARED, mm_struct

__all__ = ["HeldPages"]

PTE = -1
"""Rank of the ptes' level."""


class HeldPages(Judge):
    """Watches ``gup``, and faults from the swap area."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._found: dict[int, tuple[int, int, int, Happened]] = {}
        """Per CPU: the pte that its walker read first, the frame there, its generation then, and when."""

    def lockless_read(self, mm: mm_struct, cpu: int, rank: int, entry: int, table: int) -> None:
        if rank != PTE:
            self._found.pop(cpu, None)
        elif cpu not in self._found or self._found[cpu][0] != entry:
            pfn = self._frame_in(mm, entry)
            if pfn >= 0:
                when = self.bench.now(f"lockless walker found frame {pfn}")
                self._found[cpu] = entry, pfn, self.kernel.frames.generation[pfn], when

    def page_pinned(self, mm: mm_struct, cpu: int, rank: int, entry: int, pfn: int) -> None:
        found = self._found.pop(cpu, None)
        if found is None or found[:2] != (entry, pfn) or self._frame_in(mm, entry) == pfn:
            return
        if self.kernel.frames.generation[pfn] != found[2]:
            self.bench.tell("INV-WALK", found[3], "and holds it now, though it was freed since")

    def page_stored(self, mm: mm_struct, addr: int, pfn: int) -> None:
        vma = find_vma(mm, addr)
        if vma is None or vma.vm_start > addr or vma.vm_flags & VM_SHARED:
            return
        if not self.kernel.frames.flags[pfn] & PG_ANON:
            here = self.bench.now(f"a store for the private mapping at {addr:#x}")
            self.bench.tell("INV-COW", here, f"it goes to frame {pfn}, which is a page of the file")

    def swapped_in(self, mm: mm_struct, addr: int, slot: int, pfn: int) -> None:
        frames = self.kernel.frames
        if not frames.flags[pfn] & PG_SWAPCACHE or frames.private[pfn] != slot:
            here = self.bench.now(f"a fault brings slot {slot} to {addr:#x}")
            self.bench.tell("INV-RMAP", here, f"and maps frame {pfn}, which is in the swap cache for another")

    def _frame_in(self, mm: mm_struct, entry: int) -> int:
        """The frame that the pte at physical address ``entry`` maps; -1: none that is counted."""
        value = read_pte(mm, entry)
        if not self.kernel.shape.pte.is_mapped(value):
            return -1
        pfn = pfn_of(self.kernel.shape, value)
        return pfn if pfn < self.kernel.frames.count else -1
