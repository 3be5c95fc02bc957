"""One access by the rules: look up, walk, fill, count, or refuse.

``access_page`` is the rule book; the replay loops call it for every access that their shortcut does not
settle. Everything here is linked into them.

Counting rules: a modify is a load then a store; an access that crosses a page boundary looks up both
pages; a hit is counted in the TLB that hit, a miss in the TLB that is filled; an attempt that faults
counts only its walk.
"""

from __future__ import annotations

from polymmu.hardware.compile import Words, call_miss, kernel, step
from polymmu.hardware.state import (
    ABSENT,
    ADDRESS_BITS,
    BASE_SHIFT,
    CODES,
    D_COUNTS,
    D_HITS,
    D_HOLDS,
    D_WAYS,
    D_WEIGHT,
    DESCRIPTOR,
    DESCRIPTORS,
    DIRTY,
    DONE,
    E_INFO,
    E_SPACE,
    F_HITS,
    F_STAMP,
    F_START,
    FAULT,
    FAULT_ACCESS,
    FAULT_CODE,
    FAULT_DROPS,
    FAULT_ENTRY,
    FAULT_KIND,
    FAULT_PLACE,
    FAULT_VA,
    FLAG_BITS,
    FRONT,
    FRONT_BITS,
    FRONT_MASK,
    FRONT_ROW,
    GLOBAL,
    GROW,
    HAS_SEGMENTS,
    IS_RADIX,
    MAX_TLB_LEVELS,
    MISS_ADDRESS,
    MODIFY_SHORTCUT,
    NEED,
    NOW,
    NR_TLBS,
    ORDINAL_MASK,
    OUT_FRAME,
    OUT_GLOBAL,
    OUT_INFO,
    OUT_ORDINAL,
    OUT_SHIFT,
    P_CACHE,
    P_COUNT,
    P_ORDINAL,
    P_SHIFT,
    PA,
    PEEK,
    PENDING,
    PENDING_HEAD,
    PENDING_TAIL,
    PRIVILEGE,
    PROBE,
    PROBE_ROWS,
    PROBES,
    REAL_SHIFT,
    RESUME,
    SEEN_ROOM,
    SEGMENT,
    SIZES,
    STATUS,
    STOP_AT,
    TLB_LEVELS,
    WALK,
    WALK_ROOT,
)
from polymmu.hardware.tlb_kernels import (
    drop_page,
    fill_levels,
    find,
    page_number,
    shortcut,
    space_of,
    touch,
    ways_of,
)
from polymmu.hardware.walk_kernels import radix_walk

LOAD, STORE, MODIFY = 1, 2, 3
NOT_PRESENT = 1
NO_PERMISSION = 3
DROPPED = 3  # as a verdict, beside DONE and FAULT
GROWTH_PER_ACCESS = 64  # slots of the touched-page table that one access may take at most


@kernel
def refuse(state: Words, va: int, access: int, kind: int) -> int:
    """Leave a fault for software, and drop what is cached for the page where hardware does so."""
    state[STATUS] = FAULT
    state[FAULT_VA] = va
    state[FAULT_KIND] = kind
    state[FAULT_ACCESS] = access
    state[FAULT_CODE] = state[CODES + (kind * 3 + access) * 2 + state[PRIVILEGE]]
    if state[FAULT_DROPS] >> kind & 1:
        drop_page(state, va, space_of(state, va))
    return FAULT


@step
def lookup(state: Words, access: int, va: int) -> tuple[int, int, int]:
    """Where the TLBs know ``va``: (entry, TLB, level), not noting the use; entry 0: nowhere."""
    space = space_of(state, va)
    for level in range(state[TLB_LEVELS]):
        row = PROBE_ROWS + (access * MAX_TLB_LEVELS + level) * 2
        first = PROBES + (state[row]) * PROBE
        for probe in range(first, first + (state[row + 1]) * PROBE, PROBE):
            if state[state[probe + P_COUNT]]:
                cache = state[probe + P_CACHE]
                page = page_number(va, state[probe + P_SHIFT])
                entry = find(state, cache, page, state[probe + P_ORDINAL], space)
                if entry:
                    return entry, cache, level
    return 0, 0, 0


@kernel
def repeat_first_fault(state: Words, ram: Words, va: int, access: int) -> None:
    """Account the fault of a page that was mapped ahead, as if its first touch had just faulted."""
    head = state[PENDING_HEAD]
    if head >= state[PENDING_TAIL] or state[PENDING + 2 * head] != page_number(va, state[BASE_SHIFT]):
        return
    state[PENDING_HEAD] = head + 1
    state[WALK_ROOT] = -1
    if call_miss(state[MISS_ADDRESS], state, ram, va, access, PEEK):
        return  # the handler left this one out: it will fault by itself
    level = state[PENDING + 2 * head + 1]
    call_miss(state[MISS_ADDRESS], state, ram, va, access, STOP_AT + level)
    if state[FAULT_DROPS] >> NOT_PRESENT & 1:
        drop_page(state, va, space_of(state, va))


@kernel
def mark_dirty(state: Words, va: int, space: int) -> None:
    """A store set the page's dirty bit: note it in every TLB that serves stores."""
    for n in range(state[NR_TLBS]):
        cache = DESCRIPTORS + n * DESCRIPTOR
        if state[cache + D_HOLDS] & (1 << STORE):
            for ordinal in range(16):
                if state[cache + D_COUNTS + ordinal]:
                    entry = find(state, cache, page_number(va, state[SIZES + ordinal]), ordinal, space)
                    if entry:
                        state[entry + E_INFO * state[cache + D_WAYS]] |= DIRTY


@kernel
def ask_again(state: Words, ram: Words, access: int, va: int, entry: int, cache: int, stamp: int) -> int:
    """A TLB entry lacks what the access needs: refuse, or walk for the dirty bit it was loaded without.

    Returns DONE where the entry may be used now, FAULT, or DROPPED where the entry is gone or the tables changed
    behind the TLB's back: what it knew is then of no use, and what the walk found is to be loaded.
    """
    info = state[entry + E_INFO * ways_of(state, cache)]
    if ~info & state[NEED + access] & ~DIRTY:
        state[FAULT_PLACE] = -1
        state[FAULT_ENTRY] = info
        return refuse(state, va, access, NOT_PRESENT if info & ABSENT else NO_PERMISSION)
    state[NOW] = stamp
    tag = state[entry]
    kind = call_miss(state[MISS_ADDRESS], state, ram, va, access, WALK)
    if kind:
        return refuse(state, va, access, kind)
    if state[entry] != tag:  # the walk brought in a translation of its own, in this one's place
        drop_page(state, va, space_of(state, va))
        return DROPPED
    inside = va & ((1 << state[OUT_SHIFT]) - (1 << state[SIZES + (state[entry] & ORDINAL_MASK)]))
    same = state[OUT_SHIFT] == state[SIZES + ((info & FLAG_BITS) >> REAL_SHIFT)]
    if same and state[OUT_FRAME] + inside == info & ADDRESS_BITS:
        mark_dirty(state, va, space_of(state, va))
        return DONE
    drop_page(state, va, space_of(state, va))
    return DROPPED


@step
def miss(state: Words, ram: Words, va: int, access: int, stamp: int) -> int:
    """Walk as hardware does, by the miss routine; the one of radix tables is part of the loop."""
    if state[IS_RADIX]:
        return radix_walk(state, ram, va, access, WALK)
    state[NOW] = stamp
    return call_miss(state[MISS_ADDRESS], state, ram, va, access, WALK)


@step
def access_page(state: Words, seen: Words, ram: Words, access: int, va: int, stamp: int) -> int:
    """One access to one page, by the rules. Returns DONE with ``state[PA]`` set, or FAULT."""
    entry, cache, levels = lookup(state, access, va)
    verdict = DONE
    if state[HAS_SEGMENTS] and (levels or not entry):
        kind = call_miss(state[MISS_ADDRESS], state, ram, va, access, SEGMENT)
        if kind:
            return refuse(state, va, access, kind)
    if entry and ~state[entry + E_INFO * ways_of(state, cache)] & state[NEED + access]:
        verdict = ask_again(state, ram, access, va, entry, cache, stamp)
        if verdict == FAULT:
            return FAULT
    if entry and verdict == DONE:
        ways = ways_of(state, cache)
        state[cache + D_HITS] += 1
        touch(state, cache, entry, stamp)
        info = state[entry + E_INFO * ways]
        space = state[entry + E_SPACE * ways]
        ordinal = state[entry] & ORDINAL_MASK
        shift = state[SIZES + ordinal]
    else:
        if verdict == DONE:
            if state[PENDING_HEAD] < state[PENDING_TAIL]:
                repeat_first_fault(state, ram, va, access)
            kind = miss(state, ram, va, access, stamp)
            if kind:
                return refuse(state, va, access, kind)
        ordinal = state[OUT_ORDINAL]
        info = state[OUT_FRAME] | state[OUT_INFO] | ordinal << REAL_SHIFT
        space = GLOBAL if state[OUT_GLOBAL] else space_of(state, va)
        shift = state[OUT_SHIFT]
        levels = state[TLB_LEVELS]
    state[PA] = (info & ADDRESS_BITS) + (va & ((1 << shift) - 1))
    if levels:
        entry, cache = fill_levels(state, seen, access, va, levels, shift, ordinal, info, space, stamp)
    if entry:
        guess(state, access, va, cache, entry, ways_of(state, cache))
    return DONE


@step
def guess(state: Words, access: int, va: int, cache: int, entry: int, ways: int) -> None:
    """Let this kind of access use ``entry`` for this base page without asking, while it has the right."""
    missing = ~state[entry + E_INFO * ways]
    held = shortcut(cache, entry, ways)
    if missing & state[NEED + access] == 0:
        remember(state, access, va, held, state[cache + D_WEIGHT])
    if access != 0 and state[MODIFY_SHORTCUT] and missing & state[NEED + MODIFY] == 0:
        remember(state, MODIFY, va, held, state[cache + D_WEIGHT] * 2)


@step
def remember(state: Words, op: int, va: int, held: int, hits: int) -> None:
    """Write one row of shortcuts."""
    page = va >> state[BASE_SHIFT]
    row = FRONT + (op << FRONT_BITS | (page & FRONT_MASK)) * FRONT_ROW
    state[row + F_START] = page << state[BASE_SHIFT]
    state[row + F_STAMP] = held
    state[row + F_HITS] = hits


@kernel
def access_parts(
    state: Words, seen: Words, ram: Words, op: int, va: int, size: int, part: int, stamp: int
) -> int:
    """One access from its part ``part`` on: each page it touches, for a modify first loads, then stores."""
    base = state[BASE_SHIFT]
    pages = 1
    if size > 1 and (va & ((1 << base) - 1)) + size > 1 << base:
        pages = 2
    parts = 2 * pages if op == MODIFY else pages
    while part < parts:
        if state[SEEN_ROOM] < GROWTH_PER_ACCESS:
            state[STATUS] = GROW
            state[RESUME] = part
            return GROW
        access = op
        if op == MODIFY:
            access = STORE if part >= pages else LOAD
        where = va
        if pages == 2 and part & 1:
            where = ((va >> base) + 1) << base
        if access_page(state, seen, ram, access, where, stamp + part):
            state[RESUME] = part
            return FAULT
        part += 1
    state[RESUME] = 0
    return DONE
