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
    ADDRESS_BITS,
    ASID,
    BASE_SHIFT,
    CODES,
    D_COUNTS,
    D_HITS,
    D_HOLDS,
    D_WEIGHT,
    DESCRIPTOR,
    DESCRIPTORS,
    DIRTY,
    DONE,
    E_INFO,
    E_ORDINAL,
    E_OWNER,
    E_SHIFT,
    E_SPACE,
    E_WEIGHT,
    F_HITS,
    F_PAGE,
    F_RECORD,
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
    HIT_BITS,
    MAX_TLB_LEVELS,
    MISS_ADDRESS,
    MODIFY_SHORTCUT,
    NEED,
    NR_TLBS,
    OUT_FRAME,
    OUT_GLOBAL,
    OUT_INFO,
    OUT_ORDINAL,
    OUT_SHIFT,
    PA,
    PEEK,
    PENDING,
    PENDING_HEAD,
    PENDING_TAIL,
    PLACE_MASK,
    PRIVILEGE,
    PROBE_ROWS,
    PROBES,
    REAL_SHIFT,
    RESUME,
    SEEN_ROOM,
    SIZES,
    STATUS,
    STOP_AT,
    TLB_LEVELS,
    WALK,
    WALK_ROOT,
)
from polymmu.hardware.tlb_kernels import drop_page, fill_level, find, page_number, touch

LOAD, STORE, MODIFY = 1, 2, 3
NO_PERMISSION = 3
GROWTH_PER_ACCESS = 64  # slots of the touched-page table that one access may take at most


@kernel
def refuse(state: Words, va: int, access: int, kind: int) -> int:
    """Leave a fault for software, and drop what is cached for the page where hardware does so."""
    state[STATUS] = FAULT
    state[FAULT_VA] = va
    state[FAULT_KIND] = kind
    state[FAULT_ACCESS] = access
    state[FAULT_CODE] = state[CODES + (kind * 3 + access) * 2 + state[PRIVILEGE]]
    if state[FAULT_DROPS]:
        drop_page(state, va, state[ASID])
    return FAULT


@step
def lookup(state: Words, access: int, va: int) -> tuple[int, int]:
    """Where the TLBs know ``va``: (record, level), not noting the use; record 0: nowhere."""
    base = state[BASE_SHIFT]
    vpn = page_number(va, base)
    for level in range(state[TLB_LEVELS]):
        row = (PROBE_ROWS + (access * MAX_TLB_LEVELS + level) * 2) & PLACE_MASK
        for n in range(state[row + 1]):
            probe = (state[row] + n) & PLACE_MASK
            cache = state[PROBES + 2 * probe] & PLACE_MASK
            ordinal = state[PROBES + 2 * probe + 1] & 15
            if state[cache + D_COUNTS + ordinal]:
                shift = state[SIZES + ordinal] - base
                record = find(state, cache, vpn >> shift, shift, state[ASID])
                if record:
                    return record, level
    return 0, 0


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
    if state[FAULT_DROPS]:
        drop_page(state, va, state[ASID])


@kernel
def mark_dirty(state: Words, va: int, space: int) -> None:
    """A store set the page's dirty bit: note it in every TLB that serves stores."""
    base = state[BASE_SHIFT]
    for n in range(state[NR_TLBS]):
        cache = DESCRIPTORS + n * DESCRIPTOR
        if state[cache + D_HOLDS] & (1 << STORE):
            for ordinal in range(16):
                if state[cache + D_COUNTS + ordinal]:
                    shift = state[SIZES + ordinal]
                    record = find(state, cache, page_number(va, shift), shift - base, space)
                    if record:
                        state[record + E_INFO] |= DIRTY


@step
def access_page(state: Words, seen: Words, ram: Words, access: int, va: int, stamp: int) -> int:
    """One access to one page, by the rules. Returns DONE with ``state[PA]`` set, or FAULT."""
    need = state[NEED + access]
    record, level = lookup(state, access, va)
    if record:
        info = state[record + E_INFO]
        if ~info & need & ~DIRTY:
            state[FAULT_PLACE] = -1
            state[FAULT_ENTRY] = info
            return refuse(state, va, access, NO_PERMISSION)
        if ~info & need:
            # The entry was loaded with a clear dirty bit: the walk that sets it reads the tables again.
            kind = call_miss(state[MISS_ADDRESS], state, ram, va, access, WALK)
            if kind:
                return refuse(state, va, access, kind)
            size = (1 << (state[record + E_SHIFT] + state[BASE_SHIFT])) - 1
            inside = va & ((1 << state[OUT_SHIFT]) - 1) & ~size
            same = state[OUT_SHIFT] == state[SIZES + ((info & FLAG_BITS) >> REAL_SHIFT)]
            if same and state[OUT_FRAME] + inside == info & ADDRESS_BITS:
                mark_dirty(state, va, state[ASID])
            else:  # the tables changed behind the TLB's back: what it knew is of no use
                drop_page(state, va, state[ASID])
                return load_translation(state, seen, access, va, stamp)
        cache = state[record + E_OWNER] & PLACE_MASK
        state[cache + D_HITS] += 1
        touch(state, cache, record, stamp)
        info = state[record + E_INFO]
        frame = info & ADDRESS_BITS
        shift = state[record + E_SHIFT] + state[BASE_SHIFT]
        state[PA] = frame + (va & ((1 << shift) - 1))
        if level == 0:
            guess(state, access, va, record)
            return DONE
        flags = info & FLAG_BITS
        ordinal = state[record + E_ORDINAL] & 15
        space = state[record + E_SPACE]
        refill(state, seen, access, va, level, frame, shift, ordinal, flags, space, stamp)
        return DONE
    if state[PENDING_HEAD] < state[PENDING_TAIL]:
        repeat_first_fault(state, ram, va, access)
    kind = call_miss(state[MISS_ADDRESS], state, ram, va, access, WALK)
    if kind:
        return refuse(state, va, access, kind)
    return load_translation(state, seen, access, va, stamp)


@step
def load_translation(state: Words, seen: Words, access: int, va: int, stamp: int) -> int:
    """Fill a TLB of every level with what the miss routine found."""
    frame = state[OUT_FRAME]
    shift = state[OUT_SHIFT]
    ordinal = state[OUT_ORDINAL] & 15
    flags = state[OUT_INFO] & FLAG_BITS | ordinal << REAL_SHIFT
    space = GLOBAL if state[OUT_GLOBAL] else state[ASID]
    state[PA] = frame + (va & ((1 << shift) - 1))
    refill(state, seen, access, va, state[TLB_LEVELS], frame, shift, ordinal, flags, space, stamp)
    return DONE


@step
def refill(
    state: Words,
    seen: Words,
    access: int,
    va: int,
    levels: int,
    frame: int,
    shift: int,
    ordinal: int,
    flags: int,
    space: int,
    stamp: int,
) -> None:
    """Fill the TLBs of all levels above ``levels``, and guess the first level's entry next time."""
    for level in range(levels - 1, -1, -1):
        record = fill_level(state, seen, access, level, va, frame, shift, ordinal, flags, space, stamp)
        if level == 0 and record:
            guess(state, access, va, record)


@step
def guess(state: Words, access: int, va: int, record: int) -> None:
    """Let this kind of access use ``record`` for this base page without asking, while it has the right."""
    missing = ~state[record + E_INFO] & state[NEED + access]
    if missing == 0:
        remember(state, access, va, record, state[record + E_WEIGHT])
    if access != 0 and state[MODIFY_SHORTCUT] and ~state[record + E_INFO] & state[NEED + MODIFY] == 0:
        remember(state, MODIFY, va, record, state[record + E_WEIGHT] * 2)


@step
def remember(state: Words, op: int, va: int, record: int, hits: int) -> None:
    """Write one row of shortcuts."""
    page = va >> state[BASE_SHIFT]
    row = (FRONT + (op << FRONT_BITS | (page & FRONT_MASK)) * FRONT_ROW) & PLACE_MASK
    state[row + F_PAGE] = page
    state[row + F_RECORD] = record
    state[row + F_HITS] = hits


@step
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


@step
def unpack_hits(state: Words, packed: int) -> None:
    """Add a packed hit counter to the first-level TLBs' counts."""
    bits = state[HIT_BITS]
    for n in range(state[NR_TLBS]):
        cache = DESCRIPTORS + n * DESCRIPTOR
        if state[cache + D_WEIGHT]:
            state[cache + D_HITS] += packed // state[cache + D_WEIGHT] & ((1 << bits) - 1)
