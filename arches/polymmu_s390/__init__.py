"""s390: 31-bit ESA/390 with two levels, and 64-bit z/Architecture with two to five, three of which grow at run time.

Facts: z/Architecture Principles of Operation, ch. 3; Linux 2.6.25 to 3.0 (arch/s390). What is unlike elsewhere:

* Accessed and dirty are not in the pte but in a key per frame (``keys``).
* One instruction invalidates a pte and purges it from all CPUs, so most flush hooks have nothing left to do, and a
  gather frees pages at once (``tlbflush``).
* Empty entries are not zero, page tables share frames, and an mm gets another level when it needs more than 4 TiB
  (``formats``, ``tables``).
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from attrs import field

from polymmu.arch import (
    AddressLimits,
    ArchKernel,
    EntryFormat,
    FaultInfo,
    RadixLayout,
    UserMistake,
    doc,
    hookimpl,
    mm_struct,
)
from polymmu_s390 import dat, formats, keys, tables, tlbflush
from polymmu_s390.formats import CR0_EDAT, CR0_IEP, ESA, GROWN, LAYOUTS, SEGMENT_SIZE, TASK_SIZE

SPACES = {None: "cr1", "primary": "cr1", "secondary": "cr7", "home": "cr13"}


@attrs.frozen(kw_only=True)
class S390Config:
    """The ``s390`` section of a machine file."""

    mode: str = field(
        default="z", metadata=doc("z (z/Architecture) or esa (ESA/390, 31 bits)", choices=("z", "esa"))
    )
    levels: int = field(
        default=3,
        metadata=doc("levels a program begins with: 2 (a 31-bit program, for good), 3 (grows to 4), 4, or 5; z only",
                     minimum=2, maximum=5),
    )  # fmt: skip
    edat: int = field(
        default=0,
        metadata=doc("enhanced DAT: 1 from z10 on (1 MiB pages), 2 from zEC12 on (2 GiB too); z only",
                     minimum=0, maximum=2),
    )  # fmt: skip
    iep: bool = field(
        default=False, metadata=doc("instruction-execution protection (z14), where CR0 enables it; z only")
    )
    idte: bool = field(
        default=False, metadata=doc("the IDTE instruction (z990); without it whole TLBs are purged; z only")
    )
    strict: bool = field(
        default=False,
        metadata=doc("bits 52 and 55 of a pte must be right even where it is invalid or has no use for them"),
    )

    @property
    def is_esa(self) -> bool:
        """Not z/Architecture."""
        return self.mode == "esa"

    @property
    def is_31_bit(self) -> bool:
        """Whether programs have two levels for good."""
        return self.is_esa or self.levels == 2

    @property
    def most_levels(self) -> int:
        """Levels that a program may come to have."""
        return 2 if self.is_31_bit else max(self.levels, GROWN)

    @property
    def has_idte(self) -> bool:
        """Whether one mm, or one segment, can be purged."""
        return self.idte and not self.is_esa

    @property
    def has_large_pages(self) -> bool:
        """Whether a segment entry may map 1 MiB."""
        return self.edat >= 1 and not self.is_esa


# ---------------------------------------------------------------------- shape
@hookimpl
def config_class() -> type:
    return S390Config


@hookimpl
def summary() -> str:
    return "s390: 31-bit ESA/390, and z/Architecture with two to five levels; storage keys"


@hookimpl
def boot_registers(section: S390Config) -> dict[str, int]:
    return {"cr0": CR0_EDAT if section.has_large_pages else 0}


@hookimpl
def page_table_layout(section: S390Config) -> RadixLayout:
    """The most levels that an mm may come to have."""
    return ESA if section.is_esa else LAYOUTS[section.most_levels]


@hookimpl
def entry_format(section: S390Config, level: int) -> EntryFormat:
    return formats.entry_format(page_table_layout(section), level, section.has_large_pages)


@hookimpl
def translation(section: S390Config, registers: Mapping[str, int]) -> dat.Dat:
    cr0 = registers.get("cr0", 0)
    return dat.Dat(
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
    top, last = TASK_SIZE[2 if section.is_31_bit else 3], TASK_SIZE[section.most_levels]
    return AddressLimits(
        task_size=last,
        mm_vm_size=last,
        mmap_base=top - (128 << 20),
        stack_top=top,
        start_brk=top // 3 * 2 & -SEGMENT_SIZE,
        va_bits=31 if section.is_esa else 64,
    )


@hookimpl
def huge_page_sizes(section: S390Config) -> tuple[int, ...]:
    return (SEGMENT_SIZE,) if section.has_large_pages else ()


@hookimpl
def huge_protections() -> tuple[int, ...]:
    return formats.SEGMENT_PROTECTIONS


@hookimpl
def memory_model() -> str:
    """Stores are seen in order; only a store and a later load may change places."""
    return "tso"


@hookimpl
def byte_order() -> str:
    return "big"


@hookimpl
def page_protections() -> tuple[int, ...]:
    return formats.PTE_PROTECTIONS


# ------------------------------------------------------------------- contexts
@hookimpl
def init_new_context(mm: mm_struct, like: mm_struct | None) -> None:
    kernel: ArchKernel = mm.kernel
    if kernel.arch_state is None:
        keys.power_on(kernel)
    mm.context = tlbflush.Context()
    section: S390Config = kernel.description.section
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
    dat.PROTECTION & dat.CODE: "protection",
    dat.ADDRESSING & dat.CODE: "reserved",
    dat.SPECIFICATION & dat.CODE: "reserved",
    dat.ASCE_TYPE & dat.CODE: "non_canonical",
}
"""By interruption code; all others are translation exceptions."""


@hookimpl
def decode_fault(code: int) -> FaultInfo:
    return FaultInfo(
        access=("fetch", "load", "store")[code >> dat.ACCESS_SHIFT & 3],
        kind=KINDS.get(code & dat.CODE, "not_present"),
        user=bool(code >> dat.USER_SHIFT),
    )
