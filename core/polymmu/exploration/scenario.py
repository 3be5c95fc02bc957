"""A scenario on a machine that can be run again and again: set up once, put back after each execution.

What was made in the setup is there in every execution as the same objects, in the same places; the CPUs' free lists
are filled beforehand, so that what one task allocates does not hang on what another did.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from polymmu.boot import TimedVectors
from polymmu.description.load_scenario import ScenarioFile
from polymmu.description.model import MachineDescription
from polymmu.errors import UserMistake
from polymmu.events import Events
from polymmu.exploration.fields import SharedFields, watch_fields
from polymmu.exploration.flushes import FlushWatcher, depend_on_flushes
from polymmu.exploration.restore import Saved
from polymmu.exploration.watch import silently, watch
from polymmu.machine import Machine
from polymmu.mm.mm import leave_lazy_tlb
from polymmu.registry import Arch
from polymmu.sanitize.state import State
from polymmu.sanitize.violation import Violation
from polymmu.sched.exploring import ExploringSched, Halt, Picker, Stuck
from polymmu.sched.store_buffers import StoreBuffers
from polymmu.slab import Slab
from polymmu.workload.scenario import ScenarioRun, Stop

__all__ = ["Explored", "Outcome"]

FRAMES, OBJECTS = 32, 8
"""Frames that each CPU has in stock, and kernel objects that each slab has."""
BUFFER = 4
"""Stores that a store buffer takes."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of one execution. ``finding``: what was wrong, else empty; ``halted``: the picker ended it."""

    finding: str = ""
    invariant: str = ""
    violation: Violation | None = None
    halted: Halt | None = None


Described = tuple[MachineDescription, Arch]
"""A machine that was described already, wishes of scenarios and all."""


class Explored:
    """A scenario ready to be run under any picker."""

    def __init__(
        self,
        machine: str | Path | Described,
        file: ScenarioFile,
        *,
        sets: Sequence[str] = (),
        variant: str | None = None,
        speculate: bool = True,
        memory_model: str | None = None,
    ) -> None:
        self.asked_for = machine
        self.variant = variant
        self.speculate = speculate
        if isinstance(machine, tuple):
            description, arch = machine
        else:
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
        self.hardware_model = kernel.ops.memory_model(description.section)
        self.memory_model = memory_model or file.memory_model_in(variant)
        if self.memory_model == "tso":
            if self.hardware_model != "tso":
                raise UserMistake(
                    f"{arch.name} has a memory model weaker than tso, and that is not modelled; "
                    "explore it by sequential consistency: --memory-model sc",
                    place=file.filename,
                )
            self.sched.buffers = StoreBuffers(len(kernel.cpus), BUFFER)
        self.file = file
        slabs: tuple[Slab[Any], ...] = (kernel.mms, kernel.vmas, kernel.mappings, kernel.anon_vmas)
        for slab in slabs:
            slab.reserve(OBJECTS)
        for cpu in kernel.cpus:
            stack = kernel.free.stacks[cpu.index]
            bump = kernel.free.bump
            stack[:FRAMES] = np.arange(bump + FRAMES - 1, bump - 1, -1)
            kernel.free.nr[cpu.index] = FRAMES
            kernel.free.bump += FRAMES
        assert isinstance(self.machine.vectors, TimedVectors)
        watch(
            kernel,
            self.sched,
            self.machine.vectors.programs,
            race=self._race,
            speculate=speculate,
            shootdown=file.scenario.shootdown,
        )
        assert self.machine.sanitizer is not None
        self.sanitizer = self.machine.sanitizer
        # Counters and audits are nobody's business here: the referee alone listens.
        kernel.events = Events((self.sanitizer.bench, *self.sanitizer.judges))
        self.sanitizer.only_watcher()
        watcher = FlushWatcher(kernel, self.sched, self.sanitizer)
        for cpu in kernel.cpus:
            cpu.watcher = watcher
        for name in kernel.events.heard:
            setattr(kernel.events, name, silently(self.sched, getattr(kernel.events, name)))
        depend_on_flushes(kernel, self.sched)
        for judge in self.sanitizer.judges:
            if isinstance(judge, State):
                judge.eager = (
                    False  # what is wrong stays wrong to the end, or a judge of single events sees it
                )
        self.sched.after_step = silently(self.sched, self._look_at_users)
        fields = SharedFields(self.sched, self._race, shootdown=file.scenario.shootdown)
        watch_fields(kernel, fields)
        self.run = ScenarioRun(self.machine, file, lingering=True)
        try:
            self.run.setup()
        except Stop as stop:
            raise UserMistake(f"{stop}; nothing to explore yet", place=file.filename) from None
        fields.adopt_arch(kernel.arch_state)
        for judge in self.sanitizer.judges:
            if isinstance(judge, State):
                judge.look()  # what it works out once, about the machine, is there in every execution
        if self.sched.budgets.get("alloc_failure"):
            kernel.free.fail_next = lambda site: bool(self.sched.choice("alloc_failure"))
        self._saved = Saved(
            [self.machine, self.run],
            kernel.ram,
            kernel.frames,
            kernel.free,
            [
                *self.sched.lasting,
                description,
                arch,
                kernel.shape,
                kernel.ops,
                arch.ops,
                watcher,
                self.sched.budgets,
                fields,
                self,
                file,
            ],
            slabs,
        )

    def once(self, picker: Picker, *, unbounded: bool = False) -> Outcome:
        """One execution under ``picker``; the machine is then as it was. ``unbounded``: budgets are never used up."""
        try:
            return self._outcome(picker, unbounded)
        finally:
            self._saved.restore()

    def _outcome(self, picker: Picker, unbounded: bool) -> Outcome:
        self.run.start()
        failure = self.sched.run(picker, unbounded=unbounded)
        if isinstance(failure, KeyboardInterrupt):
            raise failure
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
            said = str(failure).partition("\n")[0]  # pytest adds what it compared
            return Outcome(finding=said, invariant="INV-ATOMIC" if "sleeping" in said else "INV-REF")
        raise failure

    def _race(self, what: str) -> None:
        bench = self.sanitizer.bench
        bench.tell("INV-RACE", bench.now("nobody else had to wait"), what)

    def _look_at_users(self) -> None:
        """Whoever runs user code may use what its TLB holds, now."""
        for cpu in self.machine.kernel.cpus:
            if self.sched.in_user_mode(cpu):
                self.sanitizer.to_user(cpu)
