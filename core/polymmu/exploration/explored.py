"""Explore a scenario and say what came of it: the one door of the command line and of Python."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from polymmu.description.installed import machine_files
from polymmu.description.load_scenario import ScenarioFile, load_scenario
from polymmu.description.mistakes import unknown
from polymmu.errors import UserMistake
from polymmu.exploration import MEMORY_MODELS, STRATEGIES
from polymmu.exploration.explorer import Limits, Verdict, search, shrink
from polymmu.exploration.replay_file import write_replay
from polymmu.exploration.scenario import Explored
from polymmu.exploration.schedule import Replay
from polymmu.exploration.telling import Names, verdict_dict, verdict_text

__all__ = ["Finding", "explore"]


@attrs.frozen
class Finding:
    """A verdict with what it is about. ``str()`` is what the command line prints, ``to_dict()`` its JSON."""

    verdict: Verdict
    scenario: str
    machine: str
    names: Names
    replay: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Exactly the JSON of ``polymmu explore``."""
        return verdict_dict(self.verdict, self.scenario, self.machine, self.names, self.replay)

    def __str__(self) -> str:
        return verdict_text(self.verdict, self.scenario, self.machine, self.names, self.replay)


def explore(
    scenario: str | Path | ScenarioFile,
    machine: str | Path | None = None,
    *,
    variant: str | None = None,
    strategy: str = "portfolio",
    sets: Sequence[str] = (),
    limits: Limits | None = None,
    seed: int = 0,
    speculate: bool = True,
    memory_model: str | None = None,
    replay: str | Path | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Finding:
    """Look for an interleaving of ``scenario`` on ``machine`` that breaks something, or cover them all.

    ``machine`` None: the plain machine of the first architecture that the scenario is about, or of the host's.
    ``variant``: of a scenario with several (None: the fixed one). ``strategy``: ``portfolio``, ``default``, ``pct``,
    ``dpor``, ``sleep``, ``naive`` or ``bounded``. ``memory_model``: ``sc`` or ``tso``
    (None: the scenario's). ``replay``: where to write a schedule that breaks something, which
    is made as short as can be first. ``progress(strategy, executions)`` is called after each execution. Raises
    UserMistake; interrupted it says what it has.
    """
    if strategy not in STRATEGIES:
        raise UserMistake(unknown("strategy", strategy, STRATEGIES))
    if memory_model not in (None, *MEMORY_MODELS):
        raise UserMistake(unknown("memory model", str(memory_model), MEMORY_MODELS))
    file = scenario if isinstance(scenario, ScenarioFile) else load_scenario(str(scenario))
    if machine is None:
        machine = _plain_machine(file)
    program = Explored(
        machine, file, sets=sets, variant=variant, speculate=speculate, memory_model=memory_model
    )
    verdict = search(program, strategy, limits=limits, seed=seed, tell=progress)
    if verdict.schedule is not None and verdict.outcome is not None:
        schedule = verdict.schedule
        if not schedule.unbounded:  # a livelock is as long as it is
            schedule, _ = shrink(program, schedule, verdict.outcome)
        unbounded = schedule.unbounded
        outcome, schedule = program.told(Replay(schedule, strict=False), unbounded=unbounded)
        schedule = attrs.evolve(schedule, unbounded=unbounded)
        verdict = attrs.evolve(verdict, schedule=schedule, outcome=outcome)
        if replay is not None:
            write_replay(Path(replay), program, schedule, outcome, file.filename)
    written = str(replay) if replay is not None and verdict.schedule is not None else None
    return Finding(verdict, file.scenario.name, program.machine.name, program.sched.names, written)


def _plain_machine(file: ScenarioFile) -> str:
    """Where a scenario is explored of which nobody says where."""
    known = machine_files()
    wished = (*file.scenario.arches, platform.machine())
    return next((name for name in wished if name in known), next(iter(known), ""))
