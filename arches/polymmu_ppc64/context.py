"""What ppc64 keeps per machine, CPU and address space: the hash table, batches, contexts, and switching.

A context is the number that VSIDs are made of: the lowest one free, as Linux's id allocator hands them out. It is
used again as soon as its mm is gone, which is sound because every hashed pte was flushed when it was cleared.

Switching clears the segment buffer behind the bolted entries, and slbia or slbie empties the ERATs with it; the TLB
keeps everything, being tagged. A CPU stays in ``cpu_mask`` for good: only that tells whether tlbiel is enough.
Source: Linux ``mmu_context.h``, ``slb.c``, ``hash_utils.c``.
"""

from __future__ import annotations

import errno
import heapq

import attrs
import numpy as np
from numpy.typing import NDArray

from polymmu.arch import ArchKernel, Cpu, UserMistake, alloc_pages, hookimpl, mm_struct, syscall_error
from polymmu_ppc64 import mmu
from polymmu_ppc64.formats import Ppc64Config

BATCH = 192
"""Pte updates that a CPU collects in lazy mode (PPC64_TLB_BATCH_NR)."""


def signed(value: int) -> int:
    """A 64-bit pattern as the number that an MMU word holds."""
    return value - (1 << 64) if value >> 63 else value


@attrs.define(eq=False)
class Batch:
    """A CPU's pte updates whose hash-table entries are still there; all of one mm and page size."""

    active: bool = False
    mm: mm_struct | None = None
    page_shift: int = 0
    nr: int = 0
    addresses: NDArray[np.int64] = attrs.field(factory=lambda: np.zeros(BATCH, dtype=np.int64))
    ptes: NDArray[np.int64] = attrs.field(factory=lambda: np.zeros(BATCH, dtype=np.int64))


@attrs.define(eq=False)
class State:
    """A machine's. ``hash_table``: its physical address, -1 with radix tables; ``groups`` of eight entries."""

    hash_table: int
    groups: int
    batches: list[Batch]
    free_contexts: list[int] = attrs.field(factory=list)
    next_context: int = 1


@attrs.define(eq=False)
class Context:
    """An mm's. ``number`` 0: the kernel's. Slices: a nibble per 256 MiB below 4 GiB, per high area above; 0 means
    base pages. ``huge_root``: the tree of huge pages of 2.6.12; -1: none yet."""

    number: int
    low_slices: int = 0
    high_slices: int = 0
    huge_root: int = -1


def state_of(kernel: ArchKernel) -> State:
    state: State = kernel.arch_state
    return state


def section_of(mm: mm_struct) -> Ppc64Config:
    section: Ppc64Config = mm.kernel.description.section
    return section


def boot(kernel: ArchKernel) -> State:
    """Make the hash table, at least one group for two pages, and tell every CPU where it is."""
    section: Ppc64Config = kernel.description.section
    if section.mmu == "radix":
        return State(-1, 0, [])
    shift = kernel.shape.layout.page_shift
    memory = 1 << (kernel.description.memory - 1).bit_length()
    groups = section.hash_groups or max(memory >> (shift + 1), 1 << 11)
    order = max(groups * mmu.PTEG >> shift, 1).bit_length() - 1
    pfn = alloc_pages(kernel, order, "table")
    if pfn < 0:
        raise UserMistake(
            f"no room for a hash table of {groups * mmu.PTEG:#x} bytes; give the machine more memory or fewer "
            "hash_groups",
            place="ppc64.hash_groups",
        )
    for cpu in kernel.cpus:
        cpu.mmu[mmu.HTAB] = pfn << shift
        cpu.mmu[mmu.GROUP_MASK] = groups - 1
    return State(pfn << shift, groups, [Batch() for _ in kernel.cpus])


@hookimpl
def init_new_context(mm: mm_struct, like: mm_struct | None) -> None:
    """A forked mm keeps its parent's slices."""
    kernel: ArchKernel = mm.kernel
    section = section_of(mm)
    if kernel.arch_state is None:
        kernel.arch_state = boot(kernel)
        mm.context = Context(0)
        return
    if section.mmu == "radix":
        raise UserMistake("no program runs on radix tables here; use mmu: hash", place="ppc64.mmu")
    state = state_of(kernel)
    if state.free_contexts:
        number = heapq.heappop(state.free_contexts)
    elif state.next_context < 1 << (20 if section.levels == 3 else 19):
        number = state.next_context
        state.next_context += 1
    else:
        raise syscall_error(errno.ENOMEM, "every context is in use")
    high = 1 << 2 * 4 if section.levels == 3 else 0  # 1 TiB to 1.5 TiB
    mm.context = Context(number, high_slices=high)
    if like is not None:
        mm.context.low_slices, mm.context.high_slices = like.context.low_slices, like.context.high_slices


def load_slices(cpu: Cpu, context: Context) -> None:
    """What the segment handler reads: which parts of the address space have huge pages."""
    cpu.mmu[mmu.LOW_SLICES] = signed(context.low_slices)
    cpu.mmu[mmu.HIGH_SLICES] = signed(context.high_slices)
    cpu.mmu[mmu.HUGE_ROOT] = context.huge_root


def flush_segments(cpu: Cpu) -> None:
    """slbia, and the bolted entries again; the ERATs go with it."""
    cpu.mmu[mmu.FIRST_SLOT : mmu.SLB + mmu.SLB_WORDS] = 0
    cpu.invalidate(asid=None, walk_caches="none", first_level_only=True)


@hookimpl
def switch_mm(cpu: Cpu, prev: mm_struct | None, following: mm_struct) -> None:
    context: Context = following.context
    following.cpu_mask |= 1 << cpu.index
    cpu.load_root(following.pgd, asid=context.number, space=following.serial)
    load_slices(cpu, context)
    flush_segments(cpu)
