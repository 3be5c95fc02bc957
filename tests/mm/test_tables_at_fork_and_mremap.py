"""Copying, moving and protecting page-table entries in bulk."""

from __future__ import annotations

import pytest

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hooks import ArchKernel
from polymmu.mm.anon_vma import anon_vma_clone
from polymmu.mm.copy import copy_page_range
from polymmu.mm.mm import activate, mmput
from polymmu.mm.move import move_page_tables
from polymmu.mm.pagecache import new_file, put_file
from polymmu.mm.protect import change_protection
from polymmu.mm.vma import set_vma_flags
from polymmu.structs import VM_READ, VM_SHARED, VM_WRITE, mm_struct
from tests.mm.toy import (
    ARCHES,
    PAGE,
    PMD,
    PUD,
    RW,
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


# ------------------------------------------------------------------ fork
def forked(parent: mm_struct) -> mm_struct:
    """A child with the parent's vmas and pages; the parent runs on."""
    kernel: ArchKernel = parent.kernel
    child = new_mm(kernel)
    for vma in list(parent.vmas.values()):
        copy = add_vma(child, vma.vm_start, vma.vm_end, vma.vm_flags, file=vma.vm_file, pgoff=vma.vm_pgoff)
        anon_vma_clone(copy, vma)
        copy_page_range(child, parent, vma)
    kernel.ops.flush_tlb_mm(parent)
    return child


def run(mm: mm_struct) -> None:
    """CPU 0 runs ``mm``."""
    activate(mm.kernel, mm.kernel.cpus[0], mm)


def test_after_a_fork_each_side_sees_its_own_stores(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    add_vma(mm, PUD, PUD + PMD)
    store(mm, PUD, b"old")
    shared_frame = frame_at(mm, PUD)
    child = forked(mm)
    assert frame_at(child, PUD) == shared_frame
    assert kernel.frames.mapcount[shared_frame] == 2
    assert (mm.anon_rss, child.anon_rss) == (1, 1)
    store(child, PUD, b"new")
    run(mm)
    assert load(mm, PUD, 3) == b"old"
    store(mm, PUD, b"own")
    assert frame_at(mm, PUD) == shared_frame  # the child left it; nothing to copy any more
    run(child)
    assert load(child, PUD, 3) == b"new"


def test_the_parent_copies_too_while_the_child_still_maps_the_page(mm: mm_struct) -> None:
    add_vma(mm, PUD, PUD + PMD)
    store(mm, PUD, b"old")
    child = forked(mm)
    run(mm)
    store(mm, PUD, b"new")
    assert frame_at(mm, PUD) != frame_at(child, PUD)
    run(child)
    assert load(child, PUD, 3) == b"old"


def test_what_a_fault_can_bring_back_is_not_copied(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    file = new_file(kernel, "f", PMD)
    add_vma(mm, 0, PMD, RW | VM_SHARED, file=file, pgoff=0)
    add_vma(mm, PUD, PUD + PMD)
    touch(mm, 0)
    touch(mm, PUD, "load")
    child = forked(mm)
    assert live_tables(child) == set()
    assert load(child, 0) == b"\0"


def test_the_zero_page_is_copied_as_it_is(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    add_vma(mm, 0, PMD)
    touch(mm, 0)
    touch(mm, PAGE, "load")
    child = forked(mm)
    assert frame_at(child, PAGE) == kernel.free.zero_page
    assert kernel.frames.refcount[kernel.free.zero_page] == 1
    assert child.anon_rss == 1


@pytest.mark.parametrize("arch", sorted(ARCHES))
def test_a_fork_without_memory_for_tables_fails_and_costs_nothing(arch: str) -> None:
    kernel = boot(ARCHES[arch])
    before = state(kernel)
    mm = new_mm(kernel)
    add_vma(mm, 0, PUD)
    touch(mm, 0)
    touch(mm, 5 * PMD)
    child = new_mm(kernel)
    count = iter(range(10))
    kernel.free.fail_next = lambda what: next(count) == 2
    with pytest.raises(SyscallError):
        copy_page_range(child, mm, mm.vmas[0])
    kernel.free.fail_next = None
    add_vma(child, 0, PUD)
    assert child.anon_rss == 1
    mmput(child)
    assert frame_at(mm, 5 * PMD) >= 0
    mmput(mm)
    assert state(kernel) == before


# ------------------------------------------------------------------ mremap
def moved(mm: mm_struct, old: int, new: int, length: int) -> int:
    source = add_vma(mm, old, old + length)
    target = add_vma(mm, new, new + length)
    for offset in range(0, length, 3 * PAGE):
        store(mm, old + offset, offset.to_bytes(4, "little"))
    return move_page_tables(source, old, target, new, length)


@pytest.mark.parametrize("old", [PUD, PUD + 3 * PAGE])
@pytest.mark.parametrize("new", [4 * PUD, 4 * PUD + 5 * PAGE, 4 * PUD + PMD])
@pytest.mark.parametrize("length", [PAGE, PMD, 5 * PMD + 2 * PAGE])
def test_bytes_are_found_at_the_new_address_and_not_at_the_old(
    mm: mm_struct, old: int, new: int, length: int
) -> None:
    assert moved(mm, old, new, length) == length
    rss = mm.anon_rss
    for offset in range(0, length, PAGE):
        expected = offset % (3 * PAGE) == 0
        assert (frame_at(mm, new + offset) >= 0) is expected
        assert frame_at(mm, old + offset) == -1
        if expected:
            assert load(mm, new + offset, 4) == offset.to_bytes(4, "little")
    assert mm.anon_rss == rss


def test_a_table_whose_both_addresses_are_aligned_is_hooked_over(mm: mm_struct) -> None:
    """Linux 5.0: as many page tables as before; the pmd table of the old place stays until it is unmapped."""
    moved(mm, PUD, 4 * PUD + PMD, 2 * PMD)
    assert live_tables(mm) == {(1, PUD), (1, 4 * PUD), (2, 4 * PUD + PMD), (2, 4 * PUD + 2 * PMD)}
    assert mm.nr_tables == [0, 2, 2]


def test_a_table_is_not_hooked_over_one_that_is_there(mm: mm_struct) -> None:
    add_vma(mm, 4 * PUD + PMD, 4 * PUD + 2 * PMD)
    touch(mm, 4 * PUD + PMD)
    moved(mm, PUD, 4 * PUD, PMD)
    assert live_tables(mm) == {(1, PUD), (1, 4 * PUD), (2, 4 * PUD), (2, 4 * PUD + PMD)}
    vma = mm.vmas[4 * PUD + PMD]
    source = mm.vmas[4 * PUD]
    assert move_page_tables(source, 4 * PUD, vma, 4 * PUD + PMD, PMD) == PMD
    assert live_tables(mm) == {(1, PUD), (1, 4 * PUD), (2, 4 * PUD), (2, 4 * PUD + PMD)}


def test_old_translations_are_flushed_before_the_lock_is_dropped(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    held: list[tuple[bool, bool]] = []
    target = iter((4 * PUD + PAGE, 4 * PUD + PMD))
    kernel.events.shootdown = lambda mm, kind, cpus: held.append(  # type: ignore[method-assign]
        (pte_lock_held(mm, PUD), pte_lock_held(mm, next(target)))
    )
    moved(mm, PUD, 4 * PUD + PAGE, PMD)
    assert held == [(True, True)] * 2  # one per extent; both tables' locks


def test_a_move_without_memory_says_how_far_it_came() -> None:
    kernel = boot()
    mm = new_mm(kernel)
    source, target = add_vma(mm, 0, 4 * PMD), add_vma(mm, 4 * PUD + PAGE, 4 * PUD + PAGE + 4 * PMD)
    for page in range(64):
        touch(mm, page * PAGE)
    count = iter(range(100))
    kernel.free.fail_next = lambda what: what.startswith("table.") and next(count) == 3
    done = move_page_tables(source, 0, target, 4 * PUD + PAGE, 4 * PMD)
    assert done == 2 * PMD - PAGE  # the pmd table and two page tables were to be had
    assert move_page_tables(target, 4 * PUD + PAGE, source, 0, done) == done
    assert all(frame_at(mm, page * PAGE) >= 0 for page in range(64))


# ------------------------------------------------------------------ mprotect
def protect(mm: mm_struct, addr: int, end: int, flags: int) -> None:
    kernel: ArchKernel = mm.kernel
    vma = mm.vmas[addr]
    set_vma_flags(vma, flags)
    change_protection(vma, addr, end, vma.vm_page_prot)
    kernel.ops.flush_tlb_range(vma, addr, end)


def test_rights_go_and_come_back_and_the_pages_stay(mm: mm_struct) -> None:
    add_vma(mm, PUD, PUD + PMD)
    store(mm, PUD, b"kept")
    pfn = frame_at(mm, PUD)
    protect(mm, PUD, PUD + PMD, VM_READ)
    assert load(mm, PUD, 4) == b"kept"
    with pytest.raises(SegmentationFault):
        store(mm, PUD)
    protect(mm, PUD, PUD + PMD, 0)
    with pytest.raises(SegmentationFault):
        load(mm, PUD)
    assert frame_at(mm, PUD) == pfn
    protect(mm, PUD, PUD + PMD, RW)
    store(mm, PUD + 4, b"!")
    assert load(mm, PUD, 5) == b"kept!"
    assert (frame_at(mm, PUD), mm.anon_rss) == (pfn, 1)


def test_what_hardware_noted_survives_a_change_of_rights(mm: mm_struct) -> None:
    kernel: ArchKernel = mm.kernel
    dirty = kernel.shape.pte.dirty
    assert dirty is not None
    add_vma(mm, 0, PMD)
    store(mm, 0)
    load(mm, PAGE)
    protect(mm, 0, PMD, VM_READ)
    assert dirty.test(pte_at(mm, 0))
    assert not dirty.test(pte_at(mm, PAGE))


@pytest.mark.parametrize(
    ("first", "then", "lost"),
    [
        (RW | VM_SHARED, VM_READ | VM_SHARED, True),
        (VM_READ, 0, True),
        (0, VM_READ, False),
        (VM_READ, RW, False),
    ],
)
def test_only_a_loss_of_rights_is_told(mm: mm_struct, first: int, then: int, lost: bool) -> None:
    kernel: ArchKernel = mm.kernel
    told: list[str] = []
    file = new_file(kernel, "f", PMD) if first & VM_SHARED else None
    add_vma(mm, 0, PMD, first or VM_READ, file=file, pgoff=0)
    touch(mm, 0, "store" if first & VM_WRITE else "load")
    if not first:
        protect(mm, 0, PMD, 0)
    kernel.events.entries_changed = lambda mm, start, end, n, what: told.append(what)  # type: ignore[method-assign]
    protect(mm, 0, PMD, then)
    assert told == (["wrprotect"] if lost else [])
    mmput(mm)
    if file is not None:
        put_file(kernel, file)
