"""Finding and making page tables: the walks every other part of the mm core is built from.

A walk goes from ``mm.pgd`` down, one entry per level, until the level that is asked for; what it returns is the
physical address of an entry, never its value, for the value may change until the table lock is held.

The lock of ptes is taken by ``pte_lock`` alone; which one that is, the machine file says (``mm.ptlock``). The levels
above are under ``mm.page_table_lock``. Making a table may sleep, so it happens without a lock; whoever finds the
entry filled meanwhile gives its own table back (A8.7).

First reading: ``find_entry``, ``alloc_entry``, ``pte_lock``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from polymmu.hardware.scans import read_run
from polymmu.hooks import ArchKernel
from polymmu.sched.locks import Spinlock
from polymmu.structs import VM_WRITE, EntryRun, Shape, mm_struct, vm_area_struct

__all__ = [
    "account_table",
    "alloc_entry",
    "alloc_table",
    "enter_pte",
    "entries_in",
    "find_entry",
    "format_of",
    "pfn_of",
    "pte_lock",
    "pte_lock_second",
    "pte_unlock",
    "pte_unlock_second",
    "read_entry",
    "read_pte",
    "read_ptes",
    "table_at",
    "table_runs",
]


def steps_of(mm: mm_struct) -> tuple[tuple[int, int, int, int, int, int], ...]:
    """What a walk of ``mm`` needs per level; an mm with fewer levels than the machine lacks the upper ones."""
    steps: tuple[tuple[int, int, int, int, int, int], ...] = mm.kernel.shape.steps
    return steps[-mm.layout.levels :]


def read_entry(mm: mm_struct, level: int, entry: int) -> int:
    """The value at physical address ``entry``, an entry of ``level``."""
    kernel: ArchKernel = mm.kernel
    value: int = kernel.ram.read_entry(entry, mm.layout.entry_bytes[level], kernel.shape.byte_order)
    return value


def find_entry(mm: mm_struct, addr: int, level: int = -1) -> int:
    """Physical address of ``addr``'s entry of ``level`` (default: its pte), or -1 where a table is missing."""
    kernel: ArchKernel = mm.kernel
    read, order = kernel.ram.read_entry, kernel.shape.byte_order
    layout = mm.layout
    if layout.regions:
        addr = layout.folded(addr)
    steps = kernel.shape.steps[-layout.levels :]
    table = mm.pgd
    for shift, index_mask, width, table_mask, table_shift, empty in steps[:level]:
        value = read(table + (addr >> shift & index_mask) * width, width, order)
        if value == empty:
            return -1
        table = (value & table_mask) << table_shift
    shift, index_mask, width, _, _, _ = steps[level]
    return table + (addr >> shift & index_mask) * width


def alloc_entry(mm: mm_struct, addr: int, level: int = -1) -> int:
    """As ``find_entry``, making the tables that are missing; -1 where no memory is left for one. May sleep."""
    entry = find_entry(mm, addr, level)
    if entry >= 0:
        return entry
    steps = steps_of(mm)
    folded = mm.layout.folded(addr)
    table = mm.pgd
    for upper in range(len(steps) - 1 if level < 0 else level):
        shift, index_mask, width, table_mask, table_shift, empty = steps[upper]
        entry = table + (folded >> shift & index_mask) * width
        value = read_entry(mm, upper, entry)
        if value == empty:
            if not alloc_table(mm, upper, addr, entry):
                return -1
            value = read_entry(mm, upper, entry)
        table = (value & table_mask) << table_shift
    shift, index_mask, width, _, _, _ = steps[level]
    return table + (folded >> shift & index_mask) * width


def alloc_table(mm: mm_struct, level: int, addr: int, entry: int) -> bool:
    """Hook a new table into ``entry`` of ``level``, found empty. False where no memory is left. May sleep."""
    kernel: ArchKernel = mm.kernel
    ops = kernel.ops
    kernel.sched.might_sleep("page-table allocation")
    table = ops.table_alloc(mm, level + 1, addr)
    if table < 0:
        return False
    kernel.sched.spend(kernel.description.costs.table_alloc, "table")
    of_ptes = level + 1 == mm.layout.pte_level
    if of_ptes:
        kernel.variants.page_table_lock.table_made(mm, table)
    mm.page_table_lock.lock()
    lost = read_entry(mm, level, entry) != format_of(mm, level).empty
    if not lost:
        ops.populate(mm, level, addr, entry, table)
        account_table(mm, level + 1, table, 1)
    mm.page_table_lock.unlock()
    if lost:
        if of_ptes:
            kernel.variants.page_table_lock.table_gone(mm, table)
        ops.table_free(mm, level + 1, table)
    return True


def account_table(mm: mm_struct, level: int, table: int, change: int) -> None:
    """Count a table of ``level`` that was hooked up (``change`` 1) or unhooked (-1). The table lock is held.

    For the core's own tables, and for those an arch brings along with its root.
    """
    kernel: ArchKernel = mm.kernel
    mm.nr_tables[level] += change
    tell = kernel.events.table_allocated if change > 0 else kernel.events.table_freed
    tell(mm, level, table, mm.layout.table_bytes_of(level))


def format_of(mm: mm_struct, level: int) -> Any:
    """Format of the entries of ``level`` in ``mm``'s own layout."""
    return mm.kernel.shape.formats[level - mm.layout.levels]


# ------------------------------------------------------------------ the lock of the ptes
def pte_lock(mm: mm_struct, ptep: int, nested: bool = False) -> Spinlock:
    """Map the pte table that holds physical address ``ptep`` and lock its entries; the lock. ``nested``: the
    caller holds another such lock already."""
    kernel: ArchKernel = mm.kernel
    table = ptep & mm.layout.pte_table_mask
    kernel.ops.pte_map(mm, table)
    lock: Spinlock = kernel.variants.page_table_lock.lock_of(mm, table)
    lock.lock(nested)
    return lock


def pte_unlock(mm: mm_struct, ptep: int) -> None:
    """Undo ``pte_lock`` of the same table."""
    kernel: ArchKernel = mm.kernel
    table = ptep & mm.layout.pte_table_mask
    kernel.variants.page_table_lock.lock_of(mm, table).unlock()
    kernel.ops.pte_unmap(mm, table)


def pte_lock_second(mm: mm_struct, ptep: int, first: int) -> None:
    """As ``pte_lock``, by who has locked the table of ``first`` and holds mmap_lock for writing."""
    lock_of = mm.kernel.variants.page_table_lock.lock_of
    if lock_of(mm, table_at(mm, ptep)) is not lock_of(mm, table_at(mm, first)):
        pte_lock(mm, ptep, nested=True)
    else:
        mm.kernel.ops.pte_map(mm, table_at(mm, ptep))


def pte_unlock_second(mm: mm_struct, ptep: int, first: int) -> None:
    """Undo ``pte_lock_second``; the table of ``first`` stays locked."""
    lock_of = mm.kernel.variants.page_table_lock.lock_of
    if lock_of(mm, table_at(mm, ptep)) is not lock_of(mm, table_at(mm, first)):
        pte_unlock(mm, ptep)
    else:
        mm.kernel.ops.pte_unmap(mm, table_at(mm, ptep))


def table_at(mm: mm_struct, ptep: int) -> int:
    """Physical address of the pte table that ``ptep`` lies in."""
    return ptep & mm.layout.pte_table_mask


# ------------------------------------------------------------------ ptes
def read_pte(mm: mm_struct, ptep: int) -> int:
    """The value of the pte at physical address ``ptep``."""
    kernel: ArchKernel = mm.kernel
    value: int = kernel.ram.read_entry(ptep, mm.layout.entry_bytes[-1], kernel.shape.byte_order)
    return value


def read_ptes(mm: mm_struct, ptep: int, n: int) -> EntryRun:
    """Values of ``n`` ptes from physical address ``ptep`` on; a copy."""
    kernel: ArchKernel = mm.kernel
    return read_run(kernel.ram, ptep, mm.layout.entry_bytes[-1], kernel.shape.byte_order, n)


def entries_in(
    mm: mm_struct, level: int, table: int, addr: int, end: int
) -> Iterator[tuple[int, int, int, int]]:
    """The entries of ``table`` (of ``level``, above the ptes) that are not empty and cover [addr, end).

    Yields (entry's physical address, its value, addr, end) with the part of the range it covers. [addr, end)
    lies within one table, except at level 0, where the arch says at each step where the next entry begins; it may
    end in a hole there.
    """
    kernel: ArchKernel = mm.kernel
    layout = mm.layout
    empty: int = format_of(mm, level).empty
    if level == 0:
        pgd_addr_end, span = kernel.ops.pgd_addr_end, layout.span_of(0)
        while addr != end:
            stop = pgd_addr_end(mm, addr, end)
            entry = layout.entry_address(0, table, addr)
            value = read_entry(mm, 0, entry)
            if value != empty:
                yield entry, value, addr, min(stop, (addr & -span) + span) if stop else stop
            addr = stop
        return
    width, shift = layout.entry_bytes[level], layout.shifts[level]
    first = layout.entry_address(level, table, addr)
    n = entries_spanned(addr, end, shift)
    if n == 1:
        value = read_entry(mm, level, first)
        if value != empty:
            yield first, value, addr, end
        return
    values = read_run(kernel.ram, first, width, kernel.shape.byte_order, n)
    base = addr >> shift << shift
    for index in (values != np.uint64(empty)).nonzero()[0].tolist():
        start = addr if not index else base + (index << shift)
        yield first + index * width, int(values[index]), start, kernel.ops.addr_end(mm, level, start, end)


def entries_spanned(addr: int, end: int, shift: int) -> int:
    """How many entries that cover 1 << shift bytes each the range touches; ``end`` 0 means the top."""
    return (((end - 1) & (1 << 64) - 1) >> shift) - (addr >> shift) + 1


def table_runs(
    mm: mm_struct, addr: int, end: int, level: int = 0, table: int = -1
) -> Iterator[tuple[int, int, int]]:
    """Every pte table in [addr, end), in order: (physical address of its first pte in the range, addr, end)."""
    layout = mm.layout
    if table < 0:
        table = mm.pgd
        if (end - 1 ^ addr) >> layout.shifts[layout.pmd_level] == 0:  # one table can have it all
            ptep = find_entry(mm, addr)
            if ptep >= 0:
                yield ptep, addr, end
            return
    below = level + 1
    for _, value, start, stop in entries_in(mm, level, table, addr, end):
        child = format_of(mm, level).table_of(value)
        if below == layout.pte_level:
            yield layout.entry_address(below, child, start), start, stop
        else:
            yield from table_runs(mm, start, stop, below, child)


# ------------------------------------------------------------------ ptes and frames
def pfn_of(shape: Shape, pte: int) -> int:
    """The frame that a present pte maps."""
    return shape.pte.frame_of(pte) >> shape.layout.page_shift


def enter_pte(kernel: ArchKernel, vma: vm_area_struct, page: int, ptep: int, pfn: int, write: bool) -> None:
    """Set the pte for ``pfn``, as stored to if ``write``; the table lock is held and the entry maps nothing.

    Not where only a debugger may store: no entry lets the program do so.
    """
    ops, shape = kernel.ops, kernel.shape
    prot = vma.vm_page_prot
    run = kernel.one_entry
    run[0] = pfn << shape.pfn_shift | (shape.stored[prot] if write and vma.vm_flags & VM_WRITE else prot)
    ops.set_pte(vma.vm_mm, page, ptep, run)
    ops.update_mmu_cache(vma, page, ptep, 1)
