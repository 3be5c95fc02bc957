"""A search that was interrupted goes on where it was, and comes to what it would have come to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import polymmu
from polymmu.cli.main import main
from polymmu.exploration import handover
from polymmu.exploration.explorer import Limits, Progress
from polymmu.exploration.scenario import Explored
from polymmu.exploration.search import Search
from polymmu.exploration.shrink import shrink
from polymmu.exploration.stack import learn, load_stack, plain_stack
from tests.explore.programs import Program, Runner, all_of

PATIENT = Limits(seconds=3600)
SCENARIO = "gup-fast-against-munmap"
RESTART = "001-restart-vma-reused"
COUNTS = ("verdict", "complete", "executions", "blocked", "bounds", "strategy")


def counts(told: dict[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in COUNTS}


@pytest.mark.parametrize("strategy", ["dpor", "sleep", "naive"])
def test_a_stack_written_down_after_every_execution_changes_nothing(strategy: str) -> None:
    """Choices, locks, interrupts: what sleeping tasks would do is found out again each time."""
    program: Program = ((("choice", 0), ("ipi", 0)), (("add", 0), ("lock", 1)), (("trylock", 1),))
    whole = all_of(program, strategy)
    assert whole is not None
    records = []
    search, keys = Search(strategy), Runner(program).sched.keys
    more = True
    while more:
        anew, runner = Search(strategy), Runner(program)  # as another process would, with the same numbers
        runner.sched.keys = keys
        anew.stack = load_stack(json.loads(json.dumps(plain_stack(search.stack))))
        anew.executions, anew.blocked = search.executions, search.blocked
        learn(anew, range(len(anew.stack)), runner.once)
        anew.begin()
        search = anew
        records.append(runner.once(search))
        keys = runner.sched.keys
        more = search.back_up()
    assert (search.executions, search.blocked) == (whole[1].executions, whole[1].blocked)
    assert [record for record in records if record is not None] == whole[0]


def test_a_search_cut_into_pieces_by_limits_ends_like_one_in_one_piece(tmp_path: Path) -> None:
    """Every stage is cut: the fair schedules, the random ones, the search for everything."""
    file = tmp_path / "far"
    whole = polymmu.explore(RESTART, "x86_64", limits=Limits(random=20, executions=200, seconds=3600))
    at = 0
    for room in (2, 11, 30):
        at += room
        told = polymmu.explore(
            RESTART,
            "x86_64",
            limits=Limits(random=20, executions=room, seconds=3600, preemptions=-1),
            resume=file,
        ).to_dict()
        assert file.exists()
        assert told["executions"] == at
    last = polymmu.explore(
        RESTART,
        "x86_64",
        limits=Limits(random=20, executions=200 - at, seconds=3600, preemptions=-1),
        resume=file,
    ).to_dict()
    assert last["executions"] == 200
    assert last["blocked"] == whole.to_dict()["blocked"]
    assert last["left"] == {**(whole.to_dict()["left"] or {}), "seconds": last["left"]["seconds"]}


@pytest.mark.parametrize("strategy", ["dpor", "bounded"])
def test_a_search_that_ended_leaves_no_file(strategy: str, tmp_path: Path) -> None:
    file = tmp_path / "far"
    patient, short = Limits(preemptions=1, seconds=3600), Limits(preemptions=1, executions=3, seconds=3600)
    whole = polymmu.explore(SCENARIO, "s390", strategy=strategy, limits=patient)
    polymmu.explore(SCENARIO, "s390", strategy=strategy, limits=short, resume=file)
    assert file.exists()
    again = polymmu.explore(SCENARIO, "s390", strategy=strategy, limits=patient, resume=file)
    assert counts(again.to_dict()) == counts(whole.to_dict())
    assert not file.exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["--machine", "ppc64"], "its machine is 's390'"),
        (["--machine", "s390", "--seed", "5"], "its seed is 0, here it is 5"),
        (["--machine", "s390", "--no-speculate"], "its speculate is True"),
        (["--machine", "s390", "--strategy", "sleep"], "its strategy is 'dpor'"),
        (["--machine", "s390", "--set", "kernel.table_free=immediate"], "its machine_sha256 is"),
    ],
)
def test_the_file_of_another_search_is_refused(
    changed: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "far")
    polymmu.explore(SCENARIO, "s390", strategy="dpor", limits=Limits(executions=3, seconds=3600), resume=file)
    given = ["explore", SCENARIO, "--strategy", "dpor", *changed, "--resume", file]
    assert main(given) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{}", '{"polymmu_search": 1}', "\x00", "[1]"])
def test_what_is_no_such_file_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "far"
    file.write_text(text)
    assert main(["explore", SCENARIO, "--machine", "s390", "--resume", str(file)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert file.read_text() == text


def test_a_damaged_state_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "far"
    polymmu.explore(SCENARIO, "s390", strategy="dpor", limits=Limits(executions=3, seconds=3600), resume=file)
    data = json.loads(file.read_text())
    del data["state"]["tree"]["nodes"][0]["able"]
    file.write_text(json.dumps(data))
    assert main(["explore", SCENARIO, "--machine", "s390", "--strategy", "dpor", "--resume", str(file)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told_of_before_anything_is_searched(
    tmp_path: Path,
) -> None:
    told: list[Progress] = []
    with pytest.raises(polymmu.UserMistake, match=r"cannot write: .*; choose another place"):
        polymmu.explore(SCENARIO, "s390", resume=tmp_path / "nowhere" / "far", progress=told.append)
    assert told == []


def interrupted(arguments: list[str], file: Path) -> tuple[int, dict[str, Any]]:
    """Run a command, send it SIGINT once it is well on its way, and again: the status and what it says."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTS_ITSELF, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=file.parent,
    )
    out, err = process.communicate(timeout=300)
    assert out, err.decode()
    return process.returncode, json.loads(out)


INTERRUPTS_ITSELF = """
import os, signal, sys
from polymmu.cli.main import main
from polymmu.exploration import explorer, split
split.Split.batch = 2
count = explorer.Exploration._count
def counted(self, executions):
    count(self, executions)
    if self.executions >= AT and not self.stop():
        os.kill(os.getpid(), signal.SIGINT)
AT = int(sys.argv[1])
explorer.Exploration._count = counted
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_a_file_to_go_on_from_and_the_counts_are_those_of_a_run_in_one_piece(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes are interrupted between two of many small items."""
    monkeypatch.setattr("polymmu.exploration.split.Split.batch", 2)
    file = tmp_path / "far"
    arguments = ["explore", SCENARIO, "--machine", "s390", "--strategy", "dpor", "--seconds", "3600"]
    arguments += ["--format", "json", "--resume", str(file), "--jobs", jobs]
    status, told = interrupted(["5", *arguments], file)
    assert (status, told["partial"], told["complete"]) == (130, True, False)
    assert file.exists()
    status, told = interrupted([str(10**9), *arguments], file)
    assert status == 0
    assert not file.exists()
    whole = polymmu.explore(arguments[1], arguments[3], strategy="dpor", limits=PATIENT, jobs=int(jobs))
    assert counts(told) == counts(whole.to_dict())


def test_ctrl_c_while_a_violation_is_made_shorter_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The schedule is written, as short as it was then."""
    found = tmp_path / "found.json"
    once = Explored.once

    def pressed(program: Explored, *args: Any, **more: Any) -> Any:
        monkeypatch.setattr(Explored, "once", once)
        os.kill(os.getpid(), signal.SIGINT)
        return once(program, *args, **more)

    def begin(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(Explored, "once", pressed)
        return shrink(*args, **more)

    monkeypatch.setattr(handover, "shrink", begin)
    explore = ["explore", SCENARIO, "--machine", "s390", "--set", "kernel.table_free=immediate"]
    assert main([*explore, "--format", "json", "--replay", str(found)]) == 130
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["partial"]) == ("violation", True)
    assert main(["replay", str(found)]) == 1


def test_the_second_ctrl_c_ends_an_execution_that_does_not_end(tmp_path: Path) -> None:
    """The first is a wish, for between two executions; the file then is what was written last."""

    def pressed(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    told = polymmu.explore(SCENARIO, "s390", progress=pressed, resume=tmp_path / "far").to_dict()
    assert told["partial"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
