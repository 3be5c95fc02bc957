"""The compiled radix walker: what hardware does when no TLB has the translation.

A *miss routine* is a kernel of one fixed signature, ``fault = miss(state, ram, va, access, mode)``. It
finds the translation of ``va`` and leaves it in ``state[OUT_*]``, or returns a ``WalkFault`` and leaves
the entry that refused in ``state[FAULT_PLACE]``, ``state[FAULT_ENTRY]``. Modes:

* ``WALK``: as hardware does it, from the current root, with paging-structure caches, accessed and dirty
  bits and all counters. A walk that faults changes no memory and no cache, it only counts.
* ``PEEK``: looks, from ``state[WALK_ROOT]``; reads memory only, counts nothing. ``access`` -1 asks for no
  right.
* ``STOP_AT + level``: like ``WALK``, but the entry of ``level`` counts as absent. Only where pages may be mapped
  ahead of their first touch (``Translation.looks_ahead``).
* ``SEGMENT``: only where ``state[HAS_SEGMENTS]``: asked before a TLB of level 2 or more is used.

``radix_miss`` is the routine of every radix MMU; its formats are rows of numbers (``state.ROWS``). An MMU
that hashes or traps brings its own routine.

Order of checks at each level: present, then reserved bits, then down. Rights are combined over all levels
and judged after the walk; then accessed is set wherever it was clear, and dirty on a store.
(Intel SDM vol. 3A 4.3-4.8; z/Architecture and RISC-V differ in data only.)
"""

from __future__ import annotations

from polymmu.hardware.compile import Words, kernel, pointer_to, step
from polymmu.hardware.state import (
    AD_UPDATES,
    BIG_ENDIAN,
    CANONICAL_SIGN,
    DIRTY,
    E_INFO,
    EXECUTE,
    FAULT_ENTRY,
    FAULT_LEVEL,
    FAULT_PLACE,
    LEVELS,
    NEED,
    NR_ROOT_ENTRIES,
    OUT_FRAME,
    OUT_GLOBAL,
    OUT_INFO,
    OUT_ORDINAL,
    OUT_SHIFT,
    PATH_ENTRY,
    PATH_PLACE,
    PATH_RIGHTS,
    PATH_TABLE,
    PEEK,
    PRIVILEGE,
    R_ACCESSED_M,
    R_ACCESSED_ON,
    R_ADDRESS_SHIFT,
    R_BYTES,
    R_CACHE,
    R_DIRTY_M,
    R_DIRTY_ON,
    R_EXECUTE_M,
    R_EXECUTE_ON,
    R_FRAME,
    R_GLOBAL_M,
    R_GLOBAL_ON,
    R_HIGH,
    R_HIGH_SHIFT,
    R_INDEX,
    R_JUDGED,
    R_KNOWN,
    R_KNOWN_FOR,
    R_KNOWN_GLOBAL,
    R_KNOWN_INFO,
    R_LAST,
    R_LEAF,
    R_LEAVES_ALONE,
    R_MALFORMED,
    R_ORDINAL,
    R_PAIRS,
    R_PRESENT_M,
    R_PRESENT_ON,
    R_READ_M,
    R_READ_ON,
    R_RESERVED_LEAF,
    R_RESERVED_TABLE,
    R_SHIFT,
    R_TABLE,
    R_USER_M,
    R_USER_ON,
    R_WRITE_M,
    R_WRITE_ON,
    RAM_BYTES,
    READ,
    REFERENCES,
    REFUSED_ON_USER,
    RIGHTS_BITS,
    ROOT,
    ROOT_ENTRIES,
    ROW,
    ROWS,
    SETS_AD,
    STOP_AT,
    SUPERVISOR_RIGHTS,
    SUPERVISOR_WRITES,
    USER,
    USER_RIGHTS,
    VA_BITS,
    WALK,
    WALK_CACHE_HITS,
    WALK_CLOCK,
    WALK_ROOT,
    WALKS,
    WRITE,
)
from polymmu.hardware.tlb_kernels import fill, find, page_number, space_of, touch, ways_of

NOT_PRESENT, RESERVED_BIT, NO_PERMISSION, NON_CANONICAL = 1, 2, 3, 4
MISALIGNED, TABLE_UNREADABLE, NOT_ACCESSED = 5, 6, 7

LOW_32 = 0xFFFFFFFF
ADDRESS_MASK = (1 << 62) - 1
ALL_RIGHTS = READ | WRITE | USER | EXECUTE


@kernel
def swap_bytes(value: int, nbytes: int) -> int:
    """The entry of ``nbytes`` bytes (4 or 8) in the other byte order."""
    swapped = 0
    for _ in range(nbytes):
        swapped = swapped << 8 | value & 0xFF
        value >>= 8
    return swapped


@step
def read_entry(ram: Words, place: int, nbytes: int, big_endian: int) -> int:
    """The table entry at physical address ``place``, zero-extended to a word."""
    word = ram[(place >> 3) & ADDRESS_MASK]
    if nbytes == 4:
        word = word >> ((place & 4) << 3) & LOW_32
    return swap_bytes(word, nbytes) if big_endian else word


@step
def write_entry(ram: Words, place: int, nbytes: int, big_endian: int, entry: int) -> None:
    """Store a table entry; the neighbour in the same 8 bytes keeps its value."""
    if big_endian:
        entry = swap_bytes(entry, nbytes)
    if nbytes == 4:
        shift = (place & 4) << 3
        entry = ram[place >> 3] & ~(LOW_32 << shift) | (entry & LOW_32) << shift
    ram[place >> 3] = entry


@step
def is_canonical(state: Words, va: int) -> bool:
    """Whether the bits of ``va`` above what the walk uses are as the MMU wants them."""
    bits = state[VA_BITS]
    if bits >= 64:
        return True
    if state[CANONICAL_SIGN]:
        top = va >> (bits - 1)
        return -1 <= top <= 0
    return va >> bits == 0


@step
def is_malformed(state: Words, row: int, entry: int, is_leaf: bool) -> bool:
    """Whether a present entry has a reserved bit set or one of the format's refused patterns."""
    reserved = state[row + R_RESERVED_LEAF] if is_leaf else state[row + R_RESERVED_TABLE]
    if entry & reserved:
        return True
    for n in range(state[row + R_MALFORMED]):
        if entry & state[row + R_PAIRS + 2 * n] == state[row + R_PAIRS + 2 * n + 1]:
            return True
    return False


@step
def rights_of(state: Words, row: int, entry: int) -> int:
    """The rights one entry grants, as READ, WRITE, USER, EXECUTE bits."""
    rights = 0
    if entry & state[row + R_READ_M] == state[row + R_READ_ON]:
        rights |= READ
    if entry & state[row + R_WRITE_M] == state[row + R_WRITE_ON]:
        rights |= WRITE
    if entry & state[row + R_USER_M] == state[row + R_USER_ON]:
        rights |= USER
    if entry & state[row + R_EXECUTE_M] == state[row + R_EXECUTE_ON]:
        rights |= EXECUTE
    return rights


@step
def info_of(state: Words, rights: int) -> int:
    """Combined rights as an entry's INFO bits: what supervisor and user may do."""
    three = 0
    if rights & EXECUTE:
        three |= 1
    if rights & READ:
        three |= 2
    if rights & WRITE:
        three |= 4
    info = three << USER_RIGHTS if rights & USER else 0
    if state[SUPERVISOR_WRITES]:
        three |= 4
    if rights & USER:
        three &= ~state[REFUSED_ON_USER]
    return info | three << SUPERVISOR_RIGHTS


@step
def start_of_walk(state: Words, va: int) -> int:
    """The level to start at. The lowest paging-structure cache that knows the address decides."""
    for below in range(1, state[LEVELS]):
        level = state[LEVELS] - 1 - below
        row = ROWS + level * ROW
        cache = state[row + R_CACHE]
        if cache:
            shift = state[row + R_SHIFT]
            entry = find(state, cache, page_number(va, shift), 0, space_of(state, va))
            if entry:
                touch(state, cache, entry, state[WALK_CLOCK])
                state[WALK_CACHE_HITS] += 1
                info = state[entry + E_INFO * ways_of(state, cache)]
                state[PATH_TABLE + level + 1] = info >> RIGHTS_BITS
                state[PATH_RIGHTS + level + 1] = info & ALL_RIGHTS
                return level + 1
    state[PATH_TABLE] = state[ROOT]
    state[PATH_RIGHTS] = ALL_RIGHTS
    return 0


@step
def set_accessed(state: Words, ram: Words, start: int, last: int, is_store: bool) -> None:
    """Set accessed on every level of the path that lacks it, and dirty on the leaf of a store."""
    for level in range(start, last + 1):
        row = ROWS + level * ROW
        place = state[PATH_PLACE + level]
        if place < 0 or (level < last and state[row + R_LEAVES_ALONE]):  # no such bits, in a register or here
            continue
        entry = state[PATH_ENTRY + level]
        marked = entry & ~state[row + R_ACCESSED_M] | state[row + R_ACCESSED_ON]
        if is_store and level == last:
            marked = marked & ~state[row + R_DIRTY_M] | state[row + R_DIRTY_ON]
        if marked != entry:
            write_entry(ram, place, state[row + R_BYTES], state[BIG_ENDIAN], marked)
            state[PATH_ENTRY + level] = marked
            state[AD_UPDATES] += 1


@step
def keep_path(state: Words, va: int, start: int, last: int) -> None:
    """Give the table entries of a finished walk to the paging-structure caches."""
    for level in range(start, last):
        row = ROWS + level * ROW
        cache = state[row + R_CACHE]
        if cache:
            shift = state[row + R_SHIFT]
            fill(
                state,
                cache,
                page_number(va, shift),
                0,
                space_of(state, va),
                state[PATH_TABLE + level + 1] << RIGHTS_BITS | state[PATH_RIGHTS + level + 1],
                state[WALK_CLOCK],
            )


@step
def purpose(state: Words, rights: int, access: int) -> int:
    """What a leaf is judged for, as one word: the access, the privilege, the rights granted above. Never 0."""
    return 1 << 8 | state[PRIVILEGE] << 6 | access << 4 | rights


@step
def know(state: Words, row: int, entry: int, level: int, access: int) -> None:
    """Remember that a leaf of this level allows ``access`` and needs no update, and what was made of it."""
    state[row + R_KNOWN] = entry & state[row + R_JUDGED]
    state[row + R_KNOWN_FOR] = purpose(state, state[PATH_RIGHTS + level], access)
    state[row + R_KNOWN_INFO] = state[OUT_INFO]
    state[row + R_KNOWN_GLOBAL] = state[OUT_GLOBAL]


@step
def is_known(state: Words, row: int, entry: int, rights: int, access: int) -> bool:
    """Whether ``entry`` is a leaf like the last one, which was fine: most pages of a program are alike."""
    alike = (entry ^ state[row + R_KNOWN]) & state[row + R_JUDGED] == 0
    return alike and state[row + R_KNOWN_FOR] == purpose(state, rights, access)


@step
def frame_of(state: Words, row: int, entry: int) -> int:
    """Physical address of the page that a leaf maps."""
    frame = (entry & state[row + R_FRAME]) << state[row + R_ADDRESS_SHIFT]
    return frame | (entry & state[row + R_HIGH]) << state[row + R_HIGH_SHIFT]


@step
def give_page(state: Words, row: int, entry: int) -> int:
    """Answer with the page that a leaf maps."""
    state[OUT_FRAME] = frame_of(state, row, entry)
    state[OUT_SHIFT] = state[row + R_SHIFT]
    state[OUT_ORDINAL] = state[row + R_ORDINAL]
    return 0


@step
def radix_walk(state: Words, ram: Words, va: int, access: int, mode: int) -> int:
    """The miss routine of radix page tables; see the top of this file."""
    state[FAULT_PLACE] = -1
    state[FAULT_ENTRY] = 0
    if not is_canonical(state, va):
        return NON_CANONICAL
    looks_only = mode == PEEK
    start = 0
    is_latched = state[NR_ROOT_ENTRIES] > 0
    if looks_only:
        root = state[WALK_ROOT]
        is_latched = is_latched and root < 0
        state[PATH_TABLE] = state[ROOT] if root < 0 else root
        state[PATH_RIGHTS] = ALL_RIGHTS
    else:
        state[WALKS] += 1
        state[WALK_CLOCK] += 1
        start = start_of_walk(state, va)
    level = start
    row = ROWS + level * ROW
    entry = 0
    while True:
        table = state[PATH_TABLE + level]
        index = va >> state[row + R_SHIFT] & state[row + R_INDEX]
        place = table + index * state[row + R_BYTES]
        if level == 0 and is_latched:
            place = -1
            entry = state[ROOT_ENTRIES + index]
        else:
            if place < 0 or place + state[row + R_BYTES] > state[RAM_BYTES]:
                return TABLE_UNREADABLE
            entry = read_entry(ram, place, state[row + R_BYTES], state[BIG_ENDIAN])
            if not looks_only:
                state[REFERENCES] += 1
        if (
            level == start
            and mode == WALK
            and is_known(state, row, entry, state[PATH_RIGHTS + level], access)
        ):
            state[OUT_INFO] = state[row + R_KNOWN_INFO]
            state[OUT_GLOBAL] = state[row + R_KNOWN_GLOBAL]
            return give_page(state, row, entry)
        state[FAULT_PLACE] = place
        state[FAULT_LEVEL] = level
        state[FAULT_ENTRY] = entry
        if entry & state[row + R_PRESENT_M] != state[row + R_PRESENT_ON] or mode == STOP_AT + level:
            return NOT_PRESENT
        is_leaf = state[row + R_LAST] != 0 or entry & state[row + R_LEAF] != 0
        if is_malformed(state, row, entry, is_leaf):
            return RESERVED_BIT
        state[PATH_PLACE + level] = place
        state[PATH_ENTRY + level] = entry
        rights = state[PATH_RIGHTS + level]
        if is_leaf or not state[row + R_LEAVES_ALONE]:
            rights &= rights_of(state, row, entry)
        if is_leaf:
            break
        level = (level + 1) & 7
        state[PATH_TABLE + level] = (entry & state[row + R_TABLE]) << state[row + R_ADDRESS_SHIFT]
        state[PATH_RIGHTS + level] = rights
        row = row + ROW

    give_page(state, row, entry)
    if state[OUT_FRAME] & ((1 << state[row + R_SHIFT]) - 1):
        return MISALIGNED
    info = info_of(state, rights)
    if access >= 0 and ~info & state[NEED + access] & ~DIRTY:
        return NO_PERMISSION
    is_clean = state[row + R_DIRTY_M] != 0 and entry & state[row + R_DIRTY_M] != state[row + R_DIRTY_ON]
    is_old = entry & state[row + R_ACCESSED_M] != state[row + R_ACCESSED_ON]
    is_store = access == 2
    if not state[SETS_AD]:
        if access >= 0 and (is_old or (is_store and is_clean)):
            return NOT_ACCESSED
    elif not looks_only:
        set_accessed(state, ram, start, level, is_store)
        is_clean = is_clean and not is_store
    state[OUT_INFO] = info if is_clean else info | DIRTY
    state[OUT_GLOBAL] = (
        1
        if state[row + R_GLOBAL_M] != 0 and entry & state[row + R_GLOBAL_M] == state[row + R_GLOBAL_ON]
        else 0
    )
    if mode == WALK:
        keep_path(state, va, start, level)
        if not (level == 0 and is_latched):
            know(state, row, state[PATH_ENTRY + level], level, access)
    return 0


@kernel
def radix_miss(state: Words, ram: Words, va: int, access: int, mode: int) -> int:
    """``radix_walk`` as a kernel of its own."""
    return radix_walk(state, ram, va, access, mode)


@kernel
def peek_many(
    addresses: Words, access: int, words: Words, memory: Words, pas: Words, sizes: Words, faults: Words
) -> None:
    """Look each address up in the tables under ``state[WALK_ROOT]``; -1 and 0 where there is no answer."""
    state = pointer_to(words)
    ram = pointer_to(memory)
    for n in range(addresses.size):
        fault = radix_walk(state, ram, addresses[n], access, PEEK)
        faults[n] = fault
        pas[n] = -1
        sizes[n] = 0
        if fault == 0:
            sizes[n] = 1 << state[OUT_SHIFT]
            pas[n] = state[OUT_FRAME] + (addresses[n] & (sizes[n] - 1))
