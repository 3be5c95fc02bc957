"""Touched pages and page runs, against a few lines of plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.workload.model import AccessColumns, PageRuns
from polymmu.workload.pages import to_page_runs, touched_pages
from tests.workload.samples import DISTINCT_PAGES, read, trace_path

bounded = settings(max_examples=200, derandomize=True, deadline=None)

Row = tuple[int, int, int]


def columns(rows: list[Row]) -> AccessColumns:
    op, vaddr, size = zip(*rows, strict=True) if rows else ((), (), ())
    return AccessColumns(np.array(op, np.uint8), np.array(vaddr, np.uint64), np.array(size, np.uint8))


addresses = st.integers(0, 0x5FFF) | st.integers(2**64 - 0x3000, 2**64 - 256)
rows_of_accesses = st.lists(st.tuples(st.integers(0, 3), addresses, st.integers(1, 255)), max_size=60)


def pages_of(row: Row) -> list[int]:
    """One look-up in each page: an access of at most 255 bytes touches one or two."""
    _, vaddr, size = row
    first, last = vaddr >> 12, (vaddr + size - 1) >> 12
    return [first] if first == last else [first, last]


@bounded
@given(rows_of_accesses)
def test_touched_pages_are_each_page_once_in_order(rows: list[Row]) -> None:
    expected = sorted({page for row in rows for page in pages_of(row)})
    assert touched_pages(columns(rows), 12).tolist() == expected


def test_touched_pages_of_many_pages_survive_a_growing_table() -> None:
    vaddr = (np.arange(100_000, dtype=np.uint64) * np.uint64(7919) % np.uint64(100_003)) << np.uint64(12)
    ones = np.ones(len(vaddr), np.uint8)
    assert touched_pages(AccessColumns(ones, vaddr, ones), 12).tolist() == sorted(int(v) >> 12 for v in vaddr)


@pytest.mark.parametrize("name", ["sort", "cc1", "numpy_runs"])
def test_real_programs_touch_the_pages_their_recorders_counted(name: str) -> None:
    accesses = read(trace_path(name)).accesses
    assert accesses is not None
    assert len(touched_pages(accesses, 12)) == DISTINCT_PAGES[name]


def expand(runs: PageRuns) -> dict[int, list[tuple[int, int]]]:
    """Per class, the pages in order, each with its touches."""
    result: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for page, data, count in zip(runs.vpn.tolist(), runs.data.tolist(), runs.count.tolist(), strict=True):
        result[data].append((page, count))
    return result


@bounded
@given(rows_of_accesses, st.lists(st.integers(0, 60), max_size=3).map(sorted))
def test_page_runs_keep_each_classs_order_of_pages(rows: list[Row], breaks: list[int]) -> None:
    expected: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    fresh = {0: True, 1: True}
    for at, row in enumerate(rows):
        if at in breaks:
            fresh = {0: True, 1: True}
        kind = int(row[0] != 0)
        for page in pages_of(row):
            touches = 2 if row[0] == 3 else 1
            if not fresh[kind] and expected[kind][-1][0] == page:
                expected[kind][-1] = (page, expected[kind][-1][1] + touches)
            else:
                expected[kind].append((page, touches))
            fresh[kind] = False
    runs = to_page_runs(columns(rows), breaks)
    assert expand(runs) == expected
    assert runs.pos.tolist() == sorted(runs.pos.tolist())


def test_a_run_is_a_write_if_any_of_its_accesses_wrote() -> None:
    runs = to_page_runs(
        columns([(1, 0x1000, 4), (1, 0x1008, 4), (2, 0x1010, 4), (1, 0x2000, 4), (0, 0x1000, 4)])
    )
    assert list(zip(runs.vpn.tolist(), runs.write.tolist(), strict=True)) == [(1, 1), (2, 0), (1, 0)]
