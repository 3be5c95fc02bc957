"""The gather: nothing is freed before the flush, nothing is queued that does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polymmu.events import Observer
from polymmu.hooks import ArchKernel
from polymmu.mm import gather
from polymmu.mm.frames import alloc_page, alloc_run
from polymmu.structs import PG_TABLE, mm_struct
from tests.mm.toy import GatherLog, boot, new_mm, state

CAPACITY = 4096 // 8 - 2


def queued(kernel: ArchKernel, mm: mm_struct, n: int) -> Any:
    """A gather that was given ``n`` pages, as a zap gives them: never more than there is room for."""
    tlb = gather.tlb_gather_mmu(mm)
    pfns = alloc_run(kernel, n, "anon")
    assert len(pfns) == n
    while len(pfns):
        room = min(gather.tlb_room(tlb), len(pfns))
        gather.tlb_adjust_range(tlb, 0, 4096, 2)
        if gather.tlb_remove_pages(tlb, pfns[:room]):
            gather.tlb_flush_mmu(tlb)
        pfns = pfns[room:]
    return tlb


def test_a_batch_page_holds_what_fits_beside_its_header() -> None:
    assert gather.batch_capacity(boot()) == 510  # Linux on a 64-bit machine with 4 KiB pages


def test_pages_are_freed_after_the_flush_and_never_before() -> None:
    log = GatherLog()
    kernel = boot(observers=[log])
    mm = new_mm(kernel)
    tlb = queued(kernel, mm, 100)
    assert log.freed == 0
    gather.tlb_finish_mmu(tlb, 0, 4096)
    assert log.flushes == [(100, 0)]
    assert log.freed_before_flush == [0]
    assert log.freed == 100 + 1  # and the batch page


def test_the_bundle_comes_first_then_batch_pages_up_to_the_limit() -> None:
    """10,000 pages are nineteen batches of 510: the flush comes when bundle and batches are full (3.8)."""
    log = GatherLog()
    kernel = boot(memory=64 << 20, observers=[log])
    mm = new_mm(kernel)
    full = gather.BUNDLE + 19 * CAPACITY
    tlb = queued(kernel, mm, full - 1)
    assert log.flushes == []
    assert log.batches == [True] * 19
    assert gather.tlb_remove_pages(tlb, alloc_run(kernel, 1, "anon"))
    gather.tlb_flush_mmu(tlb)
    assert log.flushes == [(full, 0)]
    gather.tlb_finish_mmu(tlb, 0, 4096)
    assert log.batches == [True] * 19  # the pages of the first round serve the second


def test_without_a_batch_page_the_bundle_alone_must_do() -> None:
    log = GatherLog()
    kernel = boot(observers=[log])
    before = state(kernel)
    kernel.free.fail_next = lambda what: what == "gather"
    mm = new_mm(kernel)
    held = state(kernel)
    gather.tlb_finish_mmu(queued(kernel, mm, 20), 0, 4096)
    assert log.flushes == [(8, 0), (8, 0), (4, 0)]
    assert log.batches == [False, False]
    assert state(kernel) == held != before


def test_the_smallest_limit_allows_no_batch_at_all() -> None:
    log = GatherLog()
    kernel = boot(observers=[log], gather_batch=8)
    gather.tlb_finish_mmu(queued(kernel, new_mm(kernel), 17), 0, 4096)
    assert log.flushes == [(8, 0), (8, 0), (1, 0)]
    assert log.batches == []


def test_batch_pages_go_when_the_gather_does(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    before = state(kernel)
    gather.tlb_finish_mmu(queued(kernel, mm, 600), 0, 4096)
    assert state(kernel) == before


def test_fast_mode_frees_at_once_and_flushes_at_the_end() -> None:
    log = GatherLog()
    kernel = boot(observers=[log], fast_mode=True)
    tlb = queued(kernel, new_mm(kernel), 30)
    assert log.freed == 30
    assert log.flushes == []
    gather.tlb_finish_mmu(tlb, 0, 4096)
    assert log.flushes == [(0, 0)]


def test_fast_mode_is_for_machines_with_one_cpu() -> None:
    log = GatherLog()
    kernel = boot(observers=[log], fast_mode=True, cpus=2)
    queued(kernel, new_mm(kernel), 30)
    assert log.freed == 0


def test_nothing_is_flushed_where_nothing_was_cleared() -> None:
    log = GatherLog()
    kernel = boot(observers=[log])
    gather.tlb_finish_mmu(gather.tlb_gather_mmu(new_mm(kernel)), 0, 4096)
    assert log.flushes == []


@pytest.mark.parametrize(
    ("ranges", "hull"),
    [
        ([(0x1000, 0x2000)], (0x1000, 0x2000)),
        ([(0x5000, 0x6000), (0x1000, 0x2000)], (0x1000, 0x6000)),
        ([(0x5000, 0), (0x1000, 0x2000)], (0x1000, 0)),
        ([(0x1000, 0x2000), (0x5000, 0)], (0x1000, 0)),
    ],
)
def test_the_range_is_the_hull_of_what_was_cleared(
    ranges: list[tuple[int, int]], hull: tuple[int, int]
) -> None:
    tlb = gather.tlb_gather_mmu(new_mm(boot()))
    for start, end in ranges:
        gather.tlb_adjust_range(tlb, start, end, 2)
    assert (tlb.start, tlb.end) == hull
    assert tlb.cleared_levels == 1 << 2
    gather.tlb_flush_mmu(tlb)
    assert not tlb.need_flush
    gather.tlb_adjust_range(tlb, 0x9000, 0xA000, 1)
    assert (tlb.start, tlb.end, tlb.cleared_levels) == (0x9000, 0xA000, 1 << 1)


class TablesAtFlush(Observer):
    """Whether the tables a gather holds are still tables when it flushes."""

    def __init__(self) -> None:
        self.kernel: ArchKernel | None = None
        self.table = 0
        self.still_tables: list[bool] = []

    def gather_flush(self, mm: mm_struct, pages: int, tables: int) -> None:
        assert self.kernel is not None
        self.still_tables.append(bool(self.kernel.frames.flags[self.table >> 12] & PG_TABLE))


def test_a_table_is_freed_after_a_flush_that_knows_of_it() -> None:
    watch = TablesAtFlush()
    kernel = watch.kernel = boot(observers=[watch])
    mm = new_mm(kernel)
    watch.table = alloc_page(kernel, "table") << 12
    tlb = gather.tlb_gather_mmu(mm)
    gather.tlb_adjust_range(tlb, 0, 4096, 1)
    gather.tlb_remove_table(tlb, 2, watch.table)
    assert tlb.freed_tables
    gather.tlb_finish_mmu(tlb, 0, 4096)
    assert watch.still_tables == [True]
    assert not kernel.frames.refcount[watch.table >> 12]


def test_a_gather_full_of_tables_flushes_by_itself() -> None:
    log = GatherLog()
    kernel = boot(observers=[log])
    tlb = gather.tlb_gather_mmu(new_mm(kernel))
    for _ in range(509):  # (PAGE_SIZE - 24) / 8 of them
        gather.tlb_remove_table(tlb, 2, alloc_page(kernel, "table") << 12)
    assert log.flushes == [(0, 509)]
    gather.tlb_finish_mmu(tlb, 0, 4096)


def test_a_second_gather_of_the_same_mm_makes_the_finish_flush_everything() -> None:
    """A4.2 step 9: an entry found empty may be one that the other gather has not flushed yet."""
    seen: list[tuple[bool, bool]] = []
    kernel = boot()
    mm = new_mm(kernel)

    class Watch(Observer):
        def gather_flush(self, mm: mm_struct, pages: int, tables: int) -> None:
            seen.append((inner.fullmm, inner.freed_tables))

    outer, inner = gather.tlb_gather_mmu(mm), gather.tlb_gather_mmu(mm)
    kernel.events.gather_flush = Watch().gather_flush  # type: ignore[method-assign]
    gather.tlb_finish_mmu(inner, 0, 4096)
    assert seen == [(True, True)]
    assert mm.tlb_flush_pending == 1
    gather.tlb_finish_mmu(outer, 0, 4096)
    assert len(seen) == 1
    assert mm.tlb_flush_pending == 0


def test_one_page_at_a_time_flushes_when_the_bundle_is_full() -> None:
    log = GatherLog()
    kernel = boot(observers=[log], gather_batch=8)
    tlb = gather.tlb_gather_mmu(new_mm(kernel))
    for pfn in alloc_run(kernel, 8, "anon").tolist():
        gather.tlb_adjust_range(tlb, 0, 4096, 2)
        gather.tlb_remove_page(tlb, pfn)
    assert log.flushes == [(8, 0)]
    assert log.freed == 8
    gather.tlb_finish_mmu(tlb, 0, 4096)


def test_pages_are_freed_in_the_order_they_were_queued() -> None:
    kernel = boot()
    mm = new_mm(kernel)
    tlb = gather.tlb_gather_mmu(mm)
    pfns = np.array([alloc_page(kernel, "anon") for _ in range(5)], dtype=np.int64)
    gather.tlb_remove_pages(tlb, pfns)
    gather.tlb_finish_mmu(tlb, 0, 4096)
    assert [alloc_page(kernel, "anon") for _ in range(5)] == pfns[::-1].tolist()
