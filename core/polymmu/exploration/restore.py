"""Put a machine back to where it was, many thousand times.

``Saved`` walks everything that can be reached from what it is given, once, and keeps a copy of each thing that can
change: fields of objects, contents of lists, dicts and arrays. An object that was there then is that same object
again after ``restore``; what was made since is forgotten. Memory and frames are too large to copy whole: of them only
frames are put back that hold tables or bytes, or whose state is not what it was.

What is never looked into: functions, modules, types, and frozen values, which cannot change.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import attrs
import numpy as np
from greenlet import greenlet
from numpy.typing import NDArray
from sortedcontainers import SortedDict, SortedList

from polymmu.hardware.ram import FLAGS, NONZERO, Frames, Ram
from polymmu.structs import PG_TABLE

__all__ = ["Saved"]

_ATOMS = (
    int,
    float,
    str,
    bytes,
    bool,
    type(None),
    type,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
    memoryview,
    greenlet,
    np.generic,
    np.dtype,
)


class Saved:
    """The state of everything reachable from ``roots`` when it was made, but for what is in ``leave``.

    Frames below ``stocked`` may be used in any order, those above from the bottom up.
    """

    def __init__(
        self,
        roots: Iterable[object],
        ram: Ram,
        frames: Frames,
        leave: Iterable[object] = (),
        stocked: int = 0,
    ) -> None:
        self._stocked = stocked
        self._ram, self._frames = ram, frames
        self._pages = ram.bytes.reshape(-1, frames.page_size)
        self._seen: dict[int, object] = {id(thing): thing for thing in (ram, frames, *leave)}
        self._undo: list[Callable[[], None]] = []
        todo = list(roots)
        while todo:
            self._save(todo.pop(), todo)
        self._save_frames()
        self.things = len(self._undo)

    def restore(self) -> None:
        """Everything as it was."""
        for undo in self._undo:
            undo()
        self._restore_frames()

    # ------------------------------------------------------------------ objects
    def _save(self, thing: Any, todo: list[Any]) -> None:
        if isinstance(thing, _ATOMS) or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing  # held, so that no other object gets its id
        if isinstance(thing, np.ndarray):
            views_of_memory = (self._ram.bytes, self._frames.table)
            if thing.flags.writeable and not any(
                np.may_share_memory(thing, each) for each in views_of_memory
            ):
                self._undo.append(_array(thing, thing.copy()))
        elif isinstance(thing, (SortedDict, dict)):
            self._undo.append(_mapping(thing, dict(thing)))
            todo += thing.keys()
            todo += thing.values()
        elif isinstance(thing, (list, deque)):
            self._undo.append(_sequence(thing, list(thing)))
            todo += thing
        elif isinstance(thing, (set, SortedList)):
            self._undo.append(_set(thing, list(thing)))
            todo += thing
        elif isinstance(thing, (tuple, frozenset)):
            todo += thing
        elif isinstance(thing, MethodType):
            todo.append(thing.__self__)
        elif isinstance(thing, bytearray):
            self._undo.append(_array(thing, bytes(thing)))
        elif isinstance(thing, random.Random):
            self._undo.append(_random(thing, thing.getstate()))
        else:
            self._save_object(thing, todo)

    def _save_object(self, thing: Any, todo: list[Any]) -> None:
        names = [name for kind in type(thing).__mro__ for name in _slots(kind)]
        fields = [(name, getattr(thing, name)) for name in names if hasattr(thing, name)]
        own = getattr(thing, "__dict__", None)
        if own is not None:
            fields += own.items()
        todo += (value for _, value in fields)
        if not _is_frozen(type(thing)):
            self._undo.append(_fields(thing, fields, own))

    # ------------------------------------------------------------------ frames
    def _save_frames(self) -> None:
        table = self._frames.table
        used = np.flatnonzero(table.any(axis=0))
        self._high = max(int(used[-1]) + 1 if len(used) else 0, self._stocked)
        self._table = table[:, : self._high].copy()
        holds = self._table[FLAGS] & (PG_TABLE | NONZERO) != 0
        self._full = np.flatnonzero(holds)
        self._bytes = self._pages[self._full].copy()
        self._home = np.full(self._high, -1, dtype=np.int64)
        self._home[self._full] = np.arange(len(self._full))

    def _restore_frames(self) -> None:
        table = self._frames.table
        high = self._high
        # From here on frames are used from the bottom up: look beyond for as long as there are any.
        end = high
        while end < self._frames.count and table[:, end].any():
            self._pages[end] = 0
            table[:, end] = 0
            end += 1
        changed = np.flatnonzero((table[:, :high] != self._table).any(axis=0))
        empty = changed[self._home[changed] < 0]
        if len(empty):
            self._pages[empty] = 0
        self._pages[self._full] = self._bytes
        table[:, changed] = self._table[:, changed]


def _slots(kind: type) -> Iterable[str]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return [name for name in names if name not in ("__weakref__", "__dict__")]


def _is_frozen(kind: type) -> bool:
    return attrs.has(kind) and bool(kind.__setattr__ is not object.__setattr__) and _refuses(kind)


def _refuses(kind: type) -> bool:
    """Whether objects of an attrs class refuse to be changed."""
    return "FrozenInstanceError" in getattr(kind.__setattr__, "__code__", _refuses.__code__).co_names or (
        kind.__setattr__.__name__ == "_frozen_setattrs"
    )


def _array(thing: Any, copy: NDArray[Any] | bytes) -> Callable[[], None]:
    def undo() -> None:
        thing[:] = copy

    return undo


def _mapping(thing: dict[Any, Any], copy: dict[Any, Any]) -> Callable[[], None]:
    def undo() -> None:
        if thing != copy or list(thing) != list(copy):
            thing.clear()
            thing.update(copy)

    return undo


def _sequence(thing: Any, copy: list[Any]) -> Callable[[], None]:
    def undo() -> None:
        thing.clear()
        thing.extend(copy)

    return undo


def _set(thing: Any, copy: list[Any]) -> Callable[[], None]:
    def undo() -> None:
        thing.clear()
        thing.update(copy)

    return undo


def _random(thing: random.Random, state: Any) -> Callable[[], None]:
    def undo() -> None:
        thing.setstate(state)

    return undo


def _fields(thing: Any, fields: list[tuple[str, Any]], own: dict[str, Any] | None) -> Callable[[], None]:
    if own is not None and len(own) == len(fields):
        kept = dict(fields)

        def undo_dict() -> None:
            own.clear()
            own.update(kept)

        return undo_dict

    def undo() -> None:
        for name, value in fields:
            setattr(thing, name, value)

    return undo
