"""Committed memory: how many pages programs could still ask for by storing into what they have mapped.

A private mapping that may be written can cost a page for each of its own; so all of it is charged when it is made,
grown, forked, or becomes writable, and such a vma carries VM_ACCOUNT until its pages are given back. Shared anonymous
memory is charged with its file. Nothing here allocates a page: it is a promise, which ``kernel.overcommit`` may
refuse to make. At the end nothing is committed (INV-REF).
"""

from __future__ import annotations

import errno
from typing import Any

from polymmu.errors import syscall_error
from polymmu.mm.vma import vma_pages, vmas_of
from polymmu.structs import (
    VM_ACCOUNT,
    VM_HUGETLB,
    VM_NORESERVE,
    VM_SHARED,
    VM_WRITE,
    Kernel,
    vm_area_struct,
)

AnyKernel = Kernel[Any]

__all__ = ["accountable", "commit_limit", "vm_acct_memory", "vm_unacct_vmas"]


def accountable(vm_flags: int) -> bool:
    """Whether a mapping with these flags is charged: it may be written, what is written is its own, and nobody
    asked for it to be left out (MAP_NORESERVE)."""
    return vm_flags & (VM_WRITE | VM_SHARED | VM_HUGETLB | VM_NORESERVE) == VM_WRITE


def commit_limit(kernel: AnyKernel) -> int:
    """Pages that may be committed where overcommitting is refused: a share of memory, and all of the swap area."""
    return kernel.frames.count * kernel.description.kernel.overcommit_ratio // 100 + _swap_pages(kernel)


def _swap_pages(kernel: AnyKernel) -> int:
    return kernel.swap.slots - 1 if kernel.swap is not None else 0


def vm_acct_memory(kernel: AnyKernel, pages: int) -> None:
    """Charge ``pages``. Raises ENOMEM, with nothing charged, where that would be too many."""
    wanted = kernel.vm_committed + pages
    overcommit = kernel.description.kernel.overcommit
    if overcommit == "heuristic" and pages > kernel.frames.count + _swap_pages(kernel):
        raise syscall_error(errno.ENOMEM, f"{pages} pages at once are more than memory and swap have")
    if overcommit == "never" and wanted > commit_limit(kernel):
        raise syscall_error(
            errno.ENOMEM, f"{wanted} pages would be committed; the limit is {commit_limit(kernel)}"
        )
    kernel.vm_committed = wanted


def vm_unacct_vmas(first: vm_area_struct | None) -> None:
    """Give back what ``first`` and those after it on its list were charged."""
    for vma in vmas_of(first):
        if vma.vm_flags & VM_ACCOUNT:
            vma.vm_mm.kernel.vm_committed -= vma_pages(vma)
