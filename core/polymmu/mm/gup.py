"""get_user_pages for one page: hold the frame behind a user address, if possible without any lock (A8.1).

The fast walk reads each entry once, from the root down, while nothing keeps others from changing them. The arch says
what keeps *tables* from being freed meanwhile (``gup_fast_begin``: interrupts off, which a flush by interrupts or a
grace period waits for). Nothing keeps a *page* from being freed where flushes interrupt nobody: so its count is
raised only if it is not zero, and then the entry is read again; if it changed, the page may be anybody's by now.
Whatever is unusual, or would need a fault, is left to the slow walk, below mmap_lock.

A huge page is taken where its entry is, and held by its first frame (``compound_head``).

A debugger may store where the program may not (``force``): into a private copy, never into the page that others see.
The slow walk makes that copy by a fault, and then looks again, for the copy may have gone by then; it must not be
content with what it could read (Linux 4.9; CVE-2016-5195). ``GetUserPages`` has the steps that were once otherwise.

First reading: ``get_user_pages_fast``, ``_walk``; then ``get_user_pages``.
"""

from __future__ import annotations

import errno

from polymmu.errors import syscall_error
from polymmu.hardware.entry import EntryFormat
from polymmu.hardware.ram import NONZERO
from polymmu.hooks import ArchKernel
from polymmu.mm.access import vma_allowing
from polymmu.mm.fault import serve_fault
from polymmu.mm.frames import compound_head, get_page, get_page_unless_zero, put_compound_page
from polymmu.mm.tables import find_entry, pfn_of, pte_lock, pte_unlock, read_entry, read_pte
from polymmu.mm.variant import Variant
from polymmu.structs import (
    PG_ANON,
    PG_DIRTY,
    VM_PFNMAP,
    VM_SHARED,
    FaultInfo,
    mm_struct,
    vm_area_struct,
)

__all__ = ["GetUserPages", "access_remote_vm", "get_user_pages", "get_user_pages_fast"]


class GetUserPages(Variant):
    """A page to be stored to is one until it is held; what was read without a lock is read again."""

    since = "4.9"
    wrong = ""

    def still_writes(self, vma: vm_area_struct, kind: str) -> bool:
        """After a fault of ``kind`` was served for a store: whether the page looked for must still allow stores."""
        return True

    def rereads(self) -> bool:
        """Whether a frame held by the fast walk is let go again where its entry has changed."""
        return True


def strategy_of(kernel: ArchKernel) -> GetUserPages:
    """The machine's."""
    strategy: GetUserPages = kernel.variants.gup
    return strategy


def get_user_pages_fast(mm: mm_struct, addr: int, write: bool = False) -> int:
    """The frame that ``addr`` of ``mm`` maps, held until ``frames.put_compound_page``. Brought in where it is absent.

    ``write``: for storing to, so never a page that would have to be copied first. Raises SegmentationFault where a
    program would get one, SyscallError(EFAULT) for memory that has no page frames. May sleep.
    """
    kernel: ArchKernel = mm.kernel
    cpu = kernel.sched.cpu
    runs_it = kernel.active_mm[cpu.index] is mm and not kernel.lazy >> cpu.index & 1
    if runs_it and kernel.ops.gup_fast_begin(cpu, mm):
        pfn = _walk(mm, addr, write)
        kernel.ops.gup_fast_end(cpu, mm)
        if pfn >= 0:
            return pfn
    return get_user_pages(mm, addr, write)


# ------------------------------------------------------------------ without a lock
def _walk(mm: mm_struct, addr: int, write: bool) -> int:
    """The frame of ``addr`` with a reference, or -1 where the slow walk must look. No lock is held or taken."""
    kernel: ArchKernel = mm.kernel
    layout, table = mm.layout, mm.pgd  # one look: an arch may put a root above this one meanwhile
    if not 0 <= addr < mm.task_size:
        return -1
    for level in range(layout.levels):
        entry = layout.entry_address(level, table, addr)
        rank = level - layout.levels
        format = kernel.shape.formats[rank]
        value = _read(mm, rank, entry)
        if level == layout.pte_level:
            return _take(mm, rank, entry, value, format, addr & -layout.page_size, addr, write)
        if value == format.empty:
            _tell(mm, rank, entry, -1)
            return -1
        huge = kernel.shape.huge_formats.get(layout.span_of(level)) if value & format.leaf_mask else None
        if huge is not None:
            return _take(mm, rank, entry, value, huge, addr & -layout.span_of(level), addr, write)
        table = format.table_of(value)
        if value != format.of_table(table):
            _tell(mm, rank, entry, -1)
            return _walk_huge(mm, addr, write)
        _tell(mm, rank, entry, table)
    raise AssertionError("a walk passed the ptes")


def _walk_huge(mm: mm_struct, addr: int, write: bool) -> int:
    """The huge page of ``addr`` where its entry is in no table that the core knows."""
    kernel: ArchKernel = mm.kernel
    for size in kernel.shape.huge_page_sizes:
        entry = kernel.ops.huge_pte_offset(mm, addr & -size, size)
        if entry >= 0:
            value, format = _read(mm, -1, entry), kernel.shape.huge_formats[size]
            pfn = _take(mm, -1, entry, value, format, addr & -size, addr, write)
            if pfn >= 0:
                return pfn
    return -1


def _read(mm: mm_struct, rank: int, entry: int) -> int:
    """One entry of the level ``rank`` (-1: the ptes'), once memory has answered; others go on meanwhile."""
    kernel: ArchKernel = mm.kernel
    kernel.sched.spend(kernel.description.costs.walk_reference, "gup_fast")
    kernel.sched.point("read", entry)
    return read_entry(mm, rank, entry)


def _tell(mm: mm_struct, rank: int, entry: int, table: int) -> None:
    kernel: ArchKernel = mm.kernel
    kernel.events.lockless_read(mm, kernel.sched.cpu.index, rank, entry, table)


def _take(
    mm: mm_struct, rank: int, entry: int, value: int, format: EntryFormat, page: int, addr: int, write: bool
) -> int:
    """Hold the frame of ``addr`` in the page at ``page`` that ``value``, read at ``entry``, maps; or -1.

    Not if it is not there any more once it is held.
    """
    kernel: ArchKernel = mm.kernel
    _tell(mm, rank, entry, -1)
    if not _allows(format, value, write):
        return -1
    pfn = format.frame_of(value) + addr - page >> mm.layout.page_shift
    if pfn >= kernel.frames.count:
        return -1
    kernel.sched.point("write", ("frame", pfn))
    if not get_page_unless_zero(kernel, pfn):
        return -1
    if strategy_of(kernel).rereads():
        again = _read(mm, rank, entry)
        _tell(mm, rank, entry, -1)
        if again != value:
            put_compound_page(kernel, pfn)
            return -1
    kernel.events.page_pinned(mm, kernel.sched.cpu.index, rank, entry, pfn)
    return pfn


def _allows(format: EntryFormat, value: int, write: bool) -> bool:
    return (
        format.present.test(value)
        and not (format.prot_none is not None and format.prot_none.test(value))
        and not (format.special is not None and format.special.test(value))
        and format.user.test(value)
        and format.read.test(value)
        and (not write or format.write.test(value))
    )


# ------------------------------------------------------------------ below mmap_lock
def get_user_pages(mm: mm_struct, addr: int, write: bool = False, force: bool = False) -> int:
    """As ``get_user_pages_fast`` for any mm, always with mmap_lock.

    ``force``: to be stored to although the program may not, which is a private copy then (Linux: FOLL_FORCE).
    """
    kernel: ArchKernel = mm.kernel
    mm.mmap_lock.down_read()
    try:
        while True:
            vma = _vma_for(mm, addr, write, force)
            if vma.vm_flags & VM_PFNMAP:
                raise syscall_error(errno.EFAULT, f"{addr:#x} is a device's memory, without page frames")
            pfn = _follow_page(vma, addr, write, force)
            if pfn >= 0:
                return pfn
            kind, n = serve_fault(vma, addr, "store" if write else "load")
            kernel.events.fault(mm, addr, "minor" if kind == "anonymous" else kind, n)
            write = write and strategy_of(kernel).still_writes(vma, kind)
    finally:
        mm.mmap_lock.up_read()


def _vma_for(mm: mm_struct, addr: int, write: bool, force: bool) -> vm_area_struct:
    """The vma that allows it, or the private one that a debugger may store to all the same."""
    if write and force:
        vma = vma_allowing(mm, addr, FaultInfo(access="load", kind="not_present", user=True))
        if not vma.vm_flags & VM_SHARED and not vma.huge_size:
            return vma
    return vma_allowing(
        mm, addr, FaultInfo(access="store" if write else "load", kind="not_present", user=True)
    )


def _follow_page(vma: vm_area_struct, addr: int, write: bool, force: bool) -> int:
    """The frame of ``addr`` with a reference, or -1 where a fault is due. The caller holds mmap_lock."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    size = vma.huge_size
    format = kernel.shape.huge_formats[size] if size else kernel.shape.pte
    page = addr & -(size or mm.layout.page_size)
    ptep = kernel.ops.huge_pte_offset(mm, page, size) if size else find_entry(mm, page)
    if ptep < 0:
        return -1
    pfn = -1
    if size:
        mm.page_table_lock.lock()
    else:
        pte_lock(mm, ptep)
    value = read_pte(mm, ptep)
    if _allows(format, value, write) or (force and _is_own_copy(vma, value)):
        pfn = format.frame_of(value) + addr - page >> mm.layout.page_shift
        get_page(kernel, compound_head(kernel, pfn))
    if size:
        mm.page_table_lock.unlock()
    else:
        pte_unlock(mm, ptep)
    return pfn


def _is_own_copy(vma: vm_area_struct, value: int) -> bool:
    """Whether a pte maps a page that nobody else maps, so that a store to it is seen by this program alone.

    A pte without the write right may do so: that of a private copy in a mapping that is not writable.
    """
    kernel: ArchKernel = vma.vm_mm.kernel
    if vma.huge_size or not _allows(kernel.shape.pte, value, False):
        return False
    pfn = pfn_of(kernel.shape, value)
    return bool(kernel.frames.flags[pfn] & PG_ANON) and kernel.frames.mapcount[pfn] == 1


def access_remote_vm(mm: mm_struct, addr: int, data: bytes) -> None:
    """Store ``data``, in one page, at ``addr`` as a debugger does: into a private copy where the program may not store.

    Raises as ``get_user_pages``. May sleep.
    """
    kernel: ArchKernel = mm.kernel
    pfn = get_user_pages(mm, addr, write=True, force=True)
    kernel.events.page_stored(mm, addr, pfn)
    kernel.ram.write((pfn << mm.layout.page_shift) + addr % mm.layout.page_size, data)
    kernel.frames.flags[pfn] |= PG_DIRTY | NONZERO
    put_compound_page(kernel, compound_head(kernel, pfn))
