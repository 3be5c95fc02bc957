"""The life of an address space: made, run on CPUs, torn down with its last user, freed with its last CPU.

Two counts, as in Linux. ``mm_users``: who uses the user part; at 0 ``exit_mmap`` takes all of it down.
``mm_count``: who needs the struct and the root table: all users together count as one, each CPU that has the
root loaded as one more; at 0 they are freed.
"""

from __future__ import annotations

import errno
from functools import partial

from polymmu.errors import SyscallError, syscall_error
from polymmu.hardware.cpu import Cpu
from polymmu.hooks import ArchKernel
from polymmu.mm.commit import vm_unacct_vmas
from polymmu.mm.frames import lru_add_drain
from polymmu.mm.gather import tlb_finish_mmu, tlb_gather_mmu
from polymmu.mm.grab import mmdrop, mmgrab
from polymmu.mm.notifier import mmu_notifier_release
from polymmu.mm.pagecache import put_file
from polymmu.mm.reclaim import try_to_free_pages
from polymmu.mm.swap import boot_swap
from polymmu.mm.vma import remove_vma, vmas_of
from polymmu.mm.zap import unmap_vmas
from polymmu.sched.locks import Mutex, RwSem, Spinlock
from polymmu.slab import Slab
from polymmu.structs import address_space, anon_vma, mm_struct, vm_area_struct

__all__ = [
    "activate",
    "boot",
    "enter_lazy_tlb",
    "exit_mmap",
    "leave_lazy_tlb",
    "mm_alloc",
    "mmput",
    "show_map",
]


def boot(kernel: ArchKernel) -> None:
    """Make the kernel's slabs and its own address space, which CPUs load when they run no program."""
    sched, free = kernel.sched, kernel.free

    def fails(slab: str) -> bool:
        return free.fail_next is not None and free.fail_next(slab)

    choice = kernel.description.kernel
    i_mmap_lock = Spinlock if choice.i_mmap_lock == "spin" else Mutex
    anon_vma_lock = Spinlock if choice.anon_vma_spins else Mutex
    kernel.mms = Slab(
        "mm_struct",
        lambda slot: mm_struct(slot, kernel, RwSem(sched, "mmap_lock"), Spinlock(sched, "page_table_lock")),
        fails,
    )
    kernel.vmas = Slab("vm_area_struct", lambda slot: vm_area_struct(slot=slot), fails)
    kernel.mappings = Slab(
        "address_space",
        lambda slot: address_space(
            slot,
            i_mmap_lock(sched, "i_mmap_lock"),
            Mutex(sched, "i_mutex"),
            Mutex(sched, "unmap_mutex"),
            RwSem(sched, "invalidate_lock"),
            kernel.variants.rmap_tree.new_tree(),
        ),
        fails,
    )
    kernel.anon_vmas = Slab(
        "anon_vma", lambda slot: anon_vma(slot, anon_vma_lock(sched, "anon_vma_lock")), fails
    )
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
    mm.anon_rss = mm.file_rss = mm.swapents = mm.hiwater_rss = mm.hiwater_vm = 0
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
    try:
        kernel.ops.init_new_context(mm, like)
    except SyscallError:
        kernel.mms.free(mm)
        raise
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
        _come_back(kernel, cpu, mm)
        return
    kernel.sched.spend(kernel.description.costs.context_switch, "context_switch")
    _switch(kernel, cpu, prev, mm)


def _come_back(kernel: ArchKernel, cpu: Cpu, mm: mm_struct) -> None:
    """``cpu`` runs the mm that it has loaded; if it kept that lazily, it may have missed something."""
    if kernel.lazy >> cpu.index & 1:
        kernel.lazy &= ~(1 << cpu.index)
        kernel.ops.switch_mm(cpu, mm, mm)


def _switch(kernel: ArchKernel, cpu: Cpu, prev: mm_struct | None, mm: mm_struct) -> None:
    kernel.sched.preempt_disable()
    kernel.lazy &= ~(1 << cpu.index)
    kernel.ops.switch_mm(cpu, prev, mm)
    kernel.active_mm[cpu.index] = mm
    mmgrab(mm)
    kernel.sched.preempt_enable()
    if prev is not None:
        mmdrop(prev)


def enter_lazy_tlb(kernel: ArchKernel, cpu: Cpu) -> None:
    """``cpu`` goes idle, or on with a kernel thread: it keeps what it has loaded, and comes back to it cheaply."""
    mm = kernel.active_mm[cpu.index]
    if mm is not None:
        kernel.lazy |= 1 << cpu.index
        kernel.ops.enter_lazy_tlb(cpu, mm)


def leave_lazy_tlb(kernel: ArchKernel) -> None:
    """No more task is to come: each lazy CPU goes back to its mm, or to the kernel's own if that one is dead."""
    assert kernel.init_mm is not None
    for cpu in kernel.cpus:
        mm = kernel.active_mm[cpu.index]
        if kernel.lazy >> cpu.index & 1 and mm is not None:
            if mm.mm_users:
                _come_back(kernel, cpu, mm)
            else:
                _switch(kernel, cpu, mm, kernel.init_mm)


def mmput(mm: mm_struct) -> None:
    """One user less; after the last one nothing is mapped.

    CPUs that have the mm loaded keep it lazily, and with it the struct and the root table, until they have something
    else to run; where no tasks run, at once.
    """
    kernel: ArchKernel = mm.kernel
    kernel.sched.atomic()
    mm.mm_users -= 1
    if mm.mm_users:
        return
    kernel.events.mm_call_begin(mm, "exit")
    kernel.sched.spend(kernel.description.costs.syscall, "syscall")
    for cpu in _having(mm):
        enter_lazy_tlb(kernel, cpu)
    exit_mmap(mm)
    if mm.exe_file is not None:
        put_file(kernel, mm.exe_file)
        mm.exe_file = None
    assert kernel.init_mm is not None
    if not kernel.sched.runs_tasks:  # else the CPUs keep it, lazily, until they run something else
        for cpu in _having(mm):
            _switch(kernel, cpu, mm, kernel.init_mm)
    mmdrop(mm)
    kernel.events.mm_call_end(mm, "exit")


def show_map(mm: mm_struct) -> list[tuple[int, int, int]]:
    """What /proc shows of ``mm``: (start, end, flags) of each vma. Whoever reads it is a user of the mm meanwhile."""
    mm.kernel.sched.atomic()
    mm.mm_users += 1
    mm.mmap_lock.down_read()
    rows = [(vma.vm_start, vma.vm_end, vma.vm_flags) for vma in mm.vmas.values()]
    mm.mmap_lock.up_read()
    mmput(mm)
    return rows


def _having(mm: mm_struct) -> list[Cpu]:
    """The CPUs that have ``mm`` loaded."""
    kernel: ArchKernel = mm.kernel
    return [cpu for cpu in kernel.cpus if kernel.active_mm[cpu.index] is mm]


def exit_mmap(mm: mm_struct) -> None:
    """Take every mapping down: pages, tables, vmas, in the order of A7.3.

    AssertionError where something is left that the kernel looks for: a page counted as present, a vma, or a table.
    """
    kernel: ArchKernel = mm.kernel
    mmu_notifier_release(mm)
    first = mm.mmap
    lru_add_drain(kernel)
    kernel.ops.flush_cache_mm(mm)
    tlb = tlb_gather_mmu(mm, True)
    unmap_vmas(tlb, first, 0, 0)
    vm_unacct_vmas(first)
    tables = kernel.variants.free_pgtables
    tables.exiting(tlb, first)
    tlb_finish_mmu(tlb, 0, kernel.shape.limits.mm_vm_size)
    mm.vmas.clear()
    mm.mmap = mm.mmap_cache = None
    for vma in vmas_of(first):
        mm.map_count -= 1
        remove_vma(vma)
    mm.total_vm = 0
    left: dict[str, str] = {}
    if tables.tables_left(mm):
        left["INV-PTALL"] = f"{tables.tables_left(mm)} page tables, {mm.nr_tables} by level"
    if mm.map_count or mm.anon_rss or mm.file_rss or mm.swapents:
        left["INV-REF"] = (
            f"{mm.map_count} vmas, {mm.anon_rss} anonymous and {mm.file_rss} file pages, {mm.swapents} swap entries"
        )
    for invariant, what in left.items():
        kernel.events.bug(mm, invariant, f"mm {mm.serial} exits with {what} left")
    if left:
        raise AssertionError(f"mm {mm.serial} exits with {' and '.join(left.values())} left")
