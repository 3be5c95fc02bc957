"""What others do to vmas while a truncation has dropped its lock (A1.2 to A1.7), by script and at random.

The sequences by script are functions of a kernel: ``tests.history.test_truncations`` runs them on older ones.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.hooks import ArchKernel
from polymmu.mm import vma as vmas
from polymmu.mm.fork import dup_mm
from polymmu.mm.mmap import do_mmap, do_munmap
from polymmu.mm.mprotect import do_mprotect
from polymmu.mm.mremap import do_mremap
from polymmu.mm.pagecache import new_file
from polymmu.mm.truncate import unmap_mapping_range
from polymmu.mm.vma import split_vma, vma_make_nonlinear, vmas_of
from polymmu.structs import VM_READ, VM_SHARED, File, mm_struct, vm_area_struct
from tests.mm import truncating
from tests.mm.toy import ARCHES, PAGE, PUD, RW, add_vma, boot, frame_at, new_mm, touch
from tests.mm.truncating import in_breaks

SHARED = RW | VM_SHARED
V = 2 * PUD
TINY: dict[str, Any] = {"zap_block": 1, "truncate_count_bits": 3, "truncate_restart_bits": 1}
"""Blocks of a page; numbers 1, 3, 5, 7 and again."""


def cut_off(kernel: ArchKernel, file: File, first: int = 0, pages: int = 0) -> None:
    unmap_mapping_range(kernel, file.mapping, first * PAGE, pages * PAGE, True)


def shows(mm: mm_struct, file: File, at: int, pages: int, first: int = 0) -> vm_area_struct:
    """A mapping of pages of ``file``, all touched."""
    vma = add_vma(mm, at, at + pages * PAGE, SHARED, file=file, pgoff=first)
    for page in range(pages):
        touch(mm, at + page * PAGE, "load")
    return vma


def mapped(mm: mm_struct, at: int, pages: int) -> list[int]:
    return [page for page in range(pages) if frame_at(mm, at + page * PAGE) >= 0]


# ------------------------------------------------------------------ at random
@pytest.mark.parametrize("arch", sorted(ARCHES))
@settings(max_examples=15, deadline=None, derandomize=True)
@given(chance=st.randoms(use_true_random=False))
def test_no_page_that_was_cut_off_stays_mapped_whatever_happens_in_the_breaks_at_random(
    arch: str, chance: random.Random
) -> None:
    """And no other page goes. Mappings are cut, split, merged, moved, forked and touched; numbers wrap and leap."""
    truncating.run(boot(ARCHES[arch], **TINY), chance)


@pytest.mark.slow
def test_nor_with_a_thousand_seeds() -> None:
    assert truncating.wrong_runs(lambda: boot(**TINY), range(1000)) == []


# ------------------------------------------------------------------ A1.6
SETUPS = {
    "a: the same struct, address and page": (V, V + 4 * PAGE, False),
    "b: the same struct below, another page": (V - 16 * PAGE, V - 12 * PAGE, False),
    "c: the same struct ends below": (V, V + 4 * PAGE, True),
}


def reuse(kernel: ArchKernel, setup: str) -> list[int]:
    """Corpus 1: A's struct comes to be a piece of B in the break. Pages of B's that stay mapped."""
    other, at, new_below = SETUPS[setup]
    file = new_file(kernel, "f", 16 * PAGE)
    one, two = new_mm(kernel), new_mm(kernel)
    a, b = shows(one, file, V, 16), shows(two, file, other, 16)

    def break_in_a() -> None:
        assert mapped(one, V, 16) == list(range(8, 16))
        do_munmap(one, V, 16 * PAGE)
        assert split_vma(b, at, new_below=new_below) is a

    in_breaks(kernel, file, [break_in_a])
    cut_off(kernel, file)
    return mapped(two, other, 16)


@pytest.mark.parametrize("setup", sorted(SETUPS))
def test_a1_6_a_struct_in_its_second_life_is_scanned(setup: str) -> None:
    assert reuse(boot(), setup) == []


def leftover(kernel: ArchKernel) -> list[int]:
    """Corpus 98: a piece falls out of the first call's range below its restart address."""
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 16 * PAGE)
    vma = shows(mm, file, V, 16)

    def break_at_12() -> None:
        assert mapped(mm, V, 16) == [*range(8), *range(12, 16)]
        do_munmap(mm, V + 4 * PAGE, 12 * PAGE)

    in_breaks(kernel, file, [break_at_12])
    cut_off(kernel, file, 8)
    assert mapped(mm, V, 16) == [0, 1, 2, 3]
    assert vma.vm_truncate_count != file.mapping.truncate_count, "it was no business of this call"
    cut_off(kernel, file)
    return mapped(mm, V, 16)


def test_a1_6_no_piece_keeps_a_restart_address_that_it_does_not_reach() -> None:
    assert leftover(boot(zap_block=4)) == []


# ------------------------------------------------------------------ A1.2, A1.4
def test_a1_2_what_is_done_is_skipped_and_each_round_begins_anew() -> None:
    kernel = boot(zap_block=4)
    file = new_file(kernel, "f", 8 * PAGE)
    mm = new_mm(kernel)
    for n in range(3):
        shows(mm, file, V + n * PUD, 8)
    rounds: list[int] = []
    zapped: list[int] = []
    kernel.events.vmas_visited = lambda mapping, n: rounds.append(n)  # type: ignore[method-assign]
    kernel.events.entries_visited = lambda mm, what, n: zapped.append(n)  # type: ignore[method-assign]
    in_breaks(kernel, file, [lambda: None] * 100)
    cut_off(kernel, file)
    # Two blocks in each of three vmas; a round more for each drop, over all that come before.
    assert rounds == [1, 1, 2, 2, 3, 3, 3]
    assert sum(zapped) == 24, "no entry is visited twice"


def test_a1_2_the_range_is_clipped_to_the_vma() -> None:
    kernel = boot()
    file = new_file(kernel, "f", 16 * PAGE)
    mm = new_mm(kernel)
    shows(mm, file, V, 8, first=4)
    cut_off(kernel, file, 2, 4)  # pages 2 to 5
    assert mapped(mm, V, 8) == [2, 3, 4, 5, 6, 7]
    cut_off(kernel, file, 9, 1)
    assert mapped(mm, V, 8) == [2, 3, 4, 6, 7]


def test_a1_4_step_4_a_restart_address_is_stored_also_where_nobody_is_let_in() -> None:
    """The zap stopped, and then nobody wanted anything: the second look at who waits may come out otherwise."""
    kernel = boot(zap_block=4)
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    vma = shows(mm, file, V, 8)
    seen: list[int] = []

    def asked(lock: object) -> bool:
        if lock is not file.mapping.i_mmap_lock:
            return False
        seen.append(vma.vm_truncate_count)
        return len(seen) == 1

    kernel.sched.runs_tasks = True
    kernel.sched.need_lockbreak = asked  # type: ignore[method-assign]
    cut_off(kernel, file)
    assert seen == [0, 0, V + 4 * PAGE, V + 4 * PAGE]
    assert mapped(mm, V, 8) == []


def made_nonlinear_in_the_break(kernel: ArchKernel) -> list[int]:
    """A1.2 step 5, corpus 6: a vma goes from the tree to the list."""
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    shows(mm, file, V, 8)
    moving = shows(mm, file, V + PUD, 8)

    in_breaks(kernel, file, [lambda: vma_make_nonlinear(moving)])
    cut_off(kernel, file, 4)
    return mapped(mm, V + PUD, 8)


def test_a1_2_step_5_tree_before_list_for_vmas_go_from_the_one_to_the_other() -> None:
    """Of the list's vmas the pages are asked which they are."""
    assert made_nonlinear_in_the_break(boot()) == [0, 1, 2, 3]


# ------------------------------------------------------------------ A1.5
def after_wrap(kernel: ArchKernel) -> list[int]:
    """Corpus 4: a vma is done in call 1, and another call has number 1 again."""
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    vma = shows(mm, file, V, 4)
    cut_off(kernel, file)
    assert vma.vm_truncate_count == 1
    touch(mm, V, "load")
    cut_off(kernel, file, 6)
    cut_off(kernel, file)
    assert file.mapping.truncate_count == 1
    return mapped(mm, V, 4)


def test_a1_5_when_the_numbers_begin_again_those_in_the_vmas_are_void() -> None:
    assert after_wrap(boot(truncate_count_bits=2, truncate_restart_bits=1)) == []


def after_an_address(kernel: ArchKernel) -> list[int]:
    """Corpus 5: a call whose number, 2 * PAGE, would be an address inside the vma."""
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    shows(mm, file, 0, 4)
    file.mapping.truncate_count = 2 * PAGE - 1
    cut_off(kernel, file)
    for page in range(4):
        touch(mm, page * PAGE, "load")
    cut_off(kernel, file)
    return mapped(mm, 0, 4)


def test_a1_5_no_number_looks_like_an_address() -> None:
    assert after_an_address(boot()) == []


@pytest.mark.parametrize(("bits", "low", "numbers"), [(3, 1, [1, 3, 5, 7, 1]), (4, 2, [1, 2, 3, 5, 6, 7, 9])])
def test_a1_5_numbers_leap_over_what_has_no_low_bits(bits: int, low: int, numbers: list[int]) -> None:
    kernel = boot(truncate_count_bits=bits, truncate_restart_bits=low)
    file = new_file(kernel, "f", PAGE)
    given_ = []
    for _ in numbers:
        cut_off(kernel, file)
        given_.append(file.mapping.truncate_count)
    assert given_ == numbers


@pytest.mark.parametrize(
    ("start", "numbers"),
    [(0, [1, 2, 3]), (6, [7, 9, 10]), (7, [9, 10, 11]), (8, [10, 11, 12]), (15, [1, 2, 3])],
)
def test_a1_5_a_files_numbers_may_begin_late_and_no_file_begins_with_an_address(
    start: int, numbers: list[int]
) -> None:
    """Addresses have three zero bits here, numbers four bits: 8 is one, and after 15 comes the reset."""
    kernel = boot(truncate_count_bits=4, truncate_restart_bits=3, truncate_count_start=start)
    mapping = new_file(kernel, "f", PAGE).mapping
    assert not mapping.truncate_count or mapping.truncate_count & 7
    found = []
    for _ in range(3):
        unmap_mapping_range(kernel, mapping, 0, 0, True)
        found.append(mapping.truncate_count)
    assert found == numbers


# ------------------------------------------------------------------ A1.7
def merged_in_the_break(kernel: ArchKernel) -> list[int]:
    """Corpus 7a: the upper half, not scanned, joins the lower one, which is done."""
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    do_mmap(mm, V, 4 * PAGE, SHARED, fixed=True, file=file, pgoff=0)
    do_mmap(mm, V + 4 * PAGE, 4 * PAGE, VM_READ | VM_SHARED, fixed=True, file=file, pgoff=4)
    for page in range(8):
        touch(mm, V + page * PAGE, "load")
    in_breaks(kernel, file, [lambda: do_mprotect(mm, V + 4 * PAGE, 4 * PAGE, RW)])
    cut_off(kernel, file)
    assert mm.map_count == 1
    return mapped(mm, V, 8)


def test_a1_7_what_takes_in_ptes_under_another_count_is_scanned_again() -> None:
    assert merged_in_the_break(boot()) == []


def moved_in_the_break(kernel: ArchKernel) -> list[int]:
    """Corpus 7b: pages that are not scanned move into a vma that is done."""
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    for at, first in ((V, 0), (V + PUD, 4)):
        do_mmap(mm, at, 4 * PAGE, SHARED, fixed=True, file=file, pgoff=first)
        for page in range(4):
            touch(mm, at + page * PAGE, "load")
    in_breaks(kernel, file, [lambda: do_mremap(mm, V + PUD, 4 * PAGE, 4 * PAGE, new_addr=V + 4 * PAGE)])
    cut_off(kernel, file)
    assert mm.map_count == 1
    return mapped(mm, V, 8)


def test_a1_7_what_pages_move_into_is_scanned_again() -> None:
    assert moved_in_the_break(boot()) == []


def test_a1_7_a_truncation_may_be_done_with_the_new_vma_before_its_pages_come() -> None:
    """So it is told with every extent, below the lock, and not once when the vma is made."""
    kernel = boot()
    strategy = kernel.variants.mremap
    lock_rmap = strategy.lock_rmap

    def done_with_it_first(mapping: Any, vma: vm_area_struct, new_vma: vm_area_struct) -> None:
        new_vma.vm_truncate_count = mapping.truncate_count
        lock_rmap(mapping, vma, new_vma)

    strategy.lock_rmap = done_with_it_first
    assert moved_in_the_break(kernel) == []


def moved_below_the_restart_address(kernel: ArchKernel) -> list[int]:
    """Corpus 8: the vma that pages move into is the interrupted one, and they come to lie below where it was left.

    It is walked first where the tree begins with what reaches furthest (``rmap_tree: prio``).
    """
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 16 * PAGE)
    for at, first, pages in ((V + 4 * PAGE, 4, 12), (V + PUD, 0, 4)):
        do_mmap(mm, at, pages * PAGE, SHARED, fixed=True, file=file, pgoff=first)
        for page in range(pages):
            touch(mm, at + page * PAGE, "load")

    def moves() -> None:
        assert mapped(mm, V + PUD, 4) == [0, 1, 2, 3], "the walk began with the other vma"
        do_mremap(mm, V + PUD, 4 * PAGE, 4 * PAGE, new_addr=V)

    in_breaks(kernel, file, [moves])
    cut_off(kernel, file)
    assert mm.map_count == 1
    return mapped(mm, V, 16)


def test_a1_7_no_restart_address_holds_for_pages_that_moved() -> None:
    assert moved_below_the_restart_address(boot(rmap_tree="prio")) == []


def visits_of_a_new_vma(kernel: ArchKernel) -> int:
    """Corpus 7c: a mapping made in the break has nothing to scan. How many of its entries are."""
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    shows(mm, file, V, 8)
    visited: list[int] = []

    def another_maps() -> None:
        do_mmap(mm, V + 8 * PAGE, 4 * PAGE, VM_READ, fixed=True, file=file, pgoff=0)
        kernel.events.entries_visited = lambda mm, what, n: visited.append(n)  # type: ignore[method-assign]

    in_breaks(kernel, file, [another_maps])
    cut_off(kernel, file)
    return sum(visited)


def test_a1_7_a_new_vma_has_nothing_to_scan() -> None:
    assert visits_of_a_new_vma(boot()) == 0


def copied_before_the_wrap(kernel: ArchKernel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Corpus 7d: a split copies number 1; call 2, and another call 1 as far as its break, come before the link."""
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    shows(mm, file, V, 4)
    vma = shows(mm, file, V + PUD, 8)
    cut_off(kernel, file)
    assert vma.vm_truncate_count == 1
    adjust = vmas.vma_adjust

    def late(mm: mm_struct, ranges: Any, *, insert: vm_area_struct) -> None:
        monkeypatch.undo()
        cut_off(kernel, file)
        for page in range(8):
            touch(mm, V + PUD + page * PAGE, "load")
        in_breaks(kernel, file, [lambda: adjust(mm, ranges, insert=insert)])
        cut_off(kernel, file)
        assert file.mapping.truncate_count == 1

    monkeypatch.setattr(vmas, "vma_adjust", late)
    split_vma(vma, V + PUD + 4 * PAGE, new_below=False)
    assert mm.map_count == 3
    return mapped(mm, V + PUD, 8)


def test_a1_7_a_count_is_stored_when_the_copy_is_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert copied_before_the_wrap(boot(truncate_count_bits=2, truncate_restart_bits=1), monkeypatch) == []


def test_a1_7_a_child_forked_in_the_break_is_met_behind_its_parent() -> None:
    kernel = boot(zap_block=4)
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 16 * PAGE)
    add_vma(mm, V, V + 16 * PAGE, RW, file=file, pgoff=0)  # private: fork copies its ptes
    for page in range(16):
        touch(mm, V + page * PAGE, "store")
    children: list[mm_struct] = []

    def fork() -> None:
        children.append(dup_mm(mm))
        assert mapped(children[0], V, 16) == list(range(4, 16))

    in_breaks(kernel, file, [fork])
    cut_off(kernel, file)
    assert mapped(mm, V, 16) == mapped(children[0], V, 16) == []
    counts = {each.vm_truncate_count for of in (mm, *children) for each in vmas_of(of.mmap)}
    assert counts == {file.mapping.truncate_count}


# ------------------------------------------------------------------ A1.10, A0.4
def test_a1_10_one_call_at_a_time_in_a_file() -> None:
    kernel = boot()
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 16 * PAGE)
    shows(mm, file, V, 16)
    held: list[bool] = []
    in_breaks(kernel, file, [lambda: held.append(file.mapping.unmap_mutex.held)])
    cut_off(kernel, file)
    assert held == [True]
    assert not file.mapping.unmap_mutex.held


@pytest.mark.parametrize(("preempt", "drops"), [(True, 3), (False, 0)])
def test_a0_4_only_a_preemptible_kernel_is_asked_by_who_waits(preempt: bool, drops: int) -> None:
    """And ZAP_BLOCK_SIZE is 8 pages there, 1024 else."""
    kernel = boot(preempt=preempt)
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 24 * PAGE)
    shows(mm, file, V, 24)
    assert kernel.sched.need_lockbreak(file.mapping.i_mmap_lock) is False
    file.mapping.i_mmap_lock.waiters.append("somebody")
    assert kernel.sched.need_lockbreak(file.mapping.i_mmap_lock) is preempt
    file.mapping.i_mmap_lock.waiters.clear()
    kernel.sched.runs_tasks = True
    kernel.sched.need_resched = lambda: preempt  # type: ignore[method-assign]
    given_way: list[object] = []
    kernel.variants.truncate.give_way = given_way.append
    cut_off(kernel, file)
    assert len(given_way) == drops
