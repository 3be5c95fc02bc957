"""The compiled replay loops: every access of a batch, until the batch ends or software must decide.

``replay`` takes single accesses, ``replay_runs`` collapsed page runs. Both leave the counts in the state
and return how far they came; ``state[STATUS]`` says why they stopped.

How it is fast: nearly every access uses a page that its kind of access used a moment ago. ``FRONT`` remembers
these pages with the TLB entry that served them; whatever drops or replaces an entry takes its rows back. A
hit is then one stamp for the replacement policy and two additions to packed counters (a few bits per
first-level TLB and per op, unpacked every few thousand accesses). A page that
was in use a while ago mostly takes a short cut too (``quick_kernels``); everything else goes by the rules
(``access_kernels``). A first level with tree-PLRU must see every hit, and goes by the rules throughout.
"""

from __future__ import annotations

import numpy as np

from polymmu.hardware.access_kernels import GROWTH_PER_ACCESS, MODIFY, access_page, access_parts
from polymmu.hardware.compile import Words, kernel, pointer_to, step
from polymmu.hardware.quick_kernels import quick_refill
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
    E_STAMP,
    F_COUNT,
    F_HITS,
    F_STAMP,
    F_START,
    FRONT,
    FRONT_BITS,
    FRONT_MASK,
    FRONT_ROW,
    GROW,
    HAS_PLRU,
    HIT_BITS,
    NR_TLBS,
    ORDINAL_MASK,
    OWNER_SHIFT,
    PA,
    RESUME,
    SEEN_ROOM,
    SIZES,
    STAMP_MASK,
    STATUS,
)
from polymmu.hardware.tlb_kernels import touch, ways_of


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


@step
def row_of(op: int, page: int) -> int:
    """The row of shortcuts of ``page``."""
    return FRONT + (op << FRONT_BITS | page & FRONT_MASK) * FRONT_ROW


@step
def access_of_run(data: int, writes: int) -> int:
    """What kind of access a run counts as."""
    return (2 if writes else 1) if data else 0


@step
def run_by_the_rules(
    state: Words, seen: Words, ram: Words, access: int, page: int, count: int, done: int, stamp: int
) -> int:
    """One run from its touch ``done`` on; returns the touches done, fewer than ``count`` if software must act."""
    base = state[BASE_SHIFT]
    while done < count:
        row = row_of(access, page)
        if state[row + F_START] == page << base:
            # All that is left hits the same entry.
            held = state[row + F_STAMP]
            cache = held >> OWNER_SHIFT
            state[cache + D_HITS] += count - done
            touch(state, cache, (held & STAMP_MASK) - E_STAMP * ways_of(state, cache), stamp)
            return count
        if state[SEEN_ROOM] < GROWTH_PER_ACCESS:
            state[STATUS] = GROW
            return done
        va = page << base
        is_done = quick_refill(state, seen, ram, access, va, stamp)
        if not is_done and access_page(state, seen, ram, access, va, stamp):
            return done
        done += 1
    return done


@kernel
def replay(
    ops: Words,
    addresses: Words,
    sizes: Words,
    start: int,
    stop: int,
    words: Words,
    touched: Words,
    memory: Words,
) -> int:
    """Do the accesses [start, stop); return the index of the first one not done.

    ``ops``: uint8 as in the trace format; ``addresses``: int64; ``sizes``: uint8 bytes. On a fault the
    access at the returned index is done up to, not including, part ``state[RESUME]``.
    """
    state = pointer_to(words)
    seen = pointer_to(touched)
    ram = pointer_to(memory)
    base = state[BASE_SHIFT]
    clock = state[CLOCK] - 4 * start
    # One access adds at most 2 to a TLB's bits of the packed counter, and 1 to 16 bits of `counted`.
    chunk = (1 << (state[HIT_BITS] - 1)) - 1
    part = state[RESUME]
    direct = state[HAS_PLRU] == 0
    page_bytes = np.uint64(1 << base)
    page_offset = (1 << base) - 1
    state[STATUS] = DONE
    i = start
    while i < stop and state[STATUS] == DONE:
        end = min(i + chunk, stop)
        packed = 0
        counted = 0
        while i < end:
            # The hot loop: nothing in it but hits, so that everything stays in registers.
            while direct and part == 0 and i < end:
                k = np.uint64(i)
                va = addresses[k]
                row = row_of(ops[k] & 3, va >> base)
                if np.uint64(va - state[row + F_START] + sizes[k]) > page_bytes:
                    break
                state[state[row + F_STAMP] & STAMP_MASK] = clock + 4 * i
                packed += state[row + F_HITS]
                counted += state[row + F_COUNT]
                i += 1
            if i < end:
                op = ops[i] & 3
                va = addresses[i]
                stamp = clock + 4 * i
                is_whole = np.uint64((va & page_offset) + sizes[i]) <= page_bytes
                is_one = is_whole and part == 0 and op != MODIFY
                if is_one and quick_refill(state, seen, ram, op, va, stamp):
                    counted += 1 << (op << 4)
                    i += 1
                    continue
                if access_parts(state, seen, ram, op, va, sizes[i], part, stamp):
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
        row = row_of(ops[i - 1] & 3, va >> base)
        if state[row + F_START] == va >> base << base:
            held = state[row + F_STAMP]
            cache = held >> OWNER_SHIFT
            ways = ways_of(state, cache)
            entry = (held & STAMP_MASK) - E_STAMP * ways
            inside = (1 << state[SIZES + (state[entry] & ORDINAL_MASK)]) - 1
            state[PA] = (state[entry + E_INFO * ways] & ADDRESS_BITS) + (va & inside)
    return i


@kernel
def replay_runs(
    pages: Words,
    data: Words,
    writes: Words,
    counts: Words,
    start: int,
    stop: int,
    words: Words,
    touched: Words,
    memory: Words,
) -> int:
    """Do the page runs [start, stop); return the index of the first one not done.

    ``pages``: int64 base-page numbers; ``data``, ``writes``: uint8; ``counts``: int64 touches. A run that
    wrote anywhere counts as stores. ``state[RESUME]`` touches of the run at the returned index are done.
    """
    state = pointer_to(words)
    seen = pointer_to(touched)
    ram = pointer_to(memory)
    base = state[BASE_SHIFT]
    clock = state[CLOCK] - start
    direct = state[HAS_PLRU] == 0
    done = state[RESUME]
    state[STATUS] = DONE
    i = start
    while i < stop:
        while direct and done == 0 and i < stop:
            k = np.uint64(i)
            page = pages[k]
            access = access_of_run(data[k], writes[k])
            row = row_of(access, page)
            if state[row + F_START] != page << base:
                break
            held = state[row + F_STAMP]
            state[held & STAMP_MASK] = clock + i
            state[(held >> OWNER_SHIFT) + D_HITS] += counts[k]
            state[ACCESSES + access] += counts[k]
            i += 1
        if i < stop:
            access = access_of_run(data[i], writes[i])
            done = run_by_the_rules(state, seen, ram, access, pages[i], counts[i], done, clock + i)
            if done < counts[i]:
                break
            state[ACCESSES + access] += counts[i]
            done = 0
            i += 1
    state[RESUME] = done
    state[CLOCK] = clock + i + 1
    return i
