"""Move a mapping's page tables to another address (mremap), by extents (A5.2).

Whole tables are hooked over where both addresses are aligned to what the table covers and the destination has none
(Linux 5.0 for pte tables, 5.11 for pmd tables); else the ptes of an extent move. Either way the old translations
are flushed before the lock is dropped: once another CPU can act on the new entries, no TLB may still use the old
ones (Linux 4.19; CVE-2018-18281).

``Extents`` is how it is today; the machine file names another class, whose steps are methods, to be asked instead
(``kernel.mremap``).

First reading: ``Extents.move_page_tables``, ``Extents.move_ptes``.
"""

from __future__ import annotations

import numpy as np

from polymmu.hooks import ArchKernel
from polymmu.mm.notifier import (
    mmu_notifier_invalidate_range,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from polymmu.mm.tables import (
    alloc_entry,
    find_entry,
    format_of,
    pte_lock,
    pte_lock_second,
    pte_unlock,
    pte_unlock_second,
    read_entry,
)
from polymmu.mm.truncate_count import truncate_counts
from polymmu.mm.variant import Variant
from polymmu.structs import EntryRun, address_space, mm_struct, vm_area_struct

__all__ = ["Extents", "hook_over", "move_page_tables"]


def move_page_tables(
    vma: vm_area_struct, old_addr: int, new_vma: vm_area_struct, new_addr: int, length: int
) -> int:
    """Move what [old_addr, old_addr + length) of ``vma`` maps to ``new_addr`` on; the bytes that were moved.

    Fewer than ``length`` where no table could be had; the caller moves those back, which cannot fail, for the
    tables are there. mmap_lock is held for writing.
    """
    strategy: Extents = vma.vm_mm.kernel.variants.mremap
    strategy.kernel.ops.flush_cache_range(vma, old_addr, old_addr + length)
    mmu_notifier_invalidate_range_start(vma.vm_mm, old_addr, old_addr + length)
    moved = strategy.move_page_tables(vma, old_addr, new_vma, new_addr, length)
    mmu_notifier_invalidate_range_end(vma.vm_mm, old_addr, old_addr + length)
    return moved


class Extents(Variant):
    """Tables and extents of ptes, each flushed before its lock is dropped (Linux 4.19, 5.11).

    The locks of the walks from pages are held while entries are in neither place, so that truncation and try_to_unmap
    find each of them.
    """

    since = "4.19, whole tables as in 5.11"
    wrong = ""

    def move_page_tables(
        self, vma: vm_area_struct, old_addr: int, new_vma: vm_area_struct, new_addr: int, length: int
    ) -> int:
        """See the function of this name."""
        mm = vma.vm_mm
        layout = mm.layout
        mapping = vma.vm_file.mapping if vma.vm_file is not None else None
        done = 0
        while done < length:
            old, new = old_addr + done, new_addr + done
            missing = _first_missing(mm, old)
            if missing >= 0:
                # A level that whole tables may move at is made in the new place first, then the one below looked at.
                if missing == layout.pmd_level > 1 and alloc_entry(mm, new, missing - 1) < 0:
                    return done
                done += _extent(layout.span_of(missing), old, new, length - done)
                continue
            moved = self.move_some(mapping, vma, old, new_vma, new, length - done)
            if not moved:
                return done
            done += moved
            self.kernel.sched.cond_resched()
        return length

    def move_some(
        self,
        mapping: address_space | None,
        vma: vm_area_struct,
        old: int,
        new_vma: vm_area_struct,
        new: int,
        left: int,
    ) -> int:
        """Move one table or one extent of ptes; the bytes it covers, 0 where no table could be had."""
        mm = vma.vm_mm
        layout = mm.layout
        # The root's own entries stay: where they are cached in registers they are no business of a move.
        for level in range(max(layout.pmd_level - 1, 1), layout.pmd_level + 1):
            span = layout.span_of(level)
            if self.whole_tables(mm) and not (old | new) & (span - 1) and left >= span:
                entry = alloc_entry(mm, new, level)
                if entry < 0:
                    return 0
                if self.move_table(mapping, vma, new_vma, level, old, new, entry):
                    return span
        extent = self.extent(_extent(layout.span_of(layout.pmd_level), old, new, left))
        into = alloc_entry(mm, new)
        if into < 0:
            return 0
        self.lock_rmap(mapping, vma, new_vma)
        self.move_ptes(vma, old, new, into, extent)
        self.unlock_rmap(mapping, vma)
        return extent

    def move_table(
        self,
        mapping: address_space | None,
        vma: vm_area_struct,
        new_vma: vm_area_struct,
        level: int,
        old: int,
        new: int,
        into: int,
    ) -> bool:
        """Hook the table below ``old``'s entry of ``level`` over to the entry ``into``; False if that is not empty."""
        self.lock_rmap(mapping, vma, new_vma)
        hooked = hook_over(vma, level, old, new, into)
        self.unlock_rmap(mapping, vma)
        return hooked

    def lock_rmap(self, mapping: address_space | None, vma: vm_area_struct, new_vma: vm_area_struct) -> None:
        """No walk from a page passes by ``vma`` from here on, nor by another vma that may map its pages (A5.4)."""
        if mapping is not None:
            mapping.i_mmap_lock.lock()
            truncate_counts(self.kernel).vma_moved(new_vma, vma)
        if vma.anon_vma is not None:
            vma.anon_vma.root.lock.lock()

    def unlock_rmap(self, mapping: address_space | None, vma: vm_area_struct) -> None:
        """Undo ``lock_rmap``."""
        if vma.anon_vma is not None:
            vma.anon_vma.root.lock.unlock()
        if mapping is not None:
            mapping.i_mmap_lock.unlock()

    def whole_tables(self, mm: mm_struct) -> bool:
        """Whether tables may be hooked over as they are."""
        return self.kernel.ops.have_move_pmd(mm)

    def extent(self, longest: int) -> int:
        """Bytes moved under one hold of the locks."""
        return longest

    def move_ptes(self, vma: vm_area_struct, old: int, new: int, into: int, extent: int) -> None:
        """Move the ptes of one extent, which lies in one table on either side."""
        mm = vma.vm_mm
        kernel = self.kernel
        ops = kernel.ops
        n = extent >> mm.layout.page_shift
        kernel.events.entries_visited(mm, "move", n)
        kernel.sched.spend(kernel.description.costs.entry_update * n, "move")
        ptep = find_entry(mm, old)
        pte_lock(mm, into)
        pte_lock_second(mm, ptep, into)
        ops.enter_lazy_mmu(mm)
        values = self.take_out(vma, old, ptep, n)
        present = np.flatnonzero(values != np.uint64(kernel.shape.pte.empty))
        if len(present):
            first, last = int(present[0]), int(present[-1]) + 1
            shift, width = mm.layout.page_shift, mm.layout.entry_bytes[-1]
            ops.set_pte(mm, new + (first << shift), into + first * width, values[first:last])
            kernel.events.entries_changed(mm, old, old + extent, len(present), "clear")
            self.flush_moved(vma, old, old + extent, values)
        ops.leave_lazy_mmu(mm)
        pte_unlock_second(mm, ptep, into)
        pte_unlock(mm, into)

    def take_out(self, vma: vm_area_struct, old: int, ptep: int, n: int) -> EntryRun:
        """Clear the ptes of an extent; what they were."""
        return self.kernel.ops.ptep_get_and_clear(vma.vm_mm, old, ptep, n, None)

    def flush_moved(self, vma: vm_area_struct, start: int, end: int, values: EntryRun) -> None:
        """``values`` are in their new place, and the table lock is still held."""
        self.kernel.ops.flush_tlb_range(vma, start, end)
        mmu_notifier_invalidate_range(vma.vm_mm, start, end)


def _extent(span: int, old: int, new: int, left: int) -> int:
    """Bytes until the next boundary of ``span`` after either address, or until the end."""
    return min(span - old % span, span - new % span, left)


def _first_missing(mm: mm_struct, addr: int) -> int:
    """The highest level at which ``addr`` has no table below it; -1 where its pte table exists."""
    for level in range(mm.layout.pte_level):
        if read_entry(mm, level, find_entry(mm, addr, level)) == format_of(mm, level).empty:
            return level
    return -1


def hook_over(vma: vm_area_struct, level: int, old: int, new: int, into: int) -> bool:
    """The same, with the locks of the walks from pages held."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    format = format_of(mm, level)
    span = mm.layout.span_of(level)
    mm.page_table_lock.lock()
    free = read_entry(mm, level, into) == format.empty
    if free:
        entry = find_entry(mm, old, level)
        table = format.table_of(read_entry(mm, level, entry))
        kernel.ops.clear_entry(mm, level, old, entry)
        kernel.ops.populate(mm, level, new, into, table)
        pages = span >> mm.layout.page_shift
        kernel.events.entries_visited(mm, "move", 1)
        kernel.events.table_unhooked(mm, old, old + span)
        kernel.events.entries_changed(mm, old, old + span, pages, "clear")
        kernel.ops.flush_tlb_range(vma, old, old + span)
        mmu_notifier_invalidate_range(mm, old, old + span)
    mm.page_table_lock.unlock()
    return bool(free)
