"""Page tables in high memory (CONFIG_HIGHPTE): two atomic maps at most, undone in reverse order, no sleep meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

import polymmu_history
from polymmu import variants
from polymmu.errors import SegmentationFault
from polymmu.machine import Machine
from polymmu.mm.tables import find_entry, table_at
from polymmu_x86 import tlbflush
from polymmu_x86.highpte import kmap_atomic, kunmap_atomic


@pytest.fixture(autouse=True)
def history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "plugins_installed", lambda: (("history", polymmu_history),))


def high(paging: str = "pae", **choice: Any) -> Machine:
    sets = ["memory=64 MiB", "cpus=2", f"x86.paging={paging}", "x86.highpte=true"]
    return Machine.from_file("x86", sets=[*sets, *(f"kernel.{key}={value}" for key, value in choice.items())])


ONE_PAGE = {"mremap": "one-page", "i_mmap_lock": "spin", "page_table_lock": "mm"}


@pytest.mark.parametrize("paging", ["2level", "pae"])
@pytest.mark.parametrize(
    "choice",
    [
        {},
        ONE_PAGE,
        {"mremap": "extents-2.6.15"},
        {"unmap_vmas": "blocks", "gather": "percpu", "i_mmap_lock": "spin", "page_table_lock": "mm"},
    ],
)
def test_everything_maps_and_unmaps_as_it_should(paging: str, choice: dict[str, Any]) -> None:
    """Faults, fork and its copies, mprotect, mremap, truncation, munmap, exit."""
    made = high(paging, **choice)
    page = made.page_size
    mm = made.new_mm()
    cpu = made.cpus[0]
    cpu.switch_mm(mm)
    file = made.new_file(8 * page)
    at = mm.mmap(8 * page, file=file)
    for n in range(8):
        cpu.store(at + n * page, b"%d" % n)
    child = mm.fork()
    cpu.store(at, b"p")
    mm.mprotect(at, 2 * page, "r")
    mm.mprotect(at, 2 * page, "rw")
    to = mm.mremap(at, 8 * page, 8 * page, to=at - (64 << 20))
    assert [cpu.load(to + n * page, 1) for n in range(3)] == [b"p", b"1", b"2"]
    file.truncate(page)
    with pytest.raises(SegmentationFault):
        cpu.load(to + page, 1)
    child.exit()
    mm.exit()
    file.close()
    assert made.kernel.sched.preempt_count == 0
    assert [state.mapped_tables for state in tlbflush.protocol_of(made.kernel).cpus] == [[], []]


def test_nobody_sleeps_with_a_table_mapped_and_there_are_two_slots() -> None:
    made = high()
    mm = made.new_mm()
    at = mm.mmap(made.page_size, populate=True)
    made.cpus[0].switch_mm(mm)
    core = next(
        each for each in made.kernel.mms.objects if each is not None and each.mm_users and each.map_count
    )
    table = table_at(core, find_entry(core, at))
    kmap_atomic(core, table)
    with pytest.raises(AssertionError, match="sleeping in atomic context"):
        made.kernel.sched.cond_resched()
    kmap_atomic(core, table + 4096)
    with pytest.raises(AssertionError, match="3 page tables mapped at once"):
        kmap_atomic(core, table)
    kunmap_atomic(core, table)
    with pytest.raises(AssertionError, match=rf"{table:#x} unmapped"):
        kunmap_atomic(core, table)
    kunmap_atomic(core, table + 4096)
    kunmap_atomic(core, table)
    made.kernel.sched.cond_resched()
