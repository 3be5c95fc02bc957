"""The page lock: who holds it decides what becomes of a page (swap cache, write-back, reclaim).

A bit in the page's flags and a queue of who waits, made when the page is locked for the first time. Order: mmap_lock,
page lock, i_mmap_lock, page-table lock (A0.1). May sleep; below a spinlock only ``trylock_page``.
"""

from __future__ import annotations

from typing import Any

from polymmu.sched.locks import Mutex
from polymmu.structs import PG_LOCKED, Kernel

__all__ = ["lock_page", "trylock_page", "unlock_page"]

AnyKernel = Kernel[Any]


def lock_page(kernel: AnyKernel, pfn: int) -> None:
    """Lock a page that the caller holds a reference of."""
    _lock_of(kernel, pfn).lock()
    kernel.frames.flags[pfn] |= PG_LOCKED


def trylock_page(kernel: AnyKernel, pfn: int) -> bool:
    """Lock it if nobody has."""
    if not _lock_of(kernel, pfn).trylock():
        return False
    kernel.frames.flags[pfn] |= PG_LOCKED
    return True


def unlock_page(kernel: AnyKernel, pfn: int) -> None:
    """Give the lock to the first who waits, if anybody does."""
    lock = kernel.page_locks[pfn]
    lock.unlock()
    if not lock.held:
        kernel.frames.flags[pfn] &= ~PG_LOCKED


def _lock_of(kernel: AnyKernel, pfn: int) -> Mutex:
    lock = kernel.page_locks.get(pfn)
    if lock is None:
        lock = kernel.page_locks[pfn] = Mutex(kernel.sched, "page_lock", pfn)
    return lock
