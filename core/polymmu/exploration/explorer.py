"""What ``polymmu explore`` does: look for a schedule that breaks an invariant, or cover them all.

A portfolio with one budget: the default schedule; a few fair ones in which every choice comes out against the program
each time, for loops that must end all the same; a few hundred random ones, which find most races soonest; then the
search with source sets to its end, which proves that there is none. If that does not end in time, schedules of few
preemptions are covered instead, which is a claim of its own. A verdict says what was covered, never more.

First reading: ``Exploration.run``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs

from polymmu.errors import UserMistake
from polymmu.exploration.checkpoint import Checkpoint, identity
from polymmu.exploration.estimate import left_of
from polymmu.exploration.random_walks import Fair, Pct
from polymmu.exploration.scenario import Explored, Outcome
from polymmu.exploration.schedule import Recorder, Replay, Schedule
from polymmu.exploration.search import Blocked, Search
from polymmu.exploration.split import Here, Split, load_tree, plain_tree, split_up, walk_in_order
from polymmu.exploration.stack import Along, path_of
from polymmu.exploration.verdict import Left, Limits, Progress, Verdict
from polymmu.sched.picker import Diverged, Picker
from polymmu.workers import Workers

__all__ = ["Left", "Limits", "Progress", "Verdict", "search"]

FAIR_TURNS = (1, 4, 16)
PCT_DEPTHS = (3, 2, 5, 1, 4)
STAGES = ("default", "fair", "pct", "all", "bounded")
KEEP_SECONDS = 30.0
"""How often the state of a long search goes to its file."""


class Enough(Exception):
    """A limit was reached, or somebody asked to stop."""


class Exploration:
    """One portfolio on one scenario. Where it is, is a value: ``state``; ``go_on`` from one."""

    def __init__(
        self,
        program: Explored,
        limits: Limits,
        seed: int,
        tell: Callable[[Progress], None] | None,
        *,
        stop: Callable[[], bool],
        workers: Workers | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.program = program
        self.program.steps, self.program.cut = limits.steps, 0
        self.limits = limits
        self.seed = seed
        self.tell = tell
        self.stop = stop
        self.workers = workers
        self.checkpoint = checkpoint
        self.executions = 0
        self.blocked = 0
        self.steps = 0
        self.began = self.kept = self.started = time.monotonic()
        self.earlier = 0
        """Executions before this was resumed."""
        self.strategy = ""
        self.stage = STAGES[0]
        self.position = 0
        """What comes next in the stage: a number of a schedule, or a bound."""
        self.tree: Search | Split | None = None
        """What the stage searches, and who counts what was done in it."""
        self.left: Left | None = None
        self.is_unfinished = False
        """Whether there is something to go on with."""
        self.how = ""
        self.found: tuple[Outcome, Schedule] | None = None

    def run(self, strategy: str) -> Verdict:
        """Try what ``strategy`` names, or everything in turn (``portfolio``)."""
        complete, bound = False, -1
        interrupted = False
        try:
            if self._is_due("default", strategy in ("portfolio", "default", "pct")):
                self._once("default", Replay(Schedule(), strict=False))
            if self._is_due("fair", strategy in ("portfolio", "fair")) and self.program.sched.budgets:
                self._fair()
            if self._is_due("pct", strategy in ("portfolio", "pct")):
                self._random()
            if self._is_due("all", strategy in ("portfolio", "dpor", "sleep", "naive")):
                complete = self._all("dpor" if strategy == "portfolio" else strategy, 0)
        except Enough:
            interrupted, self.is_unfinished = self.stop(), True
            self._keep()
        except KeyboardInterrupt:
            interrupted = self.is_unfinished = True
        if not complete and not interrupted and self._is_due("bounded", strategy in ("portfolio", "bounded")):
            try:
                bound = self._bounded(strategy == "bounded")
                interrupted = self.stop()
            except KeyboardInterrupt:
                interrupted = self.is_unfinished = True
        if self.checkpoint is not None and (self.found or not self.is_unfinished):
            self.checkpoint.remove()
        return self._verdict(complete and not self.found, bound, interrupted)

    def _verdict(self, complete: bool, bound: int, interrupted: bool) -> Verdict:
        bounds: dict[str, Any] = {
            "memory_model": self.program.memory_model,
            "hardware_memory_model": self.program.hardware_model,
            "shootdown": self.program.file.scenario.shootdown,
            "choices": dict(sorted(self.program.sched.budgets.items())),
        }
        if self.program.sched.buffers is not None:
            bounds["store_buffer"] = self.program.sched.buffers.depth
        if bound >= 0:
            bounds["preemptions"] = bound
        cut = self.program.cut
        if cut:
            bounds["steps"] = self.limits.steps
        verdict = "clean" if complete and not cut else "bounded" if complete or bound >= 0 else "sampled"
        return Verdict(
            verdict="violation" if self.found else verdict,
            complete=complete and not cut,
            strategy=self.strategy,
            executions=self.executions,
            blocked=self.blocked,
            cut=cut,
            seconds=self.seconds,
            bounds=bounds,
            outcome=self.found[0] if self.found else None,
            schedule=self.found[1] if self.found else None,
            interrupted=interrupted,
            left=None if self.found else self.left,
            how=self.how if self.found else "",
        )

    # ------------------------------------------------------------------ where it is
    @property
    def seconds(self) -> float:
        """All of it, with what was before it was resumed."""
        return time.monotonic() - self.began

    def go_on(self, state: dict[str, Any]) -> None:
        """Go on from where ``state`` was taken."""
        self.program.sched.keys = tuple(map(tuple, state["keys"]))
        for name in ("executions", "blocked", "steps", "strategy", "stage", "position"):
            setattr(self, name, state[name])
        self.program.cut = state["cut"]
        self.earlier = self.executions
        self.began -= state["seconds"]
        self.tree = load_tree(self.strategy, self._bound, state["tree"], self.program.once)

    def state(self) -> dict[str, Any]:
        """Where it is, between two executions."""
        return {
            "executions": self.executions,
            "blocked": self.blocked,
            "cut": self.program.cut,
            "steps": self.steps,
            "strategy": self.strategy,
            "stage": self.stage,
            "position": self.position,
            "seconds": self.seconds,
            "keys": [list(key) for key in self.program.sched.keys],
            "tree": plain_tree(self.tree),
        }

    def _keep(self) -> None:
        self.kept = time.monotonic()
        if self.checkpoint is not None:
            self.checkpoint.write(self.state())

    def _is_due(self, stage: str, wanted: bool) -> bool:
        """Whether ``stage`` is to begin, or to go on."""
        if self.found or not wanted or STAGES.index(stage) < STAGES.index(self.stage):
            return False
        if stage != self.stage:
            self.stage, self.position, self.tree = stage, 0, None
        return True

    @property
    def _bound(self) -> int:
        return self.position if self.stage == "bounded" else 0

    def estimate(self) -> Left | None:
        """What is left of the search for everything, between two executions."""
        if self.stage != "all" or self.tree is None or not self.tree.executions:
            return None
        left = self.tree.left if isinstance(self.tree, Split) else left_of(self.tree)
        seconds = left.executions * self.seconds / self.executions
        return Left(round(left.executions), round(left.error), round(seconds, 1))

    # ------------------------------------------------------------------ one execution, and whether another
    def _once(self, strategy: str, picker: Picker, *, unbounded: bool = False) -> bool:
        """One execution; whether it found something."""
        self.strategy = strategy
        recorder = Recorder(picker)
        outcome = self.program.once(recorder, unbounded=unbounded)
        if strategy == "default":  # how long executions are, for random ones
            self.steps = recorder.length
        if outcome.finding:
            self.found = outcome, attrs.evolve(recorder.schedule, unbounded=unbounded)
        self._count(1)
        return self.found is not None

    def _count(self, executions: int) -> None:
        self.executions += executions
        if self.tell is None:
            return
        bound = self.position if self.stage == "bounded" else None
        self.tell(Progress(self.strategy, self.executions, self.seconds, bound, self.estimate))

    @property
    def _room(self) -> int:
        """Executions until the limit."""
        return self.limits.executions + self.earlier - self.executions

    def _is_over(self) -> bool:
        return self.stop() or time.monotonic() - self.started > self.limits.seconds

    def _check_limits(self) -> None:
        """Between two executions."""
        if self._room <= 0 or self._is_over():
            if self.stage == "all":
                self.left = self.estimate()
            raise Enough
        if time.monotonic() - self.kept > KEEP_SECONDS and not self.is_unfinished:
            self._keep()

    # ------------------------------------------------------------------ the stages
    def _fair(self) -> None:
        """Whether it ends, however often somebody asks."""
        for turns in FAIR_TURNS[self.position :]:
            self._check_limits()
            self.how = f"{turns} steps each in turn"
            if self._once("fair", Fair(turns), unbounded=True):
                return
            self.position += 1
        self.how = ""

    def _random(self) -> None:
        if self.workers is not None:
            self._random_split(self.workers)
            return
        while self.position < self.limits.random:
            self._check_limits()
            if self._once("pct", self._walk(self.position)):
                return
            self.position += 1
        self.how = ""

    def _walk(self, number: int) -> Pct:
        depth = PCT_DEPTHS[number % len(PCT_DEPTHS)]
        self.how = f"depth {depth}, seed {self.seed}"
        return Pct(self.seed, number, depth, max(self.steps, 50))

    def _random_split(self, workers: Workers) -> None:
        """The same, and the same one found: results are taken in order."""
        self._check_limits()
        self.strategy = "pct"
        end = min(self.limits.random, self.position + self._room)
        walks = [(number, PCT_DEPTHS[number % len(PCT_DEPTHS)]) for number in range(self.position, end)]
        steps = max(self.steps, 50)
        with closing(walk_in_order(workers, self.program, walks, self.seed, steps, self._is_over)) as results:
            for clean, found in results:
                self.position += clean
                self._count(clean)
                if found is not None:
                    self._again("pct", self._walk(found))
                    return
        self.how = ""
        if self.position < self.limits.random:
            self._check_limits()

    def _again(self, strategy: str, picker: Picker) -> None:
        """Find again what was found where nothing was written down."""
        found = self._once(strategy, picker)
        assert found, "what was found is not found again"

    def _all(self, strategy: str, bound: int) -> bool:
        """Whether everything was covered."""
        self.strategy = strategy
        if isinstance(self.tree, Split) or self.workers is not None:
            self.tree = split_up(strategy, bound, self.program.sched.keys, self.tree)
            return self._all_split(self.tree, self.workers or Here())
        search = self.tree if self.tree is not None else Search(strategy, bound)
        self.tree = search
        while True:
            self._check_limits()
            outcome = self.program.once(search)
            if outcome.finding:
                self._again(strategy, Along(path_of(search.stack)))
                return False
            self.blocked += isinstance(outcome.halted, Blocked)
            self._count(1)
            if not search.back_up():
                return True

    def _all_split(self, split: Split, workers: Workers) -> bool:
        """The same by workers, items taken in order."""
        self._check_limits()
        with closing(split.run(workers, self.program, self._is_over, lambda: self._room)) as results:
            for path, result in results:
                self.blocked += result.blocked
                if path is not None:
                    self._count(result.executions - 1)
                    self._again(self.strategy, Along(path))
                    return False
                self._count(result.executions)
                self._check_limits()
        if split.pending:
            self._check_limits()
        return not split.pending

    def _bounded(self, alone: bool) -> int:
        """The most preemptions of which all schedules were covered; -1: none."""
        half = attrs.evolve(
            self.limits, seconds=self.limits.seconds * 1.5, executions=self.limits.executions * 3 // 2
        )
        self.limits = self.limits if alone else half
        covered = self.position - 1
        try:
            for bound in range(self.position, self.limits.preemptions + 1):
                self.position = bound
                if not self._all("bounded", bound):
                    break
                covered = bound
                self.tree = None
        except Enough:
            if alone:
                self.is_unfinished = True
                self._keep()
        return covered


def search(
    program: Explored,
    strategy: str = "portfolio",
    *,
    limits: Limits | None = None,
    seed: int = 0,
    tell: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    workers: Workers | None = None,
    checkpoint: Path | None = None,
) -> Verdict:
    """Look for a schedule of ``program`` that breaks something. ``tell`` is called after each execution, or several;
    ``stop`` is asked between two. ``workers``: who else searches; ``checkpoint``: a file to go on from, and to leave
    where there is something to go on with. Raises UserMistake where the file is another search's."""
    limits = limits or Limits()
    file = None
    if checkpoint is not None:
        file = Checkpoint(checkpoint, identity(program, strategy, seed, limits))
    exploration = Exploration(program, limits, seed, tell, stop=stop, workers=workers, checkpoint=file)
    if file is not None:
        state = file.read()
        if state is not None:
            try:
                exploration.go_on(state)
            except (KeyError, TypeError, ValueError, IndexError, Diverged) as error:
                raise UserMistake(
                    f"is damaged ({error!r}); name another file to begin anew", place=str(checkpoint)
                ) from None
        file.write(exploration.state())  # a place that cannot be written is told of now, not after hours
    return exploration.run(strategy)
