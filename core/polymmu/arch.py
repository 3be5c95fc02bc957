"""Everything an architecture imports, and all that it may import.

In-tree architectures and third parties' use exactly these names. First the words of the contract, then data
classes to answer with, then the kernel objects that hooks are handed, then what a hook may call. Last, what the
miss routine of an MMU that is not a plain radix walker is compiled from (``hardware.miss``).
"""

from __future__ import annotations

from polymmu import defaults
from polymmu.description.model import doc
from polymmu.errors import UserMistake, syscall_error
from polymmu.hardware.compile import Words, address_of, kernel, step
from polymmu.hardware.cpu import Cpu
from polymmu.hardware.entry import Access, EntryFormat, Field, Privilege, WalkFault
from polymmu.hardware.layout import RadixLayout
from polymmu.hardware.miss import fill_tlb, give, ordinal_of, through_tlb
from polymmu.hardware.ram import Ram
from polymmu.hardware.state import (
    ABSENT,
    ASIDS,
    BASE_SHIFT,
    CODES,
    DIRTY,
    EVENTS,
    FAULT_DROPS,
    FAULT_ENTRY,
    FAULT_LEVEL,
    FAULT_PLACE,
    HAS_SEGMENTS,
    MISS_ADDRESS,
    MMU,
    NEED,
    PEEK,
    PRIVILEGE,
    RAM_BYTES,
    REFERENCES,
    ROOT,
    SEGMENT,
    STOP_AT,
    SUPERVISOR_RIGHTS,
    USER_RIGHTS,
    WALK,
    WALK_ROOT,
    WALKS,
)
from polymmu.hardware.tlb_kernels import space_of
from polymmu.hardware.walk import BadRoot, EntryReader, RadixTranslation, Translation, Walk
from polymmu.hardware.walk_kernels import read_entry, write_entry
from polymmu.hooks import ArchKernel, hookimpl
from polymmu.mm.frames import alloc_page, alloc_pages, free_page, free_pages
from polymmu.mm.gather import tlb_remove_page, tlb_remove_table
from polymmu.mm.pgtables import free_pgd_range
from polymmu.mm.tables import account_table
from polymmu.structs import (
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    AddressLimits,
    EntryRun,
    FaultInfo,
    Kernel,
    mm_struct,
    mmu_gather,
    vm_area_struct,
)

__all__ = [
    "ABSENT",
    "ASIDS",
    "BASE_SHIFT",
    "CODES",
    "DIRTY",
    "EVENTS",
    "FAULT_DROPS",
    "FAULT_ENTRY",
    "FAULT_LEVEL",
    "FAULT_PLACE",
    "HAS_SEGMENTS",
    "MISS_ADDRESS",
    "MMU",
    "NEED",
    "PEEK",
    "PRIVILEGE",
    "RAM_BYTES",
    "REFERENCES",
    "ROOT",
    "SEGMENT",
    "STOP_AT",
    "SUPERVISOR_RIGHTS",
    "USER_RIGHTS",
    "VM_EXEC",
    "VM_GROWSDOWN",
    "VM_HUGETLB",
    "VM_PFNMAP",
    "VM_READ",
    "VM_SHARED",
    "VM_WRITE",
    "WALK",
    "WALKS",
    "WALK_ROOT",
    "Access",
    "AddressLimits",
    "ArchKernel",
    "BadRoot",
    "Cpu",
    "EntryFormat",
    "EntryReader",
    "EntryRun",
    "FaultInfo",
    "Field",
    "Kernel",
    "Privilege",
    "RadixLayout",
    "RadixTranslation",
    "Ram",
    "Translation",
    "UserMistake",
    "Walk",
    "WalkFault",
    "Words",
    "account_table",
    "address_of",
    "alloc_page",
    "alloc_pages",
    "defaults",
    "doc",
    "fill_tlb",
    "free_page",
    "free_pages",
    "free_pgd_range",
    "give",
    "hookimpl",
    "kernel",
    "mm_struct",
    "mmu_gather",
    "ordinal_of",
    "read_entry",
    "space_of",
    "step",
    "syscall_error",
    "through_tlb",
    "tlb_remove_page",
    "tlb_remove_table",
    "vm_area_struct",
    "write_entry",
]
