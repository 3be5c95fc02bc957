"""What happens at a page fault: bring the page, enter it, let the access retry. ``mm.access`` says who may.

A fault never fills the TLB; hardware does when the access is retried. Everything that may sleep (tables, pages,
reading a file) happens before the table lock is taken, and the entry is looked at again below it: another CPU may
have been here first, and then our page goes back (A7.6).

A fault in anonymous memory may be handed further first touches that lie ahead (``upcoming``); they are mapped at
once, in the order in which they will come, with the frames that one fault each would have brought.

First reading: ``handle_mm_fault``, ``_anonymous_fault``; skip ``map_anonymous``, which does the same for many.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from polymmu.errors import SegmentationFault, SyscallError, syscall_error
from polymmu.hardware.ram import MAPCOUNT, NONZERO
from polymmu.hooks import ArchKernel
from polymmu.mm.access import vma_allowing
from polymmu.mm.anon_vma import page_add_anon_rmap, page_add_anon_rmaps
from polymmu.mm.frames import (
    alloc_page,
    alloc_run,
    get_page,
    lru_cache_add,
    lru_cache_add_run,
    put_page,
)
from polymmu.mm.hugetlb import hugetlb_fault, populate_huge
from polymmu.mm.notifier import (
    mmu_notifier_invalidate_range,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from polymmu.mm.pagecache import find_or_read_page
from polymmu.mm.recheck import recheck_of
from polymmu.mm.swap import do_swap_page, reuse_swap_page
from polymmu.mm.tables import (
    alloc_entry,
    enter_pte,
    entries_spanned,
    pfn_of,
    pte_lock,
    pte_unlock,
    read_pte,
    read_ptes,
)
from polymmu.mm.vma import VM_RIGHTS, anon_vma_prepare, linear_index
from polymmu.structs import (
    PG_ANON,
    PG_DIRTY,
    PG_RESERVED,
    VM_NONLINEAR,
    VM_PFNMAP,
    VM_SHARED,
    VM_WRITE,
    EntryRun,
    FaultInfo,
    mm_struct,
    vm_area_struct,
)

__all__ = ["Upcoming", "handle_mm_fault", "map_anonymous", "populate", "serve_fault"]

Upcoming = Callable[[int, int, int], NDArray[np.uint64]]
"""``upcoming(lo, hi, limit)``: page addresses in [lo, hi) that will be touched first, the same way, in this order."""

AHEAD = 1024
"""First touches asked for at one fault: two tables of 512, beyond which nothing is gained."""

RUN_PAYS = 4
"""From so many pages of one table on, mapping them as a run is quicker than one by one."""


def handle_mm_fault(
    kernel: ArchKernel, mm: mm_struct, addr: int, info: FaultInfo, upcoming: Upcoming | None = None
) -> None:
    """Serve a fault of ``mm`` at ``addr``; on return the access may be retried.

    The caller has spent the cost of entering the kernel; each page mapped ahead costs as much again, as the
    fault that it spares would have. Raises SegmentationFault where the program may not do this, and
    SyscallError(ENOMEM) where no memory is left.
    """
    access = info.access
    mm.mmap_lock.down_read()
    try:
        vma = vma_allowing(mm, addr, info)
        kind, n = serve_fault(vma, addr, access)
        if upcoming is not None and kind == "anonymous":
            pages = upcoming(vma.vm_start, vma.vm_end, AHEAD)
            if len(pages):
                n += map_anonymous(vma, pages, access == "store")
    except SegmentationFault:
        kernel.events.fault(mm, addr, "segv", 1)
        raise
    finally:
        mm.mmap_lock.up_read()
    if n > 1:
        kernel.sched.spend(kernel.description.costs.fault * (n - 1), "fault")
    kernel.events.fault(mm, addr, "minor" if kind == "anonymous" else kind, n)


def serve_fault(vma: vm_area_struct, addr: int, access: str) -> tuple[str, int]:
    """Bring the page at ``addr`` of ``vma``, which allows the access. (What kind of fault it was, 1).

    The caller holds mmap_lock, and looks again afterwards: others may have undone it.
    """
    if vma.huge_size:
        return hugetlb_fault(vma, addr, access), 1
    mm = vma.vm_mm
    return _handle_pte_fault(mm.kernel, vma, addr & -mm.layout.page_size, access, addr)


# ------------------------------------------------------------------ one page
def _handle_pte_fault(
    kernel: ArchKernel, vma: vm_area_struct, page: int, access: str, addr: int
) -> tuple[str, int]:
    """Bring the page at ``page``. (What kind of fault it was, 1)."""
    mm = vma.vm_mm
    ptep = alloc_entry(mm, page)
    if ptep < 0:
        raise _out_of_memory("a page table")
    pte = kernel.shape.pte
    value = read_pte(mm, ptep)
    if value == pte.empty:
        if vma.vm_flags & VM_PFNMAP:
            raise SegmentationFault(addr, access, "the driver mapped nothing here")
        if vma.vm_file is None:
            _anonymous_fault(kernel, vma, page, ptep, access == "store")
            return "anonymous", 1
        _file_fault(kernel, vma, page, ptep, access, addr, value)
        return "minor", 1
    if not pte.is_mapped(value):
        if pte.file is not None and pte.file.test(value):
            _file_fault(kernel, vma, page, ptep, access, addr, value)
            return "minor", 1
        return do_swap_page(vma, page, ptep, value, access == "store"), 1
    pte_lock(mm, ptep)
    if read_pte(mm, ptep) != value:  # it changed before we had the lock: look again at the retry
        pte_unlock(mm, ptep)
        return "minor", 1
    if access == "store" and not pte.write.test(value):
        return _do_wp_page(kernel, vma, page, ptep, value), 1
    raised = _young(kernel, value)
    if access == "store":
        raised = _dirty(kernel, raised)
    if kernel.ops.set_access_flags(vma, page, ptep, raised):
        kernel.ops.update_mmu_cache(vma, page, ptep, 1)
    else:
        # The entry allows it already: this CPU acted on an older one (A7.6, access flags).
        kernel.ops.flush_tlb_page(vma, page)
    pte_unlock(mm, ptep)
    return "protection", 1


def _anonymous_fault(kernel: ArchKernel, vma: vm_area_struct, page: int, ptep: int, write: bool) -> None:
    """First touch of private anonymous memory: a store gets a zeroed page, anything else the zero page."""
    mm = vma.vm_mm
    free = kernel.free
    if write:
        if vma.anon_vma is None:
            anon_vma_prepare(vma)
        pfn = alloc_page(kernel, "anon")
        if pfn < 0:
            raise _out_of_memory("a page")
        kernel.sched.spend(kernel.description.costs.page_clear, "page")
    else:
        pfn = free.zero_page
    pte_lock(mm, ptep)
    if read_pte(mm, ptep) != kernel.shape.pte.empty:
        pte_unlock(mm, ptep)
        if write:
            put_page(kernel, pfn)
        return
    if write:
        _new_anon(kernel, vma, page, pfn)
    enter_pte(kernel, vma, page, ptep, pfn, write)
    pte_unlock(mm, ptep)


def _file_fault(
    kernel: ArchKernel, vma: vm_area_struct, page: int, ptep: int, access: str, addr: int, was: int
) -> None:
    """First touch of a page of a mapped file: the cached page itself, or a private copy for a private store.

    ``was``: what stands in the pte, nothing or which page of the file it is.
    """
    mm = vma.vm_mm
    file = vma.vm_file
    assert file is not None
    page_size = mm.layout.page_size
    frames = kernel.frames
    recheck = recheck_of(kernel)
    write = access == "store"
    private = write and not vma.vm_flags & VM_SHARED
    if private and vma.anon_vma is None:
        anon_vma_prepare(vma)
    index = linear_index(vma, page)
    if was != kernel.shape.pte.empty:
        file_pte = kernel.shape.pte.file
        if file_pte is None or not vma.vm_flags & VM_NONLINEAR:
            raise AssertionError(f"file pte {was:#x} at {page:#x}, where pages are in the file's order")
        (index,) = file_pte.split(was)
    while True:
        begun = recheck.begin(file)
        if index * page_size >= file.size:
            raise SegmentationFault(addr, access, "beyond the end of the file")
        cached = find_or_read_page(kernel, file, index)
        if cached < 0:
            raise _out_of_memory("a page of a file")
        if not recheck.is_wanted(file, index):
            put_page(kernel, cached)
            continue
        pfn = _copy_of(kernel, cached) if private else cached
        if pfn < 0:
            put_page(kernel, cached)
            raise _out_of_memory("a private copy")
        pte_lock(mm, ptep)
        filled = read_pte(mm, ptep) != was
        ours = not filled and recheck.may_map(file, index, cached, private, begun)
        if ours:
            if private:
                _new_anon(kernel, vma, page, pfn)
            else:
                frames.mapcount[pfn] += 1
                mm.file_rss += 1
                if write:
                    frames.flags[pfn] |= PG_DIRTY
            enter_pte(kernel, vma, page, ptep, pfn, write)
        pte_unlock(mm, ptep)
        if private:
            put_page(kernel, cached)
        if not ours:
            put_page(kernel, pfn)
        if ours or filled:
            return


def _do_wp_page(kernel: ArchKernel, vma: vm_area_struct, page: int, ptep: int, value: int) -> str:
    """A store to a present page without the write right. Called with the table lock, which it drops.

    A shared page, or an anonymous one that nobody else maps, is made writable; any other is copied. The old
    entry leaves every TLB before the new one is set, so that no two CPUs see two frames (A7.6).
    """
    mm = vma.vm_mm
    ops = kernel.ops
    frames = kernel.frames
    old = pfn_of(kernel.shape, value)
    old_flags = frames.flags[old] if old < frames.count else PG_RESERVED
    shared = vma.vm_flags & VM_SHARED
    if shared or (old_flags & PG_ANON and frames.mapcount[old] == 1 and reuse_swap_page(kernel, old)):
        if shared and not old_flags & PG_RESERVED:
            frames.flags[old] |= PG_DIRTY
        value = _dirty(kernel, _young(kernel, value))
        if vma.vm_flags & VM_WRITE:  # a debugger stores where the program may not
            value = kernel.shape.pte.write.set(value)
        ops.set_access_flags(vma, page, ptep, value)
        ops.update_mmu_cache(vma, page, ptep, 1)
        pte_unlock(mm, ptep)
        return "protection"
    counted = not old_flags & PG_RESERVED
    if counted:
        get_page(kernel, old)
    pte_unlock(mm, ptep)
    try:
        if vma.anon_vma is None:
            anon_vma_prepare(vma)
        new = _copy_of(kernel, old)
        if new < 0:
            raise _out_of_memory("a private copy")
    except SyscallError:
        if counted:
            put_page(kernel, old)
        raise
    end = page + mm.layout.page_size
    mmu_notifier_invalidate_range_start(mm, page, end)
    pte_lock(mm, ptep)
    if read_pte(mm, ptep) != value:  # somebody else copied it, or it is gone
        pte_unlock(mm, ptep)
        mmu_notifier_invalidate_range_end(mm, page, end)
        put_page(kernel, new)
        if counted:
            put_page(kernel, old)
        return "minor"
    kernel.events.entries_changed(mm, page, end, 1, "replace")
    ops.ptep_clear_flush(vma, page, ptep, 1)
    mmu_notifier_invalidate_range(mm, page, end)
    _new_anon(kernel, vma, page, new)
    enter_pte(kernel, vma, page, ptep, new, True)
    if counted:
        frames.mapcount[old] -= 1
        if old_flags & PG_ANON:
            mm.anon_rss -= 1
        else:
            mm.file_rss -= 1
    pte_unlock(mm, ptep)
    mmu_notifier_invalidate_range_end(mm, page, end)
    if counted:
        put_page(kernel, old)  # what the old pte held
        put_page(kernel, old)  # what we took above
    return "cow"


# ------------------------------------------------------------------ entries and pages
def _new_anon(kernel: ArchKernel, vma: vm_area_struct, page: int, pfn: int) -> None:
    """Account for the first mapping of a fresh page; the pte takes over the caller's reference."""
    frames = kernel.frames
    frames.mapcount[pfn] = 1
    page_add_anon_rmap(vma, page, pfn)
    vma.vm_mm.anon_rss += 1
    lru_cache_add(kernel, pfn)


def _young(kernel: ArchKernel, value: int) -> int:
    accessed = kernel.shape.pte.accessed
    return accessed.set(value) if accessed is not None else value


def _dirty(kernel: ArchKernel, value: int) -> int:
    dirty = kernel.shape.pte.dirty
    return dirty.set(value) if dirty is not None else value


def _copy_of(kernel: ArchKernel, source: int) -> int:
    """A new frame with the bytes of ``source``, or -1. Bytes move only where there are any. May sleep."""
    frames = kernel.frames
    filled = source >= frames.count or frames.flags[source] & NONZERO
    pfn = alloc_page(kernel, "anon", zero=not filled)
    if pfn >= 0:
        kernel.sched.spend(kernel.description.costs.page_clear, "page")
        if filled:
            size = kernel.shape.layout.page_size
            kernel.ram.write(pfn * size, kernel.ram.read(source * size, size))
            frames.flags[pfn] |= NONZERO
    return pfn


def _out_of_memory(what: str) -> Exception:
    return syscall_error(errno.ENOMEM, f"no frame left for {what}")


# ------------------------------------------------------------------ many pages
def map_anonymous(vma: vm_area_struct, pages: NDArray[np.uint64], write: bool) -> int:
    """Map first touches of anonymous memory, in the order given. How many, fewer where memory runs out.

    ``pages``: addresses of distinct pages of ``vma``; one that is mapped already is passed over. Tables and
    frames are taken in the order in which one fault each would take them.
    """
    mm = vma.vm_mm
    layout = mm.layout
    table_of = pages >> np.uint64(layout.shifts[layout.pmd_level])
    cuts = (np.flatnonzero(table_of[1:] != table_of[:-1]) + 1).tolist()
    mapped = 0
    for first, last in zip([0, *cuts], [*cuts, len(pages)], strict=True):
        map_them = _map_in_table if last - first >= RUN_PAYS else _map_each
        wanted, done = map_them(vma, pages[first:last], write)
        mapped += done
        if done < wanted:
            break
    return mapped


def _map_each(vma: vm_area_struct, pages: NDArray[np.uint64], write: bool) -> tuple[int, int]:
    """``_map_in_table`` one page at a time: for a few, quicker than setting up the work on whole runs."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    empty = kernel.shape.pte.empty
    wanted = 0
    for page in pages.tolist():
        ptep = alloc_entry(mm, page)
        if ptep < 0:
            return wanted + 1, wanted
        if read_pte(mm, ptep) == empty:
            wanted += 1
            try:
                _anonymous_fault(kernel, vma, page, ptep, write)
            except OSError:  # out of memory
                return wanted, wanted - 1
    return wanted, wanted


def _map_in_table(vma: vm_area_struct, pages: NDArray[np.uint64], write: bool) -> tuple[int, int]:
    """Map those of ``pages``, all of one pte table, that are not mapped. (How many there were, how many now are)."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    layout = mm.layout
    shift = layout.page_shift
    lowest = int(pages.min())
    ptep = alloc_entry(mm, lowest)
    if ptep < 0:
        return len(pages), 0
    if write and vma.anon_vma is None:
        try:
            anon_vma_prepare(vma)
        except SyscallError:  # out of memory
            return len(pages), 0
    span = entries_spanned(lowest, int(pages.max()) + layout.page_size, shift)
    slots = ((pages - np.uint64(lowest)) >> np.uint64(shift)).view(np.int64)
    empty = np.uint64(kernel.shape.pte.empty)
    before = read_ptes(mm, ptep, span)
    slots = slots[before[slots] == empty]
    wanted = len(slots)
    if not wanted:
        return 0, 0
    prot = vma.vm_page_prot
    if write:
        pfns = alloc_run(kernel, wanted, "anon")
        slots = slots[: len(pfns)]
        values = pfns.view(np.uint64) << np.uint64(kernel.shape.pfn_shift) | np.uint64(
            kernel.shape.stored[prot]
        )
        kernel.sched.spend(kernel.description.costs.page_clear * len(pfns), "page")
    else:
        pfns = np.empty(0, dtype=np.int64)
        values = np.full(wanted, kernel.free.zero_page << kernel.shape.pfn_shift | prot, dtype=np.uint64)
    pte_lock(mm, ptep)
    spare = pfns[:0]
    now = read_ptes(mm, ptep, span)
    if (now != before).any():
        still = now[slots] == empty
        spare, pfns = pfns[~still[: len(pfns)]], pfns[still[: len(pfns)]]
        slots, values = slots[still], values[still]
    if write:
        kernel.frames.table[MAPCOUNT][pfns] = 1
        page_add_anon_rmaps(vma, lowest, slots, pfns)
        mm.anon_rss += len(pfns)
        lru_cache_add_run(kernel, pfns)
    _enter_run(vma, lowest, ptep, slots, values)
    pte_unlock(mm, ptep)
    for pfn in spare.tolist():
        put_page(kernel, pfn)
    return wanted, len(slots)


def _enter_run(vma: vm_area_struct, base: int, ptep: int, slots: NDArray[np.int64], values: EntryRun) -> None:
    """Set ptes ``slots`` (counted from ``ptep``, which maps ``base``) to ``values``, each run at once."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    width, shift = mm.layout.entry_bytes[-1], mm.layout.page_shift
    if not len(slots):
        return
    steps = slots[1:] - slots[:-1]
    breaks = np.flatnonzero(steps != 1)
    if len(breaks) and (steps[breaks] < 0).any():
        order = np.argsort(slots)
        slots, values = slots[order], values[order]
        breaks = np.flatnonzero(slots[1:] - slots[:-1] != 1)
    cuts = (breaks + 1).tolist()
    for first, last in zip([0, *cuts], [*cuts, len(slots)], strict=True):
        slot = int(slots[first])
        addr, entry = base + (slot << shift), ptep + slot * width
        kernel.ops.set_pte(mm, addr, entry, values[first:last])
        kernel.ops.update_mmu_cache(vma, addr, entry, last - first)


def populate(vma: vm_area_struct, start: int, end: int) -> None:
    """Bring the pages of [start, end) of ``vma`` as MAP_POPULATE does: a store's page where it is private and
    writable. Stops without a word where memory runs out or the file ends. Counts as faults, costs no exception.
    """
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    flags = vma.vm_flags
    if not flags & VM_RIGHTS or flags & VM_PFNMAP:
        return
    write = flags & (VM_WRITE | VM_SHARED) == VM_WRITE
    layout = mm.layout
    page_size = layout.page_size
    span = layout.span_of(layout.pmd_level)
    file = vma.vm_file
    if file is not None:
        in_file = -(-file.size // page_size) - vma.vm_pgoff
        end = min(end, vma.vm_start + max(in_file, 0) * page_size)
    if vma.huge_size:
        populate_huge(vma, start, end)
        return
    while start < end:
        stop = min(end, (start | span - 1) + 1)
        pages = np.arange(start, stop, page_size, dtype=np.uint64)
        if file is None:
            wanted, done = _map_in_table(vma, pages, write)
        else:
            wanted, done = _populate_file(vma, pages.tolist(), write)
        if done:
            kernel.events.fault(mm, start, "minor", done)
        if done < wanted:
            return
        start = stop
        kernel.sched.cond_resched()


def _populate_file(vma: vm_area_struct, pages: list[int], write: bool) -> tuple[int, int]:
    """Bring pages of a mapped file one by one. (How many were missing before memory ran out, how many came)."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    done = 0
    for page in pages:
        ptep = alloc_entry(mm, page)
        if ptep < 0:
            return done + 1, done
        if read_pte(mm, ptep) == kernel.shape.pte.empty:
            try:
                _file_fault(
                    kernel, vma, page, ptep, "store" if write else "load", page, kernel.shape.pte.empty
                )
            except SyscallError:  # out of memory
                return done + 1, done
            done += 1
    return done, done
