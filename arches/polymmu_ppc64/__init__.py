"""64-bit PowerPC: segments, a hashed page table in memory, and Linux's tables that only software reads.

First reading: ``mmu`` (what a miss does), then ``flush`` (why every pte update tells the hash table). Further
modules: ``formats`` (section, tables, ptes), ``hashing`` (VSIDs, hashes), ``walks`` (what the CPU asks of this MMU),
``huge`` (huge pages and slices), ``images`` (translating in memory of real machines, hashed or radix).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np

from polymmu import arch
from polymmu.arch import EntryRun, defaults, hookimpl, mm_struct
from polymmu_ppc64 import flush, huge, mmu, walks
from polymmu_ppc64.formats import RW, WORD, Ppc64Config, protections
from polymmu_ppc64.images import HashImage, RadixImage, read_image, segments_in

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


# ------------------------------------------------------------------ shape
@hookimpl
def config_class() -> type:
    return Ppc64Config


@hookimpl
def summary() -> str:
    return "64-bit PowerPC: segments and a hashed page table, 4 KiB or 64 KiB pages; POWER9 radix images"


@hookimpl
def boot_registers() -> dict[str, int]:
    """None that the tables depend on: SDR1 is where the kernel puts its hash table."""
    return {}


@hookimpl
def page_table_layout(section: Ppc64Config) -> arch.RadixLayout:
    return section.layout


@hookimpl
def entry_format(section: Ppc64Config, level: int) -> arch.EntryFormat:
    return section.pte_format if level == section.layout.pte_level else section.table_format


@hookimpl
def translation(section: Ppc64Config, registers: Mapping[str, int]) -> arch.Translation:
    if section.mmu == "radix":
        return RadixImage(pid=registers.get("pid", 0))
    if "sdr1" in registers:
        return HashImage(segments=segments_in(registers))
    layout = section.layout
    return walks.HashMmu(
        section=section,
        page_shift=layout.page_shift,
        page_shifts=(layout.page_shift, mmu.HUGE_SHIFT),
        path_steps=tuple(zip(layout.names, layout.entry_bytes, strict=True)),
        event_costs={
            "slb_misses": section.slb_miss,
            "hash_faults": section.hash_fault,
            "hash_evictions": section.hash_eviction,
        },
    )


@hookimpl
def root_of(section: Ppc64Config, registers: Mapping[str, int], space: str | None) -> int:
    if space is not None:
        raise arch.UserMistake(f"unknown address space '{space}'; ppc64 has one, named by its registers")
    name = "ptcr" if section.mmu == "radix" else "sdr1"
    if name not in registers:
        raise arch.UserMistake(f"no {name}; give --register {name}=VALUE")
    return registers[name] & (1 << 60) - (1 << 12) if name == "ptcr" else registers[name]


@hookimpl
def address_limits(section: Ppc64Config) -> arch.AddressLimits:
    """2 TiB with three levels, else 16 TiB; the bottom-up search of old kernels is not modelled.

    With three levels the usual place of a heap, two thirds up, would be where only huge pages live.
    """
    three = section.levels == 3
    top = 1 << section.layout.va_bits
    below_1_tib = ((TIB, TIB + TIB // 2), (0, 4 * GIB))
    return arch.AddressLimits(
        task_size=top,
        mm_vm_size=top,
        mmap_base=top - 128 * MIB,
        stack_top=top,
        huge_ranges=below_1_tib if three else ((TIB, top - TIB), (0, TIB), (top - TIB, top)),
        start_brk=TIB // 2 if three else None,
    )


@hookimpl
def byte_order() -> str:
    return "big"


@hookimpl
def page_protections() -> tuple[int, ...]:
    return protections()


@hookimpl
def decode_fault(code: int) -> arch.FaultInfo:
    return walks.decoded(code)


# ------------------------------------------------------------------ flushes: the pte updates do them
@hookimpl
def enter_lazy_mmu(mm: mm_struct) -> None:
    flush.batch_of(mm).active = True


@hookimpl
def leave_lazy_mmu(mm: mm_struct) -> None:
    flush.flush_pending(flush.batch_of(mm))
    flush.batch_of(mm).active = False


@hookimpl
def tlb_flush(tlb: arch.mmu_gather) -> None:
    """What the batch holds where a gather is full in lazy mode, below the table lock (2.6.22 to 2.6.39)."""
    flush.flush_pending(flush.batch_of(tlb.mm))


@hookimpl
def flush_tlb_mm(mm: mm_struct) -> None:
    """Nothing: every update was flushed before its table lock was dropped (2.6.22). The same goes for the flushes
    that come down to this one by default.

    Also where a fault raised rights: at the retry the hash fault handler, or the preload before it, sends tlbie.
    """


@hookimpl
def tables_need_rcu() -> bool:
    """tlbie interrupts nobody: hash faults and lockless walkers read tables with interrupts off and no lock."""
    return True


# ------------------------------------------------------------------ ptes
@hookimpl
def set_pte(mm: mm_struct, addr: int, ptep: int, values: EntryRun) -> None:
    """What a value says of the hash table is another entry's; a hashed entry that is replaced is flushed first."""
    old = defaults.ptep_get_and_clear(mm, addr, ptep, len(values), None)
    flush.forget_hashed(mm, addr, old, mm.layout.page_shift)
    flags = flush.section_of(mm).hash_flags
    defaults.set_pte(mm, addr, ptep, values & np.uint64(~flags & WORD))


@hookimpl
def ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, n: int) -> EntryRun:
    old = defaults.ptep_get_and_clear(mm, addr, ptep, n, None)
    flush.forget_hashed(mm, addr, old, mm.layout.page_shift)
    return old & np.uint64(~flush.section_of(mm).hash_flags & WORD)


@hookimpl
def set_wrprotect(mm: mm_struct, addr: int, ptep: int, n: int) -> None:
    """The slots stay remembered."""
    old: EntryRun = mm.kernel.ram.u64[ptep >> 3 : (ptep >> 3) + n].byteswap()
    flush.forget_hashed(mm, addr, np.where(old & np.uint64(RW), old, np.uint64(0)), mm.layout.page_shift)
    defaults.set_wrprotect(mm, addr, ptep, n)


@hookimpl
def update_mmu_cache(vma: arch.vm_area_struct, addr: int, ptep: int, n: int) -> None:
    """Enter the pages that a fault brought into the hash table now, which saves the retry its hash fault."""
    if vma.vm_flags & arch.VM_HUGETLB:
        return
    mm, shift = vma.vm_mm, vma.vm_mm.layout.page_shift
    kernel: arch.ArchKernel = mm.kernel
    kernel.sched.spend(kernel.description.costs.entry_update * n, "hash")
    if mmu.preload(kernel.sched.cpu.mmu, kernel.ram.words, mm.context.number, addr, ptep, n, shift):
        flush.tlbie(mm, addr + (np.arange(n, dtype=np.int64) << shift), shift)


# ------------------------------------------------------------------ contexts
@hookimpl
def init_new_context(mm: mm_struct, like: mm_struct | None) -> None:
    """The first is the kernel's own, at boot."""
    kernel: arch.ArchKernel = mm.kernel
    if kernel.init_mm is None:
        kernel.arch_state = flush.boot(kernel)
        mm.context = flush.Context(0)
    else:
        mm.context = flush.new_context(mm, like)


@hookimpl
def switch_mm(cpu: arch.Cpu, prev: mm_struct | None, following: mm_struct) -> None:
    if prev is following:
        return
    following.kernel.sched.atomic()
    following.cpu_mask |= 1 << cpu.index
    cpu.load_root(following.pgd, asid=following.context.number, space=following.serial)
    flush.load_segments(cpu, following.context)


@hookimpl
def destroy_context(mm: mm_struct) -> None:
    """Free the number, and the separate tree with all its tables."""
    huge.free_tree(mm)
    heapq.heappush(mm.kernel.arch_state.freed_contexts, mm.context.number)


huge_page_sizes = huge.huge_page_sizes
huge_entry_format = huge.huge_entry_format
huge_protections = huge.huge_protections
is_hugepage_only_range = huge.is_hugepage_only_range
prepare_hugepage_range = huge.prepare_hugepage_range
huge_pte_alloc = huge.huge_pte_alloc
huge_pte_offset = huge.huge_pte_offset
set_huge_pte = huge.set_huge_pte
huge_ptep_get_and_clear = huge.huge_ptep_get_and_clear
hugetlb_free_pgd_range = huge.hugetlb_free_pgd_range

__all__ = ["Ppc64Config", "read_image"]
