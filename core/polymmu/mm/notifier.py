"""Whoever else uses an mm's translations hears of every change before it and after it (A8.2: mmu notifiers).

A secondary MMU (a device, a hypervisor) has translations of its own, which no TLB flush reaches. So each change of an
mm's ptes is bracketed: ``invalidate_range_start`` before the first entry changes, ``invalidate_range_end`` after the
TLB flush. In between the secondary MMU may use and enter nothing of the range, for pages may be freed without another
word. One that walks the mm's own tables needs less: ``invalidate_range``, with each flush of the CPUs' TLBs.

A start may sleep (until a device has answered), so it is told where no spinlock is held; below a spinning i_mmap_lock
a notifier that sleeps breaks INV-ATOMIC. An mm without notifiers pays for an empty loop.
"""

from __future__ import annotations

from polymmu.hooks import ArchKernel
from polymmu.sched.locks import Mutex, Spinlock
from polymmu.structs import mm_struct

__all__ = [
    "MmuNotifier",
    "mmu_notifier_invalidate_range",
    "mmu_notifier_invalidate_range_end",
    "mmu_notifier_invalidate_range_start",
    "mmu_notifier_register",
    "mmu_notifier_release",
    "mmu_notifier_unregister",
]


class MmuNotifier:
    """What a secondary MMU is told. Ranges are [start, end) in bytes; ``end`` 0 means the top. None may fail."""

    def invalidate_range_start(self, mm: mm_struct, start: int, end: int) -> None:
        """Entries of the range are about to change. May sleep."""

    def invalidate_range_end(self, mm: mm_struct, start: int, end: int) -> None:
        """They have changed, and no TLB has the old ones. One for each start."""

    def invalidate_range(self, mm: mm_struct, start: int, end: int) -> None:
        """The TLBs of the CPUs forget the range now. Must not sleep: table locks may be held."""

    def release(self, mm: mm_struct) -> None:
        """No more is to come: the mm is torn down, or the notifier was unregistered. Nothing of it may be used."""


def mmu_notifier_register(mm: mm_struct, notifier: MmuNotifier) -> None:
    """``notifier`` hears of every change of ``mm`` from now on, none of which it finds half done. May sleep."""
    locks = _take_all_locks(mm)
    mm.notifiers.append(notifier)
    _drop_all_locks(mm, locks)


def mmu_notifier_unregister(mm: mm_struct, notifier: MmuNotifier) -> None:
    """The last it hears of ``mm`` is ``release``. May sleep."""
    locks = _take_all_locks(mm)
    mm.notifiers.remove(notifier)
    _drop_all_locks(mm, locks)
    notifier.release(mm)


def _take_all_locks(mm: mm_struct) -> list[Mutex | Spinlock]:
    """Everything below which ptes of ``mm`` may be changed (Linux: mm_take_all_locks), in the order of slots."""
    mm.mmap_lock.down_write()
    mappings = {vma.vm_file.mapping.slot: vma.vm_file.mapping for vma in mm.vmas.values() if vma.vm_file}
    locks = [mappings[slot].i_mmap_lock for slot in sorted(mappings)]
    for n, lock in enumerate(locks):
        lock.lock(nested=n > 0)
    return locks


def _drop_all_locks(mm: mm_struct, locks: list[Mutex | Spinlock]) -> None:
    for lock in reversed(locks):
        lock.unlock()
    mm.mmap_lock.up_write()


def mmu_notifier_release(mm: mm_struct) -> None:
    """``mm`` goes: the first thing of its end, while everything is still mapped (A7.3)."""
    kernel: ArchKernel = mm.kernel
    while mm.notifiers:
        kernel.sched.might_sleep("mmu notifier release")
        mm.notifiers.pop().release(mm)


def mmu_notifier_invalidate_range_start(mm: mm_struct, start: int, end: int) -> None:
    """Called before the first entry of [start, end) changes, without a table lock."""
    for notifier in mm.notifiers:
        notifier.invalidate_range_start(mm, start, end)


def mmu_notifier_invalidate_range_end(mm: mm_struct, start: int, end: int) -> None:
    """Called when the changes that the same start announced were flushed."""
    for notifier in mm.notifiers:
        notifier.invalidate_range_end(mm, start, end)


def mmu_notifier_invalidate_range(mm: mm_struct, start: int, end: int) -> None:
    """Called with each TLB flush of [start, end)."""
    for notifier in mm.notifiers:
        notifier.invalidate_range(mm, start, end)
