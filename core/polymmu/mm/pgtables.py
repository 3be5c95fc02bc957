"""Free the page tables that nobody needs any more, by vma list, between a floor and a ceiling (A3).

The vmas given are already off their mm; ``floor`` is where the neighbour below ends and ``ceiling`` where the one
above begins. A table goes only if all it covers lies between them. Because each table is covered by at least one
vma while it exists, looking where vmas were finds every table, at a cost in proportion to what was mapped.

0 as an ``end`` or a ``ceiling`` means the top of the address space. Ends are therefore compared less one, as
unsigned words: 0 - 1 is above everything.

First reading: ``free_pgtables``, ``within_neighbours``, ``table_is_free``.
"""

from __future__ import annotations

from polymmu.hooks import ArchKernel
from polymmu.mm.gather import tlb_adjust_range
from polymmu.mm.tables import account_table, entries_in, entries_spanned, format_of
from polymmu.mm.vma import unlink_anon_vma, unlink_file_vma
from polymmu.structs import VM_HUGETLB, mmu_gather, vm_area_struct

__all__ = ["free_pgd_range", "free_pgtables", "table_is_free", "within_neighbours"]

WORD = (1 << 64) - 1


def free_pgtables(tlb: mmu_gather, vma: vm_area_struct | None, floor: int, ceiling: int) -> None:
    """Free the tables of ``vma`` and all after it on its list, which was cut out of its mm (A3.2).

    ``floor``: end of the vma before, or the first user address. ``ceiling``: start of the vma after, or 0. The
    vmas leave their anon_vma and their file's i_mmap first: whoever comes from there must not meet a freed table.
    """
    kernel: ArchKernel = tlb.mm.kernel
    layout = tlb.mm.layout
    pmd_size = layout.span_of(layout.pmd_level)
    while vma is not None:
        addr = vma.vm_start
        following = vma.vm_next
        unlink_anon_vma(vma)
        unlink_file_vma(vma)
        if vma.vm_flags & VM_HUGETLB:
            free = kernel.ops.hugetlb_free_pgd_range
        else:
            free = free_pgd_range
            # Neighbours that are close are freed in one walk. An optimisation only: a table in the gap between
            # two removed vmas belongs to nobody else.
            while (
                following is not None
                and following.vm_start <= vma.vm_end + pmd_size
                and not following.vm_flags & VM_HUGETLB
            ):
                vma = following
                following = vma.vm_next
                unlink_anon_vma(vma)
                unlink_file_vma(vma)
        free(tlb, addr, vma.vm_end, floor, following.vm_start if following is not None else ceiling)
        vma = following


def free_pgd_range(tlb: mmu_gather, addr: int, end: int, floor: int, ceiling: int) -> None:
    """Free every table that covers part of [addr, end) and nothing below ``floor`` or above ``ceiling`` (A3.3)."""
    mm = tlb.mm
    kernel: ArchKernel = mm.kernel
    layout = mm.layout
    clipped = within_neighbours(addr, end, floor, ceiling, layout.span_of(layout.pmd_level))
    if clipped is None:
        return
    addr, end = clipped
    _free_range(tlb, 0, mm.pgd, addr, end, floor, ceiling)
    if not tlb.fullmm:
        kernel.ops.flush_tlb_pgtables(mm, addr, end)


def within_neighbours(addr: int, end: int, floor: int, ceiling: int, span: int) -> tuple[int, int] | None:
    """[addr, end) such that every pte table it touches belongs to it alone; None where there is none.

    ``span``: bytes that one pte table covers (PMD_SIZE). A3.3 steps 1 to 4, in 64-bit arithmetic.
    """
    addr &= -span
    if addr < floor:
        addr = (addr + span) & WORD
        if not addr:
            return None
    if ceiling:
        ceiling &= -span
        if not ceiling:  # nothing below the first table may go; not to be taken for the top
            return None
    if (end - 1) & WORD > (ceiling - 1) & WORD:
        end -= span
    if addr > (end - 1) & WORD:
        return None
    return addr, end


def table_is_free(start: int, end: int, floor: int, ceiling: int, span: int) -> bool:
    """Whether a table covering ``span`` bytes, emptied of [start, end), has nothing of a neighbour's.

    ``floor`` and ``end`` are not rounded: the range is what the caller was asked to free below this table.
    """
    if start & -span < floor:
        return False
    if ceiling:
        ceiling &= -span
        if not ceiling:
            return False
    return (end - 1) & WORD <= (ceiling - 1) & WORD


def _free_range(
    tlb: mmu_gather, level: int, table: int, addr: int, end: int, floor: int, ceiling: int
) -> None:
    """Free the tables below ``table`` (of ``level``) in [addr, end), each one that may go after those below it."""
    mm = tlb.mm
    kernel: ArchKernel = mm.kernel
    layout = mm.layout
    below = level + 1
    span = layout.span_of(level)
    table_of = format_of(mm, level).table_of
    last = layout.folded((end - 1) & WORD)
    looked_at = entries_spanned(layout.folded(addr), last + 1, layout.shifts[level])
    kernel.events.entries_visited(mm, "free_pgtables", looked_at)
    kernel.sched.spend(kernel.description.costs.entry_update * looked_at, "free_pgtables")
    for entry, value, start, stop in entries_in(mm, level, table, addr, end):
        child = table_of(value)
        if below < layout.pte_level:
            _free_range(tlb, below, child, start, stop, floor, ceiling)
            if not table_is_free(start, stop, floor, ceiling, span):
                continue
        _free_table(tlb, level, entry, child, start)


def _free_table(tlb: mmu_gather, level: int, entry: int, table: int, addr: int) -> None:
    """Unhook ``table`` from ``entry`` of ``level`` and queue it: unhook, flush, wait for walkers, free."""
    mm = tlb.mm
    kernel: ArchKernel = mm.kernel
    layout = mm.layout
    below = level + 1
    base = addr & -layout.span_of(level)
    mm.page_table_lock.lock()
    kernel.ops.clear_entry(mm, level, addr, entry)
    account_table(mm, below, table, -1)
    mm.page_table_lock.unlock()
    kernel.events.table_unhooked(mm, base, (base + layout.span_of(level)) & WORD)
    tlb_adjust_range(tlb, addr, addr + layout.page_size, level)  # any address below it names the walk path
    if below == layout.pte_level:
        kernel.variants.page_table_lock.table_gone(mm, table)
        kernel.ops.pte_free_tlb(tlb, table, addr)
    else:
        kernel.ops.table_free_tlb(tlb, below, table, addr)
