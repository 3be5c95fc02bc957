"""The hooks that 32-bit and 64-bit x86 answer alike; each plugin registers them with its own shape."""

from __future__ import annotations

from polymmu.arch import ArchKernel, Cpu, FaultInfo, hookimpl, mm_struct, mmu_gather, vm_area_struct
from polymmu_x86 import entries
from polymmu_x86.tlbflush import Context, protocol_of


@hookimpl
def decode_fault(code: int) -> FaultInfo:
    return entries.decode(code)


@hookimpl
def memory_model() -> str:
    """Stores leave a CPU in order, behind its later loads (SDM: processor ordering)."""
    return "tso"


@hookimpl
def init_new_context(mm: mm_struct) -> None:
    mm.context = Context(serial=mm.serial)


@hookimpl
def switch_mm(cpu: Cpu, prev: mm_struct | None, following: mm_struct) -> None:
    protocol_of(following.kernel).switch_mm(cpu, prev, following)


@hookimpl
def enter_lazy_tlb(cpu: Cpu, mm: mm_struct) -> None:
    protocol_of(mm.kernel).enter_lazy_tlb(cpu)


@hookimpl
def flush_tlb_mm(mm: mm_struct) -> None:
    """As if tables went: whoever asks for all of an mm may mean those too."""
    protocol_of(mm.kernel).flush(mm, 0, 0, mm.layout.page_size, freed_tables=True)


@hookimpl
def flush_tlb_range(vma: vm_area_struct, start: int, end: int) -> None:
    """One INVLPG drops a whole huge page (Linux 4.20: the stride of a range)."""
    mm = vma.vm_mm
    page_size = vma.huge_size or mm.layout.page_size
    protocol_of(mm.kernel).flush(mm, start, end, page_size, freed_tables=False)


@hookimpl
def flush_tlb_page(vma: vm_area_struct, addr: int) -> None:
    protocol_of(vma.vm_mm.kernel).flush_page(vma.vm_mm, addr)


@hookimpl
def tlb_flush(tlb: mmu_gather) -> None:
    """The range the gather recorded, unless the whole mm goes."""
    mm = tlb.mm
    start, end = (0, 0) if tlb.fullmm else (tlb.start, tlb.end)
    protocol_of(mm.kernel).flush(mm, start, end, mm.layout.page_size, tlb.freed_tables)


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
