"""The life of an address space: made, run on CPUs, torn down with its last user, freed with its last CPU.

Two counts, as in Linux. ``mm_users``: who uses the user part; at 0 ``exit_mmap`` takes all of it down.
``mm_count``: who needs the struct and the root table: all users together count as one, each CPU that has the
root loaded as one more; at 0 they are freed.
"""

from __future__ import annotations

import errno
from functools import partial

from polymmu.errors import syscall_error
from polymmu.hardware.cpu import Cpu
from polymmu.hooks import ArchKernel
from polymmu.mm.frames import lru_add_drain
from polymmu.mm.gather import tlb_finish_mmu, tlb_gather_mmu
from polymmu.mm.grab import mmdrop, mmgrab
from polymmu.mm.pagecache import put_file
from polymmu.mm.pgtables import free_pgtables
from polymmu.mm.reclaim import try_to_free_pages
from polymmu.mm.swap import boot_swap
from polymmu.mm.vma import remove_vma, vmas_of
from polymmu.mm.zap import unmap_vmas
from polymmu.sched.locks import Mutex, RwSem, Spinlock
from polymmu.slab import Slab
from polymmu.structs import address_space, anon_vma, mm_struct, vm_area_struct

__all__ = ["activate", "boot", "exit_mmap", "mm_alloc", "mmput"]


def boot(kernel: ArchKernel) -> None:
    """Make the kernel's slabs and its own address space, which CPUs load when they run no program."""
    sched = kernel.sched
    choice = kernel.description.kernel
    i_mmap_lock = Spinlock if choice.i_mmap_lock == "spin" else Mutex
    anon_vma_lock = Spinlock if choice.anon_vma_spins else Mutex
    kernel.mms = Slab(
        "mm_struct",
        lambda slot: mm_struct(slot, kernel, RwSem(sched, "mmap_lock"), Spinlock(sched, "page_table_lock")),
    )
    kernel.vmas = Slab("vm_area_struct", lambda slot: vm_area_struct(slot=slot))
    kernel.mappings = Slab(
        "address_space",
        lambda slot: address_space(
            slot,
            i_mmap_lock(sched, "i_mmap_lock"),
            Mutex(sched, "i_mutex"),
            Mutex(sched, "unmap_mutex"),
            kernel.variants.rmap_tree.new_tree(),
        ),
    )
    kernel.anon_vmas = Slab("anon_vma", lambda slot: anon_vma(slot, anon_vma_lock(sched, "anon_vma_lock")))
    boot_swap(kernel)
    if kernel.swap is not None:
        kernel.reclaim = partial(try_to_free_pages, kernel)
    kernel.init_mm = mm_alloc(kernel)


def mm_alloc(kernel: ArchKernel, like: mm_struct | None = None) -> mm_struct:
    """An address space without mappings, with one user. Raises ENOMEM where there is no frame for its root.

    ``like``: the parent of a fork, whose shape and places (heap, stack, mmap_base) it gets.
    """
    limits = kernel.shape.limits
    mm = kernel.mms.alloc()
    mm.serial = kernel.serial
    kernel.serial += 1
    mm.vmas.clear()
    mm.mmap = mm.mmap_cache = None
    mm.map_count = mm.total_vm = 0
    mm.anon_rss = mm.file_rss = mm.swapents = mm.hiwater_rss = 0
    mm.mm_users = mm.mm_count = 1
    mm.cpu_mask = mm.tlb_flush_pending = 0
    mm.exe_file = None
    mm.context = None
    mm.last_cpu = kernel.sched.cpu.index
    mm.cached_hole_size = 0
    if like is None:
        mm.layout = kernel.shape.layout
        mm.task_size = limits.task_size
        mm.mmap_base = mm.free_area_cache = limits.mmap_base
        # Two thirds up is where a position-independent program goes, its heap behind it (Linux:
        # ELF_ET_DYN_BASE).
        two_thirds = limits.task_size // 3 * 2 & -mm.layout.page_size
        mm.start_brk = mm.brk = two_thirds if limits.start_brk is None else limits.start_brk
        mm.start_stack = limits.stack_top
    else:
        mm.layout = like.layout
        mm.task_size = like.task_size
        mm.mmap_base, mm.free_area_cache = like.mmap_base, like.free_area_cache
        mm.cached_hole_size = like.cached_hole_size
        mm.start_brk, mm.brk, mm.start_stack = like.start_brk, like.brk, like.start_stack
    kernel.ops.init_new_context(mm, like)
    mm.nr_tables = [0] * mm.layout.levels
    mm.pgd = kernel.ops.pgd_alloc(mm)
    if mm.pgd < 0:
        kernel.ops.destroy_context(mm)
        kernel.mms.free(mm)
        raise syscall_error(errno.ENOMEM, "no memory for a root page table")
    kernel.events.table_allocated(mm, 0, mm.pgd, mm.layout.table_bytes_of(0))
    return mm


def activate(kernel: ArchKernel, cpu: Cpu, mm: mm_struct) -> None:
    """``cpu`` runs ``mm`` from now on; nothing to do where it does already."""
    prev = kernel.active_mm[cpu.index]
    mm.last_cpu = cpu.index
    if prev is mm:
        return
    kernel.sched.spend(kernel.description.costs.context_switch, "context_switch")
    _switch(kernel, cpu, prev, mm)


def _switch(kernel: ArchKernel, cpu: Cpu, prev: mm_struct | None, mm: mm_struct) -> None:
    kernel.sched.preempt_disable()
    kernel.ops.switch_mm(cpu, prev, mm)
    kernel.active_mm[cpu.index] = mm
    mmgrab(mm)
    kernel.sched.preempt_enable()
    if prev is not None:
        mmdrop(prev)


def mmput(mm: mm_struct) -> None:
    """One user less; after the last one nothing is mapped, and no CPU has the mm loaded."""
    mm.mm_users -= 1
    if mm.mm_users:
        return
    kernel: ArchKernel = mm.kernel
    kernel.events.mm_call_begin(mm, "exit")
    kernel.sched.spend(kernel.description.costs.syscall, "syscall")
    running = [cpu for cpu in kernel.cpus if kernel.active_mm[cpu.index] is mm]
    for cpu in running:
        kernel.ops.enter_lazy_tlb(cpu, mm)
    exit_mmap(mm)
    if mm.exe_file is not None:
        put_file(kernel, mm.exe_file)
        mm.exe_file = None
    assert kernel.init_mm is not None
    for cpu in running:
        _switch(kernel, cpu, mm, kernel.init_mm)
    mmdrop(mm)
    kernel.events.mm_call_end(mm, "exit")


def exit_mmap(mm: mm_struct) -> None:
    """Take every mapping down: pages, tables, vmas, in the order of A7.3.

    AssertionError where something is left: a page counted as present, a vma, or a table. Tables below the
    first user address are the arch's own.
    """
    kernel: ArchKernel = mm.kernel
    first = mm.mmap
    lru_add_drain(kernel)
    kernel.ops.flush_cache_mm(mm)
    tlb = tlb_gather_mmu(mm, True)
    unmap_vmas(tlb, first, 0, 0)
    free_pgtables(tlb, first, kernel.shape.limits.first_user_address, 0)
    tlb_finish_mmu(tlb, 0, kernel.shape.limits.mm_vm_size)
    mm.vmas.clear()
    mm.mmap = mm.mmap_cache = None
    for vma in vmas_of(first):
        mm.map_count -= 1
        remove_vma(vma)
    mm.total_vm = 0
    layout = mm.layout
    span = layout.span_of(layout.pmd_level)
    own = -(-kernel.shape.limits.first_user_address // span)
    if mm.map_count or mm.anon_rss or mm.file_rss or mm.swapents or mm.nr_tables[layout.pte_level] > own:
        raise AssertionError(
            f"mm {mm.serial} exits with {mm.map_count} vmas, tables {mm.nr_tables}, "
            f"{mm.anon_rss} anonymous and {mm.file_rss} file pages, {mm.swapents} swap entries left"
        )
