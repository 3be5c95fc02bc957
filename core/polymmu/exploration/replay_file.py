"""A schedule as a file: what must be the same for it to mean anything, and what happened at each step.

It is replayed only on the scenario, the machine and the versions that it was made with; every step is compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from polymmu import plugins
from polymmu.description.load_scenario import ScenarioFile, load_scenario
from polymmu.errors import UserMistake
from polymmu.exploration.scenario import Explored, Outcome
from polymmu.exploration.schedule import Diverged, Replay, Schedule

__all__ = ["read_replay", "replay", "write_replay"]

VERSION = 1
GROUPS = ("polymmu.arch", "polymmu.plugin")


@attrs.frozen
class ReplayFile:
    """What a file holds, checked."""

    data: dict[str, Any]
    schedule: Schedule
    scenario: ScenarioFile


def versions() -> dict[str, str]:
    """Every distribution that an arch or a plugin comes from, and polymmu's own."""
    rows = [row for group in GROUPS for row in plugins.installed(group).values()]
    return dict(sorted({row.distribution: row.version for row in rows}.items()))


def write_replay(path: Path, program: Explored, schedule: Schedule, outcome: Outcome, name: str) -> None:
    """Write the schedule; ``name`` is how the scenario was asked for."""
    data = {
        "polymmu_replay": VERSION,
        "scenario": name,
        "scenario_sha256": program.file.sha256,
        "machine": str(program.asked_for),
        "sets": list(program.machine.sets),
        "variant": program.variant,
        "speculate": program.speculate,
        "versions": versions(),
        "memory_model": program.memory_model,
        "tasks": [list(key) for key in program.sched.keys],
        "invariant": outcome.invariant,
        "finding": outcome.finding,
        "schedule": schedule.to_dict(),
    }
    try:
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserMistake(f"cannot write: {error.strerror}; choose another place", place=str(path)) from error


def read_replay(path: Path) -> ReplayFile:
    """Read and check a file. Raises UserMistake."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserMistake(
            f"cannot be read: {getattr(error, 'strerror', None) or error}", place=str(path)
        ) from None
    except ValueError as error:
        raise UserMistake(
            f"is no JSON: {error}; write it again with 'polymmu explore'", place=str(path)
        ) from None
    if not isinstance(data, dict) or data.get("polymmu_replay") != VERSION:
        raise UserMistake("is no replay file of this version; 'polymmu explore' writes them", place=str(path))
    try:
        schedule = Schedule.from_dict(data["schedule"])
        scenario, sha, then = data["scenario"], data["scenario_sha256"], data["versions"]
        _ = (
            data["machine"],
            [str(each) for each in data["sets"]],
            bool(data["speculate"]),
            data["variant"],
            data["finding"],
            str(data["memory_model"]),
            [[int(part) for part in key] for key in data["tasks"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserMistake(
            f"is damaged ({error!r}); write it again with 'polymmu explore'", place=str(path)
        ) from None
    file = load_scenario(str(scenario))
    if file.sha256 != sha:
        raise UserMistake(
            f"was made with another version of scenario '{scenario}'; explore it again", place=str(path)
        )
    now = versions()
    for name in sorted({*now, *then}):
        if now.get(name) != then.get(name):
            raise UserMistake(
                f"was made with {name} {then.get(name, '(not installed)')}, "
                f"here is {now.get(name, '(not installed)')}; explore the scenario again",
                place=str(path),
            )
    return ReplayFile(data, schedule, file)


def replay(path: Path) -> tuple[Explored, Outcome, Schedule]:
    """Make the schedule of a file again, comparing every step. Raises UserMistake where it cannot be."""
    file = read_replay(path)
    data = file.data
    program = Explored(
        data["machine"],
        file.scenario,
        sets=data["sets"],
        variant=data["variant"],
        speculate=data["speculate"],
        memory_model=data["memory_model"],
    )
    program.sched.keys = tuple(map(tuple, data["tasks"]))
    try:
        outcome, schedule = program.told(
            Replay(file.schedule, strict=True), unbounded=file.schedule.unbounded
        )
    except Diverged as diverged:
        raise UserMistake(f"{diverged}; the code is not what it was", place=str(path)) from None
    if len(schedule.steps) != len(file.schedule.steps) and not outcome.finding:
        raise UserMistake("ends earlier than it did; the code is not what it was", place=str(path))
    return program, outcome, schedule
