"""The page-table lock up to Linux 2.6.14: one per mm, for every entry of every level.

From 2.6.15 on it was still so on machines built for few CPUs.
"""

from __future__ import annotations

from polymmu.mm.ptlock import SplitTableLocks
from polymmu.sched.locks import Spinlock
from polymmu.structs import mm_struct

__all__ = ["MmTableLock"]


class MmTableLock(SplitTableLocks):
    """``mm.page_table_lock`` for all."""

    def lock_of(self, mm: mm_struct, table: int) -> Spinlock:
        return mm.page_table_lock

    def table_made(self, mm: mm_struct, table: int) -> None:
        """Nothing of its own."""

    def table_gone(self, mm: mm_struct, table: int) -> None:
        """Nothing of its own."""
