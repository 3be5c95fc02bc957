"""Every pte update tells the hash table, and every entry taken out of that is followed by tlbie.

There is no flush of ranges or of whole address spaces: whatever changes a pte that the hash table may know queues
it (Linux: hpte_need_flush), so by the time Linux's generic code asks for a flush it has happened. In lazy mode a
CPU collects up to 192 updates of one mm and page size and does them on leaving, under the table lock; outside it
each is done at once, and its tlbie goes to all CPUs. The entry is invalidated only if it still stands at the slot
that the pte remembers; the tlbie is sent in any case, for an entry that was thrown out of the table may live on in
a TLB. A batch of an mm that only ever ran here needs but tlbiel.

Linux 2.6.22 to 3.0 (``tlb_hash64.c``), also with the tables of 2.6.12, whose batches were flushed by flush_tlb_*.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polymmu.arch import (
    VM_HUGETLB,
    ArchKernel,
    EntryRun,
    hookimpl,
    mm_struct,
    mmu_gather,
    vm_area_struct,
)
from polymmu_ppc64 import mmu
from polymmu_ppc64.context import BATCH, Batch, Context, section_of, state_of
from polymmu_ppc64.formats import ACCESSED, DIRTY, EXEC, PRESENT, RW, hash_flags, hashed_bit

Addresses = NDArray[np.int64]


# ------------------------------------------------------------------ hash table and TLBs
def tlbie(mm: mm_struct, addresses: Addresses, page_shift: int, local: bool) -> None:
    """Drop pages from this CPU's TLB and ERATs (tlbiel), or from every CPU's."""
    kernel: ArchKernel = mm.kernel
    context: Context = mm.context
    cuts = np.flatnonzero(np.diff(addresses) != 1 << page_shift) + 1
    ranges = [(int(run[0]), int(run[-1]) + (1 << page_shift)) for run in np.split(addresses, cuts)]
    cpus = (kernel.sched.cpu,) if local else kernel.cpus
    for cpu in cpus:
        for start, end in ranges:
            cpu.invalidate(asid=context.number, start=start, end=end, walk_caches="none")
    kernel.sched.spend(kernel.description.costs.flush_page * len(addresses), "flush")
    kernel.events.shootdown(mm, "local" if local else "broadcast", len(cpus) - 1)


def flush_hash(mm: mm_struct, addresses: Addresses, ptes: Addresses, page_shift: int, local: bool) -> None:
    """Take the entries that old ptes remember out of the hash table, then out of the TLBs."""
    kernel: ArchKernel = mm.kernel
    context: Context = mm.context
    mmu.drop_hptes(kernel.sched.cpu.mmu, kernel.ram.words, context.number, addresses, ptes, page_shift)
    tlbie(mm, addresses, page_shift, local)


def batch_of(mm: mm_struct) -> Batch:
    """The current CPU's."""
    kernel: ArchKernel = mm.kernel
    return state_of(kernel).batches[kernel.sched.cpu.index]


def flush_pending(batch: Batch) -> None:
    """Do what a batch has collected."""
    mm, nr = batch.mm, batch.nr
    if mm is None or not nr:
        return
    batch.nr = 0
    kernel: ArchKernel = mm.kernel
    local = mm.cpu_mask == 1 << kernel.sched.cpu.index
    flush_hash(mm, batch.addresses[:nr], batch.ptes[:nr], batch.page_shift, local)


def need_flush(mm: mm_struct, addresses: Addresses, ptes: Addresses, page_shift: int) -> None:
    """Hashed ptes were changed: their entries must go, at once or with the batch."""
    batch = batch_of(mm)
    if not batch.active:
        flush_hash(mm, addresses, ptes, page_shift, False)
        return
    if batch.mm is not mm or batch.page_shift != page_shift:
        flush_pending(batch)
        batch.mm, batch.page_shift = mm, page_shift
    while len(addresses):
        room = min(BATCH - batch.nr, len(addresses))
        batch.addresses[batch.nr : batch.nr + room] = addresses[:room]
        batch.ptes[batch.nr : batch.nr + room] = ptes[:room]
        batch.nr += room
        addresses, ptes = addresses[room:], ptes[room:]
        if batch.nr == BATCH:
            flush_pending(batch)


@hookimpl
def enter_lazy_mmu(mm: mm_struct) -> None:
    batch_of(mm).active = True


@hookimpl
def leave_lazy_mmu(mm: mm_struct) -> None:
    batch = batch_of(mm)
    flush_pending(batch)
    batch.active = False


@hookimpl
def tlb_flush(tlb: mmu_gather) -> None:
    flush_pending(batch_of(tlb.mm))


@hookimpl
def flush_tlb_mm(mm: mm_struct) -> None:
    """The pte updates did it."""


@hookimpl
def flush_tlb_range(vma: vm_area_struct, start: int, end: int) -> None:
    """The pte updates did it."""


@hookimpl
def flush_tlb_page(vma: vm_area_struct, addr: int) -> None:
    """The pte updates did it."""


# ------------------------------------------------------------------ ptes
def words_at(mm: mm_struct, ptep: int, n: int) -> NDArray[np.uint64]:
    """A run of ptes as it stands in memory: big-endian, seen by a little-endian host."""
    kernel: ArchKernel = mm.kernel
    return kernel.ram.u64[ptep >> 3 : (ptep >> 3) + n]


def forget_hashed(mm: mm_struct, addr: int, old: EntryRun) -> None:
    """Those of the run's old values that the hash table may know leave it."""
    hashed = np.flatnonzero(old & np.uint64(hashed_bit(section_of(mm))))
    if len(hashed):
        shift = mm.layout.page_shift
        need_flush(mm, addr + (hashed << shift), old[hashed].view(np.int64), shift)


@hookimpl
def set_pte(mm: mm_struct, addr: int, ptep: int, values: EntryRun) -> None:
    """What a value says of the hash table is another entry's; a hashed entry that is replaced is flushed first."""
    words = words_at(mm, ptep, len(values))
    forget_hashed(mm, addr, words.byteswap())
    words[:] = (values & np.uint64(~hash_flags(section_of(mm)) & (1 << 64) - 1)).byteswap()


@hookimpl
def ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, n: int, tlb: mmu_gather | None) -> EntryRun:
    words = words_at(mm, ptep, n)
    old: EntryRun = words.byteswap()
    words[:] = 0
    forget_hashed(mm, addr, old)
    old &= np.uint64(~hash_flags(section_of(mm)) & (1 << 64) - 1)
    return old


def clear_bits(mm: mm_struct, addr: int, ptep: int, n: int, bits: int) -> int:
    """Take ``bits`` from the present ptes of a run that have one of them; how many. The slots stay remembered."""
    words = words_at(mm, ptep, n)
    old: EntryRun = words.byteswap()
    change = (old & np.uint64(PRESENT) != 0) & (old & np.uint64(bits) != 0)
    words[change] = (old[change] & np.uint64(~bits & (1 << 64) - 1)).byteswap()
    forget_hashed(mm, addr, np.where(change, old, np.uint64(0)))
    return int(np.count_nonzero(change))


@hookimpl
def set_wrprotect(mm: mm_struct, addr: int, ptep: int, n: int) -> None:
    clear_bits(mm, addr, ptep, n, RW)


@hookimpl
def test_and_clear_young(vma: vm_area_struct, addr: int, ptep: int, n: int) -> int:
    """The entry must go too: only a hash fault sets accessed again."""
    return clear_bits(vma.vm_mm, addr, ptep, n, ACCESSED)


@hookimpl
def set_access_flags(vma: vm_area_struct, addr: int, ptep: int, value: int) -> bool:
    """No flush: at the retry the hash fault handler, or the preload before it, changes the entry and sends tlbie."""
    kernel: ArchKernel = vma.vm_mm.kernel
    old = kernel.ram.read_entry(ptep, 8, "big")
    new = old | value & (DIRTY | ACCESSED | RW | EXEC)
    if new == old:
        return False
    kernel.ram.write_entry(ptep, 8, "big", new)
    return True


@hookimpl
def update_mmu_cache(vma: vm_area_struct, addr: int, ptep: int, n: int) -> None:
    """Enter the pages that a fault brought into the hash table now, which saves the retry its hash fault."""
    if vma.vm_flags & VM_HUGETLB:
        return
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    context: Context = mm.context
    shift = mm.layout.page_shift
    kernel.sched.spend(kernel.description.costs.entry_update * n, "hash")
    if mmu.preload(kernel.sched.cpu.mmu, kernel.ram.words, context.number, addr, ptep, n, shift):
        tlbie(mm, addr + (np.arange(n, dtype=np.int64) << shift), shift, False)


@hookimpl
def tables_need_rcu() -> bool:
    """tlbie interrupts nobody: hash faults and lockless walkers read tables with interrupts off and no lock."""
    return True
