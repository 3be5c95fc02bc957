"""In random correct work the sanitizer finds nothing, on any architecture, alone or with CPUs that run at once; and
with one step left out it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polymmu.conformance.races import race_of_walkers
from polymmu.machine import Machine
from polymmu.structs import mm_struct
from tests.sanitize.random_work import AREA, Points, finished, machine, solo_run, timed_run

MACHINES = ("x86", "x86-pae", "x86_64", "ia64", "ppc64", "s390-31", "s390", "sparc64")


def nothing_found(made: Machine) -> None:
    assert made.sanitizer is not None
    assert [str(violation) for violation in made.sanitizer.violations] == []
    assert made.sanitizer.balance() == []


def found(made: Machine) -> set[str]:
    assert made.sanitizer is not None
    return {violation.invariant for violation in made.sanitizer.violations}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("run", [solo_run, timed_run])
def test_nothing_is_found_in_correct_work(run: Callable[[str, int], Machine], name: str) -> None:
    nothing_found(run(name, 1))


GENERATIONS = (
    (),
    ("kernel.gather=percpu", "kernel.i_mmap_lock=spin"),
    ("kernel.gather=stack",),
    ("kernel.table_free=rcu",),
    ("kernel.gather_batch=8", "kernel.zap_block=8"),
    ("kernel.i_mmap_lock=spin",),
    AREA,
    (*AREA, "kernel.mremap=one-page", "kernel.page_table_lock=mm", "kernel.i_mmap_lock=spin"),
)
"""Ways to gather, to free tables, to move, to lock, and to be short of memory, each right on every architecture."""


@pytest.mark.parametrize("sets", GENERATIONS[1:], ids=" ".join)
@pytest.mark.parametrize("name", ["x86_64", "ppc64"])
def test_nothing_is_found_in_any_generation(name: str, sets: tuple[str, ...]) -> None:
    nothing_found(timed_run(name, 4, 30, sets))


MILLION = 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MACHINES if name != "s390-31"])
def test_nothing_is_found_in_a_million_timed_steps(name: str) -> None:
    points, seed = Points(), 0
    while points.n < MILLION:
        nothing_found(timed_run(name, seed, 250, GENERATIONS[seed % len(GENERATIONS)], points))
        seed += 1


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
def test_nothing_is_found_in_much_correct_work(name: str) -> None:
    for seed in range(2, 20):
        nothing_found(solo_run(name, seed))


def test_two_runs_of_one_seed_are_alike() -> None:
    first, second = timed_run("x86_64", 3), timed_run("x86_64", 3)
    assert first.kernel.sched.clock == second.kernel.sched.clock
    assert first.report().to_dict() == second.report().to_dict()


@pytest.mark.parametrize("name", ["x86_64", "s390", "ppc64", "sparc64"])
def test_lockless_walkers_are_safe_as_each_architecture_protects_them(name: str) -> None:
    for seed in range(3):
        made = machine(name, 3, seed, "timed")
        race_of_walkers(made, seed, 1 << 30)
        nothing_found(finished(made))


class FailOnce:
    """Makes the ``nth`` allocation for ``what`` fail, and no other."""

    def __init__(self, what: str, nth: int) -> None:
        self.what, self.left = what, nth

    def __call__(self, what: str) -> bool:
        self.left -= what == self.what
        return what == self.what and not self.left


SITES = ("anon", "file", "table.pte", "gather", "vm_area_struct", "anon_vma")


@pytest.mark.parametrize("what", SITES)
def test_nothing_is_left_when_an_allocation_fails(what: str) -> None:
    for nth in (1, 2, 5, 17):
        nothing_found(solo_run("x86_64", nth, fails=FailOnce(what, nth)))


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("what", SITES)
def test_nothing_is_left_whichever_allocation_fails(name: str, what: str) -> None:
    nth = 1
    while True:
        fails = FailOnce(what, nth)
        nothing_found(solo_run(name, 1, 60, fails))
        if fails.left > 0:
            return
        nth += 1


# ------------------------------------------------------------------ with a step left out
def test_tables_freed_without_a_grace_period_are_walked_into_where_flushes_interrupt_nobody() -> None:
    broken = set()
    for seed in range(12):
        made = machine("ppc64", 3, seed, "timed", tables_need_rcu=lambda: False)
        race_of_walkers(made, seed, 1 << 30)
        broken |= found(finished(made))
    assert broken == {"INV-WALK"}


def test_interrupts_on_let_a_flush_end_while_a_walker_is_inside() -> None:
    broken = set()
    for seed in range(12):
        made = machine("x86_64", 3, seed, "timed", gup_fast_begin=lambda: True, gup_fast_end=lambda: None)
        race_of_walkers(made, seed, 1 << 30)
        broken |= found(finished(made))
    assert broken == {"INV-WALK"}


def test_a_flush_that_forgets_the_other_cpus_is_found() -> None:
    """A gather's, and that of a fork. A CPU that was idle meanwhile shows only where its walk caches still lead."""

    def on_this_cpu_only(mm: mm_struct) -> None:
        mm.kernel.sched.cpu.invalidate(asid=None, walk_caches="all")

    broken = set()
    for seed in range(6):
        made = timed_run(
            "x86_64", seed, tlb_flush=lambda tlb: on_this_cpu_only(tlb.mm), flush_tlb_mm=on_this_cpu_only
        )
        broken |= found(made)
    assert broken == {"INV-TLB", "INV-WALK", "INV-PERM", "INV-COW"}
