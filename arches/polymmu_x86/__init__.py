"""32-bit x86: two-level paging (4 MiB large pages) and PAE (64-bit entries, NX, 2 MiB large pages).

Facts: Intel SDM vol. 3A "32-bit paging" and "PAE paging". Under PAE the four top entries are loaded into
registers when CR3 is loaded and not looked at in memory until the next load, which is why hooking up a new
one flushes (Linux 2.6.39). User pmd tables are allocated with the pgd, as Linux has done from 2.6.25.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from attrs import field

from polymmu.arch import (
    AddressLimits,
    ArchKernel,
    EntryFormat,
    Field,
    RadixLayout,
    RadixTranslation,
    UserMistake,
    account_table,
    defaults,
    doc,
    hookimpl,
    mm_struct,
    mmu_gather,
)
from polymmu_x86 import family
from polymmu_x86.entries import (
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    EFER_NXE,
    PS,
    SOFT_32,
    SOFT_PAE,
    P,
    bits,
    entry,
    fault_codes,
    protections,
)
from polymmu_x86.highpte import kmap_atomic, kunmap_atomic
from polymmu_x86.tlbflush import shootdown_key

MIB = 1 << 20

TWO_LEVEL = RadixLayout(
    index_bits=(10, 10),
    page_shift=12,
    names=("pgd", "pte"),
    entry_bytes=(4, 4),
    leaf_levels=frozenset({0, 1}),
)
PAE = RadixLayout(
    index_bits=(2, 9, 9),
    page_shift=12,
    names=("pgd", "pmd", "pte"),
    entry_bytes=(8, 8, 8),
    leaf_levels=frozenset({1, 2}),
)


@attrs.frozen(kw_only=True)
class X86Config:
    """The ``x86`` section of a machine file."""

    paging: str = field(
        default="2level", metadata=doc("2level (4-byte entries) or pae", choices=("2level", "pae"))
    )
    nx: bool = field(default=False, metadata=doc("no-execute (PAE only; Pentium 4 from Prescott on)"))
    phys_bits: int = field(
        default=36, metadata=doc("physical address bits (MAXPHYADDR)", minimum=32, maximum=52)
    )
    page_offset: int = field(
        default=0xC000_0000,
        metadata=doc("where the kernel's part of the address space begins (TASK_SIZE)", minimum=0x4000_0000,
                     maximum=0xF000_0000, unit="size"),
    )  # fmt: skip
    single_page_flush_ceiling: int = field(
        default=33,
        metadata=doc("most pages invalidated one by one (Linux 3.7 on; 0: always reload CR3)", minimum=0),
    )
    shootdown: str = shootdown_key()
    highpte: bool = field(
        default=False,
        metadata=doc(
            "page tables in high memory: mapped by an atomic map while they are used (CONFIG_HIGHPTE)"
        ),
    )
    pcid = False
    """32-bit paging has no address-space numbers."""


def is_pae(registers: Mapping[str, int]) -> bool:
    return bool(registers["cr4"] & CR4_PAE)


def nx_of(registers: Mapping[str, int]) -> bool:
    return is_pae(registers) and bool(registers["efer"] & EFER_NXE)


def checked(registers: Mapping[str, int]) -> dict[str, int]:
    """The registers that paging depends on; those not given are as after boot, except CR3."""
    full = {"cr0": CR0_PG | CR0_WP, "cr4": 0, "efer": 0} | dict(registers)
    if not full["cr0"] & CR0_PG:
        raise UserMistake(f"cr0 {full['cr0']:#x} has paging (bit 31) off; give the registers of a paging CPU")
    return full


@hookimpl
def config_class() -> type:
    return X86Config


@hookimpl
def summary() -> str:
    return "32-bit x86: two-level paging and PAE"


@hookimpl
def boot_registers(section: X86Config) -> dict[str, int]:
    pae = section.paging == "pae"
    return {
        "cr0": CR0_PG | CR0_WP,
        "cr4": CR4_PSE | CR4_PGE | (CR4_PAE if pae else 0),
        "efer": EFER_NXE if pae and section.nx else 0,
    }


@hookimpl
def page_table_layout(section: X86Config) -> RadixLayout:
    return PAE if section.paging == "pae" else TWO_LEVEL


def format_of(section: X86Config, registers: Mapping[str, int], level: int) -> EntryFormat:
    """The entries of ``level`` in the mode the registers name."""
    top = section.phys_bits
    if not is_pae(registers):
        if level == 1:
            return entry(address=bits(31, 12), is_last=True, nx=None, soft=SOFT_32)
        if not registers["cr4"] & CR4_PSE:
            return entry(address=bits(31, 12), nx=None)
        # A 4 MiB page: frame in 31:22, and physical bits 39:32 in 20:13 (PSE-36), as many as there are.
        wide = bits(13 + min(max(top - 32, 0), 8) - 1, 13)
        return entry(
            address=bits(31, 12),
            leaf=PS,
            nx=None,
            frame=bits(31, 22),
            reserved_leaf=bits(21, 13) & ~wide,
            high_frame_mask=wide,
            high_frame_shift=19,
        )
    nx = nx_of(registers)
    beyond = bits(62, top)
    if level == 0:
        # No rights and no accessed bit in the four top entries; a reserved bit is a #GP at the CR3 load. The
        # manual reserves bit 5 as well, but QEMU's walker sets it there as if it were an accessed bit, so
        # memory that QEMU has run from holds it; it is let pass.
        return EntryFormat(
            present=Field(P, P),
            frame_mask=0,
            table_mask=bits(top - 1, 12),
            reserved_table=bits(63, top) | bits(8, 6) | bits(2, 1),
            table_bits=P,
        )
    if level == 1:
        return entry(
            address=bits(top - 1, 12),
            leaf=PS,
            nx=nx,
            frame=bits(top - 1, 21),
            reserved_table=beyond,
            reserved_leaf=beyond | bits(20, 13),
        )
    return entry(address=bits(top - 1, 12), is_last=True, nx=nx, reserved_leaf=beyond, soft=SOFT_PAE)


@hookimpl
def entry_format(section: X86Config, registers: Mapping[str, int], level: int) -> EntryFormat:
    return format_of(section, registers, level)


@hookimpl
def translation(section: X86Config, registers: Mapping[str, int]) -> RadixTranslation:
    full = checked(registers)
    layout = PAE if is_pae(full) else TWO_LEVEL
    return RadixTranslation(
        layout=layout,
        formats=tuple(format_of(section, full, level) for level in range(layout.levels)),
        byte_order="little",
        canonical="none",
        fault_codes=fault_codes(nx_of(full)),
        supervisor_writes_read_only=not full["cr0"] & CR0_WP,
        root_registers=4 if layout is PAE else 0,
    )


@hookimpl
def root_of(section: X86Config, registers: Mapping[str, int], space: str | None) -> int:
    if space is not None:
        raise UserMistake(f"unknown address space '{space}'; x86 has one, named by cr3")
    if "cr3" not in registers:
        raise UserMistake("no cr3; give --register cr3=VALUE")
    return registers["cr3"] & (bits(31, 5) if is_pae(checked(registers)) else bits(31, 12))


@hookimpl
def address_limits(section: X86Config) -> AddressLimits:
    top = section.page_offset
    # The stack may grow to 8 MiB; Linux leaves at least 128 MiB between its top and mmap_base.
    return AddressLimits(task_size=top, mm_vm_size=top, mmap_base=top - 128 * MIB, stack_top=top, va_bits=32)


@hookimpl
def huge_page_sizes(section: X86Config) -> tuple[int, ...]:
    return (2 * MIB,) if section.paging == "pae" else (4 * MIB,)


@hookimpl
def page_protections(section: X86Config, registers: Mapping[str, int]) -> tuple[int, ...]:
    return protections(nx_of(registers))


@hookimpl
def pgd_alloc(mm: mm_struct) -> int:
    """Under PAE the pmd tables of user space come with the pgd, so that CR3 has something to latch."""
    pgd = defaults.pgd_alloc(mm)
    if pgd >= 0 and mm.layout is PAE:
        for index in range(4):
            table = defaults.table_alloc(mm, 1, index << 30)
            if table < 0:
                pgd_free(mm, pgd)
                return -1
            defaults.populate(mm, 0, index << 30, pgd + 8 * index, table)
            account_table(mm, 1, table, 1)
    return pgd


@hookimpl
def pgd_free(mm: mm_struct, pgd: int) -> None:
    """Mops up the pmd tables that free_pgtables had no reason to free."""
    kernel: ArchKernel = mm.kernel
    if mm.layout is PAE:
        for index in range(4):
            value = kernel.ram.read_entry(pgd + 8 * index, 8, "little")
            if value & P:
                table = value & bits(51, 12)
                account_table(mm, 1, table, -1)
                defaults.table_free(mm, 1, table)
    defaults.pgd_free(mm, pgd)


@hookimpl
def populate(mm: mm_struct, level: int, addr: int, entry: int, table: int) -> None:
    """Every CPU that runs ``mm`` loads CR3 again, and with it the four top entries."""
    defaults.populate(mm, level, addr, entry, table)
    if mm.layout is PAE and level == 0:
        family.flush_tlb_mm(mm)


@hookimpl
def tlb_flush(tlb: mmu_gather) -> None:
    """Under PAE a freed pmd table may still stand in the registers that CR3 loaded: only a load of CR3 drops it
    (Linux: need_flush_all in ___pmd_free_tlb)."""
    if tlb.mm.layout is PAE and tlb.freed_tables:
        family.flush_tlb_mm(tlb.mm)
    else:
        family.tlb_flush(tlb)


def has_highpte(mm: mm_struct) -> bool:
    section: X86Config = mm.kernel.description.section
    return section.highpte


@hookimpl
def pte_map(mm: mm_struct, table: int) -> None:
    if has_highpte(mm):
        kmap_atomic(mm, table)


@hookimpl
def pte_unmap(mm: mm_struct, table: int) -> None:
    if has_highpte(mm):
        kunmap_atomic(mm, table)


decode_fault = family.decode_fault
memory_model = family.memory_model
init_new_context = family.init_new_context
switch_mm = family.switch_mm
enter_lazy_tlb = family.enter_lazy_tlb
flush_tlb_mm = family.flush_tlb_mm
flush_tlb_range = family.flush_tlb_range
flush_tlb_page = family.flush_tlb_page
set_access_flags = family.set_access_flags
have_move_pmd = family.have_move_pmd

__all__ = ["PAE", "TWO_LEVEL", "X86Config"]
