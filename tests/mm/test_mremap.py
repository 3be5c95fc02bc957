"""mremap: bytes follow the mapping wherever it goes, and the old place is empty afterwards."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hooks import ArchKernel
from polymmu.mm.mm import mmput
from polymmu.mm.mmap import do_mmap
from polymmu.mm.mremap import do_mremap
from polymmu.mm.pagecache import new_file
from polymmu.mm.vma import find_vma, vmas_of
from polymmu.structs import VM_DONTEXPAND, VM_SHARED
from tests.mm.programs import PAGE, RIGHTS, check_links, draw, picture
from tests.mm.toy import ARCHES, PMD, RW, boot, load, new_mm, state, store

BASE = 0x100000
ELSEWHERE = 0x400000


@pytest.fixture(params=sorted(ARCHES))
def kernel(request: pytest.FixtureRequest) -> ArchKernel:
    return boot(ARCHES[request.param])


def refuses(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(SyscallError) as error:
        call()
    assert error.value.errno == number


def test_shrinking_unmaps_the_tail(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "wwww", at=BASE)
    store(mm, BASE, b"head")
    assert do_mremap(mm, BASE, 4 * PAGE, PAGE) == BASE
    assert picture(mm, at=BASE, pages=4) == "w..."
    assert load(mm, BASE, 4) == b"head"
    assert mm.total_vm == 1


def test_growing_stays_where_there_is_room(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "ww....r", at=BASE)
    assert do_mremap(mm, BASE, 2 * PAGE, 6 * PAGE, may_move=False) == BASE
    assert picture(mm, at=BASE, pages=7) == "wwwwww|r"
    check_links(mm)
    refuses(errno.ENOMEM, lambda: do_mremap(mm, BASE, 6 * PAGE, 7 * PAGE, may_move=False))


def test_growing_from_the_middle_of_a_mapping_moves_that_part(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "wwww", at=BASE)
    for page in range(4):
        store(mm, BASE + page * PAGE, b"%d" % page)
    new = do_mremap(mm, BASE + PAGE, 2 * PAGE, 3 * PAGE)
    assert picture(mm, at=BASE, pages=4) == "w..w"
    assert [load(mm, new + page * PAGE) for page in range(3)] == [b"1", b"2", b"\0"]
    assert [load(mm, BASE), load(mm, BASE + 3 * PAGE)] == [b"0", b"3"]
    check_links(mm)


@pytest.mark.parametrize("offset", [0, PAGE, PMD - PAGE])
@pytest.mark.parametrize("pages", [1, 16, 40])
def test_a_move_takes_every_page_along_whatever_the_alignment(
    kernel: ArchKernel, offset: int, pages: int
) -> None:
    before = state(kernel)
    mm = new_mm(kernel)
    draw(mm, "w" * pages, at=BASE)
    for page in range(0, pages, 3):
        store(mm, BASE + page * PAGE, b"%d." % page)
    rss = mm.anon_rss
    new = do_mremap(mm, BASE, pages * PAGE, (pages + 1) * PAGE, new_addr=ELSEWHERE + offset)
    assert new == ELSEWHERE + offset
    assert picture(mm, at=BASE, pages=pages) == "." * pages
    for page in range(pages):
        expected = b"%d." % page if page % 3 == 0 else b"\0"
        assert load(mm, new + page * PAGE, len(expected)) == expected
    assert mm.anon_rss == rss
    with pytest.raises(SegmentationFault):
        load(mm, BASE)
    check_links(mm)
    mmput(mm)
    assert state(kernel) == before


def test_a_fixed_move_replaces_what_is_there(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "ww", at=BASE)
    draw(mm, "rrrr", at=ELSEWHERE)
    store(mm, BASE, b"new")
    do_mremap(mm, BASE, 2 * PAGE, PAGE, new_addr=ELSEWHERE + PAGE)
    assert picture(mm, at=ELSEWHERE, pages=4) == "r|w|rr"
    assert load(mm, ELSEWHERE + PAGE, 3) == b"new"
    assert picture(mm, at=BASE, pages=2) == ".."
    check_links(mm)


def test_a_mapping_moved_back_to_its_neighbour_joins_it(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "wwww", at=BASE)
    store(mm, BASE, b"a")
    store(mm, BASE + 2 * PAGE, b"c")
    do_mremap(mm, BASE + 2 * PAGE, 2 * PAGE, 2 * PAGE, new_addr=ELSEWHERE)
    do_mremap(mm, ELSEWHERE, 2 * PAGE, 2 * PAGE, new_addr=BASE + 2 * PAGE)
    assert picture(mm, at=BASE, pages=4) == "wwww"
    assert load(mm, BASE + 2 * PAGE) == b"c"


def test_an_untouched_mapping_joins_whatever_is_beside_its_new_place(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "ww", at=BASE)
    draw(mm, "ww", at=ELSEWHERE)
    do_mremap(mm, BASE, 2 * PAGE, 2 * PAGE, new_addr=ELSEWHERE + 2 * PAGE)
    assert picture(mm, at=ELSEWHERE, pages=4) == "wwww"
    assert mm.map_count == 1


def test_a_move_right_beside_itself_is_taken_in_by_the_old_vma(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "wwww", at=BASE)
    do_mremap(mm, BASE + 2 * PAGE, 2 * PAGE, 4 * PAGE, new_addr=BASE + 4 * PAGE)
    assert picture(mm, at=BASE, pages=8) == "ww..wwww"
    assert mm.total_vm == 6
    check_links(mm)


def test_a_file_mapping_goes_on_in_the_file(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE, read_page=lambda index: b"page %d" % index)
    do_mmap(mm, BASE, 4 * PAGE, RW | VM_SHARED, fixed=True, file=file, pgoff=1)
    assert load(mm, BASE + 3 * PAGE, 6) == b"page 4"
    new = do_mremap(mm, BASE + 2 * PAGE, 2 * PAGE, 4 * PAGE, new_addr=ELSEWHERE)
    assert [load(mm, new + page * PAGE, 6) for page in range(4)] == [
        b"page %d" % page for page in (3, 4, 5, 6)
    ]
    assert file.references == 3


def test_nothing_of_a_shared_mapping_may_be_made_a_second_time(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    refuses(errno.EINVAL, lambda: do_mremap(mm, BASE, 0, PAGE))
    shared = do_mmap(mm, None, 2 * PAGE, RW | VM_SHARED)
    store(mm, shared + PAGE, b"seen twice")
    twin = do_mremap(mm, shared, 0, 2 * PAGE)
    assert twin != shared
    assert load(mm, twin + PAGE, 10) == b"seen twice"
    store(mm, twin, b"back")
    assert load(mm, shared, 4) == b"back"
    assert mm.total_vm == 5


def test_what_linux_refuses_is_refused_with_its_errno(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "wwr", at=BASE)
    for number, call in (
        (errno.EINVAL, lambda: do_mremap(mm, BASE + 1, PAGE, PAGE)),
        (errno.EINVAL, lambda: do_mremap(mm, BASE, PAGE, 0)),
        (errno.EINVAL, lambda: do_mremap(mm, BASE, PAGE, PAGE, may_move=False, new_addr=ELSEWHERE)),
        (errno.EINVAL, lambda: do_mremap(mm, BASE, PAGE, PAGE, new_addr=ELSEWHERE + 1)),
        (errno.EINVAL, lambda: do_mremap(mm, BASE, 2 * PAGE, PAGE, new_addr=BASE + PAGE)),
        (errno.EINVAL, lambda: do_mremap(mm, BASE, PAGE, 2 * PAGE, new_addr=mm.task_size - PAGE)),
        (errno.EFAULT, lambda: do_mremap(mm, ELSEWHERE, PAGE, 2 * PAGE)),
        (errno.EFAULT, lambda: do_mremap(mm, BASE + PAGE, 2 * PAGE, 3 * PAGE)),
    ):
        refuses(number, call)
    vma = find_vma(mm, BASE)
    assert vma is not None
    vma.vm_flags |= VM_DONTEXPAND
    refuses(errno.EFAULT, lambda: do_mremap(mm, BASE, 2 * PAGE, 3 * PAGE))
    assert picture(mm, at=BASE, pages=3) == "ww|r"


def test_a_move_without_memory_for_tables_puts_everything_back(kernel: ArchKernel) -> None:
    before = state(kernel)
    mm = new_mm(kernel)
    pages = 40
    draw(mm, "w" * pages, at=BASE)
    for page in range(pages):
        store(mm, BASE + page * PAGE, b"%d." % page)
    held = state(kernel)
    target = ELSEWHERE + 5 * PAGE
    for allowed in range(3):
        left = allowed

        def fail_next(what: str) -> bool:
            nonlocal left
            left -= what.startswith("table.")
            return left < 0

        kernel.free.fail_next = fail_next
        refuses(errno.ENOMEM, lambda: do_mremap(mm, BASE, pages * PAGE, pages * PAGE, new_addr=target))
        kernel.free.fail_next = None
        assert picture(mm, at=target, pages=pages) == "." * pages
        for page in range(pages):
            expected = b"%d." % page
            assert load(mm, BASE + page * PAGE, len(expected)) == expected
        assert state(kernel) == held
        check_links(mm)
    mmput(mm)
    assert state(kernel) == before


def test_a_moved_mapping_is_scanned_from_its_beginning(kernel: ArchKernel) -> None:
    """A1.7, the rule of 2011: a restart address names no place in the new range."""
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    file.mapping.truncate_count = 9
    draw(mm, "rrrr", at=BASE, file=file)
    load(mm, BASE)
    do_mremap(mm, BASE, 4 * PAGE, 4 * PAGE, new_addr=ELSEWHERE)
    assert [vma.vm_truncate_count for vma in vmas_of(mm.mmap)] == [0]


def test_rights_come_along(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    do_mmap(mm, BASE, PAGE, RIGHTS["r"], fixed=True)
    new = do_mremap(mm, BASE, PAGE, PAGE, new_addr=ELSEWHERE)
    assert load(mm, new) == b"\0"
    with pytest.raises(SegmentationFault):
        store(mm, new)
