"""Spinlocks, mutexes and rw semaphores as the mm core sees them.

Each lock keeps the rule book (released only by who holds it, no sleep below a spinlock) and a queue of who waits for
it: a release hands the lock to the first in the queue, as ticket locks do. *How* one waits is the driver's business
(``Sched.wait``, ``Sched.wake``); under the solo driver waiting is an error, for nobody else could ever release.

``nested``: a second lock of the same name is taken on purpose, in an order that something else guarantees.
"""

from __future__ import annotations

from polymmu.sched.driver import Sched

__all__ = ["Lock", "Mutex", "RwSem", "Spinlock"]


class Lock:
    """What all locks have. ``name`` says what it protects: in reports, and as its class in the lock order.

    ``frame``: in whose descriptor it lies, if in one: it is the same lock then, whichever object stands for it.
    """

    __slots__ = ("_sched", "guard", "held", "key", "name", "owner", "since", "waiters")

    spins = False

    def __init__(self, sched: Sched, name: str, frame: int = -1) -> None:
        self.name = name
        self.key = (name, frame) if frame >= 0 else None
        self.held = False
        self.owner: object = None
        """The context that holds it (an rw semaphore: that holds it for writing)."""
        self.since = 0
        self.waiters: list[object] = []
        self.guard: Lock | None = None
        """Must be held for writing by who holds two locks of which it is the guard."""
        self._sched = sched


class Exclusive(Lock):
    """A lock that one context holds at a time."""

    __slots__ = ()

    def trylock(self) -> bool:
        """Take it if nobody holds it."""
        sched = self._sched
        sched.point("trylock", self)
        if self.held:
            return False
        if self.spins:
            sched.preempt_disable()
        self._taken(sched)
        return True

    def _taken(self, sched: Sched) -> None:
        self.held = True
        self.owner = sched.context
        self.since = sched.clock[sched.cpu.index]
        if sched.lockdep is not None:
            sched.lockdep.taken(self)

    def unlock(self) -> None:
        """Give it back, to the first who waits."""
        sched = self._sched
        if not self.held or self.owner is not sched.context:
            if sched.lockdep is not None:
                sched.lockdep.released(self)
            raise AssertionError(f"{self.name}: released but not held")
        sched.point("unlock", self)
        if self.spins:
            cycles = sched.clock[sched.cpu.index] - self.since
            if cycles > sched.max_hold.get(self.name, -1):
                sched.max_hold[self.name] = cycles
        if sched.lockdep is not None:
            sched.lockdep.released(self)
        if self.waiters:
            self.owner = self.waiters.pop(0)
            sched.wake(self.owner)
        else:
            self.held = False
            self.owner = None
        if self.spins:
            sched.preempt_enable()


class Spinlock(Exclusive):
    """A lock whose holder must not sleep."""

    __slots__ = ()

    spins = True

    def lock(self, nested: bool = False) -> None:
        """Take it; while another CPU holds it, spin with preemption off."""
        sched = self._sched
        sched.point("lock", self)
        sched.preempt_disable()
        if sched.lockdep is not None:
            sched.lockdep.taking(self, nested)
        if self.held:
            self.waiters.append(sched.context)
            sched.wait(self)
        self.held = True  # as _taken: every fault comes here
        self.owner = sched.context
        self.since = sched.clock[sched.cpu.index]
        if sched.lockdep is not None:
            sched.lockdep.taken(self)


class Mutex(Exclusive):
    """A lock whose holder may sleep."""

    __slots__ = ()

    def lock(self, nested: bool = False) -> None:
        """Take it; while another task holds it, sleep."""
        sched = self._sched
        sched.might_sleep(self.name)
        sched.point("lock", self)
        if sched.lockdep is not None:
            sched.lockdep.taking(self, nested)
        if self.held:
            self.waiters.append(sched.context)
            sched.wait(self)
        self._taken(sched)


class RwSem(Lock):
    """A sleeping lock with many readers or one writer (mmap_sem). First come first served, as Linux's is: a reader
    that comes after a waiting writer waits behind it."""

    __slots__ = ("readers", "wishes")

    def __init__(self, sched: Sched, name: str) -> None:
        super().__init__(sched, name)
        self.readers = 0
        self.wishes: list[bool] = []
        """For each waiter, whether it wants to write."""

    @property
    def writer(self) -> bool:
        """Whether it is held for writing."""
        return self.held

    def down_read(self) -> None:
        """Take it for reading."""
        sched = self._sched
        sched.might_sleep(self.name)
        sched.point("read_lock", self)
        if sched.lockdep is not None:
            sched.lockdep.taking(self, False)
        if self.held or self.waiters:
            self._queue(False)
        else:
            self.readers += 1
        if sched.lockdep is not None:
            sched.lockdep.taken(self)

    def up_read(self) -> None:
        """Give a read hold back."""
        sched = self._sched
        if not self.readers:
            if sched.lockdep is not None:
                sched.lockdep.released(self)
            raise AssertionError(f"{self.name}: read-released but not held")
        sched.point("read_unlock", self)
        if sched.lockdep is not None:
            sched.lockdep.released(self)
        self.readers -= 1
        self._hand_over()

    def down_write(self) -> None:
        """Take it for writing."""
        sched = self._sched
        sched.might_sleep(self.name)
        sched.point("lock", self)
        if sched.lockdep is not None:
            sched.lockdep.taking(self, False)
        if self.held or self.readers or self.waiters:
            self._queue(True)
        else:
            self.held = True
        self.owner = sched.context
        if sched.lockdep is not None:
            sched.lockdep.taken(self)

    def up_write(self) -> None:
        """Give the write hold back."""
        sched = self._sched
        if not self.held or self.owner is not sched.context:
            if sched.lockdep is not None:
                sched.lockdep.released(self)
            raise AssertionError(f"{self.name}: write-released but not held")
        sched.point("unlock", self)
        if sched.lockdep is not None:
            sched.lockdep.released(self)
        self.held = False
        self.owner = None
        self._hand_over()

    def downgrade_write(self) -> None:
        """Turn the write hold into a read hold without letting another writer in."""
        if not self.held:
            raise AssertionError(f"{self.name}: downgraded but not held")
        self.held = False
        self.owner = None
        self.readers += 1
        self._hand_over()

    def _queue(self, to_write: bool) -> None:
        self.waiters.append(self._sched.context)
        self.wishes.append(to_write)
        self._sched.wait(self)

    def _hand_over(self) -> None:
        """Give it to the writer at the head of the queue, or to all readers there."""
        while self.waiters and not self.held:
            if self.wishes[0] and self.readers:
                return
            first, writes = self.waiters.pop(0), self.wishes.pop(0)
            if writes:
                self.held, self.owner = True, first
            else:
                self.readers += 1
            self._sched.wake(first)
