"""ia64: Itanium's regions and VHPT under Linux 2.6.12 to 3.0, three table levels in each region.

The three top bits of an address choose one of eight regions. A program owns regions 0 to 4; each has an eighth of
the root table, and addresses in it only up to what its tables reach, so holes lie between them. Region 4 is for huge
pages alone, all of one size: a huge page's entry stands in the ordinary tables, where a small page of a smaller
address would be.

Sources: Linux 2.6.12 to 3.0, asm-ia64/{page,pgtable,processor,tlb}.h, arch/ia64/mm/{hugetlbpage,tlb}.c. Which
region holds a program's text, data, stack and mappings follows memory, not a text: unverified.

What Linux really did, and a machine here does too: tables of ptes are free before the translations of them in the
VHPT are purged (``frees_tables_early``). What it did not: a gather here is the core's own, and there is no quicklist
of tables, a freed one goes straight to the page allocator.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

import numpy as np

from polymmu.arch import (
    AddressLimits,
    ArchKernel,
    Cpu,
    EntryFormat,
    FaultInfo,
    RadixLayout,
    UserMistake,
    alloc_entry,
    defaults,
    find_entry,
    free_pgd_range,
    hookimpl,
    mm_struct,
    mmu_gather,
    syscall_error,
    tlb_remove_table,
    vm_area_struct,
)
from polymmu_ia64 import entries, tlbflush
from polymmu_ia64.config import HUGE_REGION, USER_REGIONS, Ia64Config, region_of
from polymmu_ia64.entries import INSERTABLE, REGION_SHIFT
from polymmu_ia64.mmu import GRANULE_SHIFT, Ia64Mmu, page_table_address, region_register
from polymmu_ia64.tlbflush import section_of

TASK_SIZE = USER_REGIONS << REGION_SHIFT
MMAP_REGION, DATA_REGION = 1, 3
WORD = (1 << 64) - 1


# ------------------------------------------------------------------ shape
@hookimpl
def config_class() -> type:
    return Ia64Config


@hookimpl
def summary() -> str:
    return "Itanium: regions, VHPT walker, huge pages in region 4, purges by broadcast"


@hookimpl
def boot_registers(section: Ia64Config) -> dict[str, int]:
    if not (INSERTABLE >> section.hpage_shift & 1 and section.hpage_shift > section.page_shift):
        raise UserMistake(
            f"no huge pages of 2**{section.hpage_shift} bytes; take one of "
            f"{', '.join(str(n) for n in range(section.page_shift + 1, 29) if INSERTABLE >> n & 1)}",
            place="ia64.hpage_shift",
        )
    shifts = [section.shift_in(region) for region in range(6)] + [GRANULE_SHIFT] * 2
    registers = {
        f"rr{region}": region_register(0, region, shift, walked=region <= USER_REGIONS)
        for region, shift in enumerate(shifts)
    }
    return registers | {"pta": page_table_address(section.va_bits, section.page_shift)}


@hookimpl
def page_table_layout(section: Ia64Config) -> RadixLayout:
    bits = section.page_shift - 3
    return RadixLayout(
        index_bits=(bits, bits, bits),
        page_shift=section.page_shift,
        names=("pgd", "pmd", "pte"),
        entry_bytes=(8, 8, 8),
        leaf_levels=frozenset({2}),
        regions=3,
    )


@hookimpl
def entry_format(section: Ia64Config, level: int) -> EntryFormat:
    return entries.pte_format(section.page_shift) if level == 2 else entries.table_format(section.page_shift)


@hookimpl
def translation(section: Ia64Config, registers: Mapping[str, int]) -> Ia64Mmu:
    return Ia64Mmu(
        page_shift=section.page_shift,
        va_bits=section.va_bits,
        pa_bits=section.pa_bits,
        registers=boot_registers(section) | dict(registers),
        event_costs={
            "vhpt_hits": section.vhpt_hit_cycles,
            "vhpt_misses": section.vhpt_miss_cycles,
            "access_traps": section.trap_cycles,
            "dirty_traps": section.trap_cycles,
            "alternate_traps": section.trap_cycles,
        },
    )


@hookimpl
def root_of(registers: Mapping[str, int], space: str | None) -> int:
    if space is not None:
        raise UserMistake(f"unknown address space '{space}'; ia64 has one, named by kr7")
    if "kr7" not in registers:
        raise UserMistake("no kr7; give --register kr7=VALUE, the physical address of the pgd")
    return registers["kr7"]


@hookimpl
def address_limits(section: Ia64Config) -> AddressLimits:
    reach = (1 << section.map_shift) - (1 << section.page_shift)  # Linux: RGN_MAP_LIMIT
    bases = [region << REGION_SHIFT for region in range(USER_REGIONS)]
    return AddressLimits(
        task_size=TASK_SIZE,
        mm_vm_size=TASK_SIZE,
        mmap_base=bases[MMAP_REGION] + reach,
        stack_top=bases[DATA_REGION] + reach,
        start_brk=bases[DATA_REGION] + section.pgdir_size,
        huge_ranges=((bases[HUGE_REGION], bases[HUGE_REGION] + reach),),
        holes=tuple((base + reach, base + (1 << REGION_SHIFT)) for base in bases),
    )


@hookimpl
def huge_page_sizes(section: Ia64Config) -> tuple[int, ...]:
    return (1 << section.hpage_shift,)


@hookimpl
def page_protections() -> tuple[int, ...]:
    return entries.protections()


@hookimpl
def deviations(section: Ia64Config) -> tuple[str, ...]:
    return ("tables_freed_early",) if section.frees_tables_early else ()


# ------------------------------------------------------------------ range walks
@hookimpl
def pgd_addr_end(mm: mm_struct, addr: int, end: int) -> int:
    section = section_of(mm)
    return step_end(section, section.pgdir_size, addr, end)


@hookimpl
def addr_end(mm: mm_struct, level: int, addr: int, end: int) -> int:
    return step_end(section_of(mm), mm.layout.span_of(level), addr, end)


def step_end(section: Ia64Config, span: int, addr: int, end: int) -> int:
    """Behind the last entry of a user's region comes the next region's first (2.6.12-rc2)."""
    boundary = addr + span & -span
    if region_of(boundary) < USER_REGIONS and boundary >> section.map_shift & 1:
        boundary += (1 << REGION_SHIFT) - (1 << section.map_shift)
    return boundary if boundary - 1 & WORD < end - 1 & WORD else end


# ------------------------------------------------------------------ huge pages
@hookimpl
def huge_entry_format(section: Ia64Config) -> EntryFormat:
    return entries.pte_format(section.hpage_shift)


@hookimpl
def is_hugepage_only_range(addr: int, length: int) -> bool:
    """Whether it touches region 4 (2.6.17; before, whether it begins and ends there)."""
    return HUGE_REGION in (region_of(addr), region_of(addr + length - 1))


@hookimpl
def prepare_hugepage_range(mm: mm_struct, addr: int, length: int, size: int) -> None:
    defaults.prepare_hugepage_range(mm, addr, length, size)
    if region_of(addr) != HUGE_REGION or region_of(addr + length - 1) != HUGE_REGION:
        base = HUGE_REGION << REGION_SHIFT
        raise syscall_error(errno.EINVAL, f"{addr:#x} is not in the region for huge pages, from {base:#x}")


@hookimpl
def huge_pte_alloc(mm: mm_struct, addr: int) -> int:
    return alloc_entry(mm, section_of(mm).scaled(addr))


@hookimpl
def huge_pte_offset(mm: mm_struct, addr: int) -> int:
    return find_entry(mm, section_of(mm).scaled(addr))


@hookimpl
def set_huge_pte(mm: mm_struct, addr: int, ptep: int, value: int) -> None:
    defaults.set_pte(mm, addr, ptep, np.array((value,), dtype=np.uint64))


@hookimpl
def huge_ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int) -> int:
    return int(defaults.ptep_get_and_clear(mm, addr, ptep, 1, None)[0])


@hookimpl
def hugetlb_free_pgd_range(tlb: mmu_gather, addr: int, end: int, floor: int, ceiling: int) -> None:
    """The tables that the scaled addresses use. Neighbours outside region 4 are where they are."""
    section = section_of(tlb.mm)
    addr, end, floor, ceiling = (
        section.scaled(each) if region_of(each) == HUGE_REGION else each
        for each in (addr, end, floor, ceiling)
    )
    free_pgd_range(tlb, addr, end, floor, ceiling)


# ------------------------------------------------------------------ gather
@hookimpl
def tlb_gather(tlb: mmu_gather) -> None:
    tlb.arch = tlbflush.Cleared()
    tlb.limit = 2048  # its own gather, to 2.6.39; then one page


@hookimpl
def tlb_remove_tlb_entry(tlb: mmu_gather, addr: int, n: int) -> None:
    tlb.arch.add(addr, addr + (n << tlb.mm.layout.page_shift))


@hookimpl
def tlb_flush(tlb: mmu_gather) -> None:
    tlbflush.flush_gather(tlb)


@hookimpl
def pte_free_tlb(tlb: mmu_gather, table: int, addr: int) -> None:
    """Linux's last flush covers all that was unmapped, and so this table's place in the VHPT; here it is noted."""
    mm = tlb.mm
    section = section_of(mm)
    if region_of(addr) == HUGE_REGION:
        addr = section.unscaled(addr)
    tlb.arch.add(addr, addr + mm.layout.page_size)
    if section.frees_tables_early:
        kernel: ArchKernel = mm.kernel
        kernel.ops.table_free(mm, mm.layout.pte_level, table)
    else:
        tlb_remove_table(tlb, mm.layout.pte_level, table)


@hookimpl
def table_free_tlb(tlb: mmu_gather, level: int, table: int) -> None:
    """At once in every release: only handlers read an upper table, and they find it unhooked."""
    kernel: ArchKernel = tlb.mm.kernel
    kernel.ops.table_free(tlb.mm, level, table)


# ------------------------------------------------------------------ flush
@hookimpl
def flush_tlb_mm(mm: mm_struct) -> None:
    tlbflush.flush_mm(mm)


@hookimpl
def flush_tlb_range(vma: vm_area_struct, start: int, end: int) -> None:
    tlbflush.flush_range(vma.vm_mm, start, end)


@hookimpl
def flush_tlb_page(vma: vm_area_struct, addr: int) -> None:
    tlbflush.flush_range(vma.vm_mm, addr, addr + vma.vm_mm.layout.page_size)


# ------------------------------------------------------------------ contexts
@hookimpl
def init_new_context(mm: mm_struct) -> None:
    mm.context = tlbflush.Context()


@hookimpl
def destroy_context(mm: mm_struct) -> None:
    tlbflush.contexts_of(mm).retire(mm.context)


@hookimpl
def switch_mm(cpu: Cpu, following: mm_struct) -> None:
    """The bit of a CPU stays in the mm's mask until the mm has a new number: it may still hold translations."""
    tlbflush.activate(cpu, following)


@hookimpl
def gup_fast_begin() -> bool:
    """Linux has no such walk here: get_user_pages takes mmap_sem."""
    return False


# ------------------------------------------------------------------ faults
@hookimpl
def decode_fault(code: int) -> FaultInfo:
    return entries.decode(code)


__all__ = ["Ia64Config"]
