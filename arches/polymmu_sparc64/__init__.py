"""64-bit SPARC: UltraSPARC (sun4u) and T1 (sun4v), whose TLBs are filled by software.

Hardware knows TLB entries, contexts and traps; tables are Linux's affair. Two generations of Linux's miss handlers:
``tsb`` (2.6.17 to 3.0) and ``vpte`` (2.6.11 to 2.6.16, a virtually mapped linear table); see ``miss``. Addresses have
44 bits, sign-extended: the hole between the halves is as wide as nearly all of the 64-bit space, and the pgd slots in
use (0 to 511, 1536 to 2047) are not contiguous. Mappings go into the upper half, the stack below the hole.

First reading: ``tte``, ``miss``, ``context``; then ``tsb``.
Sources: Linux 2.6.11 to 3.0 ``arch/sparc64`` (``arch/sparc`` from 2.6.28), the manuals named in the modules.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from polymmu.arch import (
    Access,
    AddressLimits,
    ArchKernel,
    Cpu,
    EntryFormat,
    EntryRun,
    FaultInfo,
    RadixLayout,
    UserMistake,
    defaults,
    hookimpl,
    mm_struct,
    mmu_gather,
    vm_area_struct,
)
from polymmu_sparc64 import context
from polymmu_sparc64.context import Context, demap, flush_tlb_pending, queue_live, section_of, tlb_batch_add
from polymmu_sparc64.miss import VA_TOP_BIT
from polymmu_sparc64.mmu import KINDS, Sparc64Config, Sparc64Translation
from polymmu_sparc64.tsb import load_tsbs_everywhere, tsb_alloc, tsb_grow, tsb_insert
from polymmu_sparc64.tte import PAGE_SHIFT, V

__all__ = ["Sparc64Config"]

GIB, TIB = 1 << 30, 1 << 40
WORD = (1 << 64) - 1
LOWER_END, UPPER_START = 1 << VA_TOP_BIT, -1 << VA_TOP_BIT & WORD
TASK_SIZE = (1 << 64) - (1 << 34)

init_new_context = context.init_new_context
destroy_context = context.destroy_context
switch_mm = context.switch_mm


# ---------------------------------------------------------------------- shape
@hookimpl
def config_class() -> type:
    return Sparc64Config


@hookimpl
def summary() -> str:
    return "64-bit SPARC: software-filled TLBs, TSB or virtually mapped linear table, contexts, address hole"


@hookimpl
def boot_registers() -> dict[str, int]:
    return {}


@hookimpl
def page_table_layout(section: Sparc64Config) -> RadixLayout:
    return section.layout


@hookimpl
def entry_format(section: Sparc64Config, level: int) -> EntryFormat:
    return section.format_of(level)


@hookimpl
def translation(section: Sparc64Config) -> Sparc64Translation:
    return Sparc64Translation(section)


@hookimpl
def root_of(registers: Mapping[str, int], space: str | None) -> int:
    if space is not None:
        raise UserMistake(f"unknown address space '{space}'; a sparc64 root has one, named by pgd")
    if "pgd" not in registers:
        raise UserMistake("no pgd; give --register pgd=PHYSICAL_ADDRESS")
    return registers["pgd"]


@hookimpl
def address_limits(section: Sparc64Config) -> AddressLimits:
    """From 2.6.17 on Linux leaves 4 GiB free on either side of the hole, for instruction prefetch.

    It fills the upper half upwards, this core downwards from 1 TiB above its start. Programs go to ELF_ET_DYN_BASE.
    """
    margin = 4 * GIB if section.has_tsb else 0
    hole = (LOWER_END - margin, UPPER_START + margin)
    return AddressLimits(
        task_size=TASK_SIZE,
        mm_vm_size=TASK_SIZE,
        mmap_base=hole[1] + TIB,
        stack_top=hole[0],
        start_brk=TIB,
        holes=(hole,),
    )


@hookimpl
def memory_model() -> str:
    """Stores are seen in order; only a store and a later load may change places."""
    return "tso"


@hookimpl
def byte_order() -> str:
    return "big"


@hookimpl
def page_protections(section: Sparc64Config) -> tuple[int, ...]:
    return section.tte.protections


@hookimpl
def deviations(section: Sparc64Config) -> tuple[str, ...]:
    """Tables went back at once until 3.1; pages before their translations until 2.6.30."""
    tables = ("tables_freed_early",) if section.upper_entries == 32 else ()
    return (*tables, *(("pages_freed_early",) if section.frees_before_flush else ()))


@hookimpl
def decode_fault(code: int) -> FaultInfo:
    kind = KINDS.get(code >> 12, "not_present")
    return FaultInfo(access=Access(code >> 8 & 3).name.lower(), kind=kind, user=bool(code >> 10 & 1))


# ---------------------------------------------------------------- range walks
@hookimpl
def pgd_addr_end(mm: mm_struct, addr: int, end: int) -> int:
    return addr_end(mm, 0, addr, end)


@hookimpl
def addr_end(mm: mm_struct, level: int, addr: int, end: int) -> int:
    """As Linux of 2.6.12-rc2: boundaries are sign-extended, so past the lower half comes the upper one."""
    boundary = defaults.addr_end(mm, level, addr, 0)
    if boundary >> VA_TOP_BIT & 1:
        boundary |= UPPER_START
    return boundary if (boundary - 1) & WORD < (end - 1) & WORD else end


# ----------------------------------------------------------------- huge pages
@hookimpl
def huge_page_sizes(section: Sparc64Config) -> tuple[int, ...]:
    return (section.huge_page,)


@hookimpl
def huge_entry_format(section: Sparc64Config) -> EntryFormat:
    return section.tte.entry_format


@hookimpl
def huge_protections(section: Sparc64Config, size: int) -> tuple[int, ...]:
    """A huge page is a run of base ptes, each with the huge page's size code and the next frame."""
    return tuple(bits | section.tte.size_bits(size) for bits in section.tte.protections)


@hookimpl
def huge_pte_alloc(mm: mm_struct, addr: int, size: int) -> int:
    """The first one brings the mm its second TSB."""
    if section_of(mm).has_tsb and mm.context.huge_tsb is None:
        mm.context.huge_tsb = tsb_alloc(mm.kernel, page_shift=size.bit_length() - 1)
        load_tsbs_everywhere(mm)
    return defaults.huge_pte_alloc(mm, addr & -size, mm.layout.page_size)


@hookimpl
def huge_pte_offset(mm: mm_struct, addr: int, size: int) -> int:
    return defaults.huge_pte_offset(mm, addr & -size, mm.layout.page_size)


@hookimpl
def set_huge_pte(mm: mm_struct, addr: int, ptep: int, value: int, size: int) -> None:
    step = 1 << PAGE_SHIFT if value else 0
    values = np.uint64(value) + np.arange(size >> PAGE_SHIFT, dtype=np.uint64) * np.uint64(step)
    set_pte(mm, addr & -size, ptep, values)


@hookimpl
def huge_ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, size: int) -> int:
    return int(ptep_get_and_clear(mm, addr & -size, ptep, size >> PAGE_SHIFT, None)[0])


# --------------------------------------------------------------------- tables
@hookimpl
def tables_need_rcu(mm: mm_struct) -> bool:
    """Tables wait for flush and RCU from Linux 3.1 on."""
    return section_of(mm).upper_entries == 64


@hookimpl
def pte_free_tlb(tlb: mmu_gather, table: int, addr: int) -> None:
    table_free_tlb(tlb, tlb.mm.layout.pte_level, table, addr)


@hookimpl
def table_free_tlb(tlb: mmu_gather, level: int, table: int, addr: int) -> None:
    if tables_need_rcu(tlb.mm):
        defaults.table_free_tlb(tlb, level, table, addr)
    else:
        defaults.table_free(tlb.mm, level, table)


@hookimpl
def gup_fast_begin(cpu: Cpu, mm: mm_struct) -> bool:
    """Since Linux 3.1. Its own test of the pte asked for a right no user page has, and always fell back; not here."""
    return tables_need_rcu(mm) and defaults.gup_fast_begin(cpu, mm)


# ---------------------------------------------------------- gather and flush
@hookimpl
def tlb_flush(tlb: mmu_gather) -> None:
    """What was queued; the whole context where another gather's work may be anywhere in the mm, or on one CPU
    before there was a TSB."""
    mm, section = tlb.mm, section_of(tlb.mm)
    if tlb.fullmm or not section.frees_before_flush:
        flush_tlb_pending(mm.kernel)
    if tlb.fullmm and (mm.mm_users or (not section.has_tsb and len(mm.kernel.cpus) == 1)):
        demap(mm, None)


@hookimpl
def tlb_finish(tlb: mmu_gather) -> None:
    flush_tlb_pending(tlb.mm.kernel)


@hookimpl
def flush_tlb_mm(mm: mm_struct) -> None:
    """Ranges and pages are flushed alike: what changed in them was queued."""
    flush_tlb_pending(mm.kernel)


@hookimpl
def flush_tlb_pgtables(mm: mm_struct, start: int, end: int) -> None:
    """Demap the pages of the linear table that showed the freed tables."""
    if not section_of(mm).has_tsb:
        tlb_batch_add(mm, context.vpte_pages(start, end, mm.layout.span_of(mm.layout.pmd_level)))
        flush_tlb_pending(mm.kernel)


# -------------------------------------------------------------------- entries
def ptes(mm: mm_struct, ptep: int, n: int) -> EntryRun:
    """The values of a run of ptes; a copy."""
    kernel: ArchKernel = mm.kernel
    return kernel.ram.u64[ptep >> 3 : (ptep >> 3) + n].byteswap()


@hookimpl
def set_pte(mm: mm_struct, addr: int, ptep: int, values: EntryRun) -> None:
    olds = ptes(mm, ptep, len(values))
    defaults.set_pte(mm, addr, ptep, values)
    queue_live(mm, addr, olds)


@hookimpl
def ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, n: int, tlb: mmu_gather | None) -> EntryRun:
    """A dead context is not flushed (2.6.15), until its pages were flushed one by one again (3.0, which the
    releases with 64-bit upper entries follow)."""
    values = defaults.ptep_get_and_clear(mm, addr, ptep, n, tlb)
    if tlb is None or not tlb.fullmm or section_of(mm).upper_entries == 64:
        queue_live(mm, addr, values)
    return values


@hookimpl
def set_wrprotect(mm: mm_struct, addr: int, ptep: int, n: int) -> None:
    olds = ptes(mm, ptep, n)
    defaults.set_wrprotect(mm, addr, ptep, n)
    queue_live(mm, addr, olds)


@hookimpl
def set_access_flags(vma: vm_area_struct, addr: int, ptep: int, value: int) -> bool:
    mm = vma.vm_mm
    changed = int(ptes(mm, ptep, 1)[0]) != value
    if changed:
        set_pte(mm, addr, ptep, np.array((value,), dtype=np.uint64))
        flush_tlb_pending(mm.kernel)
    return changed


@hookimpl
def update_mmu_cache(vma: vm_area_struct, addr: int, ptep: int, n: int) -> None:
    """Enter fresh ptes into the TSB for their size; get a larger one where the mm has outgrown it."""
    mm = vma.vm_mm
    own: Context = mm.context
    if own.tsb is None:
        return
    tsb_grow(mm)
    tte = section_of(mm).tte
    by_shift = {tsb.page_shift: tsb for tsb in own.tsbs}
    for at, value in enumerate(ptes(mm, ptep, n).tolist()):
        if value & V:
            tsb = by_shift.get(tte.page_shift_of(value), own.tsb)
            tsb_insert(mm.kernel, tsb, addr + (at << PAGE_SHIFT), value)
