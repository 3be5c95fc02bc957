"""Who must forget what: SFENCE.VMA here, and asked of other harts through SBI or by interrupt.

SFENCE.VMA acts on its own hart (Privileged Architecture 4.2.1). With an address it drops leaf entries for that page and
nothing that leads to it; without one, everything of the address space (or of all), the cached entries of upper
levels with it. So whoever freed a table, or hooked it over to another entry, must fence without an address. Linux does
(tlb_flush looks at ``freed_tables``; a moved table spans more pages than are ever fenced one by one).

An entry that was not valid may be cached. A machine may promise not to (Svvptc); without that promise Linux fences
each page that it has just entered, and is done with rights that were raised at the same time.
"""

from __future__ import annotations

from typing import Protocol

from polymmu.arch import ArchKernel, Cpu, mm_struct
from polymmu_riscv import asid


class Section(Protocol):
    """What is read of the machine file's own section here."""

    @property
    def addressed_fence(self) -> bool: ...
    @property
    def max_fenced_pages(self) -> int: ...
    @property
    def remote_fence(self) -> str: ...


def sfence_vma(cpu: Cpu, section: Section, asid: int | None, start: int = 0, end: int = 0) -> None:
    """What the hart forgets of ``asid`` (None: of all, global pages too) in [start, end); ``end`` 0: everywhere.

    Where the addressed form does not work, the one without operands stands in for it.
    """
    if end and not section.addressed_fence:
        asid, end = None, 0
    if end:
        cpu.invalidate(asid=asid, start=start, end=end, include_global=asid is None, walk_caches="none")
    else:
        walk_caches = "all" if asid is None else "asid"
        cpu.invalidate(asid=asid, include_global=asid is None, walk_caches=walk_caches)


def flush(mm: mm_struct, start: int = 0, end: int = 0) -> None:
    """Forget [start, end) of ``mm`` on every hart that may hold it; ``end`` 0: all of ``mm``, walk caches too.

    More than ``max_fenced_pages`` pages are not fenced one by one: the whole address space goes (Linux 6.7).
    """
    kernel: ArchKernel = mm.kernel
    section: Section = kernel.description.section
    costs = kernel.description.costs
    pages = (end - start) >> mm.layout.page_shift if end else 0
    if not 0 < pages <= section.max_fenced_pages:
        start = end = pages = 0
    cost = costs.flush_page * pages if pages else costs.flush_all
    number = asid.asid_of(mm) if asid.in_use(kernel) else None

    def act(cpu: Cpu) -> None:
        sfence_vma(cpu, section, number, start, end)

    here = kernel.sched.cpu
    if mm.cpu_mask >> here.index & 1:
        act(here)
        kernel.sched.spend(cost, "flush")
    if section.remote_fence == "ipi":
        others = kernel.sched.ipi(mm.cpu_mask, act, costs.ipi + cost)
        kernel.events.shootdown(mm, "ipi" if others else "local", others)
        return
    # The SBI's own interrupts are taken below the kernel: one that has interrupts off does not hold them up.
    reached = [cpu for cpu in kernel.cpus if mm.cpu_mask >> cpu.index & 1 and cpu is not here]
    for cpu in reached:
        act(cpu)
    kernel.sched.spend((costs.ipi + cost) * len(reached), "flush")
    kernel.events.shootdown(mm, "broadcast" if reached else "local", len(reached))


def fence_entered(mm: mm_struct, addr: int, n: int) -> None:
    """After ``n`` pages from ``addr`` were entered or allowed more: this hart's view of each is fenced.

    Only this hart's: another one that acts on an older entry faults, and fences then.
    """
    kernel: ArchKernel = mm.kernel
    section: Section = kernel.description.section
    size = mm.layout.page_size
    for page in range(addr, addr + n * size, size):
        sfence_vma(kernel.sched.cpu, section, None, page, page + size)
        kernel.sched.spend(kernel.description.costs.flush_page, "flush")
        kernel.events.shootdown(mm, "local", 0)
