"""A device that uses a program's addresses: its own small cache of translations, kept right by an mmu notifier.

An entry is got from the program's tables by get_user_pages, which may sleep, so the ptes may change in between. The
protocol of A8.2 sees that: ``invalidating`` counts the changes under way and ``sequence`` those that are over; an
entry is entered only if none is under way and none ended since before the page was looked up. The device holds no
reference to a page: what lets it use one is that no invalidation has begun.

It sees the pages of one mm. ``sleeps``: it takes a while to stop, so its lock is one to sleep on.

First reading: ``SecondaryMmu._enter``, ``invalidate_range_start``.
"""

from __future__ import annotations

import attrs

from polymmu.errors import SegmentationFault
from polymmu.hardware.ram import NONZERO
from polymmu.hooks import ArchKernel
from polymmu.mm.frames import put_compound_page
from polymmu.mm.gup import get_user_pages
from polymmu.mm.notifier import MmuNotifier
from polymmu.sched.locks import Mutex, Spinlock
from polymmu.structs import PG_DIRTY, mm_struct

__all__ = ["DeviceEntry", "SecondaryMmu"]

WORD = (1 << 64) - 1


@attrs.frozen
class DeviceEntry:
    """What the device knows of a page: its frame, and whether it may store there."""

    pfn: int
    writable: bool


class SecondaryMmu(MmuNotifier):
    """See the top of the module. To be registered with ``mmu_notifier_register``."""

    def __init__(self, mm: mm_struct, *, sleeps: bool = False) -> None:
        self.kernel: ArchKernel = mm.kernel
        self.mm: mm_struct | None = mm
        self.lock = (Mutex if sleeps else Spinlock)(self.kernel.sched, "secondary_mmu")
        self.entries: dict[int, DeviceEntry] = {}
        """By page address. Guard of all below too: ``lock``."""
        self.invalidating = 0
        self.sequence = 0
        self.refused = 0
        """Entries that were not entered because of an invalidation meanwhile."""
        self.kernel.secondary_mmus.append(self)

    # ------------------------------------------------------------------ what it is told
    def invalidate_range_start(self, mm: mm_struct, start: int, end: int) -> None:
        """Stop using the range, and enter nothing until the end."""
        self.lock.lock()
        self.invalidating += 1
        last = (end - 1) & WORD
        gone = [page for page in self.entries if start <= page <= last]
        for page in gone:
            del self.entries[page]
        if gone:
            self.kernel.sched.spend(self.kernel.description.costs.ipi, "notifier")
        self.lock.unlock()

    def invalidate_range_end(self, mm: mm_struct, start: int, end: int) -> None:
        """What was looked up before now may be of before the change."""
        self.lock.lock()
        self.sequence += 1
        self.invalidating -= 1
        self.lock.unlock()

    def release(self, mm: mm_struct) -> None:
        """Forget everything."""
        self.lock.lock()
        self.entries.clear()
        self.mm = None
        self.kernel.secondary_mmus.remove(self)
        self.lock.unlock()

    # ------------------------------------------------------------------ what it does
    def load(self, va: int, size: int) -> bytes:
        """Read ``size`` bytes within one page. Raises SegmentationFault, SyscallError. May sleep."""
        pa = self._translate(va, "load")
        data = self.kernel.ram.read(pa, size)
        self.lock.unlock()
        return data

    def store(self, va: int, data: bytes) -> None:
        """Write ``data`` within one page. Raises SegmentationFault, SyscallError. May sleep."""
        pa = self._translate(va, "store")
        self.kernel.ram.write(pa, data)
        self.kernel.frames.flags[pa >> self.kernel.shape.layout.page_shift] |= PG_DIRTY | NONZERO
        self.lock.unlock()

    def _translate(self, va: int, access: str) -> int:
        """Where ``va`` is in memory, for an access that is over when the caller drops the lock."""
        shift, page_size = self.kernel.shape.layout.page_shift, self.kernel.shape.layout.page_size
        page = va & -page_size
        while True:
            self.lock.lock()
            entry = self.entries.get(page)
            sequence = self.sequence
            if entry is not None and (entry.writable or access == "load"):
                return (entry.pfn << shift) + va - page
            self.lock.unlock()
            self._enter(page, va, access, sequence)

    def _enter(self, page: int, va: int, access: str, sequence: int) -> None:
        """Bring the page and enter it, unless what was found may be out of date; ``sequence`` was seen before."""
        kernel = self.kernel
        if self.mm is None:
            raise SegmentationFault(va, access, "the address space is gone")
        kernel.sched.spend(kernel.description.costs.fault, "fault")
        pfn = get_user_pages(self.mm, va, access == "store")
        self.lock.lock()
        if self.mm is not None and self.may_enter(sequence):
            self.entries[page] = DeviceEntry(pfn, access == "store")
        else:
            self.refused += 1
        self.lock.unlock()
        put_compound_page(kernel, pfn)
        kernel.sched.cond_resched()

    def may_enter(self, sequence: int) -> bool:
        """Whether no invalidation is under way, and none ended since ``sequence`` was read."""
        return not self.invalidating and self.sequence == sequence
