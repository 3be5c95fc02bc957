"""Sleeping until something is so: Linux's ``wait_event`` and ``wake_up_all``, for tasks of the timed driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polymmu.sched.driver import TaskSched

__all__ = ["WaitQueue"]


class WaitQueue:
    """Tasks that wait for a condition. ``name`` is told in a deadlock.

    ``idle`` False: a program that waits here would have run in reality, so its CPU does not count as idle.
    """

    def __init__(self, sched: TaskSched, name: str, idle: bool = True) -> None:
        self.name = name
        self.idle = idle
        self._sched = sched
        self._sleepers: list[Any] = []

    def wait_event(self, condition: Callable[[], bool]) -> None:
        """Sleep until ``condition()``; it is looked at now and after each ``wake_up_all``."""
        while not condition():
            self._sleepers.append(self._sched.context)
            self._sched.block(self, self.idle)

    def wake_up_all(self) -> None:
        """Let every sleeper look at its condition again."""
        sleepers, self._sleepers = self._sleepers, []
        for task in sleepers:
            self._sched.wake(task)
