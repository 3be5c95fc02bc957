"""Dynamic address translation of both architectures: the manual's rules, and two walkers that follow them.

z/Architecture walks from whatever table the ASCE designates (region-first, -second, -third or segment table) down
to ptes; ESA/390 from a segment table named by an STD. The rules are in the order of PoP ch. 3, "Translation
Process". They are plain functions of integers, used as they are by ``Dat.walk`` and compiled by ``dat_miss``, which
is what a CPU does at a TLB miss. A fault leaves the program-interruption code in the state's fault codes, as hardware
leaves it in low storage; the access and who made it stand beside it (the manuals: translation-exception
identification).

Referenced and changed are marked in the storage key of the frame, at ``KEYS``: R when a translation is loaded, C at
the first store through it, after which its TLB entry has DIRTY. Region and segment entries may be cached by a walk
cache of their level (0 region-first ... 3 segment; a 31-bit walk begins at 3).

Not modelled: access-register mode, prefixing (a table's addresses are taken as absolute), storage-key controlled
protection, the access-control part of large pages.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np
import numpy.typing as npt

from polymmu.arch import (
    AD_UPDATES,
    ALL_RIGHTS,
    BASE_SHIFT,
    CODES,
    DIRTY,
    FAULT_DROPS,
    FAULT_ENTRY,
    FAULT_LEVEL,
    FAULT_PLACE,
    LEVELS,
    MISS_ADDRESS,
    MMU,
    PATH_RIGHTS,
    PATH_TABLE,
    PEEK,
    PRIVILEGE,
    R_SHIFT,
    RAM_BYTES,
    REFERENCES,
    ROOT,
    ROW,
    ROWS,
    STOP_AT,
    USER_RIGHTS,
    WALK,
    WALK_CLOCK,
    WALK_ROOT,
    WALKS,
    WRITE,
    Access,
    EntryReader,
    Privilege,
    Walk,
    WalkFault,
    Words,
    address_of,
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

# Facilities of a CPU. STRICT: bits 52 and 55 of a pte must be right even where the pte is invalid, and bit 55 is
# refused where neither IEP nor EDAT gives it a meaning (KVM's guest access and QEMU differ).
ESA, EDAT_1, EDAT_2, IEP, STRICT = 1, 2, 4, 8, 16
# The MMU's own words.
FACILITIES, KEYS = MMU, MMU + 1

SEGMENT_LEVEL, PAGE_LEVEL, NO_LEVEL = 3, 4, 5
PAGE, MIB, GIB_2 = 12, 20, 31

# A refusal: the program-interruption code, and above it the WalkFault.
PROTECTION, ADDRESSING, SPECIFICATION, ASCE_TYPE, NO_ADDRESS = 0x304, 0x605, 0x212, 0x438, 0x410
TRANSLATION = (0x139, 0x13A, 0x13B, 0x110, 0x111)
"""By level: region-first, -second, -third, segment and page translation."""
CODE, FAULT_SHIFT = 0xFF, 8
ACCESS_SHIFT, USER_SHIFT = 8, 10  # where a fault code says what was asked, and by whom


# ---------------------------------------------------------------------- rules
def designated(has: int, root: int, va: int, memory: int) -> tuple[int, int, int]:
    """A refusal or 0, and the level and origin of the table where the walk for ``va`` begins; NO_LEVEL: real space.

    ``has``: facilities; ``memory``: bytes.
    """
    level, origin, block, last = SEGMENT_LEVEL, root & STD_ORIGIN, va >> 24, root & STD_LENGTH
    if root < 0:  # none was loaded
        return ADDRESSING, level, 0
    if has & ESA:
        if va >> 31 != 0:  # no register of that architecture holds such an address
            return NO_ADDRESS, level, 0
    elif root & REAL_SPACE:
        return (0 if 0 <= va < memory else ADDRESSING), NO_LEVEL, 0
    else:
        level -= root >> 2 & 3
        if level > 0 and va >> (64 - 11 * level) != 0:
            return ASCE_TYPE, level, 0
        origin, block, last = root & ORIGIN, va >> (62 - 11 * level) & 3, root & 3
    return (TRANSLATION[level] if block > last else 0), level, origin


def place_of(has: int, table: int, level: int, va: int) -> int:
    """Where the entry for ``va`` is."""
    index = va >> PAGE & 0xFF if level == PAGE_LEVEL else va >> (53 - 11 * level) & 0x7FF
    return table + index * (4 if has & ESA else 8)


def judged(has: int, root: int, level: int, entry: int, va: int) -> tuple[int, bool, int, int, bool]:
    """What an entry says: a refusal or 0; whether it protects; log2 of the page that it maps, or 0; that page's frame,
    or the next table; and whether that table is whole."""
    is_segment, is_large_region = level == SEGMENT_LEVEL, level == SEGMENT_LEVEL - 1 and has & EDAT_2 != 0
    if level == PAGE_LEVEL:
        must_be_zero = BIT_52 | BIT_55 | 1 << 31 if has & ESA else BIT_52
        if has & (STRICT | IEP | EDAT_1) == STRICT:
            must_be_zero |= BIT_55
        is_wrong = entry & must_be_zero != 0
        if entry & PTE_INVALID and not (is_wrong and has & STRICT):
            return TRANSLATION[level], False, 0, 0, False
        return (SPECIFICATION if is_wrong else 0), entry & PROTECT != 0, PAGE, entry & ORIGIN, True
    if entry & ENTRY_INVALID:
        return TRANSLATION[level], False, 0, 0, False
    is_wrong = entry >> 31 != 0 if has & ESA else entry >> 2 & 3 != SEGMENT_LEVEL - level
    is_foreign = entry & COMMON and root & DESIGNATION_PRIVATE
    if is_wrong or (is_foreign and (is_segment or is_large_region)):
        return SPECIFICATION, False, 0, 0, False
    protects = entry & PROTECT != 0 and not has & ESA and (is_segment or has & EDAT_1 != 0)
    if entry & LARGE and ((is_segment and has & EDAT_1) or is_large_region):
        shift = MIB if is_segment else GIB_2
        return 0, protects, shift, entry >> shift << shift, True
    if has & ESA:
        table, block, first, last, longest = entry & STE_ORIGIN, va >> 16 & PTL, 0, entry & PTL, PTL
    elif is_segment:
        table, block, first, last, longest = entry & -0x800, 0, 0, 0, 0
    else:
        table, block = entry & ORIGIN, va >> (51 - 11 * level) & 3
        first, last, longest = entry >> 6 & 3, entry & 3, 3
    refusal = 0 if first <= block <= last else TRANSLATION[level + 1]
    return refusal, protects, 0, table, first == 0 and last == longest


designated_step, place_of_step, judged_step = step(designated), step(place_of), step(judged)


# ---------------------------------------------------------------------- compiled
@step
def refused(state: Words, refusal: int, access: int) -> int:
    """Leave the interruption code where the CPU fetches it; returns the fault."""
    fault, asked, who = refusal >> FAULT_SHIFT, max(access, 0), state[PRIVILEGE]
    code = refusal & CODE | asked << ACCESS_SHIFT | who << USER_SHIFT
    state[CODES + (fault * 3 + asked) * 2 + who] = code
    return fault


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


@kernel
def dat_miss(state: Words, ram: Words, va: int, access: int, mode: int) -> int:
    """The miss routine."""
    state[FAULT_PLACE] = -1
    state[FAULT_ENTRY] = 0
    has = state[FACILITIES]
    root = state[ROOT]
    start = 0
    if mode != PEEK:
        state[WALKS] += 1
        state[WALK_CLOCK] += 1
        start = start_of_walk(state, va)
    elif state[WALK_ROOT] >= 0:
        root = state[WALK_ROOT]
    if start == 0:
        refusal, start, table = designated_step(has, root, va, state[RAM_BYTES])
        state[FAULT_LEVEL] = start
        if refusal:
            return refused(state, refusal, access)
        state[PATH_TABLE + start] = table
        state[PATH_RIGHTS + start] = ALL_RIGHTS
    level = start
    entry, rights, shift, frame = 0, ALL_RIGHTS, PAGE, va & ORIGIN
    while level < NO_LEVEL:
        place = place_of_step(has, state[PATH_TABLE + level], level, va)
        nbytes = 4 if has & ESA else 8
        state[FAULT_LEVEL] = level
        if place < 0 or place + nbytes > state[RAM_BYTES]:
            return refused(state, ADDRESSING, access)
        entry = read_entry(ram, place, nbytes, 1)
        state[FAULT_PLACE] = place
        state[FAULT_ENTRY] = entry
        if mode != PEEK:
            state[REFERENCES] += 1
        refusal, protects, shift, frame, is_whole = judged_step(has, root, level, entry, va)
        if mode == STOP_AT + level:
            refusal = TRANSLATION[level]
        if refusal:
            return refused(state, refusal, access)
        rights = state[PATH_RIGHTS + level]
        if protects:
            rights &= ~WRITE
        if shift:
            break
        level += 1
        if not is_whole:  # cached, it would serve the part of the table that is not there
            start = level
        state[PATH_TABLE + level] = frame
        state[PATH_RIGHTS + level] = rights

    # Bit 55 of the leaf forbids to execute, or where IEP is off, spares recording changes.
    no_fetch = entry & BIT_55 != 0 and has & IEP != 0
    no_change = entry & BIT_55 != 0 and has & (IEP | EDAT_1) == EDAT_1
    info = 2 | (rights & WRITE != 0) << 2 | (not no_fetch)
    if access >= 0 and not info >> access & 1:
        return refused(state, PROTECTION, access)
    info |= info << USER_RIGHTS
    address = frame + (va & ((1 << shift) - 1))
    if mode == PEEK or marked(state, address, access == 2 and not no_change) or no_change:
        info |= DIRTY
    if mode == WALK:
        keep_path(state, va, start, level)
    return give(state, frame, shift, info, 0)


# ---------------------------------------------------------------------- as data
@attrs.frozen(kw_only=True)
class Dat:
    """One CPU's DAT. ``edat``: 0, 1 or 2 (large segments, large regions), as CR0 and the facilities allow;
    ``iep``: instruction-execution protection is on."""

    esa: bool
    edat: int = 0
    iep: bool = False
    strict: bool = False

    page_shift = PAGE
    looks_ahead = True
    event_costs: Mapping[str, int] = attrs.field(factory=dict[str, int], init=False)

    @property
    def facilities(self) -> int:
        """As the rules want them."""
        flags = {
            ESA: self.esa,
            EDAT_1: self.edat >= 1,
            EDAT_2: self.edat >= 2,
            IEP: self.iep,
            STRICT: self.strict,
        }
        return sum(bit for bit, is_on in flags.items() if is_on)

    @property
    def page_shifts(self) -> tuple[int, ...]:
        """Log2 of every page size, ascending."""
        return (PAGE, MIB, GIB_2)[: 1 + self.edat]

    @property
    def path_steps(self) -> tuple[tuple[str, int], ...]:
        """The manual's tables, top first; a walk begins at the one that is designated."""
        names = ("region1", "region2", "region3", "segment", "page")
        return tuple((name, 4 if self.esa else 8) for name in names)

    def table_shifts(self) -> dict[int, tuple[int, int]]:
        """CRST entries: cached region and segment entries."""
        levels = range(SEGMENT_LEVEL if self.esa else 0, PAGE_LEVEL)
        return {PAGE_LEVEL - level: (level, 53 - 11 * level) for level in levels}

    def install(self, words: npt.NDArray[np.int64]) -> None:
        """See ``Translation.install``. No fault drops anything: invalid entries are not cached, and whoever
        changes a valid one purges it."""
        words[BASE_SHIFT] = PAGE
        words[LEVELS] = len(self.path_steps)
        words[ROWS + R_SHIFT + PAGE_LEVEL * ROW] = PAGE
        for level, shift in self.table_shifts().values():
            words[ROWS + R_SHIFT + level * ROW] = shift
        for access in Access:
            for privilege in Privilege:
                place = CODES + (WalkFault.NO_PERMISSION * 3 + access) * 2 + privilege
                words[place] = fault_code(PROTECTION, access, privilege)
        words[FAULT_DROPS] = 0
        words[FACILITIES] = self.facilities
        words[MISS_ADDRESS] = address_of(dat_miss)

    def latch_root(self, ram: EntryReader, root: int) -> tuple[int, ...]:
        """Any designation can be loaded; it is looked at when it is used."""
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
        """See ``Translation.walk``. ``root``: the ASCE or STD."""
        has, nbytes = self.facilities, 4 if self.esa else 8
        path: list[tuple[int, int, int]] = []
        refusal, level, table = designated(has, root, va, ram.size)
        entry, writable, shift, frame = 0, True, PAGE, va & ORIGIN
        while not refusal and level < NO_LEVEL:
            place = place_of(has, table, level, va)
            if place + nbytes > ram.size:
                refusal = ADDRESSING
                break
            entry = ram.read_entry(place, nbytes, "big")
            path.append((level, place, entry))
            refusal, protects, shift, frame, _ = judged(has, root, level, entry, va)
            writable = writable and not protects
            level, table = NO_LEVEL if shift else level + 1, frame
        found = {}
        if not refusal:
            executable = not (self.iep and entry & BIT_55)
            found = {"readable": True, "writable": writable, "executable": executable, "user": True}
            if (access is Access.STORE and not writable) or (access is Access.FETCH and not executable):
                refusal = PROTECTION
        return Walk(
            va=va,
            pa=None if refusal else frame + va % (1 << shift),
            page_size=1 << shift if found else 0,
            fault=WalkFault(refusal >> FAULT_SHIFT),
            code=fault_code(refusal, access, privilege) if refusal else 0,
            path=tuple(path),
            **found,
        )


def fault_code(refusal: int, access: Access | None, privilege: Privilege) -> int:
    """An interruption code, and beside it what was asked and by whom."""
    asked = 1 if access is None else access
    return refusal & CODE | asked << ACCESS_SHIFT | privilege << USER_SHIFT
