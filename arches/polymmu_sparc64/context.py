"""Contexts: the numbers that tag TLB entries, handed out in versions; and which TLBs must forget what, and when.

An mm's context is a number below a version. When the numbers run out, a new version begins: every context becomes
invalid at once, the CPUs get new numbers for what they run, and the others when they are next run. Number 0 is the
kernel's. A number that comes back may still be in a TLB with its former owner's pages, so a CPU demaps it before it
runs an mm under a number that it has not had there: ``mm.cpu_mask`` says which CPUs have. For that the mask must be
emptied when an mm gets another number, as Linux does from 4.12 on; the releases modelled here forgot it.

Whoever changes a live pte (one with V) queues its address in the CPU's batch; ``flush_tlb_pending`` takes the queued
addresses out of the TSB and demaps them on every CPU in the mm's mask, by cross-call, for there is no broadcast. The
core's flushes do nothing else. A batch is flushed when it has 192 addresses, when another mm comes, at a context
switch, and at the end of a gather. Nothing is queued while a whole address space goes: its number is used no more.

Sources: Linux 2.6.11 to 3.0 ``mmu_context_64.h``, ``mm/init.c`` (get_new_mmu_context), ``asm/tlb_64.h``, ``mm/tlb.c``,
``smp_64.c``.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from polymmu.arch import ArchKernel, Cpu, EntryRun, UserMistake, hookimpl, mm_struct
from polymmu_sparc64.miss import VPTE_BASE
from polymmu_sparc64.mmu import Sparc64Config
from polymmu_sparc64.tsb import Tsb, load_tsbs, tsb_alloc, tsb_flush, tsb_free
from polymmu_sparc64.tte import PAGE_SHIFT

TLB_BATCH_NR = 192
PAGE = 1 << PAGE_SHIFT
WORD = (1 << 64) - 1
NO_ADDRESS = np.empty(0, dtype=np.uint64)


@attrs.define(eq=False)
class Context:
    """An mm's context. ``version`` 0: none yet."""

    version: int = 0
    number: int = 0
    tsb: Tsb | None = None
    huge_tsb: Tsb | None = None

    @property
    def tsbs(self) -> list[Tsb]:
        """The buffers it has."""
        return [tsb for tsb in (self.tsb, self.huge_tsb) if tsb is not None]


@attrs.define(eq=False)
class TlbBatch:
    """A CPU's: addresses of ``mm`` whose live ptes changed and which no TLB has forgotten yet."""

    mm: mm_struct | None = None
    vaddrs: NDArray[np.uint64] = NO_ADDRESS


@attrs.define(eq=False)
class Sparc64State:
    """The machine's. ``taken``: a byte per number. Numbers are looked for upwards from ``last``."""

    taken: bytearray
    batches: list[TlbBatch]
    version: int = 1
    last: int = 1


def section_of(mm: mm_struct) -> Sparc64Config:
    """The section of the machine this mm lives on."""
    section: Sparc64Config = mm.kernel.description.section
    return section


def state_of(kernel: ArchKernel) -> Sparc64State:
    """The machine's state."""
    state: Sparc64State = kernel.arch_state
    return state


def is_valid(mm: mm_struct) -> bool:
    """Whether the mm has a number of the running version."""
    version: int = mm.context.version
    return version == state_of(mm.kernel).version


# ------------------------------------------------------------------- contexts
@hookimpl
def init_new_context(mm: mm_struct) -> None:
    """No number yet; a TSB, except for the kernel's own mm, whose context starts the machine's state."""
    kernel: ArchKernel = mm.kernel
    section = section_of(mm)
    mm.context = Context()
    if kernel.arch_state is not None:
        mm.context.tsb = tsb_alloc(kernel) if section.has_tsb else None
        return
    numbers = 1 << (section.context_bits or (13 if section.has_tsb else 10))
    if numbers <= len(kernel.cpus) + 1:
        raise UserMistake(
            f"{numbers} context numbers are too few for {len(kernel.cpus)} CPUs; give more context_bits",
            place="sparc64.context_bits",
        )
    taken = bytearray(b"\1\1").ljust(numbers, b"\0")  # 0 and 1 are reserved
    kernel.arch_state = Sparc64State(taken, [TlbBatch() for _ in kernel.cpus])


@hookimpl
def destroy_context(mm: mm_struct) -> None:
    """The number may be given to another."""
    if is_valid(mm):
        state_of(mm.kernel).taken[mm.context.number] = 0
    for tsb in mm.context.tsbs:
        tsb_free(mm.kernel, tsb)


def get_new_mmu_context(mm: mm_struct) -> bool:
    """Give ``mm`` a number that no mm has; True where a new version had to begin for it."""
    state = state_of(mm.kernel)
    number = state.taken.find(0, state.last + 1)
    if number < 0:
        number = state.taken.find(0, 1, state.last + 1)
    wrapped = number < 0
    if wrapped:
        state.version += 1
        state.taken[:] = bytes(len(state.taken))
        state.taken[0] = number = 1
    state.taken[number] = 1
    state.last = number
    mm.context.version, mm.context.number = state.version, number
    mm.cpu_mask = 0
    return wrapped


def load_context(cpu: Cpu, mm: mm_struct) -> None:
    """Let ``cpu`` translate for ``mm``, whose context is valid; a number it has not had there is demapped first."""
    kernel: ArchKernel = mm.kernel
    context: Context = mm.context
    cpu.load_root(mm.pgd, asid=context.number, space=mm.serial)
    load_tsbs(cpu, mm)
    if mm is not kernel.init_mm and not mm.cpu_mask >> cpu.index & 1:
        kernel.sched.atomic()
        mm.cpu_mask |= 1 << cpu.index
        cpu.invalidate(asid=context.number)
        kernel.sched.spend(kernel.description.costs.flush_all, "flush")


@hookimpl
def switch_mm(cpu: Cpu, following: mm_struct) -> None:
    """The CPU keeps the previous mm's translations under their number."""
    kernel: ArchKernel = following.kernel
    flush_tlb_pending(kernel, cpu)
    if following is not kernel.init_mm and not is_valid(following) and get_new_mmu_context(following):
        for other in kernel.cpus:  # a new version began: new numbers for what the other CPUs run
            mm = kernel.active_mm[other.index]
            if other is not cpu and mm is not None and mm is not kernel.init_mm:
                if not is_valid(mm):
                    get_new_mmu_context(mm)
                load_context(other, mm)
                kernel.sched.spend(kernel.description.costs.ipi, "ipi")
    load_context(cpu, following)


# -------------------------------------------------------------------- flushes
def tlb_batch_add(mm: mm_struct, vaddrs: NDArray[np.uint64]) -> None:
    """Queue addresses of ``mm`` in this CPU's batch."""
    kernel: ArchKernel = mm.kernel
    batch = state_of(kernel).batches[kernel.sched.cpu.index]
    if batch.mm is not mm:
        flush_tlb_pending(kernel)
        batch.mm = mm
    batch.vaddrs = np.concatenate((batch.vaddrs, vaddrs))
    while len(batch.vaddrs) >= TLB_BATCH_NR:
        full, batch.vaddrs = np.split(batch.vaddrs, (TLB_BATCH_NR,))
        demap(mm, full)


def queue_live(mm: mm_struct, addr: int, olds: EntryRun) -> None:
    """Queue those pages from ``addr`` on whose ptes were live before they changed."""
    if olds.any():
        live = np.flatnonzero(olds >> np.uint64(63))
        tlb_batch_add(mm, np.uint64(addr) + (live.astype(np.uint64) << np.uint64(PAGE_SHIFT)))


def flush_tlb_pending(kernel: ArchKernel, cpu: Cpu | None = None) -> None:
    """Let every TLB and the TSB forget what the batch of ``cpu`` (this one) holds."""
    batch = state_of(kernel).batches[(cpu or kernel.sched.cpu).index]
    if batch.mm is not None and len(batch.vaddrs):
        vaddrs, batch.vaddrs = batch.vaddrs, NO_ADDRESS
        demap(batch.mm, vaddrs)


def demap(mm: mm_struct, vaddrs: NDArray[np.uint64] | None) -> None:
    """Let the TSBs, and the TLBs of the mm's mask, forget these pages of ``mm``, or all of it (None).

    This TLB alone, and from now on, where nobody else runs the mm: a CPU that had it, or keeps it lazily, is out of
    the mask then and demaps the number when it comes back. (Linux asks whether the mm of the current task has one user.
    Here each CPU that runs it is one; a lazy CPU runs no program of it.)
    """
    kernel: ArchKernel = mm.kernel
    context: Context = mm.context
    for tsb in context.tsbs:
        tsb_flush(kernel, tsb, vaddrs)
    if not is_valid(mm):
        return
    costs, here = kernel.description.costs, kernel.sched.cpu
    cost = costs.flush_all if vaddrs is None else costs.flush_page * len(vaddrs)
    ranges = [(None, None)] if vaddrs is None else runs_of(vaddrs)

    def act(cpu: Cpu) -> None:
        for start, end in ranges:
            cpu.invalidate(asid=context.number, start=start, end=end)

    kernel.sched.atomic()  # who comes to the mm loads it before it looks at the mask
    mask = mm.cpu_mask
    running = sum(1 << cpu.index for cpu in kernel.cpus if cpu.space == mm.serial) & ~kernel.lazy
    if running == 1 << here.index:
        mm.cpu_mask = mask = 1 << here.index
    if mask >> here.index & 1:
        act(here)
        kernel.sched.spend(cost, "flush")
    reached = kernel.sched.cross_call(mask, act, costs.ipi + cost)  # a mondo: at trap level
    kernel.events.shootdown(mm, "ipi" if reached else "local", reached)


def runs_of(vaddrs: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Neighbouring pages as ranges [start, end)."""
    cuts = np.flatnonzero(vaddrs[1:] != vaddrs[:-1] + np.uint64(PAGE)) + 1
    return [(int(run[0]), int(run[-1]) + PAGE) for run in np.split(vaddrs, cuts)]


def vpte_pages(start: int, end: int, span: int) -> NDArray[np.uint64]:
    """The pages of the linear table that show the ptes of [start, end), one for each table of ``span`` bytes.

    The range lies on one side of the hole; ``end`` 0 is the top.
    """
    first = start & -span
    nr_tables = ((end - 1 & WORD) - first) // span + 1
    tables = np.uint64(first) + np.arange(nr_tables, dtype=np.uint64) * np.uint64(span)
    return ((tables.view(np.int64) >> PAGE_SHIFT << 3) + VPTE_BASE).view(np.uint64)
