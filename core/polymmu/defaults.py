"""The answer most architectures share to each hook: this project's asm-generic.

Plain functions with the specs' names. An architecture that leaves a hook out gets the one here; an
architecture that wants the common answer plus something of its own may call it. What has no sensible common
answer (layout, formats, limits, fault codes) is not here: an architecture must say it.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

from polymmu.errors import syscall_error
from polymmu.hardware import scans
from polymmu.hardware.cpu import Cpu
from polymmu.hardware.entry import EntryFormat
from polymmu.hooks import ArchKernel
from polymmu.mm import frames, gather, pgtables, tables
from polymmu.structs import PG_TABLE, EntryRun, Kernel, mm_struct, mmu_gather, vm_area_struct

WORD = (1 << 64) - 1
"""Range ends are compared less one in this width, so that 0 as an end is above everything."""


@attrs.frozen
class NoSection:
    """Section of an architecture that has nothing to configure."""


# ---------------------------------------------------------------------- shape
def config_class() -> type:
    return NoSection


def summary() -> str:
    return ""


def huge_page_sizes(section: Any) -> tuple[int, ...]:
    return ()


def memory_model(section: Any) -> str:
    """Nothing is promised."""
    return "weak"


def byte_order(section: Any) -> str:
    return "little"


def read_image(
    meta: Mapping[str, Any], arrays: Mapping[str, Any]
) -> tuple[dict[str, int], list[tuple[int, bytes]]]:
    return {}, []


def deviations(section: Any) -> tuple[str, ...]:
    return ()


# ---------------------------------------------------------------- range walks
def pgd_addr_end(mm: mm_struct, addr: int, end: int) -> int:
    return addr_end(mm, 0, addr, end)


def addr_end(mm: mm_struct, level: int, addr: int, end: int) -> int:
    span = 1 << mm.layout.shifts[level]
    boundary = (addr + span) & -span & WORD
    return boundary if (boundary - 1) & WORD < (end - 1) & WORD else end


def have_move_pmd(mm: mm_struct) -> bool:
    return False


def grow_task_size(mm: mm_struct, end: int) -> bool:
    return False


# ----------------------------------------------------------------- huge pages
def huge_entry_format(section: Any, registers: Mapping[str, int], size: int) -> EntryFormat | None:
    return None


def huge_protections(section: Any, registers: Mapping[str, int], size: int) -> tuple[int, ...] | None:
    return None


def is_hugepage_only_range(mm: mm_struct, addr: int, length: int) -> bool:
    return False


def prepare_hugepage_range(mm: mm_struct, addr: int, length: int, size: int) -> None:
    if (addr | length) & (size - 1):
        raise syscall_error(errno.EINVAL, f"a huge mapping must be aligned to its page size of {size:#x}")


def huge_pte_alloc(mm: mm_struct, addr: int, size: int) -> int:
    level = mm.layout.shifts.index(size.bit_length() - 1)
    return tables.alloc_entry(mm, addr, level)


def huge_pte_offset(mm: mm_struct, addr: int, size: int) -> int:
    return tables.find_entry(mm, addr, mm.layout.shifts.index(size.bit_length() - 1))


def set_huge_pte(mm: mm_struct, addr: int, ptep: int, value: int, size: int) -> None:
    kernel: ArchKernel = mm.kernel
    width = mm.layout.entry_bytes[mm.layout.shifts.index(size.bit_length() - 1)]
    kernel.ram.write_entry(ptep, width, kernel.shape.byte_order, value)


def huge_ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, size: int) -> int:
    kernel: ArchKernel = mm.kernel
    level = mm.layout.shifts.index(size.bit_length() - 1)
    width, order = mm.layout.entry_bytes[level], kernel.shape.byte_order
    value: int = kernel.ram.read_entry(ptep, width, order)
    kernel.ram.write_entry(ptep, width, order, tables.format_of(mm, level).empty)
    return value


def hugetlb_free_pgd_range(tlb: mmu_gather, addr: int, end: int, floor: int, ceiling: int) -> None:
    pgtables.free_pgd_range(tlb, addr, end, floor, ceiling)


# --------------------------------------------------------------------- tables
def pgd_alloc(mm: mm_struct) -> int:
    return table_alloc(mm, 0, 0)


def pgd_free(mm: mm_struct, pgd: int) -> None:
    table_free(mm, 0, pgd)


def table_order(mm: mm_struct, level: int) -> int:
    """log2 of the base pages that a table of ``level`` takes (a smaller table takes one)."""
    pages = -(-mm.layout.table_bytes_of(level) >> mm.layout.page_shift)
    return max(pages - 1, 0).bit_length()


def table_alloc(mm: mm_struct, level: int, addr: int) -> int:
    kernel: ArchKernel = mm.kernel
    order = table_order(mm, level)
    site = f"table.{mm.layout.names[level]}"
    if order:
        pfn = frames.alloc_pages(kernel, order, "table", site=site)
    else:
        pfn = frames.alloc_page(kernel, "table", site=site)
    if pfn < 0:
        return -1
    kernel.frames.flags[pfn] |= PG_TABLE
    table = pfn << mm.layout.page_shift
    empty: int = tables.format_of(mm, level).empty
    if empty:
        width = mm.layout.entry_bytes[level]
        entry = empty.to_bytes(width, "big" if kernel.shape.byte_order == "big" else "little")
        kernel.ram.write(table, entry * mm.layout.entries_of(level))
    return table


def table_free(mm: mm_struct, level: int, table: int) -> None:
    kernel: ArchKernel = mm.kernel
    pfn = table >> mm.layout.page_shift
    kernel.frames.flags[pfn] &= ~PG_TABLE
    order = table_order(mm, level)
    kernel.events.table_returned(mm, table, mm.layout.page_size << order)
    if order:
        frames.free_pages(kernel, pfn, order)
    else:
        frames.free_page(kernel, pfn)


def populate(mm: mm_struct, level: int, addr: int, entry: int, table: int) -> None:
    kernel: ArchKernel = mm.kernel
    value: int = tables.format_of(mm, level).of_table(table)
    kernel.ram.write_entry(entry, mm.layout.entry_bytes[level], kernel.shape.byte_order, value)


def clear_entry(mm: mm_struct, level: int, addr: int, entry: int) -> None:
    kernel: ArchKernel = mm.kernel
    value: int = tables.format_of(mm, level).empty
    kernel.ram.write_entry(entry, mm.layout.entry_bytes[level], kernel.shape.byte_order, value)


def pte_map(mm: mm_struct, table: int) -> None:
    """Tables are always reachable."""


def pte_unmap(mm: mm_struct, table: int) -> None:
    """Tables are always reachable."""


def check_pgt_cache(mm: mm_struct) -> None:
    """No private cache of tables."""


def tables_need_rcu(mm: mm_struct) -> bool:
    return False


# --------------------------------------------------------------------- gather
def tlb_gather(tlb: mmu_gather) -> None:
    """Nothing of the arch's own in a gather."""


def tlb_start_vma(tlb: mmu_gather, vma: vm_area_struct) -> None:
    """Caches are physically tagged."""


def tlb_end_vma(tlb: mmu_gather, vma: vm_area_struct) -> None:
    """One flush at the end of the gather is enough."""


def tlb_remove_tlb_entry(tlb: mmu_gather, ptep: int, addr: int, n: int) -> None:
    """The generic gather already recorded the range."""


def tlb_flush(tlb: mmu_gather) -> None:
    kernel: ArchKernel = tlb.mm.kernel
    kernel.ops.flush_tlb_mm(tlb.mm)


def pte_free_tlb(tlb: mmu_gather, table: int, addr: int) -> None:
    gather.tlb_remove_table(tlb, tlb.mm.layout.pte_level, table)


def table_free_tlb(tlb: mmu_gather, level: int, table: int, addr: int) -> None:
    gather.tlb_remove_table(tlb, level, table)


def tlb_finish(tlb: mmu_gather, start: int, end: int) -> None:
    """Nothing of the arch's own in a gather."""


# ---------------------------------------------------------------------- flush
def flush_tlb_mm(mm: mm_struct) -> None:
    """Every CPU that may hold a translation of ``mm`` forgets everything it holds: always right, never cheap."""
    kernel: ArchKernel = mm.kernel
    costs = kernel.description.costs

    def flush(cpu: Cpu) -> None:
        cpu.invalidate(asid=None, include_global=True, walk_caches="all")

    if mm.cpu_mask >> kernel.sched.cpu.index & 1:
        flush(kernel.sched.cpu)
        kernel.sched.spend(costs.flush_all, "flush")
    reached = kernel.sched.ipi(mm.cpu_mask, flush, costs.ipi)
    kernel.events.shootdown(mm, "ipi" if reached else "local", reached)


def flush_tlb_range(vma: vm_area_struct, start: int, end: int) -> None:
    kernel: ArchKernel = vma.vm_mm.kernel
    kernel.ops.flush_tlb_mm(vma.vm_mm)


def flush_tlb_page(vma: vm_area_struct, addr: int) -> None:
    kernel: ArchKernel = vma.vm_mm.kernel
    kernel.ops.flush_tlb_range(vma, addr, addr + vma.vm_mm.layout.page_size)


def flush_tlb_pgtables(mm: mm_struct, start: int, end: int) -> None:
    """Walk caches die with tlb_flush; no tables are mapped by address."""


def flush_cache_mm(mm: mm_struct) -> None:
    """Caches are physically tagged."""


def flush_cache_range(vma: vm_area_struct, start: int, end: int) -> None:
    """Caches are physically tagged."""


# -------------------------------------------------------------------- entries
def set_pte(mm: mm_struct, addr: int, ptep: int, values: EntryRun) -> None:
    kernel: ArchKernel = mm.kernel
    width, order = mm.layout.entry_bytes[-1], kernel.shape.byte_order
    if len(values) == 1:
        kernel.ram.write_entry(ptep, width, order, int(values[0]))
    else:
        scans.write_run(kernel.ram, ptep, width, order, values)


def ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, n: int, tlb: mmu_gather | None) -> EntryRun:
    kernel: ArchKernel = mm.kernel
    width, order = mm.layout.entry_bytes[-1], kernel.shape.byte_order
    if n == 1:
        value = kernel.ram.read_entry(ptep, width, order)
        kernel.ram.write_entry(ptep, width, order, kernel.shape.pte.empty)
        return np.array((value,), dtype=np.uint64)
    return scans.get_and_clear_run(kernel.ram, ptep, width, order, n, kernel.shape.pte.empty)


def ptep_clear_flush(vma: vm_area_struct, addr: int, ptep: int, n: int) -> EntryRun:
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    old = kernel.ops.ptep_get_and_clear(mm, addr, ptep, n, None)
    if n == 1:
        kernel.ops.flush_tlb_page(vma, addr)
    else:
        kernel.ops.flush_tlb_range(vma, addr, addr + (n << mm.layout.page_shift))
    return old


def set_wrprotect(mm: mm_struct, addr: int, ptep: int, n: int) -> None:
    kernel: ArchKernel = mm.kernel
    pte = kernel.shape.pte
    scans.modify_run(
        kernel.ram,
        ptep,
        mm.layout.entry_bytes[-1],
        kernel.shape.byte_order,
        n,
        pte,
        WORD & ~(pte.write.mask | pte.write.with_off),
        pte.write.off,
    )


def set_access_flags(vma: vm_area_struct, addr: int, ptep: int, value: int) -> bool:
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    width, order = mm.layout.entry_bytes[-1], kernel.shape.byte_order
    if kernel.ram.read_entry(ptep, width, order) == value:
        return False
    kernel.ram.write_entry(ptep, width, order, value)
    kernel.ops.flush_tlb_page(vma, addr)
    return True


def update_mmu_cache(vma: vm_area_struct, addr: int, ptep: int, n: int) -> None:
    """Hardware walks by itself."""


def enter_lazy_mmu(mm: mm_struct) -> None:
    """Updates are never batched."""


def leave_lazy_mmu(mm: mm_struct) -> None:
    """Updates are never batched."""


def test_and_clear_young(vma: vm_area_struct, addr: int, ptep: int, n: int) -> int:
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    accessed = kernel.shape.pte.accessed
    if accessed is None:
        return 0
    width, order = mm.layout.entry_bytes[-1], kernel.shape.byte_order
    young = 0
    for place, entry in enumerate(range(ptep, ptep + n * width, width)):
        value = kernel.ram.read_entry(entry, width, order)
        if kernel.shape.pte.is_mapped(value) and accessed.test(value):
            # Through set_pte: an arch that remembers entries elsewhere must hear of it.
            old = np.array((accessed.clear(value),), dtype=np.uint64)
            kernel.ops.set_pte(mm, addr + (place << mm.layout.page_shift), entry, old)
            young += 1
    return young


def page_test_and_clear_dirty(kernel: Kernel[Any], pfn: int) -> bool:
    return False


# ------------------------------------------------------------------- contexts
def init_new_context(mm: mm_struct) -> None:
    """No address-space numbers."""


def destroy_context(mm: mm_struct) -> None:
    """No address-space numbers."""


def switch_mm(cpu: Cpu, prev: mm_struct | None, following: mm_struct) -> None:
    """Load the root and forget every translation: right for an MMU without address-space numbers.

    A CPU that comes back to what it kept lazily has missed no flush."""
    if prev is following:
        return
    sched = following.kernel.sched
    sched.atomic()
    following.cpu_mask |= 1 << cpu.index
    cpu.load_root(following.pgd, space=following.serial)
    cpu.invalidate(asid=None, include_global=False, walk_caches="all")
    if prev is not None:
        sched.atomic()
        prev.cpu_mask &= ~(1 << cpu.index)


def enter_lazy_tlb(cpu: Cpu, mm: mm_struct) -> None:
    """The tables stay loaded; flushes still reach this CPU."""


# ----------------------------------------------------------- lockless walkers
def gup_fast_begin(cpu: Cpu, mm: mm_struct) -> bool:
    """Interrupts off: no flush that waits for this CPU is done, and no grace period of sched-RCU ends."""
    cpu.interrupts_enabled = False
    return True


def gup_fast_end(cpu: Cpu, mm: mm_struct) -> None:
    cpu.interrupts_enabled = True
