"""What the miss routine of an MMU of its own kind is made of.

An MMU that is not a plain radix walker implements ``walk.Translation`` and brings a *miss routine*, a ``@kernel``
of the signature ``fault = miss(state, ram, va, access, mode)`` (``walk_kernels`` says what it must do in each
mode). Whatever that machine does at a TLB miss, in hardware or in a short handler of software, happens in it:
hash search, linear page table, translation buffer in memory, refill handler. It reads table entries with
``read_entry`` and counts each in ``state[REFERENCES]``, counts its own events in ``state[EVENTS + n]``, and ends
with ``give`` or a fault. Registers and buffers of its own are ``state[MMU:]``, which the architecture's hooks see
as ``cpu.mmu``.

Tables that are read through the TLB themselves (linear page tables): ``through_tlb`` and ``fill_tlb``.
"""

from __future__ import annotations

from polymmu.hardware.access_kernels import LOAD, lookup
from polymmu.hardware.compile import Words, pointer_at, step
from polymmu.hardware.state import (
    ADDRESS_BITS,
    D_HITS,
    E_INFO,
    E_SPACE,
    NOW,
    NR_SIZES,
    ORDINAL_MASK,
    OUT_FRAME,
    OUT_GLOBAL,
    OUT_INFO,
    OUT_ORDINAL,
    OUT_SHIFT,
    REAL_SHIFT,
    SEEN_ADDRESS,
    SIZES,
    TLB_LEVELS,
)
from polymmu.hardware.tlb_kernels import fill_levels, touch, ways_of

__all__ = ["fill_tlb", "give", "ordinal_of", "through_tlb"]


@step
def ordinal_of(state: Words, shift: int) -> int:
    """Which of the machine's page sizes has 2**shift bytes; the MMU declares every size it gives."""
    for ordinal in range(state[NR_SIZES]):
        if state[SIZES + ordinal] == shift:
            return ordinal
    return 0


@step
def give(state: Words, frame: int, shift: int, info: int, is_global: int) -> int:
    """Answer with a page of 2**shift bytes at physical address ``frame``; returns 0, no fault.

    ``info``: three bits (fetch, load, store) for the supervisor and, from ``USER_RIGHTS`` on, for the user;
    ``DIRTY`` where a store needs nothing more. ``is_global``: 1 if every address space may use it.
    """
    state[OUT_FRAME] = frame
    state[OUT_SHIFT] = shift
    state[OUT_INFO] = info
    state[OUT_GLOBAL] = is_global
    state[OUT_ORDINAL] = ordinal_of(state, shift)
    return 0


@step
def through_tlb(state: Words, va: int) -> int:
    """Where the TLBs for loads say ``va`` is, counted as a hit; -1 where none of them has it.

    Rights are not asked: the caller is hardware or a handler.
    """
    entry, cache, level = lookup(state, LOAD, va)
    if entry == 0:
        return -1
    ways = ways_of(state, cache)
    state[cache + D_HITS] += 1
    touch(state, cache, entry, state[NOW])
    info = state[entry + E_INFO * ways]
    ordinal = state[entry] & ORDINAL_MASK
    shift = state[SIZES + ordinal]
    if level:
        seen = pointer_at(state[SEEN_ADDRESS])
        space = state[entry + E_SPACE * ways]
        fill_levels(state, seen, LOAD, va, level, shift, ordinal, info, space, state[NOW])
    return (info & ADDRESS_BITS) + (va & ((1 << shift) - 1))


@step
def fill_tlb(state: Words, access: int, va: int, frame: int, shift: int, info: int, space: int) -> None:
    """Put a translation of ``va`` into the TLBs that serve ``access``, counted as a miss there.

    For a page that the access itself did not ask for, and for one that is cached as absent (``ABSENT``). The page
    that was asked for enters by itself when the miss routine answers with ``give``.
    """
    ordinal = ordinal_of(state, shift)
    seen = pointer_at(state[SEEN_ADDRESS])
    packed = frame | info | ordinal << REAL_SHIFT
    levels = state[TLB_LEVELS]
    fill_levels(state, seen, access, va, levels, shift, ordinal, packed, space, state[NOW])
