"""Where mappings go by themselves: the highest gap that is long enough, found without looking at all gaps."""

from __future__ import annotations

import errno

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.errors import SyscallError
from polymmu.hooks import hookimpl
from polymmu.mm import unmapped_area
from polymmu.mm.mmap import do_mmap, do_munmap
from polymmu.registry import resolve
from polymmu.structs import AddressLimits, mm_struct
from tests.mm.programs import PAGE, RIGHTS
from tests.mm.toy import Toy, boot, new_mm

SMALL = 64
"""Pages below mmap_base that the random mappings fight for."""


class WithHoles(Toy):
    """Some addresses mean nothing to this MMU."""

    def __init__(self, holes: tuple[tuple[int, int], ...]) -> None:
        self.holes = holes

    @hookimpl
    def address_limits(self) -> AddressLimits:
        return attrs.evolve(super().address_limits(), holes=self.holes)


def highest_fit(mm: mm_struct, pages: int) -> int:
    """By trying every address from the top down."""
    used = {addr for vma in mm.vmas.values() for addr in range(vma.vm_start, vma.vm_end, PAGE)}
    addr = mm.mmap_base - pages * PAGE
    while any(page in used for page in range(addr, addr + pages * PAGE, PAGE)):
        addr -= PAGE
    return addr


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("map"), st.integers(1, 6), st.sampled_from("rwx")),
            st.tuples(st.just("unmap"), st.integers(1, SMALL), st.integers(1, 8)),
            st.tuples(st.just("fixed"), st.integers(1, SMALL), st.integers(1, 4)),
        ),
        min_size=5,
        max_size=40,
    )
)
def test_a_mapping_goes_into_the_highest_gap_that_holds_it(calls: list[tuple[str, int, object]]) -> None:
    mm = new_mm(boot())
    for name, number, more in calls:
        if name == "map":
            expected = highest_fit(mm, number)
            assert do_mmap(mm, None, number * PAGE, RIGHTS[str(more)]) == expected
            continue
        assert isinstance(more, int)
        start = mm.mmap_base - number * PAGE
        if name == "unmap":
            do_munmap(mm, start, more * PAGE)
        else:
            do_mmap(mm, start, more * PAGE, RIGHTS["-"], fixed=True)


def test_a_wish_is_granted_where_it_is_free_and_only_there() -> None:
    mm = new_mm(boot())
    wish = 0x123000
    assert do_mmap(mm, wish - 5, 2 * PAGE, RIGHTS["r"]) == wish
    assert do_mmap(mm, wish + PAGE, PAGE, RIGHTS["r"]) == mm.mmap_base - PAGE
    assert do_mmap(mm, 0, PAGE, RIGHTS["r"]) == mm.mmap_base - 2 * PAGE  # page 0 stays a trap


def test_below_mmap_base_full_the_space_above_it_is_used() -> None:
    mm = new_mm(boot())
    do_mmap(mm, PAGE, mm.mmap_base - PAGE, RIGHTS["-"], fixed=True)
    assert do_mmap(mm, None, PAGE, RIGHTS["r"]) == mm.mmap_base
    assert do_mmap(mm, None, PAGE, RIGHTS["r"]) == mm.mmap_base + PAGE


def test_no_gap_is_enomem_and_a_gap_made_later_is_found() -> None:
    mm = new_mm(boot())
    do_mmap(mm, PAGE, mm.task_size - PAGE, RIGHTS["-"], fixed=True)
    with pytest.raises(SyscallError) as refused:
        do_mmap(mm, None, PAGE, RIGHTS["r"])
    assert refused.value.errno == errno.ENOMEM
    do_munmap(mm, 0x200000, 2 * PAGE)
    with pytest.raises(SyscallError):
        do_mmap(mm, None, 3 * PAGE, RIGHTS["r"])
    assert do_mmap(mm, None, 2 * PAGE, RIGHTS["r"]) == 0x200000


def test_holes_of_the_mmu_are_neither_chosen_nor_mapped() -> None:
    base = new_mm(boot()).mmap_base
    arch = resolve("holes", WithHoles(((base - 3 * PAGE, base - 2 * PAGE),)))
    mm = new_mm(boot(arch))
    assert do_mmap(mm, None, 3 * PAGE, RIGHTS["r"]) == base - 6 * PAGE
    assert do_mmap(mm, None, 2 * PAGE, RIGHTS["r"]) == base - 2 * PAGE
    with pytest.raises(SyscallError) as refused:
        do_mmap(mm, base - 4 * PAGE, 2 * PAGE, RIGHTS["r"], fixed=True)
    assert refused.value.errno == errno.ENOMEM


def test_the_search_does_not_begin_at_the_top_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = 0
    real = unmapped_area._fit

    def counting(mm: mm_struct, bottom: int, top: int, length: int) -> int | None:
        nonlocal gaps
        gaps += 1
        return real(mm, bottom, top, length)

    monkeypatch.setattr(unmapped_area, "_fit", counting)
    mm = new_mm(boot())
    for page in range(500):
        do_mmap(mm, None, PAGE, RIGHTS["rw"[page % 2]])
    assert gaps == 500
    for page in range(100, 400, 2):  # a gap of one page among many neighbours, filled again
        do_munmap(mm, mm.mmap_base - page * PAGE, PAGE)
        do_mmap(mm, None, PAGE, RIGHTS["x"])
    assert gaps <= 500 + 2 * 150
