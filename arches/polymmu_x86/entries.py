"""The bits of an x86 table entry, and what a #PF error code says. Shared by all x86 paging modes.

     63  62..59 58..52 51 ......... 12 11..9  8   7   6  5  4   3   2   1   0
     NX   key   ignored  frame/table   soft   G  PS   D  A PCD PWT U/S R/W  P

Intel SDM vol. 3A, chapter "Paging"; AMD64 APM vol. 2, ch. 5. Bit 8 in a not-present entry is Linux's
PROT_NONE marker (2.6.39 and later; bit 7 before). Swap entries and file ptes are those of 2.6.39 too: earlier ones
use bit 8, and would here look like pages without rights.
"""

from __future__ import annotations

import attrs

from polymmu.arch import (
    VM_EXEC,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Access,
    EntryFormat,
    FaultInfo,
    Field,
    Privilege,
    SoftEntry,
    WalkFault,
)

P, RW, US, PWT, PCD, A, D, PS, G = (1 << n for n in range(9))
PROT_NONE = 1 << 8
FILE = 1 << 6
NX = 1 << 63
TABLE_BITS = P | RW | US | A | D
"""What Linux stores beside a table's address (_PAGE_TABLE, 0x67)."""

CR0_PG, CR0_WP = 1 << 31, 1 << 16
CR4_PSE, CR4_PAE, CR4_PGE, CR4_LA57, CR4_PCIDE = 1 << 4, 1 << 5, 1 << 7, 1 << 12, 1 << 17
EFER_NXE = 1 << 11


@attrs.frozen
class SoftEntries:
    """The two kinds of entries without a page in one paging mode."""

    swap: SoftEntry
    file: SoftEntry


def soft_entries(swap: tuple[tuple[int, int], ...], *file: tuple[int, int]) -> SoftEntries:
    """By where a swap entry's type and offset stand, and the pieces of a file pte's page."""
    kinds = P | FILE | PROT_NONE
    return SoftEntries(
        SoftEntry(mask=kinds, on=0, parts=tuple((piece,) for piece in swap)),
        SoftEntry(mask=kinds, on=FILE, parts=(file,)),
    )


SOFT_32 = soft_entries(((1, 5), (9, 23)), (1, 5), (7, 1), (9, 23))
SOFT_PAE = soft_entries(((32, 5), (37, 27)), (32, 32))
SOFT_64 = soft_entries(((1, 5), (9, 55)), (12, 32))


def bits(high: int, low: int) -> int:
    """A mask of bits high..low, both included, as manuals write them; empty where high < low."""
    return (1 << high + 1) - (1 << low) if high >= low else 0


def entry(
    *,
    address: int,
    leaf: int = 0,
    is_last: bool = False,
    nx: bool | None,
    reserved_table: int = 0,
    reserved_leaf: int = 0,
    frame: int | None = None,
    high_frame_mask: int = 0,
    high_frame_shift: int = 0,
    global_: bool = True,
    soft: SoftEntries | None = None,
) -> EntryFormat:
    """An entry that follows the common picture.

    ``address``: bits of the next table's (or last level's frame's) address. ``leaf``: the PS bit where it is
    honoured. ``nx``: None where the format has no bit 63, False where EFER.NXE makes it reserved. ``soft``: the
    entries without a page, in the last level.
    """
    no_execute = NX if nx is False else 0
    return EntryFormat(
        present=Field(P, P),
        frame_mask=address if frame is None else frame,
        table_mask=0 if is_last else address,
        leaf_mask=leaf,
        reserved_table=reserved_table | no_execute,
        reserved_leaf=reserved_leaf | no_execute,
        write=Field(RW, RW),
        user=Field(US, US),
        execute=Field(NX, 0, NX) if nx else Field(0, 0),
        accessed=Field(A, A),
        dirty=Field(D, D) if is_last or leaf else None,
        global_=Field(G, G) if global_ and (is_last or leaf) else None,
        high_frame_mask=high_frame_mask,
        high_frame_shift=high_frame_shift,
        table_bits=TABLE_BITS,
        prot_none=Field(P | PROT_NONE, PROT_NONE),
        swap=soft.swap if soft is not None else None,
        file=soft.file if soft is not None else None,
    )


def protections(nx: bool) -> tuple[int, ...]:
    """Pte bits by VM_READ | VM_WRITE | VM_EXEC | VM_SHARED.

    x86 cannot allow a store without a load; a mapping without any right is not present to hardware and keeps
    Linux's PROT_NONE bit. A private writable page is entered read-only.
    """

    def of(flags: int) -> int:
        if not flags & (VM_READ | VM_WRITE | VM_EXEC):
            return PROT_NONE | A
        value = P | US | A
        if flags & VM_WRITE and flags & VM_SHARED:
            value |= RW
        if nx and not flags & VM_EXEC:
            value |= NX
        return value

    return tuple(of(flags) for flags in range(16))


def fault_codes(reports_fetch: bool) -> dict[tuple[WalkFault, Access, Privilege], int]:
    """#PF error code for every refusal: bit 0 P, 1 W, 2 U, 3 RSVD, 4 I/D (only with NX).

    A non-canonical address raises #GP instead, whose error code is 0; it is given here as 1 << 16 so that it
    can be told from a supervisor load of an absent page.
    """
    codes = {}
    for kind in WalkFault:
        for access in Access:
            for privilege in Privilege:
                code = 2 * (access is Access.STORE) | 4 * (privilege is Privilege.USER)
                code |= 16 * (access is Access.FETCH and reports_fetch)
                if kind is WalkFault.RESERVED_BIT:
                    code |= 9
                elif kind is WalkFault.NO_PERMISSION:
                    code |= 1
                elif kind is WalkFault.NON_CANONICAL:
                    code = GENERAL_PROTECTION | code
                codes[kind, access, privilege] = code
    return codes


GENERAL_PROTECTION = 1 << 16


def decode(code: int) -> FaultInfo:
    """A #PF error code in the core's words."""
    access = "store" if code & 2 else "fetch" if code & 16 else "load"
    if code & GENERAL_PROTECTION:
        kind = "non_canonical"
    elif code & 8:
        kind = "reserved"
    else:
        kind = "protection" if code & 1 else "not_present"
    return FAULTS[access, kind, bool(code & 4)]


FAULTS = {
    (access, kind, user): FaultInfo(access=access, kind=kind, user=user)
    for access in ("fetch", "load", "store")
    for kind in ("not_present", "protection", "reserved", "non_canonical")
    for user in (False, True)
}
"""Made once: a fault is on a hot path."""
