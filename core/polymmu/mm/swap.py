"""The swap area and the swap cache: anonymous pages in places outside memory, and those that are in both.

A place (slot) is named by every pte that would map its page, and once more while the swap cache holds the page: its
count is the number of all these, and with the last it is free. Slot 0 is never used, as in Linux (its header).

The cache is where everybody who wants a slot's page meets: one reads it in, the others wait for its page lock. A page
stays there only as long as some pte still names the slot. So whoever is about to unlock a page that may be in the cache
lets it out if it is the last of its slot (``try_to_free_swap``); and whoever waited for the lock looks again, both at
"is it still in the cache" and "for the same slot", for slots and pages are used again (A7.6, corpus 86).

Guards: ``SwapArea.lock`` for the counts, innermost of all; the page lock for whether a page is in the cache.

First reading: ``add_to_swap``, ``read_swap_page``, ``do_swap_page``.
"""

from __future__ import annotations

import errno

import numpy as np

from polymmu.errors import UserMistake, syscall_error
from polymmu.hardware.ram import NONZERO
from polymmu.hooks import ArchKernel
from polymmu.mm.anon_vma import anon_vma_prepare, page_add_anon_rmap
from polymmu.mm.frames import alloc_page, get_page, lru_cache_add, put_page
from polymmu.mm.pagelock import lock_page, trylock_page, unlock_page
from polymmu.mm.tables import enter_pte, pte_lock, pte_unlock, read_pte
from polymmu.mm.variant import Variant
from polymmu.sched.locks import Spinlock
from polymmu.structs import PG_DIRTY, PG_SWAPCACHE, EntryRun, Shape, SwapArea, mm_struct, vm_area_struct

__all__ = [
    "SwapIn",
    "add_to_swap",
    "boot_swap",
    "delete_from_swap_cache",
    "do_swap_page",
    "free_swap_in",
    "reuse_swap_page",
    "swap_duplicate_in",
    "swap_entry",
    "try_to_free_swap",
    "write_swap_page",
]

TYPE = 0
"""Number of the one swap area there is."""


def boot_swap(kernel: ArchKernel) -> None:
    """Give the machine its swap area, if its description has one. Raises UserMistake where it cannot."""
    nbytes = kernel.description.swap
    if nbytes:
        kernel.swap = SwapArea(Spinlock(kernel.sched, "swap_lock"), slots=_slots_in(kernel.shape, nbytes))


def _slots_in(shape: Shape, nbytes: int) -> int:
    swap = shape.pte.swap
    if swap is None:
        raise UserMistake("this architecture describes no swap entries; leave 'swap' out", place="swap")
    slots = nbytes >> shape.layout.page_shift
    if slots - 1 > swap.max_offset:
        most = swap.max_offset + 1 << shape.layout.page_shift >> 20
        raise UserMistake(
            f"a swap entry of this machine reaches {most} MiB, not {nbytes >> 20}", place="swap"
        )
    return slots


# ------------------------------------------------------------------ slots and their counts
def _area(kernel: ArchKernel) -> SwapArea:
    assert kernel.swap is not None
    return kernel.swap


def swap_entry(kernel: ArchKernel, slot: int) -> int:
    """The pte that says: the page is in ``slot``."""
    swap = kernel.shape.pte.swap
    assert swap is not None
    return swap.make(TYPE, slot)


def _slot_of(kernel: ArchKernel, entry: int) -> int:
    swap = kernel.shape.pte.swap
    assert swap is not None
    type_, slot = swap.split(entry)
    if type_ != TYPE or not 0 < slot < _area(kernel).slots:
        raise AssertionError(f"pte {entry:#x} names slot {slot} of swap area {type_}; there is no such place")
    return slot


def _get_swap_page(area: SwapArea) -> int:
    """A free slot with a count of one, the caller's; 0 where none is free."""
    area.lock.lock()
    slot = 0
    if area.freed:
        slot = area.freed.pop()
    elif area.bump < area.slots:
        slot = area.bump
        area.bump += 1
    if slot:
        area.swap_map[slot] = 1
    area.lock.unlock()
    return slot


def _swap_free(area: SwapArea, slot: int) -> None:
    """One less that names ``slot``."""
    area.lock.lock()
    _put_slot(area, slot)
    area.lock.unlock()


def _put_slot(area: SwapArea, slot: int) -> None:
    """``_swap_free`` for who has the lock."""
    left = area.swap_map[slot] - 1
    if left:
        area.swap_map[slot] = left
    else:
        del area.swap_map[slot]
        area.contents.pop(slot, None)
        area.freed.append(slot)


def swap_duplicate_in(mm: mm_struct, values: EntryRun) -> None:
    """Count the swap entries among ``values``, which are about to stand in ptes of ``mm`` too."""
    kernel: ArchKernel = mm.kernel
    for entry in _swap_entries_in(kernel, values):
        area, slot = _area(kernel), _slot_of(kernel, entry)
        area.lock.lock()
        if slot not in area.swap_map:
            raise AssertionError(f"pte {entry:#x} names a free slot")
        area.swap_map[slot] += 1
        area.lock.unlock()
        mm.swapents += 1


def free_swap_in(mm: mm_struct, values: EntryRun) -> None:
    """The swap entries among ``values`` stand in no pte of ``mm`` any more. Below the table lock.

    A page in the cache that nobody names any more leaves it; whoever has it locked will see to that.
    """
    kernel: ArchKernel = mm.kernel
    for entry in _swap_entries_in(kernel, values):
        area, slot = _area(kernel), _slot_of(kernel, entry)
        _swap_free(area, slot)
        mm.swapents -= 1
        pfn = area.cache.get(slot)
        if pfn is not None and area.swap_map[slot] == 1:
            # Before its lock is had it may leave the cache, which then holds it no more.
            get_page(kernel, pfn)
            if trylock_page(kernel, pfn):
                try_to_free_swap(kernel, pfn)
                unlock_page(kernel, pfn)
            put_page(kernel, pfn)


def _swap_entries_in(kernel: ArchKernel, values: EntryRun) -> list[int]:
    swap = kernel.shape.pte.swap
    if kernel.swap is None or swap is None:
        return []
    found: list[int] = values[np.flatnonzero(swap.found_in(values))].tolist()
    return found


# ------------------------------------------------------------------ the cache; its pages are locked by the caller
def add_to_swap(kernel: ArchKernel, pfn: int) -> bool:
    """Give an anonymous page a slot and put it into the cache, dirty; False where no slot is free."""
    area = _area(kernel)
    slot = _get_swap_page(area)
    if not slot:
        return False
    _enter_cache(kernel, area, slot, pfn)
    kernel.frames.flags[pfn] |= PG_DIRTY
    return True


def _add_to_swap_cache(kernel: ArchKernel, area: SwapArea, slot: int, pfn: int) -> bool:
    """Put a fresh page for ``slot`` into the cache. False if there is one, or the slot is free by now."""
    area.lock.lock()
    ours = slot in area.swap_map and slot not in area.cache
    if ours:
        area.swap_map[slot] += 1
        _enter_cache(kernel, area, slot, pfn)
    area.lock.unlock()
    return ours


def _enter_cache(kernel: ArchKernel, area: SwapArea, slot: int, pfn: int) -> None:
    """The cache takes a reference of the page; the slot's count has one for it already."""
    get_page(kernel, pfn)
    area.cache[slot] = pfn
    kernel.frames.private[pfn] = slot
    kernel.frames.flags[pfn] |= PG_SWAPCACHE


def delete_from_swap_cache(kernel: ArchKernel, pfn: int) -> None:
    """Take a page out of the cache; the caller holds another reference."""
    area, frames = _area(kernel), kernel.frames
    slot = frames.private[pfn]
    area.lock.lock()
    del area.cache[slot]
    frames.private[pfn] = 0
    frames.flags[pfn] &= ~PG_SWAPCACHE
    _put_slot(area, slot)
    area.lock.unlock()
    put_page(kernel, pfn)


def try_to_free_swap(kernel: ArchKernel, pfn: int) -> bool:
    """Let a page out of the cache if no pte names its slot: memory has its only copy then. Whether it is out now."""
    frames = kernel.frames
    if not frames.flags[pfn] & PG_SWAPCACHE:
        return True
    if _area(kernel).swap_map[frames.private[pfn]] > 1:
        return False
    delete_from_swap_cache(kernel, pfn)
    frames.flags[pfn] |= PG_DIRTY
    return True


def reuse_swap_page(kernel: ArchKernel, pfn: int) -> bool:
    """Whether the one pte that maps ``pfn`` is all that wants it, so that it may be written where it is (A7.6).

    Below the table lock. Where the page is locked the answer is no, and it is copied.
    """
    if not kernel.frames.flags[pfn] & PG_SWAPCACHE:
        return True
    if not trylock_page(kernel, pfn):
        return False
    alone = try_to_free_swap(kernel, pfn)
    unlock_page(kernel, pfn)
    return alone


def write_swap_page(kernel: ArchKernel, pfn: int) -> None:
    """Write a page of the cache to its slot. Sleeps as long as that takes."""
    area, frames = _area(kernel), kernel.frames
    size = kernel.shape.layout.page_size
    frames.flags[pfn] &= ~PG_DIRTY
    area.contents[frames.private[pfn]] = (
        kernel.ram.read(pfn * size, size) if frames.flags[pfn] & NONZERO else b""
    )
    area.written += 1
    kernel.sched.sleep(kernel.description.costs.page_io)


# ------------------------------------------------------------------ back in
def do_swap_page(vma: vm_area_struct, page: int, ptep: int, value: int, write: bool) -> str:
    """Map the page that the swap entry ``value`` names (A7.6, swap in). What kind of fault it was. May sleep.

    Where anything changed meanwhile nothing is done: the access will fault again.
    """
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    area, frames = _area(kernel), kernel.frames
    slot = _slot_of(kernel, value)
    anon_vma_prepare(vma)
    pfn, was_read = _find_or_read(kernel, area, slot)
    if pfn < 0:
        # Who brings the page lets go of the slot first, and enters the page below the same lock.
        pte_lock(mm, ptep)
        unchanged = read_pte(mm, ptep) == value
        pte_unlock(mm, ptep)
        if unchanged:
            raise syscall_error(errno.ENOMEM, "no frame left for a page from the swap area")
        return "minor"
    lock_page(kernel, pfn)
    ours = False
    swap_in: SwapIn = kernel.variants.swap_in
    if swap_in.is_page_of(pfn, slot):
        pte_lock(mm, ptep)
        ours = read_pte(mm, ptep) == value
        if ours:
            frames.mapcount[pfn] += 1
            page_add_anon_rmap(vma, page, pfn)
            mm.anon_rss += 1
            mm.swapents -= 1
            kernel.events.swapped_in(mm, page, slot, pfn)
            _swap_free(area, slot)
            alone = try_to_free_swap(kernel, pfn) and frames.mapcount[pfn] == 1
            enter_pte(kernel, vma, page, ptep, pfn, write and alone)
        pte_unlock(mm, ptep)
    _unlock(kernel, pfn)
    if not ours:
        put_page(kernel, pfn)
    return "major" if was_read else "minor"


class SwapIn(Variant):
    """A page found for a slot is asked, once it is locked, whether it still is that slot's."""

    since = "2.6.36"
    wrong = ""

    def is_page_of(self, pfn: int, slot: int) -> bool:
        """Whether a locked page is still in the cache, and for the slot it was found for."""
        frames = self.kernel.frames
        return bool(frames.flags[pfn] & PG_SWAPCACHE) and frames.private[pfn] == slot


def _unlock(kernel: ArchKernel, pfn: int) -> None:
    """Unlock a page that may be the last to know its slot."""
    try_to_free_swap(kernel, pfn)
    unlock_page(kernel, pfn)


def _find_or_read(kernel: ArchKernel, area: SwapArea, slot: int) -> tuple[int, bool]:
    """The page of ``slot`` with a reference for the caller, and whether it had to be read. May sleep.

    -1: no memory, or the slot is free by now.
    """
    if slot not in area.cache:
        new = alloc_page(kernel, "anon")
        if new < 0:
            return -1, False
        lock_page(kernel, new)
        ours = _add_to_swap_cache(kernel, area, slot, new)
        if ours:
            _read(kernel, area, slot, new)
        _unlock(kernel, new)
        if ours:
            return new, True
        put_page(kernel, new)  # somebody else had the same idea while we waited for memory
    found = area.cache.get(slot, -1)
    if found >= 0:
        get_page(kernel, found)
    return found, False


def _read(kernel: ArchKernel, area: SwapArea, slot: int, pfn: int) -> None:
    """Fill a page of the cache from ``slot``. It is locked: who else wants it waits."""
    area.read += 1
    kernel.sched.sleep(kernel.description.costs.page_io)
    content = area.contents[slot]
    if content:
        kernel.ram.write(pfn * kernel.shape.layout.page_size, content)
        kernel.frames.flags[pfn] |= NONZERO
    lru_cache_add(kernel, pfn)
