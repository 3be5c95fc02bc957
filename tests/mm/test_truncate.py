"""Truncation and invalidation: what is cut off is mapped nowhere afterwards, whatever happens in the breaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polymmu.errors import SegmentationFault
from polymmu.hooks import ArchKernel
from polymmu.mm.mmap import do_munmap
from polymmu.mm.pagecache import new_file, put_file
from polymmu.mm.truncate import do_truncate, unmap_mapping_range
from polymmu.mm.vma import split_vma
from polymmu.sched.driver import Sched
from polymmu.structs import VM_SHARED, File, mm_struct
from tests.mm.toy import PAGE, PUD, RW, add_vma, boot, frame_at, load, new_mm, state, store, touch

SHARED = RW | VM_SHARED


def contents(index: int) -> bytes:
    return bytes([index + 1]) * PAGE


def mapped(mm: mm_struct, start: int, pages: int) -> list[int]:
    """Which pages from ``start`` on have a pte."""
    return [page for page in range(pages) if frame_at(mm, start + page * PAGE) >= 0]


def touch_all(mm: mm_struct, start: int, pages: int, access: str = "load") -> None:
    for page in range(pages):
        touch(mm, start + page * PAGE, access)


def test_cut_off_pages_are_unmapped_everywhere_and_leave_the_cache(kernel: ArchKernel) -> None:
    file = new_file(kernel, "f", 8 * PAGE)
    one, two = new_mm(kernel), new_mm(kernel)
    add_vma(one, PUD, PUD + 8 * PAGE, SHARED, file=file, pgoff=0)
    add_vma(two, 3 * PUD, 3 * PUD + 6 * PAGE, SHARED, file=file, pgoff=2)
    touch_all(one, PUD, 8)
    touch_all(two, 3 * PUD, 6, "store")
    held = state(kernel).held
    do_truncate(kernel, file, 3 * PAGE)
    assert mapped(one, PUD, 8) == [0, 1, 2]
    assert mapped(two, 3 * PUD, 6) == [0]
    assert list(file.mapping.pages) == [0, 1, 2]
    assert (one.file_rss, two.file_rss) == (3, 1)
    assert state(kernel).held == held - 5
    with pytest.raises(SegmentationFault):
        touch(one, PUD + 3 * PAGE, "load")


def test_truncation_takes_private_copies_too_and_invalidation_leaves_them(kernel: ArchKernel) -> None:
    for even_cows, left in ((False, [0, 3]), (True, [])):
        mm = new_mm(kernel)
        file = new_file(kernel, "f", 6 * PAGE)
        add_vma(mm, 0, 6 * PAGE, file=file, pgoff=0)
        touch_all(mm, 0, 5)
        for page in (0, 3):
            touch(mm, page * PAGE, "store", kind="protection")
        unmap_mapping_range(kernel, file.mapping, 0, 6 * PAGE, even_cows)
        assert mapped(mm, 0, 6) == left
        assert (mm.file_rss, mm.anon_rss) == (0, len(left))


def test_invalidation_takes_only_the_pages_it_names(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    file = new_file(kernel, "f", 8 * PAGE)
    add_vma(mm, 0, 6 * PAGE, SHARED, file=file, pgoff=2)
    touch_all(mm, 0, 6)
    unmap_mapping_range(kernel, file.mapping, 3 * PAGE + 1, PAGE, False)  # bytes of pages 3 and 4
    assert mapped(mm, 0, 6) == [0, 3, 4, 5]


def test_what_was_cut_off_reads_as_zeroes_when_the_file_grows_again(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    file = new_file(kernel, "f", 3 * PAGE, read_page=contents)
    add_vma(mm, 0, 3 * PAGE, SHARED, file=file, pgoff=0)
    store(mm, 5, b"abc")
    assert load(mm, PAGE, 1) == b"\2"
    do_truncate(kernel, file, 6)
    do_truncate(kernel, file, 3 * PAGE)
    assert load(mm, 4, 4) == b"\1a\0\0"
    assert load(mm, PAGE, 1) == b"\0"
    assert load(mm, 2 * PAGE, 1) == b"\0"  # it had never been read


def test_the_last_put_of_a_file_frees_its_pages(kernel: ArchKernel) -> None:
    before = state(kernel)
    file = new_file(kernel, "f", 4 * PAGE)
    mm = new_mm(kernel)
    held = state(kernel).held
    vma = add_vma(mm, 0, 4 * PAGE, SHARED, file=file, pgoff=0)
    touch_all(mm, 0, 4)
    put_file(kernel, file)  # the vma's reference remains
    assert file.references == 1
    assert len(file.mapping.pages) == 4
    do_munmap(mm, vma.vm_start, 4 * PAGE)
    assert state(kernel).held == held
    assert state(kernel).mappings == before.mappings


# ------------------------------------------------------------------ numbers (A1.5)
def test_no_call_has_a_number_that_looks_like_an_address(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    file = new_file(kernel, "f", PAGE)
    vma = add_vma(mm, 0, PAGE, SHARED, file=file, pgoff=0)
    file.mapping.truncate_count = PAGE - 2
    numbers = []
    for _ in range(3):
        unmap_mapping_range(kernel, file.mapping, 0, 0, True)
        assert vma.vm_truncate_count == file.mapping.truncate_count
        numbers.append(vma.vm_truncate_count)
    assert numbers == [PAGE - 1, PAGE + 1, PAGE + 2]


def test_when_the_numbers_begin_again_every_vma_is_scanned_again(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    file = new_file(kernel, "f", PAGE)
    vma = add_vma(mm, 0, PAGE, SHARED, file=file, pgoff=0)
    touch(mm, 0, "load")
    file.mapping.truncate_count = (1 << 32) - 1
    vma.vm_truncate_count = 1  # from a call four thousand million calls ago
    unmap_mapping_range(kernel, file.mapping, 0, 0, True)
    assert file.mapping.truncate_count == 1
    assert mapped(mm, 0, 1) == []


# ------------------------------------------------------------------ breaks (A1.4, A1.6)
def break_once(monkeypatch: pytest.MonkeyPatch, file: File, action: Callable[[], None]) -> None:
    """Somebody wants the CPU until the i_mmap lock has been dropped once, and does ``action`` then."""
    wanted = [True]

    def need_resched(sched: Sched) -> bool:
        return wanted[0]

    def cond_resched(sched: Sched) -> None:
        if wanted[0] and not file.mapping.i_mmap_lock.held:
            wanted[0] = False
            action()

    monkeypatch.setattr(Sched, "runs_tasks", True)
    monkeypatch.setattr(Sched, "need_resched", need_resched)
    monkeypatch.setattr(Sched, "cond_resched", cond_resched)


def test_a_broken_truncation_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = boot()
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 48 * PAGE)
    vma = add_vma(mm, PUD, PUD + 48 * PAGE, SHARED, file=file, pgoff=0)
    touch_all(mm, PUD, 48)
    seen: list[tuple[int, list[int]]] = []

    def look() -> None:
        seen.append((vma.vm_truncate_count, mapped(mm, PUD, 48)))

    break_once(monkeypatch, file, look)
    unmap_mapping_range(kernel, file.mapping, 0, 0, True)
    assert seen == [(PUD + 8 * PAGE, list(range(8, 48)))]  # ZAP_BLOCK_SIZE with preemption
    assert vma.vm_truncate_count == file.mapping.truncate_count
    assert mapped(mm, PUD, 48) == []


@pytest.mark.parametrize("new_below", [False, True])
def test_a_vma_struct_reused_in_the_break_is_still_scanned(
    monkeypatch: pytest.MonkeyPatch, new_below: bool
) -> None:
    """A1.6: A is unmapped in the break, and the piece that a split cuts off B gets A's struct."""
    kernel = boot()
    one, two = new_mm(kernel), new_mm(kernel)
    file = new_file(kernel, "f", 32 * PAGE)
    a = add_vma(one, PUD, PUD + 32 * PAGE, SHARED, file=file, pgoff=0)
    b = add_vma(two, PUD, PUD + 32 * PAGE, SHARED, file=file, pgoff=0)
    touch_all(one, PUD, 32)
    touch_all(two, PUD, 32)
    reused = []

    def another_cpu() -> None:
        do_munmap(one, PUD, 32 * PAGE)
        reused.append(split_vma(b, PUD + 4 * PAGE, new_below=new_below))

    break_once(monkeypatch, file, another_cpu)
    unmap_mapping_range(kernel, file.mapping, 0, 0, True)
    assert reused == [a]  # the same struct, in another life
    assert mapped(two, PUD, 32) == []


def test_a_vma_split_behind_the_restart_address_is_not_scanned_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = boot()
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 48 * PAGE)
    vma = add_vma(mm, PUD, PUD + 48 * PAGE, SHARED, file=file, pgoff=0)
    touch_all(mm, PUD, 48)
    pieces = []

    def another_cpu() -> None:
        pieces.append(split_vma(vma, PUD + 8 * PAGE, new_below=False))
        kernel.events.entries_visited = lambda mm, what, n: visited.append(n)  # type: ignore[method-assign]

    visited: list[int] = []
    break_once(monkeypatch, file, another_cpu)
    unmap_mapping_range(kernel, file.mapping, 0, 0, True)
    assert mapped(mm, PUD, 48) == []
    assert {vma.vm_truncate_count, pieces[0].vm_truncate_count} == {file.mapping.truncate_count}
    assert sum(visited) <= 40 + 8  # the 8 pages before the break at most once more, and only if reset
