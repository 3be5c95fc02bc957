"""Spinlocks, mutexes and rw semaphores as the mm core sees them.

Under the solo driver no lock is ever contended; what remains is the rule book: a lock is not taken twice,
released only by who holds it, and nobody sleeps below a spinlock. ``RwSem`` counts readers as Linux's
mmap_sem does.
"""

from __future__ import annotations

from polymmu.sched.driver import Sched

__all__ = ["Mutex", "RwSem", "Spinlock"]


class Spinlock:
    """A lock whose holder must not sleep. ``name`` says what it protects, for reports."""

    __slots__ = ("_sched", "held", "name", "since")

    def __init__(self, sched: Sched, name: str) -> None:
        self.name = name
        self.held = False
        self.since = 0
        self._sched = sched

    def lock(self) -> None:
        """Take it; waiting would be spinning with preemption off."""
        sched = self._sched
        sched.point("lock", self)
        if self.held:
            raise AssertionError(f"{self.name}: taken twice")
        self.held = True
        self.since = sched.clock[sched.cpu.index]
        sched.preempt_count += 1

    def trylock(self) -> bool:
        """Take it if nobody holds it."""
        self._sched.point("trylock", self)
        if self.held:
            return False
        self.held = True
        self.since = self._sched.clock[self._sched.cpu.index]
        self._sched.preempt_count += 1
        return True

    def unlock(self) -> None:
        """Give it back."""
        sched = self._sched
        if not self.held:
            raise AssertionError(f"{self.name}: released but not held")
        self.held = False
        sched.preempt_count -= 1
        cycles = sched.clock[sched.cpu.index] - self.since
        if cycles > sched.max_hold.get(self.name, -1):
            sched.max_hold[self.name] = cycles
        sched.point("unlock", self)


class Mutex:
    """A lock whose holder may sleep."""

    __slots__ = ("_sched", "held", "name")

    def __init__(self, sched: Sched, name: str) -> None:
        self.name = name
        self.held = False
        self._sched = sched

    def lock(self) -> None:
        """Take it; waiting would be sleeping."""
        self._sched.might_sleep(self.name)
        self._sched.point("lock", self)
        if self.held:
            raise AssertionError(f"{self.name}: taken twice")
        self.held = True

    def trylock(self) -> bool:
        """Take it if nobody holds it."""
        self._sched.point("trylock", self)
        if self.held:
            return False
        self.held = True
        return True

    def unlock(self) -> None:
        """Give it back."""
        if not self.held:
            raise AssertionError(f"{self.name}: released but not held")
        self.held = False
        self._sched.point("unlock", self)


class RwSem:
    """A sleeping lock with many readers or one writer (mmap_sem)."""

    __slots__ = ("_sched", "name", "readers", "writer")

    def __init__(self, sched: Sched, name: str) -> None:
        self.name = name
        self.readers = 0
        self.writer = False
        self._sched = sched

    def down_read(self) -> None:
        """Take it for reading."""
        self._sched.might_sleep(self.name)
        self._sched.point("lock", self)
        if self.writer:
            raise AssertionError(f"{self.name}: read-taken below its own writer")
        self.readers += 1

    def up_read(self) -> None:
        """Give a read hold back."""
        if not self.readers:
            raise AssertionError(f"{self.name}: read-released but not held")
        self.readers -= 1
        self._sched.point("unlock", self)

    def down_write(self) -> None:
        """Take it for writing."""
        self._sched.might_sleep(self.name)
        self._sched.point("lock", self)
        if self.writer or self.readers:
            raise AssertionError(f"{self.name}: write-taken twice")
        self.writer = True

    def up_write(self) -> None:
        """Give the write hold back."""
        if not self.writer:
            raise AssertionError(f"{self.name}: write-released but not held")
        self.writer = False
        self._sched.point("unlock", self)

    def downgrade_write(self) -> None:
        """Turn the write hold into a read hold without letting another writer in."""
        if not self.writer:
            raise AssertionError(f"{self.name}: downgraded but not held")
        self.writer = False
        self.readers += 1
