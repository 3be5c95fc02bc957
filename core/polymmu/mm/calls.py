"""What every memory system call has around it: its cost, its events, the mmap_lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from polymmu.hooks import ArchKernel
from polymmu.structs import mm_struct

__all__ = ["mm_call"]


@contextlib.contextmanager
def mm_call(mm: mm_struct, name: str, *, write: bool = True) -> Iterator[ArchKernel]:
    """Run the body as system call ``name`` on ``mm``, with its mmap_lock held (for writing by default)."""
    kernel: ArchKernel = mm.kernel
    lock = mm.mmap_lock
    kernel.events.mm_call_begin(mm, name)
    kernel.sched.spend(kernel.description.costs.syscall, "syscall")
    take, give = (lock.down_write, lock.up_write) if write else (lock.down_read, lock.up_read)
    take()
    try:
        yield kernel
    finally:
        give()
        kernel.events.mm_call_end(mm, name)
