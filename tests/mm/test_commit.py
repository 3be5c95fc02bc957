"""Committed memory: what is charged and when, what refuses, and that every way back gives back exactly that."""

from __future__ import annotations

import errno

import pytest

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hooks import ArchKernel
from polymmu.machine import Machine
from polymmu.mm.exec import exec_mm
from polymmu.mm.fork import dup_mm
from polymmu.mm.mm import mmput
from polymmu.mm.mmap import do_brk, do_mmap, do_munmap
from polymmu.mm.mprotect import do_mprotect
from polymmu.mm.mremap import do_mremap
from polymmu.mm.pagecache import new_file, put_file
from polymmu.structs import VM_GROWSDOWN, VM_NORESERVE, VM_READ, VM_SHARED, mm_struct
from tests.mm.toy import PAGE, PMD, RW, boot, new_mm, store

BASE = 0x100000
PAGES = 1024
"""Of a toy's 4 MiB."""


def mapped(mm: mm_struct, pages: int, flags: int = RW, at: int = BASE) -> int:
    return do_mmap(mm, at, pages * PAGE, flags, fixed=True)


@pytest.mark.parametrize(
    ("flags", "charged"),
    [
        (RW, 7),
        (VM_READ, 0),
        (0, 0),
        (RW | VM_SHARED, 7),
        (VM_READ | VM_SHARED, 7),
        (RW | VM_NORESERVE, 0),
        (RW | VM_SHARED | VM_NORESERVE, 0),
    ],
    ids=["private", "read only", "none", "shared", "shared, read only", "noreserve", "shared noreserve"],
)
def test_private_memory_that_may_be_written_is_charged_and_shared_memory_with_its_file(
    kernel: ArchKernel, flags: int, charged: int
) -> None:
    mm = new_mm(kernel)
    mapped(mm, 7, flags)
    assert kernel.vm_committed == charged
    do_munmap(mm, BASE + 2 * PAGE, 3 * PAGE)
    assert kernel.vm_committed == (charged if flags & VM_SHARED else max(charged - 3, 0))
    do_munmap(mm, BASE, 7 * PAGE)
    assert kernel.vm_committed == 0


def test_a_private_mapping_of_a_file_is_charged_and_a_shared_one_is_not(mm: mm_struct) -> None:
    kernel = mm.kernel
    file = new_file(kernel, "f", 8 * PAGE)
    do_mmap(mm, BASE, 8 * PAGE, RW | VM_SHARED, fixed=True, file=file)
    assert kernel.vm_committed == 0
    do_mmap(mm, BASE, 8 * PAGE, RW, fixed=True, file=file)
    assert kernel.vm_committed == 8
    put_file(kernel, file)
    mmput(mm)
    assert kernel.vm_committed == 0


def test_a_part_is_charged_when_it_becomes_writable_and_once(mm: mm_struct) -> None:
    kernel = mm.kernel
    mapped(mm, 8, VM_READ)
    do_mprotect(mm, BASE + 2 * PAGE, 4 * PAGE, RW)
    assert kernel.vm_committed == 4
    store(mm, BASE + 2 * PAGE)
    do_mprotect(mm, BASE + 2 * PAGE, 4 * PAGE, VM_READ)
    assert kernel.vm_committed == 4, "it has a page of its own, which a fork would have to copy"
    do_mprotect(mm, BASE, 8 * PAGE, RW)
    assert kernel.vm_committed == 8
    mmput(mm)
    assert kernel.vm_committed == 0


def test_what_was_never_written_gives_its_charge_back_with_its_right(mm: mm_struct) -> None:
    mapped(mm, 8)
    do_mprotect(mm, BASE, 3 * PAGE, VM_READ)
    assert mm.kernel.vm_committed == 5


def test_heap_stack_growth_and_mremap(mm: mm_struct) -> None:
    kernel = mm.kernel
    mm.start_brk = mm.brk = 8 * PMD
    do_brk(mm, 8 * PMD + 5 * PAGE)
    assert kernel.vm_committed == 5
    do_brk(mm, 8 * PMD)
    assert kernel.vm_committed == 0
    mapped(mm, 2, RW | VM_GROWSDOWN, at=12 * PMD)
    store(mm, 12 * PMD - 3 * PAGE)
    assert kernel.vm_committed == 5
    do_munmap(mm, 12 * PMD - 3 * PAGE, 5 * PAGE)
    mapped(mm, 2)
    do_mremap(mm, BASE, 2 * PAGE, 6 * PAGE)
    assert kernel.vm_committed == 6
    do_mremap(mm, BASE, 6 * PAGE, 9 * PAGE, new_addr=BASE + 8 * PMD)
    assert kernel.vm_committed == 9
    do_mremap(mm, BASE + 8 * PMD, 9 * PAGE, PAGE)
    assert kernel.vm_committed == 1


def test_fork_charges_the_child_and_exec_gives_the_old_program_back(mm: mm_struct) -> None:
    kernel = mm.kernel
    mapped(mm, 10)
    child = dup_mm(mm)
    assert kernel.vm_committed == 20
    new = exec_mm(kernel, child)
    assert kernel.vm_committed == 10 + 33
    mmput(new)
    mmput(mm)
    assert kernel.vm_committed == 0


# ------------------------------------------------------------------ refusals
def strict(ratio: int = 10) -> tuple[ArchKernel, mm_struct, int]:
    """A kernel that does not overcommit, a program, and how many pages may be committed."""
    kernel = boot(overcommit="never", overcommit_ratio=ratio)
    return kernel, new_mm(kernel), PAGES * ratio // 100


def refused(call: object, *args: object) -> bool:
    assert callable(call)
    try:
        call(*args)
    except SyscallError as error:
        assert error.errno == errno.ENOMEM
        return True
    return False


def test_never_means_up_to_the_limit_and_no_page_more() -> None:
    kernel, mm, limit = strict()
    mapped(mm, limit)
    assert refused(mapped, mm, 1, RW, BASE + (limit + 1) * PAGE)
    assert kernel.vm_committed == limit
    do_munmap(mm, BASE, PAGE)
    mapped(mm, 1, RW, BASE + (limit + 1) * PAGE)


def test_each_way_to_commit_more_is_refused_and_leaves_the_account_as_it_was() -> None:
    kernel, mm, limit = strict()
    mapped(mm, limit - 2)
    mm.start_brk = mm.brk = 12 * 16 * PMD
    ro = mapped(mm, 8, VM_READ, BASE + 16 * PMD)
    stack = mapped(mm, 1, RW | VM_GROWSDOWN, at=BASE + 24 * PMD)
    before = kernel.vm_committed
    assert refused(do_mprotect, mm, ro, 8 * PAGE, RW)
    assert refused(do_mremap, mm, BASE, (limit - 2) * PAGE, limit * PAGE)
    assert refused(dup_mm, mm)
    assert refused(do_mmap, mm, None, 2 * PAGE, RW | VM_SHARED)
    assert do_brk(mm, mm.brk + 2 * PAGE) == 12 * 16 * PMD
    with pytest.raises(SegmentationFault, match="committed"):
        store(mm, stack - 2 * PAGE)
    assert kernel.vm_committed == before == limit - 1
    mmput(mm)
    assert kernel.vm_committed == 0


def test_a_move_needs_no_more_than_it_grows_by() -> None:
    kernel, mm, limit = strict()
    mapped(mm, limit)
    do_mremap(mm, BASE, limit * PAGE, limit * PAGE, new_addr=BASE + 32 * PMD)
    assert kernel.vm_committed == limit


def test_a_failed_split_takes_its_charge_back() -> None:
    kernel = boot(vm_max_map_count=1)
    mm = new_mm(kernel)
    mapped(mm, 8, VM_READ)
    assert refused(do_mprotect, mm, BASE + 2 * PAGE, 2 * PAGE, RW)
    assert kernel.vm_committed == 0


def test_heuristic_refuses_only_what_could_never_be_there() -> None:
    kernel = boot(overcommit="heuristic")
    mm = new_mm(kernel)
    assert refused(mapped, mm, PAGES + 1)
    mapped(mm, PAGES)
    mapped(mm, PAGES, RW, BASE + 65 * PMD)
    assert kernel.vm_committed == 2 * PAGES


@pytest.mark.parametrize(("overcommit", "limit"), [("never", 1024 + 1023), ("heuristic", 2048 + 1023)])
def test_the_swap_area_adds_its_slots_but_the_first_which_is_never_used(overcommit: str, limit: int) -> None:
    sets = ["memory=8 MiB", "swap=4 MiB", f"kernel.overcommit={overcommit}"]
    mm = Machine.from_file("x86", sets=sets).new_mm()
    assert refused(mm.mmap, (limit + 1) * PAGE)
    mm.mmap(limit * PAGE)


# ------------------------------------------------------------------ high-water marks
def test_high_water_marks_are_raised_before_what_they_mark_falls(mm: mm_struct) -> None:
    mapped(mm, 10)
    for page in range(6):
        store(mm, BASE + page * PAGE)
    do_munmap(mm, BASE, 4 * PAGE)
    assert (mm.hiwater_vm, mm.total_vm) == (10, 6)
    assert (mm.hiwater_rss, mm.anon_rss) == (6, 2)
    mapped(mm, 1, RW, BASE)
    do_munmap(mm, BASE, 10 * PAGE)
    assert (mm.hiwater_vm, mm.hiwater_rss) == (10, 6)
