"""Compiled steps of TLBs and paging-structure caches: find, choose a victim, fill, drop.

Both kinds of cache are sets of entries with a page number, a size and an address-space tag, so they share
every step. All functions here are helpers: they are linked into the kernels that call them.

First reading: ``find`` and ``fill_level`` are enough; the rest is bookkeeping of exact counts.
"""

from __future__ import annotations

import numpy as np

from polymmu.hardware.compile import Words, kernel, step
from polymmu.hardware.state import (
    ASIDS,
    BASE_SHIFT,
    D_COMPULSORY,
    D_COUNTS,
    D_EVICTIONS,
    D_FLUSHED,
    D_HOLDS,
    D_LEVEL,
    D_MASK,
    D_MISSES,
    D_POLICY,
    D_RECORDS,
    D_SETS,
    D_STRIDE,
    D_TREES,
    D_WAYS,
    D_WEIGHT,
    DESCRIPTOR,
    DESCRIPTORS,
    E_INFO,
    E_SPACE,
    E_STAMP,
    F_STAMP,
    F_START,
    FILLS,
    FRAGMENTS,
    FRONT,
    FRONT_BITS,
    FRONT_MASK,
    FRONT_ROW,
    GLOBAL,
    HASH_PAGE,
    HASH_SPACE,
    LARGE_ENTRIES,
    LRU,
    MAX_TLB_LEVELS,
    NR_TLBS,
    NR_WALK_CACHES,
    ORDINAL_MASK,
    OTHER_ROW,
    OWNER_SHIFT,
    P_CACHE,
    P_ORDINAL,
    P_SHIFT,
    PLRU,
    PROBE,
    PROBES,
    R_SHIFT,
    RANDOM,
    REAL_MASK,
    REAL_SHIFT,
    ROW,
    ROWS,
    SEEN_BITS,
    SEEN_KEY,
    SEEN_MASK,
    SEEN_ROOM,
    SEEN_SPACE,
    SIZES,
    SPACE,
    TAG_SHIFT,
)


@step
def page_number(va: int, shift: int) -> int:
    """``va >> shift`` as for an unsigned address."""
    return np.int64(np.uint64(va) >> np.uint64(shift))  # type: ignore[return-value]


@step
def space_of(state: Words, va: int) -> int:
    """The tag that entries for ``va`` are filled and found with."""
    return state[ASIDS + (va >> 61 & 7)]


@step
def first_entry(state: Words, cache: int, page: int) -> int:
    """The first entry of the set that ``page`` belongs to: page number mod sets."""
    mask = state[cache + D_MASK]
    index = page & mask if mask >= 0 else page % state[cache + D_SETS]
    return state[cache + D_RECORDS] + index * state[cache + D_STRIDE]


@step
def ways_of(state: Words, cache: int) -> int:
    """Entries per set."""
    return state[cache + D_WAYS]


@step
def is_usable(tag: int, space: int) -> bool:
    """Whether an entry tagged ``tag`` serves ``space``. (A tuple and ``in`` would cost 70 ns here.)"""
    return tag == space or tag == GLOBAL  # noqa: PLR1714


@step
def find(state: Words, cache: int, page: int, ordinal: int, space: int) -> int:
    """The valid entry for ``page`` of the size ``ordinal`` usable in ``space``; 0: none."""
    ways = ways_of(state, cache)
    first = first_entry(state, cache, page)
    tag = page << TAG_SHIFT | ordinal
    for entry in range(first, first + ways):
        if state[entry] == tag:
            owner = state[entry + E_SPACE * ways]
            if is_usable(owner, space):
                return entry
    return 0


@step
def touch(state: Words, cache: int, entry: int, stamp: int) -> None:
    """Note a use of ``entry`` as the cache's replacement policy wants it."""
    if state[cache + D_POLICY] == PLRU:
        point_away(state, cache, entry)
    else:  # random replacement reads no stamps
        state[entry + E_STAMP * ways_of(state, cache)] = stamp


@kernel
def point_away(state: Words, cache: int, entry: int) -> None:
    """Tree-PLRU's note of a use.

    The tree's inner nodes are bits 1..ways-1 of one word; a bit points to the half used less recently.
    Walking up from the leaf, each node is made to point away from where we came.
    """
    ways = state[cache + D_WAYS]
    place = entry - state[cache + D_RECORDS]
    tree = state[cache + D_TREES] + place // state[cache + D_STRIDE]
    node = ways + place % state[cache + D_STRIDE]
    bits = state[tree]
    while node > 1:
        parent = node >> 1
        if node & 1:
            bits &= ~(1 << parent)
        else:
            bits |= 1 << parent
        node = parent
    state[tree] = bits


@step
def next_random(state: Words) -> int:
    """Advance the xorshift64 generator (shifts 13, 7, 17) and return 63 bits of it."""
    x = state[RANDOM]
    x ^= x << 13
    x ^= (x >> 7) & ((1 << 57) - 1)
    x ^= x << 17
    state[RANDOM] = x
    return x & ((1 << 63) - 1)


@step
def victim(state: Words, cache: int, page: int) -> int:
    """The entry that ``page`` will take: an invalid one if its set has any, else the policy's choice."""
    first = first_entry(state, cache, page)
    if state[cache + D_POLICY] != LRU:
        return other_victim(state, cache, first)
    # Invalid entries carry stamp -1, older than any use.
    ways = ways_of(state, cache)
    best = first
    oldest = state[first + E_STAMP * ways]
    for entry in range(first + 1, first + ways):
        stamp = state[entry + E_STAMP * ways]
        best = entry if stamp < oldest else best
        oldest = min(oldest, stamp)
    return best


@kernel
def other_victim(state: Words, cache: int, first: int) -> int:
    """``victim`` in the set at ``first`` for the policies that are not LRU."""
    ways = state[cache + D_WAYS]
    for way in range(ways):
        if state[first + way] < 0:
            return first + way
    if state[cache + D_POLICY] == PLRU:
        bits = state[state[cache + D_TREES] + (first - state[cache + D_RECORDS]) // state[cache + D_STRIDE]]
        node = 1
        while node < ways:
            node = 2 * node + ((bits >> node) & 1)
        return first + node - ways
    return first + next_random(state) % ways


@step
def tlbs_end(state: Words) -> int:
    """Where the TLBs' descriptors end and those of the paging-structure caches begin."""
    return DESCRIPTORS + state[NR_TLBS] * DESCRIPTOR


@step
def shortcut(cache: int, entry: int, ways: int) -> int:
    """What a row of shortcuts that leads to ``entry`` holds."""
    return cache << OWNER_SHIFT | (entry + E_STAMP * ways)


@step
def forget_row(state: Words, held: int, row: int) -> None:
    """Take back one shortcut if it leads where ``held`` says. No branch: nobody could predict it."""
    now = state[row + F_STAMP]
    state[row + F_START] ^= OTHER_ROW << state[BASE_SHIFT] if now == held else 0
    state[row + F_STAMP] = 0 if now == held else now


@kernel
def forget_rows(state: Words, held: int) -> None:
    """Take back every shortcut that leads where ``held`` says."""
    for n in range(4 << FRONT_BITS):
        forget_row(state, held, FRONT + n * FRONT_ROW)


@step
def forget_front(state: Words, cache: int, entry: int, ways: int, tag: int) -> None:
    """Take back the shortcuts that lead to a first-level entry: of one base page, or of all it covers."""
    held = shortcut(cache, entry, ways)
    ordinal = tag & ORDINAL_MASK
    if state[SIZES + ordinal] != state[BASE_SHIFT]:
        forget_rows(state, held)
    else:
        page = tag >> TAG_SHIFT & FRONT_MASK
        for op in range(4):
            forget_row(state, held, FRONT + (op << FRONT_BITS | page) * FRONT_ROW)


@step
def count_entry(state: Words, cache: int, ordinal: int, info: int, change: int) -> None:
    """Count an entry that came (1) or went (-1)."""
    state[cache + D_COUNTS + ordinal] += change
    if state[cache + D_HOLDS]:
        if ordinal:
            state[LARGE_ENTRIES] += change
        if (info & REAL_MASK) >> REAL_SHIFT != ordinal:
            state[FRAGMENTS] += change


@step
def entries_held(state: Words, cache: int) -> int:
    """How many valid entries a cache has. Whoever looks for them can stop at the last: most caches are nearly empty."""
    held = 0
    for ordinal in range(ORDINAL_MASK + 1):
        held += state[cache + D_COUNTS + ordinal]
    return held


@step
def forget(state: Words, cache: int, entry: int) -> None:
    """Make ``entry`` invalid; counting why is the caller's business."""
    ways = ways_of(state, cache)
    tag = state[entry]
    count_entry(state, cache, tag & ORDINAL_MASK, state[entry + E_INFO * ways], -1)
    state[entry] = -1
    state[entry + E_STAMP * ways] = -1
    if state[cache + D_WEIGHT]:
        forget_front(state, cache, entry, ways, tag)


@step
def replace(
    state: Words, cache: int, entry: int, ways: int, page: int, ordinal: int, space: int, info: int
) -> None:
    """Let ``entry`` hold ``page``, not noting the use."""
    tag = page << TAG_SHIFT | ordinal
    old = state[entry]
    old_info = state[entry + E_INFO * ways]
    if old >= 0:
        state[cache + D_EVICTIONS] += 1
        if state[cache + D_WEIGHT]:
            forget_front(state, cache, entry, ways, old)
    if old < 0 or (old ^ tag) & ORDINAL_MASK or (old_info ^ info) & REAL_MASK:
        # Otherwise the old entry's place in these counts goes to the new one.
        if old >= 0:
            count_entry(state, cache, old & ORDINAL_MASK, old_info, -1)
        count_entry(state, cache, ordinal, info, 1)
    state[entry] = tag
    state[entry + E_SPACE * ways] = space
    state[entry + E_INFO * ways] = info


@step
def fill(state: Words, cache: int, page: int, ordinal: int, space: int, info: int, stamp: int) -> int:
    """Put an entry into ``cache`` in place of its set's victim; return it."""
    entry = victim(state, cache, page)
    replace(state, cache, entry, ways_of(state, cache), page, ordinal, space, info)
    touch(state, cache, entry, stamp)
    return entry


@step
def seen_slot(state: Words, seen: Words, page: int, ordinal: int) -> int:
    """Where the table of touched pages keeps the bits of ``page`` in the running address space."""
    key = page >> 6 << TAG_SHIFT | ordinal
    space = state[SPACE]
    mask = state[SEEN_MASK]
    width = SEEN_BITS + state[NR_TLBS]
    slot = key * HASH_PAGE ^ space * HASH_SPACE
    slot = (slot ^ (slot >> 29)) & mask
    while True:
        at = slot * width
        held = seen[at + SEEN_KEY]
        if held == key and seen[at + SEEN_SPACE] == space:
            return at
        if held < 0:
            seen[at + SEEN_KEY] = key
            seen[at + SEEN_SPACE] = space
            state[SEEN_ROOM] -= 1
            return at
        slot = (slot + 1) & mask


@step
def count_miss(state: Words, seen: Words, cache: int, slot: int, page: int) -> None:
    """Count a miss in a TLB, and whether it never held this page of this address space before."""
    state[cache + D_MISSES] += 1
    place = slot + SEEN_BITS + (cache - DESCRIPTORS) // DESCRIPTOR
    known = seen[place]
    bit = 1 << (page & 63)
    if known & bit == 0:
        seen[place] = known | bit
        state[cache + D_COMPULSORY] += 1


@step
def fill_levels(
    state: Words,
    seen: Words,
    access: int,
    va: int,
    levels: int,
    size_shift: int,
    ordinal: int,
    info: int,
    space: int,
    stamp: int,
) -> tuple[int, int]:
    """Count a miss in, and fill, at each level below ``levels`` the TLB that takes a page of this size.

    ``size_shift``, ``ordinal``, ``info``: what is known to be mapped, a page or a larger TLB's entry. The
    TLB chosen holds the largest size that is not larger; a page larger than that enters as a fragment.
    Returns the first level's (entry, TLB); entry 0: it has no TLB for this page.
    """
    entry = 0
    cache = 0
    slot = 0
    slot_ordinal = -1
    for level in range(levels - 1, -1, -1):
        entry = 0
        probe = state[FILLS + (access * MAX_TLB_LEVELS + level) * 16 + ordinal]
        if probe >= 0:
            row = PROBES + probe * PROBE
            cache = state[row + P_CACHE]
            own = state[row + P_ORDINAL]
            own_shift = state[row + P_SHIFT]
            page = page_number(va, own_shift)
            if own != slot_ordinal:
                slot = seen_slot(state, seen, page, own)
                slot_ordinal = own
            count_miss(state, seen, cache, slot, page)
            inside = va & ((1 << size_shift) - (1 << own_shift))
            entry = fill(state, cache, page, own, space, info + inside, stamp)
    return entry, cache


@step
def walk_cache_shift(state: Words, cache: int) -> int:
    """Log2 of the bytes that one entry of this paging-structure cache covers."""
    return state[ROWS + state[cache + D_LEVEL] * ROW + R_SHIFT]


@kernel
def drop_page(state: Words, va: int, space: int) -> None:
    """Drop every TLB entry and paging-structure entry that a translation of ``va`` could use."""
    for n in range(state[NR_TLBS] + state[NR_WALK_CACHES]):
        cache = DESCRIPTORS + n * DESCRIPTOR
        is_tlb = n < state[NR_TLBS]
        for ordinal in range(16):
            if state[cache + D_COUNTS + ordinal]:
                shift = state[SIZES + ordinal] if is_tlb else walk_cache_shift(state, cache)
                entry = find(state, cache, page_number(va, shift), ordinal, space)
                if entry:
                    forget(state, cache, entry)
                    if is_tlb:
                        state[cache + D_FLUSHED] += 1
