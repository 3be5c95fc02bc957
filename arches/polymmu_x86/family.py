"""The hooks that 32-bit and 64-bit x86 answer alike; each plugin registers them with its own shape."""

from __future__ import annotations

from typing import Protocol

from polymmu.arch import ArchKernel, Cpu, FaultInfo, hookimpl, mm_struct, mmu_gather, vm_area_struct
from polymmu_x86 import entries, tlbflush


class Section(Protocol):
    """What these hooks read of a machine file's own section."""

    @property
    def pcid(self) -> bool: ...
    @property
    def single_page_flush_ceiling(self) -> int: ...


def section_of(mm: mm_struct) -> Section:
    """The section of the machine this mm lives on."""
    section: Section = mm.kernel.description.section
    return section


@hookimpl
def decode_fault(code: int) -> FaultInfo:
    return entries.decode(code)


@hookimpl
def init_new_context(mm: mm_struct) -> None:
    tlbflush.init_new_context(mm)


@hookimpl
def switch_mm(cpu: Cpu, prev: mm_struct | None, following: mm_struct) -> None:
    tlbflush.switch_mm(cpu, prev, following, section_of(following).pcid)


def _flush(mm: mm_struct, start: int, end: int, huge_size: int = 0) -> None:
    section = section_of(mm)
    page_size = huge_size or mm.layout.page_size
    tlbflush.flush(mm, start, end, page_size, section.single_page_flush_ceiling, section.pcid)


@hookimpl
def flush_tlb_mm(mm: mm_struct) -> None:
    _flush(mm, 0, 0)


@hookimpl
def flush_tlb_range(vma: vm_area_struct, start: int, end: int) -> None:
    """One INVLPG drops a whole huge page (Linux 4.20: the stride of a range)."""
    _flush(vma.vm_mm, start, end, vma.huge_size)


@hookimpl
def flush_tlb_page(vma: vm_area_struct, addr: int) -> None:
    _flush(vma.vm_mm, addr, addr + vma.vm_mm.layout.page_size)


@hookimpl
def tlb_flush(tlb: mmu_gather) -> None:
    """The range the gather recorded, unless the whole mm goes."""
    if tlb.fullmm:
        _flush(tlb.mm, 0, 0)
    else:
        _flush(tlb.mm, tlb.start, tlb.end)


@hookimpl
def have_move_pmd() -> bool:
    """INVLPG and every load of CR3 drop the walk caches that lead to a moved table."""
    return True


@hookimpl
def set_access_flags(vma: vm_area_struct, addr: int, ptep: int, value: int) -> bool:
    """No flush: a CPU that still holds the narrower entry faults, walks again and finds the wider one."""
    kernel: ArchKernel = vma.vm_mm.kernel
    width = vma.vm_mm.layout.entry_bytes[-1]
    if kernel.ram.read_entry(ptep, width, "little") == value:
        return False
    kernel.ram.write_entry(ptep, width, "little", value)
    return True
