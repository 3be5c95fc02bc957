"""The bits of an ia64 translation, what they allow, and where the VHPT keeps it.

      63    62..53  52  51..50 49 ........ 12 11..9 8..7  6   5  4..2  1   0
    PROTNONE ignored ed  reserved    ppn        ar    pl   D   A   ma  res  P

One word serves as a Linux pte, as the first word of an insertion and as an entry of a short-format VHPT. The
functions without a decorator work on Python's integers and on the words of a kernel alike: the model of the
translation unit in the tests calls them, the miss routine (``mmu``) is compiled from them.

Sources: Intel Itanium Architecture SDM rev. 2.3 vol. 2 ch. 4 (Table 4-2, 4.1.6.1, Figure 4-16); Linux 2.6.11 to 3.0,
asm-ia64/pgtable.h. The rights and the order of checks agree with HP's simulator Ski.
"""

from __future__ import annotations

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
)
from polymmu.arch import WalkFault as Walk

P, FILE, A, D = 1 << 0, 1 << 1, 1 << 5, 1 << 6
MA_SHIFT, PL_SHIFT, AR_SHIFT = 2, 7, 9
MA_NAT_PAGE = 7
ED, PROT_NONE = 1 << 52, 1 << 63
PPN = (1 << 50) - (1 << 12)
RESERVED = 1 << 1 | 3 << 50

# What an access needs, and what a row of RIGHTS grants.
X, R, W = (1 << access for access in Access)

RIGHTS = (
    (R, R, R),
    (R | X, R | X, R | X),
    (R | W, R | W, R | W),
    (R | W | X, R | W | X, R | W | X),
    (R, R | W, R | W),
    (R | X, R | X, R | W | X),
    (R | W | X, R | W, R | W),
    (X, X, R | X),
)
"""By access rights field: who runs at the page's own privilege level, between it and 0, at 0."""
PROMOTE = 7  # the access right that everybody may execute

REGION_SHIFT = 61
INSIDE = (1 << REGION_SHIFT) - 1
VHPT_INDEX = INSIDE - 0x7FFF  # bits 60:15 of a VHPT address

# Vectors of the interruption table.
INSTRUCTION_TLB, DATA_TLB, DIRTY_BIT, DATA_ACCESS_BIT = 0x0400, 0x0800, 0x2000, 0x2800
PAGE_NOT_PRESENT, INSTRUCTION_RIGHTS, DATA_RIGHTS = 0x5000, 0x5200, 0x5300
GENERAL_EXCEPTION, NAT_CONSUMPTION = 0x5400, 0x5600

INSERTABLE = 0x15557000
"""Bit n: pages of 2**n bytes can be inserted (architected; what Linux assumes where firmware is silent)."""
PURGEABLE = 0x115557000


# ------------------------------------------------------------------ rules that kernels are compiled from, too
def is_implemented(va: int, va_bits: int) -> bool:
    """Whether the bits between the region number and the implemented ones are copies of the highest of these."""
    high = va >> (va_bits - 1) & ((1 << (62 - va_bits)) - 1)
    return high == 0 or high == (1 << (62 - va_bits)) - 1


def vhpt_address(va: int, page_shift: int, pta: int, va_bits: int) -> int:
    """Where the short-format VHPT has the entry of ``va`` (thash): region's page number times 8, within its size."""
    offset = (va & ((1 << va_bits) - 1)) >> page_shift << 3
    mask = (1 << (pta >> 2 & 63)) - 1
    table = (pta & ~mask | offset & mask) & VHPT_INDEX
    return (va >> REGION_SHIFT & 7) << REGION_SHIFT | table | offset & 0x7FFF


def is_reserved(pte: int, pa_bits: int) -> bool:
    """Whether a present entry's encoding is refused: reserved bits, memory attributes 1 to 3, frame out of reach."""
    ma = pte >> MA_SHIFT & 7
    return pte & RESERVED != 0 or (0 < ma < 4) or (pte & PPN) >> pa_bits != 0


def refusal(pte: int, key_fault: int, lacks_right: bool, is_store: bool, ignores_bits: bool) -> int:
    """The vector of the first check that a translation fails, 0 where it may be used. (Data's vectors.)

    ``key_fault``: what the protection keys say. ``ignores_bits``: Dirty and Access bit are not looked at.
    """
    if pte & P == 0:
        return PAGE_NOT_PRESENT
    if pte >> MA_SHIFT & 7 == MA_NAT_PAGE:
        return NAT_CONSUMPTION
    if key_fault:
        return key_fault
    if lacks_right:
        return DATA_RIGHTS
    if ignores_bits:
        return 0
    if is_store and pte & D == 0:
        return DIRTY_BIT
    return DATA_ACCESS_BIT if pte & A == 0 else 0


# ------------------------------------------------------------------ rights
def rights(ar: int, pl: int, cpl: int) -> int:
    """What a page with these access rights and privilege level allows at ``cpl``: bits X, R, W."""
    if cpl > pl:
        return X if ar == PROMOTE else 0
    return RIGHTS[ar][2 if cpl == 0 else cpl < pl]


def rights_of(pte: int, cpl: int) -> int:
    """``rights`` of the page that ``pte`` maps; a NaT page gives nobody anything."""
    return 0 if pte >> MA_SHIFT & 7 == MA_NAT_PAGE else rights(pte >> AR_SHIFT & 7, pte >> PL_SHIFT & 3, cpl)


def page(ar: int, bits: int = 0) -> int:
    """The protection bits of a user's page as Linux makes them."""
    return P | A | ED | 3 << PL_SHIFT | ar << AR_SHIFT | bits


READ_ONLY, READ_EXEC, READ_WRITE, ALL, EXEC_ONLY = (page(ar) for ar in (0, 1, 2, 3, PROMOTE))
NONE = PROT_NONE | A
TABLE_PAGE = P | A | D | 2 << AR_SHIFT
"""The translation of a page of ptes, which the miss handler inserts at its VHPT address: privilege level 0."""


def protections() -> tuple[int, ...]:
    """Linux's protection map: a private writable page is read-only until it was copied."""
    found = []
    for flags in range(16):
        writes = flags & VM_WRITE and flags & VM_SHARED
        reads = flags & (VM_READ | VM_WRITE)
        if flags & VM_EXEC:
            found.append(EXEC_ONLY if not reads else ALL if writes else READ_EXEC)
        else:
            found.append(NONE if not reads else READ_WRITE if writes else READ_ONLY)
    return tuple(found)


# ------------------------------------------------------------------ formats
def pte_format(page_shift: int) -> EntryFormat:
    """A pte. Linux writes only the access rights 0 to 3 and 7, told apart by their two upper bits."""
    upper = 6 << AR_SHIFT
    return EntryFormat(
        present=Field(P, P),
        frame_mask=PPN & -(1 << page_shift),
        read=Field(4 << AR_SHIFT, 0),
        write=Field(upper, 2 << AR_SHIFT),
        user=Field(3 << PL_SHIFT, 3 << PL_SHIFT),
        execute=Field(1 << AR_SHIFT, 1 << AR_SHIFT),
        accessed=Field(A, A),
        dirty=Field(D, D),
        prot_none=Field(PROT_NONE, PROT_NONE),
        swap=SoftEntry(mask=P | FILE | PROT_NONE, on=0, parts=(((2, 7),), ((9, 54),))),
        file=SoftEntry(mask=P | FILE | PROT_NONE, on=FILE, parts=(((2, 61),),)),
    )


def table_format(page_shift: int) -> EntryFormat:
    """An entry of an upper level: the next table's physical address and nothing else."""
    return EntryFormat(present=Field(0, 0), frame_mask=0, table_mask=PPN & -(1 << page_shift))


# ------------------------------------------------------------------ faults
USER = 1 << 3
KINDS = {
    PAGE_NOT_PRESENT: "not_present",
    DATA_RIGHTS: "protection",
    DATA_TLB: "reserved",
    GENERAL_EXCEPTION: "non_canonical",
}
FETCH_VECTORS = {DATA_RIGHTS: INSTRUCTION_RIGHTS, DATA_TLB: INSTRUCTION_TLB}
FAULTS = {
    Walk.NOT_PRESENT: PAGE_NOT_PRESENT,
    Walk.NO_PERMISSION: DATA_RIGHTS,
    Walk.RESERVED_BIT: DATA_TLB,
    Walk.TABLE_UNREADABLE: DATA_TLB,
    Walk.NON_CANONICAL: GENERAL_EXCEPTION,
}


def fault_codes() -> dict[tuple[Walk, Access, Privilege], int]:
    """Vector, and below it ISR's x, r and w as bits 0 to 2, and who ran as bit 3."""
    return {
        (kind, access, privilege): (FETCH_VECTORS.get(vector, vector) if access == Access.FETCH else vector)
        | 1 << access
        | (USER if privilege == Privilege.USER else 0)
        for kind, vector in FAULTS.items()
        for access in Access
        for privilege in Privilege
    }


def decode(code: int) -> FaultInfo:
    """What a code of ``fault_codes`` says."""
    vector = code & -0x100
    kind = next(kind for data, kind in KINDS.items() if vector in (data, FETCH_VECTORS.get(data)))
    access = Access((code & 7).bit_length() - 1).name.lower()
    return FaultInfo(access=access, kind=kind, user=bool(code & USER))
