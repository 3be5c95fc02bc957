"""exec's stack: arguments written first, then moved down with their tables (A5.5)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.errors import SyscallError
from polymmu.hooks import ArchKernel
from polymmu.machine import Machine
from polymmu.mm.exec import exec_mm, shift_arg_pages
from polymmu.mm.mm import mmput
from polymmu.structs import VM_GROWSDOWN
from tests.mm.programs import check_links
from tests.mm.toy import (
    ARCHES,
    PAGE,
    PMD,
    PUD,
    RW,
    TOP,
    add_vma,
    boot,
    frame_at,
    live_tables,
    load,
    new_mm,
    state,
    store,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(1, 40),
    st.one_of(st.integers(1, 60), st.integers(1, 200).map(lambda n: n * 16)),
    st.integers(0, 20),
    st.booleans(),
    st.sampled_from(sorted(ARCHES)),
)
def test_pages_move_and_only_tables_that_somebody_needs_stay(
    pages: int, shift: int, below_top: int, neighbour: bool, arch: str
) -> None:
    """Steps 1 to 6, whether or not the two places overlap; a neighbour above in the same tables keeps its own."""
    kernel = boot(ARCHES[arch])
    mm = new_mm(kernel)
    end = TOP - PUD - below_top * PAGE
    start = end - pages * PAGE
    if neighbour:
        add_vma(mm, end, end + PAGE, flags=RW)
        store(mm, end, b"n")
    vma = add_vma(mm, start, end, flags=RW | VM_GROWSDOWN)
    for page in range(pages):
        store(mm, start + page * PAGE, bytes([page + 1]))
    frames = [frame_at(mm, start + page * PAGE) for page in range(pages)]
    shift_arg_pages(vma, shift * PAGE)
    low = start - shift * PAGE
    assert (vma.vm_start, vma.vm_end) == (low, end - shift * PAGE)
    assert [frame_at(mm, low + page * PAGE) for page in range(pages)] == frames
    assert [load(mm, low + page * PAGE) for page in range(pages)] == [bytes([n + 1]) for n in range(pages)]
    there = [low + page * PAGE for page in range(pages)] + [end] * neighbour
    assert live_tables(mm) == {
        (level, at // span * span) for at in there for level, span in ((1, PUD), (2, PMD))
    }
    assert not neighbour or load(mm, end) == b"n"


def test_each_page_keeps_its_number_so_that_it_can_be_found(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    vma = add_vma(mm, TOP - PUD, TOP - PUD + 3 * PAGE, flags=RW)
    number = vma.vm_pgoff
    shift_arg_pages(vma, PUD)
    assert vma.vm_pgoff == number


def test_no_place_below_is_refused(kernel: ArchKernel) -> None:
    mm = new_mm(kernel)
    add_vma(mm, PMD, PMD + PAGE)
    vma = add_vma(mm, 2 * PMD, 3 * PMD)
    for shift in (PMD, 2 * PMD, 3 * PMD):
        with pytest.raises(SyscallError) as refused:
            shift_arg_pages(vma, shift)
        assert refused.value.errno == errno.ENOMEM
    assert (vma.vm_start, vma.vm_end) == (2 * PMD, 3 * PMD)


def test_exec_writes_the_arguments_moves_them_and_makes_room_below(kernel: ArchKernel) -> None:
    before = state(kernel)
    new = exec_mm(kernel, None, arguments=3, stack_shift=5 * PAGE)
    top = kernel.shape.limits.stack_top - 5 * PAGE
    (stack,) = new.vmas.values()
    assert (stack.vm_start, stack.vm_end, new.start_stack) == (top - (132 << 10), top, top)
    assert [frame_at(new, top - n * PAGE) >= 0 for n in (0, 1, 2, 3, 4)] == [False, True, True, True, False]
    assert new.anon_rss == 3
    assert kernel.vm_committed == new.total_vm == 33
    check_links(new)
    mmput(new)
    assert state(kernel) == before


@pytest.mark.parametrize("allocations", range(8))
def test_exec_without_memory_leaves_nothing_behind(kernel: ArchKernel, allocations: int) -> None:
    """Each allocation in turn is the first one to fail."""
    before = state(kernel)
    left = iter(range(allocations))
    kernel.free.fail_next = lambda what: next(left, None) is None
    try:
        mmput(exec_mm(kernel, None, arguments=2, stack_shift=2 * PUD))
    except SyscallError as error:
        assert error.errno == errno.ENOMEM
    kernel.free.fail_next = None
    assert state(kernel) == before


@pytest.mark.parametrize(
    "name", ["x86", "x86-pae", "x86_64", "ia64", "ppc64", "ppc64-64k", "s390", "s390-31", "sparc64"]
)
def test_the_stack_moves_on_every_architecture(name: str) -> None:
    machine = Machine.from_file(name, sets=["memory=64 MiB"], sanitize=True)
    assert machine.sanitizer is not None
    layout = machine.kernel.shape.layout
    for shift in (machine.page_size, layout.span_of(layout.pmd_level), 3 * layout.span_of(layout.pmd_level)):
        old = machine.new_mm()
        machine.cpus[0].switch_mm(old)
        mm = old.exec(arguments=2, stack_shift=shift)
        machine.cpus[0].switch_mm(mm)
        top = machine.stack_top - shift
        machine.cpus[0].store(top - 8, b"argument")
        assert machine.cpus[0].load(top - 8, 8) == b"argument"
        mm.exit()
    machine.sanitizer.finish()
    assert machine.sanitizer.violations == []
    assert machine.sanitizer.balance() == []
