"""Explore a scenario and say what came of it: the one door of the command line and of Python."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from polymmu.description.installed import machine_files
from polymmu.description.load_scenario import ScenarioFile, load_scenario
from polymmu.description.mistakes import unknown
from polymmu.errors import UserMistake
from polymmu.exploration import MEMORY_MODELS, STRATEGIES
from polymmu.exploration.explorer import Limits, Progress, Verdict, search
from polymmu.exploration.handover import Broken, hand_over
from polymmu.exploration.interrupts import Interrupts
from polymmu.exploration.replay_file import write_replay
from polymmu.exploration.scenario import Explored
from polymmu.exploration.telling import verdict_dict, verdict_text
from polymmu.exploration.timeline import write_timeline
from polymmu.workers import Workers, connect, processes

__all__ = ["Finding", "explore", "workers_of"]


@attrs.frozen
class Finding:
    """A verdict with what it is about. ``str()`` is what the command line prints, ``to_dict()`` its JSON."""

    verdict: Verdict
    scenario: str
    machine: str
    broken: Broken | None = None
    replay: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Exactly the JSON of ``polymmu explore``."""
        return verdict_dict(self.verdict, self.scenario, self.machine, self.broken, self.replay)

    def __str__(self) -> str:
        return verdict_text(self.verdict, self.scenario, self.machine, self.broken, self.replay)


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
    timeline: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    jobs: int = 1,
    dask: str | None = None,
    resume: str | Path | None = None,
    workers: Workers | None = None,
) -> Finding:
    """Look for an interleaving of ``scenario`` on ``machine`` that breaks something, or cover them all.

    ``machine`` None: the plain machine of the first architecture that the scenario is about, or of the host's.
    ``variant``: of a scenario with several (None: the fixed one). ``strategy``: ``portfolio``, ``default``, ``pct``,
    ``dpor``, ``sleep``, ``naive`` or ``bounded``. ``memory_model``: ``sc`` or ``tso`` (None: the scenario's). What
    breaks something is made as short as can be; ``replay``: where to write that schedule, ``timeline``: where to write
    it for Perfetto. ``progress`` is called after each execution, or several. ``jobs``: processes of
    this machine that search; ``dask``: the address of a scheduler whose workers do; ``workers``: some that are there
    already. ``resume``: a file to go on from, and to leave where a limit or Ctrl-C ended the search. Raises
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
    with Interrupts() as interrupts, workers_of(jobs, dask, workers) as helpers:
        verdict = search(
            program,
            strategy,
            limits=limits,
            seed=seed,
            tell=progress,
            stop=lambda: bool(interrupts.asked),
            workers=helpers,
            checkpoint=None if resume is None else Path(resume),
        )
    if verdict.schedule is None:
        return Finding(verdict, file.scenario.name, program.machine.name)
    broken = hand_over(program, verdict, (limits or Limits()).shrink)
    told = broken.told
    verdict = attrs.evolve(
        verdict,
        schedule=told.schedule,
        outcome=told.outcome,
        interrupted=verdict.interrupted or broken.interrupted,
    )
    if replay is not None:
        write_replay(Path(replay), program, told)
    if timeline is not None:
        write_timeline(Path(timeline), told)
    written = str(replay) if replay is not None else None
    return Finding(verdict, file.scenario.name, program.machine.name, broken, written)


@contextmanager
def workers_of(jobs: int, dask: str | None, workers: Workers | None = None) -> Iterator[Workers | None]:
    """``workers``, or those that were asked for; None: nobody else. Raises UserMistake."""
    if jobs < 1:
        raise UserMistake(f"jobs {jobs} are too few; give 1 or more")
    if workers is not None:
        yield workers
    elif dask is not None:
        with connect("dask", dask) as cluster:
            yield cluster
    elif jobs > 1:
        with processes(jobs, "polymmu.exploration.items") as pool:
            yield pool
    else:
        yield None


def _plain_machine(file: ScenarioFile) -> str:
    """Where a scenario is explored of which nobody says where."""
    known = machine_files()
    wished = (*file.scenario.arches, platform.machine())
    return next((name for name in wished if name in known), next(iter(known), ""))
