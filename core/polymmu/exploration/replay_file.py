"""A schedule as a file: what must be the same for it to mean anything, and what happened at each step.

It is replayed only on the scenario, the machine and the versions that it was made with; every step is compared. With
``strict`` off only the scenario must be the same, and the schedule is advice: what a test of mended code needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from polymmu import plugins
from polymmu.description.installed import scenario_files
from polymmu.description.load_scenario import ScenarioFile, load_scenario
from polymmu.errors import PolymmuError, UserMistake
from polymmu.exploration.columns import finding_lines, told_text
from polymmu.exploration.scenario import Explored
from polymmu.exploration.schedule import Replay, Schedule
from polymmu.exploration.telling import steps_of
from polymmu.exploration.witness import Told, watched
from polymmu.sched.picker import Diverged

__all__ = ["Replayed", "replay", "write_replay"]

VERSION = 2
GROUPS = ("polymmu.arch", "polymmu.plugin")
KINDS: dict[str, type] = {
    "scenario": str,
    "scenario_sha256": str,
    "machine": str,
    "sets": list,
    "speculate": bool,
    "versions": dict,
    "tasks": list,
    "memory_model": str,
    "invariant": str,
    "schedule": dict,
}
"""What a file must have besides its version, and of which kind."""


@attrs.frozen
class ReplayFile:
    """What a file holds, checked. ``tasks``: the keys of all tasks, by their numbers."""

    data: dict[str, Any]
    schedule: Schedule
    tasks: list[tuple[int, ...]]
    scenario: ScenarioFile


@attrs.frozen
class Replayed:
    """A schedule made again. ``str()`` is what the command line prints, ``to_dict()`` its JSON."""

    scenario: str
    machine: str
    told: Told

    def check(self) -> None:
        """Raises PolymmuError, with the schedule, if it breaks anything: for a test."""
        if self.told.outcome.finding:
            raise PolymmuError(str(self))

    def to_dict(self) -> dict[str, Any]:
        """Exactly the JSON of ``polymmu replay``."""
        outcome = self.told.outcome
        return {
            "schema": 1,
            "scenario": self.scenario,
            "machine": self.machine,
            "verdict": "violation" if outcome.finding else "clean",
            "invariant": outcome.invariant,
            "message": outcome.finding,
            "steps": steps_of(self.told),
        }

    def __str__(self) -> str:
        found = self.told.outcome.finding
        head = finding_lines(self.told) if found else ["nothing broke this time"]
        where = f"scenario {self.scenario}, machine {self.machine}"
        return "\n".join([*head, where, "", *told_text(self.told)])


def versions() -> dict[str, str]:
    """Every distribution that an arch or a plugin comes from, and polymmu's own."""
    rows = [row for group in GROUPS for row in plugins.installed(group).values()]
    return dict(sorted({row.distribution: row.version for row in rows}.items()))


def write_replay(path: Path, program: Explored, told: Told) -> None:
    """Write the schedule of ``told``. An installed scenario goes by its name, another one by its path."""
    name = program.file.scenario.name
    installed = scenario_files().get(name)
    same = installed is not None and str(installed.path) == program.file.filename
    data = {
        "polymmu_replay": VERSION,
        "scenario": name if same else program.file.filename,
        "scenario_sha256": program.file.sha256,
        "machine": str(program.asked_for),
        "sets": list(program.machine.sets),
        "variant": program.variant,
        "speculate": program.speculate,
        "versions": versions(),
        "memory_model": program.memory_model,
        "invariant": told.outcome.invariant,
        "finding": told.outcome.finding,
        "tasks": [list(key) for key in program.sched.keys],
        "schedule": told.schedule.to_dict(),
    }
    try:
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserMistake(f"cannot write: {error.strerror}; choose another place", place=str(path)) from error


def read_replay(path: Path, *, strict: bool = True) -> ReplayFile:
    """Read and check a file. Raises UserMistake."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserMistake(
            f"cannot be read: {getattr(error, 'strerror', None) or error}", place=str(path)
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserMistake(
            f"is no JSON: {error}; write it again with 'polymmu explore'", place=str(path)
        ) from None
    if not isinstance(data, dict) or data.get("polymmu_replay") != VERSION:
        raise UserMistake("is no replay file of this version; 'polymmu explore' writes them", place=str(path))
    try:
        for key, kind in KINDS.items():
            if not isinstance(data[key], kind):
                raise TypeError(f"{key} is no {kind.__name__}")  # noqa: TRY301  # told as any other damage
        if not isinstance(data["variant"], str | None):
            raise TypeError("variant is no str")  # noqa: TRY301
        data["sets"] = [str(each) for each in data["sets"]]
        tasks = [tuple(int(part) for part in key) for key in data["tasks"]]
        if len(set(tasks)) != len(tasks):
            raise ValueError("a task is there twice")  # noqa: TRY301
        schedule = Schedule.from_dict(data["schedule"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserMistake(
            f"is damaged ({error!r}); write it again with 'polymmu explore'", place=str(path)
        ) from None
    file = load_scenario(data["scenario"])
    if file.sha256 != data["scenario_sha256"]:
        raise UserMistake(
            f"was made with another version of scenario '{data['scenario']}'; explore it again",
            place=str(path),
        )
    if strict:
        _same_versions(path, data["versions"])
    return ReplayFile(data, schedule, tasks, file)


def _same_versions(path: Path, then: dict[str, Any]) -> None:
    now = versions()
    for name in sorted({*now, *then}):
        if now.get(name) != then.get(name):
            raise UserMistake(
                f"was made with {name} {then.get(name, '(not installed)')}, "
                f"here is {now.get(name, '(not installed)')}; explore the scenario again",
                place=str(path),
            )


def replay(path: str | Path, *, strict: bool = True) -> Replayed:
    """Make the schedule of a file that ``explore`` wrote again. Raises UserMistake where it cannot be.

    ``strict``: with the same versions, and every step must be the one that it was. Otherwise the schedule is followed
    as far as it can be, so that a test goes on to mean something when the code was mended:
    ``polymmu.replay("found.json", strict=False).check()``.
    """
    path = Path(path)
    file = read_replay(path, strict=strict)
    data, schedule = file.data, file.schedule
    program = Explored(
        data["machine"],
        file.scenario,
        sets=data["sets"],
        variant=data["variant"],
        speculate=data["speculate"],
        memory_model=data["memory_model"],
    )
    program.sched.keys = file.tasks
    program.steps = max(program.steps, len(schedule.steps))
    picker = Replay(schedule, strict=strict)
    try:
        told = watched(program, picker, unbounded=schedule.unbounded)
    except Diverged:
        told = None
    if strict:
        _same(path, file, picker.diverged, told)
    assert told is not None
    return Replayed(file.scenario.scenario.name, program.machine.name, told)


def _same(path: Path, file: ReplayFile, diverged: str, told: Told | None) -> None:
    """Raise UserMistake unless it went as it did then."""
    if diverged or told is None:
        raise UserMistake(f"{diverged}; the code is not what it was", place=str(path))
    then, steps = file.data["invariant"] or "nothing", len(file.schedule.steps)
    now = told.outcome.invariant or "nothing"
    if now != then or len(told.steps) != steps:
        raise UserMistake(
            f"broke {then} in {steps} steps then, {now} in {len(told.steps)} now; the code is not what it was",
            place=str(path),
        )
