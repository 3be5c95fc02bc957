"""Pickers that find races quickly and prove nothing: random schedules.

``Pct`` (Burckhardt, Kothari, Musuvathi and Nagarakatte, 2010): tasks have random priorities, the highest goes on, and
at ``depth - 1`` random steps whoever runs drops to the lowest. For a program of n tasks and k steps each execution
finds a bug that needs ``depth`` ordered steps with a chance of at least 1 / (n * k ** (depth - 1)).

An execution depends on the seed and its number alone, so that each can be made again by itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from polymmu.sched.picker import Picker

__all__ = ["Fair", "Pct"]

CHOICE = 0.25
"""How likely a choice comes out other than 0."""


class Fair(Picker):
    """Everybody in turn, ``turns`` operations each, and every choice comes out other than 0: who does not end so, does
    not end at all."""

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._left = turns

    def pick(self, current: int, able: Sequence[int]) -> int:
        """See ``Picker``."""
        self._left -= 1
        if current in able and self._left > 0:
            return current
        self._left = self._turns
        return next((task for task in sorted(able) if task > current), min(able))

    def choose(self, options: int) -> int:
        """See ``Picker``."""
        return options - 1


class Pct(Picker):
    """See the top of the module. ``steps``: how many steps an execution has, about."""

    def __init__(self, seed: int, number: int, depth: int, steps: int) -> None:
        self._random = random.Random(f"{seed}/{number}")
        self._priority: dict[int, float] = {}
        changes = min(depth - 1, steps)
        self._change_at = (
            set(self._random.sample(range(1, max(steps, 2)), changes)) if changes > 0 else set[int]()
        )
        self._step = 0

    def spawned(self, task: int) -> None:
        """See ``Picker``."""
        self._priority[task] = 1 + self._random.random()

    def pick(self, current: int, able: Sequence[int]) -> int:
        """See ``Picker``."""
        self._step += 1
        task = max(able, key=self._priority.__getitem__)
        if self._step in self._change_at:
            self._priority[task] = 1 / (1 + self._step)
            task = max(able, key=self._priority.__getitem__)
        return task

    def choose(self, options: int) -> int:
        """See ``Picker``."""
        return self._random.randrange(1, options) if self._random.random() < CHOICE else 0
