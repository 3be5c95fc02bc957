"""Finding, splitting, merging and linking vmas. Pictures: a letter per page, ``|`` between two vmas."""

from __future__ import annotations

import errno

import pytest

from polymmu.errors import SyscallError
from polymmu.mm.mmap import do_mmap, do_munmap
from polymmu.mm.mprotect import do_mprotect
from polymmu.mm.pagecache import new_file
from polymmu.mm.vma import (
    anon_vma_prepare,
    find_vma,
    find_vma_intersection,
    find_vma_prev,
    split_vma,
    vma_adjust,
    vmas_of,
)
from tests.mm.programs import PAGE, RIGHTS, check_links, draw, picture
from tests.mm.toy import boot, new_mm

BASE = 0x100000


def test_find_vma_gives_the_holder_or_else_the_next_one_up() -> None:
    mm = new_mm(boot())
    draw(mm, "rr..ww", at=BASE)
    low, high = vmas_of(mm.mmap)
    assert find_vma(mm, 0) is low
    assert find_vma(mm, BASE + 2 * PAGE - 1) is low
    assert find_vma(mm, BASE + 2 * PAGE) is high
    assert find_vma(mm, BASE + 6 * PAGE) is None
    assert find_vma_prev(mm, BASE + 3 * PAGE) == (high, low)
    assert find_vma_prev(mm, BASE) == (low, None)
    assert find_vma_prev(mm, BASE + 6 * PAGE) == (None, high)
    assert find_vma_intersection(mm, BASE + 2 * PAGE, BASE + 4 * PAGE) is None
    assert find_vma_intersection(mm, BASE + 2 * PAGE, BASE + 4 * PAGE + 1) is high


def test_the_remembered_vma_is_forgotten_with_its_mapping() -> None:
    mm = new_mm(boot())
    draw(mm, "rr", at=BASE)
    assert find_vma(mm, BASE) is mm.mmap_cache
    do_munmap(mm, BASE, 2 * PAGE)
    assert find_vma(mm, BASE) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("rrr....rrr", "rrrrrrrrrr"),  # case 1
        ("rrr....www", "rrrrrrr|www"),  # case 2
        ("www....rrr", "www|rrrrrrr"),  # case 3
        ("www....xxx", "www|rrrr|xxx"),
        ("rr......rr", "rr.rrrr.rr"),
    ],
)
def test_a_mapping_made_in_a_hole_joins_its_equals(before: str, after: str) -> None:
    mm = new_mm(boot())
    draw(mm, before, at=BASE)
    draw(mm, "rrrr", at=BASE + 3 * PAGE)
    assert picture(mm, at=BASE, pages=10) == after
    check_links(mm)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("wwwwwwwrrr", "www|rrrrrrr"),  # case 4
        ("rrrwwwwwww", "rrrrrrr|www"),  # case 5
        ("rrrwwwwrrr", "rrrrrrrrrr"),  # case 6
        ("rrrwwwwxxx", "rrrrrrr|xxx"),  # case 7
        ("xxxwwwwrrr", "xxx|rrrrrrr"),  # case 8
        ("wwwwwwwwww", "www|rrrr|www"),
        ("rrrrwwwrrr", "rrrrrrrrrr"),
        ("wwxwxwxwrr", "ww|x|rrrr|w|rr"),
    ],
)
@pytest.mark.parametrize("of_file", [False, True])
def test_new_rights_move_boundaries_before_they_make_new_ones(before: str, after: str, of_file: bool) -> None:
    mm = new_mm(boot())
    file = new_file(mm.kernel, "f", 10 * PAGE) if of_file else None
    draw(mm, before, at=BASE, file=file)
    do_mprotect(mm, BASE + 3 * PAGE, 4 * PAGE, RIGHTS["r"])
    assert picture(mm, at=BASE, pages=10) == after
    check_links(mm)
    if file is not None:
        assert [vma.vm_pgoff * PAGE for vma in vmas_of(mm.mmap)] == [
            vma.vm_start - BASE for vma in vmas_of(mm.mmap)
        ]


def test_file_mappings_join_only_where_the_file_goes_on() -> None:
    mm = new_mm(boot())
    file = new_file(mm.kernel, "f", 16 * PAGE)
    for page, pgoff in ((0, 4), (1, 5), (2, 7)):
        do_mmap(mm, BASE + page * PAGE, PAGE, RIGHTS["r"], fixed=True, file=file, pgoff=pgoff)
    assert picture(mm, at=BASE, pages=3) == "rr|r"


def test_vmas_with_different_anonymous_histories_stay_apart() -> None:
    mm = new_mm(boot())
    draw(mm, "ww..ww", at=BASE)
    for vma in vmas_of(mm.mmap):
        anon_vma_prepare(vma)
    draw(mm, "ww", at=BASE + 2 * PAGE)
    assert picture(mm, at=BASE, pages=6) == "wwww|ww"


def test_a_neighbour_that_may_be_joined_later_shares_its_anon_vma() -> None:
    """Only rights keep the two apart. (One that could never be written was not charged: that keeps them apart, too.)"""
    mm = new_mm(boot())
    draw(mm, "ww", at=BASE)
    do_mmap(mm, BASE + 2 * PAGE, 2 * PAGE, RIGHTS["w"] | RIGHTS["x"], fixed=True)
    low, high = vmas_of(mm.mmap)
    anon_vma_prepare(low)
    anon_vma_prepare(high)
    assert high.anon_vma is low.anon_vma
    do_mprotect(mm, BASE + 2 * PAGE, 2 * PAGE, RIGHTS["w"])
    assert picture(mm, at=BASE, pages=4) == "wwww"
    assert low.anon_vma is not None
    assert low.anon_vma.references == 1


def test_a_neighbour_that_was_not_charged_has_an_anon_vma_of_its_own() -> None:
    """The host's kernel says so (``tests.referee``)."""
    mm = new_mm(boot())
    draw(mm, "wwrr", at=BASE)
    low, high = vmas_of(mm.mmap)
    anon_vma_prepare(low)
    anon_vma_prepare(high)
    assert high.anon_vma is not low.anon_vma


def test_a_vma_that_grows_over_anonymous_pages_takes_their_anon_vma() -> None:
    mm = new_mm(boot())
    draw(mm, "wwrr", at=BASE)
    low, high = vmas_of(mm.mmap)
    anon_vma_prepare(high)
    anon = high.anon_vma
    do_mprotect(mm, BASE + 2 * PAGE, 2 * PAGE, RIGHTS["w"])
    assert low.anon_vma is anon
    assert mm.kernel.anon_vmas.live == 1


def test_split_leaves_the_struct_where_it_was_asked_to() -> None:
    mm = new_mm(boot())
    file = new_file(mm.kernel, "f", 8 * PAGE)
    draw(mm, "rrrrrr", at=BASE, file=file)
    vma = find_vma(mm, BASE)
    assert vma is not None
    upper = split_vma(vma, BASE + 4 * PAGE, new_below=False)
    lower = split_vma(vma, BASE + PAGE, new_below=True)
    assert [lower, vma, upper] == list(vmas_of(mm.mmap))
    assert [piece.vm_pgoff for piece in (lower, vma, upper)] == [0, 1, 4]
    assert file.references == 4
    check_links(mm)


def test_no_split_beyond_the_limit_of_mappings() -> None:
    mm = new_mm(boot(vm_max_map_count=2))
    draw(mm, "rrrr.ww", at=BASE)
    with pytest.raises(SyscallError) as refused:
        do_munmap(mm, BASE + PAGE, PAGE)
    assert refused.value.errno == errno.ENOMEM
    with pytest.raises(SyscallError) as refused:
        do_mprotect(mm, BASE + 5 * PAGE, PAGE, RIGHTS["x"])
    assert refused.value.errno == errno.ENOMEM
    assert picture(mm, at=BASE, pages=7) == "rrrr.ww"
    do_mprotect(mm, BASE, 4 * PAGE, RIGHTS["x"])  # no boundary is needed
    check_links(mm)


class TestTruncateCount:
    """A1.7: what may still be scanned by a truncation travels with the ptes."""

    def test_a_new_mapping_needs_no_scan(self) -> None:
        mm = new_mm(boot())
        file = new_file(mm.kernel, "f", 8 * PAGE)
        file.mapping.truncate_count = 7
        draw(mm, "rr", at=BASE, file=file)
        assert [vma.vm_truncate_count for vma in vmas_of(mm.mmap)] == [7]

    def test_a_split_copies_the_restart_address(self) -> None:
        mm = new_mm(boot())
        draw(mm, "rrrr", at=BASE, file=new_file(mm.kernel, "f", 8 * PAGE))
        vma = find_vma(mm, BASE)
        assert vma is not None
        vma.vm_truncate_count = BASE + PAGE
        upper = split_vma(vma, BASE + 3 * PAGE, new_below=False)
        assert (vma.vm_truncate_count, upper.vm_truncate_count) == (BASE + PAGE, BASE + PAGE)

    def test_a_piece_that_ends_below_its_restart_address_forgets_it(self) -> None:
        # The hole that A1.6 describes last: truncate to page 8 stops at page 12, the vma is cut to 4 pages.
        mm = new_mm(boot())
        draw(mm, "r" * 16, at=BASE, file=new_file(mm.kernel, "f", 16 * PAGE))
        vma = find_vma(mm, BASE)
        assert vma is not None
        vma.vm_truncate_count = BASE + 12 * PAGE
        do_munmap(mm, BASE + 4 * PAGE, 12 * PAGE)
        assert [vma.vm_truncate_count for vma in vmas_of(mm.mmap)] == [0]

    @pytest.mark.parametrize(("own", "others", "then"), [(5, 5, 5), (5, 4, 0), (BASE + PAGE, 5, 0)])
    def test_pages_taken_in_under_another_count_are_scanned_again(
        self, own: int, others: int, then: int
    ) -> None:
        mm = new_mm(boot())
        draw(mm, "rrww", at=BASE, file=new_file(mm.kernel, "f", 8 * PAGE))
        low, high = vmas_of(mm.mmap)
        low.vm_truncate_count, high.vm_truncate_count = own, others
        do_mprotect(mm, BASE + 2 * PAGE, 2 * PAGE, RIGHTS["r"])
        assert [vma.vm_truncate_count for vma in vmas_of(mm.mmap)] == [then]

    def test_growth_into_a_hole_keeps_the_count(self) -> None:
        mm = new_mm(boot())
        draw(mm, "rr", at=BASE, file=new_file(mm.kernel, "f", 8 * PAGE))
        vma = find_vma(mm, BASE)
        assert vma is not None
        vma.vm_truncate_count = 3
        vma_adjust(mm, [(vma, BASE, BASE + 3 * PAGE)])
        assert vma.vm_truncate_count == 3
