"""The benchmarks run, on tiny inputs, and say what they mean; nothing here looks at a clock."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.explore import PARTS, explore
from benchmarks.faults import faults
from benchmarks.growth import free_pgtables_visits, growth
from benchmarks.measure import GIB, KIB, MIB, TIB, Row, Subject, Target, side_by_side
from benchmarks.replay import replay
from benchmarks.sanitizer import sanitizer
from benchmarks.workloads import Lab, pointer_chase

from benchmarks import __main__ as command
from benchmarks import peers as peers_module

PAGE = 4 * KIB
TINY = 1 / 5000


def test_every_row_of_replay_has_a_figure_and_targets_only_where_there_is_a_ratio() -> None:
    rows = replay(Lab(scale=TINY, rounds=1))
    assert all(row.figure is not None and row.figure > 0 for row in rows)
    assert all(row.ratio is not None for row in rows if row.target is not None)
    assert {str(row.target) for row in rows if row.target is not None} == {">= 0.1x", ">= 0.05x", ">= 0.5x"}


@pytest.mark.slow
def test_every_first_touch_of_the_fault_benchmark_is_a_fault() -> None:
    # ``touching`` itself refuses a run whose number of minor faults is not the number of pages.
    rows = faults(Lab(scale=TINY, rounds=1))
    assert [row.unit for row in rows] == ["faults/s"] * 3 + ["pages/s"]


def test_growth_has_a_row_per_number_of_vmas_and_per_shape() -> None:
    rows = growth(Lab(scale=1 / 1000, rounds=1))
    assert [row.what for row in rows if row.what.startswith("munmap")] == [
        "munmap of one page among 10 vmas",
        "munmap of one page among 100 vmas",
    ]
    assert sum(row.what.startswith("free_pgtables") for row in rows) == 7


def test_the_time_of_an_execution_is_in_parts_that_add_up_to_all_of_it() -> None:
    rows = explore(Lab(scale=TINY, rounds=1))
    assert [row.what for row in rows[2:]] == list(PARTS)
    assert sum(row.figure or 0 for row in rows[2:]) == pytest.approx(100)
    assert all(row.figure is not None and row.figure > 0 and row.ratio is not None for row in rows[:2])


@pytest.mark.slow
def test_the_sanitizer_has_a_ratio_for_each_workload() -> None:
    rows = sanitizer(Lab(scale=TINY, rounds=1))
    assert len(rows) == 5
    assert all(row.ratio is not None and row.reference == "unwatched" for row in rows)


@pytest.mark.parametrize(
    ("length", "pages", "distance", "visited", "tables"),
    [
        # 16 pte tables under one entry of each upper level: 16 + 1 + 1.
        (32 * MIB, 8 * KIB, PAGE, 18, 18),
        # The only pte table's entry is one of the 512 that its pmd table holds for a vma of 1 GiB.
        (GIB, 1, PAGE, 512 + 1 + 1, 3),
        # 1 TiB spans two entries of the top table; the pud and pmd table that exist are read whole.
        (TIB, 1, PAGE, 2 + 512 + 512, 3),
    ],
)
def test_free_pgtables_reads_tables_that_exist_and_no_others(
    length: int, pages: int, distance: int, visited: int, tables: int
) -> None:
    assert free_pgtables_visits(length, pages, distance) == (visited, tables)


def test_the_chase_visits_every_node_once_per_round() -> None:
    nodes = 64 * KIB // 64
    chase = pointer_chase(7 * nodes, 64 * KIB)
    loads = chase.vaddr[chase.op == 1]
    assert len(loads) == len(np.unique(loads)) == nodes
    assert int(loads.max()) - int(loads.min()) == 64 * KIB - 64
    assert (chase.op[:7] == [0, 0, 0, 0, 0, 0, 1]).all()


def test_a_missing_peer_gets_a_row_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str) -> None:
        raise peers_module.NotInstalledError(f"not installed: pip install {package}")

    monkeypatch.setattr(peers_module, "module", missing)
    monkeypatch.setattr("shutil.which", lambda name: None)
    rows = {row.what: row for row in peers_module.peers(Lab(scale=TINY, rounds=1))}
    absent = {what: row.note for what, row in rows.items() if row.figure is None}
    assert sorted(absent.values()) == [
        "not installed: apt install valgrind",
        "not installed: pip install libcachesim",
        "not installed: pip install pycachesim",
        "not installed: pip install unicorn",
        "not installed: pip install volatility3",
    ]
    assert all(row.figure for what, row in rows.items() if what.startswith("polymmu"))


@pytest.mark.parametrize(
    ("target", "figure", "ratio", "met"),
    [
        (Target(0.5), 1.0, 0.5, True),
        (Target(0.5), 1.0, 0.49, False),
        (Target(2, at_most=True), 1.0, 2.1, False),
        (Target(2, of_figure=True), 3.0, 0.1, True),
        (Target(2, at_most=True, of_figure=True), 3.0, 0.1, False),
    ],
)
def test_a_target_bounds_the_ratio_unless_it_names_the_figure(
    target: Target, figure: float, ratio: float, met: bool
) -> None:
    row = Row(group="g", what="w", figure=figure, ratio=ratio, target=target)
    assert row.is_met is met


def test_subjects_take_turns_after_one_round_that_warms_up() -> None:
    calls: list[str] = []

    def subject(name: str) -> Subject:
        return lambda: lambda: calls.append(name)

    side_by_side({name: subject(name) for name in "ab"}, 2)
    assert calls == ["a", "b"] * 3


def test_the_command_prints_json_and_fails_on_a_missed_target(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = Row(group="g", what="w", figure=1.0, unit="s", target=Target(2, of_figure=True))
    monkeypatch.setattr(command, "BENCHMARKS", {"one": lambda lab: [missed]})
    assert command.main(["one", "--format", "json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"][0]["met"] is False
    assert command.main(["one"]) == 1
    assert ">= 2 MISSED" in capsys.readouterr().out


def test_an_unknown_benchmark_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["spede"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"benchmarks: unknown benchmark 'spede' (known: {', '.join(command.BENCHMARKS)}; rounds from 1)"
    ]


def test_the_documented_command_names_every_benchmark() -> None:
    text = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert all(f"`{name}`" in text for name in command.BENCHMARKS)
