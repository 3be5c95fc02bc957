"""The page-table lock up to Linux 2.6.14: one per mm, for every entry of every level.

From 2.6.15 on it was still so on machines built for few CPUs.
"""

from __future__ import annotations

from polymmu.description.model import KernelChoice
from polymmu.mm.ptlock import SplitTableLocks
from polymmu.sched.locks import Spinlock
from polymmu.structs import mm_struct

__all__ = ["MmTableLock", "one_lock_or_why"]


def one_lock_or_why(choice: KernelChoice) -> str:
    """Why a generation that holds the mm's one lock does not go with this choice; empty where it does."""
    if choice.page_table_lock == "mm":
        return ""
    return "holds the mm's one page-table lock from table to table; add `page_table_lock: mm`"


class MmTableLock(SplitTableLocks):
    """``mm.page_table_lock`` for all."""

    since = "to 2.6.14"
    wrong = ""

    def lock_of(self, mm: mm_struct, table: int) -> Spinlock:
        return mm.page_table_lock

    def table_made(self, mm: mm_struct, table: int) -> None:
        """Nothing of its own."""

    def table_gone(self, mm: mm_struct, table: int) -> None:
        """Nothing of its own."""
