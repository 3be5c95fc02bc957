"""Store buffers: litmus tests whose answers are known, and a machine of store buffers written down anew here.

What total store order allows: a CPU's store may come after its own later loads, nothing else.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import polymmu
from polymmu.cli.main import main
from polymmu.description import installed
from polymmu.exploration.search import Blocked, Search
from polymmu.sched.exploring import ExploringSched
from polymmu.sched.locks import Spinlock
from polymmu.sched.store_buffers import StoreBuffers
from tests.explore.programs import FakeCpu, Record, Steps

Op = tuple[Any, ...]
Program = tuple[tuple[Op, ...], ...]
Seen = tuple[tuple[int, ...], ...]
DEPTH = 4


class Runner:
    """Programs of ("store", word, value), ("load", word), ("mb",), ("add", word) and ("locked", word), which adds below
    a lock."""

    def __init__(self, program: Program, depth: int = DEPTH) -> None:
        self.program = program
        cpus: list[Any] = [FakeCpu(n) for n in range(len(program))]
        self.sched = ExploringSched(cpus)
        if depth:
            self.sched.buffers = StoreBuffers(len(cpus), depth)
        self.lock = Spinlock(self.sched, "lock")
        self.words: dict[str, int] = {}

    def store(self, word: str, value: int) -> None:
        def write() -> Callable[[], None]:
            before = self.words[word]
            self.words[word] = value
            return lambda: self.words.__setitem__(word, before)

        self.sched.write(word, write)

    def load(self, word: str) -> int:
        self.sched.read(word)
        return self.words[word]

    def once(self, search: Search) -> Record | None:
        self.words = dict.fromkeys("xyz", 0)
        self.lock.held, self.lock.owner = False, None
        seen: list[list[int]] = [[] for _ in self.program]
        steps = Steps(search)

        def body(index: int) -> None:
            for kind, *what in self.program[index]:
                if kind == "store":
                    self.store(*what)
                elif kind == "load":
                    seen[index].append(self.load(*what))
                elif kind == "mb":
                    self.sched.smp_mb()
                elif kind == "add":
                    self.sched.atomic()
                    self.store(what[0], self.load(what[0]) + 10)
                else:
                    self.lock.lock()
                    value = self.load(what[0])
                    self.store(what[0], value + 100)
                    self.lock.unlock()

        for index in range(len(self.program)):
            self.sched.spawn(f"t{index}", index, lambda index=index: body(index))  # type: ignore[misc]
        failure = self.sched.run(steps)
        if isinstance(failure, Blocked):
            return None
        if failure is not None:
            raise failure
        return Record((tuple(map(tuple, seen)), tuple(self.words.values())), steps.graph())


def every(runner: Runner, strategy: str = "dpor", limit: int = 20_000) -> list[Record] | None:
    """What every execution came to; None where there are too many."""
    search, records = Search(strategy), list[Record]()
    while True:
        record = runner.once(search)
        if record is not None:
            records.append(record)
        if not search.back_up():
            return records
        if search.executions >= limit:
            return None


def outcomes(program: Program, *, depth: int = DEPTH) -> set[Seen]:
    """What the loads of each task may have seen."""
    records = every(Runner(program, depth))
    assert records is not None
    return {record.outcome[0] for record in records}  # type: ignore[misc]


# ------------------------------------------------------------------ litmus tests
SB: Program = ((("store", "x", 1), ("load", "y")), (("store", "y", 1), ("load", "x")))


def with_barrier(task: tuple[Op, ...]) -> tuple[Op, ...]:
    return (task[0], ("mb",), *task[1:])


def test_both_may_miss_the_others_store_with_store_buffers_and_only_then() -> None:
    """SB."""
    orders = {((0,), (1,)), ((1,), (0,)), ((1,), (1,))}
    assert outcomes(SB, depth=0) == orders
    assert outcomes(SB) == orders | {((0,), (0,))}


def test_a_barrier_in_both_forbids_it_and_one_is_not_enough() -> None:
    assert ((0,), (0,)) not in outcomes((with_barrier(SB[0]), with_barrier(SB[1])))
    assert ((0,), (0,)) in outcomes((with_barrier(SB[0]), SB[1]))


def test_an_atomic_change_is_a_barrier() -> None:
    one, other = (("add", "x"), ("load", "y")), (("add", "y"), ("load", "x"))
    assert outcomes((one, other)) == {((0,), (10,)), ((10,), (0,)), ((10,), (10,))}


def test_giving_a_spinlock_back_is_no_barrier() -> None:
    one, other = (("locked", "x"), ("load", "y")), (("store", "y", 1), ("mb",), ("load", "x"))
    assert ((0,), (0,)) in outcomes((one, other))
    assert ((0,), (0,)) not in outcomes((one, other), depth=0)


@pytest.mark.parametrize("depth", [0, DEPTH])
def test_a_message_is_not_seen_before_what_it_is_about(depth: int) -> None:
    """MP: stores of one CPU are seen in their order, and loads are made in theirs."""
    found = outcomes(((("store", "x", 1), ("store", "y", 1)), (("load", "y"), ("load", "x"))), depth=depth)
    assert found == {((), (0, 0)), ((), (0, 1)), ((), (1, 1))}


@pytest.mark.parametrize("depth", [0, DEPTH])
def test_a_load_never_sees_what_a_later_store_caused(depth: int) -> None:
    """LB."""
    found = outcomes(((("load", "x"), ("store", "y", 1)), (("load", "y"), ("store", "x", 1))), depth=depth)
    assert found == {((0,), (0,)), ((0,), (1,)), ((1,), (0,))}


def test_a_cpu_sees_its_own_store_before_others_do() -> None:
    """n6, and its symmetric form: each reads its own store, and not yet the other's."""
    both = (
        (("store", "x", 1), ("load", "x"), ("load", "y")),
        (("store", "y", 1), ("load", "y"), ("load", "x")),
    )
    assert ((1, 0), (1, 0)) in outcomes(both)
    assert ((1, 0), (1, 0)) not in outcomes(both, depth=0)
    n6: Program = ((("store", "x", 1), ("load", "x"), ("load", "y")), (("store", "y", 2), ("store", "x", 2)))
    records, sc = every(Runner(n6)), every(Runner(n6, 0))
    assert records is not None
    assert sc is not None
    last = (((1, 0), ()), (1, 2, 0))
    assert last in {record.outcome for record in records}
    assert last not in {record.outcome for record in sc}


def test_all_see_stores_of_two_cpus_in_one_order() -> None:
    """IRIW."""
    found = outcomes(
        (
            (("store", "x", 1),),
            (("store", "y", 1),),
            (("load", "x"), ("load", "y")),
            (("load", "y"), ("load", "x")),
        )
    )
    assert ((), (), (1, 0), (1, 0)) not in found
    assert ((), (), (1, 0), (0, 1)) in found


def test_a_full_buffer_makes_the_next_store_wait() -> None:
    """With room for one store the second drains the first."""
    one = (("store", "x", 1), ("store", "z", 1), ("load", "y"))
    other = (("store", "y", 1), ("mb",), ("load", "x"))
    assert ((0,), (0,)) not in outcomes((one, other), depth=1)
    assert ((0,), (0,)) in outcomes((one, other), depth=2)


# ------------------------------------------------------------------ against a machine of its own
State = tuple[Any, ...]


def machine(program: Program, depth: int) -> set[object]:
    """Every outcome, by walking through every state: where each task is, what it saw, its buffer, and memory."""
    start: State = (
        tuple((0, (), ()) for _ in program),
        tuple((word, 0) for word in "xyz"),
    )
    todo, known, found = [start], {start}, set[object]()

    def following(state: State) -> Iterator[State]:
        tasks, memory = state
        words = dict(memory)

        def with_task(n: int, task: Any, words: dict[str, int] = words) -> State:
            return (*tasks[:n], task, *tasks[n + 1 :]), tuple(words.items())

        for n, (at, seen, buffer) in enumerate(tasks):
            if buffer:
                yield with_task(n, (at, seen, buffer[1:]), {**words, buffer[0][0]: buffer[0][1]})
            if at == len(program[n]):
                continue
            kind, *what = program[n][at]
            if kind == "store" and len(buffer) < depth:
                yield with_task(n, (at + 1, seen, (*buffer, tuple(what))))
            elif kind == "load":
                value = {**words, **dict(buffer)}[what[0]]
                yield with_task(n, (at + 1, (*seen, value), buffer))
            elif kind == "mb" and not buffer:
                yield with_task(n, (at + 1, seen, buffer))
            elif kind == "add" and not buffer:
                value, then = words[what[0]] + 10, at + 1
                while program[n][then : then + 1] == (("load", what[0]),):  # what an atomic change gave
                    then += 1
                given = (value,) * (then - at - 1)
                yield with_task(n, (then, (*seen, *given), buffer), {**words, what[0]: value})

    while todo:
        state = todo.pop()
        more = list(following(state))
        if not more:
            found.add((tuple(seen for _, seen, _ in state[0]), tuple(value for _, value in state[1])))
        for each in more:
            if each not in known:
                known.add(each)
                todo.append(each)
    return found


def random_program(seed: int) -> Program:
    rng = random.Random(seed)
    tasks = rng.randint(2, 3)

    def op() -> Op:
        kind = rng.choice(("store", "store", "store", "load", "load", "load", "mb", "add"))
        word = rng.choice("xy")
        return {"store": ("store", word, rng.randint(1, 3)), "mb": ("mb",)}.get(kind, (kind, word))

    return tuple(tuple(op() for _ in range(rng.randint(1, 4 if tasks == 2 else 2))) for _ in range(tasks))


def agrees(seed: int) -> bool:
    """Whether a random program was judged; fails where the explorer misses or invents anything."""
    program, depth = random_program(seed), random.Random(seed).choice((1, 2, DEPTH))
    runner = Runner(program, depth)  # one, for it numbers tasks as it meets them
    naive = every(runner, "naive", limit=400)
    found = every(runner)
    assert found is not None
    assert {record.outcome for record in found} == machine(program, depth), (program, depth)
    if naive is None:
        return False
    assert {(r.outcome, r.graph) for r in found} == {(r.outcome, r.graph) for r in naive}, (program, depth)
    return True


def test_the_search_agrees_with_another_machine_and_with_brute_force_on_random_programs() -> None:
    judged = [agrees(seed) for seed in range(100)]
    assert sum(judged) >= 40


@pytest.mark.long
def test_nor_does_it_miss_anything_of_five_thousand() -> None:
    assert sum(agrees(seed) for seed in range(1_000, 6_000)) >= 1_500


# ------------------------------------------------------------------ on the real core
GALLERY = "073-switch-beside-a-flush"


def test_a_flush_and_a_switch_miss_each_other_with_store_buffers_and_only_then(tmp_path: Path) -> None:
    """Corpus 73."""
    file = tmp_path / "found.json"
    found = polymmu.explore(GALLERY, "x86_64", variant="buggy", strategy="dpor", replay=file).to_dict()
    assert found["violation"]["invariant"] == "INV-WALK"
    assert found["bounds"]["memory_model"] == "tso"
    assert any(step["op"] == "drain" for step in found["violation"]["steps"])
    assert main(["replay", str(file)]) == 1
    sc = polymmu.explore(GALLERY, "x86_64", variant="buggy", strategy="dpor", memory_model="sc").to_dict()
    assert (sc["verdict"], sc["bounds"]["memory_model"]) == ("clean", "sc")
    fixed = polymmu.explore(GALLERY, "x86_64", strategy="dpor").to_dict()
    assert (fixed["verdict"], fixed["complete"], fixed["bounds"]["store_buffer"]) == ("clean", True, 4)


def test_a_schedule_replays_in_a_process_that_met_other_tasks_first(tmp_path: Path) -> None:
    """Drains have numbers by when they were met first; the file says which."""
    file = tmp_path / "found.json"
    assert polymmu.explore(
        GALLERY, "x86_64", variant="buggy", strategy="pct", seed=3, replay=file
    ).verdict.outcome
    data = json.loads(file.read_text())
    assert data["memory_model"] == "tso"
    assert len(data["tasks"]) > 2
    command = [sys.executable, "-m", "polymmu", "replay", str(file)]
    env = os.environ | {"PYTHONHASHSEED": "7"}
    assert subprocess.run(command, capture_output=True, env=env, check=False).returncode == 1


@pytest.mark.parametrize("arch", ["ia64", "ppc64"])
def test_store_buffers_are_refused_where_hardware_does_more(
    arch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", "007d-torn-copy", "--machine", arch, "--memory-model", "tso"]) == 2
    assert "weaker than tso, and that is not modelled" in capsys.readouterr().err
    assert (
        main(["explore", "012-giving-way-below-a-spinlock", "--machine", arch, "--strategy", "default"]) == 0
    )
    assert "weaker and is not modelled" in capsys.readouterr().out


def test_a_variant_may_choose_its_memory_model(tmp_path: Path) -> None:
    text = Path(installed.scenario_files()[GALLERY].path).read_text()
    path = tmp_path / "chosen.yaml"
    path.write_text(
        text.replace("memory_model: tso\n", "").replace("buggy: {", "buggy: {memory_model: tso, ")
    )
    verdicts = [
        polymmu.explore(path, "x86_64", variant=name, strategy="dpor").to_dict()
        for name in ("buggy", "fixed")
    ]
    assert [verdict["bounds"]["memory_model"] for verdict in verdicts] == ["tso", "sc"]
    assert [verdict["verdict"] for verdict in verdicts] == ["violation", "clean"]
    path.write_text(text.replace("buggy: {", "buggy: {memory_model: rmo, "))
    with pytest.raises(polymmu.UserMistake, match=r"variants.buggy.memory_model: one of sc, tso"):
        polymmu.explore(path, "x86_64")
