"""A program that tries again for ever inside one execution: it is ended after so many steps, and never called clean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import polymmu
from polymmu.cli.main import main
from polymmu.exploration.explored import Finding
from polymmu.exploration.explorer import Limits
from polymmu.exploration.split import Here
from polymmu.mm import unmap
from polymmu.mm.gather import tlb_finish_mmu
from polymmu.structs import mmu_gather
from polymmu.workers import Workers

SCENARIO = """
scenario: 1
name: tries-again
summary: a munmap beside a program
machine: {cpus: 2, memory: 64 MiB}
setup:
  - mm: a
  - mmap: {mm: a, at: 16p, length: 1p}
  - mmap: {mm: a, at: 32p, length: 1p}
cpus:
  0: {mm: a, do: [{munmap: {at: 16p, length: 1p}}]}
  1: {mm: a, do: [{munmap: {at: 32p, length: 1p}}]}
"""
STEPS = 300
"""Far more than it has without the mistake."""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """Two threads that unmap."""
    path = tmp_path / "tries-again.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU 1 asks again and again, before its gather ends, whether it is CPU 0."""

    def spins(tlb: mmu_gather, start: int, end: int) -> None:
        sched = tlb.mm.kernel.sched
        while sched.runs_tasks and sched.cpu.index == 1:
            sched.cond_resched()
        tlb_finish_mmu(tlb, start, end)

    monkeypatch.setattr(unmap, "tlb_finish_mmu", spins)


def explored(scenario: Path, strategy: str, workers: Workers | None = None) -> Finding:
    limits = Limits(random=4, executions=40, seconds=3600, steps=STEPS, preemptions=0)
    return polymmu.explore(scenario, "x86_64", strategy=strategy, limits=limits, workers=workers)


def test_without_the_mistake_nothing_is_ended(scenario: Path) -> None:
    told = polymmu.explore(scenario, "x86_64", strategy="dpor", limits=Limits(steps=STEPS)).to_dict()
    assert (told["verdict"], told["complete"], told["cut"]) == ("clean", True, 0)
    assert "steps" not in told["bounds"]


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("strategy", ["default", "pct", "dpor", "bounded", "portfolio"])
def test_what_goes_on_for_ever_is_ended_and_never_clean(scenario: Path, strategy: str) -> None:
    found = explored(scenario, strategy)
    told = found.to_dict()
    assert told["verdict"] in ("bounded", "sampled")
    assert not told["complete"]
    assert told["bounds"]["steps"] == STEPS
    assert told["cut"] > 0
    assert f"had more than {STEPS} steps and w" in str(found)


@pytest.mark.usefixtures("planted")
def test_a_search_that_tried_everything_else_says_bounded(scenario: Path) -> None:
    limits = Limits(seconds=3600, steps=60)
    found = polymmu.explore(scenario, "x86_64", strategy="dpor", limits=limits)
    told = found.to_dict()
    assert (told["verdict"], told["complete"], told["bounds"]["steps"]) == ("bounded", False, 60)
    assert str(found).startswith("bounded: an execution had more than 60 steps and was ended there")


@pytest.mark.usefixtures("planted")
def test_workers_say_the_same(scenario: Path) -> None:
    """Items of a split search, in this process."""
    for strategy in ("pct", "dpor"):
        alone, split = explored(scenario, strategy).to_dict(), explored(scenario, strategy, Here()).to_dict()
        assert alone["cut"] == split["cut"] > 0


@pytest.mark.usefixtures("planted")
def test_the_command_line_has_the_limit_and_does_not_call_it_complete(
    scenario: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["explore", str(scenario), "--machine", "x86_64", "--strategy", "default", "--steps", "77"]
    asked += ["--replay", str(tmp_path / "none.json"), "--format", "json"]
    assert main([*asked, "--require-complete"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["cut"], told["bounds"]["steps"]) == (1, 77)
    assert main([*asked[:6], "--steps", "-1"]) == 2
    assert "--steps -1 is negative" in capsys.readouterr().err
