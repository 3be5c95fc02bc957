"""Which lock guards the ptes of a table: one per table, or the mm's one for all.

Since Linux 2.6.15 each pte table has a lock of its own, which lies in the descriptor of the table's frame: faults in
different tables of one mm no longer wait for each other. The levels above stay under ``mm.page_table_lock``, and so do
huge pages' entries. Tables that share a frame (s390's fragments) share its lock, so of two tables' locks only the
first may be taken where they are the same.

Two of them may be held at once only in two mms (fork: the child's outside), or where mmap_lock is held for writing,
for then nobody else takes two (A0.1 rule c); the lock order checker is told by ``guard``.
"""

from __future__ import annotations

from polymmu.hooks import ArchKernel
from polymmu.mm.variant import Variant
from polymmu.sched.driver import Sched
from polymmu.sched.locks import Lock, Spinlock
from polymmu.structs import mm_struct

__all__ = ["SplitTableLocks"]


class TableLock(Spinlock):
    """The lock of one frame of pte tables; ``tables`` of them are in use."""

    __slots__ = ("tables",)

    def __init__(self, sched: Sched, guard: Lock, frame: int) -> None:
        super().__init__(sched, "pte_lock", frame)
        self.guard = guard
        self.tables = 0


class SplitTableLocks(Variant):
    """A lock per frame of pte tables, made with the first table in it and gone with the last."""

    since = "2.6.15"
    wrong = ""

    def __init__(self, kernel: ArchKernel) -> None:
        super().__init__(kernel)
        self._shift = kernel.shape.layout.page_shift
        self._locks: dict[int, TableLock] = {}

    def lock_of(self, mm: mm_struct, table: int) -> Spinlock:
        """The lock of the ptes in the pte table at physical address ``table``. AssertionError where that is gone."""
        lock = self._locks.get(table >> self._shift)
        assert lock is not None, f"the page table at {table:#x} is gone, and somebody wants its lock"
        return lock

    def table_made(self, mm: mm_struct, table: int) -> None:
        """A pte table is about to be hooked up."""
        pfn = table >> self._shift
        lock = self._locks.get(pfn)
        if lock is None:
            lock = self._locks[pfn] = TableLock(self.kernel.sched, mm.mmap_lock, pfn)
        lock.tables += 1

    def table_gone(self, mm: mm_struct, table: int) -> None:
        """A pte table was unhooked, or was never hooked up. AssertionError where somebody is still at work in it."""
        pfn = table >> self._shift
        lock = self._locks[pfn]
        lock.tables -= 1
        if not lock.tables:
            del self._locks[pfn]
            if lock.held:
                lockdep = self.kernel.sched.lockdep
                if lockdep is not None:
                    lockdep.freed(lock)
                raise AssertionError(f"{lock.name} of table {table:#x}: freed while it is held")
