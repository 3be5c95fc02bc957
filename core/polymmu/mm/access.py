"""May it? The vma that allows an access, found, checked, and grown where it is a stack.

Called at every fault before anything is brought in; a refusal here is the program's segmentation fault.
"""

from __future__ import annotations

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hooks import ArchKernel
from polymmu.mm.commit import vm_acct_memory
from polymmu.mm.vma import VM_RIGHTS, anon_vma_prepare, find_vma, vma_grow_down
from polymmu.structs import (
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_READ,
    VM_WRITE,
    FaultInfo,
    mm_struct,
    vm_area_struct,
)

__all__ = ["STACK_LIMIT", "expand_stack", "vma_allowing"]

STACK_LIMIT = 8 << 20
"""Bytes a stack may grow to (Linux: the default RLIMIT_STACK)."""


def vma_allowing(mm: mm_struct, addr: int, info: FaultInfo) -> vm_area_struct:
    """The vma that allows this access, a stack grown to reach it; raises SegmentationFault."""
    access = info.access
    if info.kind == "reserved":
        raise AssertionError(f"{access} at {addr:#x} met a reserved bit set in a page-table entry")
    if info.kind == "non_canonical":
        raise SegmentationFault(addr, access, "not an address of this machine")
    vma = find_vma(mm, addr)
    if vma is None:
        raise SegmentationFault(addr, access, "no mapping here")
    if vma.vm_start > addr:
        if not vma.vm_flags & VM_GROWSDOWN:
            raise SegmentationFault(addr, access, "no mapping here")
        refusal = expand_stack(vma, addr)
        if refusal:
            raise SegmentationFault(addr, access, refusal)
    flags = vma.vm_flags
    if access == "store":
        if not flags & VM_WRITE:
            raise SegmentationFault(addr, access, "mapping is not writable")
    elif access == "load":
        if not flags & VM_READ and not _implied(vma, access):
            raise SegmentationFault(addr, access, "mapping is not readable")
    elif not flags & VM_EXEC and not _implied(vma, access):
        raise SegmentationFault(addr, access, "mapping is not executable")
    return vma


def _implied(vma: vm_area_struct, access: str) -> bool:
    """Whether the hardware cannot withhold a right that was not asked for: some other right brings it along."""
    kernel: ArchKernel = vma.vm_mm.kernel
    pte = kernel.shape.huge_formats[vma.huge_size] if vma.huge_size else kernel.shape.pte
    field = pte.read if access == "load" else pte.execute
    prot = vma.vm_page_prot
    return bool(vma.vm_flags & VM_RIGHTS) and pte.present.test(prot) and field.test(prot)


def expand_stack(vma: vm_area_struct, addr: int) -> str:
    """Grow ``vma`` downwards to hold ``addr``; why not, or an empty string. A guard page below stays free."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    page_size = mm.layout.page_size
    start = addr & -page_size
    prev = vma.vm_prev
    if start < kernel.shape.limits.first_user_address + page_size or (
        prev is not None and prev.vm_end > start - page_size
    ):
        return "the stack may not grow into another mapping"
    anon_vma_prepare(vma)  # the boundary moves below its lock; it is kept where the limit refuses
    assert vma.anon_vma is not None
    if vma.vm_end - start > STACK_LIMIT:
        return f"the stack may not grow beyond {STACK_LIMIT >> 20} MiB"
    family = vma.anon_vma.root
    family.lock.lock()
    # Another thread's fault may have made it grow as far, or farther.
    grow = max(vma.vm_start - start, 0) >> mm.layout.page_shift
    refusal = ""
    try:
        vm_acct_memory(kernel, grow if vma.vm_flags & VM_ACCOUNT else 0)
    except SyscallError as refused:
        refusal = str(refused)
    if grow and not refusal:
        mm.total_vm += grow
        vma_grow_down(vma, start)
    family.lock.unlock()
    return refusal
