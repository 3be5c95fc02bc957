"""Freeing page tables before Linux 2.6.12 (A3.1): what goes is guessed from the addresses of the neighbours.

Both generations round a munmap up to whole entries of the root, cut that at the vmas on either side, and at exit walk
all of user space. ``clear_page_tables`` (to 2.6.10) frees only what whole entries of the root cover that nobody needs
any more. ``clear_page_range`` (2.6.11) goes by bytes: every page table in the range, and an upper table where the range
covers all of it. What is left is found by a later munmap, or by exit: with the first one upper tables and whole rows of
page tables, with both the tables of a driver that refused half way and of a range set aside for huge pages. So tables
exist that no vma covers.

Not as it was: vmas leave their anon_vma and file before tables go, as today (it came after, when all of it happened
below the page-table lock). Huge vmas for which an address range is set aside have their tables freed as today.
"""

from __future__ import annotations

from polymmu.mm.gather import tlb_finish_mmu, tlb_gather_mmu
from polymmu.mm.pgtables import VmaList
from polymmu.mm.tables import read_pte
from polymmu.mm.vma import vmas_of
from polymmu.mm.zap import zap_page_range
from polymmu.structs import VM_HUGETLB, mm_struct, mmu_gather, vm_area_struct

__all__ = ["ClearPageRange", "ClearPageTables", "mm_vm_size"]

WORD = (1 << 64) - 1


def mm_vm_size(mm: mm_struct) -> int:
    """Where teardown stops: ``mm``'s task_size in whole entries of the root (MM_VM_SIZE)."""
    span = mm.layout.span_of(0)
    return -(-mm.task_size // span) * span


def first_user_pgd(mm: mm_struct) -> int:
    """Where it begins: FIRST_USER_PGD_NR as an address."""
    span = mm.layout.span_of(0)
    first: int = mm.kernel.shape.limits.first_user_address
    return -(-first // span) * span


class ClearPageRange(VmaList):
    """2.6.11: by ranges of bytes."""

    since = "2.6.11"
    wrong = "tables that no vma covers stay until exit, which walks all of user space"

    leaves_tables = True

    # ------------------------------------------------------------------ who asks
    def unmapped(
        self, tlb: mmu_gather, first: vm_area_struct, prev: vm_area_struct | None, start: int, end: int
    ) -> None:
        for vma in vmas_of(first):
            self.unlink(vma)
        self.free_huge(tlb, first, prev)
        if self.kernel.ops.is_hugepage_only_range(tlb.mm, start, end - start):
            return
        found = self.range_around(tlb.mm, prev, start, end)
        if found is not None:
            self.clear_page_range(tlb, *found)
            self.kernel.ops.flush_tlb_pgtables(tlb.mm, *found)

    def exiting(self, tlb: mmu_gather, first: vm_area_struct | None) -> None:
        for vma in vmas_of(first):
            self.unlink(vma)
        self.free_huge(tlb, first, None)
        self.clear_page_range(tlb, first_user_pgd(tlb.mm), mm_vm_size(tlb.mm))

    def driver_failed(self, vma: vm_area_struct, prev: vm_area_struct | None) -> bool:
        """The ptes only: exit looks everywhere."""
        zap_page_range(vma, vma.vm_start, vma.vm_end - vma.vm_start)
        return False

    def tables_left(self, mm: mm_struct) -> int:
        """Nobody looked."""
        return 0

    def room_for_huge(self, mm: mm_struct, start: int, end: int, size: int) -> None:
        """A table left behind may stand where a huge page's entry goes, and be taken for one."""
        for page in range(start, end, size):
            if self.has_table_at(mm, page, size):
                tlb = tlb_gather_mmu(mm)
                self.clear_page_range(tlb, page, page + size)
                self.kernel.ops.flush_tlb_pgtables(mm, page, page + size)
                tlb_finish_mmu(tlb, page, page + size)

    def has_table_at(self, mm: mm_struct, page: int, size: int) -> bool:
        """Whether the entry for a huge page of ``size`` at ``page`` leads to a table."""
        entry_format = self.kernel.shape.huge_formats[size]
        ptep = self.kernel.ops.huge_pte_offset(mm, page, size)
        if ptep < 0 or not entry_format.leaf_mask:
            return False
        value = read_pte(mm, ptep)
        return value != entry_format.empty and not value & entry_format.leaf_mask

    # ------------------------------------------------------------------ which range
    def range_around(
        self, mm: mm_struct, prev: vm_area_struct | None, start: int, end: int
    ) -> tuple[int, int] | None:
        """What may be cleared where [start, end) was unmapped behind ``prev``; None: nothing. Steps 1 to 5."""
        span = mm.layout.span_of(0)
        first, last = start & -span, min(end + span - 1, mm_vm_size(mm))
        first, last = self.between_neighbours(mm, prev, start, first, last)
        first = max(first, first_user_pgd(mm))
        shift = mm.layout.shift_of(mm.layout.pmd_level)
        return (first, last) if first >> shift < last >> shift else None

    def between_neighbours(
        self, mm: mm_struct, prev: vm_area_struct | None, start: int, first: int, last: int
    ) -> tuple[int, int]:
        """[first, last) without what the vmas on either side of ``start`` cover. Steps 2 and 3."""
        if prev is None:
            if mm.mmap is None:
                return first, last
            prev = mm.mmap
            if prev.vm_end > start:
                return first, min(last, prev.vm_start)
        while prev.vm_next is not None and prev.vm_next.vm_start < start:
            prev = prev.vm_next
        if prev.vm_next is not None:
            last = min(last, prev.vm_next.vm_start)
        return max(first, self.behind(mm, prev)), last

    def behind(self, mm: mm_struct, prev: vm_area_struct) -> int:
        """From where on ``prev`` needs nothing."""
        return prev.vm_end

    # ------------------------------------------------------------------ clearing
    def clear_page_range(self, tlb: mmu_gather, first: int, last: int) -> None:
        """Free every table of which all that it covers lies in [first, last)."""
        self.free_range(tlb, 0, tlb.mm.pgd, first, last, first, last)

    def goes(self, mm: mm_struct, level: int, start: int, stop: int, floor: int, ceiling: int) -> bool:
        return not (start | stop) & (mm.layout.span_of(level) - 1)

    def entries_looked_at(self, mm: mm_struct, level: int, addr: int, end: int) -> int:
        """At the root there may be holes in between."""
        if level:
            return super().entries_looked_at(mm, level, addr, end)
        n = 0
        while addr != end:
            addr = self.kernel.ops.pgd_addr_end(mm, addr, end)
            n += 1
        return n

    def free_huge(self, tlb: mmu_gather, vma: vm_area_struct | None, prev: vm_area_struct | None) -> None:
        """What an arch keeps elsewhere for huge pages in a range of their own, for ``vma`` and those after it."""
        mm, ops = tlb.mm, self.kernel.ops
        above = prev.vm_next if prev is not None else mm.mmap
        floor = prev.vm_end if prev is not None else self.kernel.shape.limits.first_user_address
        for each in vmas_of(vma):
            if each.vm_flags & VM_HUGETLB and ops.is_hugepage_only_range(
                mm, each.vm_start, each.vm_end - each.vm_start
            ):
                following = each.vm_next or (None if tlb.fullmm else above)
                ceiling = following.vm_start if following is not None else 0
                ops.hugetlb_free_pgd_range(tlb, each.vm_start, each.vm_end, floor, ceiling)


class ClearPageTables(ClearPageRange):
    """To 2.6.10: whole entries of the root, told by their indices."""

    since = "to 2.6.10"
    wrong = "tables stay until a whole entry of the root is free; and as clear_page_range"

    def range_around(
        self, mm: mm_struct, prev: vm_area_struct | None, start: int, end: int
    ) -> tuple[int, int] | None:
        """As addresses again. Where the index behind the last one is 0 again, at the top, nothing goes."""
        layout = mm.layout
        span = layout.span_of(0)
        first, last = self.between_neighbours(mm, prev, start, start & -span, (end + span - 1) & WORD)
        if last < first or layout.index_of(0, last) <= layout.index_of(0, first):
            return None
        return first & -span, last & -span

    def behind(self, mm: mm_struct, prev: vm_area_struct) -> int:
        """The next entry of the root, behind a hole if need be."""
        behind: int = self.kernel.ops.pgd_addr_end(mm, prev.vm_end - 1, 0)
        return behind
