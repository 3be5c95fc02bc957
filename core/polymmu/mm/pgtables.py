"""Free the page tables that nobody needs any more, by vma list, between a floor and a ceiling (A3).

The vmas given are already off their mm; ``floor`` is where the neighbour below ends and ``ceiling`` where the one
above begins. A table goes only if all it covers lies between them. Because each table is covered by at least one
vma while it exists, looking where vmas were finds every table, at a cost in proportion to what was mapped.

0 as an ``end`` or a ``ceiling`` means the top of the address space. Ends are therefore compared less one, as
unsigned words: 0 - 1 is above everything.

``VmaList`` is how it is since Linux 2.6.12 (with the order of 2.6.15); the machine file names another class, whose
steps are methods, to be asked instead (``kernel.free_pgtables``, ``polymmu.variants``).

First reading: ``free_pgtables``, ``within_neighbours``, ``table_is_free``; skip the guards.
"""

from __future__ import annotations

from collections.abc import Callable

from polymmu.hooks import ArchKernel
from polymmu.mm.gather import tlb_adjust_range
from polymmu.mm.tables import account_table, entries_in, entries_spanned, format_of
from polymmu.mm.unmap import unmap_region
from polymmu.mm.variant import Variant
from polymmu.mm.vma import unlink_anon_vma, unlink_file_vma
from polymmu.mm.zap import zap_page_range
from polymmu.structs import VM_HUGETLB, mm_struct, mmu_gather, vm_area_struct

__all__ = ["VmaList", "free_pgd_range"]

WORD = (1 << 64) - 1

FreeRange = Callable[[mmu_gather, int, int, int, int], None]


def free_pgd_range(tlb: mmu_gather, addr: int, end: int, floor: int, ceiling: int) -> None:
    """Free every table that covers part of [addr, end) and nothing below ``floor`` or above ``ceiling``.

    For architectures, whose huge pages may have tables of an unusual shape.
    """
    strategy: VmaList = tlb.mm.kernel.variants.free_pgtables
    strategy.free_pgd_range(tlb, addr, end, floor, ceiling)


class VmaList(Variant):
    """One look at each place where a vma was."""

    since = "2.6.12, vmas unlinked first 2.6.15"
    wrong = ""

    leaves_tables = False
    """Whether tables may, until exit, outlive the vmas that needed them: then INV-PTALL does not hold."""

    # ------------------------------------------------------------------ who asks
    def unmapped(
        self, tlb: mmu_gather, first: vm_area_struct, prev: vm_area_struct | None, start: int, end: int
    ) -> None:
        """munmap of [start, end): the tables of ``first`` and those after it, which were cut out behind ``prev``.

        They may go as far as nobody on either side needs them: up to ``prev``'s end and the next one's start.
        """
        mm = tlb.mm
        following = prev.vm_next if prev is not None else mm.mmap
        floor = prev.vm_end if prev is not None else self.kernel.shape.limits.first_user_address
        self.free_pgtables(tlb, first, floor, following.vm_start if following is not None else 0)

    def exiting(self, tlb: mmu_gather, first: vm_area_struct | None) -> None:
        """The whole mm goes, of which ``first`` was the first vma."""
        self.free_pgtables(tlb, first, self.kernel.shape.limits.first_user_address, 0)

    def driver_failed(self, vma: vm_area_struct, prev: vm_area_struct | None) -> bool:
        """Take back what a driver mapped in ``vma``, which was to be linked behind ``prev``, before it refused (A7.1).

        True: the memory committed to ``vma`` was given back with it. No vma will ever be where its tables are, so
        they must go now.
        """
        unmap_region(vma.vm_mm, vma, prev, vma.vm_start, vma.vm_end)
        return True

    def remap_failed(self, vma: vm_area_struct, start: int, end: int) -> None:
        """A driver's remap_pfn_range gets no further than ``end``: what it mapped goes before the driver frees it."""
        zap_page_range(vma, start, end - start)

    def tables_left(self, mm: mm_struct) -> int:
        """pte tables that are still there at the end of exit, beyond what the arch has below the first user address."""
        layout = mm.layout
        own = -(-self.kernel.shape.limits.first_user_address // layout.span_of(layout.pmd_level))
        return max(mm.nr_tables[layout.pte_level] - own, 0)

    def room_for_huge(self, mm: mm_struct, start: int, end: int, size: int) -> None:
        """Called before huge pages of ``size`` are mapped in [start, end). There is nothing in their way: tables go
        with their vmas."""

    # ------------------------------------------------------------------ by vma list
    def free_pgtables(self, tlb: mmu_gather, vma: vm_area_struct | None, floor: int, ceiling: int) -> None:
        """Free the tables of ``vma`` and all after it on its list, which was cut out of its mm (A3.2).

        ``floor``: end of the vma before, or the first user address. ``ceiling``: start of the vma after, or 0. The
        vmas leave their anon_vma and their file's i_mmap first: whoever comes from there must not meet a freed table.
        """
        layout = tlb.mm.layout
        pmd_size = layout.span_of(layout.pmd_level)
        while vma is not None:
            addr = vma.vm_start
            following = vma.vm_next
            self.unlink(vma)
            free: FreeRange = self.free_pgd_range
            if vma.vm_flags & VM_HUGETLB:
                free = self.hugetlb_free_pgd_range
            else:
                # Neighbours that are close are freed in one walk. An optimisation only: a table in the gap between
                # two removed vmas belongs to nobody else.
                while (
                    following is not None
                    and following.vm_start <= vma.vm_end + pmd_size
                    and not self.is_apart(vma, following)
                ):
                    vma = following
                    following = vma.vm_next
                    self.unlink(vma)
            free(tlb, addr, vma.vm_end, floor, following.vm_start if following is not None else ceiling)
            vma = following

    def unlink(self, vma: vm_area_struct) -> None:
        """Nobody finds ``vma`` from its pages any more (A3.2 step 2)."""
        unlink_anon_vma(vma)
        unlink_file_vma(vma)

    def is_apart(self, vma: vm_area_struct, following: vm_area_struct) -> bool:
        """Whether the tables of ``following`` must be freed in another way than those of ``vma``, which is not huge."""
        return bool(following.vm_flags & VM_HUGETLB)

    def hugetlb_free_pgd_range(self, tlb: mmu_gather, addr: int, end: int, floor: int, ceiling: int) -> None:
        """The tables of a huge vma are where the arch put them."""
        self.kernel.ops.hugetlb_free_pgd_range(tlb, addr, end, floor, ceiling)

    def free_pgd_range(self, tlb: mmu_gather, addr: int, end: int, floor: int, ceiling: int) -> None:
        """See the function of this name (A3.3)."""
        mm = tlb.mm
        layout = mm.layout
        clipped = self.within_neighbours(addr, end, floor, ceiling, layout.span_of(layout.pmd_level))
        if clipped is None:
            return
        addr, end = clipped
        self.free_range(tlb, 0, mm.pgd, addr, end, floor, ceiling)
        if not tlb.fullmm:
            self.kernel.ops.flush_tlb_pgtables(mm, addr, end)

    def within_neighbours(
        self, addr: int, end: int, floor: int, ceiling: int, span: int
    ) -> tuple[int, int] | None:
        """[addr, end) such that every pte table it touches belongs to it alone; None where there is none.

        ``span``: bytes that one pte table covers (PMD_SIZE). A3.3 steps 1 to 4, in 64-bit arithmetic.
        """
        low = self.first_table(addr, floor, span)
        high = self.last_boundary(ceiling, span)
        if low is None or high is None:
            return None
        if self.is_above(end, high):
            end -= span
        if low > (end - 1) & WORD:
            return None
        return low, end

    def table_is_free(self, start: int, end: int, floor: int, ceiling: int, span: int) -> bool:
        """Whether a table covering ``span`` bytes, emptied of [start, end), has nothing of a neighbour's.

        ``floor`` and ``end`` are not rounded: the range is what the caller was asked to free below this table.
        """
        high = self.last_boundary(ceiling, span)
        return start & -span >= floor and high is not None and not self.is_above(end, high)

    # ------------------------------------------------------------------ the guards of A3.3
    def first_table(self, addr: int, floor: int, span: int) -> int | None:
        """Where the first table begins that ``addr`` or something above it needs, and nothing below ``floor``."""
        addr &= -span
        if addr < floor:
            addr = (addr + span) & WORD
            if not addr:
                return None
        return addr

    def last_boundary(self, ceiling: int, span: int) -> int | None:
        """Where the last table ends that nothing from ``ceiling`` on needs; 0 is the top, None: there is none."""
        if not ceiling:
            return 0
        return ceiling & -span or None  # 0 here means that nothing may go, not the top

    def is_above(self, end: int, ceiling: int) -> bool:
        """Whether a range that stops at ``end`` goes beyond ``ceiling``."""
        return (end - 1) & WORD > (ceiling - 1) & WORD

    # ------------------------------------------------------------------ tables
    def free_range(
        self, tlb: mmu_gather, level: int, table: int, addr: int, end: int, floor: int, ceiling: int
    ) -> None:
        """Free the tables below ``table`` (of ``level``) in [addr, end), each one that may go after those below it."""
        mm = tlb.mm
        kernel = self.kernel
        layout = mm.layout
        below = level + 1
        table_of = format_of(mm, level).table_of
        looked_at = self.entries_looked_at(mm, level, addr, end)
        kernel.events.entries_visited(mm, "free_pgtables", looked_at)
        kernel.sched.spend(kernel.description.costs.entry_update * looked_at, "free_pgtables")
        for entry, value, start, stop in entries_in(mm, level, table, addr, end):
            child = table_of(value)
            if below < layout.pte_level:
                self.free_range(tlb, below, child, start, stop, floor, ceiling)
            if self.goes(mm, level, start, stop, floor, ceiling):
                _free_table(tlb, level, entry, child, start)

    def entries_looked_at(self, mm: mm_struct, level: int, addr: int, end: int) -> int:
        """How many entries of one table of ``level`` a walk of [addr, end), in which is no hole, reads."""
        layout = mm.layout
        last = layout.folded((end - 1) & WORD)
        return entries_spanned(layout.folded(addr), last + 1, layout.shifts[level])

    def goes(self, mm: mm_struct, level: int, start: int, stop: int, floor: int, ceiling: int) -> bool:
        """Whether the table goes that an entry of ``level`` points to, and that was emptied of [start, stop).

        A pte table does: ``within_neighbours`` let no other be looked at.
        """
        layout = mm.layout
        return level == layout.pmd_level or self.table_is_free(
            start, stop, floor, ceiling, layout.span_of(level)
        )


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
