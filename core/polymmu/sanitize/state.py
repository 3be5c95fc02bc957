"""What page tables and counters say of each other: INV-REF, INV-RMAP, INV-PTALL, INV-TRUNC, INV-COW, INV-DIRTY.

All tables of all mms are read, when nobody is in the middle of changing one, and everything that is kept twice is
compared: ptes against mapcount and rss, tables against their number, file pages against the page cache and i_mmap.
A look costs in proportion to what is mapped, so the next one waits until about as much work was done.

Not judged: huge mappings, mappings of a driver's frames, and reference counts from above (who else holds a page is
not written anywhere; the balance at the end shows it).

First reading: ``State.look``, ``_vma``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polymmu.hardware.cpu import Cpu
from polymmu.hardware.entry import Field
from polymmu.hardware.ram import FLAGS, INDEX, MAPCOUNT, MAPPING, REFCOUNT
from polymmu.mm.tables import entries_in, format_of, read_ptes, table_runs
from polymmu.mm.vma import linear_index
from polymmu.sanitize.cached_kernels import dirty_frames
from polymmu.sanitize.judge import Bench, Judge
from polymmu.sanitize.rmap import is_in_its_file, not_found
from polymmu.sanitize.swapped import check_swap
from polymmu.sanitize.violation import Happened
from polymmu.structs import (
    PG_ANON,
    PG_CACHE,
    PG_DIRTY,
    PG_RESERVED,
    VM_NONLINEAR,
    VM_PFNMAP,
    VM_SHARED,
    address_space,
    mm_struct,
    vm_area_struct,
)

__all__ = ["State"]

Pfns = NDArray[np.int64]
STORED = 4096
"""Frames that one TLB look may find."""
PATIENCE = 512
"""Pages' worth of work after which a look is always worth it."""


class State(Judge):
    """Reads all tables now and then, and always at the end. See the top of the module."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.stored: dict[int, tuple[int, Happened]] = {}
        """File frame that a TLB let a store through to, while it was not known to be dirty -> its generation, when."""
        self.looks = 0
        self._out = np.empty(STORED, dtype=np.int64)
        self._frames = self.kernel.frames.table.reshape(-1)
        self._work = 0
        self._cost = 0
        self._last = bench.now("the last look found nothing")

    # ------------------------------------------------------------------ when
    def entries_visited(self, mm: mm_struct, what: str, n: int) -> None:
        self._work += n

    def fault(self, mm: mm_struct, addr: int, kind: str, n: int) -> None:
        self._work += n

    def mm_call_end(self, mm: mm_struct, name: str) -> None:
        if self._work + PATIENCE >= self._cost:
            self._look_if_settled()

    def truncation_end(self, mapping: address_space) -> None:
        self._look_if_settled()

    def finish(self) -> None:
        self._look_if_settled()

    def _look_if_settled(self) -> None:
        if all(self.bench.is_settled(mm) for mm in self.bench.mms.values()):
            self.look()

    # ------------------------------------------------------------------ stores that hardware noted
    def before_invalidate(self, cpu: Cpu) -> None:
        frames = self.kernel.frames
        mm = self.kernel.active_mm[cpu.index]
        if self.kernel.shape.pte.dirty is None or mm is None or not mm.mm_users or mm.serial != cpu.space:
            return
        found = dirty_frames(
            cpu.words, self._frames, frames.page_shift, frames.count, PG_CACHE, PG_DIRTY, self._out
        )
        for pfn in self._out[:found].tolist():
            if self.stored.get(pfn, (-1,))[0] != frames.generation[pfn]:
                self.stored[pfn] = frames.generation[pfn], self.bench.now(f"frame {pfn} was stored to")

    def page_cleaned(self, pfn: int) -> None:
        self.stored.pop(pfn, None)

    def page_uncached(self, mapping: address_space, index: int, pfn: int) -> None:
        self.stored.pop(pfn, None)
        if self.kernel.frames.mapcount[pfn]:
            here = self.bench.now(f"page {index} leaves the cache")
            self.bench.tell("INV-TRUNC", here, f"{self.kernel.frames.mapcount[pfn]} ptes still map it")

    # ------------------------------------------------------------------ a look
    def look(self) -> None:
        """Compare everything now. Nobody may be in the middle of a change."""
        self.looks += 1
        for cpu in self.kernel.cpus:
            self.before_invalidate(cpu)
        found: list[Pfns] = []
        dirty: list[Pfns] = []
        private: list[Pfns] = []
        huge = False
        for mm in self._running():
            self._tables(mm)
            anon = files = 0
            for vma in mm.vmas.values():
                if vma.huge_size or vma.vm_flags & VM_PFNMAP:
                    huge = True
                    continue
                mapped = self._vma(vma, found, dirty, private)
                anon, files = anon + mapped[0], files + mapped[1]
            if not huge and (anon, files) != (mm.anon_rss, mm.file_rss):
                self._tell(
                    "INV-REF",
                    f"mm {mm.serial} counts {mm.anon_rss} anonymous and {mm.file_rss} file pages, "
                    f"its tables map {anon} and {files}",
                )
        self._counts(_joined(found), _joined(private), huge)
        check_swap(self.kernel, self._running(), self._tell)
        self._dirt(set(_joined(dirty).tolist()))
        self._cost = sum(map(len, found)) // 4
        self._work = 0
        self._last = self.bench.now("the look before found this in order")

    def _running(self) -> list[mm_struct]:
        """The address spaces that programs use."""
        return [mm for mm in self.bench.mms.values() if mm is not self.kernel.init_mm and mm.mm_users]

    def _tell(self, invariant: str, text: str) -> None:
        self.bench.tell(invariant, self._last, text)

    def _tables(self, mm: mm_struct) -> None:
        """INV-PTALL, and that linked tables are held: count the tables that can be reached."""
        layout = mm.layout
        reached = [0] * layout.levels
        own = self.bench.own_tables.get(mm.serial, set())
        todo = [(0, mm.pgd, self.kernel.shape.limits.first_user_address, mm.task_size)]
        while todo:
            level, table, low, high = todo.pop()
            for _, value, start, _ in entries_in(mm, level, table, low, high):
                format, below = format_of(mm, level), level + 1
                if value & format.leaf_mask:
                    continue
                child = format.table_of(value)
                base = start & -layout.span_of(level)
                end = base + layout.span_of(level)
                reached[below] += 1
                if not self.kernel.frames.refcount[child >> self.kernel.frames.page_shift]:
                    self._tell("INV-WALK", f"mm {mm.serial} links table {child:#x}, whose frame is free")
                if child not in own and not _any_vma(mm, base, end):
                    self._tell(
                        "INV-PTALL",
                        f"mm {mm.serial} has a table of {layout.names[below]} at {base:#x}, no vma",
                    )
                if below < layout.pte_level:
                    todo.append((below, child, max(low, base), min(high, end)))
        if reached[-1] > mm.nr_tables[layout.pte_level]:
            self._tell("INV-REF", f"mm {mm.serial} counts {mm.nr_tables} tables, {reached} can be reached")

    def _vma(
        self, vma: vm_area_struct, found: list[Pfns], dirty: list[Pfns], private: list[Pfns]
    ) -> tuple[int, int]:
        """Judge what one vma maps; (anonymous, file pages)."""
        mm = vma.vm_mm
        shape, frames = self.kernel.shape, self.kernel.frames
        shift = mm.layout.page_shift
        pte = shape.pte
        mapping = vma.vm_file.mapping if vma.vm_file is not None else None
        nonlinear = bool(vma.vm_flags & VM_NONLINEAR)
        if mapping is not None and not is_in_its_file(vma, mapping):
            self._tell("INV-RMAP", f"vma at {vma.vm_start:#x} of mm {mm.serial} is not in its file's i_mmap")
        total = anon_total = 0
        for ptep, addr, stop in table_runs(mm, vma.vm_start, vma.vm_end):
            values = read_ptes(mm, ptep, (stop - addr) >> shift)
            at = np.flatnonzero(pte.mapped_in(values))
            values = values[at]
            pfns: Pfns = ((values & np.uint64(pte.frame_mask)) >> np.uint64(shape.pfn_shift)).view(np.int64)
            inside = pfns < frames.count
            at, values, pfns = at[inside], values[inside], pfns[inside]
            flags = frames.table[FLAGS, pfns]
            counted = flags & PG_RESERVED == 0
            at, values, pfns, flags = at[counted], values[counted], pfns[counted], flags[counted]
            anon = flags & PG_ANON != 0
            total += len(pfns)
            anon_total += int(np.count_nonzero(anon))
            found.append(pfns)
            if pte.dirty is not None:
                dirty.append(pfns[_has(values, pte.dirty)])
            if not vma.vm_flags & VM_SHARED:
                writable = _has(values, pte.write)
                private.append(pfns[writable])
                self._each(
                    vma,
                    "INV-COW",
                    addr,
                    at[writable & ~anon],
                    "a page of a file is writable in a private vma",
                )
            index = linear_index(vma, addr) + at
            missed = not_found(self.kernel, vma, index[anon], pfns[anon])
            self._each(
                vma, "INV-RMAP", addr, at[anon][missed], "no walk from an anonymous page finds its pte"
            )
            if mapping is not None:
                index = frames.table[INDEX, pfns] if nonlinear else index
                wrong = ~anon & (
                    (frames.table[MAPPING, pfns] != mapping.slot + 1) | (frames.table[INDEX, pfns] != index)
                )
                self._each(vma, "INV-TRUNC", addr, at[wrong], "a page is mapped that its file does not have")
                assert vma.vm_file is not None
                beyond = index << shift >= vma.vm_file.size
                self._each(
                    vma, "INV-TRUNC", addr, at[beyond & ~wrong], "a page beyond the end of the file is mapped"
                )
            elif len(at):
                self._each(vma, "INV-REF", addr, at[~anon], "a page that is not anonymous is mapped")
        return anon_total, total - anon_total

    def _each(self, vma: vm_area_struct, invariant: str, addr: int, at: NDArray[np.int64], text: str) -> None:
        if len(at):
            va = addr + (int(at[0]) << vma.vm_mm.layout.page_shift)
            self._tell(invariant, f"{text}: {va:#x} of mm {vma.vm_mm.serial}")

    def _counts(self, mapped: Pfns, private: Pfns, huge: bool) -> None:
        """INV-REF: mapcount is the number of ptes, references are no fewer. INV-COW: writable means unshared."""
        frames = self.kernel.frames
        pfns, ptes = np.unique(mapped, return_counts=True)
        counts = frames.table[MAPCOUNT, pfns]
        for pfn, n, count in _first(counts != ptes, pfns, ptes, counts):
            self._tell("INV-REF", f"frame {pfn} is mapped by {n} ptes and counts {count}")
        held = frames.table[REFCOUNT, pfns]
        cached = (frames.table[FLAGS, pfns] & PG_CACHE != 0).astype(np.int64)
        for pfn, n, count in _first(held < ptes + cached, pfns, ptes + cached, held):
            self._tell("INV-REF", f"frame {pfn} has {n} users and {count} references")
        if not huge:
            claimed = np.flatnonzero(frames.table[MAPCOUNT, : self.kernel.free.bump])
            for pfn in np.setdiff1d(claimed, pfns)[:1].tolist():
                self._tell("INV-REF", f"frame {pfn} counts {frames.mapcount[pfn]} ptes, none maps it")
        shared = np.intersect1d(private, pfns[ptes > 1])
        for pfn in shared[:1].tolist():
            self._tell(
                "INV-COW", f"frame {pfn} is writable in a private vma and mapped {frames.mapcount[pfn]} times"
            )

    def _dirt(self, dirty: set[int]) -> None:
        """INV-DIRTY: what was stored to is noted in the page or in a pte."""
        frames = self.kernel.frames
        for pfn, (generation, when) in list(self.stored.items()):
            flags = frames.flags[pfn]
            if frames.generation[pfn] != generation or flags & PG_DIRTY:
                del self.stored[pfn]
            elif flags & PG_CACHE and pfn not in dirty and not self._is_huge(pfn):
                del self.stored[pfn]
                self.bench.tell("INV-DIRTY", when, f"frame {pfn} is clean in its page and in every pte")

    def _is_huge(self, pfn: int) -> bool:
        host = self.kernel.mappings.objects[self.kernel.frames.mapping[pfn] - 1].host
        return host is not None and host.huge_size > 0


def _has(values: NDArray[np.uint64], field: Field) -> NDArray[np.bool_]:
    """Which of ``values`` have a property."""
    holds: NDArray[np.bool_] = values & np.uint64(field.mask) == np.uint64(field.on)
    return holds


def _joined(parts: list[Pfns]) -> Pfns:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _first(wrong: NDArray[np.bool_], *columns: Pfns) -> list[list[int]]:
    """The first row for which ``wrong`` holds, if any."""
    return [[int(column[n]) for column in columns] for n in np.flatnonzero(wrong)[:1].tolist()]


def _any_vma(mm: mm_struct, start: int, end: int) -> bool:
    """Whether a vma overlaps [start, end)."""
    for low in mm.vmas.irange(maximum=end - 1, reverse=True):
        return bool(mm.vmas[low].vm_end > start)
    return False
