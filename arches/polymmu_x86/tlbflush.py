"""Which CPUs must forget what: x86's switch_mm and its shootdown by interrupts, in two generations.

A flush acts on the current CPU and interrupts others, which acknowledge after they have flushed. Idle CPUs and kernel
threads keep an mm's tables loaded without needing them (lazy); interrupting those is what both generations avoid.

``lazy-mask`` (2.6, A8.4): a CPU is in ``mm.cpu_mask`` while flushes must reach it. A lazy one that is interrupted
loads the kernel's own tables and leaves the mask, so it is asked once only; when it comes back to the mm, it loads
CR3 again. There is no flush of a range: one page, or everything.

``generations`` (Linux 4.13, A8.5): every flush moves the mm's ``tlb_gen`` on, and each CPU knows how far it has come.
Lazy CPUs are not asked at all, unless tables go, for their walkers may still speculate through those; they compare when
they come back. A request that is behind what the CPU has done already is ignored, and one that is not the very next
one flushes everything. With PCIDs a CPU keeps translations of six mms, each with its own generation.

INVLPG and every CR3 load also empty the paging-structure caches of the current PCID (SDM 4.10.4.1), so freed tables
need no flush of their own; what PAE keeps in registers goes with a load of CR3 alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs

from polymmu.arch import ArchKernel, Cpu, doc, mm_struct, shared

NR_DYN_ASIDS = 6
GENERATIONS, LAZY_MASK = "generations", "lazy-mask"
NO_BARRIER, CULLED = "lazy-mask-2015", "generations-culled"
"""Known to be wrong (73, 78)."""


class Section(Protocol):
    """What these protocols read of a machine file's own section."""

    @property
    def pcid(self) -> bool: ...
    @property
    def single_page_flush_ceiling(self) -> int: ...
    @property
    def shootdown(self) -> str: ...


def shootdown_key() -> str:
    """The key that chooses between the two."""
    text = "who is interrupted: by tlb_gen (Linux 4.13 on), or by a mask that lazy CPUs leave (2.6)"
    wrong = f"known to be wrong: {NO_BARRIER} (73), {CULLED} (78)"
    key: str = attrs.field(
        default=GENERATIONS,
        metadata=doc(f"{GENERATIONS} or {LAZY_MASK}; {text}; {wrong}", choices=tuple(PROTOCOLS)),
    )
    return key


@attrs.define(eq=False)
class Context:
    """An mm's: ``serial`` never repeats, so a reused mm_struct is not taken for its predecessor."""

    serial: int
    tlb_gen: int = attrs.field(default=1, metadata=shared(shootdown=True))


@attrs.define(eq=False)
class CpuState:
    """A CPU's. ``loaded``: the mm that CR3 points to (Linux: loaded_mm), which a lazy CPU may have left.

    ``owner``, ``tlb_gen``: which mm each address-space number belongs to and how fresh it is; slot n is PCID n + 1,
    and without PCIDs there is slot 0 alone.
    """

    loaded: mm_struct | None = attrs.field(default=None, metadata=shared(shootdown=True))
    is_lazy: bool = attrs.field(default=False, metadata=shared(shootdown=True))
    slot: int = 0
    owner: list[int] = attrs.field(factory=lambda: [-1] * NR_DYN_ASIDS)
    mapped_tables: list[int] = attrs.field(factory=list[int])
    """Page tables in high memory that it has mapped (``highpte``)."""
    tlb_gen: list[int] = attrs.field(factory=lambda: [0] * NR_DYN_ASIDS)
    next_slot: int = 0


class Shootdown:
    """What both have in common."""

    def __init__(self, kernel: ArchKernel) -> None:
        self.kernel = kernel
        self.section: Section = kernel.description.section
        self.cpus = [CpuState() for _ in kernel.cpus]

    def enter_lazy_tlb(self, cpu: Cpu) -> None:
        """``cpu`` keeps what it has loaded, and nobody there uses it."""
        state = self.cpus[cpu.index]
        state.is_lazy = state.loaded is not self.kernel.init_mm

    def load_cr3(self, cpu: Cpu, mm: mm_struct) -> None:
        """Load CR3 without a PCID: all that is not global goes."""
        cpu.load_root(mm.pgd, space=mm.serial)
        cpu.invalidate(asid=None, walk_caches="all")
        self.cpus[cpu.index].loaded = mm

    def ask(self, mm: mm_struct, mask: int, act: Callable[[Cpu], None], cost: int) -> None:
        """``act`` here, if that has ``mm`` loaded, and on the others of ``mask``; each spends ``cost``."""
        kernel = self.kernel
        here = kernel.sched.cpu
        if self.cpus[here.index].loaded is mm:
            act(here)
            kernel.sched.spend(cost, "flush")
        others = kernel.sched.ipi(mask, act, kernel.description.costs.ipi + cost)
        kernel.events.shootdown(mm, "ipi" if others else "local", others)


class Generations(Shootdown):
    """See the top of the module."""

    def switch_mm(self, cpu: Cpu, prev: mm_struct | None, following: mm_struct) -> None:
        """The mask first, then the generation: a flush that does not find us in the mask is one we see here.

        Nothing stands between the load of CR3 and the flush, for that is one instruction.
        """
        state, context = self.cpus[cpu.index], following.context
        was_lazy, state.is_lazy = state.is_lazy, False
        left = state.loaded
        if left is following:
            if was_lazy and state.tlb_gen[state.slot] < context.tlb_gen:
                state.tlb_gen[state.slot] = context.tlb_gen
                self.forget_all(cpu, following)
            return
        bit = 1 << cpu.index
        self.kernel.sched.atomic()
        following.cpu_mask |= bit
        slot, stale = self.choose_new_asid(state, context)
        state.slot = slot
        if stale:
            state.tlb_gen[slot] = context.tlb_gen
        if self.section.pcid:
            cpu.load_root(following.pgd, asid=slot + 1, space=following.serial)
        if stale:
            self.forget_all(cpu, following)
        state.loaded = following
        if left is not None:  # after CR3 has gone over (2.6.38): out of the mask it would miss a flush
            self.kernel.sched.atomic()
            left.cpu_mask &= ~bit

    def choose_new_asid(self, state: CpuState, context: Context) -> tuple[int, bool]:
        """A slot for an mm, and whether what it holds must go first."""
        if not self.section.pcid:
            return 0, True
        if context.serial in state.owner:
            slot = state.owner.index(context.serial)
            return slot, state.tlb_gen[slot] < context.tlb_gen
        slot = state.next_slot
        state.next_slot = (slot + 1) % NR_DYN_ASIDS
        state.owner[slot] = context.serial
        return slot, True

    def forget_all(self, cpu: Cpu, mm: mm_struct) -> None:
        """Everything of the mm that is loaded."""
        if self.section.pcid:
            cpu.invalidate(asid=cpu.asid)
        else:
            self.load_cr3(cpu, mm)

    def flush(self, mm: mm_struct, start: int, end: int, page_size: int, freed_tables: bool) -> None:
        """Forget [start, end) of ``mm`` wherever it is loaded; ``end`` 0: everything.

        Up to a ceiling of pages of ``page_size`` are invalidated one by one, more cost a whole flush.
        """
        costs = self.kernel.description.costs
        pages = (end - start) // page_size if end else 0
        whole = not 0 < pages <= self.section.single_page_flush_ceiling
        context: Context = mm.context
        self.kernel.sched.atomic()
        context.tlb_gen += 1
        new = context.tlb_gen
        mask = self.whom(mm, freed_tables)

        def act(cpu: Cpu) -> None:
            self.flush_tlb_func(cpu, mm, new, start, 0 if whole else end)

        self.ask(mm, mask, act, costs.flush_all if whole else costs.flush_page * pages)

    def whom(self, mm: mm_struct, freed_tables: bool) -> int:
        """The CPUs to ask."""
        mask = mm.cpu_mask
        if not freed_tables:
            mask &= ~sum(1 << index for index, state in enumerate(self.cpus) if state.is_lazy)
        return mask

    def flush_page(self, mm: mm_struct, addr: int) -> None:
        """One page."""
        page_size = mm.layout.page_size
        self.flush(mm, addr, addr + page_size, page_size, freed_tables=False)

    def flush_tlb_func(self, cpu: Cpu, mm: mm_struct, new: int, start: int, end: int) -> None:
        """What a CPU does about flush number ``new``, of [start, end); ``end`` 0: of everything."""
        state, context = self.cpus[cpu.index], mm.context
        if state.loaded is not mm:
            return  # on its way elsewhere: it compares when it comes back
        if state.is_lazy:
            assert self.kernel.init_mm is not None
            self.switch_mm(cpu, mm, self.kernel.init_mm)
            return
        local = state.tlb_gen[state.slot]
        if new <= local:
            return
        partial = end and new == local + 1 and new == context.tlb_gen
        state.tlb_gen[state.slot] = context.tlb_gen  # read before the flush: later ones are not in it
        if partial:
            cpu.invalidate(asid=cpu.asid, start=start, end=end)
        else:
            self.forget_all(cpu, mm)


class LazyMask(Shootdown):
    """See the top of the module."""

    def switch_mm(self, cpu: Cpu, prev: mm_struct | None, following: mm_struct) -> None:
        """Coming back to the mm that it has lazily kept, a CPU loads CR3 only if it had to leave meanwhile."""
        bit = 1 << cpu.index
        self.cpus[cpu.index].is_lazy = False
        if prev is following and following.cpu_mask & bit:
            return
        self.kernel.sched.atomic()
        following.cpu_mask |= bit
        self.load_cr3(cpu, following)
        if prev is not None and prev is not following:  # after CR3 has gone over (2.6.38)
            self.kernel.sched.atomic()
            prev.cpu_mask &= ~bit

    def leave_mm(self, cpu: Cpu, mm: mm_struct) -> None:
        """A lazy CPU goes over to the kernel's own tables: no flush of ``mm`` concerns it any more."""
        self.kernel.sched.atomic()
        mm.cpu_mask &= ~(1 << cpu.index)
        assert self.kernel.init_mm is not None
        self.load_cr3(cpu, self.kernel.init_mm)

    def flush(self, mm: mm_struct, start: int, end: int, page_size: int, freed_tables: bool) -> None:
        """All of ``mm``, whatever part of it is meant."""
        self._flush(mm, 0, 0, self.kernel.description.costs.flush_all)

    def flush_page(self, mm: mm_struct, addr: int) -> None:
        """One page."""
        self._flush(mm, addr, addr + mm.layout.page_size, self.kernel.description.costs.flush_page)

    def _flush(self, mm: mm_struct, start: int, end: int, cost: int) -> None:
        def act(cpu: Cpu) -> None:
            state = self.cpus[cpu.index]
            if state.loaded is not mm:
                return
            if state.is_lazy:
                self.leave_mm(cpu, mm)
            elif end:
                cpu.invalidate(asid=cpu.asid, start=start, end=end)
            else:
                self.load_cr3(cpu, mm)

        self.barrier()
        self.ask(mm, mm.cpu_mask, act, cost)

    def barrier(self) -> None:
        """Whoever is not in the mask yet will see the tables as they are now: an entry of an upper level is cleared by
        a plain store, which might be seen after the mask is read (Linux 4.5)."""
        self.kernel.sched.smp_mb()


class NoBarrier(LazyMask):
    """73: the mask is read while the entry that was cleared is still in the store buffer."""

    def barrier(self) -> None:
        """Left out."""


class Culled(Generations):
    """78: who has not the mm loaded is not asked, also if it is just about to load it."""

    def whom(self, mm: mm_struct, freed_tables: bool) -> int:
        loaded = sum(1 << index for index, state in enumerate(self.cpus) if state.loaded is mm)
        return super().whom(mm, freed_tables) & loaded


PROTOCOLS: dict[str, type[Generations | LazyMask]] = {
    GENERATIONS: Generations,
    LAZY_MASK: LazyMask,
    NO_BARRIER: NoBarrier,
    CULLED: Culled,
}


def protocol_of(kernel: ArchKernel) -> Generations | LazyMask:
    """The machine's, made at the first use."""
    if kernel.arch_state is None:
        kernel.arch_state = PROTOCOLS[kernel.description.section.shootdown](kernel)
    protocol: Generations | LazyMask = kernel.arch_state
    return protocol
