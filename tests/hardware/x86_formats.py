"""The three x86 translations as test data, written from the SDM's tables and not from the arch plugins."""

from __future__ import annotations

from polymmu.hardware.entry import Access, EntryFormat, Field, Privilege, WalkFault
from polymmu.hardware.layout import RadixLayout
from polymmu.hardware.walk import RadixTranslation

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def bits(high: int, low: int) -> int:
    """A mask of the bits high..low, both included."""
    return (1 << (high + 1)) - (1 << low)


P, RW, US, A, D, G = (Field(1 << n, 1 << n) for n in (0, 1, 2, 5, 6, 8))
NX = Field(1 << 63, 0, 1 << 63)
PS = 1 << 7


def _error_codes() -> dict[tuple[WalkFault, Access, Privilege], int]:
    """#PF error codes: P 1, W 2, U 4, RSVD 8, I/D 16. 0x100 stands for #GP (not canonical)."""
    codes = {}
    for access in Access:
        for privilege in Privilege:
            who = 2 * (access == Access.STORE) + 4 * (privilege == Privilege.USER)
            who += 16 * (access == Access.FETCH)
            for fault in WalkFault:
                codes[fault, access, privilege] = {
                    WalkFault.NONE: 0,
                    WalkFault.NOT_PRESENT: who,
                    WalkFault.TABLE_UNREADABLE: who,
                    WalkFault.RESERVED_BIT: who | 9,
                    WalkFault.MISALIGNED: who | 9,
                    WalkFault.NO_PERMISSION: who | 1,
                    WalkFault.NOT_ACCESSED: who | 1,
                    WalkFault.NON_CANONICAL: 0x100,
                }[fault]
    return codes


CODES = _error_codes()


def two_level() -> RadixTranslation:
    """32-bit paging with CR4.PSE and PSE-36 (40 physical bits)."""
    return RadixTranslation(
        layout=RadixLayout(
            index_bits=(10, 10),
            page_shift=12,
            names=("pgd", "pte"),
            entry_bytes=(4, 4),
            leaf_levels=frozenset({0, 1}),
        ),
        formats=(
            EntryFormat(
                present=P,
                write=RW,
                user=US,
                accessed=A,
                dirty=D,
                global_=G,
                leaf_mask=PS,
                table_mask=bits(31, 12),
                frame_mask=bits(31, 22),
                high_frame_mask=bits(20, 13),
                high_frame_shift=19,
                reserved_leaf=1 << 21,
            ),
            EntryFormat(
                present=P, write=RW, user=US, accessed=A, dirty=D, global_=G, frame_mask=bits(31, 12)
            ),
        ),
        fault_codes=CODES,
    )


def pae(physical_bits: int = 52, marks_pdpt: bool = False) -> RadixTranslation:
    """PAE paging with EFER.NXE set.

    ``marks_pdpt``: QEMU and its descendants set bit 5 (accessed, reserved by the SDM) in PDPT entries in
    memory, so tables taken from them have it.
    """
    reserved_in_pdpt = bits(2, 1) | bits(8, 6) | (0 if marks_pdpt else 1 << 5)
    beyond = bits(62, physical_bits) if physical_bits < 63 else 0
    frame = bits(physical_bits - 1, 12)
    pmd = EntryFormat(
        present=P,
        write=RW,
        user=US,
        execute=NX,
        accessed=A,
        dirty=D,
        global_=G,
        leaf_mask=PS,
        table_mask=frame,
        frame_mask=bits(physical_bits - 1, 21),
        reserved_table=beyond,
        reserved_leaf=beyond | bits(20, 13),
    )
    pdpt = EntryFormat(
        present=P, table_mask=frame, frame_mask=0, reserved_table=beyond | 1 << 63 | reserved_in_pdpt
    )
    pte = EntryFormat(
        present=P,
        write=RW,
        user=US,
        execute=NX,
        accessed=A,
        dirty=D,
        global_=G,
        frame_mask=frame,
        reserved_leaf=beyond,
    )
    return RadixTranslation(
        layout=RadixLayout(
            index_bits=(2, 9, 9),
            page_shift=12,
            names=("pgd", "pmd", "pte"),
            entry_bytes=(8, 8, 8),
            leaf_levels=frozenset({1, 2}),
        ),
        formats=(pdpt, pmd, pte),
        fault_codes=CODES,
        root_registers=4,
    )


def four_level(physical_bits: int = 52) -> RadixTranslation:
    """64-bit paging with four levels, EFER.NXE set, no protection keys."""
    beyond = bits(51, physical_bits) if physical_bits < 52 else 0
    frame = bits(physical_bits - 1, 12)

    def upper(low: int | None) -> EntryFormat:
        large = low is not None
        return EntryFormat(
            present=P,
            write=RW,
            user=US,
            execute=NX,
            accessed=A,
            dirty=D if large else None,
            global_=G if large else None,
            leaf_mask=PS if large else 0,
            table_mask=frame,
            frame_mask=bits(physical_bits - 1, low) if low is not None else 0,
            reserved_table=beyond if large else beyond | PS,
            reserved_leaf=beyond | (bits(low - 1, 13) if low is not None else 0),
        )

    pte = EntryFormat(
        present=P,
        write=RW,
        user=US,
        execute=NX,
        accessed=A,
        dirty=D,
        global_=G,
        frame_mask=frame,
        reserved_leaf=beyond,
    )
    return RadixTranslation(
        layout=RadixLayout(
            index_bits=(9, 9, 9, 9),
            page_shift=12,
            names=("pgd", "pud", "pmd", "pte"),
            entry_bytes=(8, 8, 8, 8),
            leaf_levels=frozenset({1, 2, 3}),
        ),
        formats=(upper(None), upper(30), upper(21), pte),
        canonical="sign",
        fault_codes=CODES,
    )


def base_64k() -> RadixTranslation:
    """An MMU of no real make: 64 KiB base pages, three levels, 2^48 bytes of addresses."""
    frame = bits(51, 16)
    table = EntryFormat(present=P, write=RW, user=US, accessed=A, table_mask=frame, frame_mask=0)
    pte = EntryFormat(present=P, write=RW, user=US, accessed=A, dirty=D, global_=G, frame_mask=frame)
    return RadixTranslation(
        layout=RadixLayout(
            index_bits=(6, 13, 13),
            page_shift=16,
            names=("pgd", "pmd", "pte"),
            entry_bytes=(8, 8, 8),
            leaf_levels=frozenset({2}),
        ),
        formats=(table, table, pte),
        fault_codes=CODES,
    )
