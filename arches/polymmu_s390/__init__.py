"""s390: 31-bit ESA/390 with two levels, and 64-bit z/Architecture with two, three or four that grow at run time.

Facts: z/Architecture Principles of Operation, ch. 3; Linux 2.6.25 to 3.0 (arch/s390). What is unlike elsewhere:

* Accessed and dirty are not in the pte but in a key per frame (``keys``).
* One instruction invalidates a pte and purges it from all CPUs, so most flush hooks have nothing left to do, and a
  gather frees pages at once (``tlbflush``).
* Empty entries are not zero, page tables share frames, and an mm gets another level when it needs more than 4 TiB
  (``formats``, ``tables``).
"""

from __future__ import annotations

from collections.abc import Mapping

from polymmu.arch import (
    AddressLimits,
    ArchKernel,
    EntryFormat,
    FaultInfo,
    RadixLayout,
    UserMistake,
    hookimpl,
    mm_struct,
)
from polymmu_s390 import dat_kernels, formats, keys, tables, tlbflush
from polymmu_s390.config import S390Config, config_of
from polymmu_s390.dat import TRANSLATION_CODES, Dat
from polymmu_s390.formats import (
    CR0_EDAT,
    CR0_IEP,
    ESA,
    LAYOUTS,
    PTE_PROTECTIONS,
    SEGMENT_PROTECTIONS,
    SEGMENT_SIZE,
    TASK_SIZE,
)
from polymmu_s390.tlbflush import Context

__all__ = ["S390Config"]

MIB = 1 << 20

SPACES = {None: "cr1", "primary": "cr1", "secondary": "cr7", "home": "cr13"}


# ---------------------------------------------------------------------- shape
@hookimpl
def config_class() -> type:
    return S390Config


@hookimpl
def summary() -> str:
    return "s390: 31-bit ESA/390, and z/Architecture with two to four levels; storage keys"


@hookimpl
def boot_registers(section: S390Config) -> dict[str, int]:
    return {"cr0": CR0_EDAT if section.has_large_pages else 0}


@hookimpl
def page_table_layout(section: S390Config) -> RadixLayout:
    """The most levels that an mm may come to have."""
    return ESA if section.is_esa else LAYOUTS[max(section.levels, 4) if section.levels > 2 else 2]


@hookimpl
def entry_format(section: S390Config, level: int) -> EntryFormat:
    return formats.entry_format(page_table_layout(section), level, section.has_large_pages)


@hookimpl
def translation(section: S390Config, registers: Mapping[str, int]) -> Dat:
    cr0 = registers.get("cr0", 0)
    return Dat(
        esa=section.is_esa,
        edat=section.edat if section.has_large_pages and cr0 & CR0_EDAT else 0,
        iep=bool(section.iep and not section.is_esa and cr0 & CR0_IEP),
        strict=section.strict,
    )


@hookimpl
def root_of(section: S390Config, registers: Mapping[str, int], space: str | None) -> int:
    if space not in SPACES:
        raise UserMistake(f"unknown address space '{space}' (known: primary, secondary, home)")
    register = SPACES[space]
    if register not in registers:
        raise UserMistake(f"no {register}; give --register {register}=VALUE")
    return registers[register]


@hookimpl
def address_limits(section: S390Config) -> AddressLimits:
    """The stack and what is placed by itself lie below what a new program's levels reach."""
    levels = 2 if section.is_esa else section.levels
    top, last = TASK_SIZE[min(levels, 3)], TASK_SIZE[2 if levels == 2 else 4]
    return AddressLimits(
        task_size=last,
        mm_vm_size=last,
        mmap_base=top - 128 * MIB,
        stack_top=top,
        start_brk=top // 3 * 2 & -SEGMENT_SIZE,
        va_bits=31 if section.is_esa else 64,
    )


@hookimpl
def huge_page_sizes(section: S390Config) -> tuple[int, ...]:
    return (SEGMENT_SIZE,) if section.has_large_pages else ()


@hookimpl
def huge_protections() -> tuple[int, ...]:
    return SEGMENT_PROTECTIONS


@hookimpl
def byte_order() -> str:
    return "big"


@hookimpl
def page_protections() -> tuple[int, ...]:
    return PTE_PROTECTIONS


# ------------------------------------------------------------------- contexts
@hookimpl
def init_new_context(mm: mm_struct, like: mm_struct | None) -> None:
    kernel: ArchKernel = mm.kernel
    if kernel.arch_state is None:
        keys.power_on(kernel)
    mm.context = Context()
    section = config_of(mm)
    if like is None and not section.is_esa:
        mm.layout = LAYOUTS[section.levels]
        mm.task_size = TASK_SIZE[section.levels]


switch_mm = tlbflush.switch_mm

flush_tlb_mm = tlbflush.flush_tlb_mm
flush_tlb_range = tlbflush.flush_tlb_range
flush_tlb_page = tlbflush.flush_tlb_page
tlb_gather = tlbflush.tlb_gather
tlb_flush = tlbflush.tlb_flush
ptep_get_and_clear = tlbflush.ptep_get_and_clear
ptep_clear_flush = tlbflush.ptep_clear_flush
set_wrprotect = tlbflush.set_wrprotect
set_access_flags = tlbflush.set_access_flags
set_huge_pte = tlbflush.set_huge_pte
huge_ptep_get_and_clear = tlbflush.huge_ptep_get_and_clear
test_and_clear_young = keys.test_and_clear_young
page_test_and_clear_dirty = keys.page_test_and_clear_dirty
table_alloc = tables.table_alloc
table_free = tables.table_free
pte_free_tlb = tables.pte_free_tlb
table_free_tlb = tables.table_free_tlb
tables_need_rcu = tables.tables_need_rcu
pgd_free = tables.pgd_free
grow_task_size = tables.grow_task_size


# --------------------------------------------------------------------- faults
KINDS = {
    dat_kernels.PROTECTION: "protection",
    dat_kernels.ADDRESSING: "reserved",
    dat_kernels.SPECIFICATION: "reserved",
    dat_kernels.ASCE_TYPE: "non_canonical",
    **dict.fromkeys(TRANSLATION_CODES, "not_present"),
}
FAULTS = {
    (code | access << dat_kernels.ACCESS_SHIFT | user << dat_kernels.USER_SHIFT): FaultInfo(
        access=name, kind=kind, user=bool(user)
    )
    for code, kind in KINDS.items()
    for access, name in enumerate(("fetch", "load", "store"))
    for user in (0, 1)
}
"""Made once: a fault is on a hot path."""


@hookimpl
def decode_fault(code: int) -> FaultInfo:
    return FAULTS[code]
