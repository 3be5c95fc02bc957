"""Who needs an mm's struct and root table: all its users as one, each CPU that has the root loaded, each batch of
its tables that waits for RCU (Linux: mm_count)."""

from __future__ import annotations

from polymmu.hooks import ArchKernel
from polymmu.structs import mm_struct

__all__ = ["mmdrop", "mmgrab"]


def mmgrab(mm: mm_struct) -> None:
    """One holder of the struct more."""
    mm.mm_count += 1


def mmdrop(mm: mm_struct) -> None:
    """One holder of the struct less; the last one frees it with its root table."""
    mm.mm_count -= 1
    if mm.mm_count:
        return
    kernel: ArchKernel = mm.kernel
    kernel.ops.destroy_context(mm)
    kernel.events.table_freed(mm, 0, mm.pgd, mm.layout.table_bytes_of(0))
    kernel.ops.pgd_free(mm, mm.pgd)
    if any(mm.nr_tables):
        raise AssertionError(f"mm {mm.serial} is freed with page tables left: {mm.nr_tables}, root first")
    kernel.mms.free(mm)
