"""try_to_unmap in nonlinear vmas: clusters, cursors and when the lock is let go (A6.1 steps 3 to 8)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polymmu.hooks import ArchKernel
from polymmu.mm.mm import mmput
from polymmu.mm.mmap import do_mmap
from polymmu.mm.pagecache import new_file, put_file
from polymmu.mm.rmap import Unmapped, page_referenced, try_to_unmap
from polymmu.mm.tables import find_entry, pfn_of, read_pte
from polymmu.mm.vma import split_vma, vma_make_nonlinear
from polymmu.structs import PG_DIRTY, VM_NONLINEAR, VM_SHARED, File, mm_struct, vm_area_struct
from tests.mm.toy import PAGE, PMD, PUD, RW, boot, frame_at, load, new_mm, pte_at, state
from tests.rmap.brute import all_mappings

CLUSTER = PMD
"""Sixteen pages: a pte table of the toy, which is less than 32 pages."""


def file_pte(index: int) -> int:
    """The toy's: bit 6, the page's index above bit 12."""
    return 1 << 6 | index << 12


def nonlinear(kernel: ArchKernel, mm: mm_struct, file: File, at: int, pages: int) -> vm_area_struct:
    """A mapping of the whole file that shows its pages in reverse, present, old and clean."""
    do_mmap(mm, at, pages * PAGE, RW | VM_SHARED, fixed=True, file=file)
    for n in range(pages):
        load(mm, at + n * PAGE)
    area: vm_area_struct = mm.vmas[at]
    vma_make_nonlinear(area)
    values = [pte_at(mm, at + n * PAGE) for n in range(pages)]
    accessed = kernel.shape.pte.accessed
    assert accessed is not None
    for n in range(pages):
        run = np.array((accessed.clear(values[pages - 1 - n]),), dtype=np.uint64)
        kernel.ops.set_pte(mm, at + n * PAGE, find_entry(mm, at + n * PAGE), run)
        kernel.ops.flush_tlb_page(area, at + n * PAGE)
    return area


def made(
    pages: int, areas: int = 1, **choice: Any
) -> tuple[ArchKernel, mm_struct, File, list[vm_area_struct]]:
    kernel = boot(**choice)
    file = new_file(kernel, "f", pages * PAGE)
    mm = new_mm(kernel)
    return kernel, mm, file, [nonlinear(kernel, mm, file, PUD * (n + 1), pages) for n in range(areas)]


def present(mm: mm_struct, area: vm_area_struct) -> list[int]:
    """Which pages of a vma are mapped."""
    return [
        n for n in range(area.vm_end - area.vm_start >> 12) if frame_at(mm, area.vm_start + n * PAGE) >= 0
    ]


def test_a_nonlinear_vma_leaves_the_tree_for_the_list_and_what_is_split_off_it_too() -> None:
    _, _, file, (area,) = made(32)
    assert area.vm_flags & VM_NONLINEAR
    assert len(file.mapping.i_mmap) == 0
    piece = split_vma(area, area.vm_start + PMD, new_below=False)
    assert len(file.mapping.i_mmap) == 0
    assert sorted(file.mapping.i_mmap_nonlinear) == sorted((area.slot, piece.slot))


def test_step_7_empties_one_cluster_for_a_page_mapped_once_and_the_cursor_stays_behind_it() -> None:
    kernel, mm, _, (area,) = made(48)
    pfn = frame_at(mm, area.vm_end - PAGE)  # page 0, in the last cluster
    assert try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_AGAIN
    assert present(mm, area) == list(range(16, 48))
    assert area.vm_private_data == CLUSTER
    assert try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_AGAIN
    assert present(mm, area) == list(range(32, 48))
    assert try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_SUCCESS
    assert present(mm, area) == []
    assert mm.file_rss == 0


def test_each_page_not_at_its_linear_place_leaves_a_file_pte() -> None:
    kernel, mm, _, (area,) = made(17)
    middle = area.vm_start + 8 * PAGE  # 17 pages in reverse: page 8 stays where it is
    while all_mappings(kernel):
        try_to_unmap(kernel, next(iter(all_mappings(kernel))), None)
    assert [pte_at(mm, area.vm_start + n * PAGE) for n in range(17) if n != 8] == [
        file_pte(16 - n) for n in range(17) if n != 8
    ]
    assert pte_at(mm, middle) == kernel.shape.pte.empty


def test_a_page_used_lately_stays_and_is_old_afterwards() -> None:
    kernel, mm, _, (area,) = made(16)
    pfn = frame_at(mm, area.vm_start)
    load(mm, area.vm_start)
    assert try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_AGAIN
    assert present(mm, area) == [0]
    assert page_referenced(kernel, pfn) == 0  # nonlinear vmas are not looked at
    area.vm_private_data = None
    assert try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_SUCCESS


def test_step_8_forgets_all_cursors_when_the_longest_vma_was_gone_through() -> None:
    """Every page is young: nothing is unmapped, the effort is not used up, and the next call starts over."""
    kernel, mm, _, areas = made(32, areas=2)
    for area in areas:
        for n in range(32):
            load(mm, area.vm_start + n * PAGE)
    pfn = frame_at(mm, areas[0].vm_start)
    assert try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_AGAIN
    assert [present(mm, area) for area in areas] == [list(range(32))] * 2
    assert [area.vm_private_data for area in areas] == [None, None]
    assert try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_AGAIN  # the first cluster used the effort up
    assert [present(mm, area) for area in areas] == [list(range(16, 32)), list(range(32))]
    assert try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_SUCCESS


def test_no_vma_gets_ahead_of_another_by_more_than_a_cluster() -> None:
    kernel, mm, _, (first, second) = made(48, areas=2)
    pfn = frame_at(mm, first.vm_end - PAGE)  # mapped twice: effort for two
    seen = []
    while try_to_unmap(kernel, pfn, None) is not Unmapped.SWAP_SUCCESS:
        seen.append((len(present(mm, first)), len(present(mm, second))))
    assert seen == [(32, 48), (32, 32), (16, 32), (16, 16), (0, 16)]


def test_linear_vmas_are_unmapped_before_any_cluster_is() -> None:
    kernel, mm, file, (area,) = made(32)
    at = do_mmap(mm, 3 * PUD, 32 * PAGE, RW | VM_SHARED, fixed=True, file=file)
    load(mm, at + 31 * PAGE)
    pfn = frame_at(mm, at + 31 * PAGE)
    assert frame_at(mm, area.vm_start) == pfn
    assert try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_SUCCESS
    assert pte_at(mm, at + 31 * PAGE) == kernel.shape.pte.empty
    # Mapped once more when the clusters' turn came.
    assert present(mm, area) == list(range(16, 32))


def test_the_effort_is_what_mapped_the_page_and_no_cluster_is_touched_without_need() -> None:
    kernel, mm, _, (area,) = made(32)
    other = new_file(kernel, "g", PAGE)
    at = do_mmap(mm, 3 * PUD, PAGE, RW | VM_SHARED, fixed=True, file=other)
    load(mm, at)
    assert try_to_unmap(kernel, frame_at(mm, at), None) is Unmapped.SWAP_SUCCESS
    assert present(mm, area) == list(range(32))


@pytest.mark.parametrize("first", [3, 13])
def test_a_vma_that_begins_within_a_cluster_is_scanned_to_its_end(first: int) -> None:
    kernel = boot()
    file = new_file(kernel, "f", 32 * PAGE)
    mm = new_mm(kernel)
    area = nonlinear(kernel, mm, file, PUD + first * PAGE, 32)
    for _ in range(6):
        for pfn in list(all_mappings(kernel)):
            try_to_unmap(kernel, pfn, None)
    assert present(mm, area) == []
    assert mm.file_rss == 0


def test_dirty_goes_to_the_page_and_everything_balances() -> None:
    kernel = boot()
    before = state(kernel)
    file = new_file(kernel, "f", 16 * PAGE)
    mm = new_mm(kernel)
    area = nonlinear(kernel, mm, file, PUD, 16)
    ptep = find_entry(mm, PUD)
    dirty = kernel.shape.pte.dirty
    assert dirty is not None
    value = read_pte(mm, ptep)
    kernel.ops.set_pte(mm, PUD, ptep, np.array((dirty.set(value),), dtype=np.uint64))
    pfn = pfn_of(kernel.shape, value)
    assert not kernel.frames.flags[pfn] & PG_DIRTY
    assert try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_SUCCESS
    assert kernel.frames.flags[pfn] & PG_DIRTY
    assert present(mm, area) == []
    mmput(mm)
    put_file(kernel, file)
    assert state(kernel) == before


# ---------------------------------------------------------------------- who gets the lock, and when
def asked(kernel: ArchKernel, file: File) -> list[str]:
    """Somebody always wants the CPU; what the scan does about it."""
    log: list[str] = []
    lock = file.mapping.i_mmap_lock
    kernel.sched.need_resched = lambda: True  # type: ignore[method-assign]

    def cond_resched() -> None:
        log.append("below the lock" if lock.held else "lock dropped")

    kernel.sched.cond_resched = cond_resched  # type: ignore[method-assign]
    return log


@pytest.mark.parametrize("lock", ["mutex", "spin"])
def test_the_lock_is_offered_at_step_5_and_after_each_round_over_the_list(lock: str) -> None:
    kernel, mm, file, areas = made(48, areas=2, i_mmap_lock=lock)
    for area in areas:
        for n in range(48):
            load(mm, area.vm_start + n * PAGE)
    log = asked(kernel, file)
    try_to_unmap(kernel, frame_at(mm, areas[0].vm_start), None)
    assert log == ["lock dropped"] * 4  # step 5, and three clusters of each vma


def test_until_2004_it_gave_way_after_each_cluster_with_the_lock_held() -> None:
    kernel, mm, file, areas = made(48, areas=2, i_mmap_lock="spin", cluster_scan="resched")
    for area in areas:
        for n in range(48):
            load(mm, area.vm_start + n * PAGE)
    log = asked(kernel, file)
    try_to_unmap(kernel, frame_at(mm, areas[0].vm_start), None)
    assert log == ["below the lock"] * 6


def test_that_is_sleeping_in_atomic_context_where_the_lock_is_a_spinlock() -> None:
    kernel, mm, _, (area,) = made(48, i_mmap_lock="spin", cluster_scan="resched")
    with pytest.raises(AssertionError, match="sleeping in atomic context"):
        try_to_unmap(kernel, frame_at(mm, area.vm_end - PAGE), None)
