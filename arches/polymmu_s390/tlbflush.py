"""Who forgets what: contexts, ptes, and the instructions that purge TLBs on every CPU at once.

TLB entries are tagged by where they come from, here by the origin of the root table in the designation that was
loaded; there are no address-space numbers, a switch flushes nothing, and a CPU that ever ran an mm stays in its
``cpu_mask``. Nothing interrupts another CPU: IPTE (one pte), IDTE (all that came through one designation, or one
segment) and CSP (everything) act on all CPUs of the machine; PTLB on the one that executes it.

A valid entry that a CPU may use must not be changed by a plain store. So ptes go by IPTE, after which no flush is
due and a gather may free their pages at once. Only where no other CPU can be using the mm (it is loaded nowhere but
here) is a plain store allowed; ``flush_mm`` then remembers that a flush is owed, which flush_tlb_mm, flush_tlb_range
or the next switch pays (Linux 2.6.37 to 3.0). A whole mm that goes is flushed first and then taken apart by plain
stores. Without IDTE (31 bits) an mm that ran on one CPU alone costs a PTLB, any other a CSP.
"""

from __future__ import annotations

import attrs
import numpy as np

from polymmu.arch import (
    ArchKernel,
    Cpu,
    EntryRun,
    defaults,
    hookimpl,
    mm_struct,
    mmu_gather,
    shared,
    vm_area_struct,
)
from polymmu_s390.dat import ENTRY_INVALID, PROTECT, PTE_INVALID
from polymmu_s390.formats import designation


@attrs.define(eq=False)
class Context:
    """An mm's. ``attach_count``: CPUs that have it loaded. ``flush_mm``: a flush is owed. ``pgtable_list``:
    frames with a page-table fragment to give (``tables``)."""

    attach_count: int = attrs.field(default=0, metadata=shared(shootdown=True))
    flush_mm: bool = attrs.field(default=False, metadata=shared(shootdown=True))
    pgtable_list: list[int] = attrs.field(factory=list[int])


def context_of(mm: mm_struct) -> Context:
    """``mm``'s own state."""
    context: Context = mm.context
    return context


def tag_of(mm: mm_struct) -> int:
    """What TLB entries of ``mm`` are tagged with: its root's place in pages."""
    return mm.pgd >> mm.layout.page_shift


def load(cpu: Cpu, mm: mm_struct) -> None:
    """Put ``mm``'s designation into the control register."""
    cpu.load_root(designation(mm.pgd, mm.layout), asid=tag_of(mm), space=mm.serial)


@hookimpl
def switch_mm(cpu: Cpu, prev: mm_struct | None, following: mm_struct) -> None:
    """Load the new designation; pay what the mm owes."""
    sched = following.kernel.sched
    sched.atomic()
    following.cpu_mask |= 1 << cpu.index
    load(cpu, following)
    if prev is not None:
        sched.atomic()
        context_of(prev).attach_count -= 1
    sched.atomic()
    context_of(following).attach_count += 1
    flush_tlb_mm(following)


# ------------------------------------------------------------------ instructions
def everywhere(
    mm: mm_struct, cost: int, start: int | None = None, end: int | None = None, *, caches: str
) -> None:
    """One or more of the instructions that act on all CPUs, which cost ``cost`` cycles together: IPTE where
    ``caches`` is ``none``, else IDTE, or the CSP that must do for it."""
    kernel: ArchKernel = mm.kernel
    asid: int | None = tag_of(mm)
    if caches != "none" and not kernel.description.section.has_idte:
        asid, start, end, caches = None, None, None, "all"
    for cpu in kernel.cpus:
        cpu.invalidate(asid=asid, start=start, end=end, walk_caches=caches)
    kernel.sched.spend(cost, "flush")
    kernel.events.shootdown(mm, "broadcast", len(kernel.cpus) - 1)


def ipte(mm: mm_struct, addr: int, old: EntryRun) -> None:
    """IPTE for each of a run of ptes from ``addr`` on that was valid; the run has been emptied.

    Region and segment entries that lead to the table stay cached.
    """
    kernel: ArchKernel = mm.kernel
    valid = np.flatnonzero(old & np.uint64(PTE_INVALID) == 0)
    if len(valid):
        shift = mm.layout.page_shift
        start, end = addr + (int(valid[0]) << shift), addr + (int(valid[-1]) + 1 << shift)
        cost = kernel.description.costs.flush_page * len(valid)
        everywhere(mm, cost, start, end, caches="none")


def flush(mm: mm_struct) -> None:
    """Forget all of ``mm`` wherever it ran."""
    kernel: ArchKernel = mm.kernel
    cpu, cost = kernel.sched.cpu, kernel.description.costs.flush_all
    context_of(mm).flush_mm = False
    if not mm.cpu_mask:
        return
    if kernel.description.section.has_idte or mm.cpu_mask != 1 << cpu.index:
        everywhere(mm, cost, caches="asid")
    else:
        cpu.invalidate(asid=None, walk_caches="all")
        kernel.sched.spend(cost, "flush")
        kernel.events.shootdown(mm, "local", 0)


@hookimpl
def flush_tlb_mm(mm: mm_struct) -> None:
    """Only where ptes were changed by plain stores since the last flush."""
    if context_of(mm).flush_mm:
        flush(mm)


@hookimpl
def flush_tlb_range(vma: vm_area_struct) -> None:
    flush_tlb_mm(vma.vm_mm)


@hookimpl
def flush_tlb_page(vma: vm_area_struct) -> None:
    """IPTE did it."""


# ------------------------------------------------------------------ gather
@hookimpl
def tlb_gather(tlb: mmu_gather) -> None:
    tlb.fast_mode = True
    tlb.table_limit = 508  # its own gather, 2.6.24 to 2.6.39; in 3.0 the generic list, from 3.4 its own again
    tlb.arch = tlb.fullmm  # whether all is flushed already
    if tlb.arch:
        flush(tlb.mm)


@hookimpl
def tlb_flush(tlb: mmu_gather) -> None:
    """IPTE saw to the ptes. What leads to unhooked tables may still be cached."""
    if not tlb.arch and tlb.freed_tables:
        flush(tlb.mm)


# ------------------------------------------------------------------ entries
@hookimpl
def ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, n: int, tlb: mmu_gather | None) -> EntryRun:
    old = defaults.ptep_get_and_clear(mm, addr, ptep, n, tlb)
    if tlb is None:
        changed(mm, addr, old)
    elif not tlb.arch:
        ipte(mm, addr, old)
    return old


def changed(mm: mm_struct, addr: int, old: EntryRun) -> None:
    """The ptes ``old`` were taken out, and the caller will flush: IPTE, unless nobody else can use them."""
    kernel: ArchKernel = mm.kernel
    context = context_of(mm)
    if (old & np.uint64(PTE_INVALID) == 0).any():
        context.flush_mm = True
        if kernel.active_mm[kernel.sched.cpu.index] is not mm or context.attach_count > 1:
            ipte(mm, addr, old)


@hookimpl
def ptep_clear_flush(vma: vm_area_struct, addr: int, ptep: int, n: int) -> EntryRun:
    old = defaults.ptep_get_and_clear(vma.vm_mm, addr, ptep, n, None)
    ipte(vma.vm_mm, addr, old)
    return old


@hookimpl
def set_wrprotect(mm: mm_struct, addr: int, ptep: int, n: int) -> None:
    """Those that can be written leave the TLBs before they are set again."""
    old = defaults.ptep_get_and_clear(mm, addr, ptep, n, None)
    is_writable = old & np.uint64(PTE_INVALID | PROTECT) == 0
    changed(mm, addr, np.where(is_writable, old, np.uint64(PTE_INVALID)))
    defaults.set_pte(mm, addr, ptep, np.where(is_writable, old | np.uint64(PROTECT), old))


@hookimpl
def set_access_flags(vma: vm_area_struct, addr: int, ptep: int, value: int) -> bool:
    kernel: ArchKernel = vma.vm_mm.kernel
    if kernel.ram.read_entry(ptep, vma.vm_mm.layout.entry_bytes[-1], "big") == value:
        return False
    ptep_clear_flush(vma, addr, ptep, 1)
    defaults.set_pte(vma.vm_mm, addr, ptep, np.array((value,), dtype=np.uint64))
    return True


@hookimpl
def set_huge_pte(mm: mm_struct, addr: int, ptep: int, value: int, size: int) -> None:
    huge_ptep_get_and_clear(mm, addr, ptep, size)
    defaults.set_huge_pte(mm, addr, ptep, value, size)


@hookimpl
def huge_ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, size: int) -> int:
    """IDTE for a segment that was valid."""
    kernel: ArchKernel = mm.kernel
    old = defaults.huge_ptep_get_and_clear(mm, addr, ptep, size)
    if not old & ENTRY_INVALID:
        everywhere(mm, kernel.description.costs.flush_page, addr, addr + size, caches="path")
    return old
