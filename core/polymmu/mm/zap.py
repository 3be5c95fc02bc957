"""Take user pages out of page tables: munmap, madvise, truncation and exit all end here (A2).

A pte table is emptied in chunks, each in three steps: read the run; get-and-clear it, which is where what
hardware set meanwhile comes out; account for what was in it. A chunk holds at most as many pages as the gather has
slots for, so that nothing is ever cleared that cannot be queued. Between chunks the loop looks whether somebody wants
the CPU or the table lock.

A zap below ``i_mmap_lock`` works in blocks (Linux: ZAP_BLOCK_SIZE, 8 pages with preemption and 1024 without), and asks
after each whether to stop for those who wait for that lock. How a block is counted and what happens at its end changed
with the years: ``ZapWork`` is the last form (2.6.38), the machine file names another class (``kernel.unmap_vmas``).

A full gather makes the loop drop the table lock, flush, and go on behind the last entry it cleared; each chunk is
accounted under the lock in which it was cleared, once (A2.4). Dirty file pages are flushed before that lock is
dropped: whoever next finds them clean must not be overtaken by a store through an old TLB entry (A0.3 rule 3).

Entries without a page (swap, file ptes) go in passing, unless only some pages are to go: then they stay. Where the
pages of a nonlinear vma go and the vma stays, each leaves a file pte that says which page it was (A1.9).

First reading: ``zap_page_range``, ``ZapWork.zap_ptes``; skip ``ZapDetails``.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
from numpy.typing import NDArray

from polymmu.hardware.ram import INDEX, MAPPING
from polymmu.hardware.scans import account_ptes
from polymmu.hooks import ArchKernel
from polymmu.mm.frames import lru_add_drain
from polymmu.mm.gather import (
    Rss,
    tlb_adjust_range,
    tlb_cond_resched,
    tlb_end_vma,
    tlb_finish_mmu,
    tlb_flush_dirty,
    tlb_flush_mmu,
    tlb_gather_mmu,
    tlb_remove_pages,
    tlb_retry,
    tlb_room,
)
from polymmu.mm.hugetlb import unmap_hugepage_range
from polymmu.mm.linear import linear_index
from polymmu.mm.notifier import mmu_notifier_invalidate_range_end, mmu_notifier_invalidate_range_start
from polymmu.mm.swap import free_swap_in
from polymmu.mm.tables import pfn_of, pte_lock, pte_unlock, read_ptes, table_runs
from polymmu.mm.variant import Variant
from polymmu.sched.locks import Mutex, Spinlock
from polymmu.structs import (
    PG_DIRTY,
    VM_NONLINEAR,
    VM_PFNMAP,
    EntryRun,
    address_space,
    mm_struct,
    mmu_gather,
    vm_area_struct,
)

__all__ = ["ZapDetails", "ZapWork", "collect_dirt", "unmap_vmas", "update_hiwater_rss", "zap_page_range"]

LONGEST = 1024
"""Ptes cleared at once where nobody counts blocks."""


@attrs.frozen(kw_only=True)
class ZapDetails:
    """What a truncation or invalidation asks of a zap.

    ``check_mapping``: leave every page alone that is not in this mapping's cache (private copies). ``first_index``,
    ``last_index``: which pages of the file go from a nonlinear vma, where no address says so. ``i_mmap_lock``: held by
    the caller. ``need_break``: asked after each block; True makes the zap stop there.
    """

    check_mapping: address_space | None = None
    first_index: int = 0
    last_index: int = (1 << 63) - 1
    i_mmap_lock: Mutex | Spinlock | None = None
    need_break: Callable[[], bool] | None = None

    @property
    def atomic(self) -> bool:
        """Whether the caller holds a lock below which nobody may sleep."""
        return self.i_mmap_lock is not None and self.i_mmap_lock.spins


def strategy_of(mm: mm_struct) -> ZapWork:
    """The machine's loop."""
    strategy: ZapWork = mm.kernel.variants.unmap_vmas
    return strategy


def zap_page_range(vma: vm_area_struct, start: int, length: int, details: ZapDetails | None = None) -> int:
    """Remove the pages of [start, start + length), within ``vma``, tables left in place. The address reached.

    That is the end, unless ``details`` made the zap stop. The caller holds the mm's mmap_lock or the file's
    i_mmap_lock.
    """
    return strategy_of(vma.vm_mm).zap_page_range(vma, start, start + length, details)


def unmap_vmas(tlb: mmu_gather, vma: vm_area_struct | None, start: int, end: int) -> None:
    """Remove the pages of [start, end) from ``vma`` and those after it on its list. ``end`` 0 means the top."""
    strategy_of(tlb.mm).unmap_vmas(tlb, vma, start, end)


def update_hiwater_rss(mm: mm_struct) -> None:
    """Remember the most pages ``mm`` ever had; called before their number falls."""
    mm.hiwater_rss = max(mm.hiwater_rss, mm.anon_rss + mm.file_rss)


class ZapWork(Variant):
    """The loop of 2.6.38: the gather stays open between blocks, and a block is counted by the work it made.

    An empty entry counts as one byte and any other as its page, so that what is mapped sets the pace (tables that do
    not exist count nothing here). Only a zap with ``need_break`` has blocks: without one the loop gives way between
    tables where it may sleep, as since 3.0.
    """

    since = "2.6.38"
    wrong = ""

    def __init__(self, kernel: ArchKernel) -> None:
        choice = kernel.description.kernel
        super().__init__(kernel)
        self.longest = choice.zap_block or LONGEST
        self.block = (choice.zap_block or (8 if choice.preempt else 1024)) << kernel.shape.layout.page_shift

    # ------------------------------------------------------------------ ranges
    def zap_page_range(self, vma: vm_area_struct, start: int, end: int, details: ZapDetails | None) -> int:
        """See the function of this name."""
        mm = vma.vm_mm
        lru_add_drain(self.kernel)
        mmu_notifier_invalidate_range_start(mm, start, end)
        tlb = tlb_gather_mmu(mm)
        update_hiwater_rss(mm)
        tlb.work = self.block
        reached = self.unmap_vma(tlb, vma, start, end, details)
        tlb_finish_mmu(tlb, start, end)
        mmu_notifier_invalidate_range_end(mm, start, end)
        return reached

    def unmap_vmas(self, tlb: mmu_gather, vma: vm_area_struct | None, start: int, end: int) -> None:
        """See the function of this name."""
        tlb.work = self.block
        while vma is not None and (not end or vma.vm_start < end):
            self.unmap_vma(tlb, vma, max(start, vma.vm_start), min(end or vma.vm_end, vma.vm_end), None)
            vma = vma.vm_next

    def unmap_vma(
        self, tlb: mmu_gather, vma: vm_area_struct, start: int, end: int, details: ZapDetails | None
    ) -> int:
        """Remove the pages of a part of one vma; the address reached."""
        if start >= end:
            return end
        if vma.huge_size:  # one indivisible block, without a gather
            self.unmap_huge(tlb, vma, start, end, details)
            return end
        tlb.vma = vma
        self.kernel.ops.tlb_start_vma(tlb, vma)
        walk = self.in_blocks if self.has_blocks(details) else self.in_tables
        reached = walk(tlb, vma, start, end, details)
        tlb_end_vma(tlb, vma)
        tlb.vma = None
        return reached

    def in_tables(
        self, tlb: mmu_gather, vma: vm_area_struct, start: int, end: int, details: ZapDetails | None
    ) -> int:
        """A table at a time, to the end."""
        for ptep, addr, stop in table_runs(tlb.mm, start, end):
            self.zap_ptes(tlb, vma, ptep, addr, stop, details)
            self.pause(tlb, details)
        return end

    def in_blocks(
        self, tlb: mmu_gather, vma: vm_area_struct, start: int, end: int, details: ZapDetails | None
    ) -> int:
        """A block at a time, to the end or to where somebody is let in; the address reached."""
        mm = tlb.mm
        shift, width = mm.layout.page_shift, mm.layout.entry_bytes[-1]
        for ptep, addr, stop in table_runs(mm, start, end):
            worth = self.worth(mm, read_ptes(mm, ptep, (stop - addr) >> shift))
            done = used = 0
            while done < len(worth):
                n = min(int(np.searchsorted(worth, used + tlb.work)) + 1, len(worth))
                self.zap_ptes(
                    tlb, vma, ptep + done * width, addr + (done << shift), addr + (n << shift), details
                )
                done, before, used = n, used, int(worth[n - 1])
                tlb.work -= used - before
                if tlb.work <= 0 and self.used_up(tlb, details):
                    return addr + (done << shift)
        return end

    def worth(self, mm: mm_struct, values: EntryRun) -> NDArray[np.int64]:
        """What the ptes ``values`` up to each of them use of a block. They may change before they are zapped."""
        empty: NDArray[np.bool_] = values == np.uint64(self.kernel.shape.pte.empty)
        return np.cumsum(np.where(empty, 1, mm.layout.page_size))

    def used_up(self, tlb: mmu_gather, details: ZapDetails | None) -> bool:
        """A block is done, the next one begins. True: stop before it."""
        tlb.work = self.block
        self.kernel.sched.point(
            "block", tlb.mm
        )  # who waits is seen, also below locks held from block to block
        return self.block_ends(tlb, details)

    # ------------------------------------------------------------------ what changed with the years
    def has_blocks(self, details: ZapDetails | None) -> bool:
        """Whether this zap works in blocks."""
        return details is not None and details.need_break is not None

    def block_ends(self, tlb: mmu_gather, details: ZapDetails | None) -> bool:
        """What there is to do after a block. True: stop there."""
        return details is not None and details.need_break is not None and details.need_break()

    def unmap_huge(
        self, tlb: mmu_gather, vma: vm_area_struct, start: int, end: int, details: ZapDetails | None
    ) -> None:
        """Remove the huge pages of a part of ``vma``."""
        unmap_hugepage_range(vma, start, end, details.check_mapping if details is not None else None)

    def lock_table(self, mm: mm_struct, ptep: int) -> Spinlock:
        """Map the table of ``ptep`` and lock its entries."""
        return pte_lock(mm, ptep)

    def unlock_table(self, mm: mm_struct, ptep: int) -> None:
        """Undo ``lock_table``."""
        pte_unlock(mm, ptep)

    def leave_table(self, mm: mm_struct, ptep: int, last: int, full: bool) -> None:
        """``unlock_table``, behind the entry ``last`` of the table, which made the gather ``full`` or not."""
        self.unlock_table(mm, ptep)

    def pause(self, tlb: mmu_gather, details: ZapDetails | None) -> None:
        """No table lock is held: give way if somebody asked, and if the caller's lock allows it."""
        if details is None or not details.atomic:
            tlb_cond_resched(tlb)

    # ------------------------------------------------------------------ one table
    def zap_ptes(
        self, tlb: mmu_gather, vma: vm_area_struct, ptep: int, addr: int, end: int, details: ZapDetails | None
    ) -> None:
        """Remove the pages of [addr, end), which one pte table maps from ``ptep`` on."""
        mm = tlb.mm
        kernel = self.kernel
        sched, ops = kernel.sched, kernel.ops
        shift, width = mm.layout.page_shift, mm.layout.entry_bytes[-1]
        n = (end - addr) >> shift
        kernel.events.entries_visited(mm, "zap", n)
        nonlinear = bool(vma.vm_flags & VM_NONLINEAR)
        chooses = details is not None and (nonlinear or details.check_mapping is not None)
        soft_goes = not chooses and (nonlinear or kernel.swap is not None)
        cost = kernel.description.costs.entry_update
        # Invariant: every entry before ``done`` that was to go is cleared, accounted and in the gather.
        done = 0
        rss = Rss()
        while done < n:
            lock = self.lock_table(mm, ptep)
            if not done:
                kernel.events.zap_finds(mm, addr, end)
            ops.enter_lazy_mmu(mm)
            full = dirty = False
            while done < n and not full:
                values = read_ptes(mm, ptep + done * width, min(self.longest, n - done))
                if soft_goes:
                    _zap_soft(mm, ptep + done * width, addr + (done << shift), values)
                goes = _chosen(vma, values, details) if chooses and details is not None else None
                first, last = _next_run(kernel, values, tlb_room(tlb), goes)
                if first < last:
                    at = done + first
                    run = ptep + at * width, addr + (at << shift), last - first
                    full, dirtied = _zap_run(tlb, vma, *run, rss, leaves_file_ptes=chooses and nonlinear)
                    dirty |= dirtied
                done += last
                sched.spend(cost * last, "zap")
                if sched.need_resched() or sched.need_lockbreak(lock):
                    break
            mm.anon_rss -= rss.anon
            mm.file_rss -= rss.file
            ops.leave_lazy_mmu(mm)
            flushed = dirty and tlb_flush_dirty(tlb)
            self.leave_table(mm, ptep, ptep + (done - 1) * width, full)
            if full or flushed:
                tlb_flush_mmu(tlb)
            if full:
                done -= tlb_retry(tlb, rss)
            else:
                rss = Rss()
            if done < n:
                self.pause(tlb, details)


def _next_run(
    kernel: ArchKernel, values: EntryRun, room: int, chosen: NDArray[np.bool_] | None
) -> tuple[int, int]:
    """The next entries to clear, [first, last) of ``values``, with at most ``room`` present ones among them.

    ``chosen``: which go, if not all. Where none is left both are the end of ``values``.
    """
    goes = (kernel.shape.pte.mapped_in(values) if chosen is None else chosen).nonzero()[0]
    if not len(goes):
        return len(values), len(values)
    first, last = int(goes[0]), int(goes[:room][-1]) + 1
    if chosen is not None:
        stays = np.flatnonzero(
            (values[first:last] != np.uint64(kernel.shape.pte.empty)) & ~chosen[first:last]
        )
        if len(stays):
            last = first + int(stays[0])
    return first, last


def _chosen(vma: vm_area_struct, values: EntryRun, details: ZapDetails) -> NDArray[np.bool_]:
    """Which of ``values`` map a page that ``details`` is about."""
    kernel: ArchKernel = vma.vm_mm.kernel
    shape, table = kernel.shape, kernel.frames.table
    goes = shape.pte.mapped_in(values)
    pfns = (values & np.uint64(shape.pte.frame_mask)) >> np.uint64(shape.pfn_shift)
    pfns = np.where(pfns < kernel.frames.count, pfns, 0)  # frame 0 is in no cache
    if details.check_mapping is not None:
        goes &= table[MAPPING, pfns] == details.check_mapping.slot + 1
    if vma.vm_flags & VM_NONLINEAR:
        indices = table[INDEX, pfns]
        goes &= (indices >= details.first_index) & (indices <= details.last_index)
    return goes


def _zap_soft(mm: mm_struct, ptep: int, addr: int, values: EntryRun) -> None:
    """Clear those of the entries ``values`` that are neither empty nor map a page. The table lock is held.

    No TLB knows them, so nothing is queued or flushed.
    """
    kernel: ArchKernel = mm.kernel
    pte = kernel.shape.pte
    soft = np.flatnonzero((values != np.uint64(pte.empty)) & ~pte.mapped_in(values))
    if not len(soft):
        return
    for run in np.split(soft, np.flatnonzero(np.diff(soft) != 1) + 1):
        first, n = int(run[0]), len(run)
        at = ptep + first * mm.layout.entry_bytes[-1]
        kernel.ops.set_pte(
            mm, addr + (first << mm.layout.page_shift), at, np.full(n, pte.empty, dtype=np.uint64)
        )
    free_swap_in(mm, values[soft])


def _zap_run(
    tlb: mmu_gather, vma: vm_area_struct, ptep: int, addr: int, n: int, rss: Rss, *, leaves_file_ptes: bool
) -> tuple[bool, bool]:
    """Clear, account and queue ``n`` entries. (Whether the gather is full, whether a file page was dirty.)

    The caller holds the table lock, saw to it that the gather has room, and takes ``rss`` from the mm's counters.
    """
    mm = tlb.mm
    kernel: ArchKernel = mm.kernel
    ops, frames, shape = kernel.ops, kernel.frames, kernel.shape
    end = addr + (n << mm.layout.page_shift)
    values = ops.ptep_get_and_clear(mm, addr, ptep, n, tlb)
    tlb_adjust_range(tlb, addr, end, mm.layout.pte_level)
    ops.tlb_remove_tlb_entry(tlb, ptep, addr, n)
    kernel.events.entries_changed(mm, addr, end, n, "clear")
    if vma.vm_flags & VM_PFNMAP:
        return False, False
    if leaves_file_ptes:
        _leave_file_ptes(vma, ptep, addr, values)
    pfns: NDArray[np.int64] = np.empty(n, dtype=np.int64)
    pages, anon, dirtied = account_ptes(values, frames.table, shape.account_masks, frames.count, -1, pfns)
    rss.anon += anon
    rss.file += pages - anon
    pfns = pfns[:pages]
    collect_dirt(kernel, pfns)
    return pages > 0 and tlb_remove_pages(tlb, pfns), dirtied > 0


def collect_dirt(kernel: ArchKernel, pfns: NDArray[np.int64]) -> None:
    """Ptes of ``pfns`` are gone. Where frames know of stores and not ptes, a page is told with its last one."""
    if kernel.shape.pte.dirty is not None:
        return
    frames = kernel.frames
    for pfn in pfns.tolist():
        if not frames.mapcount[pfn] and kernel.ops.page_test_and_clear_dirty(kernel, pfn):
            frames.flags[pfn] |= PG_DIRTY


def _leave_file_ptes(vma: vm_area_struct, ptep: int, addr: int, values: EntryRun) -> None:
    """Say in each entry whose page ``values`` was not where its vma would have it, which page that was (A1.9)."""
    kernel: ArchKernel = vma.vm_mm.kernel
    shape = kernel.shape
    pte = shape.pte
    assert pte.file is not None
    shift = vma.vm_mm.layout.page_shift
    left = np.full(len(values), pte.empty, dtype=np.uint64)
    for n in np.flatnonzero(pte.mapped_in(values)).tolist():
        index = kernel.frames.index[pfn_of(shape, int(values[n]))]
        if index != linear_index(vma, addr + (n << shift)):
            left[n] = pte.file.make(index)
    if (left != np.uint64(pte.empty)).any():
        kernel.ops.set_pte(vma.vm_mm, addr, ptep, left)
