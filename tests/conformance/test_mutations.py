"""Every hook's breakage is noticed by a check, and the page in the docs says by which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polymmu import defaults
from polymmu.conformance import Bench
from polymmu.conformance.breakages import breakages_of, is_empty
from polymmu.conformance.mutations import Row, page, rows_of
from tests.conformance.toys import TOY, bench_of


def test_a_sample_of_broken_hooks_is_noticed() -> None:
    hooks = ("byte_order", "page_protections", "flush_tlb_page", "tlb_flush", "switch_mm", "decode_fault")
    rows = list(rows_of([Bench.of("x86_64")], hooks))
    caught = {(row.hook, row.breakage): row.caught_by for row in rows}
    assert caught["tlb_flush", "this CPU only"].startswith("Tlb.unmapped_pages")
    assert caught["flush_tlb_page", "does nothing"].startswith("Faults.a_first_load_sees_zeroes")
    assert [row for row in rows if row.survived] == []


def test_a_breakage_that_nothing_notices_is_a_hole() -> None:
    assert Row("m68k", "populate", "does nothing").survived
    assert not Row("m68k", "summary", "left out", reason="only the listing shows it").survived
    assert "**SURVIVED**" in page([Row("m68k", "populate", "does nothing")])


def test_every_hook_that_an_arch_implements_is_broken() -> None:
    arch = Bench.of("x86").arch
    assert {each.hook for each in breakages_of(arch)} == set(arch.implementations)


def test_breaking_a_hook_changes_nothing_outside_it() -> None:
    bench = bench_of()
    before = {name: getattr(TOY.ops, name) for name in TOY.implementations}
    rows = list(rows_of([bench], ("decode_fault",)))
    assert all(row.caught_by for row in rows)
    assert before == {name: getattr(TOY.ops, name) for name in TOY.implementations}


def test_empty_functions_are_told_from_others() -> None:
    assert is_empty(defaults.flush_tlb_pgtables)
    assert not is_empty(defaults.flush_tlb_mm)
    assert not is_empty(defaults.have_move_pmd)


@pytest.mark.slow
def test_every_broken_hook_of_ours_is_noticed_and_the_page_says_so() -> None:
    script = Path(__file__).parents[2] / "docs" / "mutations.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
