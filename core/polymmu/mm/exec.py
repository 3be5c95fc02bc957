"""exec: a fresh address space with a stack, in place of the old one.

The arguments are written before it is known where the stack will end; then they move down, tables and all, and the
stack gets its size (A5.5). What the program maps (its own file, libraries, its heap) comes as ordinary mappings
afterwards.
"""

from __future__ import annotations

import errno

from polymmu.errors import SyscallError, syscall_error
from polymmu.hooks import ArchKernel
from polymmu.mm.commit import vm_acct_memory
from polymmu.mm.fault import populate
from polymmu.mm.frames import lru_add_drain
from polymmu.mm.gather import tlb_finish_mmu, tlb_gather_mmu
from polymmu.mm.mm import activate, mm_alloc, mmput
from polymmu.mm.mmap import mmap_region
from polymmu.mm.move import move_page_tables
from polymmu.mm.vma import find_vma_intersection, vma_adjust
from polymmu.structs import VM_GROWSDOWN, VM_READ, VM_WRITE, mm_struct, vm_area_struct

__all__ = ["exec_mm", "shift_arg_pages"]

STACK_BYTES = 132 << 10
"""What a new program's stack covers: a page of arguments and the 128 KiB that Linux adds at once."""


def exec_mm(
    kernel: ArchKernel, mm: mm_struct | None, *, arguments: int = 0, stack_shift: int = 0
) -> mm_struct:
    """A new address space with a stack; CPUs that run ``mm`` go over to it, and ``mm`` loses this user.

    ``arguments``: pages of the stack that are written at once. ``stack_shift``: bytes, whole pages, by which the stack
    then ends lower than it could (Linux: at random). Raises ENOMEM, with ``mm`` as it was.
    """
    new = mm_alloc(kernel)
    kernel.events.mm_call_begin(new, "exec")
    kernel.sched.spend(kernel.description.costs.syscall, "syscall")
    try:
        _setup_stack(new, arguments, stack_shift)
    except SyscallError:
        kernel.events.mm_call_end(new, "exec")
        mmput(new)
        raise
    if mm is not None:
        for cpu in kernel.cpus:
            if kernel.active_mm[cpu.index] is mm and not kernel.lazy >> cpu.index & 1:
                activate(kernel, cpu, new)
        mmput(mm)
    kernel.events.mm_call_end(new, "exec")
    return new


def _setup_stack(mm: mm_struct, arguments: int, stack_shift: int) -> None:
    kernel: ArchKernel = mm.kernel
    top = kernel.shape.limits.stack_top
    page_size = mm.layout.page_size
    # A toy's address space may be smaller than a real program's stack.
    size = min(STACK_BYTES, mm.task_size // 8) & -page_size
    written = max(arguments, 1) * page_size
    mm.mmap_lock.down_write()
    try:
        start = mmap_region(mm, top - written, written, VM_READ | VM_WRITE | VM_GROWSDOWN)
        vma = mm.vmas[start]
        if arguments:
            populate(vma, start, top)
        if stack_shift:
            shift_arg_pages(vma, stack_shift)
        if size > written:
            vm_acct_memory(kernel, (size - written) // page_size)
            mm.total_vm += (size - written) // page_size
            vma_adjust(mm, [(vma, vma.vm_end - size, vma.vm_end)])
    finally:
        mm.mmap_lock.up_write()
    mm.start_stack = vma.vm_end


def shift_arg_pages(vma: vm_area_struct, shift: int) -> None:
    """Move ``vma`` and its pages down by ``shift`` bytes, where nothing is mapped (A5.5).

    Raises ENOMEM where a table cannot be had or the place is taken; the caller then gives the mm up.
    """
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    old_start, old_end = vma.vm_start, vma.vm_end
    new_start, new_end = old_start - shift, old_end - shift
    if new_start < kernel.shape.limits.first_user_address or find_vma_intersection(mm, new_start, old_start):
        raise syscall_error(errno.ENOMEM, f"the stack cannot move down to {new_start:#x}")
    pages = shift >> mm.layout.page_shift
    vma_adjust(mm, [(vma, new_start, old_end)])  # step 2: both places are covered, by one vma
    vma.vm_pgoff += pages  # each page keeps its number, which now leads to its new place
    kernel.vm_committed += pages  # as much as the vma gives back, should exec end here
    if move_page_tables(vma, old_start, vma, new_start, old_end - old_start) < old_end - old_start:
        raise syscall_error(errno.ENOMEM, f"no memory for page tables at {new_start:#x}")
    lru_add_drain(kernel)
    tlb = tlb_gather_mmu(mm)
    # Step 5: where the two places do not meet, what lies between is not looked at.
    start = max(new_end, old_start)
    ceiling = vma.vm_next.vm_start if vma.vm_next is not None else 0
    kernel.variants.free_pgtables.free_pgd_range(tlb, start, old_end, new_end, ceiling)
    tlb_finish_mmu(tlb, start, old_end)
    vma_adjust(mm, [(vma, new_start, new_end)])  # step 6
    kernel.vm_committed -= pages
