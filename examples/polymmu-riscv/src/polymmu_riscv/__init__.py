"""64-bit RISC-V: Sv39, Sv48 and Sv57 page tables, as the hardware walks them and as Linux 6.7 keeps them.

Facts: RISC-V Privileged Architecture 4.1.11 (satp), 4.3 to 4.6 (the modes), 4.1.1 (SUM, MXR). All three modes are one
walk with three, four or five levels of 512 entries; an address must be the sign extension of its 39, 48 or 57 bits, or
it raises a page fault like any other that leads nowhere. What is not built: Svnapot (bit 63 is reserved).

An architecture of a distribution of its own: it imports ``polymmu.arch`` and nothing else of polymmu.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from attrs import field

from polymmu.arch import (
    Access,
    AddressLimits,
    ArchKernel,
    Cpu,
    EntryFormat,
    FaultInfo,
    RadixLayout,
    RadixTranslation,
    UserMistake,
    doc,
    hookimpl,
    mm_struct,
    mmu_gather,
    vm_area_struct,
)
from polymmu_riscv import asid, entries, fences

MIB, GIB = 1 << 20, 1 << 30
NAMES = ("pgd", "p4d", "pud", "pmd", "pte")
SATP_MODES = {"sv39": 8, "sv48": 9, "sv57": 10}
PPN = (1 << 44) - 1
SUM, MXR = 1 << 18, 1 << 19
"""sstatus (and mstatus): the supervisor may load and store in user pages; what may be executed may be read."""


def layout(levels: int) -> RadixLayout:
    """``levels`` levels of nine bits; an entry of any level may map a page."""
    return RadixLayout(
        index_bits=(9,) * levels,
        page_shift=12,
        names=("pgd", *NAMES[-levels + 1 :]),
        entry_bytes=(8,) * levels,
        leaf_levels=frozenset(range(levels)),
    )


LAYOUTS = {"sv39": layout(3), "sv48": layout(4), "sv57": layout(5)}


@attrs.frozen(kw_only=True)
class RiscvConfig:
    """The ``riscv`` section of a machine file."""

    mode: str = field(
        default="sv48", metadata=doc("how many address bits are translated", choices=tuple(SATP_MODES))
    )
    asid_bits: int = field(
        default=16, metadata=doc("bits of the address-space number in satp", minimum=0, maximum=16)
    )
    ad_bits: str = field(
        default="svade",
        metadata=doc(
            "who sets accessed and dirty: svade (a fault, software) or svadu (hardware)",
            choices=("svade", "svadu"),
        ),
    )
    svpbmt: bool = field(default=False, metadata=doc("memory types in bits 62..61 of an entry"))
    svvptc: bool = field(
        default=False, metadata=doc("a new mapping is seen without a fence: Linux does not fence each one")
    )
    addressed_fence: bool = field(
        default=True, metadata=doc("SFENCE.VMA with an address works (false: erratum CIP-1200 of SiFive)")
    )
    max_fenced_pages: int = field(
        default=64, metadata=doc("most pages fenced one by one (Linux 6.7)", minimum=0, maximum=511)
    )
    remote_fence: str = field(
        default="sbi", metadata=doc("how other harts are made to fence", choices=("sbi", "ipi"))
    )


@attrs.frozen(kw_only=True)
class FencedTranslation(RadixTranslation):
    """Where every new mapping is followed by a fence of everything, no page may be mapped ahead of its touch."""

    @property
    def looks_ahead(self) -> bool:
        return False


def mode_of(satp: int) -> str:
    """The mode that satp names."""
    for mode, number in SATP_MODES.items():
        if number == satp >> 60:
            return mode
    known = ", ".join(f"{number} {mode}" for mode, number in SATP_MODES.items())
    raise UserMistake(f"satp {satp:#x} has mode {satp >> 60}; a paging mode is wanted ({known})")


def layout_of(section: RiscvConfig, registers: Mapping[str, int]) -> RadixLayout:
    """The shape that satp's mode has; the machine's own where no satp is given."""
    return LAYOUTS[mode_of(registers["satp"]) if "satp" in registers else section.mode]


def status_of(registers: Mapping[str, int]) -> int:
    """sstatus, or mstatus, of which it is a view."""
    return registers.get("sstatus", registers.get("mstatus", 0))


def section_of(mm: mm_struct) -> RiscvConfig:
    """The section of the machine this mm lives on."""
    section: RiscvConfig = mm.kernel.description.section
    return section


# ---------------------------------------------------------------------- shape
@hookimpl
def config_class() -> type:
    return RiscvConfig


@hookimpl
def summary() -> str:
    return "64-bit RISC-V: Sv39, Sv48, Sv57"


@hookimpl
def boot_registers() -> dict[str, int]:
    return {"sstatus": 0}


@hookimpl
def page_table_layout(section: RiscvConfig) -> RadixLayout:
    return LAYOUTS[section.mode]


@hookimpl
def entry_format(section: RiscvConfig, registers: Mapping[str, int], level: int) -> EntryFormat:
    return entries.entry_format(
        is_last=level == layout_of(section, registers).pte_level,
        svpbmt=section.svpbmt,
        mxr=bool(status_of(registers) & MXR),
    )


@hookimpl
def translation(section: RiscvConfig, registers: Mapping[str, int]) -> RadixTranslation:
    shape = layout_of(section, registers)
    refused = {Access.FETCH} if status_of(registers) & SUM else set(Access)
    fences_all = not (section.svvptc or section.addressed_fence)
    return (FencedTranslation if fences_all else RadixTranslation)(
        layout=shape,
        formats=tuple(entry_format(section, registers, level) for level in range(shape.levels)),
        canonical="sign",
        fault_codes=entries.fault_codes(),
        refused_on_user=frozenset(refused),
        sets_accessed_dirty=section.ad_bits == "svadu",
        fault_drops=False,
    )


@hookimpl
def root_of(registers: Mapping[str, int], space: str | None) -> int:
    if space is not None:
        raise UserMistake(f"unknown address space '{space}'; riscv has one, named by satp")
    if "satp" not in registers:
        raise UserMistake("no satp; give --register satp=VALUE")
    mode_of(registers["satp"])
    return (registers["satp"] & PPN) << 12


@hookimpl
def address_limits(section: RiscvConfig) -> AddressLimits:
    # Half of what the root spans. With five levels, addresses above 2**47 are only given to who asks for them.
    shape = LAYOUTS[section.mode]
    task_size = 1 << (shape.va_bits - 1)
    stack_top = min(task_size, 1 << 47)
    return AddressLimits(
        task_size=task_size,
        mm_vm_size=task_size,
        mmap_base=stack_top - 128 * MIB,
        stack_top=stack_top,
        va_bits=64,
    )


@hookimpl
def page_protections() -> tuple[int, ...]:
    return entries.protections()


@hookimpl
def decode_fault(code: int) -> FaultInfo:
    return entries.decode(code)


# ----------------------------------------------------------------- huge pages
@hookimpl
def huge_page_sizes() -> tuple[int, ...]:
    return (2 * MIB, GIB)


@hookimpl
def huge_protections() -> tuple[int, ...]:
    """As of small pages: a right is what makes an entry a leaf."""
    return entries.protections()


# --------------------------------------------------------- range walks, tables
@hookimpl
def have_move_pmd() -> bool:
    """A moved table spans more than ``max_fenced_pages`` pages, so the flush drops what leads to it, too."""
    return True


@hookimpl
def tables_need_rcu(mm: mm_struct) -> bool:
    """Linux 6.9: a fence asked of SBI interrupts nobody's supervisor mode, so it does not stop a lockless walker."""
    return section_of(mm).remote_fence == "sbi"


# ------------------------------------------------------------ flush and entries
@hookimpl
def flush_tlb_mm(mm: mm_struct) -> None:
    fences.flush(mm)


@hookimpl
def flush_tlb_range(vma: vm_area_struct, start: int, end: int) -> None:
    fences.flush(vma.vm_mm, start, end)


@hookimpl
def flush_tlb_page(vma: vm_area_struct, addr: int) -> None:
    fences.flush(vma.vm_mm, addr, addr + vma.vm_mm.layout.page_size)


@hookimpl
def tlb_flush(tlb: mmu_gather) -> None:
    """The range the gather recorded, unless the whole mm goes or a table does."""
    if tlb.fullmm or tlb.freed_tables:
        fences.flush(tlb.mm)
    else:
        fences.flush(tlb.mm, tlb.start, tlb.end)


@hookimpl
def set_access_flags(vma: vm_area_struct, addr: int, ptep: int, value: int) -> bool:
    """True also where nothing changed: update_mmu_cache follows, and its fence is all that a stale entry needs.

    With Svvptc it does nothing, so raised rights are fenced here (Linux waits for a second fault to do it).
    """
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    changed = kernel.ram.read_entry(ptep, 8, "little") != value
    if changed:
        kernel.ram.write_entry(ptep, 8, "little", value)
    if not section_of(mm).svvptc:
        return True
    if changed:
        fences.fence_entered(mm, addr, 1)
    return changed


@hookimpl
def update_mmu_cache(vma: vm_area_struct, addr: int, n: int) -> None:
    if not section_of(vma.vm_mm).svvptc:
        fences.fence_entered(vma.vm_mm, addr, n)


# ------------------------------------------------------------------- contexts
@hookimpl
def init_new_context(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    asid.boot(kernel, section_of(mm).asid_bits)
    mm.context = asid.Context()


@hookimpl
def switch_mm(cpu: Cpu, prev: mm_struct | None, following: mm_struct) -> None:
    asid.switch(cpu, prev, following)


__all__ = ["LAYOUTS", "RiscvConfig"]
