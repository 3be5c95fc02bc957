"""The bits of a RISC-V page-table entry, which exceptions a walk raises, and what Linux puts into a pte.

     63  62..61 60..54    53 ........... 10  9..8  7  6  5  4  3  2  1  0
     N    PBMT  reserved  page number (PPN)  soft  D  A  G  U  X  W  R  V

Facts: RISC-V Privileged Architecture 4.3.1 (entries), 4.3.2 (the walk), 4.1.8 (causes). An entry with V set and none of
R, W, X points to the next table; one with any of them is a leaf, at whatever level. W without R is reserved, and so
are A, D and U in an entry that points to a table, and its bits 63..54. The rights are the leaf's alone.

A page without rights keeps its frame in an entry that is not valid: Linux marks it with G, which such an entry has no
other use for. G in an entry that points to a table (all below it is global) is not used: to ignore it is slower, never
wrong. Without G it is in the swap area: type in bits 10:6, offset above. (Linux has no file ptes since 4.0, and RISC-V
only since 4.15: a file is mapped in its own order here.)
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
    WalkFault,
)

V, R, W, X, U, G, A, D = (1 << n for n in range(8))
RIGHTS = R | W | X
PPN = (1 << 54) - (1 << 10)
ADDRESS_SHIFT = 2
"""From where the page number stands in an entry to where it stands in an address: 12 - 10."""
PBMT = 3 << 61
HIGH_BITS = (1 << 64) - (1 << 54)

CAUSE = {
    Access.FETCH: (1, 12),
    Access.LOAD: (5, 13),
    Access.STORE: (7, 15),
}
"""scause of an access fault and of a page fault."""
SPP = 1 << 8
"""sstatus: the trap came from supervisor mode. A fault code here is scause with this bit beside it."""


def entry_format(*, is_last: bool, svpbmt: bool, mxr: bool) -> EntryFormat:
    """Entries of one level. ``svpbmt``: bits 62..61 may be used; ``mxr``: what may be executed may be read."""
    malformed = [(R | W, W)]
    if is_last:
        malformed.append((RIGHTS, 0))
    if svpbmt:
        malformed.append((PBMT, PBMT))
    return EntryFormat(
        present=Field(V, V),
        frame_mask=PPN,
        table_mask=PPN,
        leaf_mask=RIGHTS,
        reserved_table=HIGH_BITS | A | D | U,
        reserved_leaf=HIGH_BITS & ~PBMT if svpbmt else HIGH_BITS,
        malformed=tuple(malformed),
        read=Field(0, 0) if mxr else Field(R, R),
        write=Field(W, W),
        execute=Field(X, X),
        user=Field(U, U),
        accessed=Field(A, A),
        dirty=Field(D, D),
        global_=Field(G, G),
        address_shift=ADDRESS_SHIFT,
        leaves_alone=True,
        table_bits=V,
        prot_none=Field(V | G, G),
        swap=SoftEntry(mask=V | G, on=0, parts=(((6, 5),), ((11, 53),))) if is_last else None,
    )


def protections() -> tuple[int, ...]:
    """Pte bits by VM_READ | VM_WRITE | VM_EXEC | VM_SHARED.

    Where stores are allowed so are loads, as W needs R. A private writable page is entered without W.
    """

    def of(flags: int) -> int:
        if not flags & (VM_READ | VM_WRITE | VM_EXEC):
            return G | R
        value = V | U | A
        if flags & (VM_READ | VM_WRITE):
            value |= R
        if flags & VM_WRITE and flags & VM_SHARED:
            value |= W
        return value | X if flags & VM_EXEC else value

    return tuple(of(flags) for flags in range(16))


def fault_codes() -> dict[tuple[WalkFault, Access, Privilege], int]:
    """Every refusal is a page fault of its access's kind, but for a table where no memory is: an access fault."""
    return {
        (fault, access, privilege): CAUSE[access][fault is not WalkFault.TABLE_UNREADABLE]
        | (SPP if privilege is Privilege.SUPERVISOR else 0)
        for fault in WalkFault
        for access in Access
        for privilege in Privilege
    }


def decode(code: int) -> FaultInfo:
    """A fault code in the core's words. The cause does not say why, so the core looks at the entry."""
    return FAULTS[code]


FAULTS = {
    cause | spp: FaultInfo(access=access.name.lower(), kind=kind, user=not spp)
    for access, causes in CAUSE.items()
    for cause, kind in zip(causes, ("reserved", "not_present"), strict=True)
    for spp in (0, SPP)
}
"""Made once: a fault is on a hot path."""
