"""fork, exec, exit and the counts that keep an address space alive."""

from __future__ import annotations

import errno

import pytest

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hooks import ArchKernel
from polymmu.mm.exec import exec_mm
from polymmu.mm.fork import dup_mm
from polymmu.mm.mm import activate, mm_alloc, mmput
from polymmu.mm.mmap import do_mmap, do_munmap
from polymmu.mm.pagecache import new_file
from polymmu.mm.vma import find_vma, vmas_of
from polymmu.structs import VM_DONTCOPY, VM_GROWSDOWN, VM_SHARED, mm_struct
from tests.mm.programs import PAGE, RIGHTS, check_links, draw, picture
from tests.mm.toy import ARCHES, PMD, RW, boot, load, new_mm, state, store

BASE = 0x100000


@pytest.fixture(params=sorted(ARCHES))
def kernel(request: pytest.FixtureRequest) -> ArchKernel:
    return boot(ARCHES[request.param])


def run(mm: mm_struct) -> mm_struct:
    kernel: ArchKernel = mm.kernel
    activate(kernel, kernel.cpus[0], mm)
    return mm


# ----------------------------------------------------------------------- fork
def test_each_side_keeps_the_bytes_it_had_whoever_writes_first(kernel: ArchKernel) -> None:
    before = state(kernel)
    mm = new_mm(kernel)
    draw(mm, "www", at=BASE)
    for page in range(2):
        store(mm, BASE + page * PAGE, b"both")
    child = dup_mm(mm)
    assert picture(child, at=BASE, pages=3) == "www"
    store(mm, BASE, b"mine")
    store(run(child), BASE + PAGE, b"hers")
    store(child, BASE + 2 * PAGE, b"hers")
    assert [load(child, BASE + page * PAGE, 4) for page in range(3)] == [b"both", b"hers", b"hers"]
    assert [load(run(mm), BASE + page * PAGE, 4) for page in range(3)] == [b"mine", b"both", b"\0" * 4]
    mmput(mm)
    assert [load(run(child), BASE + page * PAGE, 4) for page in range(3)] == [b"both", b"hers", b"hers"]
    mmput(child)
    assert state(kernel) == before


def test_the_last_of_a_family_writes_without_copying(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    store(mm, BASE, b"both")
    child = dup_mm(mm)
    mmput(mm)
    free = kernel.free.free
    store(run(child), BASE, b"mine")
    assert kernel.free.free == free
    assert load(child, BASE, 4) == b"mine"


def test_shared_memory_stays_shared(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    do_mmap(mm, BASE, PAGE, RW | VM_SHARED, fixed=True)
    child = dup_mm(mm)
    store(mm, BASE, b"told")
    assert load(run(child), BASE, 4) == b"told"


def test_what_is_not_to_be_copied_is_not(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "wr", at=BASE)
    vma = find_vma(mm, BASE)
    assert vma is not None
    vma.vm_flags |= VM_DONTCOPY
    child = dup_mm(mm)
    assert picture(child, at=BASE, pages=2) == ".r"
    assert (child.total_vm, child.map_count) == (1, 1)


def test_a_child_is_where_its_parent_was(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    mm.start_brk = mm.brk = BASE
    mm.exe_file = new_file(kernel, "program", PAGE)
    do_mmap(mm, None, PAGE, RW)
    child = dup_mm(mm)
    assert (child.start_brk, child.brk, child.mmap_base) == (BASE, BASE, mm.mmap_base)
    assert child.exe_file is mm.exe_file
    assert mm.exe_file.references == 2
    assert child.serial > mm.serial
    assert do_mmap(child, None, PAGE, RIGHTS["r"]) == do_mmap(mm, None, PAGE, RIGHTS["r"])
    check_links(child)


def test_a_childs_vma_follows_its_parents_in_the_file_with_its_restart_address(kernel: ArchKernel) -> None:
    """A7.5, A1.7: a truncation half through the parent meets the child later, at the same address."""
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    draw(mm, "rr.ww", at=BASE, file=file)
    for vma in vmas_of(mm.mmap):
        vma.vm_truncate_count = vma.vm_start + PAGE
    child = dup_mm(mm)
    order = list(file.mapping.i_mmap)
    for parents, childs in zip(vmas_of(mm.mmap), vmas_of(child.mmap), strict=True):
        assert order.index(childs) > order.index(parents)
        assert childs.vm_truncate_count == parents.vm_start + PAGE


def test_a_fork_without_memory_leaves_nothing_of_the_child() -> None:
    kernel = boot()
    mm = new_mm(kernel)
    for pmd in range(3):
        draw(mm, "w", at=BASE + pmd * PMD)
        store(mm, BASE + pmd * PMD, b"kept")
    held = state(kernel)
    failures = 0
    for allowed in range(20):
        left = allowed

        def fail_next(what: str) -> bool:
            nonlocal left
            left -= 1
            return left < 0

        kernel.free.fail_next = fail_next
        try:
            child = dup_mm(mm)
        except SyscallError as error:
            assert error.errno == errno.ENOMEM
            failures += 1
        else:
            mmput(child)
        kernel.free.fail_next = None
        assert state(kernel) == held
        for pmd in range(3):
            store(mm, BASE + pmd * PMD, b"mine")
    # The mm, a root, a table in the middle, three below; for each of three mappings a vma and an anon_vma.
    assert failures == 12


# ----------------------------------------------------------------- life, exec
def test_exit_gives_everything_back_and_leaves_the_cpu(kernel: ArchKernel) -> None:
    before = state(kernel)
    mm = new_mm(kernel)
    draw(mm, "wrx.w", at=BASE)
    store(mm, BASE)
    mmput(mm)
    assert kernel.active_mm == [kernel.init_mm]
    assert state(kernel) == before


def test_a_user_more_keeps_the_mappings(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    mm.mm_users += 1
    mmput(mm)
    store(mm, BASE, b"x")
    assert mm.map_count == 1
    mmput(mm)
    assert mm.map_count == 0


def test_switching_keeps_address_spaces_apart(kernel: ArchKernel) -> None:
    one, other = new_mm(kernel), mm_alloc(kernel)
    for mm, byte in ((one, b"1"), (other, b"2")):
        draw(mm, "w", at=BASE)
        store(run(mm), BASE, byte)
    cycles = kernel.sched.spent_on["context_switch"]
    assert load(run(other), BASE) == b"2"
    assert kernel.sched.spent_on["context_switch"] == cycles  # it ran already
    assert load(run(one), BASE) == b"1"
    assert one.mm_count == 2
    assert other.mm_count == 1


def test_no_memory_for_a_root_is_enomem_and_leaks_nothing(kernel: ArchKernel) -> None:
    before = state(kernel)
    kernel.free.fail_next = lambda what: True
    with pytest.raises(SyscallError) as refused:
        mm_alloc(kernel)
    assert refused.value.errno == errno.ENOMEM
    kernel.free.fail_next = None
    assert state(kernel) == before


def test_a_table_that_no_vma_covers_is_found_at_exit(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    store(mm, BASE)
    mm.nr_tables[-1] += 1
    with pytest.raises(AssertionError, match="tables"):
        mmput(mm)


def test_exec_replaces_the_address_space_where_it_runs(kernel: ArchKernel) -> None:
    before = state(kernel)
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    store(mm, BASE, b"old")
    new = exec_mm(kernel, mm)
    assert kernel.active_mm == [new]
    with pytest.raises(SegmentationFault):
        load(new, BASE)
    top = kernel.shape.limits.stack_top
    stack = find_vma(new, top - 1)
    assert stack is not None
    assert (stack.vm_end, stack.vm_end - stack.vm_start) == (top, 132 << 10)
    assert stack.vm_flags & VM_GROWSDOWN
    store(new, top - 8, b"argument")
    grown = stack.vm_start - 3 * PAGE
    store(new, grown, b"deeper")
    assert stack.vm_start == grown
    assert new.total_vm == 33 + 3
    check_links(new)
    mmput(new)
    assert state(kernel) == before


def test_a_failed_exec_leaves_the_old_program_running(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    store(mm, BASE, b"old")
    held = state(kernel)
    kernel.free.fail_next = lambda what: True
    with pytest.raises(SyscallError):
        exec_mm(kernel, mm)
    kernel.free.fail_next = None
    assert state(kernel) == held
    assert load(mm, BASE, 3) == b"old"


def test_a_vma_slot_is_reused_last_freed_first_with_another_generation(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    draw(mm, "w", at=BASE)
    vma = find_vma(mm, BASE)
    assert vma is not None
    slot, generation = vma.slot, vma.generation
    do_munmap(mm, BASE, PAGE)
    draw(mm, "r", at=BASE + PMD)
    again = find_vma(mm, BASE + PMD)
    assert again is vma
    assert (again.slot, again.generation) == (slot, generation + 1)
