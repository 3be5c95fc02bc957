"""Put a machine back to where it was, many thousand times.

``Saved`` walks everything that can be reached from what it is given, once, and keeps a copy of each thing that can
change: fields of objects, contents of lists, dicts and arrays. An object that was there then is that same object
again after ``restore``; what was made since is forgotten. Most of a slab's objects are spare and stay so: what only
one of them leads to is put back only if it was handed out. Memory and frames are too large to copy whole: of them only
frames are put back that hold tables or bytes, or whose state is not what it was.

What is never looked into: functions, modules, types, and frozen values, which cannot change.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import attrs
import numpy as np
from greenlet import greenlet
from numpy.typing import NDArray
from sortedcontainers import SortedDict, SortedList

from polymmu.hardware.ram import FLAGS, NONZERO, Frames, Ram
from polymmu.slab import Slab
from polymmu.structs import PG_TABLE, FreeFrames

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


Setter = Callable[[Sequence[tuple[Any, tuple[Any, ...]]]], None]


class Copies:
    """Things with what was in them, by the way in which they are put back."""

    def __init__(self) -> None:
        self.fields: dict[tuple[type, tuple[str, ...]], list[tuple[Any, tuple[Any, ...]]]] = defaultdict(list)
        self._setters: dict[tuple[type, tuple[str, ...]], Setter] = {}
        self.own: list[tuple[dict[str, Any], dict[str, Any]]] = []
        """The dicts of objects without slots."""
        self.arrays: list[tuple[Any, NDArray[Any] | bytes]] = []
        self.lists: list[tuple[list[Any], list[Any]]] = []
        self.dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self.sorted: list[tuple[SortedDict, list[Any], list[Any]]] = []
        self.others: list[tuple[Any, list[Any]]] = []
        self.random: list[tuple[random.Random, Any]] = []

    def put_back(self) -> None:
        """Everything as it was."""
        for key, things in self.fields.items():
            setter = self._setters.get(key)
            if setter is None:
                setter = self._setters[key] = _setter(key[1])
            setter(things)
        for own, fields in self.own:
            own.update(fields)
            if len(own) != len(fields):
                own.clear()
                own.update(fields)
        for array, values in self.arrays:
            array[:] = values
        for sequence, items in self.lists:
            sequence[:] = items
        for mapping, entries in self.dicts:
            if mapping or entries:
                mapping.clear()
                mapping.update(entries)
        for tree, keys, leaves in self.sorted:
            if [*dict.keys(tree)] != keys or not all(map(is_, dict.values(tree), leaves)):
                tree.clear()
                tree.update(zip(keys, leaves, strict=True))
        for other, items in self.others:
            other.clear()
            (other.extend if isinstance(other, deque) else other.update)(items)
        for generator, state in self.random:
            generator.setstate(state)


def _setter(names: tuple[str, ...]) -> Setter:
    """Sets fields of many objects of one kind: as code made for these names it takes a quarter of what ``setattr`` in
    a loop does, and an execution sets a thousand. Each kind has code of its own, which the interpreter fits to it."""
    fields = "".join(f"thing.{name}, " for name in names) or "()"
    scope: dict[str, Any] = {}
    exec(f"def put_back(things):\n    for thing, values in things:\n        {fields} = values\n", scope)
    setter: Setter = scope["put_back"]
    return setter


class Saved:
    """The state of everything reachable from ``roots`` when it was made, but for what is in ``leave``. ``slabs``: whose
    spare objects need not be looked at while they are spare."""

    def __init__(
        self,
        roots: Iterable[object],
        ram: Ram,
        frames: Frames,
        free: FreeFrames,
        leave: Iterable[object] = (),
        slabs: Iterable[Slab[Any]] = (),
    ) -> None:
        self._ram, self._frames, self._free = ram, frames, free
        self._pages = ram.bytes.reshape(-1, frames.page_size)
        self._seen: dict[int, object] = {id(thing): thing for thing in (ram, frames, *leave)}
        self._used = Copies()
        todo = list(roots)
        slabs = tuple(slabs)
        for slab in slabs:
            self._seen[id(slab.objects)] = slab.objects
            self._used.lists.append((slab.objects, list(slab.objects)))
            spares = slab.spares()
            todo += [each for each in slab.objects if each.slot not in spares]
        self._save_all(self._used, todo)
        self._spares = [
            (slab, [self._save_spare(slab.objects[slot]) for slot in sorted(slab.spares())]) for slab in slabs
        ]
        self._save_frames()

    def restore(self) -> None:
        """Everything as it was."""
        for slab, spares in self._spares:
            now = slab.spares()
            for spare, generation, copies in spares:
                if spare.generation != generation or spare.slot not in now:
                    copies.put_back()
        self._restore_frames()
        self._used.put_back()

    # ------------------------------------------------------------------ objects
    def _save_spare(self, spare: Any) -> tuple[Any, int, Copies]:
        copies = Copies()
        self._save_all(copies, [spare])
        return spare, spare.generation, copies

    def _save_all(self, copies: Copies, todo: list[Any]) -> None:
        while todo:
            self._save(copies, todo.pop(), todo)

    def _save(self, copies: Copies, thing: Any, todo: list[Any]) -> None:
        if isinstance(thing, _ATOMS) or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing  # held, so that no other object gets its id
        if isinstance(thing, np.ndarray):
            views_of_memory = (self._ram.bytes, self._frames.table)
            if thing.flags.writeable and not any(
                np.may_share_memory(thing, each) for each in views_of_memory
            ):
                copies.arrays.append((thing, thing.copy()))
        elif isinstance(thing, SortedDict):
            copies.sorted.append((thing, [*dict.keys(thing)], [*dict.values(thing)]))
            todo += thing.keys()
            todo += thing.values()
        elif isinstance(thing, dict):
            copies.dicts.append((thing, dict(thing)))
            todo += thing.keys()
            todo += thing.values()
        elif isinstance(thing, list):
            copies.lists.append((thing, list(thing)))
            todo += thing
        elif isinstance(thing, (deque, set, SortedList)):
            copies.others.append((thing, list(thing)))
            todo += thing
        elif isinstance(thing, (tuple, frozenset)):
            todo += thing
        elif isinstance(thing, MethodType):
            todo.append(thing.__self__)
        elif isinstance(thing, bytearray):
            copies.arrays.append((thing, bytes(thing)))
        elif isinstance(thing, random.Random):
            copies.random.append((thing, thing.getstate()))
        else:
            self._save_object(copies, thing, todo)

    def _save_object(self, copies: Copies, thing: Any, todo: list[Any]) -> None:
        slots = [name for kind in type(thing).__mro__ for name in _slots(kind)]
        names = tuple(name for name in slots if hasattr(thing, name))
        values = tuple(getattr(thing, name) for name in names)
        own = getattr(thing, "__dict__", None) or {}
        todo += (*values, *own.values())
        if not _is_frozen(type(thing)):
            if names:
                copies.fields[type(thing), names].append((thing, values))
            if own:
                copies.own.append((own, dict(own)))

    # ------------------------------------------------------------------ frames
    def _save_frames(self) -> None:
        table = self._frames.table
        used = np.flatnonzero(table.any(axis=0))
        self._high = int(used[-1]) + 1 if len(used) else 0
        self._table = table[:, : self._high].copy()
        self._full = self._table[FLAGS] & (PG_TABLE | NONZERO) != 0
        full = np.flatnonzero(self._full)
        runs = np.split(full, np.flatnonzero(np.diff(full) != 1) + 1)
        self._runs = [(int(run[0]), self._pages[run].copy()) for run in runs if len(run)]

    def _restore_frames(self) -> None:
        table, pages, high = self._frames.table, self._pages, self._high
        below = table[:, :high]
        changed: NDArray[np.bool_] = (below != self._table).any(axis=0)
        empty = (changed & ~self._full).nonzero()[0]
        if len(empty):
            pages[empty] = 0
        below[:] = self._table
        for first, contents in self._runs:
            pages[first : first + len(contents)] = contents
        above = table[:, high : self._free.bump]  # what was never used lies beyond
        used = np.flatnonzero(above.any(axis=0))
        if len(used):
            pages[high + used] = 0
            above[:] = 0


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
