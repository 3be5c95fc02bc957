"""Page tables in high memory: each is mapped by an atomic map while its entries are touched (CONFIG_HIGHPTE).

Such a map lies in a slot of the CPU's own, so its holder must not sleep and the slots are given back in reverse order.
There are two for page tables (Linux: KM_PTE0 and KM_PTE1), as nothing needs more at once.
"""

from __future__ import annotations

from polymmu.arch import ArchKernel, mm_struct
from polymmu_x86 import tlbflush

__all__ = ["kmap_atomic", "kunmap_atomic"]

SLOTS = 2


def kmap_atomic(mm: mm_struct, table: int) -> None:
    """Map ``table`` on this CPU. Nobody else runs there until ``kunmap_atomic``."""
    kernel: ArchKernel = mm.kernel
    kernel.sched.preempt_disable()
    mapped = tlbflush.protocol_of(kernel).cpus[kernel.sched.cpu.index].mapped_tables
    mapped.append(table)
    if len(mapped) > SLOTS:
        raise AssertionError(f"{len(mapped)} page tables mapped at once")


def kunmap_atomic(mm: mm_struct, table: int) -> None:
    """Undo the last ``kmap_atomic``."""
    kernel: ArchKernel = mm.kernel
    mapped = tlbflush.protocol_of(kernel).cpus[kernel.sched.cpu.index].mapped_tables
    if not mapped or mapped[-1] != table:
        raise AssertionError(f"page table {table:#x} unmapped; mapped are {[hex(each) for each in mapped]}")
    mapped.pop()
    kernel.sched.preempt_enable()
