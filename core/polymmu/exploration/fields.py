"""Shared fields as operations: an object becomes one of a subclass whose fields ask the driver first.

What is said beside the fields (``sched.shared``) decides what an access is. The subclass belongs to one object: it
knows the object's name, which is the same in every execution, and makes its fields part of dependence. Objects that
come later are met where their owner gets them, or their slab makes them.

The pages of a file are such a thing, too: looking one up is an operation, and who puts it in or takes it out has
looked first, in the same operation (Linux: below the mapping's tree_lock).

First reading: ``SharedFields.adopt``; then ``_property``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import attrs
from sortedcontainers import SortedDict

from polymmu.hooks import ArchKernel
from polymmu.sched.access import Mode
from polymmu.sched.exploring import ExploringSched
from polymmu.sched.locks import Lock, RwSem
from polymmu.sched.shared import Guard, Rule, rules_of
from polymmu.slab import Slab
from polymmu.structs import address_space, anon_vma, mm_struct, vm_area_struct

__all__ = ["SharedFields", "watch_fields"]

NOT_THE_ARCHS = mm_struct, vm_area_struct, address_space, anon_vma
"""An arch may name them; they are met elsewhere."""


class SharedFields:
    """Everything of one machine whose fields are operations. ``race`` is told of an access without the guard: the
    field, and what was done."""

    def __init__(
        self, sched: ExploringSched, race: Callable[[Hashable, str], None], *, shootdown: bool
    ) -> None:
        self.sched = sched
        self.shootdown = shootdown
        self.race = race
        self._kinds: dict[tuple[type, str], type] = {}
        self._ours: set[type] = set()

    def adopt_slab(self, slab: Slab[Any]) -> None:
        """Every object of ``slab``, now and later."""
        make = slab._make

        def adopted(slot: int) -> Any:
            thing = make(slot)
            self.adopt(thing, f"{slab.name} {slot}")
            return thing

        slab._make = adopted
        for slot, thing in enumerate(slab.objects):
            self.adopt(thing, f"{slab.name} {slot}")

    def adopt(self, thing: object, name: str) -> None:
        """Make the shared fields of ``thing`` operations, and of what it owns."""
        kind = type(thing)
        if kind in self._ours:
            return
        if kind is SortedDict:
            thing.__class__ = self._subclass(kind, name, lambda: _entries(self, name))
            return
        rules = rules_of(kind)
        if not rules:
            return
        values = {each: getattr(thing, each, None) for each, rule in rules.items() if rule.owned}
        thing.__class__ = self._subclass(kind, name, lambda: self._properties(kind, name, rules))
        for each, value in values.items():
            self.adopt(value, f"{name}.{each}")

    def adopt_arch(self, state: object, name: str = "arch") -> None:
        """What an arch keeps for the machine: whatever has shared fields, in lists and attributes of its own."""
        self.adopt(state, name)
        if isinstance(state, (list, tuple)):
            for number, each in enumerate(state):
                self.adopt_arch(each, f"{name}[{number}]")
        elif isinstance(state, dict):
            for key, each in state.items():
                self.adopt_arch(each, f"{name}[{key}]")
        elif not isinstance(state, type) and type(state) not in self._ours:
            for key, each in _attributes(state).items():
                if isinstance(each, (list, tuple, dict)) or (
                    rules_of(type(each)) and not isinstance(each, NOT_THE_ARCHS)
                ):
                    self.adopt_arch(each, f"{name}.{key}")

    def _subclass(self, kind: type, name: str, contents: Callable[[], dict[str, Any]]) -> type:
        found = self._kinds.get((kind, name))
        if found is None:
            slots: dict[str, Any] = {} if kind is SortedDict else {"__slots__": ()}
            found = type(kind.__name__, (kind,), {**slots, "__module__": kind.__module__, **contents()})
            self._kinds[kind, name] = found
            self._ours.add(found)
        return found

    def _properties(self, kind: type, name: str, rules: dict[str, Rule]) -> dict[str, Any]:
        return {
            field: _owned(self, kind, name, field)
            if rule.owned
            else _property(self, kind, f"{name}.{field}", field, rule)
            if self.shootdown or not rule.shootdown
            else _passed_over(self, kind, field)
            for field, rule in rules.items()
        }

    def holds(self, lock: Lock, to_write: bool) -> bool:
        """Whether the current context has ``lock``."""
        if lock.held:
            return lock.owner is self.sched.context
        if to_write or not isinstance(lock, RwSem) or not lock.readers:
            return False
        lockdep = self.sched.lockdep
        return lockdep is None or lockdep.holds(lock)

    def guards_of(self, guard: Guard, thing: object) -> Sequence[Lock]:
        """Who guards a field of ``thing``; finding that out is no operation."""
        self.sched.watches = False
        found = guard(thing)
        self.sched.watches = True
        return (found,) if isinstance(found, Lock) else found or ()

    def check_change(self, guards: Sequence[Lock], what: str) -> None:
        """Complain of each guard that is missing."""
        for lock in guards:
            if not self.holds(lock, to_write=True):
                self.race(what, f"is changed without {lock.name}")


def watch_fields(kernel: ArchKernel, fields: SharedFields) -> None:
    """The core's own objects."""
    slabs: tuple[Slab[Any], ...] = (kernel.mms, kernel.vmas, kernel.mappings, kernel.anon_vmas)
    for slab in slabs:
        fields.adopt_slab(slab)


def _attributes(thing: object) -> dict[str, Any]:
    kind: Any = type(thing)
    if attrs.has(kind):
        return {name: getattr(thing, name) for name in attrs.fields_dict(kind)}
    return vars(thing) if hasattr(thing, "__dict__") else {}


def _owned(fields: SharedFields, kind: type, name: str, field: str) -> property:
    """A field that is no operation; what comes into it is adopted."""
    member = getattr(kind, field)
    whole = f"{name}.{field}"

    def put(thing: object, value: object) -> None:
        fields.adopt(value, whole)
        member.__set__(thing, value)

    return property(member.__get__, put)


def _passed_over(fields: SharedFields, kind: type, field: str) -> property:
    """A field that is not looked at here. ``sched.atomic()`` was about it, not about the next one."""
    member = getattr(kind, field)
    raw, put_raw, sched = member.__get__, member.__set__, fields.sched

    def get(thing: object) -> Any:
        sched.next_is_atomic = False
        return raw(thing)

    def put(thing: object, value: object) -> None:
        sched.next_is_atomic = False
        put_raw(thing, value)

    return property(get, put)


def _property(fields: SharedFields, kind: type, name: str, field: str, rule: Rule) -> property:
    """A field whose accesses are operations, or are checked."""
    member = getattr(kind, field)
    raw: Callable[[object], Any] = member.__get__
    put_raw: Callable[[object, Any], None] = member.__set__
    sched, guard, parts = fields.sched, rule.guard, rule.reads == "parts"
    # No access is an operation, and of one that comes again nobody wants to hear.
    at_once = rule.reads != "operations"

    def get(thing: object) -> Any:
        if sched.watches and (sched.tells or not at_once):
            guards = () if guard is None else fields.guards_of(guard, thing)
            for lock in guards:
                if fields.holds(lock, to_write=False):
                    return raw(thing)
            if parts:
                sched.did(Mode.READ, name)
            elif not at_once:
                sched.read(name)
            elif guards:
                fields.race(name, f"is read without {guards[0].name}")
        return raw(thing)

    def put(thing: object, value: object) -> None:
        if not sched.watches or (at_once and not sched.tells):
            put_raw(thing, value)
            return
        guards = () if guard is None or not sched.tells else fields.guards_of(guard, thing)
        fields.check_change(guards, name)
        if at_once:
            if parts:
                sched.did(Mode.WRITE, name)
            put_raw(thing, value)
            if guard is not None:  # of where it came to, if it had not been there
                after = fields.guards_of(guard, thing)
                fields.check_change([lock for lock in after if lock not in guards], name)
            return

        def write() -> Callable[[], None]:
            before = raw(thing)
            put_raw(thing, value)
            return lambda: put_raw(thing, before)

        sched.write(name, write)

    return property(raw if rule.reads == "unseen" else get, put)


def _entries(fields: SharedFields, name: str) -> dict[str, Any]:
    """The methods of a map whose entries are shared."""
    sched = fields.sched

    def looked_up(method: Callable[..., Any]) -> Callable[..., Any]:
        def look(pages: Any, index: int, *default: Any) -> Any:
            if sched.watches:
                sched.read(f"{name}[{index}]")
            return method(pages, index, *default)

        return look

    def changed(method: Callable[..., Any]) -> Callable[..., Any]:
        def change(pages: Any, index: int, *value: Any) -> None:
            sched.did(Mode.WRITE, f"{name}[{index}]")
            sched.did(Mode.ADD, name)
            outer, sched.watches = sched.watches, False  # it looks again
            method(pages, index, *value)
            sched.watches = outer

        return change

    def irange(pages: Any) -> Callable[..., Iterator[int]]:
        if sched.watches:
            sched.read(name)
        found: Callable[..., Iterator[int]] = vars(pages)["irange"]
        return found

    return {
        "get": looked_up(SortedDict.get),
        "__getitem__": looked_up(SortedDict.__getitem__),
        "__contains__": looked_up(SortedDict.__contains__),
        "__setitem__": changed(SortedDict.__setitem__),
        "__delitem__": changed(SortedDict.__delitem__),
        "irange": property(irange),
    }
