"""What the explorer says of scenarios on the real core: gup_fast against munmap, whose answer history knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import polymmu
from polymmu.cli.main import main
from polymmu.description import installed
from polymmu.description.load_scenario import load_scenario
from polymmu.exploration.explorer import Limits, search
from polymmu.exploration.scenario import Explored
from polymmu.sched.exploring import ExploringSched

SCENARIO = """
scenario: 1
name: walker
machine: {cpus: 2, memory: 64 MiB}
variants:
  buggy: {kernel: {table_free: immediate}}
  fixed: {kernel: {table_free: rcu}}
arches: [s390, ppc64, x86_64]
setup:
  - mm: a
  - mmap: {mm: a, at: 16p, length: 1p}
  - touch: {mm: a, at: 16p, length: 1p}
cpus:
  0: {mm: a, do: [{munmap: {at: 16p, length: 1p}}]}
  1: {mm: a, do: [{gup_fast: {at: 16p, may: segv}}]}
"""


@pytest.fixture
def walker(tmp_path: Path) -> Path:
    path = tmp_path / "walker.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.mark.parametrize("arch", ["s390", "ppc64"])
def test_a_table_freed_at_once_is_read_by_a_walker_where_flushes_interrupt_nobody(
    walker: Path, arch: str
) -> None:
    found = polymmu.explore(walker, arch, variant="buggy", strategy="dpor")
    assert (found.verdict.verdict, found.to_dict()["violation"]["invariant"]) == ("violation", "INV-WALK")


@pytest.mark.parametrize("arch", ["s390", "ppc64"])
def test_with_rcu_every_interleaving_is_clean(walker: Path, arch: str) -> None:
    found = polymmu.explore(walker, arch, strategy="dpor").to_dict()
    assert (found["verdict"], found["complete"]) == ("clean", True)


def test_on_x86_64_interrupts_off_hold_the_flush_up_and_with_it_the_free(walker: Path) -> None:
    found = polymmu.explore(walker, "x86_64", variant="buggy", strategy="dpor").to_dict()
    assert (found["verdict"], found["complete"]) == ("clean", True)


def test_a_violation_is_shown_by_cpu_and_replays_in_another_run(
    walker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "found.json")
    explored = ["explore", str(walker), "--machine", "s390", "--variant", "buggy", "--replay", file]
    assert main([*explored, "--format", "json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["violation"]["replay"] == file
    assert {"cpu", "task", "op", "where", "detail"} <= set(told["violation"]["steps"][0])
    # Two hand-overs are what it takes: to the walker, or back from it, in the middle of a walk.
    assert len(told["violation"]["schedule"]["turns"]) <= 2
    assert main(["replay", file]) == 1
    shown = capsys.readouterr().out
    assert "CPU 0" in shown
    assert "INV-WALK" in shown


def test_a_schedule_of_another_scenario_is_refused(
    walker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "found.json")
    assert main(["explore", str(walker), "--machine", "s390", "--variant", "buggy", "--replay", file]) == 1
    walker.write_text(SCENARIO.replace("length: 1p", "length: 2p"))
    assert main(["replay", file]) == 2
    assert "another version of scenario" in capsys.readouterr().err


def test_a_replay_that_does_something_else_says_at_which_step(
    walker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    assert (
        main(["explore", str(walker), "--machine", "s390", "--variant", "buggy", "--replay", str(file)]) == 1
    )
    data = json.loads(file.read_text())
    data["schedule"]["steps"][3][2] = "another_lock"
    file.write_text(json.dumps(data))
    assert main(["replay", str(file)]) == 2
    assert "step 3" in capsys.readouterr().err


def test_a_machine_of_another_arch_is_refused(walker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", str(walker), "--machine", "ia64"]) == 2
    assert "is about s390, ppc64, x86_64" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_verdict_and_executions(walker: Path) -> None:
    one, other = (polymmu.explore(walker, "s390", variant="buggy", strategy="pct", seed=5) for _ in range(2))
    assert one.verdict.schedule == other.verdict.schedule
    assert one.verdict.executions == other.verdict.executions


RESTART = "001-restart-vma-reused"


def test_the_restart_race_of_2004_is_found_on_the_real_core() -> None:
    """Corpus 1: by source sets in at most 500 executions, by random schedules in a median of at most 100."""
    found = polymmu.explore(RESTART, variant="buggy", strategy="dpor")
    assert found.to_dict()["violation"]["invariant"] == "INV-TRUNC"
    assert found.verdict.executions <= 500
    needed = sorted(
        polymmu.explore(
            RESTART, variant="buggy", strategy="pct", seed=seed, limits=Limits(random=400, shrink=0)
        ).verdict.executions
        for seed in range(9)
    )
    assert needed[len(needed) // 2] <= 100


@pytest.mark.slow
def test_the_version_that_followed_four_days_later_is_clean_in_every_interleaving() -> None:
    found = polymmu.explore(RESTART, strategy="dpor", limits=Limits(seconds=3600)).to_dict()
    assert (found["verdict"], found["complete"]) == ("clean", True)


@pytest.mark.slow
def test_a_loop_that_would_never_end_is_found_by_fair_schedules(tmp_path: Path) -> None:
    """Corpus 2: without a mark for vmas that are done, a truncation that is asked to stop begins anew for ever."""
    text = Path(installed.scenario_files()[RESTART].path).read_text()
    path = tmp_path / "livelock.yaml"
    path.write_text(text.replace("restart-vma}", "bug-2}").replace(f"name: {RESTART}", "name: livelock"))
    found = polymmu.explore(path, variant="buggy", strategy="fair", replay=tmp_path / "found.json")
    assert found.to_dict()["violation"]["invariant"] == "INV-PROG"
    assert main(["replay", str(tmp_path / "found.json")]) == 1
    assert polymmu.explore(path, variant="fixed", strategy="fair").verdict.outcome is None


def test_the_matrix_says_where_a_walker_is_safe_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    """Interrupts off hold flushes up on x86; elsewhere flushes interrupt nobody, and only RCU waits for the walker."""
    assert (
        main(["explore", "--matrix", "gup-fast-against-munmap", "--format", "json", "--strategy", "dpor"])
        == 1
    )
    told = json.loads(capsys.readouterr().out)["cells"]
    verdicts = {(cell["machine"], cell["kernel"]): cell["verdict"] for cell in told}
    broken = {(machine, "immediate") for machine in ("ppc64", "s390", "sparc64")}
    machines = ("ppc64", "s390", "sparc64", "x86", "x86_64")
    cells = {(machine, kernel) for machine in machines for kernel in ("immediate", "rcu")}
    assert verdicts == {cell: "violation" if cell in broken else "clean" for cell in cells}


def test_several_scenarios_need_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", RESTART, "gup-fast-against-munmap"]) == 2
    assert "with --matrix" in capsys.readouterr().err


def test_an_execution_that_was_broken_off_leaves_nothing_behind_for_the_next() -> None:
    """Sleep sets break most executions off in the middle: CPU 1 may have used frames of its stock, and CPU 0 none."""
    found = polymmu.explore("055-a-copy-after-the-unmap", "x86_64", strategy="sleep")
    everything = polymmu.explore("055-a-copy-after-the-unmap", "x86_64", strategy="dpor").verdict
    assert (found.verdict.verdict, found.verdict.complete) == ("clean", True)
    assert found.verdict.executions - found.verdict.blocked == everything.executions - everything.blocked


def test_a_strategy_that_does_not_exist_is_refused_not_passed_over(walker: Path) -> None:
    with pytest.raises(polymmu.UserMistake, match=r"unknown strategy 'dporr'.*dpor"):
        polymmu.explore(walker, "s390", strategy="dporr")


EVICTED = """
scenario: 1
name: evicted
machine: {cpus: 1, memory: 64 MiB}
choices: {tlb_eviction: 1}
setup:
  - mm: a
  - mmap: {mm: a, at: 16p, length: 1p}
  - touch: {mm: a, at: 16p, length: 1p}
cpus:
  0: {mm: a, do: [{load: {at: 16p}}, {load: {at: 16p}}]}
"""


def test_an_entry_may_be_gone_before_any_access_but_no_more_often_than_the_budget_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before none of the two accesses, the second, the first."""
    path = tmp_path / "evicted.yaml"
    path.write_text(EVICTED)
    program = Explored("x86_64", load_scenario(str(path)))
    walks, run = [], ExploringSched.run

    def counted(*args: Any, **more: Any) -> Any:
        before = program.machine.report().to_dict()["walk"]["count"]
        failure = run(*args, **more)
        walks.append(program.machine.report().to_dict()["walk"]["count"] - before)
        return failure

    monkeypatch.setattr(ExploringSched, "run", counted)
    found = search(program, "dpor")
    assert (found.verdict, found.executions, walks) == ("clean", 3, [0, 1, 1])


def test_a_setup_that_goes_wrong_is_the_users_mistake(
    walker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    walker.write_text(SCENARIO.replace("- touch: {mm: a, at: 16p", "- touch: {mm: a, at: 20p"))
    assert main(["explore", str(walker), "--machine", "s390"]) == 2
    assert "setup[2]: segmentation fault: store at 0x14000" in capsys.readouterr().err
