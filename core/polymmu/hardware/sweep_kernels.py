"""Compiled sweeps over what a CPU has cached: drop it, or ask whether it is still true.

``sweep`` is one kernel with two modes because loading a kernel costs 10 to 30 milliseconds of every
process; the ranges and tags to match are the same for both.
"""

from __future__ import annotations

from polymmu.hardware.compile import Words, call_miss, kernel, pointer_to, step
from polymmu.hardware.state import (
    ADDRESS_BITS,
    BASE_SHIFT,
    D_COUNTS,
    D_FLUSHED,
    D_HOLDS,
    D_LEVEL,
    D_RECORDS,
    D_SETS,
    D_STRIDE,
    D_WEIGHT,
    DESCRIPTOR,
    DESCRIPTORS,
    E_INFO,
    E_SPACE,
    FLAG_BITS,
    FRAGMENTS,
    GLOBAL,
    MISS_ADDRESS,
    NR_TLBS,
    NR_WALK_CACHES,
    ORDINAL_MASK,
    OUT_FRAME,
    OUT_INFO,
    OUT_SHIFT,
    PATH_RIGHTS,
    PATH_TABLE,
    PEEK,
    REAL_SHIFT,
    RIGHTS,
    RIGHTS_BITS,
    SIZES,
    TAG_SHIFT,
)
from polymmu.hardware.tlb_kernels import (
    entries_held,
    find,
    forget,
    is_usable,
    page_number,
    space_of,
    tlbs_end,
    walk_cache_shift,
    ways_of,
)
from polymmu.hardware.walk_kernels import ALL_RIGHTS

EVERYWHERE = GLOBAL  # as `space`: every address space
NONE_OF_THEM, OF_SPACE, ON_PATH, ALL_OF_THEM = 0, 1, 2, 3  # which paging-structure entries to drop
FEW_PAGES = 8  # up to so many, looking each one up is cheaper than looking at every entry


@step
def overlaps(start: int, last: int, low: int, shift: int) -> bool:
    """Whether [low, low + 2**shift) and [start, last] have an address in common, as unsigned numbers."""
    flip = -0x8000000000000000
    high = low + ((1 << shift) - 1)
    return (low ^ flip) <= (last ^ flip) and (start ^ flip) <= (high ^ flip)


@step
def nth_entry(state: Words, cache: int, n: int) -> int:
    """The n-th entry of a cache, counted set after set."""
    ways = ways_of(state, cache)
    return state[cache + D_RECORDS] + n // ways * state[cache + D_STRIDE] + n % ways


@kernel
def drop_tlb(state: Words, cache: int, space: int, with_global: int, start: int, last: int) -> int:
    """Drop the entries of one TLB for ``space`` whose page, in its real size, meets [start, last]."""
    dropped = 0
    ways = ways_of(state, cache)
    left = entries_held(state, cache)
    for n in range(state[cache + D_SETS] * ways):
        if not left:
            break
        entry = nth_entry(state, cache, n)
        tag = state[entry]
        if tag >= 0:
            left -= 1
            owner = state[entry + E_SPACE * ways]
            is_mine = with_global > 0 if owner == GLOBAL else is_usable(space, owner)
            if is_mine:
                real = state[SIZES + ((state[entry + E_INFO * ways] & FLAG_BITS) >> REAL_SHIFT)]
                low = (tag >> TAG_SHIFT << state[SIZES + (tag & ORDINAL_MASK)]) >> real << real
                if overlaps(start, last, low, real):
                    forget(state, cache, entry)
                    dropped += 1
    state[cache + D_FLUSHED] += dropped
    return dropped


@kernel
def drop_few(state: Words, cache: int, space: int, with_global: int, start: int, last: int) -> int:
    """``drop_tlb`` by looking up each page: same result where no entry is a fragment of a larger page."""
    dropped = 0
    for ordinal in range(16):
        if state[cache + D_COUNTS + ordinal] == 0:
            continue
        shift = state[SIZES + ordinal]
        page = page_number(start, shift)
        while True:
            entry = find(state, cache, page, ordinal, space)
            if entry and (with_global or state[entry + E_SPACE * ways_of(state, cache)] != GLOBAL):
                forget(state, cache, entry)
                dropped += 1
            elif page == page_number(last, shift):
                break
            else:
                page += 1
    state[cache + D_FLUSHED] += dropped
    return dropped


@kernel
def drop_walk_cache(state: Words, cache: int, space: int, which: int, start: int, last: int) -> int:
    """Drop entries of one paging-structure cache."""
    shift = walk_cache_shift(state, cache)
    dropped = 0
    ways = ways_of(state, cache)
    left = entries_held(state, cache)
    for n in range(state[cache + D_SETS] * ways):
        if not left:
            break
        entry = nth_entry(state, cache, n)
        tag = state[entry]
        if tag >= 0:
            left -= 1
            mine = which == ALL_OF_THEM or space == EVERYWHERE or state[entry + E_SPACE * ways] == space
            if mine and (which != ON_PATH or overlaps(start, last, tag >> TAG_SHIFT << shift, shift)):
                forget(state, cache, entry)
                dropped += 1
    return dropped


@kernel
def is_stale(state: Words, ram: Words, va: int, info: int, shift: int) -> bool:
    """Whether a TLB entry says more than, or something else than, the tables do.

    One without a right lets nobody in; hardware may fetch one for a page that is not there.
    """
    if info & RIGHTS == 0:
        return False
    if call_miss(state[MISS_ADDRESS], state, ram, va, -1, PEEK):
        return True
    frame = state[OUT_FRAME] + (va & ((1 << state[OUT_SHIFT]) - 1))
    lost = info & RIGHTS & ~state[OUT_INFO]
    return state[OUT_SHIFT] < shift or frame != info & ADDRESS_BITS or lost != 0


@kernel
def is_stale_path(state: Words, ram: Words, va: int, info: int, level: int) -> bool:
    """Whether a paging-structure entry leads elsewhere, or grants more, than the tables do."""
    state[PATH_RIGHTS + level + 1] = 0
    state[PATH_TABLE + level + 1] = -1
    call_miss(state[MISS_ADDRESS], state, ram, va, -1, PEEK)
    if state[PATH_TABLE + level + 1] != info >> RIGHTS_BITS:
        return True
    return info & ~state[PATH_RIGHTS + level + 1] & ALL_RIGHTS != 0


@kernel
def stale_entries(state: Words, ram: Words, cache: int, space: int, start: int, last: int) -> int:
    """How many entries of one cache that ``space`` could use for [start, last] are stale."""
    is_tlb = state[cache + D_HOLDS] != 0
    ways = ways_of(state, cache)
    total = 0
    left = entries_held(state, cache)
    for n in range(state[cache + D_SETS] * ways):
        if not left:
            break
        entry = nth_entry(state, cache, n)
        tag = state[entry]
        if tag >= 0:
            left -= 1
            shift = state[SIZES + (tag & ORDINAL_MASK)] if is_tlb else walk_cache_shift(state, cache)
            va = tag >> TAG_SHIFT << shift
            user = space_of(state, va) if space == EVERYWHERE else space
            if is_usable(state[entry + E_SPACE * ways], user) and overlaps(start, last, va, shift):
                info = state[entry + E_INFO * ways]
                if is_tlb:
                    total += is_stale(state, ram, va, info, shift)
                else:
                    total += is_stale_path(state, ram, va, info, state[cache + D_LEVEL])
    return total


@kernel
def sweep(
    words: Words,
    memory: Words,
    counts_stale: bool,
    space: int,
    with_global: int,
    which: int,
    start: int,
    last: int,
    first_level_only: bool,
) -> int:
    """Drop, or count what is stale among, the entries of ``space`` for [start, last] (inclusive).

    Dropping: TLB entries unless ``with_global`` is negative; global ones only where it is 1; entries of
    paging-structure caches as ``which`` says; with ``first_level_only`` only those of first-level TLBs.
    Counting: what ``space`` (EVERYWHERE: what is loaded) could use, against the tables under
    ``state[WALK_ROOT]``; with ``which`` NONE_OF_THEM in TLBs alone. Returns the number of entries.
    """
    state = pointer_to(words)
    ram = pointer_to(memory)
    total = 0
    end = tlbs_end(state)
    count = state[NR_TLBS] + state[NR_WALK_CACHES]
    few = (
        space != EVERYWHERE
        and state[FRAGMENTS] == 0
        and page_number(last, state[BASE_SHIFT]) - page_number(start, state[BASE_SHIFT]) < FEW_PAGES
    )
    for n in range(count):
        cache = DESCRIPTORS + n * DESCRIPTOR
        if first_level_only and not state[cache + D_WEIGHT]:
            continue
        if counts_stale:
            if which == NONE_OF_THEM and cache >= end:
                continue
            total += stale_entries(state, ram, cache, space, start, last)
        elif cache < end:
            if with_global >= 0:
                if few:
                    total += drop_few(state, cache, space, with_global, start, last)
                else:
                    total += drop_tlb(state, cache, space, with_global, start, last)
        elif which != NONE_OF_THEM:
            total += drop_walk_cache(state, cache, space, which, start, last)
    return total
