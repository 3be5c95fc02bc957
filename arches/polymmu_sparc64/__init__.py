"""64-bit SPARC: UltraSPARC (sun4u) and T1 (sun4v), whose TLBs are filled by software.

Hardware knows TLB entries, contexts and traps; tables are Linux's affair. Two generations of Linux's miss handlers:
``tsb`` (2.6.17 to 3.0) and ``vpte`` (2.6.11 to 2.6.16, a virtually mapped linear table); see ``miss``. Addresses have
44 bits, sign-extended: the hole between the halves is as wide as nearly all of the 64-bit space, and the pgd slots in
use (0 to 511, 1536 to 2047) are not contiguous. Mappings go into the upper half, the stack below the hole.

First reading: ``tte``, ``miss``, ``tlbflush``; then ``context`` and ``tsb``.
Sources: Linux 2.6.11 to 3.0 ``arch/sparc64`` (``arch/sparc`` from 2.6.28), the manuals named in the modules.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np
from attrs import field

from polymmu.arch import (
    AddressLimits,
    ArchKernel,
    Cpu,
    EntryFormat,
    EntryRun,
    FaultInfo,
    Field,
    RadixLayout,
    UserMistake,
    defaults,
    doc,
    hookimpl,
    mm_struct,
    mmu_gather,
    vm_area_struct,
)
from polymmu_sparc64 import context
from polymmu_sparc64.miss import VA_TOP_BIT
from polymmu_sparc64.mmu import FAULTS, Sparc64Translation, layout_of
from polymmu_sparc64.tlbflush import demap_context, flush_tlb_pending, queue_live, tlb_batch_add, vpte_pages
from polymmu_sparc64.tsb import Tsb, make_huge_tsb, tsb_alloc, tsb_free, tsb_grow, tsb_insert
from polymmu_sparc64.tte import FORMATS, PAGE_SHIFT, Tte, V

KIB, MIB, GIB, TIB = (1 << 10 * n for n in (1, 2, 3, 4))
WORD = (1 << 64) - 1
LOWER_END, UPPER_START = 1 << VA_TOP_BIT, -1 << VA_TOP_BIT & WORD
TASK_SIZE = (1 << 64) - (1 << 34)
PROGRAM_END = TIB
"""Where a position-independent program goes, its heap behind it (Linux: ELF_ET_DYN_BASE)."""
MMAP_ROOM = TIB
"""Linux fills the upper half from its lowest address upwards, this core downwards from so far above it."""


def check_generation(section: Sparc64Config, attribute: object, generation: str) -> None:
    """The TSB came with sun4v, and both before the wider entries."""
    if generation == "vpte" and (section.cpu, section.upper_entries) != ("sun4u", 32):
        raise ValueError("vpte ended before sun4v and 64-bit upper entries; take tsb, or cpu sun4u with 32")


@attrs.frozen(kw_only=True)
class Sparc64Config:
    """The ``sparc64`` section of a machine file."""

    cpu: str = field(
        default="sun4u",
        metadata=doc("sun4u (UltraSPARC I to IV) or sun4v (T1, T2)", choices=tuple(FORMATS)),
    )
    upper_entries: int = field(
        default=32,
        metadata=doc("bits of a pgd or pmd entry: 32, or 64 as after 3.0 (tables then wait for RCU)", choices=(32, 64)),
    )  # fmt: skip
    generation: str = field(
        default="tsb",
        metadata=doc(
            "miss handlers of Linux 2.6.17 to 3.0 (tsb) or to 2.6.16 (vpte)", choices=("tsb", "vpte")
        ),
        validator=check_generation,
    )
    huge_page: int = field(
        default=4 * MIB,
        metadata=doc("the size of huge pages", unit="size", choices=(64 * KIB, 512 * KIB, 4 * MIB)),
    )
    context_bits: int = field(
        default=0,
        metadata=doc("bits of a context number; 0: 13 with tsb, 10 with vpte", minimum=0, maximum=13),
    )
    frees_before_flush: bool = field(
        default=False, metadata=doc("free a gather's pages before their translations, as Linux to 2.6.29")
    )
    trap_cycles: int = field(
        default=40,
        metadata=doc("cycles of a miss trap and its handler, memory aside", minimum=0, maximum=10**9),
    )

    @property
    def has_tsb(self) -> bool:
        """Which generation."""
        return self.generation == "tsb"

    @property
    def tte(self) -> Tte:
        """The CPU's TTE."""
        return FORMATS[self.cpu]


def section_of(mm: mm_struct) -> Sparc64Config:
    """The section of the machine this mm lives on."""
    section: Sparc64Config = mm.kernel.description.section
    return section


# ---------------------------------------------------------------------- shape
@hookimpl
def config_class() -> type:
    return Sparc64Config


@hookimpl
def summary() -> str:
    return (
        "64-bit SPARC: software-filled TLBs, TSB or virtually mapped linear table, contexts, the address hole"
    )


@hookimpl
def boot_registers() -> dict[str, int]:
    return {}


@hookimpl
def page_table_layout(section: Sparc64Config) -> RadixLayout:
    return layout_of(section.upper_entries // 8)


@hookimpl
def entry_format(section: Sparc64Config, level: int) -> EntryFormat:
    """A pgd or pmd entry is the next table's address alone: whatever is not 0 is present."""
    if level == 2:
        return section.tte.entry_format(section.has_tsb)
    narrow = section.upper_entries == 32
    mask, shift = ((1 << 32) - 1, 11) if narrow else (WORD, 0)
    return EntryFormat(present=Field(0, 0), frame_mask=0, table_mask=mask, address_shift=shift)


@hookimpl
def translation(section: Sparc64Config) -> Sparc64Translation:
    own = {"tsb_hits": 0, "tsb_misses": 0} if section.has_tsb else {"vpte_misses": section.trap_cycles}
    return Sparc64Translation(
        tte=section.tte,
        upper_bytes=section.upper_entries // 8,
        has_tsb=section.has_tsb,
        huge_shift=section.huge_page.bit_length() - 1,
        event_costs={"traps": section.trap_cycles, **own},
    )


@hookimpl
def root_of(registers: Mapping[str, int], space: str | None) -> int:
    if space is not None:
        raise UserMistake(f"unknown address space '{space}'; a sparc64 root has one, named by pgd")
    if "pgd" not in registers:
        raise UserMistake("no pgd; give --register pgd=PHYSICAL_ADDRESS")
    return registers["pgd"]


@hookimpl
def address_limits(section: Sparc64Config) -> AddressLimits:
    # From 2.6.17 on Linux leaves 4 GiB free on either side of the hole, for instruction prefetch.
    margin = 4 * GIB if section.has_tsb else 0
    hole = (LOWER_END - margin, UPPER_START + margin)
    return AddressLimits(
        task_size=TASK_SIZE,
        mm_vm_size=TASK_SIZE,
        mmap_base=hole[1] + MMAP_ROOM,
        stack_top=hole[0],
        start_brk=PROGRAM_END,
        holes=(hole,),
    )


@hookimpl
def byte_order() -> str:
    return "big"


@hookimpl
def page_protections(section: Sparc64Config) -> tuple[int, ...]:
    return section.tte.protections(section.has_tsb)


@hookimpl
def deviations(section: Sparc64Config) -> tuple[str, ...]:
    """Tables went back at once until 3.1; pages before their translations until 2.6.30."""
    tables = ("tables_freed_early",) if section.upper_entries == 32 else ()
    return (*tables, *(("pages_freed_early",) if section.frees_before_flush else ()))


@hookimpl
def decode_fault(code: int) -> FaultInfo:
    return FAULTS[code]


# ---------------------------------------------------------------- range walks
@hookimpl
def pgd_addr_end(mm: mm_struct, addr: int, end: int) -> int:
    return addr_end(mm, 0, addr, end)


@hookimpl
def addr_end(mm: mm_struct, level: int, addr: int, end: int) -> int:
    """As Linux of 2.6.12-rc2: boundaries are sign-extended, so past the lower half comes the upper one."""
    span = 1 << mm.layout.shifts[level]
    boundary = (addr + span) & -span & WORD
    if boundary >> VA_TOP_BIT & 1:
        boundary |= UPPER_START
    return boundary if (boundary - 1) & WORD < (end - 1) & WORD else end


# ----------------------------------------------------------------- huge pages
@hookimpl
def huge_page_sizes(section: Sparc64Config) -> tuple[int, ...]:
    return (section.huge_page,)


@hookimpl
def huge_entry_format(section: Sparc64Config) -> EntryFormat:
    return section.tte.entry_format(section.has_tsb)


@hookimpl
def huge_protections(section: Sparc64Config, size: int) -> tuple[int, ...]:
    """A huge page is a run of base ptes, each with the huge page's size code and the next frame."""
    return tuple(bits | section.tte.size_bits(size) for bits in section.tte.protections(section.has_tsb))


@hookimpl
def huge_pte_alloc(mm: mm_struct, addr: int, size: int) -> int:
    if section_of(mm).has_tsb and mm.context.huge_tsb is None:
        make_huge_tsb(mm, size.bit_length() - 1)
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
    """Since Linux 3.1. (Its test of the pte asked for a kernel's right too, so that it always fell back; not here.)"""
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
        demap_context(mm)


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
        tlb_batch_add(mm, vpte_pages(start, end, mm.layout.span_of(mm.layout.pmd_level)))
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
    values = defaults.ptep_get_and_clear(mm, addr, ptep, n, tlb)
    if tlb is None or not tlb.fullmm:
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
def test_and_clear_young(vma: vm_area_struct, addr: int, ptep: int, n: int) -> int:
    """An old page has no V, so the TLBs must forget it."""
    olds = ptes(vma.vm_mm, ptep, n)
    young = defaults.test_and_clear_young(vma, addr, ptep, n)
    queue_live(vma.vm_mm, addr, olds)
    return young


@hookimpl
def update_mmu_cache(vma: vm_area_struct, addr: int, ptep: int, n: int) -> None:
    """Enter fresh ptes into the TSB for their size; get a larger one where the mm has outgrown it."""
    mm = vma.vm_mm
    if mm.context.tsb is None:
        return
    rss = mm.anon_rss + mm.file_rss
    if rss > mm.context.tsb.rss_limit:
        tsb_grow(mm, rss)
    tte = section_of(mm).tte
    own: dict[int, Tsb] = {tsb.page_shift: tsb for tsb in (mm.context.tsb, mm.context.huge_tsb) if tsb}
    for at, value in enumerate(ptes(mm, ptep, n).tolist()):
        if value & V:
            tsb = own.get(tte.page_shift_of(value), own[PAGE_SHIFT])
            tsb_insert(mm.kernel, tsb, addr + (at << PAGE_SHIFT), value)


# ------------------------------------------------------------------- contexts
@hookimpl
def init_new_context(mm: mm_struct) -> None:
    """No number yet; a TSB, except for the kernel's own mm, whose first context starts the machine's."""
    kernel: ArchKernel = mm.kernel
    section = section_of(mm)
    mm.context = context.Context()
    if kernel.arch_state is None:
        context.boot(kernel, section.context_bits or (13 if section.has_tsb else 10))
    elif section.has_tsb:
        mm.context.tsb = tsb_alloc(kernel, 0)


@hookimpl
def destroy_context(mm: mm_struct) -> None:
    context.release(mm)
    tsb_free(mm.kernel, mm.context.tsb)
    tsb_free(mm.kernel, mm.context.huge_tsb)


@hookimpl
def switch_mm(cpu: Cpu, following: mm_struct) -> None:
    kernel: ArchKernel = following.kernel
    flush_tlb_pending(kernel, context.state_of(kernel).batches[cpu.index])
    context.switch_mm(cpu, following)


__all__ = ["Sparc64Config"]
