"""A scenario on a machine that can be run again and again: set up once, put back after each execution.

What was made in the setup is there in every execution as the same objects, in the same places; the CPUs' free lists
are filled beforehand, so that what one task allocates does not hang on what another did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import numpy as np

from polymmu.boot import TimedVectors
from polymmu.description.load_scenario import ScenarioFile
from polymmu.errors import UserMistake
from polymmu.events import EVENT_NAMES, Events
from polymmu.exploration.restore import Saved
from polymmu.exploration.schedule import Recorder, Schedule
from polymmu.exploration.watch import watch
from polymmu.machine import Machine
from polymmu.mm.mm import leave_lazy_tlb
from polymmu.sanitize.state import State
from polymmu.sanitize.violation import Violation
from polymmu.sched.exploring import ExploringSched, Halt, Picker, Stuck
from polymmu.workload.scenario import ScenarioRun, Stop

__all__ = ["Explored", "Outcome"]

FRAMES, OBJECTS = 32, 8
"""Frames that each CPU has in stock, and kernel objects that each slab has."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of one execution. ``finding``: what was wrong, else empty; ``halted``: the picker ended it."""

    finding: str = ""
    invariant: str = ""
    violation: Violation | None = None
    halted: Halt | None = None


class Explored:
    """A scenario ready to be run under any picker."""

    def __init__(
        self,
        machine: str | Path,
        file: ScenarioFile,
        *,
        sets: Sequence[str] = (),
        variant: str | None = None,
        speculate: bool = True,
    ) -> None:
        self.asked_for = machine
        self.variant = variant
        self.speculate = speculate
        description, arch = Machine.describe(machine, sets=sets, over=file.over_in(variant))
        if file.scenario.arches and arch.name not in file.scenario.arches:
            raise UserMistake(
                f"is about {', '.join(file.scenario.arches)}; machine '{machine}' is {arch.name}",
                place=file.filename,
            )
        self.machine = Machine(description, arch, sets=sets, driver="exploring", sanitize=True)
        kernel = self.machine.kernel
        assert isinstance(kernel.sched, ExploringSched)
        self.sched = kernel.sched
        self.sched.budgets = dict(file.scenario.choices)
        self.file = file
        for slab in (kernel.mms, kernel.vmas, kernel.mappings, kernel.anon_vmas):
            slab.reserve(OBJECTS)
        for cpu in kernel.cpus:
            stack = kernel.free.stacks[cpu.index]
            bump = kernel.free.bump
            stack[:FRAMES] = np.arange(bump + FRAMES - 1, bump - 1, -1)
            kernel.free.nr[cpu.index] = FRAMES
            kernel.free.bump += FRAMES
        assert isinstance(self.machine.vectors, TimedVectors)
        watch(kernel, self.sched, self.machine.vectors.programs, speculate=speculate)
        assert self.machine.sanitizer is not None
        self.sanitizer = self.machine.sanitizer
        # Counters and audits are nobody's business here: the referee alone listens.
        kernel.events = Events((self.sanitizer.bench, *self.sanitizer.judges))
        self.sanitizer.only_watcher()
        for name in EVENT_NAMES:
            setattr(kernel.events, name, _silent(self.sched, getattr(kernel.events, name)))
        for judge in self.sanitizer.judges:
            if isinstance(judge, State):
                judge.eager = (
                    False  # what is wrong stays wrong to the end, or a judge of single events sees it
                )
        self.sched.after_step = self._look_at_users
        self.run = ScenarioRun(self.machine, file, lingering=True)
        self.run.setup()
        if self.sched.budgets.get("alloc_failure"):
            kernel.free.fail_next = lambda site: bool(self.sched.choice("alloc_failure"))
        self._saved = Saved(
            [self.machine, self.run],
            kernel.ram,
            kernel.frames,
            [
                *self.sched.lasting,
                description,
                arch,
                kernel.shape,
                kernel.ops,
                self.sched.budgets,
                self,
                file,
            ],
            kernel.free.bump,
        )

    def once(self, picker: Picker, *, unbounded: bool = False) -> Outcome:
        """One execution under ``picker``; the machine is then as it was. ``unbounded``: budgets are never used up."""
        try:
            return self._outcome(picker, unbounded)
        finally:
            self._saved.restore()

    def told(self, picker: Picker, *, unbounded: bool = False) -> tuple[Outcome, Schedule]:
        """One execution, with every step and where in the code it was."""
        recorder = Recorder(picker, lambda: self.sched.context.place)
        self.sched.tells_places = True
        try:
            return self.once(recorder, unbounded=unbounded), recorder.schedule
        finally:
            self.sched.tells_places = False

    def _outcome(self, picker: Picker, unbounded: bool) -> Outcome:
        self.run.start()
        failure = self.sched.run(picker, unbounded=unbounded)
        violations = self.sanitizer.violations
        if failure is None:
            leave_lazy_tlb(self.machine.kernel)
            self.sanitizer.finish()
        if violations:
            first = violations[0]
            return Outcome(finding=str(first), invariant=first.invariant, violation=first)
        if failure is None:
            try:
                self.run.give_up()
            except Stop as stop:
                return Outcome(finding=str(stop), invariant="INV-REF")
            return Outcome()
        if isinstance(failure, Halt):
            return Outcome(halted=failure)
        if isinstance(failure, Stuck):
            return Outcome(finding=str(failure), invariant="INV-LOCK")
        if isinstance(failure, Stop):
            return Outcome(finding=str(failure))
        if isinstance(failure, AssertionError):
            return Outcome(
                finding=str(failure), invariant="INV-ATOMIC" if "sleeping" in str(failure) else "INV-REF"
            )
        raise failure

    def _look_at_users(self) -> None:
        """Whoever runs user code may use what its TLB holds, now."""
        for cpu in self.machine.kernel.cpus:
            if self.sched.in_user_mode(cpu):
                self.sanitizer.to_user(cpu)


def _silent(sched: ExploringSched, event: Callable[..., None]) -> Callable[..., None]:
    """``event``, which only looks: what its observers read is no operation."""

    def tell(*args: object) -> None:
        before, sched.silent = sched.silent, True
        event(*args)
        sched.silent = before

    return tell
