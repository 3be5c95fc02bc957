"""The most common way to miss, without a loop: level 1 does not know the page, level 2 or one table entry does.

``access_page`` is the rule book and can do all of this; it pays for what it must be able to do besides:
several TLBs and page sizes at a level, any number of ways, any replacement policy, faults. ``quick_refill``
does only what remains where the machine is ordinary (``tlb._route_quick``) and only base pages are cached:

* both levels have one TLB of ``QUICK_WAYS`` ways with least-recently-used replacement;
* a walk starts at a cached entry that leads to the last table, and meets a leaf like the last one there.

It first looks, changing nothing; only once the answer is certain does it write. Whatever is unusual is left
to the rules, from the beginning.
"""

from __future__ import annotations

from polymmu.hardware.access_kernels import GROWTH_PER_ACCESS, guess
from polymmu.hardware.compile import Words, step
from polymmu.hardware.state import (
    ADDRESS_BITS,
    BASE_SHIFT,
    BIG_ENDIAN,
    D_HITS,
    D_MASK,
    D_RECORDS,
    E_INFO,
    E_SPACE,
    E_STAMP,
    ENTRY_WORDS,
    GLOBAL,
    LARGE_ENTRIES,
    LEVELS,
    NEED,
    PA,
    PENDING_HEAD,
    PENDING_TAIL,
    QUICK,
    QUICK_WALK,
    QUICK_WAYS,
    R_BYTES,
    R_INDEX,
    R_KNOWN_GLOBAL,
    R_KNOWN_INFO,
    R_SHIFT,
    RAM_BYTES,
    REFERENCES,
    RIGHTS_BITS,
    ROW,
    ROWS,
    SEEN_ROOM,
    TAG_SHIFT,
    WALK_CACHE_HITS,
    WALK_CLOCK,
    WALKS,
)
from polymmu.hardware.tlb_kernels import count_miss, is_usable, page_number, replace, seen_slot, space_of
from polymmu.hardware.walk_kernels import ALL_RIGHTS, frame_of, is_known, read_entry

NOWHERE = -1  # an INFO that no entry has: its address bits are beyond any RAM


@step
def quick_set(state: Words, cache: int, page: int) -> int:
    """``first_entry`` where the sets are a power of two and have ``QUICK_WAYS`` ways."""
    return state[cache + D_RECORDS] + (page & state[cache + D_MASK]) * (QUICK_WAYS * ENTRY_WORDS)


@step
def quick_way(state: Words, first: int, tag: int) -> int:
    """The first way of the set at ``first`` that has ``tag``, in whatever address space; QUICK_WAYS: none.

    No branch on the way: which one it is nobody could predict.
    """
    way = 3 if state[first + 3] == tag else QUICK_WAYS
    way = 2 if state[first + 2] == tag else way
    way = 1 if state[first + 1] == tag else way
    return 0 if state[first] == tag else way


@step
def quick_victim(state: Words, first: int) -> int:
    """``victim`` of the set at ``first``: the least recently used entry, the first of the invalid ones."""
    stamps = first + E_STAMP * QUICK_WAYS
    s0, s1, s2, s3 = state[stamps], state[stamps + 1], state[stamps + 2], state[stamps + 3]
    left = 0 if s0 <= s1 else 1
    right = 2 if s2 <= s3 else 3
    return first + (left if min(s0, s1) <= min(s2, s3) else right)


@step
def quick_walk(state: Words, ram: Words, va: int, access: int) -> tuple[int, int]:
    """A walk of one reference to a leaf that is fine as it is: (INFO, address space), or NOWHERE, undone.

    That the address is canonical is known: a walk has been through the table that it leads to.
    """
    cache = state[QUICK_WALK]
    if cache == 0 or state[PENDING_HEAD] < state[PENDING_TAIL]:
        return NOWHERE, 0
    row = ROWS + (state[LEVELS] - 1) * ROW
    region = page_number(va, state[row - ROW + R_SHIFT])
    first = quick_set(state, cache, region)
    way = quick_way(state, first, region << TAG_SHIFT)
    if way == QUICK_WAYS or state[first + way + E_SPACE * QUICK_WAYS] != space_of(state, va):
        return NOWHERE, 0
    path = state[first + way + E_INFO * QUICK_WAYS]
    nbytes = state[row + R_BYTES]
    place = (path >> RIGHTS_BITS) + (va >> state[row + R_SHIFT] & state[row + R_INDEX]) * nbytes
    if place < 0 or place + nbytes > state[RAM_BYTES]:
        return NOWHERE, 0
    entry = read_entry(ram, place, nbytes, state[BIG_ENDIAN])
    if not is_known(state, row, entry, path & ALL_RIGHTS, access):
        return NOWHERE, 0
    state[WALKS] += 1
    state[WALK_CLOCK] += 1
    state[WALK_CACHE_HITS] += 1
    state[REFERENCES] += 1
    state[first + way + E_STAMP * QUICK_WAYS] = state[WALK_CLOCK]
    space = GLOBAL if state[row + R_KNOWN_GLOBAL] else space_of(state, va)
    return frame_of(state, row, entry) | state[row + R_KNOWN_INFO], space


@step
def quick_put(state: Words, cache: int, first: int, page: int, space: int, info: int, stamp: int) -> int:
    """``fill`` for a base page in the set at ``first``."""
    entry = quick_victim(state, first)
    replace(state, cache, entry, QUICK_WAYS, page, 0, space, info)
    state[entry + E_STAMP * QUICK_WAYS] = stamp
    return entry


@step
def quick_refill(state: Words, seen: Words, ram: Words, access: int, va: int, stamp: int) -> bool:
    """Do one access to one page as ``access_page`` would, if this is the common case; else do nothing."""
    level1 = state[QUICK + 2 * access]
    level2 = state[QUICK + 2 * access + 1]
    if level1 == 0 or state[LARGE_ENTRIES] or state[SEEN_ROOM] < GROWTH_PER_ACCESS:
        return False
    base = state[BASE_SHIFT]
    page = page_number(va, base)
    tag = page << TAG_SHIFT
    set1 = quick_set(state, level1, page)
    set2 = quick_set(state, level2, page)
    if quick_way(state, set1, tag) != QUICK_WAYS:
        return False
    way = quick_way(state, set2, tag)
    if way != QUICK_WAYS:
        info = state[set2 + way + E_INFO * QUICK_WAYS]
        space = state[set2 + way + E_SPACE * QUICK_WAYS]
        if not is_usable(space, space_of(state, va)) or ~info & state[NEED + access]:
            return False
        state[level2 + D_HITS] += 1
        state[set2 + way + E_STAMP * QUICK_WAYS] = stamp
    else:
        info, space = quick_walk(state, ram, va, access)
        if info == NOWHERE:
            return False
    slot = seen_slot(state, seen, page, 0)
    if way == QUICK_WAYS:
        count_miss(state, seen, level2, slot, page)
        quick_put(state, level2, set2, page, space, info, stamp)
    count_miss(state, seen, level1, slot, page)
    entry = quick_put(state, level1, set1, page, space, info, stamp)
    state[PA] = (info & ADDRESS_BITS) + (va & ((1 << base) - 1))
    guess(state, access, va, level1, entry, QUICK_WAYS)
    return True
