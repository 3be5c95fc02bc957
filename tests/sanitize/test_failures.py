"""Each allocation of a piece of work fails once: it is refused with ENOMEM or done without, and nothing is lost."""

from __future__ import annotations

import contextlib
from typing import Any

import attrs
import pytest

from polymmu.conformance import Bench, Failures
from polymmu.conformance.failures import Allocations, allocations_of, run_with
from polymmu.conformance.run import attempt
from polymmu.errors import SyscallError
from polymmu.mm import fault, frames, mm

ARCHES = ("x86", "x86_64", "ia64", "ppc64", "sparc64", "s390")
MORE = [("x86", "x86-pae"), ("s390", "s390-31"), ("ppc64", "ppc64-64k")]
SLABS = {"mm_struct", "vm_area_struct", "address_space", "anon_vma"}


def every_failure(bench: Bench, step: int = 1) -> dict[str, int]:
    """Fail each (or each ``step``-th) allocation of the work once; how many there were of each site."""
    sites = allocations_of(bench)
    for site, count in sites.items():
        for nth in range(1, count + 1, step):
            Failures.check(bench, site, nth)
    return sites


def choosing(bench: Bench, **choices: Any) -> Bench:
    """The same bench with another ``kernel`` section."""
    kernel = attrs.evolve(bench.description.kernel, **choices)
    return attrs.evolve(bench, description=attrs.evolve(bench.description, kernel=kernel))


@pytest.mark.parametrize("name", ["x86_64", "s390"])
def test_whichever_allocation_fails_nothing_is_lost(name: str) -> None:
    sites = every_failure(Bench.of(name), 3)
    assert SLABS | {"anon", "file", "huge", "table.pgd", "table.pmd", "table.pte"} <= sites.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "machine"), [*((arch, "") for arch in ARCHES), *MORE])
def test_whichever_allocation_fails_nothing_is_lost_on_any_machine(arch: str, machine: str) -> None:
    every_failure(Bench.of(arch, machine))


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        {"gather": "percpu", "i_mmap_lock": "spin"},
        {"gather": "stack"},
        {"table_free": "rcu"},
        {"gather_batch": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("arch", ["x86_64", "ppc64"])
def test_whichever_allocation_fails_nothing_is_lost_in_any_generation(
    arch: str, choice: dict[str, Any]
) -> None:
    every_failure(choosing(Bench.of(arch), **choice))


def test_every_level_of_tables_and_what_an_arch_allocates_itself_has_a_site() -> None:
    assert {"table.pgd", "table.pud", "table.pmd", "table.pte"} <= allocations_of(Bench.of("x86_64")).keys()
    assert "tsb" in allocations_of(Bench.of("sparc64"))
    assert {"gather", "table_batch"} <= allocations_of(Bench.of("ppc64")).keys()


def test_most_failures_are_refused_and_some_are_done_without() -> None:
    bench = Bench.of("ppc64")
    assert run_with(bench, Allocations("anon", 1)).refused == ("maps_and_splits",)
    assert run_with(bench, Allocations("table_batch", 1)).refused == ()
    assert run_with(bench, Allocations("gather", 1)).refused == ()
    assert run_with(bench, Allocations("mm_struct", 1)).refused == ("a new program",)


# ------------------------------------------------------------------ with a step left out
def first_failure(site: str) -> str:
    """What the check says when allocations of ``site`` fail; all of them are tried."""
    bench = Bench.of("x86_64")
    for nth in range(1, allocations_of(bench)[site] + 1):
        try:
            Failures.check(bench, site, nth)
        except AssertionError as failure:
            return str(failure)
    return ""


def test_a_page_that_is_not_given_back_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old page of a store that finds no memory for its copy."""
    put_page = frames.put_page

    def keeps_the_old_page(kernel: Any, pfn: int) -> None:
        if kernel.free.fail_next is None or not kernel.free.fail_next.failed or kept:
            put_page(kernel, pfn)
        else:
            kept.append(pfn)

    kept: list[int] = []
    monkeypatch.setattr(fault, "put_page", keeps_the_old_page)
    assert "frames are held that were not" in first_failure("anon")


def test_a_struct_that_is_not_given_back_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Keeps:
        def __init__(self, slab: Any) -> None:
            self.slab = slab

        def __getattr__(self, name: str) -> Any:
            return (lambda obj: None) if name == "free" else getattr(self.slab, name)

    alloc = mm.mm_alloc

    def forgets(kernel: Any, like: Any = None) -> Any:
        kernel.mms, slab = Keeps(kernel.mms), kernel.mms
        try:
            return alloc(kernel, like)
        finally:
            kernel.mms = slab

    monkeypatch.setattr("polymmu.machine.mm_life.mm_alloc", forgets)
    assert "1 mms left" in first_failure("table.pgd")


def test_a_call_that_gives_up_when_it_is_done_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """mremap whose last split finds no memory has moved the pages: it must not say that it failed."""
    monkeypatch.setattr("polymmu.mm.mremap.contextlib.suppress", lambda error: contextlib.nullcontext())
    assert first_failure("vm_area_struct")


def test_an_arch_that_loses_a_table_is_caught() -> None:
    """A root is freed by an arch that finds no memory for what it keeps beside it."""
    bench = Bench.of("x86_64")
    ops = bench.arch.ops

    def two_tables(mm: Any) -> int:
        first, second = ops.table_alloc(mm, 0, 0), ops.table_alloc(mm, 1, 0)
        if first >= 0 and second >= 0:
            ops.table_free(mm, 1, second)
            return first
        return -1

    broken = bench.with_hook("pgd_alloc", two_tables)
    status, reason = attempt(Failures().test_an_allocation_that_fails_is_refused_or_done_without, broken)
    assert (status, "frames are held that were not" in reason) == ("failed", True)


def test_an_arch_that_refuses_otherwise_is_caught() -> None:
    bench = Bench.of("x86_64")
    ops = bench.arch.ops

    def raises(mm: Any, level: int, addr: int) -> int:
        table = ops.table_alloc(mm, level, addr)
        if table < 0:
            raise SyscallError(22, "no table")
        return table

    status, reason = attempt(
        Failures().test_an_allocation_that_fails_is_refused_or_done_without,
        bench.with_hook("table_alloc", raises),
    )
    assert status == "failed"
    assert "refused without need" in reason
