"""Fields that CPUs share, as operations: what is said beside a field decides what an access to it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from sortedcontainers import SortedDict

import polymmu
from polymmu.exploration.fields import SharedFields
from polymmu.exploration.search import Search
from polymmu.mm import protect
from polymmu.sched.exploring import ExploringSched
from polymmu.sched.locks import RwSem, Spinlock
from polymmu.sched.shared import owned, shared
from polymmu.structs import mm_struct
from tests.explore.programs import FakeCpu, Steps


@attrs.define(eq=False)
class Inner:
    """What an arch keeps for a struct."""

    gen: int = attrs.field(default=0, metadata=shared())


@attrs.define(eq=False)
class Thing:
    """A kernel object with every kind of field."""

    lock: Spinlock
    sem: RwSem
    free: int = attrs.field(default=0, metadata=shared())
    mask: int = attrs.field(default=0, metadata=shared(shootdown=True))
    guarded: int = attrs.field(default=0, metadata=shared(guard=lambda thing: thing.lock))
    strict: int = attrs.field(default=0, metadata=shared(guard=lambda thing: thing.sem, strict=True))
    context: Any = attrs.field(default=None, metadata=owned())
    pages: SortedDict = attrs.field(factory=SortedDict, metadata=owned())
    other: int = 0


class World:
    """A thing, and tasks that use it."""

    def __init__(self, *bodies: Callable[[Thing, list[int]], None], shootdown: bool = True) -> None:
        cpus: list[Any] = [FakeCpu(n) for n in range(len(bodies))]
        self.sched = ExploringSched(cpus)
        self.bodies = bodies
        self.races: list[str] = []
        self.fields = SharedFields(self.sched, self.races.append, shootdown=shootdown)
        self.thing = Thing(Spinlock(self.sched, "lock"), RwSem(self.sched, "sem"))
        self.fields.adopt(self.thing, "thing")

    def once(self, search: Search) -> tuple[Steps, list[list[int]]]:
        """One execution: its steps, and what each task saw."""
        thing = self.thing
        thing.free = thing.mask = thing.guarded = thing.strict = 0
        thing.context = Inner()
        thing.pages.clear()
        seen: list[list[int]] = [[] for _ in self.bodies]
        for index, body in enumerate(self.bodies):
            self.sched.spawn(f"t{index}", index, lambda body=body, index=index: body(thing, seen[index]))  # type: ignore[misc]
        steps = Steps(search)
        failure = self.sched.run(steps)
        if failure is not None:
            raise failure
        return steps, seen

    def operations(self) -> list[tuple[str, object]]:
        """What a single execution did, without its beginnings."""
        steps, _ = self.once(Search("naive"))
        return [(step[2], step[3]) for step, _ in steps.steps if step[2] != "begin"]  # type: ignore[index]

    def everything(self) -> tuple[int, set[tuple[tuple[int, ...], ...]]]:
        """How many executions cover it, and what the tasks may have seen."""
        search, found = Search("dpor"), set[tuple[tuple[int, ...], ...]]()
        while True:
            found.add(tuple(map(tuple, self.once(search)[1])))
            if not search.back_up():
                return search.executions, found


def with_lock(thing: Thing, seen: list[int]) -> None:
    thing.lock.lock()
    seen.append(thing.guarded)
    thing.guarded = 1
    thing.lock.unlock()


def test_a_field_without_a_guard_is_an_operation_each_time() -> None:
    def body(thing: Thing, seen: list[int]) -> None:
        seen += [thing.free, thing.free]
        thing.free = 3
        thing.other = 4

    assert World(body).operations() == [
        ("read", "thing.free"),
        ("read", "thing.free"),
    ]  # it writes what it just read


def test_reading_below_the_guard_is_none_and_changing_is_one_for_those_who_read_without() -> None:
    world = World(with_lock)
    assert world.operations() == [("lock", "lock"), ("write", "thing.guarded"), ("unlock", "lock")]
    assert not world.races


def test_a_change_without_the_guard_is_a_race_and_a_look_is_an_operation() -> None:
    def body(thing: Thing, seen: list[int]) -> None:
        seen.append(thing.guarded)
        thing.guarded = 1

    world = World(body)
    assert world.operations() == [("read", "thing.guarded")]
    assert world.races == ["thing.guarded is changed without lock"]


def test_a_strict_field_needs_its_guard_to_be_read_too_and_a_read_hold_is_enough_for_that() -> None:
    def body(thing: Thing, seen: list[int]) -> None:
        thing.sem.down_read()
        seen.append(thing.strict)
        thing.strict = 1
        thing.sem.up_read()
        seen.append(thing.strict)

    world = World(body)
    assert world.operations() == [("read_lock", "sem"), ("read_unlock", "sem")]
    assert world.races == ["thing.strict is changed without sem", "thing.strict is read without sem"]


def test_what_an_object_owns_is_met_when_it_gets_it() -> None:
    def body(thing: Thing, seen: list[int]) -> None:
        seen.append(thing.context.gen)
        thing.context = Inner(5)
        seen.append(thing.context.gen)

    assert World(body).operations() == [("read", "thing.context.gen")] * 2


def test_pages_are_looked_up_one_by_one_and_whoever_looked_may_put_one_in() -> None:
    def body(thing: Thing, seen: list[int]) -> None:
        if thing.pages.get(3) is None:
            thing.pages[3] = 7
        seen.append(len(list(thing.pages.irange(2))))

    world = World(body, body)
    assert world.operations()[:2] == [("read", "thing.pages[3]"), ("read", "thing.pages")]
    executions, seen = world.everything()
    assert seen == {((1,), (1,))}
    assert executions > 1


def add(thing: Thing, seen: list[int]) -> None:
    thing_sched(thing).atomic()
    thing.free += 1


def thing_sched(thing: Thing) -> ExploringSched:
    sched = thing.lock._sched
    assert isinstance(sched, ExploringSched)
    return sched


def test_atomic_changes_commute_unless_somebody_looks_what_came_of_them() -> None:
    def add_and_look(thing: Thing, seen: list[int]) -> None:
        add(thing, seen)
        seen.append(thing.free)

    assert World(add, add, add).everything()[0] == 1
    assert World(add, add).operations()[0] == ("update", "thing.free")
    assert World(add_and_look, add_and_look).everything() == (2, {((1,), (2,)), ((2,), (1,))})
    assert World(add, lambda thing, seen: seen.append(thing.free)).everything() == (
        2,
        {((), (0,)), ((), (1,))},
    )


def test_words_of_shootdowns_are_operations_only_where_that_is_asked_for() -> None:
    def body(thing: Thing, seen: list[int]) -> None:
        thing_sched(thing).atomic()
        thing.mask |= 1
        thing.free = 2  # what was announced was about the mask

    assert World(body).operations() == [("update", "thing.mask"), ("write", "thing.free")]
    assert World(body, shootdown=False).operations() == [("write", "thing.free")]


def test_other_drivers_have_the_plain_structs() -> None:
    machine = polymmu.Machine.from_file("x86_64")
    mm = machine.new_mm()
    assert type(mm.struct) is mm_struct
    mm.exit()


SCENARIO = """
scenario: 1
name: counted
summary: two threads map memory
machine: {cpus: 2, memory: 64 MiB}
setup:
  - mm: a
cpus:
  0: {mm: a, do: [{mmap: {at: 16p, length: 1p}}]}
  1: {mm: a, do: [{mmap: {at: 32p, length: 1p}}]}
"""


def test_a_field_of_the_real_core_that_is_changed_without_its_lock_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "counted.yaml"
    path.write_text(SCENARIO)
    found = polymmu.explore(path, "x86_64", strategy="dpor").to_dict()
    assert (found["verdict"], found["violation"]) == ("clean", None)
    monkeypatch.setattr(RwSem, "down_write", lambda sem: None)
    monkeypatch.setattr(RwSem, "up_write", lambda sem: None)
    found = polymmu.explore(path, "x86_64", strategy="default").to_dict()
    assert found["violation"]["invariant"] == "INV-RACE"
    assert "without mmap_lock" in found["violation"]["message"]


def test_a_pte_that_is_changed_without_its_lock_is_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads ptes below the lock is no operation, so nobody may change one without it."""
    scenario = Path(__file__).parent / "general" / "protect-and-use.yaml"
    assert polymmu.explore(scenario, "x86_64").verdict.verdict == "clean"
    for name in ("pte_lock", "pte_unlock"):
        monkeypatch.setattr(protect, name, lambda mm, ptep: None)
    found = polymmu.explore(scenario, "x86_64").to_dict()["violation"]
    assert found["invariant"] == "INV-RACE"
    assert "a pte of mm 1 is changed without its pte_lock" in found["message"]
