"""What ppc64 keeps per machine, CPU and address space, and how pte updates reach the hash table and the TLBs.

A context is the number that VSIDs are made of: the lowest one free, as Linux's id allocator hands them out. It is
used again as soon as its mm is gone, which is sound because every hashed pte was flushed when it was cleared.

There is no flush of ranges or of whole address spaces: whatever changes a pte that the hash table may know queues
it (Linux: hpte_need_flush), so by the time Linux's generic code asks for a flush it has happened. In lazy mode a
CPU collects up to 192 updates of one mm and page size and does them on leaving, under the table lock; outside it
each is done at once, and its tlbie goes to all CPUs. The entry is invalidated only if it still stands at the slot
that the pte remembers; the tlbie is sent in any case, for an entry that was thrown out of the table may live on in
a TLB. A batch of an mm that only ever ran here needs but tlbiel; so a CPU stays in ``cpu_mask`` for good.

Linux 2.6.22 to 3.0 (``tlb_hash64.c``, ``mmu_context.h``, ``slb.c``), also with the tables of 2.6.12.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Iterator

import attrs
import numpy as np
from numpy.typing import NDArray

from polymmu import arch
from polymmu.arch import ArchKernel, EntryRun, mm_struct
from polymmu_ppc64 import mmu
from polymmu_ppc64.formats import Ppc64Config

Words = NDArray[np.int64]

BATCH = 192
"""Pte updates that a CPU collects in lazy mode (PPC64_TLB_BATCH_NR)."""


@attrs.define(eq=False)
class Batch:
    """A CPU's pte updates in lazy mode whose hash-table entries are still there; of one mm and page size."""

    active: bool = False
    mm: mm_struct | None = None
    page_shift: int = 0
    addresses: Words = attrs.field(factory=lambda: np.zeros(0, dtype=np.int64))
    ptes: Words = attrs.field(factory=lambda: np.zeros(0, dtype=np.int64))


@attrs.define(eq=False)
class State:
    """A machine's. ``hash_table``: its physical address; ``groups`` of eight entries."""

    hash_table: int
    groups: int
    batches: list[Batch]
    unused_contexts: Iterator[int]
    freed_contexts: list[int] = attrs.field(factory=list)


@attrs.define(eq=False)
class Context:
    """An mm's. ``number`` 0: the kernel's. ``slices``: where huge pages may be, a bit per 256 MiB below 4 GiB and from
    bit 16 on per high area. ``huge_root``: the tree of huge pages of 2.6.12; -1: none yet."""

    number: int
    slices: int = attrs.field(default=0, metadata=arch.shared(shootdown=True))
    huge_root: int = -1


def section_of(mm: mm_struct) -> Ppc64Config:
    section: Ppc64Config = mm.kernel.description.section
    return section


# ------------------------------------------------------------------ contexts
def boot(kernel: ArchKernel) -> State | None:
    """Make the hash table, at least one group for two pages, and tell every CPU where it is; None: radix tables."""
    section: Ppc64Config = kernel.description.section
    if section.mmu == "radix":
        return None
    shift = section.layout.page_shift
    memory = 1 << (kernel.description.memory - 1).bit_length()
    groups = section.hash_groups or max(memory >> (shift + 1), 1 << 11)
    pfn = arch.alloc_pages(kernel, max(groups * 128 >> shift, 1).bit_length() - 1, "table")
    if pfn < 0:
        why = f"no room for a hash table of {groups * 128:#x} bytes; give the machine more memory or fewer hash_groups"
        raise arch.UserMistake(why, place="ppc64.hash_groups")
    for cpu in kernel.cpus:
        cpu.mmu[mmu.HTAB], cpu.mmu[mmu.GROUP_MASK] = pfn << shift, groups - 1
    numbers = iter(range(1, 1 << (20 if section.levels == 3 else 19)))
    return State(pfn << shift, groups, [Batch() for _ in kernel.cpus], numbers)


def new_context(mm: mm_struct, like: mm_struct | None) -> Context:
    """The next mm's; a forked mm keeps its parent's slices."""
    section, state = section_of(mm), mm.kernel.arch_state
    if section.mmu == "radix":
        raise arch.UserMistake("no program runs on radix tables here; use mmu: hash", place="ppc64.mmu")
    number = heapq.heappop(state.freed_contexts) if state.freed_contexts else next(state.unused_contexts, 0)
    if not number:
        raise arch.syscall_error(errno.ENOMEM, "every context is in use")
    fresh = 1 << 18 if section.levels == 3 else 0  # 1 TiB to 1.5 TiB
    return Context(number, like.context.slices if like is not None else fresh)


def load_segments(cpu: arch.Cpu, context: Context) -> None:
    """slbia, and the bolted entries again; the ERATs go with it. Then where the segment handler finds huge pages."""
    cpu.mmu[mmu.FIRST_SLOT : mmu.SLB + mmu.SLB_WORDS] = 0
    cpu.mmu[mmu.SLICES], cpu.mmu[mmu.HUGE_ROOT] = context.slices, context.huge_root
    cpu.invalidate(asid=None, walk_caches="none", first_level_only=True)


# ------------------------------------------------------------------ hash table and TLBs
def tlbie(mm: mm_struct, addresses: Words, page_shift: int, local: bool = False) -> None:
    """Drop pages from every CPU's TLB and ERATs, or from this one's alone (tlbiel)."""
    kernel: ArchKernel = mm.kernel
    cuts = np.flatnonzero(np.diff(addresses) != 1 << page_shift) + 1
    ranges = [(int(run[0]), int(run[-1]) + (1 << page_shift)) for run in np.split(addresses, cuts)]
    cpus = (kernel.sched.cpu,) if local else kernel.cpus
    for cpu in cpus:
        for start, end in ranges:
            cpu.invalidate(asid=mm.context.number, start=start, end=end, walk_caches="none")
    kernel.sched.spend(kernel.description.costs.flush_page * len(addresses), "flush")
    kernel.events.shootdown(mm, "local" if local else "broadcast", len(cpus) - 1)


def flush_hash(mm: mm_struct, addresses: Words, ptes: Words, page_shift: int, local: bool = False) -> None:
    """Take the entries that old ptes remember out of the hash table, then out of the TLBs."""
    words: Words = mm.kernel.sched.cpu.mmu
    mmu.drop_hptes(words, mm.kernel.ram.words, mm.context.number, addresses, ptes, page_shift)
    tlbie(mm, addresses, page_shift, local)


def batch_of(mm: mm_struct) -> Batch:
    """The current CPU's."""
    batch: Batch = mm.kernel.arch_state.batches[mm.kernel.sched.cpu.index]
    return batch


def flush_pending(batch: Batch) -> None:
    """Do the first 192 of what a batch has collected; there are more on the way in only."""
    mm, addresses, ptes = batch.mm, batch.addresses, batch.ptes
    if mm is not None and len(addresses):
        batch.addresses, batch.ptes = addresses[BATCH:], ptes[BATCH:]
        local = mm.cpu_mask == 1 << mm.kernel.sched.cpu.index
        flush_hash(mm, addresses[:BATCH], ptes[:BATCH], batch.page_shift, local)


def forget_hashed(mm: mm_struct, addr: int, old: EntryRun, page_shift: int) -> None:
    """Those of a run's old values that the hash table may know must leave it, at once or with the batch."""
    hashed = (old & np.uint64(section_of(mm).hash_flags)).nonzero()[0]
    if not len(hashed):
        return
    addresses, ptes = addr + (hashed << page_shift), old[hashed].view(np.int64)
    batch = batch_of(mm)
    if not batch.active:
        flush_hash(mm, addresses, ptes, page_shift)
        return
    if batch.mm is not mm or batch.page_shift != page_shift:
        flush_pending(batch)
        batch.mm, batch.page_shift = mm, page_shift
    batch.addresses = np.concatenate((batch.addresses, addresses))
    batch.ptes = np.concatenate((batch.ptes, ptes))
    while len(batch.addresses) >= BATCH:
        flush_pending(batch)
