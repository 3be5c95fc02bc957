"""Contexts, region registers, and how Linux on ia64 makes CPUs forget: purges that every CPU obeys, or new numbers.

An mm has a context number; a region's identifier is 8 times that plus the region, and every TLB entry is tagged with
one. So a whole mm is flushed by giving it another number: what is cached under the old one can no longer be reached.
Used numbers wait; when none is left, those waiting are free again, after every CPU has emptied its TLB.

A range is purged by address, in pieces of a size that the processor can purge, and by a broadcast that interrupts
nobody (ptc.ga); with ptc.l where the mm ran on no other CPU. Unmapping also purges the VHPT range of the pages, where
the tables of ptes are mapped: a stale translation there would lead the walker into a freed table.

Source: Linux 2.6.24 to 3.0, arch/ia64/mm/tlb.c, asm-ia64/{tlb,tlbflush,mmu_context}.h.
"""

from __future__ import annotations

import errno

import attrs

from polymmu.arch import ArchKernel, Cpu, mm_struct, mmu_gather, shared, syscall_error
from polymmu_ia64.config import USER_REGIONS, Ia64Config, region_of
from polymmu_ia64.entries import PURGEABLE, vhpt_address
from polymmu_ia64.mmu import PTA, identifier, region_register

KERNEL_CONTEXT = 0
RESTART = 300
"""First number given after a wrap: those below are taken for long-lived programs'."""
FLUSH_ALL_FROM = 1 << 40
"""A gathered range of so many bytes is not purged page by page; two regions are always further apart."""


@attrs.define(eq=False)
class Context:
    """An mm's: its number, 0 until a CPU needs one."""

    number: int = attrs.field(default=0, metadata=shared(shootdown=True))


@attrs.define(eq=False)
class Contexts:
    """The machine's: ``limit`` numbers, those in use or waiting (``taken``), those waiting for a wrap."""

    limit: int
    following: int = 1
    taken: set[int] = attrs.field(factory=set)
    waiting: set[int] = attrs.field(factory=set)
    must_flush: set[int] = attrs.field(factory=set)
    """CPUs that have to empty their TLBs before they load another context."""

    def retire(self, context: Context) -> None:
        """Take an mm's number away; it may be given again after the next wrap."""
        number = context.number
        if number:
            context.number = 0
            self.waiting.add(number)


def section_of(mm: mm_struct) -> Ia64Config:
    """The section of the machine this mm lives on."""
    section: Ia64Config = mm.kernel.description.section
    return section


def contexts_of(mm: mm_struct) -> Contexts:
    """The machine's contexts, made at the first use."""
    if mm.kernel.arch_state is None:
        section = section_of(mm)
        mm.kernel.arch_state = Contexts(limit=1 << (section.context_bits or section.rid_bits - 3))
    contexts: Contexts = mm.kernel.arch_state
    return contexts


# ------------------------------------------------------------------ contexts
def get_context(mm: mm_struct) -> int:
    """The mm's number, a new one if it has none; then no CPU holds anything of it."""
    context: Context = mm.context
    number = context.number
    if not number:
        mm.kernel.sched.atomic()  # Linux: below a lock, with a second look
        if not context.number:
            context.number = _new_number(mm.kernel, contexts_of(mm))
        number = context.number
    return number


def _new_number(kernel: ArchKernel, contexts: Contexts) -> int:
    number = _next_free(contexts)
    if number is None:
        _wrap(kernel, contexts)
        number = _next_free(contexts)
        if number is None:
            raise syscall_error(errno.ENOMEM, f"all {contexts.limit} context numbers are in use")
    contexts.taken.add(number)
    contexts.following = number + 1
    return number


def _next_free(contexts: Contexts) -> int | None:
    numbers = range(contexts.following, contexts.limit)
    return next((number for number in numbers if number not in contexts.taken), None)


def _wrap(kernel: ArchKernel, contexts: Contexts) -> None:
    """Let numbers that wait be given again: this CPU forgets everything now, the others before they switch."""
    contexts.taken -= contexts.waiting
    contexts.waiting.clear()
    contexts.following = min(RESTART, contexts.limit // 2)
    contexts.must_flush = set(range(len(kernel.cpus)))
    _flush_if_due(kernel, kernel.sched.cpu, contexts)


def _flush_if_due(kernel: ArchKernel, cpu: Cpu, contexts: Contexts) -> None:
    if cpu.index in contexts.must_flush:
        contexts.must_flush.discard(cpu.index)
        cpu.invalidate(asid=None, include_global=True)
        kernel.sched.spend(kernel.description.costs.flush_all, "flush")


def activate(cpu: Cpu, mm: mm_struct) -> None:
    """Load the region registers of an mm's context, and its tables for the handlers. Who flushes the mm meanwhile may
    not have seen this CPU in its mask, and has taken the number away: then again."""
    if mm is mm.kernel.init_mm:
        _load(cpu, mm, KERNEL_CONTEXT)
        return
    while True:
        number = get_context(mm)
        _load(cpu, mm, number)
        if mm.context.number == number:
            return


def _load(cpu: Cpu, mm: mm_struct, number: int) -> None:
    kernel: ArchKernel = mm.kernel
    _flush_if_due(kernel, cpu, contexts_of(mm))
    kernel.sched.atomic()
    mm.cpu_mask |= 1 << cpu.index
    section = section_of(mm)
    for region in range(USER_REGIONS):
        cpu.mmu[region] = region_register(number, region, section.shift_in(region))
    cpu.load_root(mm.pgd, asid=number << 3, space=mm.serial)
    cpu.load_asids([identifier(register) for register in cpu.mmu[:8].tolist()])


# ------------------------------------------------------------------ flushes
def flush_mm(mm: mm_struct) -> None:
    """A new number, at once where a CPU runs the mm. An mm without users needs none: it is being torn down."""
    kernel: ArchKernel = mm.kernel
    contexts_of(mm).retire(mm.context)
    mask, mm.cpu_mask = mm.cpu_mask, 0  # whoever comes later finds no number, or finds that its own is gone
    if not mm.mm_users:
        return
    cost = kernel.description.costs.flush_all

    def reload(cpu: Cpu) -> None:
        if kernel.active_mm[cpu.index] is mm:
            activate(cpu, mm)

    reload(kernel.sched.cpu)
    kernel.sched.spend(cost, "flush")
    others = kernel.sched.ipi(mask, reload, kernel.description.costs.ipi + cost)
    kernel.events.shootdown(mm, "ipi" if others else "local", others)


def flush_all(mm: mm_struct) -> None:
    """Every CPU empties its TLBs."""
    kernel: ArchKernel = mm.kernel
    costs = kernel.description.costs

    def empty(cpu: Cpu) -> None:
        cpu.invalidate(asid=None, include_global=True)

    empty(kernel.sched.cpu)
    kernel.sched.spend(costs.flush_all, "flush")
    others = kernel.sched.ipi((1 << len(kernel.cpus)) - 1, empty, costs.ipi + costs.flush_all)
    kernel.events.shootdown(mm, "ipi" if others else "local", others)


def purge_shift(size: int) -> int:
    """Log2 of the purges for ``size`` bytes: rounded up in pages of 4 KiB, then to what the processor can purge."""
    shift = (size + 0xFFF).bit_length() - 1
    possible = [n for n in range(64) if PURGEABLE >> n & 1]
    return next((n for n in possible if n >= shift), possible[-1])


def flush_range(mm: mm_struct, start: int, end: int) -> None:
    """Purge [start, end), which lies in one region, wherever the mm may have run."""
    number: int = mm.context.number
    if not number:
        return  # nothing is tagged with its identifiers
    kernel: ArchKernel = mm.kernel
    section = section_of(mm)
    shift = purge_shift(end - start)
    low = start & -(1 << shift)
    purges = -(-(end - low) >> shift)
    rid = number << 3 | region_of(start)
    here = kernel.sched.cpu
    alone = mm.cpu_mask == 1 << here.index and kernel.active_mm[here.index] is mm
    for cpu in (here,) if alone else kernel.cpus:
        cpu.invalidate(asid=rid, start=low, end=low + (purges << shift), walk_caches="none")
    each = kernel.description.costs.flush_page if alone else section.ptc_ga_cycles
    kernel.sched.spend(each * purges, "flush")
    kernel.events.shootdown(mm, "local" if alone else "broadcast", 0 if alone else len(kernel.cpus) - 1)


def vhpt_slot(mm: mm_struct, addr: int) -> int:
    """Where the VHPT has the entry of ``addr``."""
    section = section_of(mm)
    pta = int(mm.kernel.sched.cpu.mmu[PTA])
    return vhpt_address(addr, section.shift_in(region_of(addr)), pta, section.va_bits)


# ------------------------------------------------------------------ gathers
@attrs.define(eq=False)
class Cleared:
    """A gather's: the hull of what was cleared since its last flush; ``end`` 0: nothing."""

    start: int = 0
    end: int = 0

    def add(self, start: int, end: int) -> None:
        """Widen the hull."""
        self.start = min(self.start, start) if self.end else start
        self.end = max(self.end, end)


def flush_gather(tlb: mmu_gather) -> None:
    """The pages a gather cleared, and the tables that mapped them."""
    mm = tlb.mm
    cleared: Cleared = tlb.arch
    if tlb.fullmm:
        flush_mm(mm)
    elif cleared.end:
        start, end = cleared.start, cleared.end
        if end - start >= FLUSH_ALL_FROM:
            flush_all(mm)
        else:
            flush_range(mm, start, end)
            flush_range(mm, vhpt_slot(mm, start), vhpt_slot(mm, end - 1) + 8)
    tlb.arch = Cleared()
