"""Huge pages of 16 MiB: where they may be, and the tables of their own that map them.

A segment has one page size, so small and huge pages never share one. With three levels (2.6.12) huge pages live
between 1 TiB and 1.5 TiB, and in those of the sixteen 256 MiB segments below 4 GiB that were opened for them; with
four (2.6.22 on) address space is cut into slices, 256 MiB below 4 GiB and 1 TiB above, each with a page size. Both
are kept as nibbles per slice here (not Linux's codes: 0 is the base size, 1 is 16 MiB). An area is opened while
nothing is mapped in it, and stays open: slices are not turned back.

Three levels: a second tree per mm, 4-byte entries over 8 GiB each, then ptes; freed with the context alone.
Four: the entry that spans 256 MiB (of a pud, with 64 KiB pages of a pmd) points to a 128-byte table of sixteen ptes,
as hugepd of 2.6.33: the table's kernel address without bit 63, the page's size in the low bits.
Source: Linux ``hugetlbpage.c``, ``slice.c``.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Mapping

import numpy as np

from polymmu.arch import (
    ArchKernel,
    Cpu,
    EntryFormat,
    alloc_entry,
    defaults,
    find_entry,
    hookimpl,
    mm_struct,
    mmu_gather,
    syscall_error,
    tlb_remove_table,
)
from polymmu.arch import free_pgd_range as free_base_tables
from polymmu_ppc64.context import Context, flush_segments, load_slices, section_of, state_of
from polymmu_ppc64.flush import need_flush
from polymmu_ppc64.formats import (
    HUGE,
    HUGE_SIZE,
    Ppc64Config,
    hash_flags,
    hashed_bit,
    layout_of,
    protections,
    pte_format,
)
from polymmu_ppc64.hash_mmu import HashMmu

SEGMENT = 1 << 28
LOW_TOP = 1 << 32
HUGE_SHIFT = 24
HUGEPD, HUGEPD_ADDRESS = 1 << 62, (1 << 60) - 64
HUGEPD_LEVEL = 1  # whose entries span 256 MiB
ROOT_SHIFT, ROOT_ENTRIES = 33, 1 << 10  # of the separate tree


# ------------------------------------------------------------------ where
def slice_masks(addr: int, length: int, high_shift: int) -> tuple[int, int]:
    """Which slices [addr, addr + length) touches: a bit per 256 MiB below 4 GiB, a bit per high area."""
    last = addr + length - 1
    low = high = 0
    if addr < LOW_TOP:
        low = (2 << (min(last, LOW_TOP - 1) >> 28)) - (1 << (addr >> 28))
    if last >= LOW_TOP:
        high = (2 << (last >> high_shift)) - (1 << (max(addr, LOW_TOP) >> high_shift))
    return low, high


def nibbles(mask: int) -> int:
    """A 1 in the nibble of each bit."""
    return sum(1 << 4 * n for n in range(mask.bit_length()) if mask >> n & 1)


def high_shift_of(mm: mm_struct) -> int:
    return 39 if section_of(mm).levels == 3 else 40


def touched(mm: mm_struct, addr: int, length: int) -> tuple[int, int]:
    """The slices of a range, as nibbles."""
    low, high = slice_masks(addr, length, high_shift_of(mm))
    return nibbles(low), nibbles(high)


@hookimpl
def is_hugepage_only_range(mm: mm_struct, addr: int, length: int) -> bool:
    context: Context = mm.context
    low, high = touched(mm, addr, length)
    return bool(low & context.low_slices or high & context.high_slices)


@hookimpl
def prepare_hugepage_range(mm: mm_struct, addr: int, length: int, size: int) -> None:
    """Open the slices that are still for small pages, where nothing is mapped."""
    kernel: ArchKernel = mm.kernel
    context: Context = mm.context
    if (addr | length) & (size - 1):
        raise syscall_error(errno.EINVAL, f"a huge mapping must be aligned to its page size of {size:#x}")
    low, high = touched(mm, addr, length)
    low, high = low & ~context.low_slices, high & ~context.high_slices
    if high and section_of(mm).levels == 3:
        raise syscall_error(errno.EINVAL, f"{addr:#x}: huge pages live below 4 GiB or from 1 TiB to 1.5 TiB")
    for vma in mm.vmas.values():
        other_low, other_high = touched(mm, vma.vm_start, vma.vm_end - vma.vm_start)
        if low & other_low or high & other_high:
            raise syscall_error(
                errno.EINVAL, f"{addr:#x} shares a segment with the mapping at {vma.vm_start:#x}"
            )
    if not low and not high:
        return
    context.low_slices |= low
    context.high_slices |= high

    def reload(cpu: Cpu) -> None:
        if kernel.active_mm[cpu.index] is mm:
            load_slices(cpu, context)
            flush_segments(cpu)

    if mm.cpu_mask >> kernel.sched.cpu.index & 1:
        reload(kernel.sched.cpu)
    kernel.sched.ipi(mm.cpu_mask, reload, kernel.description.costs.ipi)


# ------------------------------------------------------------------ entries
@hookimpl
def huge_page_sizes(section: Ppc64Config) -> tuple[int, ...]:
    return (HUGE_SIZE,)


@hookimpl
def huge_entry_format(section: Ppc64Config, registers: Mapping[str, int], size: int) -> EntryFormat:
    """As a small page's, also its frame number."""
    return pte_format(section)


@hookimpl
def huge_protections(section: Ppc64Config) -> tuple[int, ...]:
    mark = HUGE if layout_of(section).page_shift == 12 else 0
    return tuple(bits | mark for bits in protections())


def upper_entry(mm: mm_struct, addr: int) -> tuple[int, int]:
    """Physical address and bytes of the entry that leads to the huge ptes of ``addr``; address -1: no table."""
    if section_of(mm).levels == 3:
        root = mm.context.huge_root
        return (root + (addr >> ROOT_SHIFT) * 4 if root >= 0 else -1), 4
    return find_entry(mm, addr, HUGEPD_LEVEL), 8


def pte_below(mm: mm_struct, addr: int, value: int) -> int:
    """Physical address of the huge pte for ``addr`` below an upper entry's value."""
    if section_of(mm).levels == 3:
        return (value << 12) + (addr >> HUGE_SHIFT & 0x1FF) * 8
    return (value & HUGEPD_ADDRESS) + (addr >> HUGE_SHIFT & 15) * 8


def huge_roots_of(kernel: ArchKernel) -> dict[int, int]:
    """What the MMU's walk for a human knows of the separate trees."""
    translation = kernel.cpus[0].translation
    assert isinstance(translation, HashMmu)
    return translation.huge_roots


@hookimpl
def huge_pte_offset(mm: mm_struct, addr: int, size: int) -> int:
    kernel: ArchKernel = mm.kernel
    entry, nbytes = upper_entry(mm, addr)
    value = kernel.ram.read_entry(entry, nbytes, "big") if entry >= 0 else 0
    return pte_below(mm, addr, value) if value else -1


@hookimpl
def huge_pte_alloc(mm: mm_struct, addr: int, size: int) -> int:
    kernel: ArchKernel = mm.kernel
    context: Context = mm.context
    separate = section_of(mm).levels == 3
    if separate:
        if context.huge_root < 0:
            context.huge_root = defaults.table_alloc(mm, mm.layout.pte_level, addr)
            if context.huge_root < 0:
                return -1
            huge_roots_of(kernel)[mm.pgd] = context.huge_root
            for cpu in kernel.cpus:
                if kernel.active_mm[cpu.index] is mm:
                    load_slices(cpu, context)
        entry, nbytes = upper_entry(mm, addr)
    else:
        entry, nbytes = alloc_entry(mm, addr, HUGEPD_LEVEL), 8
    if entry < 0:
        return -1
    value = kernel.ram.read_entry(entry, nbytes, "big")
    if not value:
        table = defaults.table_alloc(mm, mm.layout.pte_level, addr)
        if table < 0:
            return -1
        value = table >> 12 if separate else HUGEPD | table | HUGE_SHIFT
        kernel.ram.write_entry(entry, nbytes, "big", value)
    return pte_below(mm, addr, value)


@hookimpl
def set_huge_pte(mm: mm_struct, addr: int, ptep: int, value: int, size: int) -> None:
    huge_ptep_get_and_clear(mm, addr, ptep, size)
    kernel: ArchKernel = mm.kernel
    kernel.ram.write_entry(ptep, 8, "big", value & ~hash_flags(section_of(mm)))


@hookimpl
def huge_ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, size: int) -> int:
    """Out of the hash table and the TLBs as well, as every pte."""
    kernel: ArchKernel = mm.kernel
    section = section_of(mm)
    old = kernel.ram.read_entry(ptep, 8, "big")
    kernel.ram.write_entry(ptep, 8, "big", 0)
    if old & hashed_bit(section):
        page = np.array((addr & -size,), dtype=np.int64)
        need_flush(mm, page, np.array((old,), dtype=np.uint64).view(np.int64), HUGE_SHIFT)
    return old & ~hash_flags(section)


# ------------------------------------------------------------------ freeing
@hookimpl
def hugetlb_free_pgd_range(tlb: mmu_gather, addr: int, end: int, floor: int, ceiling: int) -> None:
    """Free the tables of hugepds that lie between floor and ceiling, then the base tables above them.

    A base table that may go has no hugepd left in it; one that stays is not looked into, for what generic code
    took for a table might be a hugepd of a neighbour. With the separate tree none of it is freed before the context;
    2.6.12 did nothing at all here, and so lost a pmd table that a small mapping below had left to this one to free.
    """
    mm = tlb.mm
    if section_of(mm).levels == 3:
        free_base_tables(tlb, addr, end, floor, ceiling)
        return
    kernel: ArchKernel = mm.kernel
    for start in range(addr & -SEGMENT, end, SEGMENT):
        entry = find_entry(mm, start, HUGEPD_LEVEL)
        value = kernel.ram.read_entry(entry, 8, "big") if entry >= 0 else 0
        if value and start >= floor and (not ceiling or start + SEGMENT <= ceiling):
            kernel.ops.clear_entry(mm, HUGEPD_LEVEL, start, entry)
            tlb_remove_table(tlb, mm.layout.pte_level, value & HUGEPD_ADDRESS)
    span = mm.layout.span_of(0)
    for start in range(addr & -span, end, span):
        if start >= floor and (not ceiling or start + span <= ceiling):
            free_base_tables(tlb, max(addr, start), min(end, start + span), floor, ceiling)


@hookimpl
def destroy_context(mm: mm_struct) -> None:
    """Free the number, and the separate tree with all its tables."""
    kernel: ArchKernel = mm.kernel
    context: Context = mm.context
    root = context.huge_root
    if root >= 0:
        del huge_roots_of(kernel)[mm.pgd]
        for entry in range(root, root + 4 * ROOT_ENTRIES, 4):
            table = kernel.ram.read_entry(entry, 4, "big") << 12
            if table:
                defaults.table_free(mm, mm.layout.pte_level, table)
        defaults.table_free(mm, mm.layout.pte_level, root)
    heapq.heappush(state_of(kernel).free_contexts, context.number)
