"""What an exploration is told, and what it says: limits, progress, a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from polymmu.exploration.scenario import STEPS, Outcome
from polymmu.exploration.schedule import Schedule

__all__ = ["Left", "Limits", "Progress", "Verdict"]


@attrs.frozen(kw_only=True)
class Limits:
    """When to stop. ``random``: schedules tried at random first; ``executions``, ``seconds``: of everything, not
    counting what was done before a search was resumed; ``preemptions``: the most that the fallback covers; ``steps``:
    after so many an execution is ended; ``shrink``: executions spent on making what was found short."""

    random: int = 100
    executions: int = 20_000
    seconds: float = 60.0
    preemptions: int = 2
    steps: int = STEPS
    shrink: int = 400


@attrs.frozen
class Left:
    """What a search that did not end has left: an estimate, and the seconds that this takes at the rate so far."""

    executions: int
    error: int
    seconds: float


@attrs.frozen
class Progress:
    """How far an exploration is. ``bound``: of preemptions, where that is what is explored."""

    strategy: str
    executions: int
    seconds: float
    bound: int | None
    left: Callable[[], Left | None]


@attrs.frozen(kw_only=True)
class Verdict:
    """``verdict``: clean, violation, bounded (all schedules of few preemptions, or not all to their end) or sampled.
    ``cut``: executions that were ended for their length."""

    verdict: str
    complete: bool
    strategy: str
    executions: int
    blocked: int
    cut: int
    seconds: float
    bounds: Mapping[str, Any]
    outcome: Outcome | None = None
    schedule: Schedule | None = None
    interrupted: bool = False
    left: Left | None = None
    how: str = ""
    """Which of the strategy's executions found it, where that has a name of its own."""
