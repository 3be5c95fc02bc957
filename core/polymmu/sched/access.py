"""What a visible operation does to a shared object: the words of dependence between operations.

Two operations of different tasks depend on each other if they name the same object and do not commute. An operation
may name several objects (an interrupt handler does). What kind of object it is follows from the modes used on it:

* a word is read and written, or changed in a way that commutes with its likes (a bit of one's own set, one added);
* a lock is acquired and released, alone or shared; a trylock that fails has read it; interrupts off on a CPU are
  such a lock too, which an interrupt takes for a moment;
* an event is signalled (by several, in any order) and awaited.

Waiting is never a race: an acquire that had to wait could not have come before the release, only before the acquire.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence

__all__ = ["Access", "Accesses", "Mode", "commute"]


class Mode(enum.IntEnum):
    """What is done to the object."""

    READ = 0
    WRITE = 1
    ACQUIRE = 2
    RELEASE = 3
    TRY = 4
    """A trylock that got the lock."""
    SHARE = 5
    UNSHARE = 6
    SIGNAL = 7
    AWAIT = 8
    ADD = 9
    """A change that gives the same in either order with another such."""


Access = tuple[Hashable, Mode]
Accesses = Sequence[Access]

_ALIKE = {
    (Mode.READ, Mode.READ),
    (Mode.SHARE, Mode.SHARE),
    (Mode.SHARE, Mode.UNSHARE),
    (Mode.UNSHARE, Mode.SHARE),
    (Mode.UNSHARE, Mode.UNSHARE),
    (Mode.SIGNAL, Mode.SIGNAL),
    (Mode.ADD, Mode.ADD),
}


def commute(one: Accesses, other: Accesses) -> bool:
    """Whether two operations may be exchanged."""
    for obj, mode in one:
        for thing, way in other:
            if obj == thing and (mode, way) not in _ALIKE:
                return False
    return True
