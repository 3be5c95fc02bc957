"""The referee of a run: attaches every judge to a machine's kernel. Costs nothing unless it is made.

    sanitizer = Sanitizer(kernel)
    ...                             # any run, under any driver
    sanitizer.finish()
    assert not sanitizer.violations

It only looks. A violation is noted and the run goes on, except where it would never end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polymmu.events import Events
from polymmu.hardware.cpu import Cpu, Watcher
from polymmu.hooks import ArchKernel
from polymmu.sanitize.balance import check_balance, frames_held
from polymmu.sanitize.cached import FreedFrames, LocklessWalks, LostRights
from polymmu.sanitize.devices import DeviceEntries
from polymmu.sanitize.emptied import Emptied
from polymmu.sanitize.held import HeldPages
from polymmu.sanitize.judge import Bench, Judge
from polymmu.sanitize.progress import Progress
from polymmu.sanitize.state import State
from polymmu.sanitize.violation import Violation

__all__ = ["Sanitizer"]


class Sanitizer:
    """Watches ``kernel`` from now on; made before the first program, or what programs did until then is unknown."""

    def __init__(self, kernel: ArchKernel) -> None:
        self.kernel = kernel
        self.bench = Bench(kernel)
        self.judges: tuple[Judge, ...] = tuple(
            judge(self.bench)
            for judge in (
                FreedFrames,
                Emptied,
                LostRights,
                LocklessWalks,
                HeldPages,
                DeviceEntries,
                State,
                Progress,
            )
        )
        self._to_user = self._asked("to_user")
        self._before_invalidate = self._asked("before_invalidate")
        self._after_invalidate = self._asked("after_invalidate")
        self._suspects_on = self._asked("suspects_on")
        self.held = frames_held(kernel)
        kernel.events = Events((*kernel.events.observers, self.bench, *self.judges))
        kernel.sched.lockdep = self.bench.lockdep
        self._other_watchers: dict[int, Watcher | None] = {}
        for cpu in kernel.cpus:
            self._other_watchers[cpu.index] = cpu.watcher
            cpu.watcher = self
            cpu.to_user = self.to_user

    def _asked(self, what: str) -> tuple[Callable[..., Any], ...]:
        """The answers of the judges that have one to ``what``."""
        return tuple(
            getattr(judge, what)
            for judge in self.judges
            if getattr(type(judge), what) is not getattr(Judge, what)
        )

    @property
    def violations(self) -> list[Violation]:
        """Everything found so far, the first hundred."""
        return self.bench.violations

    def section(self) -> list[dict[str, object]]:
        """The ``violations`` of a report."""
        return [violation.to_dict() for violation in self.violations]

    def only_watcher(self) -> None:
        """Whoever watched the CPUs before is told nothing any more."""
        self._other_watchers = dict.fromkeys(self._other_watchers)

    def finish(self) -> None:
        """Judge what nobody asked for yet. Call it when no task is in the middle of anything."""
        for judge in self.judges:
            judge.finish()

    def balance(self) -> list[str]:
        """What is left of programs and files that should all be gone, a line each."""
        return check_balance(self.kernel, self.held)

    def suspects(self, cpu: Cpu) -> bool:
        """Whether some judge waits to see if ``cpu`` drops an entry before it runs user code."""
        return any(suspects_on(cpu) for suspects_on in self._suspects_on)

    # ------------------------------------------------------------------ what CPUs tell
    def to_user(self, cpu: Cpu) -> None:
        """``cpu`` is about to run user code."""
        for to_user in self._to_user:
            to_user(cpu)

    def before_invalidate(self, cpu: Cpu, asid: int | None, start: int | None, end: int | None) -> None:
        """``cpu`` is about to drop translations."""
        other = self._other_watchers[cpu.index]
        if other is not None:
            other.before_invalidate(cpu, asid, start, end)
        for before_invalidate in self._before_invalidate:
            before_invalidate(cpu)

    def after_invalidate(self, cpu: Cpu, dropped: int) -> None:
        """``cpu`` dropped ``dropped`` entries."""
        other = self._other_watchers[cpu.index]
        if other is not None:
            other.after_invalidate(cpu, dropped)
        for after_invalidate in self._after_invalidate:
            after_invalidate(cpu)
