"""Whatever the gallery breaks can be made again anywhere, and is as short as the bug itself.

A schedule needs a switch for each time that somebody must come in between: with one actor none, with two at most three
(away, back, and away once more), with each further one two more; and two choices at most. What never ends needs every
choice to come out against it, so it is shown as a cycle instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import polymmu
from polymmu.description.load_scenario import ScenarioFile, load_scenario
from polymmu.exploration.explorer import Limits
from polymmu.exploration.replay_file import read_replay
from polymmu.exploration.scenario import Explored
from polymmu.exploration.schedule import Replay

HERE = Path(__file__).parents[2] / "configs" / "polymmu_scenarios"
GALLERY = [load_scenario(str(path)) for path in sorted(HERE.glob("[0-9]*.yaml"))]
CHOICES = 2
HAND_OVERS = {
    "011b-locks-the-wrong-way-round": 1,  # both orders are seen in any schedule in which both calls get that far
    "017-tables-before-unlinking": 1,  # into the middle of the munmap
    "086-another-slot-by-now": 5,  # parent, child and reclaim are three actors on two CPUs
    "099-fast-mode-and-a-gather-on-the-stack": 1,  # the CPU changes hands once, before the flush
}
"""Entries on two CPUs that need another number of hand-overs than three, counted by hand."""
SEEDS = ("0", "1", "42", "1000", "4294967295")
TIMES = 20

AGAIN = """
import sys
from tests.explore.test_every_violation import again
for path in sys.argv[2:]:
    again(path, int(sys.argv[1]))
"""


def name_of(value: object) -> str:
    return value.scenario.name if isinstance(value, ScenarioFile) else str(value)


def again(path: str, times: int) -> None:
    """The schedule of ``path`` through the front door, and on the same machine ``times`` - 1 times more."""
    told = polymmu.replay(path).told
    assert told.outcome.finding
    file = read_replay(Path(path))
    program = Explored(file.data["machine"], file.scenario, variant=file.data["variant"])
    program.sched.keys = file.tasks
    for _ in range(times - 1):
        picker = Replay(file.schedule, strict=True)
        outcome = program.once(picker, unbounded=file.schedule.unbounded)
        assert not picker.diverged
        assert (outcome.invariant, len(told.steps)) == (told.outcome.invariant, len(file.schedule.steps))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every entry's violation on the first architecture that it is about, as a replay file, by name."""
    room = tmp_path_factory.mktemp("found")
    files = {}
    for file in GALLERY:
        name = file.scenario.name
        arch = (*file.scenario.arches, "x86_64")[0]
        files[name] = room / f"{name}.json"
        polymmu.explore(file, arch, variant="buggy", replay=files[name], limits=Limits(seconds=3600))
    return files


@pytest.mark.slow
@pytest.mark.parametrize("file", GALLERY, ids=name_of)
def test_a_violation_has_no_more_switches_than_its_bug_has_hand_overs(
    file: ScenarioFile, found: dict[str, Path]
) -> None:
    told = json.loads(found[file.scenario.name].read_text())
    schedule = told["schedule"]
    if schedule["unbounded"] and told["invariant"] == "INV-PROG":
        return
    actors = len(file.scenario.cpus)
    allowed = HAND_OVERS.get(file.scenario.name, 2 * actors - 1 if actors > 1 else 0)
    assert len(schedule["turns"]) <= allowed
    assert len(schedule["values"]) <= CHOICES


def replay_in_processes(files: list[Path], times: int) -> None:
    for seed in SEEDS:
        made = subprocess.run(
            [sys.executable, "-W", "error", "-c", AGAIN, str(times), *map(str, files)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            check=False,
            capture_output=True,
            text=True,
        )
        assert (made.returncode, made.stderr) == (0, "")


@pytest.mark.slow
def test_every_violation_is_made_again_in_other_processes_under_other_hash_seeds(
    found: dict[str, Path],
) -> None:
    replay_in_processes([path for path in found.values() if path.stat().st_size < 1 << 20], TIMES)


@pytest.mark.long
def test_those_that_never_end_are_made_again_just_so(found: dict[str, Path]) -> None:
    """Tens of thousands of steps each: seconds."""
    replay_in_processes([path for path in found.values() if path.stat().st_size >= 1 << 20], TIMES)


@pytest.mark.slow
def test_those_that_never_end_are_made_again_once(found: dict[str, Path]) -> None:
    endless = [path for path in found.values() if path.stat().st_size >= 1 << 20]
    assert endless
    for path in endless:
        again(str(path), 1)
