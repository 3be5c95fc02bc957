"""The rules of docs/referee.md, each shown: what the host's kernel does today, and what the emulator does instead.

A rule that no longer holds fails here, before anybody wonders about a generated program.
"""

from __future__ import annotations

import errno

import pytest

from polymmu import SegmentationFault, SyscallError
from tests.referee.programs import BASE, PMD
from tests.referee.real import Reading, too_old_for_the_rules
from tests.referee.twins import (
    MADV_DONTNEED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    NR_GETRANDOM,
    NR_MADVISE,
    NR_MPROTECT,
    NR_MREMAP,
    PAGE,
    STACK_GUARD_GAP,
    Twin,
    protection,
)

pytestmark = pytest.mark.skipif(bool(too_old_for_the_rules()), reason=too_old_for_the_rules())


def emulated_faults(twin: Twin) -> int:
    return twin.referee.faults()


def test_rule_reclaim_dontneed_of_all_that_a_table_maps_frees_the_table(twin: Twin) -> None:
    twin.mmap(BASE, 2 * PMD, populate=True)
    assert twin.real.syscall(NR_MADVISE, BASE, PMD, MADV_DONTNEED) == 0
    twin.mm.madvise(BASE, PMD, "dontneed")
    if twin.real.reading().table_bytes == 4 * PAGE:
        pytest.skip("this kernel was built without CONFIG_PT_RECLAIM: the rule makes no difference")
    assert twin.real.reading().table_bytes == 3 * PAGE
    assert twin.reading().table_bytes == 4 * PAGE


def test_rule_exclusive_mprotect_makes_a_processs_own_pages_writable_at_once(twin: Twin) -> None:
    twin.mmap(BASE, PAGE)
    twin.store(BASE)
    for prot in ("", "rw"):
        assert twin.real.syscall(NR_MPROTECT, BASE, PAGE, protection(prot)) == 0
        twin.mm.mprotect(BASE, PAGE, prot)
    before = emulated_faults(twin)
    twin.real.store(BASE)
    twin.referee.cpu.store(BASE, b"\1")
    assert twin.real.reading().faults == 1
    assert emulated_faults(twin) - before == 1


def test_rule_exclusive_a_page_that_a_fork_shared_faults_once_more_on_both_sides(twin: Twin) -> None:
    twin.mmap(BASE, PAGE)
    twin.store(BASE)
    twin.fork().exit()
    twin.mprotect(BASE, PAGE, "rw")
    twin.store(BASE)
    assert twin.real.reading().faults == 2


def test_rule_fault_around_a_load_of_a_file_maps_its_cached_neighbours(twin: Twin) -> None:
    twin.mmap(BASE, 16 * PAGE, shared=True, populate=True)
    twin.dontneed(BASE, 16 * PAGE)
    before = emulated_faults(twin)
    for page in range(BASE, BASE + 16 * PAGE, PAGE):
        twin.real.load(page)
        twin.referee.cpu.load(page, 1)
    assert twin.real.reading().faults == 16 + 1
    assert emulated_faults(twin) - before == 16


def test_rule_guard_gap_a_stack_stops_256_pages_above_a_neighbour(twin: Twin) -> None:
    stack = BASE + PMD
    twin.mmap(stack, PAGE, grows_down=True)
    below = stack - STACK_GUARD_GAP - 2 * PAGE
    twin.mmap(below, PAGE)
    assert twin.real.syscall(NR_GETRANDOM, stack - PAGE, 1, 0) == 1  # 256 pages between: still allowed
    assert twin.real.syscall(NR_GETRANDOM, stack - 2 * PAGE, 1, 0) == -errno.EFAULT
    twin.referee.cpu.store(below + 2 * PAGE, b"\1")  # one page between
    with pytest.raises(SegmentationFault, match="another mapping"):
        twin.referee.cpu.store(below + PAGE, b"\1")


def test_rule_beyond_the_file_a_refused_access_leaves_a_pte_table_only_here(twin: Twin) -> None:
    twin.mmap(BASE, PAGE, shared=True)
    twin.mremap(BASE, PAGE, 2 * PAGE)  # shared anonymous memory keeps the size it was made with
    assert twin.real.syscall(NR_GETRANDOM, BASE + PAGE, 1, 0) == -errno.EFAULT
    with pytest.raises(SegmentationFault, match="end of the file"):
        twin.referee.cpu.store(BASE + PAGE, b"\1")
    assert twin.real.reading() == Reading(2 * PAGE, 0)
    assert twin.reading() == Reading(3 * PAGE, 0)


def test_rule_one_mapping_today_mremap_moves_several_at_once(twin: Twin) -> None:
    twin.mmap(BASE, PAGE)
    twin.mmap(BASE + PAGE, PAGE, "r")
    to = BASE + PMD
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    assert twin.real.syscall(NR_MREMAP, BASE, 2 * PAGE, 2 * PAGE, flags, to) == to
    with pytest.raises(SyscallError) as refusal:
        twin.mm.mremap(BASE, 2 * PAGE, 2 * PAGE, to=to)
    assert refusal.value.errno == errno.EFAULT
