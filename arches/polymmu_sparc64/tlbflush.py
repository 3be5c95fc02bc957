"""Which TLBs must forget what: addresses are queued where ptes change, and demapped together.

Whoever changes a live pte (one with V) queues its address in the CPU's batch; ``flush_tlb_pending`` takes the queued
addresses out of the TSB and demaps them on every CPU in the mm's mask, by cross-call, for there is no broadcast. The
core's flushes do nothing else. A batch is flushed when it has 192 addresses, when another mm comes, at a context
switch, and at the end of a gather. Nothing is queued while a whole address space goes: its number is used no more,
and whoever gets it next demaps it (``context``).

Sources: Linux 2.6.11 to 2.6.39 ``asm/tlb_64.h``, ``mm/tlb.c``, ``smp_64.c``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polymmu.arch import ArchKernel, Cpu, EntryRun, mm_struct
from polymmu_sparc64.context import TLB_BATCH_NR, Context, TlbBatch, is_valid, state_of
from polymmu_sparc64.miss import VPTE_BASE
from polymmu_sparc64.tsb import tsb_clear, tsb_flush
from polymmu_sparc64.tte import PAGE_SHIFT

PAGE = 1 << PAGE_SHIFT
WORD = (1 << 64) - 1


def tlb_batch_add(mm: mm_struct, vaddrs: NDArray[np.uint64]) -> None:
    """Queue addresses of ``mm`` in this CPU's batch."""
    kernel: ArchKernel = mm.kernel
    batch = state_of(kernel).batches[kernel.sched.cpu.index]
    if batch.mm is not mm:
        flush_tlb_pending(kernel, batch)
        batch.mm = mm
    while len(vaddrs):
        part = vaddrs[: TLB_BATCH_NR - batch.nr]
        batch.vaddrs[batch.nr : batch.nr + len(part)] = part
        batch.nr += len(part)
        vaddrs = vaddrs[len(part) :]
        if batch.nr == TLB_BATCH_NR:
            flush_tlb_pending(kernel, batch)


def queue_live(mm: mm_struct, addr: int, olds: EntryRun) -> None:
    """Queue those pages from ``addr`` on whose ptes were live before they changed."""
    if olds.any():
        live = np.flatnonzero(olds >> np.uint64(63))
        tlb_batch_add(mm, np.uint64(addr) + (live.astype(np.uint64) << np.uint64(PAGE_SHIFT)))


def flush_tlb_pending(kernel: ArchKernel, batch: TlbBatch | None = None) -> None:
    """Let every TLB and the TSB forget what a batch (this CPU's) holds."""
    if batch is None:
        batch = state_of(kernel).batches[kernel.sched.cpu.index]
    mm, nr = batch.mm, batch.nr
    if mm is None or not nr:
        return
    batch.nr = 0
    vaddrs = batch.vaddrs[:nr]
    context: Context = mm.context
    for tsb in (context.tsb, context.huge_tsb):
        if tsb is not None:
            tsb_flush(kernel, tsb, vaddrs)
    _demap(mm, runs_of(vaddrs), kernel.description.costs.flush_page * nr)


def runs_of(vaddrs: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Neighbouring pages as ranges [start, end)."""
    cuts = np.flatnonzero(vaddrs[1:] != vaddrs[:-1] + np.uint64(PAGE)) + 1
    return [(int(run[0]), int(run[-1]) + PAGE) for run in np.split(vaddrs, cuts)]


def demap_context(mm: mm_struct) -> None:
    """Let every TLB and the TSB forget all of ``mm``."""
    kernel: ArchKernel = mm.kernel
    context: Context = mm.context
    for tsb in (context.tsb, context.huge_tsb):
        if tsb is not None:
            tsb_clear(kernel, tsb)
    _demap(mm, [(None, None)], kernel.description.costs.flush_all)


def _demap(mm: mm_struct, ranges: Sequence[tuple[int | None, int | None]], cost: int) -> None:
    """Demap [start, end) ranges (None: everything) on the CPUs of the mm's mask; on this one alone, and from now
    on, where nobody else runs the mm. (Linux asks whether the mm has one user. Here a CPU that runs it is one.)
    """
    if not is_valid(mm):
        return
    kernel: ArchKernel = mm.kernel
    here, number = kernel.sched.cpu, mm.context.number

    def act(cpu: Cpu) -> None:
        for start, end in ranges:
            cpu.invalidate(asid=number, start=start, end=end)

    if [cpu for cpu in kernel.cpus if kernel.active_mm[cpu.index] is mm] == [here]:
        mm.cpu_mask = 1 << here.index
    if mm.cpu_mask >> here.index & 1:
        act(here)
        kernel.sched.spend(cost, "flush")
    # A mondo, executed at trap level: raising the interrupt priority, as a lockless walk does, holds none back.
    reached = kernel.sched.cross_call(mm.cpu_mask, act, kernel.description.costs.ipi + cost)
    kernel.events.shootdown(mm, "ipi" if reached else "local", reached)


def vpte_pages(start: int, end: int, span: int) -> NDArray[np.uint64]:
    """The pages of the linear table that show the ptes of [start, end), widened to whole tables of ``span`` bytes.

    The range lies on one side of the hole; ``end`` 0 is the top.
    """
    first = linear_address(start & -span)
    last = linear_address((end - 1) & -span & WORD)
    return np.uint64(first) + np.arange(0, last - first + PAGE, PAGE, dtype=np.uint64)


def linear_address(va: int) -> int:
    """Where the linear table shows the pte of ``va``."""
    signed = va - (1 << 64) if va >> 63 else va
    return (VPTE_BASE + (signed >> PAGE_SHIFT << 3)) & WORD
