"""The timed driver: tasks on CPUs that run at once, as a discrete-event simulation over the CPUs' clocks.

Each CPU has a clock in cycles. The hub always lets the CPU with the earliest clock go on, until its clock passes that
of the next one; so everything that happens, happens in the order of virtual time, and two runs are alike to the byte.
A task is a greenlet: it runs plain blocking code, and may lose the processor wherever that code says so
(``point``, a lock that is held, ``cond_resched``).

An interrupt runs on top of whatever its CPU does, as a call from the next point where interrupts are on; a CPU that
spins or idles takes it at once. Waiting has three forms: spinning keeps the CPU, sleeping gives it to the next task,
and a CPU without a task idles.

``seed`` breaks ties between equal clocks, and other seeds than 0 stagger the tasks' start: they show other orders.

First reading: ``TimedSched._hub``, ``point``, ``wait``; then ``ipi`` and ``call_rcu``.
"""

from __future__ import annotations

import bisect
import contextlib
import random
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs
from greenlet import GreenletExit, getcurrent, greenlet

from polymmu.hardware.cpu import Cpu
from polymmu.sched.driver import TaskSched

if TYPE_CHECKING:
    from polymmu.sched.locks import Lock

__all__ = ["Deadlock", "Task", "TimedSched"]

STAGGER = 2_000
"""Cycles within which tasks start, for seeds other than 0: about a page fault."""
TIMESLICE = 1_000_000
"""Cycles a task runs before it is asked to give way to another that is ready on its CPU."""
NEVER = 1 << 62


class Deadlock(AssertionError):
    """Nobody can go on; the message says who waits for what, and where."""


@attrs.define(eq=False)
class Task:
    """A thread of work. ``body`` runs once; ``switched_to`` is called on its CPU each time it begins or goes on."""

    name: str
    cpu: int
    body: Callable[[], None]
    switched_to: Callable[[], None] | None = None
    state: str = "ready"
    waits_for: object = None
    preempt_count: int = 0
    preempt_since: int = 0
    asker: Task | None = None
    """Whom it is interrupted for, if it is."""
    glet: greenlet | None = None


@attrs.define(eq=False)
class Call:
    """A function that another CPU asked for: an inter-processor interrupt, or an RCU callback (no ``sender``)."""

    function: Callable[[Cpu], None]
    due: int
    cost: int
    sender: Task | None = None
    missing: int = 0


@attrs.define(eq=False)
class Grace:
    """An RCU callback and the CPUs that have not been seen outside a reader since it was registered (a mask)."""

    function: Callable[[], None]
    cpu: int
    waits_for: int


@attrs.define(eq=False)
class Slot:
    """What one CPU is doing. ``in_user``: it runs user code, which holds no reader; ``user_until``: for so long at
    least, as far as anybody knows."""

    index: int
    order: float
    idle: Task
    running: Task | None = None
    last: Task | None = None
    ready: deque[tuple[int, Task]] = attrs.field(factory=deque)
    pending: list[Call] = attrs.field(factory=list)
    slice_end: int = 0
    in_user: bool = False
    user_until: int = 0


class TimedSched(TaskSched):
    """See the top of the module. Use: ``spawn`` tasks, then ``run``."""

    name = "timed"

    def __init__(self, cpus: Sequence[Cpu], seed: int = 0) -> None:
        super().__init__(cpus)
        self._random = random.Random(seed)
        self._stagger = STAGGER if seed else 1
        self._slots = [
            Slot(cpu.index, self._random.random(), Task(f"idle/{cpu.index}", cpu.index, lambda: None))
            for cpu in cpus
        ]
        for slot in self._slots:
            slot.idle.body = self._idle_loop
        self._boot = Task("boot", 0, lambda: None, state="running")
        self.context: Task = self._boot
        self._hub_glet: greenlet | None = None
        self._horizon = NEVER
        self._tasks: list[Task] = []
        self._graces: list[Grace] = []
        self.timeslice = TIMESLICE
        self.switches = 0
        """How often the simulation went from one context to another."""
        self.went_idle: Callable[[Cpu], None] | None = None
        """Called on a CPU whose task has gone, and no other is ready."""
        self.context_switch = 0
        """Cycles of choosing and entering another task."""

    @property
    def runs_tasks(self) -> bool:  # type: ignore[override]  # solo's never changes
        return self._hub_glet is not None

    # ------------------------------------------------------------------ tasks
    def spawn(
        self, name: str, cpu: int, body: Callable[[], None], switched_to: Callable[[], None] | None = None
    ) -> Task:
        """A new task, ready on CPU ``cpu`` now."""
        task = Task(name, cpu, body, switched_to)
        self._tasks.append(task)
        start = self.clock[self.cpu.index] if self._hub_glet is not None else self.clock[cpu]
        self._enqueue(cpu, start + self._random.randrange(self._stagger), task)
        self._reconsider(cpu)
        return task

    def _enqueue(self, cpu: int, at: int, task: Task) -> None:
        """``task`` is ready on ``cpu`` from time ``at`` on, behind those that are ready by then."""
        task.state = "ready"
        bisect.insort_right(self._slots[cpu].ready, (at, task), key=lambda entry: entry[0])

    def run(self) -> None:
        """Let every task run to its end. Raises what a task raised, or Deadlock."""
        assert self._hub_glet is None, "run is not re-entrant"
        self._hub_glet = getcurrent()
        outer = self.context, self.cpu, self.preempt_count
        try:
            self._hub()
        finally:
            self.lockdep, lockdep = None, self.lockdep
            for each in (*self._tasks, *(slot.idle for slot in self._slots)):
                if each.glet is not None and not each.glet.dead:
                    # Torn out of the middle of kernel code, it has nothing sensible left to say.
                    with contextlib.suppress(Exception):
                        each.glet.throw(GreenletExit)
                each.glet = None
            self.lockdep = lockdep
            self._tasks.clear()
            for slot in self._slots:
                slot.running = None
                slot.pending.clear()
                slot.ready.clear()
            self._hub_glet = None
            self.context, self.cpu, self.preempt_count = outer
            self._horizon = NEVER

    def _hub(self) -> None:
        while True:
            first, second = None, NEVER
            earliest = NEVER
            for slot in self._slots:
                at = self._next(slot)
                if at < earliest or (at == earliest and at < NEVER and slot.order < self._order_of(first)):
                    first, second, earliest = slot, earliest, at
                elif at < second:
                    second = at
            if first is None:
                if self._settle_graces():
                    continue
                waiting = [task for task in self._tasks if task.state != "done"]
                if waiting:
                    raise Deadlock(self._who_waits(waiting))
                return
            self._horizon = second
            self._resume(first, earliest)

    @staticmethod
    def _order_of(slot: Slot | None) -> float:
        return slot.order if slot is not None else 2.0

    def _next(self, slot: Slot) -> int:
        """When this CPU can do something next."""
        clock = self.clock[slot.index]
        running = slot.running
        interrupt = NEVER
        if slot.pending and self.cpus[slot.index].interrupts_enabled:
            interrupt = max(clock, slot.pending[0].due)
        if running is not None:
            return clock if running.state == "running" else interrupt
        if slot.ready:
            return min(interrupt, max(clock, slot.ready[0][0]))
        return interrupt

    def _resume(self, slot: Slot, at: int) -> None:
        """Let one CPU go on at time ``at``; returns when it gives the simulation back."""
        self.switches += 1
        index = slot.index
        self.clock[index] = max(self.clock[index], at)
        entered = None
        if slot.running is None:
            due = slot.pending and slot.pending[0].due <= self.clock[index]
            if not due:
                entered = slot.ready.popleft()[1]
                entered.state = "running"
                slot.slice_end = self.clock[index] + self.timeslice
            slot.running = entered or slot.idle
        task = slot.running
        self.cpu, self.context = self.cpus[index], task
        self.preempt_count, self.preempt_since = task.preempt_count, task.preempt_since
        if entered is not None and slot.last is not entered:
            self._quiescent(slot)
            slot.last = entered
            self.spend(self.context_switch, "context_switch")
            task.waits_for = None
        if task.glet is None or task.glet.dead:
            task.glet = greenlet(self._life, parent=self._hub_glet)
            task.glet.switch(task)
        else:
            task.glet.switch()

    def _life(self, task: Task) -> None:
        """What a greenlet runs."""
        if task is self._slots[task.cpu].idle:
            task.body()
            return
        if task.switched_to is not None:
            task.switched_to()
        task.body()
        if self.preempt_count:
            raise AssertionError(f"task {task.name} ends with preemption off")
        task.state = "done"
        self._leave(self._slots[task.cpu])

    def _idle_loop(self) -> None:
        """The idle task: interrupts, and nothing else."""
        slot = self._slots[self.cpu.index]
        while True:
            self._deliver(slot)
            slot.running = None
            self._quiescent(slot)
            self._give_back()

    def _give_back(self) -> None:
        """Let the hub choose again; returns when this context goes on."""
        task = self.context
        task.preempt_count, task.preempt_since = self.preempt_count, self.preempt_since
        assert self._hub_glet is not None
        self._hub_glet.switch()

    def _reconsider(self, cpu: int) -> None:
        """Another CPU was given something to do: it may now come before the next one."""
        self._horizon = min(self._horizon, self._next(self._slots[cpu]))

    # ------------------------------------------------------------------ points
    def point(self, kind: str, what: object) -> None:
        if self._hub_glet is None:
            return
        slot = self._slots[self.cpu.index]
        if slot.pending and self.cpu.interrupts_enabled:
            self._deliver(slot)
        if self.clock[slot.index] > self._horizon:
            self._give_back()
            if slot.pending and self.cpu.interrupts_enabled:
                self._deliver(slot)

    def might_sleep(self, why: str) -> None:
        super().might_sleep(why)
        if not self.cpu.interrupts_enabled:
            if self.lockdep is not None:
                self.lockdep.sleeping(why, "with interrupts off")
            raise AssertionError(f"sleeping with interrupts off: {why}")

    def need_resched(self) -> bool:
        slot = self._slots[self.cpu.index]
        clock = self.clock[slot.index]
        return clock >= slot.slice_end and bool(slot.ready) and slot.ready[0][0] <= clock

    def cond_resched(self) -> None:
        self.might_sleep("cond_resched")
        if self._hub_glet is not None and self.need_resched():
            slot = self._slots[self.cpu.index]
            self._enqueue(slot.index, self.clock[slot.index], self.context)
            self._sleep(slot)

    def _leave(self, slot: Slot, idle: bool = True) -> None:
        """The current task gives its CPU up, which goes idle if no other is ready there."""
        slot.running = None
        self._quiescent(slot)
        if (
            idle
            and self.went_idle is not None
            and not (slot.ready and slot.ready[0][0] <= self.clock[slot.index])
        ):
            self.went_idle(self.cpus[slot.index])

    def _sleep(self, slot: Slot, idle: bool = True) -> None:
        """Give the CPU to whoever is ready; returns when this task runs again."""
        task = self.context
        self._leave(slot, idle)
        self._give_back()
        slot = self._slots[task.cpu]
        if slot.last is not task:
            slot.last = task
        if task.switched_to is not None:
            task.switched_to()

    def user(self, work: Callable[[], int], more: int = 0) -> None:
        """Run user code: ``work`` does some of it and returns the cycles that go on without memory.

        Those pass up to the next event, and on when others have had their turn: no interrupt waits for their end.
        ``more``: cycles for which others need not expect anything but more of the same.
        """
        slot, clock = self._slots[self.cpu.index], self.clock
        slot.in_user = True
        self._quiescent(slot)
        try:
            end = work() + clock[slot.index]
            while True:
                slot.user_until = end + more
                now = clock[slot.index] = min(end, max(clock[slot.index] + 1, self.next_event()))
                self.point("user", None)
                if self.need_resched():
                    slot.in_user = False
                    self.cond_resched()
                    slot.in_user = True
                if now == end:
                    return
                end += clock[slot.index] - now  # of interrupts and of others, not of this
        finally:
            slot.in_user = False

    def next_event(self) -> int:
        """When something happens next that this CPU's user code might notice: an interrupt of its own, or, just
        passed, another CPU's next step in the kernel. ``NEVER``: nobody else can run."""
        me = self._slots[self.cpu.index]
        at = NEVER
        if me.pending and self.cpu.interrupts_enabled:
            at = me.pending[0].due
        for slot in self._slots:
            if slot is not me:
                other = max(slot.user_until, self.clock[slot.index]) if slot.in_user else self._next(slot)
                if other < at:
                    at = other + 1
        return at

    def trap(self, handler: Callable[[], None]) -> None:
        """Run kernel code that user code, inside ``user``, trapped into."""
        slot = self._slots[self.cpu.index]
        slot.in_user = False
        try:
            handler()
        finally:
            slot.in_user = True
            self._quiescent(slot)

    # ------------------------------------------------------------------ waiting
    def block(self, what: object, idle: bool = True) -> None:
        """The current task sleeps until somebody calls ``wake`` for it; ``what`` it waits for is told in a deadlock.

        ``idle`` False: it only waits for the simulation's sake, and its CPU is not idle.
        """
        self.might_sleep(getattr(what, "name", "waiting"))
        self.context.waits_for = what
        self.context.state = "sleeping"
        self._sleep(self._slots[self.cpu.index], idle)

    def sleep(self, cycles: int) -> None:
        if self._hub_glet is None:
            super().sleep(cycles)
            return
        self.might_sleep("sleep")
        slot = self._slots[self.cpu.index]
        self._enqueue(slot.index, self.clock[slot.index] + cycles, self.context)
        self._sleep(slot)

    def wait(self, lock: Lock) -> None:
        if self._hub_glet is None:
            super().wait(lock)
        task = self.context
        slot = self._slots[self.cpu.index]
        since = self.clock[slot.index]
        if lock.owner is task:
            raise Deadlock(f"{task.name} takes {lock.name}, which it holds")
        task.waits_for = lock
        if lock.spins:
            task.state = "spinning"
            while task.state == "spinning":
                if slot.pending and self.cpu.interrupts_enabled:
                    self._deliver(slot)
                if task.state == "spinning":
                    self._give_back()
        else:
            task.state = "sleeping"
            self._sleep(slot)
        waited = self.clock[self.cpu.index] - since
        if waited > self.max_wait.get(lock.name, 0):
            self.max_wait[lock.name] = waited

    def wake(self, context: object) -> None:
        assert isinstance(context, Task)
        now = self.clock[self.cpu.index]
        spun = context.state == "spinning"
        context.waits_for = None
        if spun:
            context.state = "running"
            self.clock[context.cpu] = max(self.clock[context.cpu], now)
        else:
            self._enqueue(context.cpu, now, context)
        self._reconsider(context.cpu)

    # ------------------------------------------------------------------ interrupts
    def ipi(self, mask: int, function: Callable[[Cpu], None], cost: int) -> int:
        if self._hub_glet is None:
            return super().ipi(mask, function, cost)
        me = self.cpu.index
        targets = [cpu.index for cpu in self.cpus if mask >> cpu.index & 1 and cpu.index != me]
        if not targets:
            return 0
        if not self.cpu.interrupts_enabled:
            raise AssertionError(
                "waiting for other CPUs with interrupts off: two such CPUs would wait for ever"
            )
        self.point("ipi", None)
        task = self.context
        call = Call(function, self.clock[me] + cost // 2, cost - cost // 2, task, len(targets))
        self.preempt_disable()
        for index in targets:
            self._slots[index].pending.append(call)
            self._reconsider(index)
        since = self.clock[me]
        slot = self._slots[me]
        task.state, task.waits_for = "spinning", call
        while task.state == "spinning":
            if slot.pending and self.cpu.interrupts_enabled:
                self._deliver(slot)
            if task.state == "spinning":
                self._give_back()
        self.spent_on["ipi"] = self.spent_on.get("ipi", 0) + self.clock[me] - since
        self.preempt_enable()
        return len(targets)

    def _deliver(self, slot: Slot) -> None:
        """Handle every interrupt that is due on this CPU, interrupts off meanwhile."""
        cpu = self.cpus[slot.index]
        clock = self.clock
        while slot.pending and slot.pending[0].due <= clock[slot.index] and cpu.interrupts_enabled:
            call = slot.pending.pop(0)
            task = self.context
            state, waits_for = task.state, task.waits_for
            task.state, task.waits_for, task.asker = "running", None, call.sender
            cpu.interrupts_enabled = False
            self.spend(call.cost, "ipi")
            call.function(cpu)
            cpu.interrupts_enabled = True
            task.asker = None
            if task.state == "running":
                task.state, task.waits_for = state, waits_for
            if call.sender is not None:
                call.missing -= 1
                if not call.missing:
                    self.wake(call.sender)

    # ------------------------------------------------------------------ RCU
    def call_rcu(self, function: Callable[[], None]) -> None:
        """Run ``function`` once every CPU that is in kernel code now was seen outside it, or switching tasks.

        That waits for everybody with interrupts or preemption off: sched-RCU.
        """
        if self._hub_glet is None:
            function()
            return
        self.point("call_rcu", None)  # so that whoever is earlier in time is in what it is in
        busy = sum(
            1 << slot.index
            for slot in self._slots
            if slot.running is not None and slot.running is not slot.idle and not slot.in_user
        )
        self._graces.append(Grace(function, self.cpu.index, busy))

    def _quiescent(self, slot: Slot) -> None:
        """This CPU holds no RCU reader now."""
        for grace in self._graces:
            grace.waits_for &= ~(1 << slot.index)
        while self._graces and not self._graces[0].waits_for:
            self._finish(self._graces.pop(0))

    def _finish(self, grace: Grace) -> None:
        function = grace.function
        call = Call(lambda cpu: function(), self.clock[self.cpu.index], 0)
        self._slots[grace.cpu].pending.append(call)
        self._reconsider(grace.cpu)

    def _settle_graces(self) -> bool:
        """Everybody is idle: all that waited for readers may run."""
        graces, self._graces = self._graces, []
        for grace in graces:
            self._finish(grace)
        return bool(graces)

    # ------------------------------------------------------------------ telling
    def _who_waits(self, waiting: Sequence[Task]) -> str:
        lines = ["nobody can go on:"]
        for task in waiting:
            what = getattr(task.waits_for, "name", None) or type(task.waits_for).__name__
            owner = getattr(getattr(task.waits_for, "owner", None), "name", None)
            held = f", held by {owner}" if owner else ""
            lines.append(f"{task.name} on CPU {task.cpu} is {task.state}, waits for {what}{held}")
            frame = task.glet.gr_frame if task.glet is not None else None
            if frame is not None:
                lines += [
                    f"    {entry.filename.rsplit('/', 1)[-1]}:{entry.lineno} {entry.name}"
                    for entry in traceback.extract_stack(frame)[-6:]
                ]
        return "\n".join(lines)
