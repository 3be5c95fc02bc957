"""Runs of table entries and of frames, many at a time.

A run is ``n`` consecutive entries of one table from physical address ``pa`` on; ``width`` is the bytes of an
entry, ``order`` the byte order ("little" or "big"). Values are numpy arrays of uint64, copies of what stands
in RAM. What numpy does in one pass is left to numpy; what needs a decision per page (reference counts, the
LRU's links) is a compiled kernel, one call per table or batch. There are few kernels, for each one costs
milliseconds to load in a fresh process.

First reading: ``read_run`` and ``account_ptes``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polymmu.hardware.compile import kernel
from polymmu.hardware.entry import EntryFormat
from polymmu.hardware.ram import (
    FLAGS,
    GENERATION,
    INDEX,
    LRU_NEXT,
    LRU_PREV,
    MAPCOUNT,
    MAPPING,
    NONZERO,
    REFCOUNT,
    Ram,
)

__all__ = [
    "HEAD",
    "LENGTH",
    "TAIL",
    "account_ptes",
    "get_and_clear_run",
    "lru_add_frames",
    "modify_run",
    "put_frames",
    "read_run",
    "take_frames",
    "write_run",
]

Values = NDArray[np.uint64]
Pfns = NDArray[np.int64]
Columns = NDArray[np.int64]
"""``Frames.table``: one row per column."""

HEAD, TAIL, LENGTH = range(3)
"""Items of the LRU's anchor; frame 0 is never on it and stands for no frame."""


def _words(ram: Ram, pa: int, width: int, n: int) -> NDArray[np.uint64] | NDArray[np.uint32]:
    """The run as a view of RAM in the host's byte order (little)."""
    if width == 8:
        return ram.u64[pa >> 3 : (pa >> 3) + n]
    return ram.u32[pa >> 2 : (pa >> 2) + n]


def read_run(ram: Ram, pa: int, width: int, order: str, n: int) -> Values:
    """Values of ``n`` entries from physical address ``pa`` on."""
    words = _words(ram, pa, width, n)
    return (words.byteswap() if order == "big" else words).astype(np.uint64)


def write_run(ram: Ram, pa: int, width: int, order: str, values: Values) -> None:
    """Store ``values`` as consecutive entries."""
    words = _words(ram, pa, width, len(values))
    words[:] = values
    if order == "big":
        words.byteswap(inplace=True)


def get_and_clear_run(ram: Ram, pa: int, width: int, order: str, n: int, empty: int) -> Values:
    """Take ``n`` entries out: their last values; ``empty`` stands in their place."""
    values = read_run(ram, pa, width, order, n)
    words = _words(ram, pa, width, n)
    words[:] = empty
    if order == "big" and empty:
        words.byteswap(inplace=True)
    return values


def modify_run(
    ram: Ram, pa: int, width: int, order: str, n: int, format: EntryFormat, keep: int, put: int
) -> None:
    """In every entry of the run that maps a page: leave the bits of ``keep``, set those of ``put``."""
    values = read_run(ram, pa, width, order, n)
    change = format.mapped_in(values)
    values[change] = values[change] & np.uint64(keep) | np.uint64(put)
    write_run(ram, pa, width, order, values)


@kernel
def account_ptes(
    values: Values, table: Columns, masks: Values, count: int, delta: int, out: Pfns
) -> tuple[int, int, int]:
    """Enter (``delta`` +1) or leave (-1) the mappings of a run of pte values in the frames' columns.

    ``table``: the frames' columns. ``masks``: ``Shape.account_masks``. ``count``: frames there are; an
    entry beyond them, or of a reserved frame (the zero page), has no mapping to count. Leaving hands the
    entry's dirty bit to a file page and its accessed bit to any page; entering takes a reference. ``out``
    receives the pfns. Returns (pages counted, anonymous ones among them, file pages found dirty).
    """
    present, present_on, refused, refused_on = masks[0], masks[1], masks[2], masks[3]
    frame, pfn_shift = masks[4], masks[5]
    dirty, dirty_on, young, young_on = masks[6], masks[7], masks[8], masks[9]
    reserved, anonymous = np.int64(masks[10]), np.int64(masks[11])
    pg_dirty, pg_referenced = np.int64(masks[12]), np.int64(masks[13])
    pages = 0
    anon = 0
    dirtied = 0
    for i in range(len(values)):
        entry = values[i]
        if entry & present != present_on and entry & refused != refused_on:
            continue
        pfn = np.int64((entry & frame) >> pfn_shift)
        if pfn >= count:
            continue
        flags = table[FLAGS, pfn]
        if flags & reserved:
            continue
        table[MAPCOUNT, pfn] += delta
        if flags & anonymous:
            anon += 1
        if delta > 0:
            table[REFCOUNT, pfn] += 1
        else:
            if dirty != 0 and entry & dirty == dirty_on and not flags & anonymous:
                flags |= pg_dirty
                dirtied += 1
            if young != 0 and entry & young == young_on:
                flags |= pg_referenced
            table[FLAGS, pfn] = flags
        out[pages] = pfn
        pages += 1
    return pages, anon, dirtied


@kernel
def take_frames(
    table: Columns, memory: Values, words: int, stack: Pfns, top: int, bump: int, out: Pfns, flags: int
) -> int:
    """Hand out ``len(out)`` frames: the last freed first from ``stack[:top]``, then never-used ones from ``bump``.

    Each gets one reference and ``flags``; one that may hold bytes of its last owner is zeroed (``memory``:
    RAM as 64-bit words, ``words`` of them per frame). Returns how many came from the stack.
    """
    n = len(out)
    used = min(n, top)
    for i in range(n):
        pfn = stack[top - 1 - i] if i < used else bump + i - used
        if table[FLAGS, pfn] & NONZERO:
            memory[pfn * words : (pfn + 1) * words] = 0
        table[FLAGS, pfn] = flags
        table[REFCOUNT, pfn] = 1
        out[i] = pfn
    return used


@kernel
def put_frames(
    table: Columns, lru: Pfns, lru_flag: int, pfns: Pfns, stack: Pfns, top: int
) -> tuple[int, int]:
    """Drop one reference of each of ``pfns``; those that held the last go onto ``stack[:top]``, off the LRU.

    Returns (new top, pfn of the first frame that had no reference or is still mapped, else -1).
    """
    for i in range(len(pfns)):
        pfn = pfns[i]
        left = table[REFCOUNT, pfn] - 1
        if left < 0 or (left == 0 and table[MAPCOUNT, pfn] != 0):
            return top, int(pfn)
        table[REFCOUNT, pfn] = left
        if left:
            continue
        flags = table[FLAGS, pfn]
        if flags & lru_flag:
            after, before = table[LRU_NEXT, pfn], table[LRU_PREV, pfn]
            if before:
                table[LRU_NEXT, before] = after
            else:
                lru[HEAD] = after
            if after:
                table[LRU_PREV, after] = before
            else:
                lru[TAIL] = before
            lru[LENGTH] -= 1
        table[FLAGS, pfn] = flags & NONZERO
        table[MAPPING, pfn] = 0
        table[INDEX, pfn] = 0
        table[GENERATION, pfn] += 1
        stack[top] = pfn
        top += 1
    return top, -1


@kernel
def lru_add_frames(table: Columns, lru: Pfns, lru_flag: int, pfns: Pfns) -> None:
    """Put ``pfns`` at the head of the LRU, one after another; one that is on it stays where it is."""
    for i in range(len(pfns)):
        pfn = pfns[i]
        if table[FLAGS, pfn] & lru_flag:
            continue
        first = lru[HEAD]
        table[LRU_NEXT, pfn] = first
        table[LRU_PREV, pfn] = 0
        if first:
            table[LRU_PREV, first] = pfn
        else:
            lru[TAIL] = pfn
        lru[HEAD] = pfn
        lru[LENGTH] += 1
        table[FLAGS, pfn] |= lru_flag
