"""mmap, munmap, brk and madvise, on both toy architectures: what they give, refuse, and leave."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pytest

from polymmu.errors import InvalidArgument, SegmentationFault, SyscallError, syscall_error
from polymmu.events import Observer
from polymmu.hooks import ArchKernel
from polymmu.mm.mm import mmput
from polymmu.mm.mmap import do_brk, do_madvise_dontneed, do_mmap, do_munmap
from polymmu.mm.pagecache import new_file, put_file
from polymmu.mm.tables import alloc_entry
from polymmu.mm.vma import find_vma
from polymmu.structs import VM_PFNMAP, VM_READ, VM_SHARED, File, mm_struct, vm_area_struct
from tests.mm.programs import PAGE, RIGHTS, check_links, draw, picture
from tests.mm.toy import ARCHES, PMD, PUD, RW, boot, load, new_mm, state, store

BASE = 0x100000


@pytest.fixture(params=sorted(ARCHES))
def kernel(request: pytest.FixtureRequest) -> ArchKernel:
    return boot(ARCHES[request.param])


def refuses(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(SyscallError) as error:
        call()
    assert error.value.errno == number


# ----------------------------------------------------------------------- mmap
def test_a_mapping_is_a_promise_and_costs_no_frame(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    before = kernel.free.free
    addr = do_mmap(mm, None, 100 * PAGE, RW)
    assert kernel.free.free == before
    assert mm.total_vm == 100
    store(mm, addr + 99 * PAGE, b"kept")
    assert load(mm, addr + 99 * PAGE, 4) == b"kept"
    assert load(mm, addr) == b"\0"
    assert (mm.anon_rss, mm.file_rss) == (1, 0)  # the zero page is nobody's


def test_lengths_are_rounded_up_to_whole_pages(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    do_mmap(mm, BASE, PAGE + 1, RW, fixed=True)
    assert picture(mm, at=BASE, pages=3) == "ww."
    do_munmap(mm, BASE + PAGE, 1)
    assert picture(mm, at=BASE, pages=3) == "w.."


def test_fixed_replaces_and_noreplace_refuses(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "wwww", at=BASE)
    store(mm, BASE + PAGE, b"old")
    refuses(errno.EEXIST, lambda: do_mmap(mm, BASE - PAGE, 2 * PAGE, RW, noreplace=True))
    assert load(mm, BASE + PAGE, 3) == b"old"
    do_mmap(mm, BASE + PAGE, 2 * PAGE, RIGHTS["r"], fixed=True)
    assert picture(mm, at=BASE, pages=4) == "w|rr|w"
    assert load(mm, BASE + PAGE, 3) == b"\0\0\0"
    assert do_mmap(mm, BASE + 4 * PAGE, PAGE, RW, noreplace=True) == BASE + 4 * PAGE
    check_links(mm)


def test_arguments_that_make_no_sense_are_einval(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    for call in (
        lambda: do_mmap(mm, None, 0, RW),
        lambda: do_mmap(mm, None, -PAGE, RW),
        lambda: do_mmap(mm, None, PAGE, RW, pgoff=-1),
        lambda: do_mmap(mm, BASE + 1, PAGE, RW, fixed=True),
        lambda: do_mmap(mm, None, PAGE, RW, fixed=True),
        lambda: do_munmap(mm, BASE + 1, PAGE),
        lambda: do_munmap(mm, BASE, 0),
        lambda: do_munmap(mm, mm.task_size - PAGE, 2 * PAGE),
        lambda: do_madvise_dontneed(mm, BASE + 1, PAGE),
    ):
        with pytest.raises(InvalidArgument):
            call()
    assert not mm.vmas


def test_beyond_the_address_space_is_enomem(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    refuses(errno.ENOMEM, lambda: do_mmap(mm, None, mm.task_size + PAGE, RW))
    refuses(errno.ENOMEM, lambda: do_mmap(mm, mm.task_size - PAGE, 2 * PAGE, RW, fixed=True))


def test_more_mappings_than_allowed_are_enomem() -> None:
    # Linux compares before it adds one, so that one more than the limit may exist.
    mm = new_mm(boot(vm_max_map_count=3))
    draw(mm, "rwrw", at=BASE)
    refuses(errno.ENOMEM, lambda: draw(mm, "r", at=BASE + 8 * PAGE))


def test_populate_leaves_no_first_touch(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    addr = do_mmap(mm, None, 40 * PAGE, RW, populate=True)
    assert mm.anon_rss == 40
    assert mm.nr_tables[-1] == 3
    assert load(mm, addr + 39 * PAGE) == b"\0"
    mmput(mm)


def test_populate_as_far_as_memory_goes_is_still_a_mapping() -> None:
    kernel = boot(memory=1 << 20)
    before = state(kernel)
    mm = new_mm(kernel)
    addr = do_mmap(mm, None, 300 * PAGE, RW, populate=True)
    assert 200 < mm.anon_rss < 256
    assert find_vma(mm, addr + 299 * PAGE) is not None
    mmput(mm)
    assert state(kernel) == before


def test_shared_anonymous_memory_lives_as_long_as_its_mappings(kernel: ArchKernel) -> None:
    before = state(kernel)
    mm = new_mm(kernel)
    addr = do_mmap(mm, None, 2 * PAGE, RW | VM_SHARED)
    store(mm, addr, b"all see")
    assert (mm.anon_rss, mm.file_rss) == (0, 1)
    assert kernel.mappings.live == before.mappings + 1
    do_munmap(mm, addr, 2 * PAGE)
    assert kernel.mappings.live == before.mappings
    mmput(mm)
    assert state(kernel) == before


def test_a_file_is_seen_through_its_mappings_from_the_page_asked_for(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 4 * PAGE, read_page=lambda index: b"page %d" % index)
    shared = do_mmap(mm, None, 2 * PAGE, RW | VM_SHARED, file=file, pgoff=2)
    private = do_mmap(mm, None, 4 * PAGE, RW, file=file)
    assert load(mm, shared + PAGE, 6) == b"page 3"
    store(mm, private + 3 * PAGE, b"mine")
    assert load(mm, shared + PAGE, 6) == b"page 3"
    store(mm, shared, b"ours")
    assert load(mm, private + 2 * PAGE, 6) == b"ours 2"
    assert file.references == 3


# --------------------------------------------------------------------- driver
class Driver:
    """A device that maps one frame of its own at a time and may change its mind half way."""

    def __init__(self, kernel: ArchKernel, *, pages: int, fails: bool) -> None:
        self.kernel, self.pages, self.fails = kernel, pages, fails
        self.tables_at_failure = 0

    def mmap(self, file: File, vma: vm_area_struct) -> None:
        mm = vma.vm_mm
        vma.vm_flags |= VM_PFNMAP
        for page in range(self.pages):
            addr = vma.vm_start + page * PAGE
            value = self.kernel.free.zero_page * PAGE | vma.vm_page_prot
            entry = alloc_entry(mm, addr)
            self.kernel.ops.set_pte(mm, addr, entry, np.array((value,), dtype=np.uint64))
        if self.fails:
            self.tables_at_failure = sum(mm.nr_tables)
            raise syscall_error(errno.ENODEV, "the device is gone")


def test_a_failed_driver_leaves_no_table_and_no_reference(kernel: ArchKernel) -> None:
    """A3.4: no vma would cover its tables afterwards, and exit would find them left over."""
    before = state(kernel)
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    store(mm, BASE)
    with_neighbour = state(kernel)
    driver = Driver(kernel, pages=20, fails=True)
    file = new_file(kernel, "dev", 0, mmap=driver.mmap)
    refuses(errno.ENODEV, lambda: do_mmap(mm, BASE + PAGE, 32 * PAGE, RW, fixed=True, file=file))
    assert driver.tables_at_failure > sum(mm.nr_tables)
    assert picture(mm, at=BASE, pages=3) == "w.."
    assert load(mm, BASE) == b"x"
    assert (mm.map_count, mm.total_vm, file.references) == (1, 1, 1)
    put_file(kernel, file)
    assert state(kernel) == with_neighbour
    mmput(mm)
    assert state(kernel) == before


def test_a_drivers_mapping_is_its_own(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    file = new_file(kernel, "dev", 0, mmap=Driver(kernel, pages=1, fails=False).mmap)
    for page in range(2):
        do_mmap(mm, BASE + page * PAGE, PAGE, VM_READ, fixed=True, file=file, pgoff=page)
    assert picture(mm, at=BASE, pages=2) == "r|r"
    assert load(mm, BASE) == b"\0"
    refuses(errno.EINVAL, lambda: do_madvise_dontneed(mm, BASE, PAGE))
    do_munmap(mm, BASE, 2 * PAGE)
    assert sum(mm.nr_tables) == 0


# --------------------------------------------------------------------- munmap
@pytest.mark.parametrize(
    ("start", "pages", "after"),
    [
        (0, 10, "....."),
        (2, 1, "ww.ww"),
        (0, 2, "..www"),
        (3, 2, "www.."),
        (-3, 5, "..www"),
        (4, 9, "wwww."),
        (5, 5, "wwwww"),
    ],
)
def test_munmap_takes_exactly_its_range(kernel: ArchKernel, start: int, pages: int, after: str) -> None:
    mm = new_mm(kernel)
    draw(mm, "wwwww", at=BASE)
    for page in range(5):
        store(mm, BASE + page * PAGE, b"%d" % page)
    do_munmap(mm, BASE + start * PAGE, pages * PAGE)
    assert picture(mm, at=BASE, pages=5).replace("|", "") == after
    check_links(mm)
    for page, letter in enumerate(after):
        if letter == "w":
            assert load(mm, BASE + page * PAGE) == b"%d" % page
        else:
            with pytest.raises(SegmentationFault):
                load(mm, BASE + page * PAGE)
    assert mm.anon_rss == after.count("w")


def test_munmap_of_many_vmas_in_one_call(kernel: ArchKernel) -> None:
    before = state(kernel)
    mm = new_mm(kernel)
    empty = state(kernel)
    for pmd in range(3):
        draw(mm, "wrwx..w", at=BASE + pmd * PMD)
        store(mm, BASE + pmd * PMD)
        store(mm, BASE + pmd * PMD + 6 * PAGE)
    do_munmap(mm, BASE, 3 * PMD)
    assert (mm.map_count, mm.total_vm, mm.anon_rss, sum(mm.nr_tables)) == (0, 0, 0, 0)
    assert state(kernel).held == empty.held
    mmput(mm)
    assert state(kernel) == before


def test_a_table_stays_while_a_neighbour_needs_it(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "wwww", at=BASE)
    for page in range(4):
        store(mm, BASE + page * PAGE)
    do_munmap(mm, BASE + PAGE, PAGE)
    assert mm.nr_tables[1:] == [1, 1]
    do_munmap(mm, BASE, PAGE)
    do_munmap(mm, BASE + 3 * PAGE, PAGE)
    assert mm.nr_tables[1:] == [1, 1]
    do_munmap(mm, BASE + 2 * PAGE, PAGE)
    assert mm.nr_tables[1:] == [0, 0]


def test_a_fresh_page_does_not_outlive_its_unmap_in_a_pagevec(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    empty = kernel.free.free
    store(mm, BASE)
    assert kernel.free.pagevecs[0]
    do_munmap(mm, BASE, PAGE)
    assert kernel.free.free == empty


# ------------------------------------------------------------------------ brk
def test_the_heap_grows_and_shrinks_in_bytes_but_maps_pages(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    start = mm.start_brk = mm.brk = BASE
    assert do_brk(mm, start + 1) == start + 1
    assert picture(mm, at=start, pages=3) == "w.."
    store(mm, start, b"heap")
    assert do_brk(mm, start + 2 * PAGE) == start + 2 * PAGE
    assert picture(mm, at=start, pages=3) == "ww."
    assert mm.map_count == 1
    assert do_brk(mm, start + PAGE) == start + PAGE
    assert picture(mm, at=start, pages=3) == "w.."
    assert load(mm, start, 4) == b"heap"
    assert do_brk(mm, start) == start
    assert not mm.vmas


def test_a_refused_brk_says_where_the_heap_is(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    start = mm.start_brk = mm.brk = BASE
    do_brk(mm, start + PAGE)
    draw(mm, "r", at=start + 4 * PAGE)
    assert do_brk(mm, 0) == start + PAGE  # asking
    assert do_brk(mm, start + 4 * PAGE) == start + PAGE  # a page must stay free
    assert do_brk(mm, mm.task_size + PAGE) == start + PAGE
    assert do_brk(mm, start + 3 * PAGE) == start + 3 * PAGE


# -------------------------------------------------------------------- madvise
def test_dontneed_drops_private_pages_and_keeps_the_files(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 4 * PAGE, read_page=lambda index: b"file")
    draw(mm, "ww", at=BASE)
    do_mmap(mm, BASE + 2 * PAGE, PAGE, RW, fixed=True, file=file)
    do_mmap(mm, BASE + 3 * PAGE, PAGE, RW | VM_SHARED, fixed=True, file=file, pgoff=1)
    for page in range(4):
        store(mm, BASE + page * PAGE, b"mine")
    do_madvise_dontneed(mm, BASE + PAGE, 3 * PAGE)
    assert [load(mm, BASE + page * PAGE, 4) for page in range(4)] == [b"mine", b"\0" * 4, b"file", b"mine"]
    assert picture(mm, at=BASE, pages=4) == "ww|w|w"


def test_dontneed_over_a_gap_does_its_work_and_reports_the_gap(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w.w", at=BASE)
    store(mm, BASE, b"a")
    store(mm, BASE + 2 * PAGE, b"b")
    refuses(errno.ENOMEM, lambda: do_madvise_dontneed(mm, BASE, 3 * PAGE))
    assert mm.anon_rss == 0
    refuses(errno.ENOMEM, lambda: do_madvise_dontneed(mm, BASE + 2 * PAGE, 2 * PAGE))
    do_madvise_dontneed(mm, BASE + PAGE, 0)


# ------------------------------------------------------- around every call
class CallLog(Observer):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def mm_call_begin(self, mm: mm_struct, name: str) -> None:
        self.calls.append(name)

    def mm_call_end(self, mm: mm_struct, name: str) -> None:
        self.calls.append("/" + name)


def test_calls_are_announced_and_cost_cycles_even_when_they_fail() -> None:
    log = CallLog()
    kernel = boot(observers=[log])
    mm = new_mm(kernel)
    do_mmap(mm, BASE, PAGE, RW, fixed=True)
    with pytest.raises(InvalidArgument):
        do_munmap(mm, BASE + 1, PAGE)
    do_munmap(mm, BASE, PAGE)
    mmput(mm)
    assert log.calls == ["mmap", "/mmap", "munmap", "/munmap", "munmap", "/munmap", "exit", "/exit"]
    assert kernel.sched.spent_on["syscall"] == 4 * kernel.description.costs.syscall
    assert not mm.mmap_lock.writer


def test_the_cost_of_munmap_does_not_grow_with_the_number_of_mappings() -> None:
    """Entries looked at, not seconds: one page's tables, whatever else is mapped."""

    class Visited(Observer):
        def __init__(self) -> None:
            self.n = 0

        def entries_visited(self, mm: mm_struct, what: str, n: int) -> None:
            self.n += n

    counts = []
    for neighbours in (1, 1000):
        visited = Visited()
        mm = new_mm(boot(observers=[visited]))
        draw(mm, "rw" * (neighbours // 2) + "r.w", at=PUD)
        store(mm, PUD + (neighbours // 2 * 2 + 2) * PAGE)
        do_munmap(mm, PUD + (neighbours // 2 * 2 + 2) * PAGE, PAGE)
        counts.append(visited.n)
    assert counts[0] == counts[1]
