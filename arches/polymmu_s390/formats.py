"""What ESA/390 and z/Architecture tables look like: designations, entries, indices, and Linux's values in them.

Bits are given as masks; the manuals number them from the left. z/Architecture, eight bytes, big-endian:

    ASCE             0 .. 51 origin        54 G  55 P  56 S  57 X  58 R      60-61 DT  62-63 TL
    region entry     0 .. 51 origin        54 P        56-57 TF  58 I  59 C  60-61 TT  62-63 TL
    segment entry    0 .. 52 origin  53 FC 54 P                  58 I  59 C  60-61 TT
    pte              0 .. 51 frame   52 0  53 I  54 P  55 *      56 .. 63 software

and ESA/390, four bytes: an STD (origin, P, length STL), segment entries (origin, I, C, length PTL), ptes as above.
Empty entries are not zero: a table full of zeroes would be full of valid entries.

z/Architecture Principles of Operation, ch. 3 "Dynamic Address Translation"; Linux 2.6.25 to 3.0 for the values.
"""

from __future__ import annotations

from polymmu.arch import VM_EXEC, VM_READ, VM_SHARED, VM_WRITE, EntryFormat, Field, RadixLayout, SoftEntry
from polymmu_s390.dat import BIT_55, ENTRY_INVALID, LARGE, ORIGIN, PROTECT, PTE_INVALID, PTL, STE_ORIGIN

# Control register 0, and what of it counts.
CR0_EDAT, CR0_IEP = 0x800000, 0x100000

CRST_BITS, PAGE_BITS, PAGE_SHIFT = 11, 8, 12
SEGMENT_SIZE = 1 << PAGE_SHIFT + PAGE_BITS


def layout_of(names: tuple[str, ...], width: int, leaf_levels: frozenset[int]) -> RadixLayout:
    """Region and segment tables of 2048 entries over page tables of 256."""
    levels = len(names)
    return RadixLayout(
        index_bits=(CRST_BITS,) * (levels - 1) + (PAGE_BITS,),
        page_shift=PAGE_SHIFT,
        names=names,
        entry_bytes=(width,) * levels,
        leaf_levels=leaf_levels,
    )


ESA = layout_of(("pgd", "pte"), 4, frozenset({1}))
"""31 bits: a segment table of 8 KiB, page tables of 1 KiB."""

LAYOUTS = {
    2: layout_of(("pmd", "pte"), 8, frozenset({0, 1})),
    3: layout_of(("pud", "pmd", "pte"), 8, frozenset({1, 2})),
    4: layout_of(("pgd", "pud", "pmd", "pte"), 8, frozenset({2, 3})),
    5: layout_of(("pgd", "p4d", "pud", "pmd", "pte"), 8, frozenset({3, 4})),
}
"""z/Architecture: by levels in use. The root is a segment, region-third, region-second or region-first table."""

GROWN = 4
"""Levels that an mm may grow to."""

TASK_SIZE = {2: 1 << 31, 3: 1 << 42, 4: 1 << 53, 5: (1 << 64) - 4096}
"""What Linux lets programs use of so many levels (2 levels: 31-bit programs; 5: 4.13 on, all but the last page)."""

WORD = (1 << 64) - 1
PTE_NONE = PTE_INVALID | 0x001
"""A page without rights (Linux: _PAGE_TYPE_NONE)."""
PTE_SWAP, PTE_FILE = PTE_INVALID | 0x003, PTE_INVALID | PROTECT | 0x001
PTE_TYPE = PTE_INVALID | PROTECT | 0x003
"""What tells invalid ptes apart (2.6.39; before, swap entries were 0x600): nothing without rights may be protected."""


def designation(pgd: int, layout: RadixLayout) -> int:
    """What Linux loads into a control register for the root table at ``pgd``: private, full length."""
    if layout is ESA:
        return pgd | 0x8000_01FF
    return pgd | 0x1C0 | (layout.levels - 2) << 2 | 3


def entry_format(layout: RadixLayout, level: int, edat: bool) -> EntryFormat:
    """The entries of ``level`` as Linux makes them; ``edat``: segments may be large pages. Neither accessed nor
    dirty: storage keys know."""
    invalid = Field(ENTRY_INVALID, 0, ENTRY_INVALID)
    write = Field(PROTECT, 0, PROTECT)
    if level == layout.pte_level:
        top = 31 if layout is ESA else 64
        return EntryFormat(
            present=Field(PTE_INVALID, 0, PTE_INVALID),
            frame_mask=ORIGIN & (0x7FFF_FFFF if layout is ESA else WORD),
            write=write,
            empty=PTE_INVALID,
            prot_none=Field(PTE_TYPE, PTE_NONE, PTE_INVALID),
            swap=SoftEntry(
                mask=PTE_TYPE, on=PTE_SWAP, parts=(((2, 5),), ((7, 1), (12, top - 12))), empty=PTE_INVALID
            ),
            # A file pte's bit 1 is its page's.
            file=SoftEntry(
                mask=PTE_TYPE & ~0x002, on=PTE_FILE, parts=(((1, 7), (12, top - 12)),), empty=PTE_INVALID
            ),
        )
    if layout is ESA:
        return EntryFormat(
            present=invalid, frame_mask=0, table_mask=STE_ORIGIN, empty=ENTRY_INVALID, table_bits=PTL
        )
    if level == layout.pmd_level:
        return EntryFormat(
            present=invalid,
            frame_mask=-SEGMENT_SIZE & WORD,
            table_mask=-0x800 & WORD,
            leaf_mask=LARGE if edat else 0,
            write=write,
            empty=ENTRY_INVALID,
            prot_none=Field(LARGE | ENTRY_INVALID, LARGE | ENTRY_INVALID) if edat else None,
        )
    table_type = (layout.pmd_level - level) << 2
    return EntryFormat(
        present=invalid,
        frame_mask=0,
        table_mask=ORIGIN & WORD,
        empty=ENTRY_INVALID | table_type,
        table_bits=table_type | 3,
    )


def protections(read_only: int, writable: int, none: int) -> tuple[int, ...]:
    """Entry bits by VM_READ | VM_WRITE | VM_EXEC | VM_SHARED; every page that can be read can be executed.

    A private writable page is entered read-only.
    """

    def of(flags: int) -> int:
        if not flags & (VM_READ | VM_WRITE | VM_EXEC):
            return none
        return writable if flags & VM_WRITE and flags & VM_SHARED else read_only

    return tuple(of(flags) for flags in range(16))


PTE_PROTECTIONS = protections(PROTECT, 0, PTE_NONE)
SEGMENT_PROTECTIONS = protections(
    LARGE | BIT_55 | PROTECT, LARGE | BIT_55, LARGE | BIT_55 | PROTECT | ENTRY_INVALID
)
"""Of a large page: with change-recording override, so that its frames' keys need not be marked."""
