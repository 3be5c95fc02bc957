"""64-bit x86: four-level paging, five levels as an option (LA57), PCIDs, 2 MiB and 1 GiB pages.

Facts: Intel SDM vol. 3A "4-level paging and 5-level paging". Addresses must be canonical: all bits above the
translated ones equal the highest translated one, or the access raises #GP.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from attrs import field

from polymmu.arch import (
    AddressLimits,
    EntryFormat,
    RadixLayout,
    RadixTranslation,
    UserMistake,
    doc,
    hookimpl,
)
from polymmu_x86 import family
from polymmu_x86.entries import (
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    EFER_NXE,
    PS,
    SOFT_64,
    bits,
    entry,
    fault_codes,
    protections,
)
from polymmu_x86.tlbflush import LAZY_MASK, NO_BARRIER, shootdown_key

GIB = 1 << 30

FOUR_LEVEL = RadixLayout(
    index_bits=(9, 9, 9, 9),
    page_shift=12,
    names=("pgd", "pud", "pmd", "pte"),
    entry_bytes=(8, 8, 8, 8),
    leaf_levels=frozenset({1, 2, 3}),
)
FIVE_LEVEL = RadixLayout(
    index_bits=(9, 9, 9, 9, 9),
    page_shift=12,
    names=("pgd", "p4d", "pud", "pmd", "pte"),
    entry_bytes=(8, 8, 8, 8, 8),
    leaf_levels=frozenset({2, 3, 4}),
)


@attrs.frozen(kw_only=True)
class X86_64Config:
    """The ``x86_64`` section of a machine file."""

    levels: int = field(default=4, metadata=doc("table levels: 4, or 5 (LA57)", choices=(4, 5)))
    pcid: bool = field(default=False, metadata=doc("tag translations with process-context identifiers"))
    nx: bool = field(default=True, metadata=doc("no-execute"))
    phys_bits: int = field(
        default=46, metadata=doc("physical address bits (MAXPHYADDR)", minimum=36, maximum=52)
    )
    single_page_flush_ceiling: int = field(
        default=33,
        metadata=doc("most pages invalidated one by one (Linux 3.7 on; 0: always reload CR3)", minimum=0),
    )
    shootdown: str = shootdown_key()


def layout_of(registers: Mapping[str, int]) -> RadixLayout:
    return FIVE_LEVEL if registers["cr4"] & CR4_LA57 else FOUR_LEVEL


def checked(registers: Mapping[str, int]) -> dict[str, int]:
    """The registers that paging depends on; those not given are as after boot, except CR3."""
    full = {"cr0": CR0_PG | CR0_WP, "cr4": CR4_PAE, "efer": EFER_NXE} | dict(registers)
    if not full["cr0"] & CR0_PG:
        raise UserMistake(f"cr0 {full['cr0']:#x} has paging (bit 31) off; give the registers of a paging CPU")
    if not full["cr4"] & CR4_PAE:
        raise UserMistake(f"cr4 {full['cr4']:#x} has PAE (bit 5) off, which 64-bit paging needs")
    return full


@hookimpl
def config_class() -> type:
    return X86_64Config


@hookimpl
def summary() -> str:
    return "64-bit x86: four- and five-level paging, PCID"


@hookimpl
def boot_registers(section: X86_64Config) -> dict[str, int]:
    if section.pcid and section.shootdown in (LAZY_MASK, NO_BARRIER):
        raise UserMistake(
            "a mask says nothing of translations kept under a PCID; take `pcid: false`, or generations",
            place="x86_64.shootdown",
        )
    return {
        "cr0": CR0_PG | CR0_WP,
        "cr4": CR4_PAE
        | CR4_PSE
        | CR4_PGE
        | (CR4_LA57 if section.levels == 5 else 0)
        | (CR4_PCIDE if section.pcid else 0),
        "efer": EFER_NXE if section.nx else 0,
    }


@hookimpl
def page_table_layout(section: X86_64Config) -> RadixLayout:
    return FIVE_LEVEL if section.levels == 5 else FOUR_LEVEL


def format_of(section: X86_64Config, registers: Mapping[str, int], level: int) -> EntryFormat:
    layout = layout_of(registers)
    top = section.phys_bits
    beyond = bits(51, top)
    nx = bool(registers["efer"] & EFER_NXE)
    shift = layout.shift_of(level)
    address = bits(top - 1, 12)
    if level == layout.pte_level:
        return entry(address=address, is_last=True, nx=nx, reserved_leaf=beyond, soft=SOFT_64)
    if level not in layout.leaf_levels:
        return entry(address=address, nx=nx, reserved_table=beyond | PS)
    # A large page: bit 12 is PAT, the bits between it and the frame are reserved.
    return entry(
        address=address,
        leaf=PS,
        nx=nx,
        frame=bits(top - 1, shift),
        reserved_table=beyond,
        reserved_leaf=beyond | bits(shift - 1, 13),
    )


@hookimpl
def entry_format(section: X86_64Config, registers: Mapping[str, int], level: int) -> EntryFormat:
    return format_of(section, registers, level)


@hookimpl
def translation(section: X86_64Config, registers: Mapping[str, int]) -> RadixTranslation:
    full = checked(registers)
    layout = layout_of(full)
    return RadixTranslation(
        layout=layout,
        formats=tuple(format_of(section, full, level) for level in range(layout.levels)),
        byte_order="little",
        canonical="sign",
        fault_codes=fault_codes(bool(full["efer"] & EFER_NXE)),
        supervisor_writes_read_only=not full["cr0"] & CR0_WP,
    )


@hookimpl
def root_of(section: X86_64Config, registers: Mapping[str, int], space: str | None) -> int:
    if space is not None:
        raise UserMistake(f"unknown address space '{space}'; x86_64 has one, named by cr3")
    if "cr3" not in registers:
        raise UserMistake("no cr3; give --register cr3=VALUE")
    return registers["cr3"] & bits(51, 12)


@hookimpl
def address_limits(section: X86_64Config) -> AddressLimits:
    # User space ends one page below the canonical hole, also with five levels: addresses above 2**47 are only
    # given to programs that ask for them.
    top = (1 << 47) - 4096
    highest = (1 << 56) - 4096 if section.levels == 5 else top
    return AddressLimits(
        task_size=highest, mm_vm_size=highest, mmap_base=top - 2 * GIB, stack_top=top, va_bits=64
    )


@hookimpl
def huge_page_sizes(section: X86_64Config) -> tuple[int, ...]:
    return (1 << 21, GIB)


@hookimpl
def page_protections(section: X86_64Config, registers: Mapping[str, int]) -> tuple[int, ...]:
    return protections(bool(registers["efer"] & EFER_NXE))


decode_fault = family.decode_fault
memory_model = family.memory_model
init_new_context = family.init_new_context
switch_mm = family.switch_mm
enter_lazy_tlb = family.enter_lazy_tlb
flush_tlb_mm = family.flush_tlb_mm
flush_tlb_range = family.flush_tlb_range
flush_tlb_page = family.flush_tlb_page
tlb_flush = family.tlb_flush
set_access_flags = family.set_access_flags
have_move_pmd = family.have_move_pmd

__all__ = ["FIVE_LEVEL", "FOUR_LEVEL", "X86_64Config"]
