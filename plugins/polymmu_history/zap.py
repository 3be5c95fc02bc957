"""unmap_vmas before Linux 2.6.38: blocks in every zap, and a flush at the end of each (A2.2).

``blocks`` (2.6.7 to 2.6.14): a block is so many pages of addresses, mapped or not; the page-table lock is held from
block to block, and the flush comes before it is dropped. ``zap-work`` (2.6.15 to 2.6.37): each table is locked for
itself, and a block is counted by its work. Blocks are shared by all vmas of one unmapping.

Left out: the gather itself goes on from block to block, only what it holds is flushed and freed.

``bug-49b`` is a slip of the rework for 3.0 as first posted (A2.4): the loop leaves a table behind the entry that filled
the gather without moving on, and takes the entry before it for one of the same table.
"""

from __future__ import annotations

from polymmu.description.model import KernelChoice
from polymmu.mm.gather import tlb_cond_resched, tlb_flush_mmu
from polymmu.mm.tables import table_at, table_runs
from polymmu.mm.zap import ZapDetails, ZapWork
from polymmu.sched.locks import Spinlock
from polymmu.structs import mm_struct, mmu_gather, vm_area_struct
from polymmu_history.ptlock import one_lock_or_why

__all__ = ["UnmapsTheTableBefore", "ZapBlocks", "ZapWork2005"]


class ZapWork2005(ZapWork):
    """Each table locked for itself, a block counted by its work, a flush at the end of each."""

    since = "2.6.15"
    wrong = ""

    def has_blocks(self, details: ZapDetails | None) -> bool:
        return True

    def block_ends(self, tlb: mmu_gather, details: ZapDetails | None) -> bool:
        """Flush before any lock is dropped; then stop, or give way and go on."""
        if details is not None and details.atomic and details.need_break is None:
            return False  # no lock can be dropped
        tlb_flush_mmu(tlb)
        if super().block_ends(tlb, details):
            return True
        self.give_way(tlb, details)
        return False

    def give_way(self, tlb: mmu_gather, details: ZapDetails | None) -> None:
        """Let others have the CPU, unless the caller's lock forbids it."""
        self.pause(tlb, details)

    def unmap_huge(
        self, tlb: mmu_gather, vma: vm_area_struct, start: int, end: int, details: ZapDetails | None
    ) -> None:
        """Huge pages count by their number."""
        super().unmap_huge(tlb, vma, start, end, details)
        self.spent(tlb, (end - start) // vma.huge_size * tlb.mm.layout.page_size, details)

    def spent(self, tlb: mmu_gather, work: int, details: ZapDetails | None) -> None:
        """An indivisible block was done, however large."""
        tlb.work -= work
        if tlb.work <= 0:
            self.used_up(tlb, details)


class ZapBlocks(ZapWork2005):
    """ZAP_BLOCK_SIZE by address, below the page-table lock of the caller."""

    since = "2.6.7"
    wrong = "every flush comes below the page-table lock"

    @staticmethod
    def refuses(choice: KernelChoice) -> str:
        return one_lock_or_why(choice)

    def zap_page_range(self, vma: vm_area_struct, start: int, end: int, details: ZapDetails | None) -> int:
        lock = vma.vm_mm.page_table_lock
        lock.lock()
        reached = super().zap_page_range(vma, start, end, details)
        lock.unlock()
        return reached

    def unmap_vmas(self, tlb: mmu_gather, vma: vm_area_struct | None, start: int, end: int) -> None:
        tlb.mm.page_table_lock.lock()
        super().unmap_vmas(tlb, vma, start, end)
        tlb.mm.page_table_lock.unlock()

    def in_blocks(
        self, tlb: mmu_gather, vma: vm_area_struct, start: int, end: int, details: ZapDetails | None
    ) -> int:
        while start < end:
            stop = min(end, start + tlb.work)
            for ptep, addr, upto in table_runs(tlb.mm, start, stop):
                self.zap_ptes(tlb, vma, ptep, addr, upto, details)
            tlb.work -= stop - start
            start = stop
            if tlb.work <= 0 and self.used_up(tlb, details):
                return start
        return end

    def unmap_huge(
        self, tlb: mmu_gather, vma: vm_area_struct, start: int, end: int, details: ZapDetails | None
    ) -> None:
        """As many bytes as they are. Their own loop takes the lock that we hold."""
        lock = tlb.mm.page_table_lock
        lock.unlock()
        ZapWork.unmap_huge(self, tlb, vma, start, end, details)
        lock.lock()
        self.spent(tlb, end - start, details)

    def give_way(self, tlb: mmu_gather, details: ZapDetails | None) -> None:
        """The page-table lock is dropped only for who wants it, or the CPU."""
        sched, lock = self.kernel.sched, tlb.mm.page_table_lock
        if details is not None and details.atomic:
            return
        if sched.need_resched() or sched.need_lockbreak(lock):
            lock.unlock()
            tlb_cond_resched(tlb)
            lock.lock()

    def lock_table(self, mm: mm_struct, ptep: int) -> Spinlock:
        self.kernel.ops.pte_map(mm, table_at(mm, ptep))
        return mm.page_table_lock

    def unlock_table(self, mm: mm_struct, ptep: int) -> None:
        self.kernel.ops.pte_unmap(mm, table_at(mm, ptep))

    def pause(self, tlb: mmu_gather, details: ZapDetails | None) -> None:
        """Not inside a block."""


class UnmapsTheTableBefore(ZapWork):
    """49b: where the first entry of a table fills the gather, what is unmapped is what lies before the table."""

    since = "2011, patch 1 of the series for 3.0, as first posted"
    wrong = "a table in high memory stays mapped, and another one's map is undone"

    def leave_table(self, mm: mm_struct, ptep: int, last: int, full: bool) -> None:
        table = table_at(mm, ptep)
        named = last - mm.layout.entry_bytes[-1] if full else last
        if table_at(mm, named) == table:
            self.unlock_table(mm, ptep)
            return
        mm.kernel.variants.page_table_lock.lock_of(mm, table).unlock()
        self.kernel.ops.pte_unmap(mm, table_at(mm, named))
