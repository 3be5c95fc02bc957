"""The kit's explorations: the sound pass, the broken are caught and shown, column by column."""

from __future__ import annotations

from typing import Any

import pytest

from polymmu.conformance import Bench, Explorations
from polymmu.conformance.checks import Check
from polymmu.conformance.run import attempt
from polymmu.structs import mm_struct, mmu_gather
from tests.conformance.toys import bench_of

KIT = Explorations()
WALKER = KIT.test_no_table_is_freed_under_a_lockless_walk_in_any_order
PAGE = KIT.test_no_page_is_freed_before_every_cpu_has_forgotten_it_in_any_order
TABLE = KIT.test_no_table_is_freed_while_a_cpu_may_walk_it_in_any_order
RIGHT = KIT.test_a_right_that_was_taken_is_used_by_nobody_in_any_order
SWITCH = KIT.test_a_cpu_that_changes_address_spaces_is_flushed_all_the_same_in_any_order


def outcome(check: Check, bench: Bench, **hooks: Any) -> tuple[str, str]:
    for hook, function in hooks.items():
        bench = bench.with_hook(hook, function)
    status, reason = attempt(check, bench)
    return status, reason.partition(":")[0]


def at_once(tlb: mmu_gather, table: int, addr: int) -> None:
    """Frees a table of ptes as soon as it is unhooked."""
    tlb.need_flush = True
    mm: mm_struct = tlb.mm
    mm.kernel.ops.table_free(mm, mm.layout.pte_level, table)


def nothing() -> None:
    """Flushes nothing."""


@pytest.mark.parametrize("check", [WALKER, PAGE, TABLE, RIGHT, SWITCH])
def test_a_sound_toy_passes(check: Check) -> None:
    assert outcome(check, bench_of()) == ("passed", "")


def test_a_table_freed_at_once_is_read_by_a_walker() -> None:
    assert outcome(WALKER, bench_of(), pte_free_tlb=at_once) == ("failed", "INV-WALK")


def test_a_walker_whose_interrupts_stay_on_is_caught() -> None:
    broken = {"gup_fast_begin": lambda: True, "gup_fast_end": lambda: None}
    assert outcome(WALKER, bench_of(), **broken) == ("failed", "INV-WALK")


@pytest.mark.parametrize("name", ["ppc64", "s390"])
def test_rcu_is_missed_where_flushes_interrupt_nobody(name: str) -> None:
    assert outcome(WALKER, Bench.of(name), tables_need_rcu=lambda: False) == ("failed", "INV-WALK")


def test_pages_and_tables_that_go_without_a_flush_are_caught() -> None:
    assert outcome(PAGE, bench_of(), tlb_flush=nothing) == ("failed", "INV-TLB")
    assert outcome(TABLE, bench_of(), tlb_flush=nothing)[0] == "failed"


def test_a_right_that_stays_in_a_tlb_is_caught() -> None:
    assert outcome(RIGHT, bench_of(), flush_tlb_range=nothing) == ("failed", "INV-PERM")


def test_a_cpu_that_comes_back_to_old_translations_is_caught() -> None:
    assert outcome(SWITCH, bench_of(), flush_tlb_range=nothing)[0] == "failed"


def test_what_breaks_is_shown_by_cpu() -> None:
    with pytest.raises(AssertionError, match=r"INV-WALK[^\n]*\n\n +CPU 0 +CPU 1\n +=+ =+\n"):
        WALKER(bench_of().with_hook("pte_free_tlb", at_once))
