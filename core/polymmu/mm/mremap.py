"""mremap: shrink a mapping, grow it where it is, or move it with its pages.

A move makes the new vma first, then takes the page-table entries over, then unmaps the old range, in which no
page is left. If tables for the new place cannot be had, what was moved goes back and the new place is
unmapped.
"""

from __future__ import annotations

import contextlib
import errno

from polymmu.errors import SyscallError, syscall_error
from polymmu.hooks import ArchKernel
from polymmu.mm.calls import mm_call
from polymmu.mm.commit import vm_acct_memory
from polymmu.mm.mmap import page_align, unmap_area
from polymmu.mm.move import move_page_tables
from polymmu.mm.unmapped_area import check_fixed_area, get_unmapped_area
from polymmu.mm.vma import (
    anon_vma_clone,
    find_vma,
    find_vma_prev,
    vma_adjust,
    vma_copy,
    vma_link,
    vma_merge,
    vma_pages,
)
from polymmu.structs import (
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_HUGETLB,
    VM_PFNMAP,
    VM_SHARED,
    mm_struct,
    vm_area_struct,
)

__all__ = ["do_mremap"]


def do_mremap(
    mm: mm_struct,
    addr: int,
    old_len: int,
    new_len: int,
    *,
    may_move: bool = True,
    new_addr: int | None = None,
) -> int:
    """Make the mapping of [addr, addr + old_len) ``new_len`` bytes long and return where it is now.

    ``may_move``: it may go elsewhere where it cannot grow (MREMAP_MAYMOVE). ``new_addr``: it must go there,
    replacing what is there (MREMAP_FIXED). ``old_len`` 0 with a shared mapping makes a second mapping of it.
    Raises EINVAL for arguments that make no sense, EFAULT where the old range is not one mapping, ENOMEM.
    """
    with mm_call(mm, "mremap"):
        if addr < 0 or addr & (mm.layout.page_size - 1):
            raise syscall_error(errno.EINVAL, f"{addr:#x} is not a multiple of the page size")
        if old_len < 0 or new_len <= 0:
            raise syscall_error(errno.EINVAL, f"lengths {old_len} and {new_len} make no sense")
        old_len, new_len = page_align(mm, old_len), page_align(mm, new_len)
        if new_addr is not None:
            if not may_move:
                raise syscall_error(errno.EINVAL, "a new address needs leave to move")
            return _move_to(mm, addr, old_len, new_len, new_addr)
        if new_len <= old_len:
            if new_len < old_len:
                unmap_area(mm, addr + new_len, old_len - new_len)
            return addr
        vma = _resizable(mm, addr, old_len, new_len)
        if addr + old_len == vma.vm_end and _may_grow(vma, addr + new_len):
            _charge(vma, new_len - old_len)
            _grow(vma, addr + new_len)
            mm.total_vm += (new_len - old_len) >> mm.layout.page_shift
            return addr
        if not may_move:
            raise syscall_error(errno.ENOMEM, f"the mapping cannot grow to {addr + new_len:#x} in place")
        return _move_vma(vma, addr, old_len, new_len, get_unmapped_area(mm, None, new_len))


def _move_to(mm: mm_struct, addr: int, old_len: int, new_len: int, new_addr: int) -> int:
    """MREMAP_FIXED."""
    kernel: ArchKernel = mm.kernel
    new_end = new_addr + new_len
    fits = new_end <= mm.task_size or kernel.ops.grow_task_size(mm, new_end)
    if new_addr < 0 or new_addr & (mm.layout.page_size - 1) or not fits:
        raise syscall_error(errno.EINVAL, f"{new_addr:#x} + {new_len:#x} is not a range of the address space")
    if new_addr < addr + old_len and addr < new_addr + new_len:
        raise syscall_error(errno.EINVAL, f"old range {addr:#x} and new range {new_addr:#x} overlap")
    check_fixed_area(mm, new_addr, new_len)
    unmap_area(mm, new_addr, new_len)
    if new_len < old_len:
        unmap_area(mm, addr + new_len, old_len - new_len)
        old_len = new_len
    vma = _resizable(mm, addr, old_len, new_len)
    return _move_vma(vma, addr, old_len, new_len, new_addr)


def _resizable(mm: mm_struct, addr: int, old_len: int, new_len: int) -> vm_area_struct:
    """The vma that holds all of the old range, if it may get the new length."""
    vma = find_vma(mm, addr)
    if vma is None or addr < vma.vm_start:
        raise syscall_error(errno.EFAULT, f"nothing is mapped at {addr:#x}")
    if not old_len and not vma.vm_flags & VM_SHARED:
        raise syscall_error(errno.EINVAL, "only a shared mapping can be mapped a second time")
    if vma.vm_flags & VM_HUGETLB:
        raise syscall_error(errno.EINVAL, f"the mapping at {vma.vm_start:#x} has huge pages")
    if addr + old_len > vma.vm_end:
        raise syscall_error(errno.EFAULT, f"{addr:#x} + {old_len:#x} is more than one mapping")
    if new_len > old_len and vma.vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
        raise syscall_error(errno.EFAULT, f"the mapping at {vma.vm_start:#x} must not grow")
    return vma


def _may_grow(vma: vm_area_struct, end: int) -> bool:
    """Whether [vma.vm_end, end) is free and may be mapped."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    limits = kernel.shape.limits
    return (
        end <= mm.task_size
        and (vma.vm_next is None or end <= vma.vm_next.vm_start)
        and not any(low < end and vma.vm_end < high for low, high in limits.holes)
        and not kernel.ops.is_hugepage_only_range(mm, vma.vm_end, end - vma.vm_end)
    )


def _grow(vma: vm_area_struct, end: int) -> None:
    """Make ``vma`` reach to ``end``, and be one with the next mapping if that begins there and is alike (6.0)."""
    mm = vma.vm_mm
    merged = None
    if vma.vm_private_data is None:
        pgoff = vma.vm_pgoff + vma_pages(vma)
        anon, file = vma.anon_vma, vma.vm_file
        merged = vma_merge(
            mm, vma, vma.vm_end, end, vma.vm_flags, anon=anon, file=file, pgoff=pgoff, growing=True
        )
    if merged is None:
        vma_adjust(mm, [(vma, vma.vm_start, end)])


def _charge(vma: vm_area_struct, growth: int) -> None:
    """Commit the bytes that ``vma`` grows by. Raises ENOMEM."""
    if vma.vm_flags & VM_ACCOUNT:
        vm_acct_memory(vma.vm_mm.kernel, growth >> vma.vm_mm.layout.page_shift)


def _move_vma(vma: vm_area_struct, addr: int, old_len: int, new_len: int, new_addr: int) -> int:
    """Move the part [addr, addr + old_len) of ``vma`` to ``new_addr``, a free range of ``new_len`` bytes."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    # Splits on the way may add three: no failure may come when half is moved.
    if mm.map_count >= kernel.description.kernel.vm_max_map_count - 3:
        raise syscall_error(errno.ENOMEM, f"no room for a move among {mm.map_count} mappings")
    _charge(vma, new_len - old_len)
    accounted = bool(vma.vm_flags & VM_ACCOUNT)
    # Until the old place is unmapped, which gives it back.
    kernel.vm_committed += accounted * (old_len >> mm.layout.page_shift)
    try:
        new_vma = _copy_vma(vma, addr, new_addr, new_len)
    except SyscallError:
        kernel.vm_committed -= accounted * (new_len >> mm.layout.page_shift)
        raise
    source = find_vma(mm, addr)  # growing over the new range may have taken the old vma in
    assert source is not None
    moved = move_page_tables(source, addr, new_vma, new_addr, old_len)
    if moved < old_len:
        # The way back needs no table that does not exist (A5.2).
        move_page_tables(new_vma, new_addr, source, addr, moved)
        mm.total_vm += new_len >> mm.layout.page_shift
        unmap_area(mm, new_addr, new_len)
        raise syscall_error(errno.ENOMEM, f"no memory for page tables at {new_addr:#x}")
    mm.total_vm += new_len >> mm.layout.page_shift
    if old_len:
        # Without memory for a split the old range stays mapped, empty: the pages have moved, so the call succeeded.
        with contextlib.suppress(SyscallError):
            unmap_area(mm, addr, old_len)
    return new_addr


def _copy_vma(vma: vm_area_struct, addr: int, new_addr: int, length: int) -> vm_area_struct:
    """A vma for [new_addr, new_addr + length) that shows what ``vma`` shows from ``addr`` on."""
    mm = vma.vm_mm
    shift = mm.layout.page_shift
    pgoff = vma.vm_pgoff + ((addr - vma.vm_start) >> shift)
    if vma.vm_file is None and vma.anon_vma is None:
        pgoff = new_addr >> shift  # no page knows its old place yet: number it anew, so that it may merge
    _, prev = find_vma_prev(mm, new_addr)
    new_vma = vma_merge(
        mm,
        prev,
        new_addr,
        new_addr + length,
        vma.vm_flags,
        anon=vma.anon_vma,
        file=vma.vm_file,
        pgoff=pgoff,
    )
    if new_vma is None:
        new_vma = vma_copy(vma, mm)
        new_vma.vm_start, new_vma.vm_end, new_vma.vm_pgoff = new_addr, new_addr + length, pgoff
        vma_link(new_vma, prev)
    anon_vma_clone(new_vma, vma)  # a neighbour that took the range in may have had no page yet
    return new_vma
