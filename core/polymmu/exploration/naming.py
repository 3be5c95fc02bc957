"""What shared objects are called: ``pte of 0x10000 in mm a``, not ``0x7080``.

An operation names its object by what the machine knows: a physical address, a frame, a lock. Whoever reads a schedule
wants to know which mapping that is. So all page tables of all mms are read whenever one of them may have changed, and
what a table was is remembered: who reads it after it was freed still reads *that* one.

Only looks, and only where a schedule is told; a search has no use for words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

from polymmu.exploration.schedule import name_of
from polymmu.hardware.layout import ADDRESS_BITS, RadixLayout
from polymmu.hardware.scans import read_run
from polymmu.hooks import ArchKernel
from polymmu.mm.tables import format_of
from polymmu.sched.locks import Lock
from polymmu.structs import PG_CACHE, mm_struct
from polymmu.workload.scenario import ScenarioRun

__all__ = ["Namer"]


@attrs.frozen
class Table:
    """One page table: of ``mm`` (in words), its level's name, what it covers from ``base`` on, ``span`` an entry."""

    mm: str
    word: str
    start: int
    size: int
    width: int
    base: int
    span: int

    def entry(self, pa: int) -> str:
        """The entry at ``pa`` in words."""
        address = self.base + (pa - self.start) // self.width * self.span
        return f"{self.word} of {address:#x} in {self.mm}"

    def overlaps(self, other: Table) -> bool:
        """Whether both are in the same memory."""
        return self.start < other.start + other.size and other.start < self.start + self.size


class Namer:
    """Words for the shared objects of the machine that ``run`` runs on; ``mms``: all there are, by serial."""

    def __init__(self, run: ScenarioRun, mms: Mapping[int, mm_struct]) -> None:
        self._run = run
        self._kernel: ArchKernel = run.machine.kernel
        self._mms = mms
        self._tables: dict[int, Table] = {}
        """By their first address; those that are gone, too, until something else is there."""
        self._live: set[int] = set()
        """First addresses of those that a walk finds now."""
        self._locks: dict[Lock, str] = {}
        self.look()

    # ------------------------------------------------------------------ looking
    def look(self) -> None:
        """Read all page tables, and see which locks there are."""
        sched: Any = self._kernel.sched
        outer, sched.watches = sched.watches, False
        self._live.clear()
        for mm in self._mms.values():
            if mm.layout is not None:
                self._read(mm, self._mm(mm), 0, mm.pgd, 0)
        for mm in self._mms.values():
            self._locks_of(mm, self._mm(mm))
        for name, file in self._run.files.items():
            self._locks_of(file.file.mapping, f"file {name}")
        sched.watches = outer

    def _locks_of(self, owner: Any, said: str) -> None:
        for field in attrs.fields(type(owner)):
            lock = getattr(owner, field.name, None)
            if isinstance(lock, Lock):
                self._locks[lock] = f"{lock.name} of {said}"

    def _mm(self, mm: mm_struct) -> str:
        names = [name for name, held in self._run.mms.items() if held.struct is mm]
        return f"mm {names[0] if names else mm.serial}"

    def _read(self, mm: mm_struct, owner: str, level: int, start: int, base: int) -> None:
        layout = mm.layout
        width, n = layout.entry_bytes[level], layout.entries_of(level)
        table = Table(
            owner,
            layout.names[level],
            start,
            n * width,
            width,
            base,
            layout.span_of(level),
        )
        for other in [each.start for each in self._tables.values() if each.overlaps(table)]:
            del self._tables[other]
        self._tables[start] = table
        self._live.add(start)
        if level == layout.pte_level:
            self._lock_of_table(mm, table)
            return
        kernel, entries = self._kernel, format_of(mm, level)
        values = read_run(kernel.ram, start, width, kernel.shape.byte_order, n)
        for index in np.flatnonzero(values != np.uint64(entries.empty)).tolist():
            value = int(values[index])
            child = entries.table_of(value)
            if not value & entries.leaf_mask:
                self._read(mm, owner, level + 1, child, _address(layout, level, base, index))

    def _lock_of_table(self, mm: mm_struct, table: Table) -> None:
        try:
            lock = self._kernel.variants.page_table_lock.lock_of(mm, table.start)
        except AssertionError:
            return  # it is about to be freed
        if lock is not mm.page_table_lock:
            self._locks[lock] = f"{lock.name} of {table.base:#x} in {table.mm}"

    # ------------------------------------------------------------------ saying
    def of(self, what: object) -> str:
        """``what``, of an operation or an access, in words; empty for what is nothing."""
        if isinstance(what, int):
            return self._entry(what)
        if isinstance(what, Lock):
            return self._lock(what)
        if isinstance(what, tuple) and len(what) == 2 and what[0] == "frame":
            return self._frame(int(what[1]))
        if isinstance(what, tuple) and len(what) == 2 and what[0] == "tlb":
            return f"TLB of CPU {what[1]}"
        if isinstance(what, tuple):
            return " ".join(name_of(part) or str(part) for part in what)
        index = getattr(what, "index", None)
        if isinstance(index, int) and hasattr(what, "interrupts_enabled"):
            return f"interrupts of CPU {index}"
        return name_of(what)

    def _entry(self, pa: int) -> str:
        table = self._table_at(pa)
        if table is None or table.word != "pte":
            self.look()  # a table was made or went
            table = self._table_at(pa)
        if table is None:
            return f"{pa:#x}"
        return table.entry(pa) + ("" if table.start in self._live else ", a table cut off")

    def _table_at(self, pa: int) -> Table | None:
        for table in self._tables.values():
            if table.start <= pa < table.start + table.size:
                return table
        return None

    def _lock(self, lock: Lock) -> str:
        if lock not in self._locks:
            self.look()
        return self._locks.get(lock, lock.name)

    def _frame(self, pfn: int) -> str:
        frames = self._kernel.frames
        said = f"frame {pfn}"
        tables = [each for each in self._tables.values() if each.start >> frames.page_shift == pfn]
        if frames.flags[pfn] & PG_CACHE:
            return f"{said} (page {frames.index[pfn]} of a file)"
        if tables:
            return f"{said} ({tables[0].word} table of {tables[0].base:#x} in {tables[0].mm})"
        return said


def _address(layout: RadixLayout, level: int, base: int, index: int) -> int:
    """The first address below entry ``index`` of a table of ``level`` that covers addresses from ``base`` on."""
    if level or not layout.regions:
        return base + (index << layout.shift_of(level))
    inside = layout.index_bits[0] - layout.regions
    region, rest = index >> inside, index & (1 << inside) - 1
    return region << (ADDRESS_BITS - layout.regions) | rest << layout.shift_of(0)
