"""Whole columns of accesses in terms of pages: which are touched, and accesses collapsed to page runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from polymmu.workload.model import FETCH, LOAD, AccessColumns, PageRuns

__all__ = ["to_page_runs", "touched_pages"]


@numba.njit(cache=True)
def _collect_pages(
    vaddr: NDArray[Any], size: NDArray[Any], shift: int, table: NDArray[Any], at: int
) -> tuple[int, int]:  # pragma: no cover - compiled
    """Put page numbers + 1 into the open-addressed ``table`` from access ``at`` on.

    Returns the access reached and how many pages are new; stops early when a quarter of the table is new
    ones.
    """
    mask = numba.uint64(len(table) - 1)
    limit = len(table) // 4
    new = 0
    bits = numba.uint64(shift)
    one = numba.uint64(1)
    recent = numba.uint64(0)
    previous = numba.uint64(0)
    for i in range(at, len(vaddr)):
        first = (vaddr[i] >> bits) + one
        last = ((vaddr[i] + numba.uint64(size[i]) - one) >> bits) + one
        if last == first and (first in (recent, previous)):
            continue
        previous = recent
        recent = first
        for page in (first, last):
            slot = (page * numba.uint64(0x9E3779B97F4A7C15) >> numba.uint64(20)) & mask
            while table[slot] != 0 and table[slot] != page:
                slot = (slot + one) & mask
            if table[slot] == 0:
                table[slot] = page
                new += 1
        if new >= limit:
            return i + 1, new
    return len(vaddr), new


def touched_pages(accesses: AccessColumns | PageRuns, page_shift: int) -> NDArray[np.uint64]:
    """The page numbers (address >> ``page_shift``) that the accesses touch, ascending, each once."""
    if isinstance(accesses, PageRuns):
        vpn = accesses.vpn
        changes = np.flatnonzero(vpn[1:] != vpn[:-1]) + 1
        heads = vpn[np.concatenate(([0], changes))] if len(vpn) else vpn
        return np.unique(heads >> np.uint64(page_shift - accesses.page_shift))
    table = np.zeros(1 << 14, np.uint64)
    at = held = 0
    while at < len(accesses):
        at, new = _collect_pages(accesses.vaddr, accesses.size, page_shift, table, at)
        held += new
        if held >= len(table) // 4:
            # Rehash: the entries themselves, one byte each, are the accesses of the larger table.
            entries = (table[table != 0] - np.uint64(1)) << np.uint64(page_shift)
            table = np.zeros(len(table) * 8, np.uint64)
            _collect_pages(entries, np.ones(len(entries), np.uint8), page_shift, table, 0)
    return np.sort(table[table != 0]) - np.uint64(1)


@numba.njit(cache=True)
def _collapse(
    op: NDArray[Any],
    vaddr: NDArray[Any],
    size: NDArray[Any],
    shift: int,
    start: int,
    stop: int,
    vpn: NDArray[Any],
    data: NDArray[Any],
    write: NDArray[Any],
    count: NDArray[Any],
    pos: NDArray[Any],
    n: int,
) -> int:  # pragma: no cover - compiled
    """Collapse accesses [start, stop) into rows ``n`` on, in order of each run's first access."""
    bits = numba.uint64(shift)
    open_fetch = -1
    open_data = -1
    for i in range(start, stop):
        is_data = op[i] != 0
        is_write = numba.uint8(op[i] >= 2)
        touches = numba.uint32(2 if op[i] == 3 else 1)
        first = vaddr[i] >> bits
        last = (vaddr[i] + numba.uint64(size[i]) - numba.uint64(1)) >> bits
        page = first
        while True:
            row = open_data if is_data else open_fetch
            if row >= 0 and vpn[row] == page and count[row] < 0xFFFFFF00:
                count[row] += touches
                write[row] |= is_write
            else:
                vpn[n] = page
                data[n] = is_data
                write[n] = is_write
                count[n] = touches
                pos[n] = i
                if is_data:
                    open_data = n
                else:
                    open_fetch = n
                n += 1
            if page == last:
                break
            page = last
    return n


def to_page_runs(accesses: AccessColumns, breaks: Sequence[int] = (), *, page_shift: int = 12) -> PageRuns:
    """``accesses`` collapsed to page runs; no run goes across a position in ``breaks`` (ascending: calls,
    switches).

    A modify counts two touches, as in ``PageRuns.count`` of every other source.
    """
    inner = [b for b in breaks if 0 < b < len(accesses)]
    bounds = [0, *inner, len(accesses)]
    room = 2 * len(accesses)
    vpn, pos = np.empty(room, np.uint64), np.empty(room, np.uint64)
    data, write, count = np.empty(room, np.uint8), np.empty(room, np.uint8), np.empty(room, np.uint32)
    n = 0
    for start, stop in itertools.pairwise(bounds):
        n = _collapse(
            accesses.op,
            accesses.vaddr,
            accesses.size,
            page_shift,
            start,
            stop,
            vpn,
            data,
            write,
            count,
            pos,
            n,
        )
    return PageRuns(
        vpn[:n].copy(), data[:n].copy(), write[:n].copy(), count[:n].copy(), pos[:n].copy(), page_shift
    )


assert (FETCH, LOAD) == (0, 1)  # the kernels above spell them as numbers
