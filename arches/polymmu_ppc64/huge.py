"""Huge pages of 16 MiB: where they may be, and the tables of their own that map them.

A segment has one page size, so small and huge pages never share one. With three levels (2.6.12) huge pages live
between 1 TiB and 1.5 TiB, and in those of the sixteen 256 MiB segments below 4 GiB that were opened for them; with
four (2.6.22 on) address space is cut into slices, 256 MiB below 4 GiB and 1 TiB above, each with a page size. Both
are a bit per slice here (Linux: as of 2.6.22 a code of four bits, for it knows more sizes). A slice is opened while
nothing is mapped in it, and stays open: slices are not turned back.

Three levels: a second tree per mm, 4-byte entries over 8 GiB each, then ptes; freed with the context alone.
Four: the entry that spans 256 MiB (of a pud, with 64 KiB pages of a pmd) points to a 128-byte table of sixteen ptes,
as hugepd of 2.6.33: the table's kernel address without bit 63, the page's size in the low bits.
Source: Linux ``hugetlbpage.c``, ``slice.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from polymmu import arch
from polymmu.arch import ArchKernel, defaults, hookimpl, mm_struct, syscall_error
from polymmu_ppc64.flush import forget_hashed, load_segments, section_of
from polymmu_ppc64.formats import HUGE, Ppc64Config, protections
from polymmu_ppc64.mmu import HUGE_ROOT, HUGE_SHIFT, HUGEPD_ADDRESS
from polymmu_ppc64.walks import HashMmu

SEGMENT = 1 << 28
HUGEPD = 1 << 62
HUGEPD_LEVEL = 1  # whose entries span 256 MiB
TREE_SHIFT, TREE_BYTES = 33, 4 << 10  # of the separate tree's root


# ------------------------------------------------------------------ where
def slices_of(addr: int, length: int, high_shift: int) -> int:
    """Which slices [addr, addr + length) touches: a bit per 256 MiB below 4 GiB, then one per high area."""
    last = addr + length - 1
    found = 0
    if not addr >> 32:
        found = (2 << (min(last, (1 << 32) - 1) >> 28)) - (1 << (addr >> 28))
    if last >> 32:
        found |= (2 << (last >> high_shift)) - (1 << (max(addr, 1 << 32) >> high_shift)) << 16
    return found


def touched(mm: mm_struct, addr: int, length: int) -> int:
    """The slices of a range."""
    return slices_of(addr, length, 39 if section_of(mm).levels == 3 else 40)


@hookimpl
def is_hugepage_only_range(mm: mm_struct, addr: int, length: int) -> bool:
    return bool(touched(mm, addr, length) & mm.context.slices)


@hookimpl
def prepare_hugepage_range(mm: mm_struct, addr: int, length: int, size: int) -> None:
    """Open the slices that are still for small pages, where nothing is mapped."""
    defaults.prepare_hugepage_range(mm, addr, length, size)
    kernel: ArchKernel = mm.kernel
    closed = touched(mm, addr, length) & ~mm.context.slices
    if closed >> 16 and section_of(mm).levels == 3:
        raise syscall_error(errno.EINVAL, f"{addr:#x}: huge pages live below 4 GiB or from 1 TiB to 1.5 TiB")
    for vma in mm.vmas.values():
        if closed & touched(mm, vma.vm_start, vma.vm_end - vma.vm_start):
            raise syscall_error(
                errno.EINVAL, f"{addr:#x} shares a segment with the mapping at {vma.vm_start:#x}"
            )
    if not closed:
        return
    mm.context.slices |= closed

    def reload(cpu: arch.Cpu) -> None:
        if kernel.active_mm[cpu.index] is mm:
            load_segments(cpu, mm.context)

    if mm.cpu_mask >> kernel.sched.cpu.index & 1:
        reload(kernel.sched.cpu)
    kernel.sched.ipi(mm.cpu_mask, reload, kernel.description.costs.ipi)


# ------------------------------------------------------------------ entries
@hookimpl
def huge_page_sizes() -> tuple[int, ...]:
    return (1 << HUGE_SHIFT,)


@hookimpl
def huge_entry_format(section: Ppc64Config) -> arch.EntryFormat:
    """As a small page's, also its frame number."""
    return section.pte_format


@hookimpl
def huge_protections(section: Ppc64Config) -> tuple[int, ...]:
    return protections(HUGE if section.layout.page_shift == 12 else 0)


def entry_above(mm: mm_struct, addr: int, find: Callable[[mm_struct, int, int], int]) -> tuple[int, int]:
    """Physical address and bytes of the entry that leads to the huge ptes of ``addr``; address -1: no table."""
    if section_of(mm).levels == 3:
        root: int = mm.context.huge_root
        return (root + (addr >> TREE_SHIFT) * 4 if root >= 0 else -1), 4
    return find(mm, addr, HUGEPD_LEVEL), 8


@hookimpl
def huge_pte_offset(mm: mm_struct, addr: int) -> int:
    entry, nbytes = entry_above(mm, addr, arch.find_entry)
    value: int = mm.kernel.ram.read_entry(entry, nbytes, "big") if entry >= 0 else 0
    if not value:
        return -1
    if nbytes == 4:
        return (value << 12) + (addr >> HUGE_SHIFT & 0x1FF) * 8
    return (value & HUGEPD_ADDRESS) + (addr >> HUGE_SHIFT & 0xF) * 8


@hookimpl
def huge_pte_alloc(mm: mm_struct, addr: int) -> int:
    kernel: ArchKernel = mm.kernel
    if section_of(mm).levels == 3 and mm.context.huge_root < 0 and not make_tree(mm):
        return -1
    entry, nbytes = entry_above(mm, addr, arch.alloc_entry)
    if entry >= 0 and not kernel.ram.read_entry(entry, nbytes, "big"):
        table = defaults.table_alloc(mm, mm.layout.pte_level, addr)
        if table < 0:
            return -1
        kernel.ram.write_entry(
            entry, nbytes, "big", table >> 12 if nbytes == 4 else HUGEPD | table | HUGE_SHIFT
        )
    return huge_pte_offset(mm, addr)


@hookimpl
def set_huge_pte(mm: mm_struct, addr: int, ptep: int, value: int, size: int) -> None:
    huge_ptep_get_and_clear(mm, addr, ptep, size)
    mm.kernel.ram.write_entry(ptep, 8, "big", value & ~section_of(mm).hash_flags)


@hookimpl
def huge_ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, size: int) -> int:
    """Out of the hash table and the TLBs as well, as every pte."""
    old = defaults.ptep_get_and_clear(mm, addr, ptep, 1, None)
    forget_hashed(mm, addr & -size, old, HUGE_SHIFT)
    return int(old[0]) & ~section_of(mm).hash_flags


# ------------------------------------------------------------------ the separate tree
def huge_roots_of(mm: mm_struct) -> dict[int, int]:
    """What the MMU's walk for a human knows of the separate trees."""
    kernel: Any = mm.kernel
    translation: HashMmu = kernel.cpus[0].translation
    return translation.huge_roots


def make_tree(mm: mm_struct) -> bool:
    """Give an mm its tree; False where no memory is left."""
    root = defaults.table_alloc(mm, mm.layout.pte_level, 0)
    if root < 0:
        return False
    mm.context.huge_root = huge_roots_of(mm)[mm.pgd] = root
    for cpu in mm.kernel.cpus:
        if mm.kernel.active_mm[cpu.index] is mm:
            cpu.mmu[HUGE_ROOT] = root
    return True


def free_tree(mm: mm_struct) -> None:
    """Free an mm's tree, if it has one, with all its tables."""
    root: int = mm.context.huge_root
    if root < 0:
        return
    del huge_roots_of(mm)[mm.pgd]
    for entry in range(root, root + TREE_BYTES, 4):
        table = mm.kernel.ram.read_entry(entry, 4, "big") << 12
        if table:
            defaults.table_free(mm, mm.layout.pte_level, table)
    defaults.table_free(mm, mm.layout.pte_level, root)


# ------------------------------------------------------------------ freeing
@hookimpl
def hugetlb_free_pgd_range(tlb: arch.mmu_gather, addr: int, end: int, floor: int, ceiling: int) -> None:
    """Free the tables of hugepds that lie between floor and ceiling, then the base tables above them.

    A base table that may go has no hugepd left in it; one that stays is not looked into, for what generic code
    took for a table might be a hugepd of a neighbour. With the separate tree none of it is freed before the context;
    2.6.12 did nothing at all here, and so lost a pmd table that a small mapping below had left to this one to free.
    """
    mm = tlb.mm
    kernel: ArchKernel = mm.kernel
    if section_of(mm).levels == 3:
        arch.free_pgd_range(tlb, addr, end, floor, ceiling)
        return
    for start in range(addr & -SEGMENT, end, SEGMENT):
        entry = arch.find_entry(mm, start, HUGEPD_LEVEL)
        value = kernel.ram.read_entry(entry, 8, "big") if entry >= 0 else 0
        if value and start >= floor and (not ceiling or start + SEGMENT <= ceiling):
            kernel.ops.clear_entry(mm, HUGEPD_LEVEL, start, entry)
            arch.tlb_remove_table(tlb, mm.layout.pte_level, value & HUGEPD_ADDRESS)
    span = mm.layout.span_of(0)
    for start in range(addr & -span, end, span):
        if start >= floor and (not ceiling or start + span <= ceiling):
            arch.free_pgd_range(tlb, max(addr, start), min(end, start + span), floor, ceiling)
