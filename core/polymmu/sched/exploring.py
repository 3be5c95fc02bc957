"""The exploring driver: before every visible operation somebody else decides which task goes on.

Each task runs up to its next visible operation and parks there with it; the *picker* chooses whose operation happens.
So every interleaving of visible operations can be made, and made again. What a picker is told (who could go on, and
what each operation did) is all that a search needs to know; this module knows nothing of searching.

A task is not offered while it could not go on: its lock is held, what it waits for has not happened, its CPU has
interrupts off (for a handler), another task is on its CPU. Interrupts and RCU callbacks are tasks of their own that
their cause makes, and one operation each. Nobody spins here, and no lock is handed over: whoever is picked takes it.

With store buffers (``buffers``) what a CPU stores is seen by others when it is *drained*: a pseudo-task too, one
operation per store. Atomic operations, locks taken, interrupts and loads of a root wait until the CPU's own buffer is
empty; giving a spinlock back is a plain store.

One ``run`` is one execution. Greenlets are kept from run to run, for making one costs more than a short execution.

First reading: ``point``, ``_park``, ``_can_go``; then ``ipi``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
from greenlet import getcurrent, greenlet
from numpy.typing import NDArray

from polymmu.hardware.cpu import Cpu
from polymmu.sched.access import Access, Mode
from polymmu.sched.lockdep import place_here
from polymmu.sched.locks import Lock, RwSem
from polymmu.sched.picker import Diverged, Known, Picker, TooLong
from polymmu.sched.words import BARRIERS, SharedWords

__all__ = ["ExploringSched", "Stuck", "Task"]

Key = tuple[int, ...]
NEVER = 1 << 62


class Stuck(AssertionError):
    """Nobody can go on, and not everybody is done."""


class Abort(BaseException):
    """Takes a task that will not go on out of whatever it is in."""


class Stack(greenlet):  # type: ignore[misc]  # of which mypy knows nothing
    """What a task runs on. ``work``: whose task it is to begin, and which."""

    work: tuple[ExploringSched, Task] | None = None


@attrs.define(eq=False)
class Task:
    """A thread of work, a handler or a callback. ``key`` says who made it; ``number`` is short for that."""

    key: Key
    number: int
    name: str
    cpu: int
    body: Callable[[], None]
    kind: str = "begin"
    """Its next operation, and on what."""
    what: Any = None
    switched_to: Callable[[], None] | None = None
    in_context: bool = True
    """Whether it occupies its CPU; handlers and callbacks come on top of whatever is there."""
    preempt_count: int = 0
    preempt_since: int = 0
    children: int = 0
    woken: bool = False
    is_barrier: bool = False
    """Whether its next operation waits until all that its CPU stored is in memory."""
    stores: bool = False
    """Whether it is a plain store, for which there must be room."""
    place: str = ""
    """Where in the code its operation is, if anybody wants to know."""
    glet: Stack | None = None


@attrs.define(eq=False)
class Call:
    """An interrupt sent to several CPUs, and how many have not answered. ``key``: the same in every execution."""

    key: Hashable
    missing: int
    name: str = "the other CPUs' answers"


@attrs.define(eq=False)
class Grace:
    """CPUs whose readers are older than the callback (a mask)."""

    readers: int
    name: str = "a grace period"


_MODES: Mapping[str, Mode] = {
    "read": Mode.READ,
    "write": Mode.WRITE,
    "lock": Mode.ACQUIRE,
    "unlock": Mode.RELEASE,
    "read_lock": Mode.SHARE,
    "read_unlock": Mode.UNSHARE,
    "irq_off": Mode.ACQUIRE,
    "irq_on": Mode.RELEASE,
    "asleep": Mode.AWAIT,
    "ack": Mode.AWAIT,
}

_WAITS = frozenset(("lock", "read_lock", "asleep", "ack", "interrupt", "end", "grace"))
"""Operations that may have to wait."""


def _nobody(cpu: Cpu) -> None:
    """Nobody cares which CPUs run user code."""


def _lasting(what: Any) -> Hashable:
    """What an operation is on, told alike in every execution: a lock in a frame may be another object in each."""
    key: Hashable = getattr(what, "key", None)
    return what if key is None else key


def _work() -> None:
    """What a greenlet runs: one task after another, for as long as anybody may give it one. Between two it holds on to
    nothing, for what a greenlet's stack holds the garbage collector never finds."""
    while True:
        me: Any = getcurrent()
        (sched, task), me.work, hub = me.work, None, me.parent
        del me
        sched.live(task)
        del sched, task
        hub.switch()


class ExploringSched(SharedWords):
    """See the top of the module. Use: ``spawn`` tasks, then ``run(picker)``. ``budgets``: how often, in one execution,
    each kind of choice may come out other than 0."""

    name = "exploring"

    def __init__(self, cpus: Sequence[Cpu], budgets: Mapping[str, int] | None = None) -> None:
        super().__init__(cpus)
        self.budgets = dict(budgets or {})
        self._left: dict[str, int] = {}
        self._wanted: list[Lock] = []
        """Held locks that somebody is said to wait for."""
        self._last = -1
        """Who did the last operation."""
        self._steps_left = NEVER
        self._boot = Task((), -1, "boot", 0, lambda: None)
        self.context: Task = self._boot
        self._numbers: dict[Key, int] = {}
        self._tasks: list[Task] = []
        self._unbegun: list[Task] = []
        """Those of them that have done nothing yet."""
        self._newborn: list[Task] = []
        self._on_cpu: list[Task | None] = [None] * len(self.cpus)
        self._crowded = [False] * len(self.cpus)
        """Which CPUs have several tasks."""
        self._pool: list[Stack] = []
        self._hub: greenlet | None = None
        self._picker: Picker | None = None
        self._again: Sequence[Known] = ()
        """The steps that come again first, and how many of them did."""
        self._known = 0
        self.tells = False
        """Whether anybody hears what the operation in progress does: not of one that comes again."""
        self._following: Task | None = None
        """Who goes on when a task has ended."""
        self._failure: BaseException | None = None
        self._dying = False
        self._atomic = False
        """A handler runs: its operations are parts of one."""
        self._did: list[Access] = []
        self._stepping = False
        self.switches = 0
        """How often the simulation went from one task to another."""
        self.names: dict[int, tuple[str, int]] = {}
        """Name and CPU of each task that there ever was, by number."""
        self.tells_places = False
        self.watches = False
        """Whether what is done now are operations: not outside of an execution, nor what only looks."""
        self._switching = [False] * len(self.cpus)
        """Which CPUs change their mm: with interrupts off, as Linux does."""
        self.in_user_mode: Callable[[Cpu], None] = _nobody
        """Told, when an operation is over, of each CPU that runs user code for all that the kernel knows."""

    @property
    def lasting(self) -> tuple[object, ...]:
        """What outlives an execution, and must not be put back between two."""
        return self._numbers, self._pool, self.names

    @property
    def keys(self) -> tuple[Key, ...]:
        """Who made each task that there ever was, by number. Numbers are given as tasks turn up, so they hang on what
        was run before; whoever wants to speak of tasks elsewhere hands this on there, before the first run."""
        return tuple(self._numbers)

    @keys.setter
    def keys(self, keys: Sequence[Key]) -> None:
        self._numbers.clear()
        self._numbers.update((key, number) for number, key in enumerate(keys))

    @property
    def runs_tasks(self) -> bool:  # type: ignore[override]  # solo's never changes
        return self._picker is not None

    # ------------------------------------------------------------------ one execution
    def spawn(
        self, name: str, cpu: int, body: Callable[[], None], switched_to: Callable[[], None] | None = None
    ) -> Task:
        """A task for the next ``run``, or for the rest of this one."""
        task = self._make(name, cpu, body)
        task.switched_to = switched_to
        self._unbegun.append(task)
        self._crowded[cpu] |= any(
            other.cpu == cpu for other in self._tasks if other.in_context and other is not task
        )
        return task

    def _make(self, name: str, cpu: int, body: Callable[[], None]) -> Task:
        parent = self.context
        key = (*parent.key, parent.children)
        parent.children += 1
        task = Task(key, self._numbers.setdefault(key, len(self._numbers)), name, cpu, body)
        self.names[task.number] = name, cpu
        self._tasks.append(task)
        self._newborn.append(task)
        return task

    def run(self, picker: Picker, *, unbounded: bool = False, steps: int = NEVER) -> BaseException | None:
        """One execution with the tasks that were spawned; what a task raised, Stuck, Halt, or None.

        ``unbounded``: budgets are never used up. ``steps``: after so many it is ended (TooLong).
        """
        assert self._picker is None, "run is not re-entrant"
        self._picker, self._hub, self._failure = picker, getcurrent(), None
        self._left = {
            what: NEVER if unbounded and budget else budget for what, budget in self.budgets.items()
        }
        self._last = -1
        # With store buffers what an operation does decides what others come of it, so all of it is done.
        self._again, self._known = picker.comes_again() if self.buffers is None else (), 0
        self._steps_left = steps - len(self._again)
        outer = self.context, self.cpu, self.preempt_count
        try:
            self._announce()
            self._occupy()
            following = self._next()
            while following is not None:
                self._transfer(following)
                following, self._following = self._following, None
        finally:
            self.watches = True
            self._tear_down()
            self.watches = False
            self.context, self.cpu, self.preempt_count = outer
            self._boot.children = 0
            self._picker = None
        return self._failure

    def _occupy(self) -> None:
        """An execution begins with each CPU in its first task: how it got there is not looked at."""
        self.watches = False
        for task in self._tasks:
            if self._on_cpu[task.cpu] is None:
                self._load(task)
                self._enter(task)
        self.watches = True
        self._did = []

    def _tear_down(self) -> None:
        if self.buffers is not None:
            self.buffers.forget()
        self._dying, self._atomic = True, False
        for task in self._tasks:
            if task.glet is not None:
                self._load(task)
                task.glet.throw(Abort)
        self._dying = False
        self._tasks.clear()
        self._unbegun.clear()
        self._newborn.clear()
        self.tells = False
        self._did = []
        self._wanted = []
        self._stepping = False
        self._on_cpu = [None] * len(self.cpus)
        self._crowded = [False] * len(self.cpus)
        self._released = None
        self._switching = [False] * len(self.cpus)
        if self.buffers is not None:
            self.buffers.forget()

    def live(self, task: Task) -> None:
        """All of ``task``, on its own stack."""
        try:
            self._stepping = task.kind != "begin" or not self._is_there(task)
            self._enter(task)
            task.body()
            if task.in_context and self.went_idle is not None and not self._crowded[task.cpu]:
                self.went_idle(self.cpu)
            if self.preempt_count:
                raise AssertionError(f"task {task.name} ends with preemption off")  # noqa: TRY301
            self._finish(task)
        except Abort:
            pass
        except BaseException as failure:
            if not self._dying:
                self._failure = failure
                try:
                    self._finish(task)
                except KeyboardInterrupt as pressed:
                    self._failure = pressed
                except Exception:  # a picker may complain of the unwinding, too
                    pass
        me, task.glet = task.glet, None
        assert me is not None
        self._pool.append(me)
        if self._on_cpu[task.cpu] is task:
            self._on_cpu[task.cpu] = None
        if not self._dying:
            self._tasks.remove(task)
            self._following = self._next()

    def _is_there(self, task: Task) -> bool:
        """Whether ``task`` can begin without anybody noticing."""
        return task.switched_to is None or self._on_cpu[task.cpu] is task

    def _enter(self, task: Task) -> None:
        """``task`` has its CPU now; another one of the same CPU may have had it."""
        if task.in_context and self._on_cpu[task.cpu] is not task:
            self._on_cpu[task.cpu] = task
            if task.switched_to is not None:
                task.switched_to()

    # ------------------------------------------------------------------ who goes on
    def point(self, kind: str, what: object) -> None:
        if not self.watches:
            return
        if self._dying:
            raise Abort
        task = self.context
        if not self._atomic:
            self._finish(task)
            task.kind, task.what = kind, what
            if self.buffers is not None:
                self._prepare(task)
            if self.tells_places:
                task.place = place_here(self)
            self._park(task)
        self.next_is_atomic, self._half = False, None
        self._stepping = True
        self._note(kind, what)

    def switching(self, cpu: Cpu, begins: bool) -> None:
        """``cpu`` changes its mm, with interrupts off, or has done so."""
        if self._picker is not None:
            self._switching[cpu.index] = begins
            self.did(Mode.ACQUIRE if begins else Mode.RELEASE, ("switch", cpu.index))

    def is_at(self, kind: str, what: object) -> bool:
        """Whether this is the operation in progress."""
        task = self.context
        return task.kind == kind and task.what == what and not self._atomic

    def did(self, mode: Mode, what: Hashable) -> None:
        """The operation in progress does this, too."""
        if self.tells and self.watches:
            self._did.append((what, mode))

    def frames_put(self, pfns: NDArray[np.int64]) -> None:
        if self.tells:
            self._did += [(("frame", pfn), Mode.WRITE) for pfn in pfns.tolist()]

    def _note(self, kind: str, what: Any) -> None:
        if kind == "unlock" and what in self._wanted:
            self._wanted.remove(what)
        if not self.tells:
            return
        mode = _MODES.get(kind)
        if kind == "trylock":
            mode = Mode.READ if what.held else Mode.TRY
        if self.buffers is not None and not self._atomic and self._note_buffer(kind, what):
            mode = None
        if mode is not None:
            self._did.append((_lasting(what), mode))
        if self._crowded[self.cpu.index]:
            self._did.append((("cpu", self.cpu.index), Mode.WRITE))

    def _finish(self, task: Task) -> None:
        """The operation of ``task`` is over."""
        assert self._picker is not None
        if self.buffers is not None:
            self.buffers.hide()
        if self._stepping:
            did, self._did = self._did, []
            self._stepping = False
            self._last = task.number
            self._look_at_users()
            if self.tells:
                self._picker.happened(task.number, task.kind, task.what, did)
        if not self.tells:
            self._newborn.clear()
        elif self._newborn:
            self._announce()

    def _look_at_users(self) -> None:
        for task in self._on_cpu:  # it waits in user mode for its turn
            if task is not None and (task.kind == "user" or (task.kind == "end" and task.what)):
                self.in_user_mode(self.cpus[task.cpu])

    def _announce(self) -> None:
        assert self._picker is not None
        newborn, self._newborn = self._newborn, []
        for task in newborn:
            self._picker.spawned(task.number)

    def _park(self, task: Task) -> None:
        """Let the picker choose; returns when it chose this task."""
        task.preempt_count, task.preempt_since = self.preempt_count, self.preempt_since
        following = self._next()
        if following is task:
            if self.buffers is not None:
                self._look(task)
            return
        if following is not None:
            self._transfer(following)
        else:
            assert self._hub is not None
            self._hub.switch()
        if self._dying:
            raise Abort
        self._enter(task)

    def _next(self) -> Task | None:
        """Who goes on; None: the execution is over."""
        assert self._picker is not None
        if self._failure is not None:
            return None
        self.tells = self._known == len(self._again)
        for task in self._unbegun:
            if self._is_there(task):
                return task  # up to its first operation it does nothing that others could see
        if not self.tells:
            return self._next_again()
        able = {task.number: task for task in self._tasks if self._can_go(task)}
        if not able:
            if self._tasks:
                self._failure = Stuck(self._who_waits())
                self._picker.stuck([(task.number, self._would_do(task)) for task in self._tasks])
            return None
        self._steps_left -= 1
        if self._steps_left < 0:
            self._failure = TooLong("an execution had more steps than it may have")
            return None
        try:
            number = self._picker.pick(self._last, tuple(able))
        except Exception as failure:  # Halt, or a schedule that does not fit
            self._failure = failure
            return None
        assert number in able, f"task {number} was picked and cannot go on"
        return able[number]

    def _next_again(self) -> Task | None:
        """Who goes on where that is known."""
        step = self._again[self._known]
        self._known += 1
        found = None
        for task in self._tasks:
            if task.kind == "grace":
                self._can_go(task)  # it looks which readers have left
            if task.number == step.chosen and task.kind == step.kind:
                found = task
        if found is None:
            self._failure = Diverged(f"step {self._known}: task {step.chosen} does not do '{step.kind}' now")
        return found

    def _transfer(self, task: Task) -> None:
        """Go on as ``task``; returns when somebody comes back to the caller."""
        self.switches += 1
        self._load(task)
        if task.glet is None:
            if task in self._unbegun:
                self._unbegun.remove(task)
            task.glet = self._pool.pop() if self._pool else Stack(_work, parent=self._hub)
            task.glet.work = self, task
        task.glet.switch()

    def _load(self, task: Task) -> None:
        self.context, self.cpu = task, self.cpus[task.cpu]
        self.next_is_atomic, self._half = False, None
        self.preempt_count, self.preempt_since = task.preempt_count, task.preempt_since
        self._look(task)

    def _look(self, task: Task) -> None:
        """Memory as ``task`` sees it: hardware that walks tables or drains a buffer as everybody does."""
        if self.buffers is not None:
            if task.kind in ("drain", "user"):
                self.buffers.hide()
            else:
                self.buffers.show(task.cpu)

    def _can_go(self, task: Task) -> bool:
        """Whether the operation that ``task`` is about to do can happen now."""
        kind, what = task.kind, task.what
        if task.in_context and self._crowded[task.cpu]:
            running = self._on_cpu[task.cpu]
            if running is not None and running is not task and not self._may_lose_cpu(running):
                return False
        if self.buffers is not None and not self._has_room(task, self.buffers):
            return False
        if kind not in _WAITS:
            return True
        if kind == "lock":
            return not (what.held or (isinstance(what, RwSem) and what.readers))
        if kind == "read_lock":
            return not what.held
        if kind == "asleep":
            return task.woken
        if kind == "ack":
            return not what.missing
        if kind == "end":
            return all(other.kind == "end" for other in self._tasks)
        if kind == "interrupt":
            return self.cpus[task.cpu].interrupts_enabled and not self._switching[task.cpu]
        if kind == "grace":
            for cpu in self.cpus:
                if cpu.interrupts_enabled:
                    what.readers &= ~(1 << cpu.index)
            return not what.readers
        return True

    def _may_lose_cpu(self, task: Task) -> bool:
        """Whether another task may run instead of ``task`` on its CPU."""
        return not task.preempt_count and self.cpus[task.cpu].interrupts_enabled

    def _would_do(self, task: Task) -> list[Access]:
        mode = _MODES.get(task.kind)
        return (
            [(_lasting(task.what), mode)] if mode is not None and mode in (Mode.ACQUIRE, Mode.SHARE) else []
        )

    # ------------------------------------------------------------------ outcomes that nobody knows
    def choice(self, what: str, options: int = 2) -> int:
        """One of ``options`` outcomes, 0 where the budget for ``what`` is used up."""
        if self._picker is None or not self.budgets.get(what):
            return 0
        self.point("choice", what)
        # Whether there is a budget left is read here, by whoever asks; using it is seen by all who ask.
        value = 0
        if self._left[what]:
            value = self._picker.choose(options) if self.tells else self._again[self._known - 1].value
        self.did(Mode.WRITE if value else Mode.READ, ("budget", what))
        self._left[what] -= bool(value)
        return value

    def need_resched(self) -> bool:
        return bool(self.choice("need_resched"))

    def need_lockbreak(self, lock: Lock) -> bool:
        """Somebody may wait, and then does so until the lock is dropped."""
        if lock not in self._wanted and (self.choice(f"{lock.name}_break") or self.choice("lock_break")):
            self._wanted.append(lock)
        return lock in self._wanted

    # ------------------------------------------------------------------ waiting
    def might_sleep(self, why: str) -> None:
        super().might_sleep(why)
        if not self.cpu.interrupts_enabled:
            raise AssertionError(f"sleeping with interrupts off: {why}")

    def cond_resched(self) -> None:
        self.might_sleep("cond_resched")
        self.point("cond_resched", None)

    def wait(self, lock: Lock) -> None:
        if self._picker is None:
            super().wait(lock)
        raise AssertionError(f"{lock.name}: picked while it is held")

    def block(self, what: object, idle: bool = True) -> None:
        self.might_sleep(getattr(what, "name", "waiting"))
        task = self.context
        task.woken = False
        self.point("asleep", ("wake", task.key))

    def wake(self, context: object) -> None:
        assert isinstance(context, Task)
        context.woken = True
        self.did(Mode.SIGNAL, ("wake", context.key))

    def sleep(self, cycles: int) -> None:
        """Time is not what this driver goes by: others may run, for as long as the picker likes."""
        self.cond_resched()

    def next_event(self) -> int:
        return NEVER

    def user(self, work: Callable[[], int], more: int = 0) -> None:
        self.point("user", None)
        self.did(Mode.READ, ("judged", self.cpu.index))
        if self._picker is not None:
            self._look_at_users()
        self.clock[self.cpu.index] += work()
        self._look_as_kernel()

    def trap(self, handler: Callable[[], None]) -> None:
        self._look_as_kernel()
        handler()
        if self.buffers is not None:
            self.buffers.hide()

    def _look_as_kernel(self) -> None:
        """Hardware does not see what is in the buffer; the program's own CPU does."""
        if self.buffers is not None and self._picker is not None:
            self.buffers.show(self.cpu.index)

    def linger(self, name: str) -> None:
        """The current task has done all that it had to do, and stays until everybody has: in user mode, if it has a
        ``name`` there. What comes then is the end of the execution and no part of it."""
        self.point("end", name)
        self.watches = False

    # ------------------------------------------------------------------ interrupts and RCU
    def ipi(self, mask: int, function: Callable[[Cpu], None], cost: int) -> int:
        if self._picker is None:
            return super().ipi(mask, function, cost)
        targets = [cpu for cpu in self.cpus if mask >> cpu.index & 1 and cpu is not self.cpu]
        if not targets:
            return 0
        if not self.cpu.interrupts_enabled:
            raise AssertionError(
                "waiting for other CPUs with interrupts off: two such CPUs would wait for ever"
            )
        self.point("ipi", None)
        call = Call(("call", self.context.key, self.context.children), len(targets))
        self.preempt_disable()
        for cpu in targets:
            self._on_top("interrupt", cpu, call, partial(self._answer, call, cpu, function))
        self.point("ack", call)
        self.preempt_enable()
        return len(targets)

    def _answer(self, call: Call, cpu: Cpu, function: Callable[[Cpu], None]) -> None:
        """A handler: takes the CPU's right to be interrupted for a moment."""
        switch = ("switch", cpu.index)
        self._did += [(cpu, Mode.ACQUIRE), (cpu, Mode.RELEASE), (call.key, Mode.SIGNAL)]
        self._did += [(switch, Mode.ACQUIRE), (switch, Mode.RELEASE)]
        self._atomic = True
        cpu.interrupts_enabled = False
        function(cpu)
        cpu.interrupts_enabled = True
        self._atomic = False
        call.missing -= 1

    def call_rcu(self, function: Callable[[], None]) -> None:
        """Run ``function`` once every reader that exists now has left: a reader has interrupts off."""
        if self._picker is None:
            function()
            return
        self.point("call_rcu", None)
        self._did += [(cpu, Mode.READ) for cpu in self.cpus]
        readers = sum(1 << cpu.index for cpu in self.cpus if not cpu.interrupts_enabled)

        def callback() -> None:
            self._did += [(cpu, Mode.AWAIT) for cpu in self.cpus if readers >> cpu.index & 1]
            self._atomic = True
            function()
            self._atomic = False

        self._on_top("grace", self.cpu, Grace(readers), callback)

    def _on_top(self, kind: str, cpu: Cpu, what: object, body: Callable[[], None]) -> Task:
        task = self._make(f"{kind}/{cpu.index}", cpu.index, body)
        task.kind, task.what, task.in_context = kind, what, False
        task.is_barrier = kind in BARRIERS
        return task

    # ------------------------------------------------------------------ telling
    def _who_waits(self) -> str:
        lines = []
        for task in self._tasks:
            what = getattr(task.what, "name", task.kind)
            owner = getattr(getattr(task.what, "owner", None), "name", None)
            lines.append(f"{task.name} waits for {what}{f', held by {owner}' if owner else ''}")
        return "nobody can go on: " + "; ".join(lines)
