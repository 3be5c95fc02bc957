"""What history says of each change is seen in the figures, small sizes, one machine; and a judge can say no."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from benchmarks.claims import (
    CLAIMS,
    fallback,
    gather_latency,
    gather_memory,
    machines,
    program,
    rmap,
    small_processes,
    table_freeing,
    truncation,
)
from benchmarks.claims import __main__ as command
from benchmarks.claims.model import SMALL, Claim, Row, Verdict
from benchmarks.claims.page import section, table

import polymmu_history
from benchmarks import __main__ as benchmarks_command
from polymmu import variants


@pytest.fixture(autouse=True)
def history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "plugins_installed", lambda: (("history", polymmu_history),))


@cache
def measured(claim: str, machine: str) -> tuple[Row, ...]:
    return tuple(CLAIMS[claim].measure(machine, SMALL))


def rows(claim: str, machine: str = "x86_64") -> tuple[Row, ...]:
    return measured(claim, machine)


def row(claim: str, case: str, machine: str = "x86_64") -> Mapping[tuple[str, str], int]:
    return next(each.cells for each in rows(claim, machine) if each.case == case)


@pytest.mark.parametrize("name", list(CLAIMS))
def test_every_claim_holds_on_x86_64(name: str) -> None:
    verdict = CLAIMS[name].judge(rows(name))
    assert verdict.holds, verdict.because


# ------------------------------------------------------------------ A4.1: what the gather on the stack was made for
@pytest.mark.parametrize("call", ["munmap", "exit"])
def test_preemption_is_off_for_twice_as_long_for_twice_the_pages_per_cpu_and_not_on_the_stack(
    call: str,
) -> None:
    off = gather_latency.OFF
    small, large = (row("gather-latency", f"{call}, {pages:,} pages") for pages in SMALL.pages)
    assert large[off, "percpu"] == pytest.approx(2 * small[off, "percpu"], rel=0.05)
    for generation in ("stack", "linked"):
        assert large[off, generation] == small[off, generation] == large[gather_latency.HOLD, generation]


def test_a_task_that_asks_for_the_cpu_gets_it_in_every_generation() -> None:
    """A0.4: a break is asked for by a waiter, so the call is never waited for as a whole."""
    cells = row("gather-latency", f"munmap, {SMALL.pages[-1]:,} pages, a task wakes")
    for generation in machines.GENERATIONS:
        assert cells[gather_latency.LATE, generation] * 4 < cells[gather_latency.TOOK, generation]


def test_the_array_per_cpu_is_that_of_506_pages_and_of_2048_on_ia64() -> None:
    assert row("gather-memory", "2 CPUs, one unmaps")["bytes held at rest", "percpu"] == 2 * 506 * 8
    assert gather_memory.array_of("ia64") == 2048 * 8
    assert gather_memory.array_of("s390") == 0  # each page is flushed by itself


def test_gathers_of_506_512_and_510_times_nineteen_pages_flush_so_often() -> None:
    """8,192 pages: 17 arrays, 16 pages of 512 slots (the table that goes with them: one more), one linked gather."""
    cells = row("shootdowns", "8,192 pages, 4 CPUs ran the mm")
    flushes = [cells["gather flushes", generation] for generation in machines.GENERATIONS]
    assert flushes == [17, 17, 1]
    assert [cells["CPUs interrupted", generation] for generation in machines.GENERATIONS] == [51, 51, 3]


def test_a_fault_waits_for_the_flush_below_the_lock_and_for_munmap_whatever_the_gather() -> None:
    dropped, unmapped = (row("flush-outside-lock", f"{call}, mm on 2 CPUs") for call in ("madvise", "munmap"))
    lock = "waited for table lock"
    assert dropped[lock, "percpu"] > dropped[lock, "stack"]
    assert dropped[lock, "percpu"] > dropped[lock, "linked"]
    assert (
        unmapped[lock, "percpu"]
        == 0
        < min(unmapped["waited for mmap_lock", each] for each in machines.GENERATIONS)
    )


# ------------------------------------------------------------------ A4.4, A8.1: tables and lockless walkers
def violations(machine: str, choice: str) -> int:
    return sum(table_freeing.race(machine, choice, seed)[table_freeing.BROKEN] for seed in range(SMALL.seeds))


def test_interrupts_keep_x86_64_safe_with_immediate_freeing() -> None:
    raced = row("table-freeing", f"race, {SMALL.seeds} seeds")
    assert raced[table_freeing.WALKS, "immediate"] > 0
    assert raced[table_freeing.BROKEN, "immediate"] == raced[table_freeing.BROKEN, "rcu"] == 0


@pytest.mark.parametrize("machine", ["s390", "ppc64", "sparc64"])
def test_a_walker_that_no_flush_interrupts_needs_the_grace_period(machine: str) -> None:
    assert violations(machine, "immediate") > 0
    assert violations(machine, "rcu") == 0


def test_tables_wait_for_walkers_that_are_held_up() -> None:
    """Sixteen of a munmap wait for its flush; with RCU those of the munmaps before too, until the walk is over."""
    cells = row("table-freeing", "price, held up 100,000", "ppc64")
    assert cells[table_freeing.HELD, "immediate"] == table_freeing.TABLES + 1  # and the one above them
    assert cells[table_freeing.HELD, "rcu"] >= 2 * table_freeing.TABLES


def test_what_waits_for_a_held_up_walker_is_the_munmap_where_flushes_interrupt() -> None:
    taken = [
        row("table-freeing", f"price, held up {stall:,}")[table_freeing.CYCLES, "rcu"]
        for stall in table_freeing.STALLS
    ]
    assert taken[0] < taken[1] < taken[2]
    other = [
        row("table-freeing", f"price, held up {stall:,}", "ppc64")[table_freeing.CYCLES, "rcu"]
        for stall in table_freeing.STALLS
    ]
    assert len(set(other)) == 1


def test_each_table_without_a_batch_goes_alone() -> None:
    """Sixteen pte tables; and one pmd and one pud table, where no neighbour needs them."""
    cells = row("fallback", f"{fallback.TABLES} tables")
    alone = [cells[fallback.ALONE, how] for how in fallback.FAILS]
    assert alone[0] == 0
    assert alone == sorted(alone)
    assert alone[-1] in {16 * fallback.ROUNDS, 18 * fallback.ROUNDS}
    assert cells[fallback.FLUSHES, "all"] == alone[-1]  # the walk caches are flushed before each


def test_pages_without_a_batch_are_flushed_eight_at_a_time() -> None:
    pages = SMALL.pages[0]
    cells = row("fallback", f"{pages:,} pages")
    assert cells[fallback.FLUSHES, "all"] == fallback.ROUNDS * (pages // 8 + 1)  # and the tables in the end


# ------------------------------------------------------------------ A1: truncation that others wait for
BREAK, FLUSH, STEP = 8 * 4, 120 * 8, 4
"""Cycles of a block of 8 entries and of their flushes, each by itself at worst; of passing a vma that is done."""


def cut(preempt: bool, ptes: int, vmas: int) -> Mapping[tuple[str, str], int]:
    return row("truncation", truncation.case(preempt, ptes, vmas))


@pytest.mark.parametrize("generation", truncation.BREAKS)
def test_a_waiter_waits_for_a_block_and_a_step_per_vma_done_and_not_for_the_file(generation: str) -> None:
    """A1.2: before, for every entry of the file; the lock is then held for 50 cycles by the waiter itself."""
    few, many = cut(True, 4096, 2), cut(True, 4096, 256)
    for cells in (few, many):
        assert cells[truncation.WAIT, truncation.BEFORE] > 4096 * 4
    assert few[truncation.WAIT, generation] <= BREAK + FLUSH + 2 * STEP
    assert many[truncation.WAIT, generation] - few[truncation.WAIT, generation] <= 256 * STEP


@pytest.mark.parametrize("generation", truncation.BREAKS)
def test_restarts_zap_nothing_twice_and_visit_done_vmas_again(generation: str) -> None:
    """A1.2, INV-PROG: a round for each block of 8, always somebody waiting, and the end comes."""
    cells = cut(True, 4096, 256)
    assert cells[truncation.ENTRIES, generation] == cells[truncation.ENTRIES, truncation.BEFORE] == 4096
    assert cells[truncation.RESTARTS, generation] == 4096 // 8
    # Two blocks in each vma: after the first it is visited again, after the last it is passed.
    assert cells[truncation.VMAS, generation] == sum(2 * n for n in range(1, 257)) + 256
    assert cells[truncation.VMAS, truncation.BEFORE] == 256


def test_without_preemption_nobody_can_ask() -> None:
    cells = cut(False, 1024, 2)
    assert {cells[truncation.RESTARTS, each] for each in truncation.GENERATIONS} == {0}


def test_without_preemption_a_tick_is_seen_after_1024_pages() -> None:
    """A2.1: s390 flushes each entry, so that ticks come before a block of 1,024 is done."""
    found = truncation.cutting("s390", "2.6.11", False, 4096, 2)
    assert found[truncation.RESTARTS] == 4
    assert found[truncation.WAIT] == pytest.approx(1024 * (4 + 120), rel=0.01)


# ------------------------------------------------------------------ A3.1, A6: processes, and the ptes of a page
def test_exit_before_2_6_12_reads_all_of_user_space_however_small_the_process() -> None:
    """On x86 that is 3 GiB in root entries of 4 MiB; by vma list it is an entry for each that the process is in."""
    cells = row("small-processes", "fork, exit", "x86")
    entries = [cells[small_processes.ENTRIES, release] for release in small_processes.RELEASES]
    assert entries == [768, 768, 3]  # program and libraries, heap, stack
    taken = [cells[small_processes.CYCLES, release] for release in small_processes.RELEASES]
    assert taken[1] - taken[2] == 4 * (768 - 3)


def test_blocks_of_8_pages_flush_more_often_than_blocks_of_1024() -> None:
    for release in small_processes.RELEASES:
        off, on = (
            row("small-processes", case)[small_processes.FLUSHES, release]
            for case in ("sh", "sh; preemption")
        )
        assert on > 2 * off


def test_rmap_by_tree_looks_at_few_of_many_vmas_and_by_list_and_table_at_all() -> None:
    cells = row("rmap", "1,000 vmas")
    assert (cells[rmap.VMAS, rmap.SCAN], cells[rmap.PTES, rmap.SCAN]) == (1000, 4000)
    assert cells[rmap.VMAS, rmap.LIST] == 1000
    assert max(cells[rmap.VMAS, rmap.PRIO], cells[rmap.VMAS, rmap.INTERVAL]) < 32
    assert {cells[rmap.PTES, way] for way in rmap.TREES} == {4}


# ------------------------------------------------------------------ a program, and determinism
def test_one_cpu_interrupts_nobody_and_two_do_the_same_accesses() -> None:
    found = {each.case: each.cells for each in rows("program")}
    count = program.COUNT
    assert (
        found[program.INTERRUPTED][count, program.ONE] == 0 < found[program.INTERRUPTED][count, program.AFTER]
    )
    both = sum(found[f"CPU {cpu}: accesses"][count, program.AFTER] for cpu in (0, 1))
    assert both == found["CPU 0: accesses"][count, program.ONE]


@pytest.mark.parametrize("name", ["gather-latency", "table-freeing", "program"])
def test_two_measurements_give_the_same_bytes(name: str) -> None:
    claim = CLAIMS[name]
    assert section(claim, {"x86_64": claim.measure("x86_64", SMALL)}) == section(
        claim, {"x86_64": rows(name)}
    )


# ------------------------------------------------------------------ judges and page
def test_a_claim_that_figures_do_not_bear_out_is_told_so() -> None:
    """s390 flushes each entry where it is cleared: no gather moves that out of the lock."""
    claim = CLAIMS["flush-outside-lock"]
    found = {"s390": rows("flush-outside-lock", "s390")}
    assert not claim.judge(found["s390"]).holds
    assert "- s390: **no**; the wait for the lock is" in section(claim, found)


@pytest.mark.parametrize(
    "name",
    [
        "gather-latency",
        "flush-outside-lock",
        "shootdowns",
        "fallback",
        "table-freeing",
        "truncation",
        "small-processes",
        "rmap",
    ],
)
def test_a_judge_says_no_when_before_and_after_are_changed_about(name: str) -> None:
    claim = CLAIMS[name]
    other = dict(zip(claim.variants, reversed(claim.variants), strict=True))
    turned = [
        Row(each.case, {(figure, other[variant]): value for (figure, variant), value in each.cells.items()})
        for each in rows(name, "s390" if name == "table-freeing" else "x86_64")
    ]
    assert not claim.judge(turned).holds


def judged(rows: Sequence[Row]) -> Verdict:
    return Verdict(rows[0].cells["cost", "new"] < rows[0].cells["cost", "old"], "1,000 against 5")


TOY = Claim(
    name="toy",
    title="Toys",
    statement="   New toys\n   cost less.",
    method="Bought.",
    variants=("old", "new"),
    figures=("cost", "a longer figure"),
    measure=lambda machine, effort: [Row(f"on {machine}", {("cost", "old"): 1000, ("cost", "new"): 5})],
    judge=judged,
)


def test_a_table_has_a_column_per_figure_and_variant_and_a_dash_for_what_was_not_measured() -> None:
    assert table(TOY, {"x86": TOY.measure("x86", SMALL)}).splitlines() == [
        "                             cost    a longer figure",
        "    machine  case        old  new           old  new",
        "    x86      on x86    1,000    5             -    -",
    ]


def test_json_and_text_say_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "CLAIMS", {"toy": TOY})
    assert benchmarks_command.main(["claims", "s390", "--format", "json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["claims"]
    expected: dict[str, Any] = {"old": 1000, "new": 5}
    assert told["rows"] == [{"case": "on s390", "figures": {"cost": expected, "a longer figure": {}}}]
    assert (told["claim"], told["machine"], told["holds"]) == ("toy", "s390", True)
    assert command.main(["s390"]) == 0
    assert "New toys cost less." in capsys.readouterr().out


def test_a_page_that_is_not_what_the_code_gives_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "CLAIMS", {"toy": TOY})
    monkeypatch.setattr(command, "PAGE", tmp_path / "claims.md")
    assert command.main(["--check"]) == 1
    assert command.main(["--write"]) == 0
    assert command.main(["--check"]) == 0
    (tmp_path / "claims.md").write_text("old", encoding="utf-8")
    assert command.main(["--check"]) == 1
    assert "run python -m benchmarks claims --write" in capsys.readouterr().err


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["vax"]) == 2
    assert "vax" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["x86", "--check"])
    assert "leave MACHINE and --only out" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_of_claims_is_up_to_date() -> None:
    assert command.main(["--check"]) == 0
