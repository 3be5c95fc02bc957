"""Which CPUs must forget what: x86's switch_mm and its shootdown by interrupts.

A CPU is in ``mm.cpu_mask`` while its CR3 points to the mm. A flush acts on the current CPU if it runs the mm
and interrupts the others in the mask, which acknowledge after they have flushed. With PCIDs a CPU keeps
translations of mms it has left: every flush moves the mm's ``tlb_gen`` on, and a CPU that comes back to an
address-space number with an older generation flushes it then (Linux 4.13, six numbers per CPU).

INVLPG and every CR3 load also empty the paging-structure caches of the current PCID (SDM 4.10.4.1), so
freed tables need no flush of their own.
"""

from __future__ import annotations

import attrs

from polymmu.arch import ArchKernel, Cpu, mm_struct

NR_DYN_ASIDS = 6


@attrs.define(eq=False)
class Context:
    """An mm's: ``serial`` never repeats, so a reused mm_struct is not taken for its predecessor."""

    serial: int
    tlb_gen: int = 1


@attrs.define(eq=False)
class CpuState:
    """A CPU's: which mm each address-space number belongs to, and how fresh it is. Slot n is PCID n + 1.

    ``mapped_tables``: page tables in high memory that it has mapped (``highpte``).
    """

    owner: list[int] = attrs.field(factory=lambda: [0] * NR_DYN_ASIDS)
    tlb_gen: list[int] = attrs.field(factory=lambda: [0] * NR_DYN_ASIDS)
    next_slot: int = 0
    loaded: int = 0
    mapped_tables: list[int] = attrs.field(factory=list[int])


def boot(kernel: ArchKernel) -> list[CpuState]:
    """The machine's CPU states, made at the first use."""
    if kernel.arch_state is None:
        kernel.arch_state = [CpuState() for _ in kernel.cpus]
    states: list[CpuState] = kernel.arch_state
    return states


def init_new_context(mm: mm_struct) -> None:
    mm.context = Context(serial=mm.serial)


def switch_mm(cpu: Cpu, prev: mm_struct | None, following: mm_struct, pcid: bool) -> None:
    """Load CR3. The new mm's bit is set before the load, the old one's cleared after it (2.6.38: a CPU that is
    out of the mask while CR3 still points at the old mm would miss a flush)."""
    kernel: ArchKernel = following.kernel
    bit = 1 << cpu.index
    following.cpu_mask |= bit
    if not pcid:
        cpu.load_root(following.pgd, space=following.serial)
        cpu.invalidate(asid=None, walk_caches="all")
    else:
        state = boot(kernel)[cpu.index]
        context: Context = following.context
        if context.serial in state.owner:
            slot = state.owner.index(context.serial)
            stale = state.tlb_gen[slot] < context.tlb_gen
        else:
            slot, stale = state.next_slot, True
            state.next_slot = (slot + 1) % NR_DYN_ASIDS
            state.owner[slot] = context.serial
        cpu.load_root(following.pgd, asid=slot + 1, space=following.serial)
        if stale:
            cpu.invalidate(asid=slot + 1)
            state.tlb_gen[slot] = context.tlb_gen
        state.loaded = slot
    if prev is not None and prev is not following:
        prev.cpu_mask &= ~bit


def flush(mm: mm_struct, start: int, end: int, page_size: int, ceiling: int, pcid: bool) -> None:
    """Forget [start, end) on every CPU that has ``mm`` loaded; ``end`` 0: everything.

    Up to ``ceiling`` pages of ``page_size`` are invalidated one by one, more cost a whole CR3 reload.
    """
    kernel: ArchKernel = mm.kernel
    costs = kernel.description.costs
    context: Context = mm.context
    context.tlb_gen += 1
    pages = (end - start) // page_size if end else 0
    whole = not 0 < pages <= ceiling
    cost = costs.flush_all if whole else costs.flush_page * pages

    def act(cpu: Cpu) -> None:
        if kernel.active_mm[cpu.index] is not mm:
            return  # lazy, or on its way elsewhere: switch_mm compares generations
        if whole:
            cpu.invalidate(asid=cpu.asid)
        else:
            cpu.invalidate(asid=cpu.asid, start=start, end=end)
        if pcid:
            state = boot(kernel)[cpu.index]
            state.tlb_gen[state.loaded] = context.tlb_gen

    cpu = kernel.sched.cpu
    if mm.cpu_mask >> cpu.index & 1:
        act(cpu)
        kernel.sched.spend(cost, "flush")
    others = kernel.sched.ipi(mm.cpu_mask, act, costs.ipi + cost)
    kernel.events.shootdown(mm, "ipi" if others else "local", others)
