"""Words that CPUs share, as operations of the exploring driver: plain, atomic, or through a store buffer.

A field that is read is an operation, and so is one that is written; whoever has just read it does both in one. After
``atomic`` the change is one operation by itself, and a full barrier. What goes through the store buffers, and what
waits for them, is said here and nowhere else.

First reading: ``SharedWords.write``, ``SharedWords.store``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from polymmu.hardware.cpu import Cpu
from polymmu.sched.access import Access, Mode
from polymmu.sched.driver import TaskSched
from polymmu.sched.locks import Lock
from polymmu.sched.store_buffers import Store, StoreBuffers, Undo

__all__ = ["BARRIERS", "SharedWords"]

BARRIERS = frozenset(
    {
        "lock",
        "trylock",
        "read_lock",
        "read_unlock",
        "asleep",
        "ipi",
        "interrupt",
        "grace",
        "load_root",
        "flush",
        "smp_mb",
    }
)
"""Operations that are full barriers, or made of instructions that are. So is giving back any lock but a spinlock."""


class SharedWords(TaskSched):
    """The part of the exploring driver that knows of memory."""

    _picker: Any = None
    _did: list[Access]
    _dying: bool
    _atomic: bool
    watches: bool

    def __init__(self, cpus: Sequence[Cpu]) -> None:
        super().__init__(cpus)
        self.buffers: StoreBuffers | None = None
        """None: sequential consistency."""
        self.before_drain: Callable[[], None] | None = None
        """What else may happen just before the next store is drained."""
        self.next_is_atomic = False
        """``atomic`` announced the next access, and it has not come."""
        self._half: tuple[str, Hashable] | None = None
        """A field that was read, or is or was changed, by the operation in progress and nothing else since."""
        self._released: Lock | None = None
        """The spinlock that the operation in progress gives back."""

    def is_at(self, kind: str, what: object) -> bool:
        """Whether this is the operation in progress."""
        raise NotImplementedError

    def did(self, mode: Mode, what: Hashable) -> None:
        """The operation in progress does this, too."""
        raise NotImplementedError

    def _on_top(self, kind: str, cpu: Cpu, what: object, body: Callable[[], None]) -> Any:
        raise NotImplementedError

    # ------------------------------------------------------------------ fields
    def read(self, what: Hashable) -> None:
        """The caller reads ``what`` next: as the first half of a change that is atomic, or what that gave."""
        if self.next_is_atomic:
            self.point("update", what)
            self.did(Mode.ADD, what)
            self._half = "changes", what
        elif self._half == ("changed", what):
            self.did(Mode.READ, what)
        else:
            self.point("read", what)
            self._half = "read", what

    def write(self, what: Hashable, write: Callable[[], Undo]) -> None:
        """Change ``what``: ``write`` does so, and returns how to take it back. Who just read it does both in one."""
        if self._half == ("changes", what) or self.next_is_atomic:
            if self.next_is_atomic:
                self.point("update", what)
                self.did(Mode.WRITE, what)
            write()
            self._half = "changed", what
            return
        if self._half != ("read", what):
            self.point("write", what)
        self._half = None
        self.store(what, write)

    def atomic(self) -> None:
        self.next_is_atomic = self.watches

    def smp_mb(self) -> None:
        if self.buffers is not None:
            self.point("smp_mb", None)

    def store(self, what: Hashable, write: Callable[[], Undo], mode: Mode = Mode.WRITE) -> None:
        """The operation in progress changes ``what``: ``write`` happens now, or when it is drained."""
        buffers, cpu = self.buffers, self.cpu
        first, self.before_drain = self.before_drain, None
        if buffers is None or self._atomic or self.context.is_barrier or self._dying:
            if not self.is_at("write", what):
                self._did.append((what, mode))
            write()
            return
        before = buffers.last[cpu.index]
        follows = before[-1] if before else ()

        def drain() -> None:
            if follows:
                self._did.append((("stored", follows), Mode.AWAIT))
            self._did.append((("stored", task.key), Mode.SIGNAL))
            self._did.append((what, mode))
            if first is not None:
                first()
            buffers.drain(cpu.index)

        task = self._on_top("drain", cpu, what, drain)
        before.append(task.key)
        buffers.push(cpu.index, Store(task.key, write))

    def preempt_enable(self) -> None:
        super().preempt_enable()
        lock, self._released = self._released, None
        if lock is not None:  # it is free for who gave it back; for others when they see that
            owner = self.context

            def release() -> Undo:
                lock.held, lock.owner = False, None

                def undo() -> None:
                    lock.held, lock.owner = True, owner

                return undo

            undo = release()
            undo()
            self.store(lock, release, Mode.RELEASE)

    # ------------------------------------------------------------------ buffers
    def _prepare(self, task: Any) -> None:
        """What the next operation of ``task`` is to its CPU's buffer."""
        task.is_barrier = (
            self.next_is_atomic or task.kind in BARRIERS or (task.kind == "unlock" and not task.what.spins)
        )
        task.stores = not task.is_barrier and task.kind in ("write", "unlock")

    def _note_buffer(self, kind: str, what: Any) -> bool:
        """What a barrier waited for, or a store for which there had been no room; whether ``what`` changes later."""
        assert self.buffers is not None
        task, keys = self.context, self.buffers.last[self.cpu.index]
        if task.is_barrier and keys:
            self._did.append((("stored", keys[-1]), Mode.AWAIT))
        elif task.stores and len(keys) == self.buffers.depth:
            self._did.append((("stored", keys[0]), Mode.AWAIT))
        if kind == "unlock" and task.stores:
            self._released = what
        return bool(task.stores)

    @staticmethod
    def _has_room(task: Any, buffers: StoreBuffers) -> bool:
        """Whether the buffer of its CPU lets ``task`` go on."""
        queue = buffers.queues[task.cpu]
        if task.kind == "drain":
            return bool(queue[0].key == task.key)
        if task.is_barrier:
            return not queue
        return not task.stores or len(queue) < buffers.depth
