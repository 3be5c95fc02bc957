"""Flushes needed against flushes issued: each kind of verdict is provoked once, and worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from polymmu.description.load import load_machine_text
from polymmu.hooks import hookimpl
from polymmu.machine import CpuHandle, Machine, Mm
from polymmu.registry import arch_named, resolve

TEXT = """
machine: 1
name: toy
arch: x86_64
cpus: 2
memory: 64 MiB
tlbs: {L1: {level: 1, page_sizes: [4 KiB], entries: 64, ways: 4}}
walk_caches: {PDE: {level: 1, entries: 8, ways: 4}}
"""
PAGE = 4096


def machine(**changes: Callable[..., Any]) -> Machine:
    """A two-CPU x86_64 whose plugin has some hooks replaced."""
    functions = dict(arch_named("x86_64").implementations) | {k: hookimpl(f) for k, f in changes.items()}
    arch = resolve("toy", SimpleNamespace(**functions))
    description = load_machine_text(
        TEXT, filename="toy.yaml", section_class_of=lambda name: arch.ops.config_class()
    )
    return Machine(description, arch)


def running(made: Machine) -> tuple[Mm, CpuHandle, int]:
    """A program on CPU 0 with eight written pages."""
    mm, cpu = made.new_mm(), made.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(8 * PAGE)
    cpu.store(at, b"x" * (8 * PAGE))
    return mm, cpu, at


def tally(made: Machine, call: str) -> dict[str, int]:
    row: dict[str, int] = (
        made.report()
        .to_dict()["flushes"]["by_call"]
        .get(call, {"issued": 0, "needed": 0, "redundant": 0, "missing": 0})
    )
    return row


def test_unmapping_a_used_page_needs_its_flush() -> None:
    made = machine()
    mm, _, at = running(made)
    mm.munmap(at, PAGE)
    assert tally(made, "munmap") == {"issued": 1, "needed": 1, "redundant": 0, "missing": 0}


def test_unmapping_pages_no_tlb_holds_is_redundant() -> None:
    made = machine()
    mm, cpu, at = running(made)
    cpu.cpu.invalidate(asid=None, include_global=True, walk_caches="all")
    mm.munmap(at, PAGE)
    assert tally(made, "munmap") == {"issued": 1, "needed": 0, "redundant": 1, "missing": 0}


def test_a_flush_on_a_cpu_that_left_the_program_is_not_issued() -> None:
    made = machine()
    mm, _, at = running(made)
    other = made.new_mm()
    made.cpus[1].switch_mm(mm)
    made.cpus[1].load(at, 1)
    made.cpus[1].switch_mm(other)
    with made.cpus[0]:
        mm.munmap(at, PAGE)
    assert tally(made, "munmap")["issued"] == 1


def test_both_cpus_of_a_program_need_the_flush() -> None:
    made = machine()
    mm, _, at = running(made)
    made.cpus[1].switch_mm(mm)
    made.cpus[1].load(at, 1)
    with made.cpus[0]:
        mm.munmap(at, PAGE)
    assert tally(made, "munmap") == {"issued": 2, "needed": 2, "redundant": 0, "missing": 0}
    assert made.report().to_dict()["shootdown"]["ipis"] == 1


def test_protection_taken_away_without_a_flush_is_missing() -> None:
    made = machine(flush_tlb_range=lambda vma, start, end: None)
    mm, _, at = running(made)
    mm.mprotect(at, PAGE, "r")
    assert tally(made, "mprotect") == {"issued": 0, "needed": 0, "redundant": 0, "missing": 1}


def test_forgotten_ipi_is_missing_on_the_other_cpu_only() -> None:
    def local_only(tlb: Any) -> None:
        cpu = tlb.mm.kernel.sched.cpu
        cpu.invalidate(asid=cpu.asid)

    made = machine(tlb_flush=local_only)
    mm, _, at = running(made)
    made.cpus[1].switch_mm(mm)
    made.cpus[1].load(at, 1)
    with made.cpus[0]:
        mm.munmap(at, PAGE)
    assert tally(made, "munmap") == {"issued": 1, "needed": 1, "redundant": 0, "missing": 1}


def test_table_that_a_walk_cache_still_reaches_is_missing() -> None:
    def leaves_only(tlb: Any) -> None:
        cpu = tlb.mm.kernel.sched.cpu
        cpu.invalidate(asid=cpu.asid, walk_caches="none")

    made = machine(tlb_flush=leaves_only)
    mm, cpu, _ = running(made)
    far = mm.mmap(PAGE, at=1 << 40)
    cpu.store(far, b"x")
    mm.munmap(far, PAGE)
    assert tally(made, "munmap")["missing"] == 1


def test_granting_rights_needs_no_flush() -> None:
    made = machine()
    mm, cpu, _ = running(made)
    at = mm.mmap(PAGE, "r")
    cpu.load(at, 1)
    mm.mprotect(at, PAGE, "rw")
    row = tally(made, "mprotect")
    assert (row["needed"], row["missing"]) == (0, 0)


def test_fork_needs_the_parents_flush() -> None:
    made = machine()
    mm, _, _ = running(made)
    mm.fork()
    assert tally(made, "fork") == {"issued": 1, "needed": 1, "redundant": 0, "missing": 0}


def test_a_flush_belongs_to_the_task_that_asked_for_it_while_another_sleeps_in_a_call() -> None:
    """munmap of a file's page waits for the lock of the file's vmas; meanwhile another program's mprotect flushes two
    CPUs, the second of them by an interrupt."""
    made = Machine.from_file("x86_64", sets=["cpus=2", "memory=64 MiB"], driver="timed")
    file = made.new_file(PAGE)
    sleeper, other = made.new_mm(), made.new_mm()
    at = other.mmap(PAGE)
    lock = file.file.mapping.i_mmap_lock

    def unmaps() -> None:
        va = sleeper.mmap(PAGE, file=file, shared=True)
        made.cpus[0].load(va, 1)
        made.sleep(10_000)
        sleeper.munmap(va, PAGE)  # waits from here on

    def holds() -> None:
        made.sleep(8000)
        lock.lock()
        made.sleep(200_000)
        lock.unlock()

    def protects() -> None:
        made.cpus[0].store(at, b"x")
        made.sleep(60_000)
        made.cpus[0].load(at, 1)
        other.mprotect(at, PAGE, "r")

    def stays() -> None:
        made.sleep(30_000)
        made.cpus[1].load(at, 1)
        made.work(150_000)

    made.spawn("unmaps", 0, sleeper, unmaps)
    made.spawn("holds", 1, None, holds)
    made.spawn("protects", 0, other, protects)
    made.spawn("stays", 1, other, stays)
    made.run_tasks()
    assert tally(made, "mprotect") == {"issued": 2, "needed": 2, "redundant": 0, "missing": 0}
    assert tally(made, "munmap")["missing"] == 0
    assert "fault" not in made.report().to_dict()["flushes"]["by_call"]


@pytest.mark.parametrize("calls", [1, 3])
def test_totals_are_the_sums_over_the_kinds(calls: int) -> None:
    made = machine()
    mm, _, at = running(made)
    for n in range(calls):
        mm.munmap(at + n * PAGE, PAGE)
    mm.fork()
    section = made.report().to_dict()["flushes"]
    for field in ("issued", "needed", "redundant", "missing"):
        assert section[field] == sum(row[field] for row in section["by_call"].values())
