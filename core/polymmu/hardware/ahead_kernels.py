"""The compiled look-ahead: which pages will be touched for the first time next.

A program that fills fresh memory faults once per page. A handler that learns of several such pages at once
can map them in one go; the replay loop then accounts each one's fault when it gets there, so that every
count is the same as with one fault at a time. That only holds while nothing else can happen in between,
so the search stops at the first access that could fault in any other way.
"""

from __future__ import annotations

from polymmu.hardware.access_kernels import lookup
from polymmu.hardware.compile import Words, call_miss, kernel, pointer_to, step
from polymmu.hardware.state import (
    BASE_SHIFT,
    DIRTY,
    E_INFO,
    FAULT_ACCESS,
    FAULT_LEVEL,
    FAULT_VA,
    LEVELS,
    MISS_ADDRESS,
    NEED,
    NR_ROOT_ENTRIES,
    PEEK,
    PENDING,
    R_SHIFT,
    RESUME,
    ROW,
    ROWS,
    WALK_ROOT,
)
from polymmu.hardware.tlb_kernels import page_number, ways_of

LOAD, STORE, MODIFY = 1, 2, 3
NOT_PRESENT = 1
PATIENCE = 64  # accesses looked at per page found, so that sparse first touches do not pay for the search


@step
def known_ahead(state: Words, found: int, vpn: int) -> bool:
    """Whether ``vpn`` is the page that just faulted or one of the ``found`` ones; the latest is likeliest."""
    for n in range(found - 1, -1, -1):
        if state[PENDING + 2 * n] == vpn:
            return True
    return page_number(state[FAULT_VA], state[BASE_SHIFT]) == vpn


@step
def level_of_fault(state: Words, found: int, va: int, level: int) -> int:
    """The level at which ``va`` will be found absent once the earlier pages are mapped.

    ``level`` is where it is absent now; a table that an earlier page brings moves that down.
    """
    base = state[BASE_SHIFT]
    for n in range(-1, found):
        other = state[FAULT_VA] if n < 0 else state[PENDING + 2 * n] << base
        while level < state[LEVELS] - 1 and (va ^ other) >> state[ROWS + level * ROW + R_SHIFT] == 0:
            level += 1
    return level


@kernel
def look_ahead(
    ops: Words,
    addresses: Words,
    sizes: Words,
    start: int,
    stop: int,
    words: Words,
    memory: Words,
    low: int,
    high: int,
    limit: int,
) -> int:
    """Write the next first touches in [low, high) to ``state[PENDING]``; return how many.

    ``start`` is the access that faulted, at its part ``state[RESUME]``. Reads tables and TLBs, changes
    nothing else in the state but scratch.
    """
    state = pointer_to(words)
    ram = pointer_to(memory)
    base = state[BASE_SHIFT]
    wanted = state[FAULT_ACCESS]
    part = state[RESUME] + 1
    state[WALK_ROOT] = -1
    found = 0
    scanned = 0
    i = start
    while i < stop and found < limit and scanned < PATIENCE * (found + 1):
        va = addresses[i]
        op = ops[i] & 3
        scanned += 1
        crosses = (va & ((1 << base) - 1)) + sizes[i] > 1 << base
        pages = 2 if crosses else 1
        while part < (2 * pages if op == MODIFY else pages):
            access = op
            if op == MODIFY:
                access = STORE if part >= pages else LOAD
            where = ((va >> base) + 1) << base if crosses and part & 1 else va
            part += 1
            vpn = page_number(where, base)
            if known_ahead(state, found, vpn):
                if access == wanted or (access == LOAD and wanted == STORE):
                    continue
                return found
            entry, cache, _ = lookup(state, access, where)
            if entry:
                missing = ~state[entry + E_INFO * ways_of(state, cache)] & state[NEED + access]
                if missing == 0:
                    continue
                if missing != DIRTY:
                    return found
            kind = call_miss(state[MISS_ADDRESS], state, ram, where, access, PEEK)
            if kind == 0:
                continue
            level = state[FAULT_LEVEL]
            if entry or kind != NOT_PRESENT or access != wanted or not low <= where < high or found == limit:
                return found
            level = level_of_fault(state, found, where, level)
            if level == 0 and state[NR_ROOT_ENTRIES]:
                return found  # the handler will have to load the root again, which flushes
            state[PENDING + 2 * found] = vpn
            state[PENDING + 2 * found + 1] = level
            found += 1
        part = 0
        i += 1
    return found
