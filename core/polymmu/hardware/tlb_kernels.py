"""Compiled steps of TLBs and paging-structure caches: find, choose a victim, fill, drop.

Both kinds of cache are sets of records with a page number, a size and an address-space tag, so they share
every step. All functions here are helpers: they are linked into the kernels that call them.

First reading: ``find`` and ``fill_level`` are enough; the rest is bookkeeping of exact counts.
"""

from __future__ import annotations

from polymmu.hardware.compile import Words, kernel, step
from polymmu.hardware.state import (
    BASE_SHIFT,
    D_COMPULSORY,
    D_COUNTS,
    D_EVICTIONS,
    D_FLUSHED,
    D_LEVEL,
    D_MASK,
    D_MISSES,
    D_NUMBER,
    D_POLICY,
    D_RECORDS,
    D_SETS,
    D_TREES,
    D_WAYS,
    DESCRIPTOR,
    DESCRIPTORS,
    E_INFO,
    E_ORDINAL,
    E_PAGE,
    E_SHIFT,
    E_SPACE,
    E_STAMP,
    E_WEIGHT,
    F_PAGE,
    F_RECORD,
    FILLS,
    FLAG_BITS,
    FRAGMENTS,
    FRONT,
    FRONT_BITS,
    FRONT_MASK,
    FRONT_ROW,
    GLOBAL,
    HASH_PAGE,
    HASH_SPACE,
    LRU,
    MAX_TLB_LEVELS,
    NO_PAGE,
    NR_TLBS,
    NR_WALK_CACHES,
    PLACE_MASK,
    PLRU,
    PROBES,
    R_SHIFT,
    RANDOM,
    REAL_SHIFT,
    RECORD,
    ROW,
    ROWS,
    SEEN_BITS,
    SEEN_KEY,
    SEEN_ROOM,
    SEEN_SPACE,
    SEEN_WORDS,
    SIZES,
    SPACE,
)


@step
def page_number(va: int, shift: int) -> int:
    """``va >> shift`` as for an unsigned address."""
    return (va >> shift) & ((1 << (64 - shift)) - 1)


@step
def first_record(state: Words, cache: int, page: int) -> int:
    """The first record of the set that ``page`` belongs to: page number mod sets."""
    mask = state[cache + D_MASK]
    index = page & mask if mask >= 0 else page % state[cache + D_SETS]
    return (state[cache + D_RECORDS] + index * state[cache + D_WAYS] * RECORD) & PLACE_MASK


@step
def is_usable(tag: int, space: int) -> bool:
    """Whether an entry tagged ``tag`` serves ``space``. (A tuple and ``in`` would cost 70 ns here.)"""
    return tag == space or tag == GLOBAL  # noqa: PLR1714


@step
def find(state: Words, cache: int, page: int, shift: int, space: int) -> int:
    """The valid record for ``page`` of the size ``shift`` usable in ``space``; 0: none."""
    record = first_record(state, cache, page)
    for _ in range(state[cache + D_WAYS]):
        if state[record + E_PAGE] == page and state[record + E_SHIFT] == shift:
            tag = state[record + E_SPACE]
            if is_usable(tag, space):
                return record
        record = (record + RECORD) & PLACE_MASK
    return 0


@step
def touch(state: Words, cache: int, record: int, stamp: int) -> None:
    """Note a use of ``record`` as the cache's replacement policy wants it."""
    policy = state[cache + D_POLICY]
    if policy == LRU:
        state[record + E_STAMP] = stamp
    elif policy == PLRU:
        # The tree's inner nodes are bits 1..ways-1 of one word; a bit points to the half used less
        # recently. Walking up from the leaf, each node is made to point away from where we came.
        ways = state[cache + D_WAYS]
        place = (record - state[cache + D_RECORDS]) // RECORD
        tree = state[cache + D_TREES] + place // ways
        node = ways + place % ways
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
    """The record that ``page`` will take: an invalid one if its set has any, else the policy's choice."""
    first = first_record(state, cache, page)
    ways = state[cache + D_WAYS]
    policy = state[cache + D_POLICY]
    if policy == LRU:
        # Invalid records carry stamp -1, older than any use.
        best = first
        oldest = state[first + E_STAMP]
        for way in range(1, ways):
            record = (first + way * RECORD) & PLACE_MASK
            stamp = state[record + E_STAMP]
            best = record if stamp < oldest else best
            oldest = min(oldest, stamp)
        return best
    for way in range(ways):
        if state[first + way * RECORD + E_PAGE] < 0:
            return first + way * RECORD
    if policy == PLRU:
        bits = state[state[cache + D_TREES] + (first - state[cache + D_RECORDS]) // RECORD // ways]
        node = 1
        while node < ways:
            node = 2 * node + ((bits >> node) & 1)
        return first + (node - ways) * RECORD
    return first + next_random(state) % ways * RECORD


@step
def fill(
    state: Words, cache: int, page: int, shift: int, space: int, info: int, ordinal: int, stamp: int
) -> int:
    """Put an entry into ``cache`` in place of its set's victim; return the record."""
    record = victim(state, cache, page)
    if state[record + E_PAGE] >= 0:
        state[cache + D_EVICTIONS] += 1
        forget(state, cache, record)
    state[record + E_PAGE] = page
    state[record + E_SHIFT] = shift
    state[record + E_SPACE] = space
    state[record + E_INFO] = info
    state[record + E_ORDINAL] = ordinal
    state[cache + D_COUNTS + ordinal] += 1
    if cache < tlbs_end(state) and (info & FLAG_BITS) >> REAL_SHIFT != ordinal:
        state[FRAGMENTS] += 1
    touch(state, cache, record, stamp)
    return record


@step
def tlbs_end(state: Words) -> int:
    """Where the TLBs' descriptors end and those of the paging-structure caches begin."""
    return DESCRIPTORS + state[NR_TLBS] * DESCRIPTOR


@step
def forget_row(state: Words, record: int, row: int) -> None:
    """Take back one shortcut if it leads to ``record``."""
    if state[row + F_RECORD] == record:
        state[row + F_PAGE] = NO_PAGE
        state[row + F_RECORD] = 0


@kernel
def forget_rows(state: Words, record: int) -> None:
    """Take back every shortcut that leads to ``record``."""
    for n in range(4 << FRONT_BITS):
        forget_row(state, record, FRONT + n * FRONT_ROW)


@step
def forget_front(state: Words, record: int, page: int, shift: int) -> None:
    """Take back the shortcuts that lead to a first-level entry: of one base page, or of all it covers."""
    if shift:
        forget_rows(state, record)
    else:
        for op in range(4):
            forget_row(state, record, FRONT + (op << FRONT_BITS | (page & FRONT_MASK)) * FRONT_ROW)


@step
def forget(state: Words, cache: int, record: int) -> None:
    """Make ``record`` invalid; counting why is the caller's business."""
    ordinal = state[record + E_ORDINAL] & 15
    page = state[record + E_PAGE]
    state[cache + D_COUNTS + ordinal] -= 1
    if cache < tlbs_end(state) and (state[record + E_INFO] & FLAG_BITS) >> REAL_SHIFT != ordinal:
        state[FRAGMENTS] -= 1
    state[record + E_PAGE] = -1
    state[record + E_STAMP] = -1
    if state[record + E_WEIGHT]:
        forget_front(state, record, page, state[record + E_SHIFT])


@step
def first_touch(state: Words, seen: Words, page: int, ordinal: int, number: int) -> bool:
    """Whether TLB ``number`` never held this page of this address space before; remembers that it does now.

    A slot has a bit for each of 64 neighbouring pages, so that the table stays small where pages are many.
    """
    key = page >> 6 << 9 | number << 4 | ordinal
    bit = 1 << (page & 63)
    space = state[SPACE]
    slots = seen.size // SEEN_WORDS
    slot = key * HASH_PAGE ^ space * HASH_SPACE
    slot = (slot ^ (slot >> 29)) & (slots - 1) & PLACE_MASK
    while True:
        at = slot * SEEN_WORDS
        held = seen[at + SEEN_KEY]
        if held == key and seen[at + SEEN_SPACE] == space:
            known = seen[at + SEEN_BITS]
            seen[at + SEEN_BITS] = known | bit
            return known & bit == 0
        if held < 0:
            seen[at + SEEN_KEY] = key
            seen[at + SEEN_SPACE] = space
            seen[at + SEEN_BITS] = bit
            state[SEEN_ROOM] -= 1
            return True
        slot = (slot + 1) & (slots - 1) & PLACE_MASK


@step
def fill_level(
    state: Words,
    seen: Words,
    access: int,
    level: int,
    va: int,
    frame: int,
    size_shift: int,
    ordinal: int,
    flags: int,
    space: int,
    stamp: int,
) -> int:
    """Count a miss in, and fill, the TLB of ``level`` that takes a page of this size; 0: none does.

    ``frame``, ``size_shift``, ``ordinal``: what is known to be mapped, a page or a larger TLB's entry. The
    TLB chosen holds the largest size that is not larger; a page larger than that enters as a fragment.
    """
    row = (FILLS + (access * MAX_TLB_LEVELS + level) * 16 + ordinal) & PLACE_MASK
    probe = state[row]
    if probe < 0:
        return 0
    cache = state[PROBES + 2 * probe] & PLACE_MASK
    own = state[PROBES + 2 * probe + 1] & 15
    own_shift = state[SIZES + own]
    page = page_number(va, own_shift)
    state[cache + D_MISSES] += 1
    if first_touch(state, seen, page, own, state[cache + D_NUMBER]):
        state[cache + D_COMPULSORY] += 1
    inside = va & ((1 << size_shift) - (1 << own_shift))
    return fill(state, cache, page, own_shift - state[BASE_SHIFT], space, frame + inside | flags, own, stamp)


@step
def walk_cache_shift(state: Words, cache: int) -> int:
    """Log2 of the bytes that one entry of this paging-structure cache covers."""
    return state[ROWS + state[cache + D_LEVEL] * ROW + R_SHIFT]


@kernel
def drop_page(state: Words, va: int, space: int) -> None:
    """Drop every TLB entry and paging-structure entry that a translation of ``va`` could use."""
    base = state[BASE_SHIFT]
    for n in range(state[NR_TLBS] + state[NR_WALK_CACHES]):
        cache = DESCRIPTORS + n * DESCRIPTOR
        is_tlb = n < state[NR_TLBS]
        for ordinal in range(16):
            if state[cache + D_COUNTS + ordinal]:
                # A paging-structure cache keeps its only count under the size its entries span.
                shift = state[SIZES + ordinal] if is_tlb else walk_cache_shift(state, cache)
                record = find(state, cache, page_number(va, shift), shift - base, space)
                if record:
                    forget(state, cache, record)
                    if is_tlb:
                        state[cache + D_FLUSHED] += 1
                if not is_tlb:
                    break
