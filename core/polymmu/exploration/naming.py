"""What shared objects are called: ``pte of 0x10000 in mm a``, not ``0x7080``.

An operation names its object by what the machine knows: a physical address, a frame, a lock, a slot of a slab. Whoever
reads a schedule wants to know which mapping that is. So all page tables of all mms are read whenever one of them may
have changed, and what a table was is remembered: who reads it after it was freed still reads *that* one. Objects of a
slab keep their number, for that one was used again is what some races are about.

Only looks, and only where a schedule is told; a search has no use for words.
"""

from __future__ import annotations

import re
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
from polymmu.slab import Slab
from polymmu.structs import PG_CACHE, File, address_space, anon_vma, mm_struct, vm_area_struct
from polymmu.workload.scenario import ScenarioRun

__all__ = ["Namer"]

OF_A_CPU = {
    "tlb": "TLB of CPU {}",
    "root": "root of CPU {}",
    "switch": "switch of mms on CPU {}",
    "judged": "what CPU {} may still use",
}
"""What operations name by a word and a CPU's number."""
OF_CPUS = re.compile(r"arch\b.*\bcpus\[(\d+)\]")
"""What an arch keeps for each CPU, in a list of that name."""


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
        self._locks: dict[object, str] = {}
        """By lock, and by the key of those in a frame."""
        kernel = self._kernel
        slabs: tuple[Slab[Any], ...] = (kernel.mms, kernel.vmas, kernel.mappings, kernel.anon_vmas)
        self._slabs = {slab.name: slab for slab in slabs}
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
            self._locks_of(mm)
        for thing in (*self._kernel.mappings.objects, *self._kernel.anon_vmas.objects):
            self._locks_of(thing)
        sched.watches = outer

    def _locks_of(self, owner: Any) -> None:
        for field in attrs.fields(type(owner)):
            lock = getattr(owner, field.name, None)
            if isinstance(lock, Lock):
                self._locks[lock] = f"{lock.name} of {self._thing(owner)}"

    def _mm(self, mm: mm_struct) -> str:
        names = [name for name, held in self._run.mms.items() if held.struct is mm]
        return f"mm {names[0] if names else mm.serial}"

    def _file(self, mapping: address_space) -> str:
        names = [name for name, held in self._run.files.items() if held.file.mapping is mapping]
        host = mapping.host
        return f"file {names[0] if names else host.name if host is not None else mapping.slot}"

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
            said = f"{lock.name} of {table.base:#x} in {table.mm}"
            self._locks[lock] = said
            self._locks[lock.key] = said

    # ------------------------------------------------------------------ saying
    def of(self, what: object) -> str:
        """``what``, of an operation or an access, in words; empty for what is nothing."""
        if isinstance(what, int):
            return self._entry(what)
        if isinstance(what, Lock):
            return self._lock(what)
        if isinstance(what, tuple):
            return self._tuple(*what)
        if isinstance(what, str):
            return self._field(what)
        index = getattr(what, "index", None)
        if isinstance(index, int) and hasattr(what, "interrupts_enabled"):
            return f"interrupts of CPU {index}"
        return name_of(what)

    def _tuple(self, word: Any, *of: Any) -> str:
        """What is named by a word and numbers, as the key of a lock in a frame; else an address and one up to which."""
        if word in OF_A_CPU:
            return OF_A_CPU[word].format(*of)
        if word == "runs":
            return f"whether CPU {of[0]} runs {self._mm(self._kernel.mms.objects[of[1]])}"
        if word == "zaps":
            return f"what TLBs hold of {self._mm(self._mms[of[0]])}"
        if word == "frame":
            return self._frame(of[0])
        if isinstance(word, str) and len(of) == 1:
            return self._locks.get((word, *of)) or f"{word} of {self._frame(of[0])}"
        return name_of((word, *of))

    def _field(self, name: str) -> str:
        """A shared field (``SharedFields`` gives the names): ``truncate_count of file f``, ``page 3 of file f``."""
        path, _, field = name.rpartition(".")
        first, *inner = path.split(".")
        slab, _, slot = first.partition(" ")
        if slab not in self._slabs:
            cpu = OF_CPUS.fullmatch(path)
            return name if cpu is None else f"{field} of CPU {cpu[1]}"
        thing: Any = self._slabs[slab].objects[int(slot)]
        said = self._thing(thing)
        for part in inner:
            thing = getattr(thing, part)
            said = said if isinstance(thing, File) else f"{said}'s {part}"
        field, _, page = field.partition("[")
        return f"page {page[:-1]} of {said}" if page else f"{field} of {said}"

    def _thing(self, thing: mm_struct | address_space | vm_area_struct | anon_vma) -> str:
        if isinstance(thing, mm_struct):
            return self._mm(thing)
        if isinstance(thing, address_space):
            return self._file(thing)
        if isinstance(thing, anon_vma):
            return f"anon_vma {thing.slot}"
        said = f"vma {thing.slot}"
        return said if thing.vm_mm is None else f"{said} at {thing.vm_start:#x} in {self._mm(thing.vm_mm)}"

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
        if lock in self._locks or lock.key is None:
            return self._locks.get(lock, lock.name)
        return self._tuple(*lock.key)

    def _frame(self, pfn: int) -> str:
        frames = self._kernel.frames
        said = f"frame {pfn}"
        tables = [each for each in self._tables.values() if each.start >> frames.page_shift == pfn]
        if frames.flags[pfn] & PG_CACHE:
            mapping = self._kernel.mappings.objects[frames.mapping[pfn] - 1]
            return f"{said} (page {frames.index[pfn]} of {self._file(mapping)})"
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
