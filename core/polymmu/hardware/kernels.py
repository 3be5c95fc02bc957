"""The compiled replay loops: every access of a batch, until the batch ends or software must decide.

``replay`` takes single accesses, ``replay_runs`` collapsed page runs. Both leave the counts in the state
and return how far they came; ``state[STATUS]`` says why they stopped.

How it is fast: nearly every access uses a page that its kind of access used a moment ago. ``FRONT`` remembers
these pages with the TLB entry that served them; whatever drops or replaces an entry takes its rows back. A
hit is then one stamp for the replacement policy and two additions to packed counters (a few bits per
first-level TLB and per op, unpacked every few thousand accesses). Everything else goes by the rules
(``access_kernels``). A first level with tree-PLRU must see every hit, and goes by the rules throughout.
"""

from __future__ import annotations

import numpy as np

from polymmu.hardware.access_kernels import GROWTH_PER_ACCESS, access_page, access_parts
from polymmu.hardware.compile import Words, kernel, step
from polymmu.hardware.state import (
    ACCESSES,
    ADDRESS_BITS,
    BASE_SHIFT,
    CLOCK,
    D_HIT_SHIFT,
    D_HITS,
    D_WEIGHT,
    DESCRIPTOR,
    DESCRIPTORS,
    DONE,
    E_INFO,
    E_OWNER,
    E_SHIFT,
    E_STAMP,
    F_COUNT,
    F_HITS,
    F_PAGE,
    F_RECORD,
    FRONT,
    FRONT_BITS,
    FRONT_MASK,
    FRONT_ROW,
    GROW,
    HAS_PLRU,
    HIT_BITS,
    NR_TLBS,
    PA,
    PLACE_MASK,
    RESUME,
    SEEN_ROOM,
    STATUS,
)
from polymmu.hardware.tlb_kernels import touch


@step
def unpack_hits(state: Words, packed: int) -> None:
    """Add a packed hit counter to the first-level TLBs' counts."""
    mask = (1 << state[HIT_BITS]) - 1
    for n in range(state[NR_TLBS]):
        cache = DESCRIPTORS + n * DESCRIPTOR
        if state[cache + D_WEIGHT]:
            state[cache + D_HITS] += packed >> state[cache + D_HIT_SHIFT] & mask


@step
def count_accesses(state: Words, counted: int) -> None:
    """Add a packed counter, 16 bits per op, to the counts of accesses."""
    modified = counted >> 48 & 0xFFFF
    state[ACCESSES] += counted & 0xFFFF
    state[ACCESSES + 1] += (counted >> 16 & 0xFFFF) + modified
    state[ACCESSES + 2] += (counted >> 32 & 0xFFFF) + modified


@kernel
def replay(
    ops: Words, addresses: Words, sizes: Words, start: int, stop: int, state: Words, seen: Words, ram: Words
) -> int:
    """Do the accesses [start, stop); return the index of the first one not done.

    ``ops``: uint8 as in the trace format; ``addresses``: int64; ``sizes``: uint8 bytes. On a fault the
    access at the returned index is done up to, not including, part ``state[RESUME]``.
    """
    base = state[BASE_SHIFT]
    clock = state[CLOCK] - 4 * start
    # One access adds at most 2 to a TLB's bits of the packed counter, and 1 to 16 bits of `counted`.
    chunk = (1 << (state[HIT_BITS] - 1)) - 1
    part = state[RESUME]
    shortcut = state[HAS_PLRU] == 0
    state[STATUS] = DONE
    i = start
    while i < stop and state[STATUS] == DONE:
        end = min(i + chunk, stop)
        packed = 0
        counted = 0
        while i < end:
            # The hot loop: nothing in it but hits, so that everything stays in registers.
            while shortcut and part == 0 and i < end:
                k = np.uint64(i)
                va = addresses[k]
                op = ops[k] & 3
                page = va >> base
                row = FRONT + (op << FRONT_BITS | (page & FRONT_MASK)) * FRONT_ROW
                if (state[row + F_PAGE] ^ page) | ((va + sizes[k] - 1) ^ va) >> base:
                    break
                state[(state[row + F_RECORD] & PLACE_MASK) + E_STAMP] = clock + 4 * i
                packed += state[row + F_HITS]
                counted += state[row + F_COUNT]
                i += 1
            if i < end:
                op = ops[i] & 3
                if access_parts(state, seen, ram, op, addresses[i], sizes[i], part, clock + 4 * i):
                    break
                part = 0
                counted += 1 << (op << 4)
                i += 1
        unpack_hits(state, packed)
        count_accesses(state, counted)
    state[CLOCK] = clock + 4 * i + 4
    if i > start and state[STATUS] == DONE:
        # The hot loop does not say where an access went; the last one of a batch is the one somebody asks for.
        va = addresses[i - 1]
        page = va >> base
        row = (FRONT + ((ops[i - 1] & 3) << FRONT_BITS | (page & FRONT_MASK)) * FRONT_ROW) & PLACE_MASK
        if state[row + F_PAGE] == page:
            record = state[row + F_RECORD] & PLACE_MASK
            inside = (1 << (state[record + E_SHIFT] + base)) - 1
            state[PA] = (state[record + E_INFO] & ADDRESS_BITS) + (va & inside)
    return i


@kernel
def replay_runs(
    pages: Words,
    data: Words,
    writes: Words,
    counts: Words,
    start: int,
    stop: int,
    state: Words,
    seen: Words,
    ram: Words,
) -> int:
    """Do the page runs [start, stop); return the index of the first one not done.

    ``pages``: int64 base-page numbers; ``data``, ``writes``: uint8; ``counts``: int64 touches. A run that
    wrote anywhere counts as stores. ``state[RESUME]`` touches of the run at the returned index are done.
    """
    base = state[BASE_SHIFT]
    clock = state[CLOCK] - start
    state[STATUS] = DONE
    i = start
    while i < stop:
        page = (pages[i] << base) >> base
        access = (2 if writes[i] else 1) if data[i] else 0
        done = state[RESUME]
        while done < counts[i]:
            row = FRONT + (access << FRONT_BITS | (page & FRONT_MASK)) * FRONT_ROW
            if state[row + F_PAGE] == page:
                record = state[row + F_RECORD]
                state[state[record + E_OWNER] + D_HITS] += counts[i] - done
                touch(state, state[record + E_OWNER], record, clock + i)
                break
            state[RESUME] = done
            if state[SEEN_ROOM] < GROWTH_PER_ACCESS:
                state[STATUS] = GROW
                break
            if access_page(state, seen, ram, access, page << base, clock + i):
                break
            done += 1
        if state[STATUS]:
            break
        state[RESUME] = 0
        state[ACCESSES + access] += counts[i]
        i += 1
    state[CLOCK] = clock + i + 1
    return i
