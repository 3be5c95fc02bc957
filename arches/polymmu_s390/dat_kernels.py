"""The compiled dynamic address translation of both architectures: what a CPU does at a TLB miss.

The order of checks is the manual's (PoP ch. 3, "Translation Process"; ``dat`` says the same in Python). A fault
leaves the program-interruption code of the level that refused in the state's fault codes, as hardware leaves it in
low storage; the access and who made it stand beside it (the manuals: translation-exception identification).

Referenced and changed are marked in the storage key of the frame, at ``KEYS``: R when a translation is loaded, C at
the first store through it, after which its TLB entry has DIRTY. Region and segment entries may be cached by a walk
cache of their level (0 region-first ... 3 segment; a 31-bit walk begins at 3).
"""

from __future__ import annotations

from polymmu.arch import (
    AD_UPDATES,
    ALL_RIGHTS,
    CODES,
    DIRTY,
    FAULT_ENTRY,
    FAULT_LEVEL,
    FAULT_PLACE,
    MMU,
    PATH_RIGHTS,
    PATH_TABLE,
    PEEK,
    PRIVILEGE,
    RAM_BYTES,
    REFERENCES,
    ROOT,
    STOP_AT,
    USER_RIGHTS,
    WALK,
    WALK_CLOCK,
    WALK_ROOT,
    WALKS,
    WRITE,
    Words,
    give,
    keep_path,
    kernel,
    pointer_at,
    read_entry,
    start_of_walk,
    step,
)

# Designations (control registers 1, 7 and 13): an ASCE, or for ESA/390 an STD.
ORIGIN = -0x1000  # bits 0-51: a table's origin, a page's frame
STD_ORIGIN, STD_LENGTH = 0x7FFFF000, 0x7F  # the segment table has (STL + 1) * 16 entries
DESIGNATION_PRIVATE, REAL_SPACE = 0x100, 0x20
# Region and segment entries. LARGE (FC): it maps a page.
ENTRY_INVALID, COMMON, LARGE = 0x20, 0x10, 0x400
STE_ORIGIN, PTL = 0x7FFFFFC0, 0x0F  # ESA: the page table has (PTL + 1) * 16 entries
# Ptes; PROTECT is the same bit in every z/Architecture entry.
PTE_INVALID, PROTECT, BIT_52, BIT_55 = 0x400, 0x200, 0x800, 0x100
# The storage key of a frame.
REFERENCED, CHANGED = 0x04, 0x02

# The MMU's own words.
NR_ESA, NR_EDAT, NR_IEP, NR_STRICT, NR_KEYS = range(5)
ESA, EDAT, IEP, STRICT, KEYS = MMU, MMU + 1, MMU + 2, MMU + 3, MMU + 4

NOT_PRESENT, RESERVED_BIT, NO_PERMISSION, NON_CANONICAL, TABLE_UNREADABLE = 1, 2, 3, 4, 6
PROTECTION, ADDRESSING, SEGMENT_TRANSLATION, PAGE_TRANSLATION, SPECIFICATION = 0x04, 0x05, 0x10, 0x11, 0x12
ASCE_TYPE, REGION_FIRST_TRANSLATION = 0x38, 0x39
ACCESS_SHIFT, USER_SHIFT = 8, 10  # where a fault code says what was asked, and by whom

SEGMENT_LEVEL, PAGE_LEVEL = 3, 4
PAGE, MIB, GIB_2 = 12, 20, 31


@step
def refused(state: Words, fault: int, access: int, code: int) -> int:
    """Leave the interruption code of a fault where the CPU fetches it; returns the fault."""
    asked = max(access, 0)
    who = state[PRIVILEGE]
    state[CODES + (fault * 3 + asked) * 2 + who] = code | asked << ACCESS_SHIFT | who << USER_SHIFT
    return fault


@step
def no_translation(state: Words, access: int, level: int) -> int:
    """A translation exception of ``level``."""
    state[FAULT_LEVEL] = level
    code = REGION_FIRST_TRANSLATION + level
    if level >= SEGMENT_LEVEL:
        code = SEGMENT_TRANSLATION + level - SEGMENT_LEVEL
    return refused(state, NOT_PRESENT, access, code)


@step
def fetched(state: Words, ram: Words, place: int, nbytes: int, level: int, mode: int) -> bool:
    """Read a table entry into FAULT_ENTRY; False where there is no storage."""
    state[FAULT_LEVEL] = level
    if place < 0 or place + nbytes > state[RAM_BYTES]:
        return False
    state[FAULT_PLACE] = place
    state[FAULT_ENTRY] = read_entry(ram, place, nbytes, 1)
    if mode != PEEK:
        state[REFERENCES] += 1
    return True


@step
def marked(state: Words, address: int, is_store: bool) -> bool:
    """Set R, and C for a store, in the key of the frame at ``address``; whether C is set now."""
    if state[KEYS] == 0 or address < 0 or address >= state[RAM_BYTES]:  # nobody keeps a key
        return True
    keys = pointer_at(state[KEYS])
    key = keys[address >> PAGE]
    new = key | REFERENCED
    if is_store:
        new |= CHANGED
    if new != key:
        keys[address >> PAGE] = new
        state[AD_UPDATES] += 1
    return new & CHANGED != 0


@step
def page(
    state: Words, va: int, frame: int, shift: int, leaf: int, rights: int, access: int, mode: int
) -> int:
    """Judge the access, mark the key, and answer.

    Bit 55 of the leaf forbids to execute, or where IEP is off, spares recording changes.
    """
    no_fetch = leaf & BIT_55 != 0 and state[IEP] != 0
    no_change = leaf & BIT_55 != 0 and state[IEP] == 0 and state[EDAT] >= 1
    writable = rights & WRITE != 0
    if (access == 0 and no_fetch) or (access == 2 and not writable):
        return refused(state, NO_PERMISSION, access, PROTECTION)
    info = 2
    if not no_fetch:
        info |= 1
    if writable:
        info |= 4
    info |= info << USER_RIGHTS
    address = frame + (va & ((1 << shift) - 1))
    if mode == PEEK or marked(state, address, access == 2 and not no_change) or no_change:
        info |= DIRTY
    return give(state, frame, shift, info, 0)


@kernel
def dat_miss(state: Words, ram: Words, va: int, access: int, mode: int) -> int:
    """The miss routine."""
    state[FAULT_PLACE] = -1
    state[FAULT_ENTRY] = 0
    esa, edat = state[ESA] != 0, state[EDAT]
    nbytes = 4 if esa else 8
    root = state[ROOT]
    level = 0
    if mode == PEEK:
        if state[WALK_ROOT] >= 0:
            root = state[WALK_ROOT]
    else:
        state[WALKS] += 1
        state[WALK_CLOCK] += 1
        level = start_of_walk(state, va)
    if root < 0:  # none was loaded
        return refused(state, TABLE_UNREADABLE, access, ADDRESSING)
    if esa and va >> 31 != 0:  # no register of that architecture holds such an address
        return refused(state, NON_CANONICAL, access, SEGMENT_TRANSLATION)

    if level == 0:
        level = SEGMENT_LEVEL
        if esa:
            if va >> 24 > root & STD_LENGTH:
                return no_translation(state, access, level)
        elif root & REAL_SPACE:
            if va < 0 or va >= state[RAM_BYTES]:
                return refused(state, TABLE_UNREADABLE, access, ADDRESSING)
            return page(state, va, va & ORIGIN, PAGE, 0, WRITE, access, mode)
        else:
            level -= root >> 2 & 3
            if level > 0 and va >> (64 - 11 * level) != 0:
                return refused(state, NON_CANONICAL, access, ASCE_TYPE)
            if va >> (62 - 11 * level) & 3 > root & 3:
                return no_translation(state, access, level)
        state[PATH_TABLE + level] = root & (STD_ORIGIN if esa else ORIGIN)
        state[PATH_RIGHTS + level] = ALL_RIGHTS
    start = level
    entry, rights, shift = 0, 0, PAGE

    while level < PAGE_LEVEL:
        place = state[PATH_TABLE + level] + (va >> (53 - 11 * level) & 0x7FF) * nbytes
        if not fetched(state, ram, place, nbytes, level, mode):
            return refused(state, TABLE_UNREADABLE, access, ADDRESSING)
        entry = state[FAULT_ENTRY]
        if entry & ENTRY_INVALID or mode == STOP_AT + level:
            return no_translation(state, access, level)
        is_wrong = entry >> 31 != 0 if esa else entry >> 2 & 3 != SEGMENT_LEVEL - level
        is_segment = level == SEGMENT_LEVEL
        is_large_region = level == SEGMENT_LEVEL - 1 and edat >= 2
        has_common = is_segment or is_large_region
        if is_wrong or (has_common and entry & COMMON and root & DESIGNATION_PRIVATE):
            return refused(state, RESERVED_BIT, access, SPECIFICATION)
        rights = state[PATH_RIGHTS + level]
        if entry & PROTECT and not esa and (is_segment or edat >= 1):
            rights &= ~WRITE
        if entry & LARGE and ((is_segment and edat >= 1) or is_large_region):
            shift = MIB if is_segment else GIB_2
            break
        if esa:
            table, block, first, last = entry & STE_ORIGIN, va >> 16 & 0xF, 0, entry & PTL
            is_whole = last == PTL
        elif is_segment:
            table, block, first, last = entry & -0x800, 0, 0, 0
            is_whole = True
        else:
            table, block = entry & ORIGIN, va >> (51 - 11 * level) & 3
            first, last = entry >> 6 & 3, entry & 3
            is_whole = first == 0 and last == 3
        level += 1
        if block < first or block > last:
            return no_translation(state, access, level)
        if not is_whole:  # cached, it would serve the part of the table that is not there
            start = level
        state[PATH_TABLE + level] = table
        state[PATH_RIGHTS + level] = rights

    if level == PAGE_LEVEL:
        place = state[PATH_TABLE + level] + (va >> PAGE & 0xFF) * nbytes
        if not fetched(state, ram, place, nbytes, level, mode):
            return refused(state, TABLE_UNREADABLE, access, ADDRESSING)
        entry = state[FAULT_ENTRY]
        must_be_zero = BIT_52 | BIT_55 | 1 << 31 if esa else BIT_52
        if state[STRICT] and not state[IEP] and edat == 0:
            must_be_zero |= BIT_55
        is_wrong = entry & must_be_zero != 0
        if (entry & PTE_INVALID and not (is_wrong and state[STRICT])) or mode == STOP_AT + level:
            return no_translation(state, access, level)
        if is_wrong:
            return refused(state, RESERVED_BIT, access, SPECIFICATION)
        rights = state[PATH_RIGHTS + level]
        if entry & PROTECT:
            rights &= ~WRITE
    fault = page(state, va, entry >> shift << shift, shift, entry, rights, access, mode)
    if fault == 0 and mode == WALK:
        keep_path(state, va, start, level)
    return fault
