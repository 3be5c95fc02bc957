"""The kit's race of lockless walkers against a CPU that frees tables: the sound pass, the broken are caught."""

from __future__ import annotations

from typing import Any

import pytest

from polymmu.conformance import Bench, Races
from polymmu.conformance.run import attempt
from polymmu.structs import mm_struct, mmu_gather
from tests.conformance.toys import bench_of

CHECK = Races().test_no_table_is_freed_under_a_lockless_walk


def outcome(bench: Bench, **hooks: Any) -> tuple[str, str]:
    for hook, function in hooks.items():
        bench = bench.with_hook(hook, function)
    status, reason = attempt(CHECK, bench)
    return status, reason.partition(" table ")[0]


CAUGHT = "failed", "seed 0: INV-WALK: lockless walker reads"


def at_once(tlb: mmu_gather, table: int, addr: int) -> None:
    """Frees a table of ptes as soon as it is unhooked."""
    tlb.need_flush = True
    mm: mm_struct = tlb.mm
    mm.kernel.ops.table_free(mm, mm.layout.pte_level, table)


def test_a_toy_that_lets_interrupts_protect_its_walkers_passes() -> None:
    assert outcome(bench_of()) == ("passed", "")


def test_a_toy_that_frees_its_tables_at_once_is_caught() -> None:
    assert outcome(bench_of(), pte_free_tlb=at_once) == CAUGHT


def test_a_toy_that_leaves_interrupts_on_is_caught() -> None:
    status, reason = outcome(bench_of(), gup_fast_begin=lambda: True, gup_fast_end=lambda: None)
    assert (status, "INV-WALK" in reason) == ("failed", True)


@pytest.mark.parametrize("name", ["ppc64", "s390"])
def test_rcu_is_missed_where_flushes_interrupt_nobody(name: str) -> None:
    assert outcome(Bench.of(name), tables_need_rcu=lambda: False) == CAUGHT


def test_what_has_no_lockless_walks_is_skipped_and_says_so() -> None:
    reason = "nobody walks its tables without a lock (gup_fast_begin answers no)"
    assert outcome(bench_of(), gup_fast_begin=lambda: False) == ("skipped", reason)
