"""64-bit PowerPC: segments, a hashed page table in memory, and Linux's tables that only software reads.

First reading: ``mmu`` (what a miss does), then ``flush`` (why every pte update tells the hash table).

| module | what |
|---|---|
| ``formats`` | the section of a machine file, Linux's layouts and ptes |
| ``hashing`` | VSIDs, hashes, the two doublewords of a hash-table entry |
| ``mmu`` | the miss routine: segment buffer, search, hash fault handler |
| ``hash_mmu`` | what the CPU asks of this MMU, fault codes |
| ``context`` | hash table, contexts, switching |
| ``flush`` | pte updates, batches, tlbie |
| ``huge`` | huge pages and slices |
| ``walks``, ``images`` | translating in images of real machines, hashed or radix |
"""

from __future__ import annotations

from collections.abc import Mapping

from polymmu.arch import AddressLimits, EntryFormat, RadixLayout, Translation, UserMistake, hookimpl
from polymmu_ppc64 import context, flush, formats, hash_mmu, huge, images
from polymmu_ppc64.formats import Ppc64Config
from polymmu_ppc64.images import HashImage, RadixImage, segments_in

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


@hookimpl
def config_class() -> type:
    return Ppc64Config


@hookimpl
def summary() -> str:
    return "64-bit PowerPC: segments and a hashed page table, 4 KiB or 64 KiB pages; POWER9 radix images"


@hookimpl
def boot_registers(section: Ppc64Config) -> dict[str, int]:
    """None that the tables depend on: SDR1 is where the kernel puts its hash table."""
    return {}


@hookimpl
def page_table_layout(section: Ppc64Config) -> RadixLayout:
    return formats.layout_of(section)


@hookimpl
def entry_format(section: Ppc64Config, registers: Mapping[str, int], level: int) -> EntryFormat:
    if level == formats.layout_of(section).pte_level:
        return formats.pte_format(section)
    return formats.table_format(section, level)


@hookimpl
def translation(section: Ppc64Config, registers: Mapping[str, int]) -> Translation:
    if section.mmu == "radix":
        return RadixImage(pid=registers.get("pid", 0))
    if "sdr1" in registers:
        return HashImage(segments=segments_in(registers))
    return hash_mmu.hash_mmu(section)


@hookimpl
def root_of(section: Ppc64Config, registers: Mapping[str, int], space: str | None) -> int:
    if space is not None:
        raise UserMistake(f"unknown address space '{space}'; ppc64 has one, named by its registers")
    name = "ptcr" if section.mmu == "radix" else "sdr1"
    if name not in registers:
        raise UserMistake(f"no {name}; give --register {name}=VALUE")
    value = registers[name]
    return value & ((1 << 60) - 1) & -(1 << 12) if name == "ptcr" else value


@hookimpl
def address_limits(section: Ppc64Config) -> AddressLimits:
    """2 TiB with three levels, else 16 TiB; the bottom-up search of old kernels is not modelled.

    With three levels the usual place of a heap, two thirds up, would be where only huge pages live.
    """
    three = section.levels == 3
    top = 1 << formats.layout_of(section).va_bits
    return AddressLimits(
        task_size=top,
        mm_vm_size=top,
        mmap_base=top - 128 * MIB,
        stack_top=top,
        va_bits=64,
        huge_ranges=((TIB, TIB + TIB // 2), (0, 4 * GIB))
        if three
        else ((TIB, top - TIB), (0, TIB), (top - TIB, top)),
        start_brk=TIB // 2 if three else None,
    )


@hookimpl
def byte_order(section: Ppc64Config) -> str:
    return "big"


@hookimpl
def page_protections(section: Ppc64Config, registers: Mapping[str, int]) -> tuple[int, ...]:
    return formats.protections()


decode_fault = hash_mmu.decode_fault
init_new_context = context.init_new_context
switch_mm = context.switch_mm
enter_lazy_mmu = flush.enter_lazy_mmu
leave_lazy_mmu = flush.leave_lazy_mmu
tlb_flush = flush.tlb_flush
flush_tlb_mm = flush.flush_tlb_mm
flush_tlb_range = flush.flush_tlb_range
flush_tlb_page = flush.flush_tlb_page
set_pte = flush.set_pte
ptep_get_and_clear = flush.ptep_get_and_clear
set_wrprotect = flush.set_wrprotect
set_access_flags = flush.set_access_flags
test_and_clear_young = flush.test_and_clear_young
update_mmu_cache = flush.update_mmu_cache
tables_need_rcu = flush.tables_need_rcu
destroy_context = huge.destroy_context
is_hugepage_only_range = huge.is_hugepage_only_range
prepare_hugepage_range = huge.prepare_hugepage_range
huge_page_sizes = huge.huge_page_sizes
huge_entry_format = huge.huge_entry_format
huge_protections = huge.huge_protections
huge_pte_alloc = huge.huge_pte_alloc
huge_pte_offset = huge.huge_pte_offset
set_huge_pte = huge.set_huge_pte
huge_ptep_get_and_clear = huge.huge_ptep_get_and_clear
hugetlb_free_pgd_range = huge.hugetlb_free_pgd_range
read_image = images.read_image

__all__ = ["Ppc64Config"]
