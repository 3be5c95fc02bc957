"""exec: a fresh address space with a stack, in place of the old one.

What the program maps into it (its own file, libraries, its heap) comes as ordinary mappings afterwards.
"""

from __future__ import annotations

from polymmu.errors import SyscallError
from polymmu.hooks import ArchKernel
from polymmu.mm.mm import activate, mm_alloc, mmput
from polymmu.mm.mmap import mmap_region
from polymmu.structs import VM_GROWSDOWN, VM_READ, VM_WRITE, mm_struct

__all__ = ["exec_mm"]

STACK_BYTES = 132 << 10
"""What a new program's stack covers: a page of arguments and the 128 KiB that Linux adds at once."""


def exec_mm(kernel: ArchKernel, mm: mm_struct | None) -> mm_struct:
    """A new address space with a stack; CPUs that run ``mm`` go over to it, and ``mm`` loses this user.

    Raises ENOMEM, with ``mm`` as it was.
    """
    new = mm_alloc(kernel)
    kernel.events.mm_call_begin(new, "exec")
    kernel.sched.spend(kernel.description.costs.syscall, "syscall")
    try:
        _setup_stack(new)
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


def _setup_stack(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    top = kernel.shape.limits.stack_top
    page_size = mm.layout.page_size
    # A toy's address space may be smaller than a real program's stack.
    size = min(STACK_BYTES, mm.task_size // 8) & -page_size
    mm.start_stack = top
    mm.mmap_lock.down_write()
    try:
        mmap_region(mm, top - size, size, VM_READ | VM_WRITE | VM_GROWSDOWN)
    finally:
        mm.mmap_lock.up_write()
