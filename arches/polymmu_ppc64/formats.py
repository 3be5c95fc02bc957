"""Linux's tables on ppc64, and the section of a machine file. Hardware never reads these tables.

    4 KiB    63:17 pfn   16 huge    15:12 slot   11 busy   10 hashed
    64 KiB   63:30 pfn   28 combo   27:12 hashed and slot   11 busy
    both     9 RW   8 accessed   7 dirty   4 coherent   2 exec   1 user   0 present

Three levels are those of 2.6.12 and 2.6.13 (upper entries: 32-bit frame numbers), four those of 2.6.14 on (kernel
addresses); with 64 KiB pages (2.6.15, frame number from bit 30 on as of 2.6.23) there are three again. A 64 KiB
pte table's second half, for the slots of 4 KiB sub-pages, is there and stays empty: every page is entered whole.
A pte that hardware refuses, PROT_NONE, is present without the user bit. What is not present holds, where the frame
number would stand, a swap entry (type in bits 6:1, offset from bit 8) or, with the user bit, a page of a file.
Source: Linux ``pgtable.h``, ``pgtable-ppc64-4k.h``, ``pgtable-ppc64-64k.h``.
"""

from __future__ import annotations

from typing import Any

import attrs
from attrs import field

from polymmu import arch
from polymmu.arch import EntryFormat, Field, SoftEntry, doc

KIB = 1 << 10
WORD = (1 << 64) - 1

PRESENT, USER, EXEC, COHERENT, DIRTY, ACCESSED, RW = 0x001, 0x002, 0x004, 0x010, 0x080, 0x100, 0x200
BUSY, HASHPTE, SLOT, HUGE = 0x800, 0x400, 0xF000, 0x10000
SUBPAGES, FIRST_SUBPAGE, COMBO = 0x0FFFF000, 0x08000000, 0x10000000
KERNEL_BASE = 0xC << 60


def tables(names: str, index_bits: tuple[int, ...], page_shift: int, upper_bytes: int) -> arch.RadixLayout:
    """Tables whose entries above the ptes have ``upper_bytes``."""
    last = len(index_bits) - 1
    widths = (*[upper_bytes] * last, 8)
    return arch.RadixLayout(index_bits, page_shift, tuple(names.split()), widths, frozenset({last}))


THREE_LEVELS = tables("pgd pmd pte", (10, 10, 9), 12, 4)
FOUR_LEVELS = tables("pgd pud pmd pte", (9, 7, 7, 9), 12, 8)
LARGE_PAGES = tables("pgd pmd pte", (4, 12, 12), 16, 8)


def check_groups(section: Any, attribute: object, groups: int) -> None:
    """What SDR1 can say."""
    if groups and (groups < 1 << 11 or groups & (groups - 1)):
        raise ValueError(f"{groups} groups; 0 (by memory) or a power of two from 2048 on")


def check_page(section: Any, attribute: object, page: int) -> None:
    """64 KiB pages came with the four-level tables."""
    if page == 64 * KIB and section.levels == 3:
        raise ValueError("64 KiB pages need levels: 4 (Linux 2.6.15 on)")


def cycles(default: int, text: str) -> Any:
    return field(default=default, metadata=doc(text, minimum=0, maximum=10**9))


@attrs.frozen(kw_only=True)
class Ppc64Config:
    """The ``ppc64`` section of a machine file, and what follows from it."""

    mmu: str = field(
        default="hash",
        metadata=doc(
            "hash, or radix (POWER9's tables, for `polymmu translate` only)", choices=("hash", "radix")
        ),
    )
    levels: int = field(
        default=4, metadata=doc("tables of Linux 2.6.12 (3) or of 2.6.14 and later (4)", choices=(3, 4))
    )
    page: int = field(
        default=4 * KIB,
        metadata=doc("base page: 4 KiB or 64 KiB", unit="size", choices=(4 * KIB, 64 * KIB)),
        validator=check_page,
    )
    hash_groups: int = field(
        default=0,
        metadata=doc("groups of eight in the hash table; 0: one for two pages of memory", minimum=0),
        validator=check_groups,
    )
    big_segments: bool = field(default=False, metadata=doc("segments of 1 TiB from 1 TiB on (Linux 2.6.24)"))
    slb_miss: int = cycles(100, "cycles of the trap that fills a segment buffer entry")
    hash_fault: int = cycles(300, "cycles of the trap into the hash fault handler")
    hash_eviction: int = cycles(50, "cycles of throwing out a hash-table entry")

    @property
    def layout(self) -> arch.RadixLayout:
        """Linux's tables."""
        if self.page == 64 * KIB:
            return LARGE_PAGES
        return THREE_LEVELS if self.levels == 3 else FOUR_LEVELS

    @property
    def pfn_shift(self) -> int:
        """Where a pte's frame number stands."""
        return 30 if self.page == 64 * KIB else 17

    @property
    def hash_flags(self) -> int:
        """Everything in a pte that is about the hash table; 0 where that has no entry for it."""
        return BUSY | (SUBPAGES | COMBO if self.page == 64 * KIB else HASHPTE | SLOT)

    @property
    def pte_format(self) -> EntryFormat:
        """A pte, of a huge page too."""
        low = self.pfn_shift
        return EntryFormat(
            present=Field(PRESENT, PRESENT),
            frame_mask=-(1 << self.pfn_shift) & WORD,
            address_shift=self.layout.page_shift - self.pfn_shift,
            write=Field(RW, RW),
            user=Field(USER, USER),
            execute=Field(EXEC, EXEC),
            accessed=Field(ACCESSED, ACCESSED),
            dirty=Field(DIRTY, DIRTY),
            swap=SoftEntry(mask=PRESENT | USER, on=0, parts=(((low + 1, 6),), ((low + 8, 56 - low),))),
            file=SoftEntry(mask=PRESENT | USER, on=USER, parts=(((low, 64 - low),),)),
        )

    @property
    def table_format(self) -> EntryFormat:
        """An entry above the ptes; not 0 is all there is to say of its presence."""
        if self.levels == 3:
            return EntryFormat(present=Field(0, 0), frame_mask=0, table_mask=(1 << 32) - 1, address_shift=12)
        return EntryFormat(
            present=Field(KERNEL_BASE, KERNEL_BASE),
            frame_mask=0,
            table_mask=~KERNEL_BASE & WORD,
            table_bits=KERNEL_BASE,
        )


def protections(mark: int = 0) -> tuple[int, ...]:
    """Pte bits, and ``mark``, by VM_READ | VM_WRITE | VM_EXEC | VM_SHARED. Who may touch a page may read it."""

    def of(flags: int) -> int:
        value = PRESENT | COHERENT | ACCESSED | mark
        if flags & (arch.VM_READ | arch.VM_WRITE | arch.VM_EXEC):
            value |= USER
        if flags & arch.VM_EXEC:
            value |= EXEC
        return value | RW if flags & arch.VM_WRITE and flags & arch.VM_SHARED else value

    return tuple(of(flags) for flags in range(16))
