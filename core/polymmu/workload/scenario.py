"""Run a scenario: the setup on CPU 0, then every task on its CPU, all at once in virtual time.

A task is a user of its mm, whichever other mms it visits: the mm goes down when the last of its tasks exits or ends.
Before its tasks begin the scenario itself is its user, and hands that over to them, unless one visits other mms.
All that is left then (mms without a task, files) is given up on CPU 0, so a run ends with nothing left; if something
is, the report says so as a finding.

First reading: ``run_scenario``, then ``ScenarioRun._step``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from polymmu.description.load_scenario import ScenarioFile
from polymmu.description.mistakes import unknown
from polymmu.description.scenario import CpuPlan, Step, bytes_of
from polymmu.errors import SegmentationFault, SyscallError, UserMistake, syscall_error
from polymmu.machine import CpuHandle, DeviceHandle, FileHandle, Machine, Mm
from polymmu.sanitize.balance import check_balance, frames_held
from polymmu.sched.exploring import ExploringSched

__all__ = ["ScenarioResult", "run_scenario"]


@attrs.define
class ScenarioResult:
    """What came of a scenario besides what the machine counts. ``finding``: what should not have been, or empty."""

    finding: str = ""
    steps: int = 0
    refused: int = 0
    """Accesses that were refused, as they may."""

    def to_dict(self) -> dict[str, Any]:
        """Keys to add to a run's report."""
        told: dict[str, Any] = {"scenario": {"steps": self.steps, "refused_accesses": self.refused}}
        return {**told, "finding": self.finding} if self.finding else told


class Stop(Exception):
    """A step did what it must not; the text is the finding."""


def run_scenario(machine: Machine, file: ScenarioFile) -> ScenarioResult:
    """Run the scenario of ``file`` on ``machine``, whose driver must be ``timed``.

    Raises UserMistake for a step that makes no sense here. A refused access or call, and whatever is left over at the
    end, is a finding.
    """
    if machine.driver != "timed":
        raise UserMistake("a scenario needs the timed driver", place=file.filename)
    run = ScenarioRun(machine, file)
    try:
        run.setup()
        run.start()
        machine.run_tasks()
        run.give_up()
    except Stop as stop:
        run.result.finding = str(stop)
    return run.result


class ScenarioRun:
    """One run. ``lingering``: a task that is done keeps its mm, until everything is given up."""

    def __init__(self, machine: Machine, file: ScenarioFile, *, lingering: bool = False) -> None:
        self.lingering = lingering
        self.machine = machine
        self.place = file.filename
        self.scenario = file.scenario
        layout = machine.kernel.shape.layout
        self.units = {"p": machine.page_size, "pmd": layout.span_of(layout.pmd_level)}
        """Bytes of what places and lengths are told in."""
        if machine.huge_page_sizes:
            self.units["huge"] = machine.huge_page_sizes[0]
        self.frames_before = frames_held(machine.kernel)
        self.mms: dict[str, Mm] = {}
        self.held: set[str] = set()
        """Mms of which the scenario itself is a user: those without a task, or whose task left it that."""
        self.tasks: dict[str, int] = {}
        """How many tasks each mm has that has not gone down."""
        self.files: dict[str, FileHandle] = {}
        self.devices: dict[str, DeviceHandle] = {}
        """By the name of the mm that each is attached to."""
        self.doing: dict[str, Step] = {}
        """By the name of each task: the step that it is at."""
        self.result = ScenarioResult()

    def setup(self) -> None:
        """The steps before the tasks."""
        task = TaskRun(self, self.machine.cpus[0], "", "setup")
        for number, step in enumerate(self.scenario.setup):
            task.step(f"setup[{number}]", step)

    def start(self) -> None:
        """Make the tasks; what they run in is theirs alone from now on."""
        for name, plan in self.scenario.cpus.items():
            index = int(name.rstrip("abcdefghijklmnopqrstuvwxyz"))
            if index >= len(self.machine.cpus):
                raise UserMistake(
                    f"cpus.{name}: the machine has {len(self.machine.cpus)} CPUs; "
                    f"write 'machine: {{cpus: {index + 1}}}'",
                    place=self.place,
                )
            mm = None
            if plan.mm:
                mm = self.mms[plan.mm]
                self.tasks[plan.mm] += 1
            task = TaskRun(self, self.machine.cpus[index], plan.mm, f"cpus.{name}")
            self.machine.spawn(task.name, index, mm, partial(task.run, plan))
        for name, tasks in self.tasks.items():
            if tasks and not any(visits(plan) for plan in self.scenario.cpus.values() if plan.mm == name):
                self.held.remove(name)
                self.mms[name].checked().mm_users -= 1

    def take_over(self) -> None:
        """A task ends and leaves its use of the mm that it is in to the scenario, which needs no more than one."""
        struct = self.machine.leave_mm()
        for name, mm in self.mms.items():
            if struct is not None and mm.struct is struct:
                if name in self.held:
                    struct.mm_users -= 1
                self.held.add(name)

    def give_up(self) -> None:
        """Drop what the setup and the tasks left, and see that nothing stays."""
        for name in list(self.tasks):
            self.end(name)
        for file in self.files.values():
            file.close()
        left = check_balance(self.machine.kernel, self.frames_before)
        if left:
            raise Stop(f"at the end {'; '.join(left)}")

    def end(self, name: str) -> None:
        """An mm has no task any more: it has gone down with the last one, or does now."""
        del self.tasks[name]
        self.devices.pop(name, None)
        mm = self.mms.pop(name)
        if name in self.held:
            self.held.remove(name)
            mm.exit()

    def length(self, span: str) -> int:
        """Bytes of a span on this machine. Raises UserMistake where it has no huge pages."""
        try:
            return bytes_of(span, self.units)
        except KeyError:
            raise UserMistake(f"{span}: machine '{self.machine.name}' has no huge pages") from None


def visits(plan: CpuPlan) -> bool:
    """Whether a task acts on another mm than its own, which it is no user of while it is there."""
    return any(getattr(step.what, "mm", "") not in ("", plan.mm) for step in plan.do)


class TaskRun:
    """What one task (or the setup) has at hand. ``own`` is the name of its mm."""

    def __init__(self, run: ScenarioRun, cpu: CpuHandle, own: str, where: str) -> None:
        self.run_of = run
        self.machine = run.machine
        self.cpu = cpu
        self.own = own
        self.where = where
        self.name = f"task {where.rpartition('.')[2]}"

    def run(self, plan: CpuPlan) -> None:
        """The life of the task."""
        for _ in range(plan.times):
            for number, step in enumerate(plan.do):
                if self.run_of.lingering and self.own:
                    self.machine.work(0)  # between two steps it is in user mode
                self.step(f"{self.where}.do[{number}]", step)
        sched = self.machine.kernel.sched
        if isinstance(sched, ExploringSched):
            sched.linger(self.own)
            self.run_of.take_over()
        else:
            self._leave()

    def _leave(self) -> None:
        """This task gives its mm up, the last one takes it down."""
        self.machine.exit_mm()
        own, self.own = self.own, ""
        if own:
            self.run_of.tasks[own] -= 1
            if not self.run_of.tasks[own]:
                self.run_of.end(own)

    def step(self, where: str, step: Step) -> None:
        """One step; ``where`` it stands is told with whatever is wrong with it."""
        act: Callable[[Any], None] = getattr(self, f"_{step.verb}")
        self.run_of.result.steps += 1
        self.run_of.doing[self.name] = step
        try:
            act(step.what)
        except UserMistake as mistake:
            raise UserMistake(f"{where}: {step.verb}: {mistake}", place=self.run_of.place) from None
        except SegmentationFault as fault:
            if getattr(step.what, "may", "") != "segv":
                raise Stop(f"{where}: {fault}") from None
            self.run_of.result.refused += 1
        except SyscallError as refusal:
            if getattr(step.what, "may", "") != "refused":
                raise Stop(f"{where}: {step.verb}: {refusal.reason}") from None

    # --- what steps name
    def _mm_of(self, what: Any) -> Mm:
        name = what.mm or self.own
        if not name:
            raise UserMistake("this task has no address space of its own; say which one: mm: NAME")
        if name not in self.run_of.mms:
            raise UserMistake(unknown("mm", name, self.run_of.mms))
        return self.run_of.mms[name]

    def _file_of(self, name: str) -> FileHandle:
        if name not in self.run_of.files:
            raise UserMistake(unknown("file", name, self.run_of.files))
        return self.run_of.files[name]

    def _in(self, what: Any) -> CpuHandle:
        """This task's CPU, running the mm that ``what`` is about."""
        self.cpu.switch_mm(self._mm_of(what))
        return self.cpu

    # --- verbs
    def _mm(self, name: str) -> None:
        if name in self.run_of.mms:
            raise UserMistake(f"there is an mm '{name}' already")
        self.run_of.mms[name] = self.machine.new_mm()
        self.run_of.tasks[name] = 0
        self.run_of.held.add(name)

    def _file(self, what: Any) -> None:
        if what.name in self.run_of.files:
            raise UserMistake(f"there is a file '{what.name}' already")
        self.run_of.files[what.name] = self.machine.new_file(self.run_of.length(what.length), what.name)

    def _driver(self, what: Any) -> None:
        if what.name in self.run_of.files:
            raise UserMistake(f"there is a file '{what.name}' already")
        length = self.run_of.length(what.length)
        self.run_of.files[what.name] = self.machine.new_driver(length, what.name, refuses=what.refuses)

    def _mmap(self, what: Any) -> None:
        length = self.run_of.length
        self._mm_of(what).mmap(
            length(what.length),
            what.prot,
            at=length(what.at),
            fixed=True,
            shared=what.shared,
            file=self._file_of(what.file) if what.file else None,
            offset=length(what.offset),
            populate=what.populate,
            huge=length("1huge") if what.huge_pages else what.huge,
        )

    def _range(self, what: Any) -> tuple[int, int]:
        return self.run_of.length(what.at), self.run_of.length(what.length)

    def _munmap(self, what: Any) -> None:
        self._mm_of(what).munmap(*self._range(what))

    def _mprotect(self, what: Any) -> None:
        self._mm_of(what).mprotect(*self._range(what), what.prot)

    def _mremap(self, what: Any) -> None:
        to = self.run_of.length(what.to) if what.to else None
        new = self.run_of.length(what.new_length)
        self._mm_of(what).mremap(*self._range(what), new, may_move=to is not None, to=to)

    def _madvise(self, what: Any) -> None:
        self._mm_of(what).madvise(*self._range(what), what.advice)

    def _remap_file_pages(self, what: Any) -> None:
        offset = self.run_of.length(what.offset)
        self._mm_of(what).remap_file_pages(*self._range(what), offset, populate=what.populate)

    def _invalidate(self, what: Any) -> None:
        self._file_of(what.file).invalidate(*self._range(what))

    def _remove(self, what: Any) -> None:
        self._file_of(what.driver).remove()

    def _swap_out(self, what: Any) -> None:
        self._mm_of(what).swap_out(*self._range(what))

    def _reclaim(self, what: Any) -> None:
        self.machine.reclaim(what.pages)

    def _brk(self, what: Any) -> None:
        mm = self._mm_of(what)
        wanted = mm.checked().start_brk + self.run_of.length(what.length)
        if mm.brk(wanted) != wanted:
            raise syscall_error(errno.ENOMEM, f"the heap cannot end at {wanted:#x}")

    def _fork(self, what: Any) -> None:
        if what.child in self.run_of.mms:
            raise UserMistake(f"there is an mm '{what.child}' already")
        self.run_of.mms[what.child] = self._mm_of(what).fork()
        self.run_of.tasks[what.child] = 0
        self.run_of.held.add(what.child)

    def _exit(self, what: Any) -> None:
        if not what.mm or what.mm == self.own:
            self._leave()
            return
        self._mm_of(what)
        if self.run_of.tasks[what.mm]:
            raise UserMistake(f"mm '{what.mm}' belongs to the tasks that run in it; let them exit")
        self.run_of.end(what.mm)

    def _read_maps(self, what: Any) -> None:
        self._mm_of(what).mappings()

    def _load(self, what: Any) -> None:
        self._in(what).load(self.run_of.length(what.at), 1)

    def _store(self, what: Any) -> None:
        self._in(what).store(self.run_of.length(what.at), b"x")

    def _fetch(self, what: Any) -> None:
        self._in(what).fetch(self.run_of.length(what.at), 1)

    def _touch(self, what: Any) -> None:
        at, length = self._range(what)
        cpu = self._in(what)
        for va in range(at, at + length, self.machine.page_size):
            if what.access == "store":
                cpu.store(va, b"x")
            elif what.access == "load":
                cpu.load(va, 1)
            else:
                cpu.fetch(va, 1)

    def _truncate(self, what: Any) -> None:
        self._file_of(what.file).truncate(self.run_of.length(what.length))

    def _punch(self, what: Any) -> None:
        self._file_of(what.file).punch_hole(self.run_of.length(what.offset), self.run_of.length(what.length))

    def _sync(self, what: Any) -> None:
        self._file_of(what.file).sync()

    def _gup_fast(self, what: Any) -> None:
        at, length = self._range(what)
        mm = self._mm_of(what)
        for frame in [mm.gup_fast(va, what.write) for va in range(at, at + length, self.machine.page_size)]:
            mm.put(frame)

    def _poke(self, what: Any) -> None:
        self._mm_of(what).poke(self.run_of.length(what.at), b"x")

    def _attach(self, what: Any) -> None:
        mm = self._mm_of(what)
        name = what.mm or self.own
        if name in self.run_of.devices:
            raise UserMistake(f"mm '{name}' has a device already")
        self.run_of.devices[name] = mm.attach_device(sleeps=what.sleeps)

    def _device(self, what: Any) -> None:
        self._mm_of(what)
        name = what.mm or self.own
        if name not in self.run_of.devices:
            raise UserMistake(f"mm '{name}' has no device; attach one first: attach: {{mm: {name}}}")
        device, at = self.run_of.devices[name], self.run_of.length(what.at)
        if what.access == "store":
            device.store(at, b"x")
        else:
            device.load(at, 1)

    def _work(self, what: Any) -> None:
        self.machine.work(what.cycles)

    def _sleep(self, what: Any) -> None:
        self.machine.sleep(what.cycles)
