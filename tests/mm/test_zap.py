"""Zapping: what was mapped is cleared, accounted once, queued, and flushed in the right order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polymmu.events import Observer
from polymmu.hooks import ArchKernel
from polymmu.mm.frames import alloc_page, lru_add_drain
from polymmu.mm.gather import tlb_finish_mmu, tlb_gather_mmu
from polymmu.mm.mm import mmput
from polymmu.mm.pagecache import new_file, put_file
from polymmu.mm.tables import alloc_entry
from polymmu.mm.zap import unmap_vmas, zap_page_range
from polymmu.sched.driver import Sched
from polymmu.structs import PG_DIRTY, PG_REFERENCED, VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE, mm_struct
from tests.mm.toy import (
    PAGE,
    PMD,
    PUD,
    RW,
    GatherLog,
    add_vma,
    boot,
    frame_at,
    live_tables,
    load,
    new_mm,
    pte_at,
    pte_lock_held,
    state,
    store,
    touch,
)


def test_only_the_range_is_cleared_and_its_tables_stay(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    vma = add_vma(mm, PUD, PUD + 3 * PMD)
    for page in range(48):
        touch(mm, PUD + page * PAGE)
    tables = live_tables(mm)
    zap_page_range(vma, PUD + 10 * PAGE, 25 * PAGE)
    mapped = [frame_at(mm, PUD + page * PAGE) >= 0 for page in range(48)]
    assert mapped == [not 10 <= page < 35 for page in range(48)]
    assert pte_at(mm, PUD + 10 * PAGE) == kernel.shape.pte.empty
    assert mm.anon_rss == 48 - 25
    assert mm.hiwater_rss == 48
    assert live_tables(mm) == tables


def test_pages_still_in_a_pagevec_are_freed_too(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    vma = add_vma(mm, 0, PMD)
    touch(mm, 0)
    free = kernel.free.free
    zap_page_range(vma, 0, PMD)
    assert kernel.free.free == free + 1


def test_the_zero_page_is_unmapped_without_being_counted(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    vma = add_vma(mm, 0, PMD)
    zero = kernel.free.zero_page
    for page in range(5):
        touch(mm, page * PAGE, "load")
    assert frame_at(mm, 0) == zero
    assert (mm.anon_rss, mm.file_rss) == (0, 0)
    zap_page_range(vma, 0, PMD)
    assert frame_at(mm, 0) == -1
    assert kernel.frames.refcount[zero] == 1
    assert kernel.frames.mapcount[zero] == 0


def test_what_hardware_noted_in_a_file_pages_entry_reaches_the_page(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    file = new_file(kernel, "f", 4 * PAGE)
    vma = add_vma(mm, 0, 4 * PAGE, RW | VM_SHARED, file=file, pgoff=0)
    load(mm, 0)
    store(mm, 0, b"dirty")  # the entry allows it: hardware sets the dirty bit, nobody faults
    load(mm, PAGE)
    pages = [file.mapping.pages[index] for index in (0, 1)]
    assert [bool(kernel.frames.flags[pfn] & PG_DIRTY) for pfn in pages] == [False, False]
    zap_page_range(vma, 0, 4 * PAGE)
    assert [bool(kernel.frames.flags[pfn] & PG_DIRTY) for pfn in pages] == [True, False]
    assert all(kernel.frames.flags[pfn] & PG_REFERENCED for pfn in pages)
    assert mm.file_rss == 0
    assert [kernel.frames.refcount[pfn] for pfn in pages] == [1, 1]  # the cache's


class LockAtFlush(Observer):
    """Whether the table lock is held when a gather flushes."""

    def __init__(self) -> None:
        self.held: list[bool] = []

    def gather_flush(self, mm: mm_struct, pages: int, tables: int) -> None:
        self.held.append(pte_lock_held(mm, 0))


@pytest.mark.parametrize(("access", "below_the_lock"), [("store", True), ("load", False)])
def test_dirty_file_pages_are_flushed_before_the_table_lock_is_dropped(
    access: str, below_the_lock: bool
) -> None:
    """A2.4, 3.15: another CPU may find the page clean only after our flush."""
    watch = LockAtFlush()
    kernel = boot(observers=[watch])
    mm = new_mm(kernel)
    file = new_file(kernel, "f", PAGE)
    vma = add_vma(mm, 0, PAGE, RW | VM_SHARED, file=file, pgoff=0)
    touch(mm, 0, access)
    zap_page_range(vma, 0, PAGE)
    assert watch.held == [below_the_lock]


@pytest.mark.parametrize("zap_block", [1, 3, 1024])
@pytest.mark.parametrize("gather_batch", [8, 10_000])
def test_a_full_gather_neither_loses_nor_counts_twice(zap_block: int, gather_batch: int) -> None:
    """A2.4: the first rework of 2011 subtracted the first round's pages from rss twice."""
    log = GatherLog()
    kernel = boot(observers=[log], zap_block=zap_block, gather_batch=gather_batch)
    before = state(kernel)
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 20 * PAGE)
    anon = add_vma(mm, 0, 30 * PAGE)
    mapped = add_vma(mm, PUD, PUD + 20 * PAGE, RW | VM_SHARED, file=file, pgoff=0)
    for page in range(0, 30, 2):
        touch(mm, page * PAGE)
    for page in range(20):
        touch(mm, PUD + page * PAGE)
    cached = list(file.mapping.pages.values())
    zap_page_range(anon, 0, 30 * PAGE)
    zap_page_range(mapped, PUD, 20 * PAGE)
    assert (mm.anon_rss, mm.file_rss) == (0, 0)
    assert [kernel.frames.mapcount[pfn] for pfn in cached] == [0] * 20
    assert [kernel.frames.refcount[pfn] for pfn in cached] == [1] * 20
    assert sum(pages for pages, _ in log.flushes) == 15 + 20
    mmput(mm)
    put_file(kernel, file)
    assert state(kernel) == before


def test_somebody_who_wants_the_cpu_gets_it_between_two_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = boot(zap_block=4)
    mm = new_mm(kernel)
    vma = add_vma(mm, 0, PMD)
    for page in range(16):
        touch(mm, page * PAGE)
    left: list[int] = []

    def give_way(sched: Sched) -> None:
        assert not pte_lock_held(mm, 0)
        left.append(mm.anon_rss)

    monkeypatch.setattr(Sched, "cond_resched", give_way)
    monkeypatch.setattr(Sched, "need_resched", lambda sched: True)
    zap_page_range(vma, 0, PMD)
    # Four chunks with three breaks between them; the bundle of eight is full after two of them.
    assert left[:3] == [12, 8, 4]
    assert mm.anon_rss == 0


def test_a_drivers_frames_are_cleared_but_not_counted_and_flushed_with_their_vma(kernel: ArchKernel) -> None:
    """A4.9: no mapcount says that the frames are mapped, so the flush may not wait for the end of the gather."""
    log = GatherLog()
    kernel.events.gather_flush = log.gather_flush  # type: ignore[method-assign]
    mm = new_mm(kernel)
    vma = add_vma(mm, 0, PMD, VM_READ | VM_WRITE | VM_PFNMAP)
    pfn = alloc_page(kernel, "file")
    value = pfn * PAGE | vma.vm_page_prot
    kernel.ops.set_pte(mm, PAGE, alloc_entry(mm, PAGE), np.array([value], dtype=np.uint64))
    tlb = tlb_gather_mmu(mm)
    unmap_vmas(tlb, vma, 0, PMD)
    assert log.flushes == [(0, 0)]
    tlb_finish_mmu(tlb, 0, PMD)
    assert log.flushes == [(0, 0)]
    assert frame_at(mm, PAGE) == -1
    assert (mm.anon_rss, mm.file_rss) == (0, 0)
    assert (kernel.frames.refcount[pfn], kernel.frames.mapcount[pfn]) == (1, 0)


def test_the_walk_visits_only_tables_that_exist(kernel: ArchKernel) -> None:
    visited: list[tuple[Any, ...]] = []
    mm = new_mm(kernel)
    vma = add_vma(mm, 0, 8 * PUD)
    touch(mm, 5 * PUD)
    kernel.events.entries_visited = lambda mm, what, n: visited.append((what, n))  # type: ignore[method-assign]
    zap_page_range(vma, 0, 8 * PUD)
    assert visited == [("zap", 16)]


def test_a_zap_of_nothing_flushes_nothing(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    log = GatherLog()
    kernel.events.gather_flush = log.gather_flush  # type: ignore[method-assign]
    vma = add_vma(mm, 0, PMD)
    touch(mm, 0)
    lru_add_drain(kernel)
    zap_page_range(vma, PAGE, PMD - PAGE)
    assert log.flushes == []
