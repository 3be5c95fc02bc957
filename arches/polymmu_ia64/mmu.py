"""How an Itanium running Linux turns an address into a frame: the VHPT walker, and the handlers behind it.

Linux lays the ptes of each region out as one linear array, the VHPT, by mapping its tables of ptes at virtual
addresses at the region's end. The walker reads a pte there, through the data TLB. If that page of ptes is not in the
TLB either, the processor traps, and a handler walks the three levels at their physical addresses and inserts two
translations: the page that was asked for, and the page of ptes. A pte that is not present is inserted all the
same; the Page Not Present handler purges it again. Hardware never sets A and D: it traps, and a handler does.

    the MMU's own words:  0..7 region registers   8 PTA   then the constants below

Sources: Intel Itanium Architecture SDM rev. 2.3 vol. 2 ch. 4; Linux 2.6.12 to 3.0, arch/ia64/kernel/ivt.S.
Left out: translation registers of the kernel's own, memory attributes, the second look at the pte under SMP.

First reading: ``ia64_miss``.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np
import numpy.typing as npt

from polymmu.arch import (
    ABSENT,
    BASE_SHIFT,
    CODES,
    DIRTY,
    EVENTS,
    FAULT_DROPS,
    FAULT_ENTRY,
    FAULT_PLACE,
    MISS_ADDRESS,
    MMU,
    NEED,
    PEEK,
    PRIVILEGE,
    RAM_BYTES,
    REFERENCES,
    ROOT,
    SUPERVISOR_RIGHTS,
    USER_RIGHTS,
    WALK_ROOT,
    WALKS,
    Access,
    BadRoot,
    EntryReader,
    Privilege,
    Walk,
    WalkFault,
    Words,
    address_of,
    drop_page,
    fill_tlb,
    give,
    kernel,
    read_entry,
    space_of,
    step,
    through_tlb,
    write_entry,
)
from polymmu_ia64.entries import (
    AR_SHIFT,
    DATA_RIGHTS,
    DIRTY_BIT,
    INSIDE,
    MA_NAT_PAGE,
    MA_SHIFT,
    NAT_CONSUMPTION,
    PL_SHIFT,
    PPN,
    REGION_SHIFT,
    TABLE_PAGE,
    A,
    D,
    P,
    R,
    W,
    X,
    fault_codes,
    is_implemented,
    is_reserved,
    refusal,
    rights,
    rights_of,
    vhpt_address,
)

# The MMU's own words, from MMU on.
PTA = 8
VA_BITS, PA_BITS, INDEX_BITS = 9, 10, 11
RIGHTS = 16  # by access rights and privilege level: INFO bits

# Its events, in the order of ``event_costs``.
VHPT_HITS, VHPT_MISSES, ACCESS_TRAPS, DIRTY_TRAPS, ALTERNATE_TRAPS = 0, 1, 2, 3, 4

LOAD, STORE = 1, 2
NOT_PRESENT, RESERVED_BIT, NO_PERMISSION, NON_CANONICAL, TABLE_UNREADABLE = 1, 2, 3, 4, 6
FIRST_IDENTITY = 6  # regions 6 and 7 are the kernel's window on physical memory, uncached and cached
GRANULE_SHIFT = 24
PHYSICAL = (1 << 50) - 1
KERNEL_RIGHTS = 3 << 2  # access rights 3 at privilege level 0, as a row of RIGHTS

implemented = step(is_implemented)
thash = step(vhpt_address)
refused_encoding = step(is_reserved)
first_refusal = step(refusal)


@step
def info_of(state: Words, pte: int) -> int:
    """What a TLB holds of a pte's rights and its dirty bit."""
    if pte >> MA_SHIFT & 7 == MA_NAT_PAGE:
        return 0
    info = state[MMU + RIGHTS + ((pte >> AR_SHIFT & 7) << 2 | pte >> PL_SHIFT & 3)]
    return info | DIRTY if pte & D else info


@step
def pte_place(state: Words, ram: Words, root: int, region: int, page: int, counted: int) -> int:
    """Physical address of the pte of a region's page number ``page``; the negated WalkFault where there is none."""
    bits = state[MMU + INDEX_BITS]
    mask = (1 << bits) - 1
    if page >> (3 * bits - 3):
        return -NOT_PRESENT
    index = region << (bits - 3) | page >> 2 * bits
    table = root
    for _ in range(2):
        place = table + index * 8
        if place < 0 or place + 8 > state[RAM_BYTES]:
            return -TABLE_UNREADABLE
        table = read_entry(ram, place, 8, 0)
        state[REFERENCES] += counted
        state[FAULT_PLACE] = place
        state[FAULT_ENTRY] = table
        if table == 0:
            return -NOT_PRESENT
        index = page >> bits & mask
    place = table + (page & mask) * 8
    return place if 0 <= place < state[RAM_BYTES] else -TABLE_UNREADABLE


@step
def identity(state: Words, va: int, region: int) -> int:
    """The kernel's windows: physical memory at its own addresses."""
    if region < FIRST_IDENTITY or state[PRIVILEGE]:
        return NOT_PRESENT
    frame = va & PHYSICAL & -(1 << GRANULE_SHIFT)
    return give(state, frame, GRANULE_SHIFT, state[MMU + RIGHTS + KERNEL_RIGHTS] | DIRTY, 0)


@step
def look(state: Words, ram: Words, va: int, access: int, region: int, shift: int) -> int:
    """PEEK: what the tables say of an address, be it a page's or, in the VHPT, that of a page of ptes."""
    root = state[WALK_ROOT]
    root = state[ROOT] if root < 0 else root
    inside = va & INSIDE
    size = state[MMU + PTA] >> 2 & 63
    is_table = inside >> size == INSIDE >> size
    page = (inside & ((1 << size) - 1)) >> 3 if is_table else inside >> shift
    place = pte_place(state, ram, root, region, page, 0)
    if place < 0:
        return -place
    if is_table:
        frame = place & -(1 << state[BASE_SHIFT])
        return give(state, frame, state[BASE_SHIFT], info_of(state, TABLE_PAGE), 0)
    pte = read_entry(ram, place, 8, 0)
    state[FAULT_PLACE] = place
    state[FAULT_ENTRY] = pte
    if pte & P == 0:
        return NOT_PRESENT
    if refused_encoding(pte, state[MMU + PA_BITS]):
        return RESERVED_BIT
    info = info_of(state, pte)
    if access >= 0 and ~info & state[NEED + access] & ~DIRTY:
        return NO_PERMISSION
    return give(state, pte & PPN & -(1 << shift), shift, info, 0)


@step
def enter(state: Words, access: int, va: int, frame: int, shift: int, info: int) -> None:
    """Insert the translation of a page that refuses the access it was fetched for."""
    drop_page(state, va, space_of(state, va))
    fill_tlb(state, access, va, frame, shift, info, space_of(state, va))


@kernel
def ia64_miss(state: Words, ram: Words, va: int, access: int, mode: int) -> int:
    """The miss routine: see the top of this file."""
    state[FAULT_PLACE] = -1
    state[FAULT_ENTRY] = 0
    if not implemented(va, state[MMU + VA_BITS]):
        return NON_CANONICAL
    region = va >> REGION_SHIFT & 7
    register = state[MMU + region]
    shift = register >> 2 & 63
    if register & 1 == 0:
        if mode != PEEK:
            state[WALKS] += 1
            state[EVENTS + ALTERNATE_TRAPS] += 1
        return identity(state, va, region)
    if mode == PEEK:
        return look(state, ram, va, access, region, shift)
    state[WALKS] += 1
    slot = thash(va, shift, state[MMU + PTA], state[MMU + VA_BITS])
    place = through_tlb(state, slot)
    walked = place >= 0
    if walked:
        state[EVENTS + VHPT_HITS] += 1
        if place + 8 > state[RAM_BYTES]:
            return TABLE_UNREADABLE
    else:
        state[EVENTS + VHPT_MISSES] += 1
        # A huge page's address is judged as it is, though its place in the tables is that of a scaled one.
        base = state[BASE_SHIFT]
        if (va & INSIDE) >> base >> (3 * state[MMU + INDEX_BITS] - 3):
            return NOT_PRESENT
        place = pte_place(state, ram, state[ROOT], region, (va & INSIDE) >> shift, 1)
        if place < 0:
            return -place
        table = place & -(1 << base)
        fill_tlb(state, LOAD, slot, table, base, info_of(state, TABLE_PAGE), space_of(state, slot))
    pte = read_entry(ram, place, 8, 0)
    state[REFERENCES] += 1
    state[FAULT_PLACE] = place
    state[FAULT_ENTRY] = pte
    if pte & P == 0:
        if walked:
            enter(state, access, va, 0, shift, ABSENT)
        return NOT_PRESENT
    if refused_encoding(pte, state[MMU + PA_BITS]):
        return RESERVED_BIT
    info = info_of(state, pte)
    frame = pte & PPN & -(1 << shift)
    lacks = ~info & state[NEED + access] & ~DIRTY != 0
    vector = first_refusal(pte, 0, lacks, access == STORE, False)
    if vector in (DATA_RIGHTS, NAT_CONSUMPTION):
        if pte & A:  # an entry here has no A bit to trap on when somebody else may use it
            enter(state, access, va, frame, shift, info)
        return NO_PERMISSION
    if vector:
        pte = pte | A | D if vector == DIRTY_BIT else pte | A
        state[EVENTS + (DIRTY_TRAPS if vector == DIRTY_BIT else ACCESS_TRAPS)] += 1
        state[REFERENCES] += 1
        write_entry(ram, place, 8, 0, pte)
    return give(state, frame, shift, info_of(state, pte), 0)


def region_register(context: int, region: int, page_shift: int, walked: bool = True) -> int:
    """A region register: identifier ``context`` * 8 + region, page size, whether the walker serves the region."""
    return (context << 3 | region) << 8 | page_shift << 2 | walked


def identifier(register: int) -> int:
    """The region identifier in a region register: what TLB entries of the region are tagged with."""
    return register >> 8 & 0xFFFFFF


def page_table_address(va_bits: int, page_shift: int) -> int:
    """PTA as Linux sets it: a short-format VHPT that just fits below the end of each region, walker enabled."""
    size = va_bits - page_shift + 3
    return (1 << REGION_SHIFT) - (1 << size) | size << 2 | 1


@attrs.frozen(kw_only=True)
class Ia64Mmu:
    """The translation of one machine. ``registers``: rr0 to rr7 and pta. See ``polymmu.arch.Translation``."""

    page_shift: int
    va_bits: int
    pa_bits: int
    registers: Mapping[str, int]
    event_costs: Mapping[str, int]
    looks_ahead: bool = False

    @property
    def region_registers(self) -> tuple[int, ...]:
        """rr0 to rr7."""
        return tuple(self.registers[f"rr{region}"] for region in range(8))

    @property
    def page_shifts(self) -> tuple[int, ...]:
        """The base page, the huge page of region 4, and the kernel's granule."""
        sizes = {register >> 2 & 63 for register in self.region_registers if register & 1}
        return tuple(sorted(sizes | {self.page_shift, GRANULE_SHIFT}))

    @property
    def path_steps(self) -> tuple[tuple[str, int], ...]:
        """The levels of Linux's tables."""
        return ("pgd", 8), ("pmd", 8), ("pte", 8)

    def table_shifts(self) -> dict[int, tuple[int, int]]:
        """No paging-structure caches: what would be in one is in the TLB."""
        return {}

    def install(self, words: npt.NDArray[np.int64]) -> None:
        """Write the registers as after boot, the constants and the table of rights."""
        for (fault, access, privilege), code in fault_codes().items():
            words[CODES + (fault * 3 + access) * 2 + privilege] = code
        words[MISS_ADDRESS] = address_of(ia64_miss)
        words[BASE_SHIFT] = self.page_shift
        words[FAULT_DROPS] = 1 << WalkFault.NOT_PRESENT
        words[MMU : MMU + 8] = self.region_registers
        words[MMU + PTA] = self.registers["pta"]
        words[MMU + VA_BITS] = self.va_bits
        words[MMU + PA_BITS] = self.pa_bits
        words[MMU + INDEX_BITS] = self.page_shift - 3
        for ar in range(8):
            for pl in range(4):
                info = rights(ar, pl, 0) << SUPERVISOR_RIGHTS | rights(ar, pl, 3) << USER_RIGHTS
                words[MMU + RIGHTS + (ar << 2 | pl)] = info

    def latch_root(self, ram: EntryReader, root: int) -> tuple[int, ...]:
        """The physical address of a pgd, which only the miss handlers use."""
        if not 0 <= root < ram.size:
            raise BadRoot(f"root {root:#x}: no memory there")
        return ()

    def walk(
        self,
        ram: EntryReader,
        root: int,
        va: int,
        access: Access | None = None,
        privilege: Privilege = Privilege.SUPERVISOR,
        asid: int = 0,
    ) -> Walk:
        """What Linux's tables say, as the miss handler reads them: A and D refuse nothing."""
        register = self.region_registers[va >> REGION_SHIFT]
        shift = register >> 2 & 63
        inside = va & INSIDE
        bits = self.page_shift - 3
        path: list[tuple[int, int, int]] = []

        def refused(fault: WalkFault) -> Walk:
            code = fault_codes()[fault, Access.LOAD if access is None else access, privilege]
            return Walk(va=va, fault=fault, code=code, path=tuple(path))

        if not is_implemented(va, self.va_bits):
            return refused(WalkFault.NON_CANONICAL)
        if not register & 1:
            if va >> REGION_SHIFT < FIRST_IDENTITY or privilege == Privilege.USER:
                return refused(WalkFault.NOT_PRESENT)
            return Walk(
                va=va,
                pa=va & PHYSICAL,
                page_size=1 << GRANULE_SHIFT,
                readable=True,
                writable=True,
                executable=True,
            )
        if inside >> self.page_shift >> (3 * bits - 3):
            return refused(WalkFault.NOT_PRESENT)
        page = inside >> shift
        indices = (va >> REGION_SHIFT) << (bits - 3) | page >> 2 * bits, page >> bits, page
        table = root
        for level, index in enumerate(indices):
            place = table + (index & ((1 << bits) - 1)) * 8
            if not 0 <= place <= ram.size - 8:
                return refused(WalkFault.TABLE_UNREADABLE)
            table = ram.read_entry(place, 8, "little")
            path.append((level, place, table))
            if not (table & P if level == len(indices) - 1 else table):
                return refused(WalkFault.NOT_PRESENT)
        pte = table
        if is_reserved(pte, self.pa_bits):
            return refused(WalkFault.RESERVED_BIT)
        size = 1 << shift
        granted = rights_of(pte, 3 if privilege == Privilege.USER else 0)
        is_refused = access is not None and not granted >> access & 1
        return Walk(
            va=va,
            pa=None if is_refused else pte & PPN & -size | va & (size - 1),
            page_size=size,
            fault=WalkFault.NO_PERMISSION if is_refused else WalkFault.NONE,
            code=fault_codes()[WalkFault.NO_PERMISSION, access, privilege]
            if is_refused and access is not None
            else 0,
            path=tuple(path),
            readable=bool(rights_of(pte, 0) & R),
            writable=bool(rights_of(pte, 0) & W),
            executable=bool(rights_of(pte, 0) & X),
            user=bool(rights_of(pte, 3)),
            accessed=bool(pte & A),
            dirty=bool(pte & D),
        )
