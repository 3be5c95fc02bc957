"""Faults: which page comes, who may ask, and that nothing is lost when somebody else was faster or memory ends."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hardware.ram import NONZERO
from polymmu.hooks import ArchKernel
from polymmu.mm.access import STACK_LIMIT
from polymmu.mm.fault import handle_mm_fault, populate
from polymmu.mm.frames import get_page
from polymmu.mm.mm import mmput
from polymmu.mm.pagecache import new_file, put_file
from polymmu.mm.tables import find_entry
from polymmu.mm.truncate import do_truncate
from polymmu.structs import (
    PG_ANON,
    PG_DIRTY,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    FaultInfo,
    mm_struct,
)
from tests.mm.toy import (
    ARCHES,
    PAGE,
    PMD,
    PUD,
    RW,
    TOP,
    Faults,
    add_vma,
    boot,
    frame_at,
    load,
    new_mm,
    pte_at,
    pte_lock_held,
    running,
    state,
    store,
    touch,
)

STORE = FaultInfo(access="store", kind="not_present", user=True)


def faults_of(kernel: ArchKernel) -> Faults:
    faults = Faults()
    kernel.events.fault = faults.fault  # type: ignore[method-assign]
    return faults


# ------------------------------------------------------------------ anonymous memory
def test_a_first_store_gets_a_fresh_zeroed_page(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    faults = faults_of(kernel)
    add_vma(mm, PUD, PUD + PMD)
    store(mm, PUD + 5, b"abc")
    assert load(mm, PUD, 10) == b"\0\0\0\0\0abc\0\0"
    pfn = frame_at(mm, PUD)
    frames = kernel.frames
    assert (frames.mapcount[pfn], frames.refcount[pfn]) == (1, 2)  # the pte's, and the pagevec's
    assert frames.flags[pfn] & PG_ANON
    assert mm.anon_rss == 1
    assert faults.seen == [(PUD + 5, "minor", 1)]


def test_a_first_load_gets_the_zero_page_and_a_later_store_its_own(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    faults = faults_of(kernel)
    add_vma(mm, PUD, PUD + PMD)
    assert load(mm, PUD, 4) == bytes(4)
    assert frame_at(mm, PUD) == kernel.free.zero_page
    assert mm.anon_rss == 0
    store(mm, PUD, b"abc")
    assert frame_at(mm, PUD) != kernel.free.zero_page
    assert kernel.ram.read(kernel.free.zero_page * PAGE, PAGE) == bytes(PAGE)
    assert mm.anon_rss == 1
    assert [kind for _, kind, _ in faults.seen] == ["minor", "cow"]


def test_a_page_that_nobody_else_maps_is_made_writable_in_place(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    faults = faults_of(kernel)
    vma = add_vma(mm, 0, PMD)
    store(mm, 0, b"mine")
    pfn = frame_at(mm, 0)
    kernel.ops.set_wrprotect(mm, 0, find_entry(mm, 0), 1)
    kernel.ops.flush_tlb_page(vma, 0)
    store(mm, 0, b"more")
    assert frame_at(mm, 0) == pfn
    assert [kind for _, kind, _ in faults.seen] == ["minor", "protection"]


@pytest.mark.parametrize("filled", [True, False])
def test_a_page_that_another_pte_maps_is_copied_with_its_bytes(mm: mm_struct, filled: bool) -> None:
    kernel: ArchKernel = mm.kernel
    frames = kernel.frames
    vma = add_vma(mm, 0, PMD)
    touch(mm, 0)
    old = frame_at(mm, 0)
    if filled:
        store(mm, 100, b"bytes")
    get_page(kernel, old)  # another mm's pte
    frames.mapcount[old] += 1
    kernel.ops.set_wrprotect(mm, 0, find_entry(mm, 0), 1)
    kernel.ops.flush_tlb_page(vma, 0)
    store(mm, 0, b"x")
    new = frame_at(mm, 0)
    assert new != old
    assert load(mm, 100, 5) == (b"bytes" if filled else bytes(5))
    assert frames.mapcount[old] == 1
    assert mm.anon_rss == 1
    if not filled:
        assert not frames.flags[old] & NONZERO


# ------------------------------------------------------------------ rights
@pytest.mark.parametrize(
    ("flags", "access", "reason"),
    [
        (VM_READ, "store", "mapping is not writable"),
        (0, "load", "mapping is not readable"),
        (RW, "fetch", "mapping is not executable"),
        (VM_READ | VM_EXEC, "store", "mapping is not writable"),
    ],
)
def test_what_the_vma_does_not_grant_is_refused(mm: mm_struct, flags: int, access: str, reason: str) -> None:
    faults = faults_of(mm.kernel)
    add_vma(mm, PUD, PUD + PMD, flags)
    with pytest.raises(SegmentationFault) as refused:
        getattr(running(mm), access)(PUD + 3, b"x" if access == "store" else 1)
    assert (refused.value.va, refused.value.access, refused.value.reason) == (PUD + 3, access, reason)
    assert faults.seen == [(PUD + 3, "segv", 1)]
    assert mm.mmap_lock.readers == 0


def test_a_writable_mapping_can_be_read_where_hardware_has_no_read_right(mm: mm_struct) -> None:
    add_vma(mm, 0, PMD, VM_WRITE)
    assert load(mm, 0) == b"\0"


@pytest.mark.parametrize("addr", [PUD - 1, PUD + PMD, TOP - 1])
def test_an_address_outside_every_mapping_is_refused(mm: mm_struct, addr: int) -> None:
    add_vma(mm, PUD, PUD + PMD)
    with pytest.raises(SegmentationFault, match="no mapping here"):
        load(mm, addr)


def test_an_address_beyond_what_the_mmu_translates_is_refused(mm: mm_struct) -> None:
    with pytest.raises(SegmentationFault, match="not an address of this machine"):
        load(mm, TOP)


# ------------------------------------------------------------------ stacks
def test_a_stack_grows_down_to_where_it_is_touched(mm: mm_struct) -> None:
    vma = add_vma(mm, TOP - PMD, TOP, RW | VM_GROWSDOWN)
    mm.total_vm = 16
    pgoff = vma.vm_pgoff
    store(mm, TOP - 3 * PMD + 7, b"deep")
    assert (vma.vm_start, vma.vm_end) == (TOP - 3 * PMD, TOP)
    assert vma.vm_pgoff == pgoff - 32
    assert mm.total_vm == 48
    assert mm.vmas.peekitem(0) == (TOP - 3 * PMD, vma)


def test_a_stack_leaves_a_guard_page_above_the_mapping_below(mm: mm_struct) -> None:
    vma = add_vma(mm, TOP - PMD, TOP, RW | VM_GROWSDOWN)
    add_vma(mm, TOP - 2 * PUD, TOP - PUD)
    with pytest.raises(SegmentationFault, match="into another mapping"):
        store(mm, TOP - PUD)
    store(mm, TOP - PUD + PAGE)
    assert vma.vm_start == TOP - PUD + PAGE


def test_a_stack_stops_at_its_limit(mm: mm_struct) -> None:
    vma = add_vma(mm, TOP - PMD, TOP, RW | VM_GROWSDOWN)
    with pytest.raises(SegmentationFault, match="8 MiB"):
        store(mm, TOP - STACK_LIMIT - 1)
    store(mm, TOP - STACK_LIMIT)
    assert vma.vm_start == TOP - STACK_LIMIT


# ------------------------------------------------------------------ files
def contents(index: int) -> bytes:
    return bytes([index + 1]) * PAGE


def test_a_private_mapping_reads_the_cache_and_writes_a_copy(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    file = new_file(kernel, "f", 4 * PAGE, read_page=contents)
    add_vma(mm, PUD, PUD + 4 * PAGE, file=file, pgoff=0)
    assert load(mm, PUD + PAGE, 2) == b"\2\2"
    cached = file.mapping.pages[1]
    assert frame_at(mm, PUD + PAGE) == cached
    assert (mm.file_rss, mm.anon_rss) == (1, 0)
    store(mm, PUD + PAGE, b"x")  # a store to a page already mapped
    store(mm, PUD + 2 * PAGE, b"y")  # and one that is not
    assert load(mm, PUD + PAGE, 2) == b"x\2"
    assert load(mm, PUD + 2 * PAGE, 2) == b"y\3"
    assert (mm.file_rss, mm.anon_rss) == (0, 2)
    assert kernel.ram.read(cached * PAGE, 2) == b"\2\2"
    assert kernel.frames.mapcount[cached] == 0


def test_a_shared_mapping_writes_the_cached_page(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    file = new_file(kernel, "f", PAGE, read_page=contents)
    add_vma(mm, PUD, PUD + PAGE, RW | VM_SHARED, file=file, pgoff=0)
    add_vma(mm, 2 * PUD, 2 * PUD + PAGE, VM_READ | VM_SHARED, file=file, pgoff=0)
    store(mm, PUD + 1, b"x")
    assert load(mm, 2 * PUD, 3) == b"\1x\1"
    cached = file.mapping.pages[0]
    assert kernel.frames.flags[cached] & PG_DIRTY
    assert kernel.frames.mapcount[cached] == 2
    assert mm.file_rss == 2


def test_a_touch_beyond_the_last_page_of_a_file_is_refused(mm: mm_struct) -> None:
    file = new_file(mm.kernel, "f", PAGE + 1)
    add_vma(mm, 0, 4 * PAGE, file=file, pgoff=0)
    assert load(mm, 2 * PAGE - 1) == b"\0"
    with pytest.raises(SegmentationFault, match="beyond the end of the file"):
        load(mm, 2 * PAGE)


def test_a_file_cut_while_its_page_is_read_maps_nothing(mm: mm_struct) -> None:
    """A1.8: the page is checked again below the table lock."""
    kernel: ArchKernel = mm.kernel

    def read(index: int) -> bytes:
        do_truncate(kernel, file, 0)
        return b"late"

    file = new_file(kernel, "f", PAGE, read_page=read)
    add_vma(mm, 0, PAGE, file=file, pgoff=0)
    # The page goes into the cache after the truncation that ran meanwhile; the size says it may not be mapped.
    with pytest.raises(SegmentationFault, match="beyond the end"):
        load(mm, 0)
    assert frame_at(mm, 0) == -1
    assert not pte_lock_held(mm, 0)


# ------------------------------------------------------------------ somebody else was faster
def during(kernel: ArchKernel, what: str, action: Callable[[], None]) -> None:
    """Run ``action`` inside the next allocation for ``what``: that is where a fault may sleep."""

    def once(asked: str) -> bool:
        if asked == what:
            kernel.free.fail_next = None
            action()
        return False

    kernel.free.fail_next = once


@pytest.mark.parametrize("what", ["anon", "table.pte"])
def test_the_slower_of_two_faults_gives_its_page_or_table_back(mm: mm_struct, what: str) -> None:
    kernel: ArchKernel = mm.kernel
    before = state(kernel)
    add_vma(mm, PUD, PUD + PMD)
    if what == "anon":
        touch(mm, PUD + PAGE)  # the tables are there

    def other_thread() -> None:
        mm.mmap_lock.readers -= 1  # it holds it beside us
        touch(mm, PUD)
        mm.mmap_lock.readers += 1

    during(kernel, what, other_thread)
    touch(mm, PUD)
    assert mm.anon_rss == (2 if what == "anon" else 1)
    assert mm.nr_tables == [0, 1, 1]
    mmput(mm)
    assert kernel.free.free > before.free  # the root went too
    assert state(kernel).held == before.held - 1


def test_a_copy_that_somebody_else_made_first_is_thrown_away(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    add_vma(mm, 0, PMD)
    touch(mm, 0, "load")
    before = state(kernel).held

    def other_thread() -> None:
        touch(mm, 0, "store", kind="protection")

    during(kernel, "anon", other_thread)
    touch(mm, 0, "store", kind="protection")
    assert state(kernel).held == before + 1
    assert mm.anon_rss == 1


# ------------------------------------------------------------------ out of memory
@pytest.mark.parametrize("access", ["load", "store"])
@pytest.mark.parametrize("kind", ["anonymous", "private", "shared"])
@pytest.mark.parametrize("arch", sorted(ARCHES))
def test_a_fault_that_finds_no_memory_leaves_nothing_behind(arch: str, kind: str, access: str) -> None:
    """Fail the first allocation, then the second, and so on, until the access goes through."""
    for failing in range(10):
        kernel = boot(ARCHES[arch])
        before = state(kernel)
        mm = new_mm(kernel)
        file = None if kind == "anonymous" else new_file(kernel, "f", PMD, read_page=contents)
        flags = RW | VM_SHARED if kind == "shared" else RW
        add_vma(mm, PUD, PUD + PMD, flags, file=file, pgoff=0)
        count = iter(range(100))
        kernel.free.fail_next = lambda what, n=failing, count=count: next(count) == n
        try:
            touch(mm, PUD, access)
            done = True
        except SyscallError as error:
            assert error.errno == errno.ENOMEM
            done = False
        kernel.free.fail_next = None
        mmput(mm)
        if file is not None:
            put_file(kernel, file)
        assert state(kernel) == before
        if done:
            # Two tables; a private page with its anon_vma; a page of the file.
            assert failing == 2 + 2 * (access == "store") * (kind != "shared") + (file is not None)
            return
    pytest.fail("the access never went through")


# ------------------------------------------------------------------ first touches ahead
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 63), min_size=1, max_size=40, unique=True),
    st.sampled_from(["store", "load"]),
    st.sampled_from(sorted(ARCHES)),
    st.integers(1, 16),
)
def test_pages_mapped_ahead_are_as_if_each_had_faulted(
    order: list[int], access: str, arch: str, pagevec: int
) -> None:
    info = FaultInfo(access=access, kind="not_present", user=True)
    one, many = (new_mm(boot(ARCHES[arch], pagevec=pagevec)) for _ in range(2))
    pages = [PUD + page * PAGE for page in order]
    for mm in (one, many):
        add_vma(mm, PUD, PUD + 4 * PMD)
    for page in pages:
        handle_mm_fault(one.kernel, one, page, info)
    ahead = np.array(pages[1:], dtype=np.uint64)
    faults = faults_of(many.kernel)
    handle_mm_fault(many.kernel, many, pages[0], info, lambda low, high, limit: ahead)
    assert faults.seen == [(pages[0], "minor", len(pages))]
    assert (one.kernel.frames.table == many.kernel.frames.table).all()
    used = one.kernel.free.bump * PAGE
    assert one.kernel.ram.read(0, used) == many.kernel.ram.read(0, used)
    assert one.kernel.free.pagevecs == many.kernel.free.pagevecs
    assert (one.anon_rss, one.nr_tables) == (many.anon_rss, many.nr_tables)


def test_mapping_ahead_stops_where_memory_ends() -> None:
    kernel = boot()
    mm = new_mm(kernel)
    add_vma(mm, PUD, PUD + PMD)
    count = iter(range(100))
    kernel.free.fail_next = lambda what: what == "anon" and next(count) >= 3
    faults = faults_of(kernel)
    ahead = np.arange(PUD + PAGE, PUD + PMD, PAGE, dtype=np.uint64)
    handle_mm_fault(kernel, mm, PUD, STORE, lambda low, high, limit: ahead)
    assert mm.anon_rss == 3
    assert faults.seen == [(PUD, "minor", 3)]


# ------------------------------------------------------------------ populate
@pytest.mark.parametrize("flags", [RW, VM_READ])
def test_populate_brings_what_touching_every_page_would(kernel: ArchKernel, flags: int) -> None:
    mm, other = new_mm(kernel), new_mm(kernel)
    for each in (mm, other):
        add_vma(each, PUD + PAGE, PUD + 3 * PMD, flags)
    touch(mm, PUD + 5 * PAGE, "load")  # one is there already
    faults = faults_of(kernel)
    populate(mm.vmas[PUD + PAGE], PUD + PAGE, PUD + 3 * PMD)
    assert sum(n for _, _, n in faults.seen) == 47 - 1
    for page in range(PUD + PAGE, PUD + 3 * PMD, PAGE):
        touch(other, page, "store" if flags & VM_WRITE else "load")
    assert other.nr_tables == mm.nr_tables
    assert other.anon_rss == mm.anon_rss + (1 if flags & VM_WRITE else 0)
    bits = kernel.shape.pte.frame_mask
    assert pte_at(mm, 2 * PMD + PUD) & ~bits == pte_at(other, 2 * PMD + PUD) & ~bits


def test_populate_of_a_file_stops_at_its_end_and_copies_private_pages(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 5 * PAGE, read_page=contents)
    vma = add_vma(mm, 0, PMD, file=file, pgoff=2)
    populate(vma, 0, PMD)
    assert (mm.anon_rss, mm.file_rss) == (3, 0)
    assert load(mm, 0) == b"\3"
    shared = add_vma(mm, PUD, PUD + PMD, RW | VM_SHARED, file=file, pgoff=0)
    touch(mm, PUD + PAGE, "load")
    faults = faults_of(kernel)
    populate(shared, PUD, PUD + PMD)
    assert faults.seen == [(PUD, "minor", 4)]  # one was there already
    assert mm.file_rss == 5
    assert not kernel.frames.flags[file.mapping.pages[0]] & PG_DIRTY


def test_populate_says_nothing_when_memory_ends() -> None:
    kernel = boot()
    before = state(kernel)
    mm = new_mm(kernel)
    vma = add_vma(mm, 0, PUD)
    count = iter(range(1000))
    kernel.free.fail_next = lambda what: next(count) >= 30
    populate(vma, 0, PUD)
    kernel.free.fail_next = None
    assert 0 < mm.anon_rss < 30
    mmput(mm)
    assert state(kernel) == before
