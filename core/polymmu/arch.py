"""Everything an architecture imports, and all that it may import.

In-tree architectures and third parties' use exactly these names. First the words of the contract, then data
classes to answer with, then the kernel objects that hooks are handed, then what a hook may call.
"""

from __future__ import annotations

from polymmu import defaults
from polymmu.description.model import doc
from polymmu.errors import UserMistake, syscall_error
from polymmu.hardware.cpu import Cpu
from polymmu.hardware.entry import Access, EntryFormat, Field, Privilege, WalkFault
from polymmu.hardware.layout import RadixLayout
from polymmu.hardware.walk import RadixTranslation
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
    "VM_EXEC",
    "VM_GROWSDOWN",
    "VM_HUGETLB",
    "VM_PFNMAP",
    "VM_READ",
    "VM_SHARED",
    "VM_WRITE",
    "Access",
    "AddressLimits",
    "ArchKernel",
    "Cpu",
    "EntryFormat",
    "EntryRun",
    "FaultInfo",
    "Field",
    "Kernel",
    "Privilege",
    "RadixLayout",
    "RadixTranslation",
    "UserMistake",
    "WalkFault",
    "account_table",
    "alloc_page",
    "alloc_pages",
    "defaults",
    "doc",
    "free_page",
    "free_pages",
    "free_pgd_range",
    "hookimpl",
    "mm_struct",
    "mmu_gather",
    "syscall_error",
    "tlb_remove_page",
    "tlb_remove_table",
    "vm_area_struct",
]
