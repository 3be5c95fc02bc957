"""Single calls whose figures a reader can check by hand, in the host's kernel and here.

Every method of a twin compares the two sides; what is asserted beyond that is the figure itself. Three tables lie
below the root: pud, pmd, pte.
"""

from __future__ import annotations

import pytest

from tests.referee.programs import BASE, PMD, PUD
from tests.referee.real import Reading
from tests.referee.twins import PAGE, Twin

MANY = 600
"""Pages that take more than one pte table."""


def has(twin: Twin, tables: int, faults: int) -> bool:
    return twin.reading() == twin.real.reading() == Reading(tables * PAGE, faults)


def test_the_first_touch_of_an_address_space_makes_three_tables_and_one_fault(twin: Twin) -> None:
    twin.mmap(BASE, PMD)
    assert has(twin, 0, 0)
    twin.store(BASE)
    assert has(twin, 3, 1)
    twin.store(BASE)
    assert has(twin, 3, 1)


def test_a_load_and_then_a_store_of_a_fresh_page_are_two_faults(twin: Twin) -> None:
    twin.mmap(BASE, PMD)
    twin.load(BASE)
    twin.store(BASE)
    assert has(twin, 3, 2)


def test_shared_memory_is_writable_once_it_was_read(twin: Twin) -> None:
    twin.mmap(BASE, PMD, shared=True)
    twin.load(BASE)
    twin.store(BASE)
    assert has(twin, 3, 1)


@pytest.mark.parametrize("shared", [False, True])
def test_populate_counts_one_fault_for_each_page(twin: Twin, shared: bool) -> None:
    twin.mmap(BASE, MANY * PAGE, populate=True, shared=shared)
    assert has(twin, 4, MANY)
    twin.store(BASE + (MANY - 1) * PAGE)
    assert has(twin, 4, MANY)


def test_populate_of_what_may_not_be_accessed_does_nothing(twin: Twin) -> None:
    twin.mmap(BASE, PMD, "", populate=True)
    assert has(twin, 0, 0)


def test_refused_accesses_count_no_fault_and_make_no_table(twin: Twin) -> None:
    twin.mmap(BASE, PAGE, "r")
    twin.mmap(BASE + PMD, PAGE, "")
    twin.store(BASE)
    twin.load(BASE + PMD)
    twin.load(BASE + PUD)
    assert has(twin, 0, 0)


@pytest.mark.parametrize(("distance", "left"), [(PAGE, 3), (PMD, 3), (PUD, 3), (512 * PUD, 3)])
def test_munmap_frees_the_tables_that_no_neighbour_needs(twin: Twin, distance: int, left: int) -> None:
    for at in (BASE, BASE + distance):
        twin.mmap(at, PAGE)
        twin.store(at)
    twin.munmap(BASE + distance, PAGE)
    assert has(twin, left, 2)
    twin.munmap(BASE, PAGE)
    assert has(twin, 0, 2)


def test_a_hole_in_a_mapping_frees_the_tables_that_lie_in_it(twin: Twin) -> None:
    twin.mmap(BASE, 4 * PMD)
    for at in range(BASE, BASE + 4 * PMD, PMD):
        twin.store(at)
    assert has(twin, 2 + 4, 4)
    twin.munmap(BASE + PAGE, 3 * PMD - 2 * PAGE)  # the third table's last page stays
    assert has(twin, 2 + 3, 4)


def test_untouched_neighbours_keep_tables_alive(twin: Twin) -> None:
    twin.mmap(BASE, PAGE)
    twin.mmap(BASE + PUD - PAGE, PAGE)
    twin.store(BASE)
    twin.munmap(BASE, PAGE)
    assert has(twin, 2, 1)  # pud and pmd table: the other mapping lies below them
    twin.munmap(BASE + PUD - PAGE, PAGE)
    assert has(twin, 0, 1)


def test_a_fixed_mapping_takes_the_place_of_pages_and_tables(twin: Twin) -> None:
    twin.mmap(BASE, 2 * PMD, populate=True)
    assert has(twin, 4, 1024)
    twin.mmap(BASE, 2 * PMD)
    assert has(twin, 0, 1024)


def test_a_moved_table_is_the_same_table(twin: Twin) -> None:
    twin.mmap(BASE, PMD, populate=True)
    twin.mremap(BASE, PMD, PMD, BASE + PUD)
    assert has(twin, 3, 512)
    twin.store(BASE + PUD)
    assert has(twin, 3, 512)


def test_a_move_to_another_offset_takes_a_table_more(twin: Twin) -> None:
    twin.mmap(BASE, PMD, populate=True)
    twin.mremap(BASE, PMD, PMD, BASE + PUD + PAGE)
    assert has(twin, 4, 512)


def test_a_move_makes_the_upper_table_in_the_new_place_even_for_pages_that_are_not_there(twin: Twin) -> None:
    twin.mmap(BASE, PAGE)
    twin.store(BASE)
    twin.mmap(BASE + 2 * PMD, PAGE)
    twin.mremap(BASE + 2 * PMD, PAGE, PAGE, BASE + 512 * PUD)
    assert has(twin, 4, 1)


def test_a_fork_copies_only_mappings_that_have_had_pages_of_their_own(twin: Twin) -> None:
    twin.mmap(BASE, PMD)
    twin.store(BASE)
    twin.mmap(BASE + PUD, PMD)
    twin.load(BASE + PUD)
    twin.mmap(BASE + 2 * PUD, PMD, shared=True)
    twin.store(BASE + 2 * PUD)
    child = twin.fork()
    assert has(twin, 1 + 3 * 2, 3)
    assert has(child, 3, 0)
    child.load(BASE)
    assert has(child, 3, 0)
    child.store(BASE)
    twin.store(BASE)
    assert has(child, 3, 1)
    assert has(twin, 1 + 3 * 2, 4)


def test_a_fork_copies_the_upper_tables_of_a_mapping_that_has_pages_elsewhere(twin: Twin) -> None:
    twin.mmap(BASE, PUD + PMD)
    twin.store(BASE)
    twin.mmap(BASE + PUD + 2 * PMD, PAGE, shared=True)
    twin.store(BASE + PUD + 2 * PMD)
    child = twin.fork()
    assert has(twin, 1 + 2 + 2, 2)
    assert has(child, 1 + 2 + 1, 0)


def test_a_childs_mapping_with_pages_takes_in_no_neighbour_without(twin: Twin) -> None:
    twin.mmap(BASE, PMD)
    twin.store(BASE)
    child = twin.fork()
    child.mmap(BASE + PMD, PMD)
    child.load(BASE + PMD)
    assert has(child, 4, 1)
    assert has(child.fork(), 3, 0)
    twin.mmap(BASE + PMD, PMD)
    twin.load(BASE + PMD)
    assert has(twin.fork(), 4, 0)  # the parent's own: one mapping, copied whole


def test_pages_moved_into_a_mapping_that_had_none_are_copied_by_fork(twin: Twin) -> None:
    twin.mmap(BASE, PAGE)
    twin.store(BASE)
    twin.mremap(BASE, PAGE, PAGE, BASE + PMD)  # the page keeps the number of its old place
    twin.mmap(BASE + PAGE, PAGE)
    twin.mremap(BASE + PMD, PAGE, PAGE, BASE)
    assert len(twin.mm.mappings()) == 1
    assert has(twin.fork(), 3, 0)


def test_a_mapping_that_grows_up_to_one_like_it_becomes_one_with_it(twin: Twin) -> None:
    twin.mmap(BASE, PAGE)
    twin.store(BASE)
    twin.mmap(BASE + 2 * PAGE, PMD)
    twin.load(BASE + PMD)
    twin.mremap(BASE, PAGE, 2 * PAGE)
    assert len(twin.mm.mappings()) == 1
    assert has(twin.fork(), 4, 0)


def test_a_stack_grows_by_faults_and_stops_at_its_limit(twin: Twin) -> None:
    top = BASE + 16 * PMD
    twin.mmap(top - PAGE, PAGE, grows_down=True)
    twin.store(top - 8 * PAGE)
    assert has(twin, 3, 1)
    twin.store(top - 4 * PMD)  # 8 MiB
    assert has(twin, 4, 2)
    twin.store(top - 4 * PMD - PAGE)
    assert has(twin, 4, 2)


def test_a_stack_that_was_refused_more_is_copied_by_fork_all_the_same(twin: Twin) -> None:
    top = BASE + 16 * PMD
    twin.mmap(top - PAGE, PAGE, grows_down=True)
    twin.load(top - PAGE)
    twin.store(top - 4 * PMD - PAGE)
    assert has(twin.fork(), 3, 0)


def test_a_heap_grows_and_shrinks_by_pages(twin: Twin) -> None:
    start = twin.brk(4 * PMD)
    twin.store(start + 2 * PMD)
    assert has(twin, 3, 1)
    twin.brk(0)
    assert has(twin, 0, 1)
    twin.brk(2 * PMD)
    twin.store(start + PAGE)
    assert has(twin, 3, 2)
