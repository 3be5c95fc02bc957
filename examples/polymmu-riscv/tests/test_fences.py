"""Which hart is told to forget what: every SFENCE.VMA, recorded where the hardware carries it out."""

from __future__ import annotations

from typing import Any

import pytest

import polymmu
import polymmu_riscv as riscv

PAGE = 4096
MIB = 1 << 20
WHOLE = (None, None)


class Recorder:
    """Stands in for the flush audit: (hart, ASID, start, end) of each invalidation."""

    def __init__(self, machine: polymmu.Machine) -> None:
        self.seen: list[tuple[int, int | None, int | None, int | None]] = []
        for cpu in machine.kernel.cpus:
            cpu.watcher = self

    def before_invalidate(self, cpu: Any, asid: int | None, start: int | None, end: int | None) -> None:
        self.seen.append((cpu.index, asid, start, end))

    def after_invalidate(self, cpu: Any, dropped: int) -> None:
        """Of no interest here."""

    def taken(self) -> list[tuple[int, int | None, int | None, int | None]]:
        """What was seen since the last time."""
        seen, self.seen = self.seen, []
        return seen


def two_harts(*sets: str) -> tuple[polymmu.Machine, polymmu.Mm, int, Recorder]:
    """An mm with 4 MiB of touched pages that two harts have loaded, its ASID being 1."""
    machine = polymmu.Machine.from_file("riscv64", sets=("cpus=2", *sets))
    mm = machine.new_mm()
    for cpu in machine.cpus:
        cpu.switch_mm(mm)
    va = mm.mmap(4 * MIB, "rw", at=64 * MIB, fixed=True, populate=True)
    return machine, mm, va, Recorder(machine)


def test_one_page_is_fenced_by_address_on_every_hart() -> None:
    _, mm, va, recorder = two_harts()
    mm.munmap(va + PAGE, PAGE)
    assert sorted(recorder.taken()) == [(n, 1, va + PAGE, va + 2 * PAGE) for n in (0, 1)]


@pytest.mark.parametrize(("pages", "whole"), [(64, False), (65, True)])
def test_more_than_64_pages_are_not_fenced_one_by_one(pages: int, whole: bool) -> None:
    _, mm, va, recorder = two_harts()
    mm.mprotect(va, pages * PAGE, "r")
    scope = WHOLE if whole else (va, va + pages * PAGE)
    assert sorted(recorder.taken()) == [(n, 1, *scope) for n in (0, 1)]


def test_a_freed_table_is_fenced_without_an_address() -> None:
    """The form with an address leaves what leads to the table."""
    _, mm, va, recorder = two_harts()
    mm.munmap(va, 2 * MIB - 32 * PAGE)
    recorder.taken()
    mm.munmap(va + 2 * MIB - 32 * PAGE, 32 * PAGE)
    assert sorted(recorder.taken()) == [(n, 1, *WHOLE) for n in (0, 1)]


def test_a_hart_without_working_addresses_forgets_everything_of_everybody() -> None:
    _, mm, va, recorder = two_harts("riscv.addressed_fence=false")
    mm.munmap(va + PAGE, PAGE)
    assert sorted(recorder.taken()) == [(n, None, *WHOLE) for n in (0, 1)]


def test_without_numbers_a_fence_is_for_all_and_reaches_only_who_runs_the_mm() -> None:
    machine, mm, va, recorder = two_harts("riscv.asid_bits=0")
    machine.cpus[0].switch_mm(machine.new_mm())
    assert recorder.taken() == [(0, None, *WHOLE)], "the switch itself"
    mm.munmap(va + PAGE, PAGE)
    assert recorder.taken() == [(1, None, va + PAGE, va + 2 * PAGE)]


def test_with_numbers_a_hart_that_left_is_still_told() -> None:
    machine, mm, va, recorder = two_harts()
    machine.cpus[0].switch_mm(machine.new_mm())
    assert recorder.taken() == []
    mm.munmap(va + PAGE, PAGE)
    assert sorted(recorder.taken()) == [(n, 1, va + PAGE, va + 2 * PAGE) for n in (0, 1)]


def test_a_new_mapping_is_fenced_here_only_unless_svvptc_makes_it_seen() -> None:
    for svvptc in (False, True):
        machine, mm, _, recorder = two_harts(f"riscv.svvptc={str(svvptc).lower()}")
        va = mm.mmap(PAGE, "rw")
        machine.cpus[0].store(va, b"x")
        assert recorder.taken() == ([] if svvptc else [(0, None, va, va + PAGE)])


@pytest.mark.parametrize("svvptc", [False, True])
def test_raised_rights_are_fenced_where_the_fault_was(svvptc: bool) -> None:
    """The other hart holds the read-only entry of before; it faults for itself, and finds nothing left to raise."""
    machine, mm, va, recorder = two_harts(f"riscv.svvptc={str(svvptc).lower()}")
    machine.cpus[0].store(va, b"0")
    mm.fork().exit()
    for cpu in machine.cpus:
        cpu.load(va, 1)
    recorder.taken()
    machine.cpus[0].store(va, b"x")
    assert recorder.taken() == [(0, None, va, va + PAGE)]
    machine.cpus[1].store(va, b"y")
    assert (1, va, va + PAGE) in [(hart, start, end) for hart, _, start, end in recorder.taken()]
    assert machine.cpus[0].load(va, 1) == b"y"


def test_sbi_fences_interrupt_no_kernel_so_tables_wait_for_rcu() -> None:
    for how, rcu, counted in (("sbi", True, "broadcast"), ("ipi", False, "ipis")):
        machine, mm, va, _ = two_harts(f"riscv.remote_fence={how}")
        assert riscv.tables_need_rcu(mm.struct) is rcu
        before = machine.report().to_dict()["shootdown"]
        mm.munmap(va + PAGE, PAGE)
        after = machine.report().to_dict()["shootdown"]
        assert {name for name in after if after[name] != before[name]} == {counted}
