"""Fields that CPUs share, as operations: what is said beside a field decides what an access to it is."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from sortedcontainers import SortedDict

import polymmu
from polymmu.description.load_scenario import load_scenario
from polymmu.exploration.fields import SharedFields
from polymmu.exploration.random_walks import Pct
from polymmu.exploration.scenario import Explored
from polymmu.exploration.search import Search
from polymmu.mm import protect
from polymmu.sched.exploring import ExploringSched
from polymmu.sched.locks import Lock, Mutex, RwSem, Spinlock
from polymmu.sched.shared import owned, rules_of, shared
from polymmu.structs import mm_struct, vm_area_struct
from tests.explore.golden import scenario_files
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
    strict: int = attrs.field(default=0, metadata=shared(guard=lambda thing: thing.sem, reads="guarded"))
    both: int = attrs.field(
        default=0, metadata=shared(guard=lambda thing: (thing.sem, thing.lock), reads="unseen")
    )
    part: int = attrs.field(default=0, metadata=shared(guard=lambda thing: thing.lock, reads="parts"))
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
        self.fields = SharedFields(
            self.sched, lambda *said: self.races.append(" ".join(said)), shootdown=shootdown
        )
        self.thing = Thing(Spinlock(self.sched, "lock"), RwSem(self.sched, "sem"))
        self.fields.adopt(self.thing, "thing")

    def once(self, search: Search) -> tuple[Steps, list[list[int]]]:
        """One execution: its steps, and what each task saw."""
        thing = self.thing
        thing.free = thing.mask = thing.guarded = thing.strict = thing.both = thing.part = 0
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


def test_who_changes_what_several_locks_guard_has_them_all_and_reading_it_is_no_operation() -> None:
    def body(thing: Thing, seen: list[int]) -> None:
        seen.append(thing.both)
        thing.sem.down_write()
        thing.both = 1
        thing.lock.lock()
        thing.both = 2
        thing.lock.unlock()
        thing.sem.up_write()

    world = World(body)
    assert [kind for kind, _ in world.operations()] == ["lock", "lock", "unlock", "unlock"]
    assert world.races == ["thing.both is changed without lock"]


def test_a_guard_that_comes_with_the_change_is_asked_for_too() -> None:
    """Who puts the thing under a lock has that one."""

    @attrs.define(eq=False)
    class Member:
        lock: Spinlock
        family: int = attrs.field(
            default=0, metadata=shared(guard=lambda it: it.lock if it.family else None, reads="unseen")
        )

    def body(thing: Thing, seen: list[int]) -> None:
        member.family = 1

    world = World(body)
    member = Member(Spinlock(world.sched, "family lock"))
    world.fields.adopt(member, "member")
    world.operations()
    assert world.races == ["member.family is changed without family lock"]


def test_what_is_a_part_of_operations_makes_their_order_matter_and_adds_none() -> None:
    """Two that look below no lock, and one that changes it below the lock: it comes first, second or last."""

    def look(thing: Thing, seen: list[int]) -> None:
        seen.append(thing.free)
        seen.append(thing.part)

    def change(thing: Thing, seen: list[int]) -> None:
        thing.lock.lock()
        thing.part = 1
        thing.lock.unlock()

    assert World(look).operations() == [("read", "thing.free")]
    executions, seen = World(look, look, change).everything()
    assert {(one[1], other[1]) for one, other, _ in seen} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert executions == 4


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
    assert " of mm a is read without mmap_lock" in found["violation"]["message"]


UNMAPPED = """
scenario: 1
name: cut
summary: a thread cuts a mapping with pages
machine: {cpus: 2, memory: 64 MiB}
setup:
  - mm: a
  - mmap: {mm: a, at: 16p, length: 2p}
  - touch: {mm: a, at: 16p, length: 2p, access: store}
cpus:
  0: {mm: a, do: [{munmap: {at: 17p, length: 1p}}]}
  1: {mm: a, do: [{load: {at: 16p}}]}
"""


def without(monkeypatch: pytest.MonkeyPatch, name: str, function: str) -> None:
    """Let ``function`` go on without the lock of that name."""
    for kind, method in itertools.product((Mutex, Spinlock), ("lock", "unlock")):
        plain = getattr(kind, method)

        def take(lock: Lock, nested: bool = False, plain: Callable[..., None] = plain) -> None:
            if lock.name != name or sys._getframe(1).f_code.co_name != function:
                plain(lock, *([nested] if nested else []))

        monkeypatch.setattr(kind, method, take)


def test_a_mapping_of_the_real_core_that_is_cut_without_its_familys_lock_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Walks from a page come to it below that lock alone, and must not see half of a change."""
    path = tmp_path / "cut.yaml"
    path.write_text(UNMAPPED)
    assert polymmu.explore(path, "x86_64", strategy="dpor").to_dict()["verdict"] == "clean"
    without(monkeypatch, "anon_vma_lock", "vma_adjust")
    found = polymmu.explore(path, "x86_64", strategy="default").to_dict()
    assert found["violation"]["invariant"] == "INV-RACE"
    assert (
        "vm_pgoff of vma 0 at 0x10000 in mm a is changed without anon_vma_lock"
        in found["violation"]["message"]
    )


PLACE = ("vm_start", "vm_end", "vm_pgoff", "vm_next", "vm_prev")


def reads_without_a_guard(program: Explored, executions: int) -> tuple[int, dict[tuple[str, str], int]]:
    """How many reads of a vma's place there were, and those by a task that had none of its guards."""
    reads, found = Counter[str](), Counter[tuple[str, str]]()
    sched, fields = program.sched, SharedFields(program.sched, lambda *said: None, shootdown=False)
    rules = rules_of(vm_area_struct)

    def looked_at(member: Any, field: str) -> Callable[[vm_area_struct], Any]:
        def get(vma: vm_area_struct) -> Any:
            if sched.watches:
                reads[field] += 1
                guard = rules[field].guard
                guards = () if guard is None else fields.guards_of(guard, vma)
                if guards and not any(fields.holds(lock, to_write=False) for lock in guards):
                    found[field, sys._getframe(1).f_code.co_name] += 1
            return member.__get__(vma)

        return get

    for vma in program.machine.kernel.vmas.objects:
        for field in PLACE:
            own: Any = type(vma)
            setattr(
                own, field, property(looked_at(getattr(vm_area_struct, field), field), vars(own)[field].fset)
            )
    for number in range(executions):
        program.once(Pct(0, number, 3, 100))
    assert {"vm_start", "vm_end"} <= set(reads)
    return reads.total(), found


@pytest.mark.parametrize(
    "name",
    ["001-restart-vma-reused", "010-mremap-beside-truncation", "062-dirty-cow", "007a-merged-in-the-break"],
)
def test_whoever_reads_where_a_mapping_is_has_one_of_its_locks(name: str) -> None:
    """So such reads need not be operations: nobody changes the place without all of them."""
    reads, found = reads_without_a_guard(Explored("x86_64", load_scenario(name)), 5)
    assert reads > 50
    assert found == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(scenario_files()))
def test_whoever_reads_where_a_mapping_is_has_one_of_its_locks_in_every_scenario(name: str) -> None:
    file = scenario_files()[name]
    machine = file.scenario.arches[0] if file.scenario.arches else "x86_64"
    assert reads_without_a_guard(Explored(machine, file), 3)[1] == {}


def test_the_audit_notices_who_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncation that walks its file's mappings without i_mmap_lock."""
    program = Explored("x86_64", load_scenario("010-mremap-beside-truncation"))
    without(monkeypatch, "i_mmap_lock", "unmap")
    assert ("vm_start", "linear_parts") in reads_without_a_guard(program, 5)[1]


def test_a_pte_that_is_changed_without_its_lock_is_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads ptes below the lock is no operation, so nobody may change one without it."""
    scenario = Path(__file__).parent / "general" / "protect-and-use.yaml"
    assert polymmu.explore(scenario, "x86_64").verdict.verdict == "clean"
    for name in ("pte_lock", "pte_unlock"):
        monkeypatch.setattr(protect, name, lambda mm, ptep: None)
    found = polymmu.explore(scenario, "x86_64").to_dict()["violation"]
    assert found["invariant"] == "INV-RACE"
    assert " in mm a is changed without its pte_lock" in found["message"]
