"""Frames: who holds which, and the lists of those nobody holds.

A frame's count says how many hold it: each pte that maps it, the page cache, a pagevec, whoever looks at it.
The last put gives it back. Free frames lie on one list per CPU, last freed on top, so that what was just freed
is the first to be reused, as in a real kernel; beneath the lists a bump pointer hands out frames never used.
A freed frame's generation moves on: whoever still holds the old one is caught.

A frame that may hold its last owner's bytes carries NONZERO; only those need clearing. Fresh pages reach the
LRU through a per-CPU pagevec, which holds a reference of its own: a teardown that wants frames back drains it
first (``lru_add_drain``).

First reading: ``alloc_page``, ``put_page``; skip the blocks of several frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polymmu.hardware.ram import (
    FLAGS,
    GENERATION,
    INDEX,
    MAPCOUNT,
    MAPPING,
    NONZERO,
    PRIVATE,
    REFCOUNT,
    Frames,
)
from polymmu.hardware.scans import HEAD, LENGTH, TAIL, lru_add_frames, put_frames, take_frames
from polymmu.structs import (
    PG_ANON,
    PG_GATHER,
    PG_HEAD,
    PG_LRU,
    PG_RESERVED,
    PG_TABLE,
    PG_TAIL,
    FreeFrames,
    Kernel,
)

__all__ = [
    "alloc_page",
    "alloc_pages",
    "alloc_run",
    "boot_free_frames",
    "compound_head",
    "copy_pages",
    "free_page",
    "free_pages",
    "free_run",
    "get_page",
    "get_page_unless_zero",
    "lru_add_drain",
    "lru_cache_add",
    "lru_cache_add_run",
    "lru_coldest",
    "lru_isolate",
    "lru_putback",
    "put_compound_page",
    "put_page",
    "put_pages",
    "put_run",
]

Pfns = NDArray[np.int64]
AnyKernel = Kernel[Any]

FLAGS_FOR = {"anon": PG_ANON, "table": PG_TABLE | NONZERO, "gather": PG_GATHER | NONZERO}
FLAGS_FOR["table_batch"] = FLAGS_FOR["gather"]
"""Page flags by what a frame is allocated for. Tables and batches are written behind the CPU's back."""

MAY_WAIT = frozenset({"anon", "file", "table"})
"""Who may sleep until others' pages were written out; a gather goes on without its batch page."""

FIRST_STACK = 256


def boot_free_frames(frames: Frames, cpus: int) -> FreeFrames:
    """All of ``frames`` free, for a machine of ``cpus`` CPUs.

    Frame 0 is kept back (no frame is called 0), and frame 1 is the zero page.
    """
    zero_page = 1
    for pfn in (0, zero_page):
        frames.flags[pfn] = PG_RESERVED
        frames.refcount[pfn] = 1
    return FreeFrames(
        stacks=[np.empty(FIRST_STACK, dtype=np.int64) for _ in range(cpus)],
        nr=[0] * cpus,
        by_order={},
        bump=zero_page + 1,
        limit=frames.count,
        free=frames.count - zero_page - 1,
        pagevecs=[[] for _ in range(cpus)],
        lru=np.zeros(3, dtype=np.int64),
        zero_page=zero_page,
    )


# ------------------------------------------------------------------ single frames and runs
def alloc_page(kernel: AnyKernel, what: str, zero: bool = True, *, site: str = "") -> int:
    """One frame with one reference, or -1. ``what`` it is for: anon, file, table, gather, table_batch.

    May sleep where there is a swap area. It holds zeroes unless ``zero`` is False: then whatever its last owner left,
    where NONZERO says so. ``site``: its name in fault injection, where ``what`` says too little.
    """
    free = kernel.free
    if free.fail_next is not None and free.fail_next(site or what):
        return -1
    cpu = kernel.sched.cpu.index
    top = free.nr[cpu]
    if top:
        free.nr[cpu] = top = top - 1
        pfn: int = free.stacks[cpu].item(top)
    elif free.bump < free.limit:
        pfn = free.bump
        free.bump = pfn + 1
    elif _refill(kernel, cpu):
        free.nr[cpu] = top = free.nr[cpu] - 1
        pfn = free.stacks[cpu].item(top)
    elif kernel.reclaim is not None and what in MAY_WAIT and kernel.reclaim():
        return alloc_page(kernel, what, zero)
    else:
        return -1
    frames = kernel.frames
    flags = frames.flags
    if flags[pfn] & NONZERO and zero:
        _clear(kernel, pfn)
        flags[pfn] = 0
    flags[pfn] |= FLAGS_FOR.get(what, 0)
    frames.refcount[pfn] = 1
    free.free -= 1
    kernel.events.pages_allocated(1, what)
    return pfn


def alloc_run(kernel: AnyKernel, n: int, what: str) -> Pfns:
    """Up to ``n`` zeroed frames, one reference each, exactly those that ``n`` times alloc_page would give.

    Fewer where memory runs out or an injected failure hits.
    """
    free = kernel.free
    if free.fail_next is not None:
        granted = 0
        while granted < n and not free.fail_next(what):
            granted += 1
        n = granted
    cpu = kernel.sched.cpu.index
    while free.nr[cpu] + free.limit - free.bump < n and _refill(kernel, cpu):
        pass
    n = min(n, free.nr[cpu] + free.limit - free.bump)
    pfns: Pfns = np.empty(n, dtype=np.int64)
    if n:
        words = kernel.shape.layout.page_size >> 3
        table, memory, flags = kernel.frames.table, kernel.ram.u64, FLAGS_FOR.get(what, 0)
        used = take_frames(table, memory, words, free.stacks[cpu], free.nr[cpu], free.bump, pfns, flags)
        free.nr[cpu] -= used
        free.bump += n - used
        free.free -= n
        kernel.events.pages_allocated(n, what)
    return pfns


def free_page(kernel: AnyKernel, pfn: int) -> None:
    """Give back a frame that only the caller holds."""
    put_run(kernel, np.array((pfn,), dtype=np.int64))


def free_run(kernel: AnyKernel, pfns: Pfns) -> None:
    """Give back frames that only the caller holds."""
    put_run(kernel, pfns)


def get_page(kernel: AnyKernel, pfn: int) -> None:
    """One more holder of a frame that the caller knows to be held."""
    refcount = kernel.frames.refcount
    held = refcount[pfn]
    assert held > 0, f"frame {pfn} is free, and somebody takes hold of it"
    refcount[pfn] = held + 1


def put_page(kernel: AnyKernel, pfn: int) -> None:
    """One holder less; the last one frees the frame."""
    refcount = kernel.frames.refcount
    if refcount[pfn] > 1:
        refcount[pfn] -= 1
    else:
        put_run(kernel, np.array((pfn,), dtype=np.int64))


def put_run(kernel: AnyKernel, pfns: Pfns) -> None:
    """One holder less for each of ``pfns``, in order; a page named twice loses two."""
    free = kernel.free
    kernel.sched.frames_put(pfns)
    cpu = kernel.sched.cpu.index
    before = free.nr[cpu]
    stack = _with_room(free, cpu, len(pfns))
    top, bad = put_frames(kernel.frames.table, free.lru, PG_LRU, pfns, stack, before)
    if bad >= 0:
        frames = kernel.frames
        count, mapcount = frames.refcount[bad], frames.mapcount[bad]
        raise AssertionError(f"frame {bad} freed with {count} references and mapped {mapcount} times")
    free.nr[cpu] = top
    freed = top - before
    if freed:
        free.free += freed
        kernel.events.pages_freed(freed)


def _clear(kernel: AnyKernel, pfn: int) -> None:
    words = kernel.shape.layout.page_size >> 3
    kernel.ram.u64[pfn * words : (pfn + 1) * words] = 0


def _with_room(free: FreeFrames, cpu: int, n: int) -> Pfns:
    """The stack of ``cpu``, grown until ``n`` more frames fit."""
    stack = free.stacks[cpu]
    needed = free.nr[cpu] + n
    if needed > len(stack):
        grown: Pfns = np.empty(max(needed, 2 * len(stack)), dtype=np.int64)
        grown[: free.nr[cpu]] = stack[: free.nr[cpu]]
        free.stacks[cpu] = stack = grown
    return stack


def _refill(kernel: AnyKernel, cpu: int) -> bool:
    """Nothing left to hand out on ``cpu``: take over another CPU's list, or break up a block."""
    free = kernel.free
    for other in range(len(free.stacks)):
        nr = free.nr[other]
        if other != cpu and nr:
            stack = _with_room(free, cpu, nr)
            stack[free.nr[cpu] : free.nr[cpu] + nr] = free.stacks[other][:nr]
            free.nr[cpu] += nr
            free.nr[other] = 0
            return True
    for order in sorted(free.by_order):
        if free.by_order[order]:
            _push_range(free, cpu, free.by_order[order].pop(), 1 << order)
            return True
    return False


def _push_range(free: FreeFrames, cpu: int, first: int, n: int) -> None:
    """Put consecutive free frames on a list, the lowest on top."""
    stack = _with_room(free, cpu, n)
    nr = free.nr[cpu]
    stack[nr : nr + n] = np.arange(first + n - 1, first - 1, -1)
    free.nr[cpu] = nr + n


# ------------------------------------------------------------------ blocks
def alloc_pages(kernel: AnyKernel, order: int, what: str, *, site: str = "") -> int:
    """The first of 2**order zeroed frames, together aligned to their size, each with one reference; or -1.

    Unless they are for a table they are one huge page: each frame says which is the first. ``site``: as for
    ``alloc_page``.
    """
    free = kernel.free
    if free.fail_next is not None and free.fail_next(site or what):
        return -1
    n = 1 << order
    first = _take_block(kernel, order)
    if first < 0:
        return -1
    table = kernel.frames.table
    words_of_frames(kernel)[filled_in(kernel, first, n)] = 0
    table[FLAGS, first : first + n] = FLAGS_FOR.get(what, 0)
    table[REFCOUNT, first : first + n] = 1
    if what != "table":
        table[FLAGS, first] |= PG_HEAD
        table[PRIVATE, first] = order
        table[FLAGS, first + 1 : first + n] |= PG_TAIL
        table[INDEX, first + 1 : first + n] = first
    free.free -= n
    kernel.events.pages_allocated(n, what)
    return first


def filled_in(kernel: AnyKernel, first: int, n: int) -> Pfns:
    """Which of the ``n`` frames from ``first`` on may hold other bytes than zero."""
    return first + np.flatnonzero(kernel.frames.table[FLAGS, first : first + n] & NONZERO)


def words_of_frames(kernel: AnyKernel) -> NDArray[np.uint64]:
    """All of memory, a row per frame."""
    words = kernel.shape.layout.page_size >> 3
    return kernel.ram.u64[: kernel.frames.count * words].reshape(-1, words)


def copy_pages(kernel: AnyKernel, source: int, into: int, n: int) -> None:
    """Give ``n`` zeroed frames from ``into`` on the bytes of those from ``source`` on."""
    filled, memory = filled_in(kernel, source, n), words_of_frames(kernel)
    memory[filled - source + into] = memory[filled]
    kernel.frames.table[FLAGS, filled - source + into] |= NONZERO


def free_pages(kernel: AnyKernel, pfn: int, order: int) -> None:
    """Give back a block of 2**order frames, as a block."""
    kernel.sched.frames_put(np.arange(pfn, pfn + (1 << order)))
    table = kernel.frames.table
    block = slice(pfn, pfn + (1 << order))
    if (table[REFCOUNT, block] != 1).any() or table[MAPCOUNT, block].any():
        raise AssertionError(f"block of {1 << order} frames at {pfn} freed while others hold it")
    table[REFCOUNT, block] = 0
    table[FLAGS, block] &= NONZERO
    table[MAPPING, block] = 0
    table[INDEX, block] = 0
    table[PRIVATE, pfn] = 0
    table[GENERATION, block] += 1
    kernel.free.by_order.setdefault(order, []).append(pfn)
    kernel.free.free += 1 << order
    kernel.events.pages_freed(1 << order)


def put_pages(kernel: AnyKernel, pfn: int, order: int) -> None:
    """One holder less of a block that is held by its first frame (a huge page); the last one frees all of it."""
    refcount = kernel.frames.refcount
    if refcount[pfn] > 1:
        refcount[pfn] -= 1
    else:
        free_pages(kernel, pfn, order)


def compound_head(kernel: AnyKernel, pfn: int) -> int:
    """The frame whose count holds ``pfn``: the first one of a huge page, else itself."""
    frames = kernel.frames
    return frames.index[pfn] if frames.flags[pfn] & PG_TAIL else pfn


def get_page_unless_zero(kernel: AnyKernel, pfn: int) -> bool:
    """One more holder, unless nobody holds the page: for who only guesses what ``pfn`` is by now."""
    refcount = kernel.frames.refcount
    head = compound_head(kernel, pfn)
    if not refcount[head]:
        return False
    refcount[head] += 1
    return True


def put_compound_page(kernel: AnyKernel, pfn: int) -> None:
    """``put_page`` for a frame of any page, small or huge."""
    frames = kernel.frames
    head = compound_head(kernel, pfn)
    if frames.flags[head] & PG_HEAD:
        put_pages(kernel, head, frames.private[head])
    else:
        put_page(kernel, head)


def _take_block(kernel: AnyKernel, order: int) -> int:
    free = kernel.free
    n = 1 << order
    if free.by_order.get(order):
        return free.by_order[order].pop()
    first = -(-free.bump // n) * n
    if first + n <= free.limit:
        _push_range(free, kernel.sched.cpu.index, free.bump, first - free.bump)
        free.bump = first + n
        return first
    for larger in sorted(free.by_order):
        if larger > order and free.by_order[larger]:
            first = free.by_order[larger].pop()
            for half in range(larger - 1, order - 1, -1):
                free.by_order.setdefault(half, []).append(first + (1 << half))
            return first
    return _compact(kernel, order)


def _compact(kernel: AnyKernel, order: int) -> int:
    """Find an aligned block among frames freed one by one; the last resort, and slow."""
    free = kernel.free
    cpu = kernel.sched.cpu.index
    while _refill(kernel, cpu):
        pass
    _push_range(free, cpu, free.bump, free.limit - free.bump)
    free.bump = free.limit
    listed = free.stacks[cpu][: free.nr[cpu]]
    blocks, members = np.unique(listed >> order, return_counts=True)
    whole = blocks[members == 1 << order]
    if not len(whole):
        return -1
    kept = listed[listed >> order != whole[0]]
    free.stacks[cpu][: len(kept)] = kept
    free.nr[cpu] = len(kept)
    return int(whole[0]) << order


# ------------------------------------------------------------------ LRU
def lru_cache_add(kernel: AnyKernel, pfn: int) -> None:
    """Send a fresh page towards the LRU: into this CPU's pagevec, which takes a reference and drains when full."""
    kernel.frames.refcount[pfn] += 1
    pagevec = kernel.free.pagevecs[kernel.sched.cpu.index]
    pagevec.append(pfn)
    if len(pagevec) >= kernel.description.kernel.pagevec:
        _drain(kernel, pagevec)


def lru_cache_add_run(kernel: AnyKernel, pfns: Pfns) -> None:
    """``lru_cache_add`` for each of ``pfns``, in order."""
    pagevec = kernel.free.pagevecs[kernel.sched.cpu.index]
    size = kernel.description.kernel.pagevec
    through = (len(pagevec) + len(pfns)) // size * size - len(pagevec)
    if through > 0:  # whole pagevecs: what they would pass on reaches the LRU without the detour
        _drain(kernel, pagevec)
        lru_add_frames(kernel.frames.table, kernel.free.lru, PG_LRU, pfns[:through])
        pfns = pfns[through:]
    for pfn in pfns.tolist():
        kernel.frames.refcount[pfn] += 1
        pagevec.append(pfn)


def lru_add_drain(kernel: AnyKernel) -> None:
    """Empty this CPU's pagevec onto the LRU, dropping its references."""
    pagevec = kernel.free.pagevecs[kernel.sched.cpu.index]
    if pagevec:
        _drain(kernel, pagevec)


def _drain(kernel: AnyKernel, pagevec: list[int]) -> None:
    pfns: Pfns = np.array(pagevec, dtype=np.int64)
    pagevec.clear()
    lru_add_frames(kernel.frames.table, kernel.free.lru, PG_LRU, pfns)
    put_run(kernel, pfns)


def lru_coldest(kernel: AnyKernel) -> int:
    """The page that has been on the LRU longest; 0: there is none."""
    return int(kernel.free.lru[TAIL])


def lru_isolate(kernel: AnyKernel, pfn: int) -> None:
    """Take a page off the LRU, if it is on it, so that nobody else reclaims it; with a reference for the caller."""
    frames, lru = kernel.frames, kernel.free.lru
    frames.refcount[pfn] += 1
    if not frames.flags[pfn] & PG_LRU:
        return
    after, before = frames.lru_next[pfn], frames.lru_prev[pfn]
    if before:
        frames.lru_next[before] = after
    else:
        lru[HEAD] = after
    if after:
        frames.lru_prev[after] = before
    else:
        lru[TAIL] = before
    lru[LENGTH] -= 1
    frames.flags[pfn] &= ~PG_LRU


def lru_putback(kernel: AnyKernel, pfn: int) -> None:
    """Undo ``lru_isolate``; the page is the hottest now. If its other holders are gone, so is it."""
    lru_add_frames(kernel.frames.table, kernel.free.lru, PG_LRU, np.array((pfn,), dtype=np.int64))
    put_page(kernel, pfn)
