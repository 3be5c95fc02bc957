"""mremap before Linux 4.19 (A5.1 to A5.3).

``one-page-unlocked`` (to April 2004): a pte at a time, from the last down, without ``i_mmap_lock``; truncation can
clean the new place before the pte arrives there (10). ``one-page`` (2.6.7 to 2.6.14): below that lock, which is
dropped where a table has to be made, and taken back in the right order; then the old pte is looked at again.
``extents-2.6.15`` (to 3.1): tables are made first, then up to 64 ptes move, each flushed by itself. ``extents-3.2``:
one flush at the very end, when others have long acted on the new entries (43). ``extents-4.9``: before the lock is
dropped where a moved pte was dirty, else still at the end (44 is mended, 43 is not).

First reading: ``OnePage.move_one_page``; then ``Extents32``.
"""

from __future__ import annotations

import numpy as np

from polymmu.description.model import KernelChoice
from polymmu.mm.move import Extents
from polymmu.mm.tables import alloc_entry, find_entry, read_pte, table_at
from polymmu.mm.truncate_count import truncate_counts
from polymmu.structs import EntryRun, address_space, mm_struct, vm_area_struct
from polymmu_history.ptlock import one_lock_or_why
from polymmu_history.truncate import spins_or_why

__all__ = ["Extents32", "Extents49", "Extents2615", "OnePage", "OnePageUnlocked"]

LATENCY_LIMIT = 64
"""Ptes moved under one hold of the locks."""


# ------------------------------------------------------------------ one pte at a time
class OnePage(Extents):
    """move_one_page (A5.1). Tables in high memory are mapped by atomic maps, undone in reverse order.

    The old table's pages stay where they are while locks are dropped, for mmap_lock is held for writing; what is in
    it does not.
    """

    since = "2.6.7"
    wrong = "a flush for every page"

    @staticmethod
    def refuses(choice: KernelChoice) -> str:
        return spins_or_why(choice) or one_lock_or_why(choice)

    def move_page_tables(
        self, vma: vm_area_struct, old_addr: int, new_vma: vm_area_struct, new_addr: int, length: int
    ) -> int:
        """Upwards."""
        page = vma.vm_mm.layout.page_size
        for done in range(0, length, page):
            if not self.move_one_page(vma, old_addr + done, new_vma, new_addr + done):
                return done
            self.kernel.sched.cond_resched()
        return length

    def move_one_page(self, vma: vm_area_struct, old: int, new_vma: vm_area_struct, new: int) -> bool:
        """False where no table could be had."""
        mm = vma.vm_mm
        mapping = vma.vm_file.mapping if vma.vm_file is not None else None
        self.kernel.events.entries_visited(mm, "move", 1)
        self.kernel.sched.spend(self.kernel.description.costs.entry_update, "move")
        self.lock_rmap(mapping, vma, new_vma)  # step 1
        mm.page_table_lock.lock()  # 2
        src, dst = self.get_one_pte_map(mm, old), find_entry(mm, new)
        moved, mapped = True, [src]
        if src >= 0:
            if dst >= 0:  # 3
                self.map(mm, dst)
                mapped.append(dst)
            else:
                self.unmap(mm, src)  # 4
                self.before_alloc(mm, mapping)
                dst = self.alloc_one_pte_map(mm, new)
                self.after_alloc(mm, mapping)  # 5
                src = self.again(mm, old)
                mapped = [dst, src]
            if src >= 0:  # 6
                moved = dst >= 0
                if moved:
                    self.move(vma, old, src, new, dst)
            for ptep in reversed(mapped):  # 7
                if ptep >= 0:
                    self.unmap(mm, ptep)
            if dst < 0:
                self.unmap_nothing(mm)
        mm.page_table_lock.unlock()
        self.unlock_rmap(mapping, vma)
        return moved

    def lock_rmap(self, mapping: address_space | None, vma: vm_area_struct, new_vma: vm_area_struct) -> None:
        """Walks from anonymous pages need no lock: below the one page-table lock a pte is in one place or the other."""
        if mapping is not None:
            mapping.i_mmap_lock.lock()
            truncate_counts(self.kernel).vma_moved(new_vma, vma)

    def unlock_rmap(self, mapping: address_space | None, vma: vm_area_struct) -> None:
        """Undo ``lock_rmap``."""
        if mapping is not None:
            mapping.i_mmap_lock.unlock()

    def get_one_pte_map(self, mm: mm_struct, addr: int) -> int:
        """The pte at ``addr``, its table mapped; -1 where there is none, or it is empty."""
        ptep = find_entry(mm, addr)
        if ptep < 0:
            return -1
        self.map(mm, ptep)
        if read_pte(mm, ptep) == self.kernel.shape.pte.empty:
            self.unmap(mm, ptep)
            return -1
        return ptep

    def alloc_one_pte_map(self, mm: mm_struct, addr: int) -> int:
        """The pte at ``addr``, its table made and mapped; -1 without memory. Drops the page-table lock: may sleep."""
        mm.page_table_lock.unlock()
        ptep = alloc_entry(mm, addr)
        mm.page_table_lock.lock()
        if ptep >= 0:
            self.map(mm, ptep)
        return ptep

    def before_alloc(self, mm: mm_struct, mapping: address_space | None) -> None:
        """What is held outside the page-table lock must not be held while somebody sleeps."""
        if mapping is not None:
            mapping.i_mmap_lock.unlock()

    def after_alloc(self, mm: mm_struct, mapping: address_space | None) -> None:
        """Take it back: at once if that needs no waiting, else in the right order."""
        if mapping is not None and not mapping.i_mmap_lock.trylock():
            mm.page_table_lock.unlock()
            mapping.i_mmap_lock.lock()
            mm.page_table_lock.lock()

    def again(self, mm: mm_struct, old: int) -> int:
        """The old pte may have gone, or be another, since the locks were dropped."""
        return self.get_one_pte_map(mm, old)

    def move(self, vma: vm_area_struct, old: int, src: int, new: int, dst: int) -> None:
        """The pte leaves every TLB before it is in its new place."""
        mm = vma.vm_mm
        page = mm.layout.page_size
        self.kernel.events.entries_changed(mm, old, old + page, 1, "clear")
        value = self.kernel.ops.ptep_clear_flush(vma, old, src, 1)
        self.kernel.ops.set_pte(mm, new, dst, value)

    def map(self, mm: mm_struct, ptep: int) -> None:
        """Map the table that ``ptep`` lies in."""
        self.kernel.ops.pte_map(mm, table_at(mm, ptep))

    def unmap(self, mm: mm_struct, ptep: int) -> None:
        """Undo ``map``."""
        self.kernel.ops.pte_unmap(mm, table_at(mm, ptep))

    def unmap_nothing(self, mm: mm_struct) -> None:
        """No table could be had for the new place: there is none to unmap."""


class OnePageUnlocked(OnePage):
    """The page-table lock alone, and downwards."""

    since = "to 2004-04"
    wrong = "10: truncation is not kept away, and pages stay mapped"

    def move_page_tables(
        self, vma: vm_area_struct, old_addr: int, new_vma: vm_area_struct, new_addr: int, length: int
    ) -> int:
        """All or nothing: on failure the tail goes back."""
        page = vma.vm_mm.layout.page_size
        for offset in range(length - page, -1, -page):
            if not self.move_one_page(vma, old_addr + offset, new_vma, new_addr + offset):
                for back in range(offset + page, length, page):
                    self.move_one_page(new_vma, new_addr + back, vma, old_addr + back)
                return 0
            self.kernel.sched.cond_resched()
        return length

    def lock_rmap(self, mapping: address_space | None, vma: vm_area_struct, new_vma: vm_area_struct) -> None:
        """Truncation walks on."""

    def unlock_rmap(self, mapping: address_space | None, vma: vm_area_struct) -> None:
        """It was not held."""

    def before_alloc(self, mm: mm_struct, mapping: address_space | None) -> None:
        """Nothing is held outside the page-table lock."""

    def after_alloc(self, mm: mm_struct, mapping: address_space | None) -> None:
        """Nothing was dropped."""


# ------------------------------------------------------------------ extents
class Extents2615(Extents):
    """At most 64 ptes at a time, never whole tables; each is out of every TLB when it moves."""

    since = "2.6.15"
    wrong = "a flush for every page"

    def whole_tables(self, mm: mm_struct) -> bool:
        return False

    def extent(self, longest: int) -> int:
        return min(longest, LATENCY_LIMIT * self.kernel.shape.layout.page_size)

    def take_out(self, vma: vm_area_struct, old: int, ptep: int, n: int) -> EntryRun:
        mm = vma.vm_mm
        page, width = mm.layout.page_size, mm.layout.entry_bytes[-1]
        empty = self.kernel.shape.pte.empty
        values = np.full(n, empty, dtype=np.uint64)
        for i in range(n):
            entry = ptep + i * width
            if read_pte(mm, entry) != empty:
                self.kernel.events.entries_changed(mm, old + i * page, old + (i + 1) * page, 1, "clear")
                values[i] = self.kernel.ops.ptep_clear_flush(vma, old + i * page, entry, 1)[0]
        return values

    def flush_moved(self, vma: vm_area_struct, start: int, end: int, values: EntryRun) -> None:
        """Done."""


class Extents32(Extents2615):
    """One flush for all, at the end."""

    since = "3.2"
    wrong = (
        "43: the flush comes after the locks are dropped, and a freed page is used through the old "
        "address; 44: what is written there is lost"
    )

    def move_page_tables(
        self, vma: vm_area_struct, old_addr: int, new_vma: vm_area_struct, new_addr: int, length: int
    ) -> int:
        done = super().move_page_tables(vma, old_addr, new_vma, new_addr, length)
        if done:
            self.kernel.ops.flush_tlb_range(vma, old_addr, old_addr + done)
        return done

    def take_out(self, vma: vm_area_struct, old: int, ptep: int, n: int) -> EntryRun:
        return self.kernel.ops.ptep_get_and_clear(vma.vm_mm, old, ptep, n, None)


class Extents49(Extents32):
    """Dirty ptes are flushed before the lock is dropped; one flush for the others at the end."""

    since = "4.9"
    wrong = "43, for ptes that were not dirty (to 4.18)"

    def flush_moved(self, vma: vm_area_struct, start: int, end: int, values: EntryRun) -> None:
        dirty = self.kernel.shape.pte.dirty
        if dirty is None or bool((values & np.uint64(dirty.mask) == np.uint64(dirty.on)).any()):
            self.kernel.ops.flush_tlb_range(vma, start, end)
