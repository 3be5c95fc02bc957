"""Page-table fragments, and address spaces that grow a level.

A page table takes half a frame (31 bits: a quarter), so frames are shared out in fragments among one mm's tables. A
frame keeps a bit per fragment in use, and a bit, 4 higher, per fragment that was unhooked and waits for the flush
and for lockless walkers; it is given to nobody, but its neighbours may be. The frame goes with its last fragment
(Linux 3.0; 2.6.25 to 2.6.36 had no waiting state).

Region and segment tables take four frames (31 bits: the segment table takes two), filled with the empty value of
their level.
"""

from __future__ import annotations

from polymmu.arch import ArchKernel, alloc_page, defaults, free_page, hookimpl, mm_struct, mmu_gather
from polymmu_s390 import tlbflush
from polymmu_s390.dat import PTE_INVALID
from polymmu_s390.formats import GROWN, LAYOUTS, TASK_SIZE
from polymmu_s390.tlbflush import context_of

WAITING = 4
"""How far above a fragment's bit in use its bit waiting is."""
IN_USE = 0xF


# ------------------------------------------------------------------ fragments
def page_table_alloc(mm: mm_struct) -> int:
    """A fragment full of empty ptes, or -1."""
    kernel: ArchKernel = mm.kernel
    listed, layout, private = context_of(mm).pgtable_list, mm.layout, kernel.frames.private
    pfn = listed[0] if listed else alloc_page(kernel, "table", site="table.pte")
    if pfn < 0:
        return -1
    busy = private[pfn] | private[pfn] >> WAITING
    index = (~busy & busy + 1).bit_length() - 1
    mark(mm, pfn, private[pfn] | 1 << index)
    table = (pfn << layout.page_shift) + index * layout.table_bytes_of(layout.pte_level)
    empty = PTE_INVALID.to_bytes(layout.entry_bytes[-1], "big")
    kernel.ram.write(table, empty * layout.entries_of(layout.pte_level))
    return table


def page_table_free(mm: mm_struct, table: int, waits: bool = False) -> None:
    """A fragment that nobody can reach goes back; one that ``waits`` is unhooked, and must not be given out yet."""
    kernel: ArchKernel = mm.kernel
    layout, pfn = mm.layout, table >> mm.layout.page_shift
    bit = 1 << table % layout.page_size // layout.table_bytes_of(layout.pte_level)
    mark(mm, pfn, kernel.frames.private[pfn] & ~(bit | bit << WAITING) | (bit << WAITING if waits else 0))
    if not waits:
        kernel.events.table_returned(mm, table, layout.table_bytes_of(layout.pte_level))
    if not kernel.frames.private[pfn]:
        free_page(kernel, pfn)


def mark(mm: mm_struct, pfn: int, state: int) -> None:
    """Set a frame's bits. It is on its mm's list exactly while it holds a table in use and has one to give."""
    kernel: ArchKernel = mm.kernel
    listed, layout = context_of(mm).pgtable_list, mm.layout
    kernel.frames.private[pfn] = state
    full = (1 << layout.page_size // layout.table_bytes_of(layout.pte_level)) - 1
    wanted = state & IN_USE and (state | state >> WAITING) & IN_USE != full
    if wanted and pfn not in listed:
        listed.append(pfn)
    elif not wanted and pfn in listed:
        listed.remove(pfn)


# ------------------------------------------------------------------ hooks
@hookimpl
def table_alloc(mm: mm_struct, level: int, addr: int) -> int:
    if level == mm.layout.pte_level:
        return page_table_alloc(mm)
    return defaults.table_alloc(mm, level, addr)


@hookimpl
def table_free(mm: mm_struct, level: int, table: int) -> None:
    """Which kind it is, the frame says: the mm may have got a level since the table was queued."""
    kernel: ArchKernel = mm.kernel
    if kernel.frames.private[table >> mm.layout.page_shift]:
        page_table_free(mm, table)
    else:
        defaults.table_free(mm, 0, table)  # all others are as large as a root


@hookimpl
def pte_free_tlb(tlb: mmu_gather, table: int, addr: int) -> None:
    if not tlb.arch:
        page_table_free(tlb.mm, table, waits=True)
    table_free_tlb(tlb, tlb.mm.layout.pte_level, table, addr)


@hookimpl
def table_free_tlb(tlb: mmu_gather, level: int, table: int, addr: int) -> None:
    if tlb.arch:
        table_free(tlb.mm, level, table)
    else:
        defaults.table_free_tlb(tlb, level, table, addr)


@hookimpl
def tables_need_rcu() -> bool:
    """Neither IPTE nor IDTE interrupts a CPU that walks with interrupts off."""
    return True


@hookimpl
def pgd_free(mm: mm_struct, pgd: int) -> None:
    """Frees with it a root of before the growth in which nothing was ever mapped, unknown to free_pgtables."""
    kernel: ArchKernel = mm.kernel
    first, format = kernel.ram.read_entry(pgd, mm.layout.entry_bytes[0], "big"), kernel.shape.formats[0]
    if mm.layout.levels == GROWN and first != format.empty:
        mm.nr_tables[1] -= 1
        kernel.events.table_freed(mm, 1, format.table_of(first), mm.layout.table_bytes_of(1))
        defaults.table_free(mm, 1, format.table_of(first))
    defaults.pgd_free(mm, pgd)


# ------------------------------------------------------------------ growth
@hookimpl
def grow_task_size(mm: mm_struct, end: int) -> bool:
    """One level more (Linux: crst_table_upgrade): a new root, whose first entry is the old one.

    What was cached through the old designation is purged: the old root may be the root of another mm one day.
    """
    kernel: ArchKernel = mm.kernel
    layout, old = mm.layout, mm.pgd
    if end > kernel.shape.limits.task_size or layout.levels == kernel.shape.layout.levels:
        return False
    mm.layout = LAYOUTS[layout.levels + 1]
    root = defaults.table_alloc(mm, 0, 0)
    if root < 0:
        mm.layout = layout
        return False
    mm.page_table_lock.lock()
    tlbflush.flush(mm)
    defaults.populate(mm, 0, 0, root, old)
    mm.pgd = root
    mm.nr_tables = [0, 1, *mm.nr_tables[1:]]
    mm.task_size = TASK_SIZE[mm.layout.levels]
    for cpu in kernel.cpus:
        if kernel.active_mm[cpu.index] is mm:
            tlbflush.load(cpu, mm)
    mm.page_table_lock.unlock()
    kernel.events.table_allocated(mm, 0, root, mm.layout.table_bytes_of(0))
    return True
