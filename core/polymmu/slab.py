"""Slabs: identity is a slot.

Kernel objects are allocated from slabs and are known by their slot, as C knows them by address. A freed slot
is handed out again, last freed first, to the next object of its kind; only the generation tells the two lives
apart. Algorithms compare slots, as the kernel compares pointers; only a sanitizer looks at generations. That
is how a reused ``vm_area_struct`` can be mistaken for the one that was freed, as in 2004.

One pooled Python object stands for each slot for ever; allocating resets its fields.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from polymmu.errors import syscall_error

__all__ = ["Slab", "Slotted"]


class Slotted(Protocol):
    """What a slab can hand out."""

    slot: int
    generation: int


T = TypeVar("T", bound=Slotted)


class Slab(Generic[T]):
    """A pool of objects of one kind. ``make(slot)`` builds the object of a new slot. ``fails(name)``: whether the
    allocation asked for now finds no memory."""

    __slots__ = ("_fails", "_free", "_make", "live", "name", "objects")

    def __init__(
        self, name: str, make: Callable[[int], T], fails: Callable[[str], bool] | None = None
    ) -> None:
        self.name = name
        self._fails = fails
        self.objects: list[T] = []
        self.live = 0
        self._free: list[int] = []
        self._make = make

    def alloc(self) -> T:
        """An object whose fields still hold what its last life left; the caller sets every one of them.

        Raises SyscallError (ENOMEM).
        """
        if self._fails is not None and self._fails(self.name):
            raise syscall_error(errno.ENOMEM, f"no memory for one more {self.name}")
        self.live += 1
        if self._free:
            return self.objects[self._free.pop()]
        obj = self._make(len(self.objects))
        self.objects.append(obj)
        return obj

    def reserve(self, n: int) -> None:
        """Have ``n`` objects more, to be handed out after those that were freed, so that none is made for a while."""
        fresh = range(len(self.objects), len(self.objects) + n)
        self.objects += map(self._make, fresh)
        self._free[:0] = reversed(fresh)

    def spares(self) -> set[int]:
        """Slots that wait to be handed out."""
        return set(self._free)

    def free(self, obj: T) -> None:
        """Give a slot back; its generation moves on. The object must not be used again."""
        if self.objects[obj.slot] is not obj:
            raise AssertionError(f"slab {self.name}: slot {obj.slot} is another object's")
        obj.generation += 1
        self.live -= 1
        self._free.append(obj.slot)
