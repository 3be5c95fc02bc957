"""The search is judged by brute force: every outcome, and every way in which steps can depend on each other."""

from __future__ import annotations

import itertools

import pytest

from polymmu.exploration.search import Search
from polymmu.exploration.stack import path_of
from tests.explore.programs import Program, Runner, all_of, random_program

SMALL = 400
"""Executions that brute force may take for a program."""


def same_as_brute_force(program: Program, limit: int) -> bool:
    """False where brute force takes too long."""
    everything = all_of(program, "naive", limit)
    if everything is None:
        return False
    naive = {(record.outcome, record.graph) for record in everything[0]}
    for strategy in ("dpor", "sleep"):
        found = all_of(program, strategy)
        assert found is not None
        assert {(record.outcome, record.graph) for record in found[0]} == naive, (strategy, program)
        assert found[1].executions <= everything[1].executions
    return True


def test_source_sets_and_sleep_sets_miss_no_outcome_and_no_graph_of_three_hundred_random_programs() -> None:
    judged = (same_as_brute_force(random_program(seed), SMALL) for seed in itertools.count())
    assert sum(itertools.islice(filter(None, judged), 300)) == 300


def test_what_comes_again_is_what_was_before() -> None:
    """The recorder in front of a search has every step done in full; the search itself is not told of those that come
    again."""
    executions = 0
    for seed in range(200):
        program = random_program(seed)
        whole, quick = Search("dpor"), Search("dpor")
        runner, other = Runner(program), Runner(program)
        more = True
        while more and whole.executions < 50:
            record = runner.once(whole)
            assert other.outcome(quick) == (None if record is None else record.outcome)
            more = whole.back_up()
            assert quick.back_up() == more
            assert path_of(quick.stack) == path_of(whole.stack)
        executions += whole.executions
    assert executions > 1000


@pytest.mark.long
def test_nor_of_twenty_thousand() -> None:
    judged = (same_as_brute_force(random_program(seed), SMALL) for seed in itertools.count(100_000))
    assert sum(itertools.islice(filter(None, judged), 20_000)) == 20_000


@pytest.mark.parametrize(
    ("operation", "tasks", "k", "orders"),
    [
        # An atomic addition: n tasks have n! orders at each of k counters.
        ("add", 2, 1, 2),
        ("add", 2, 2, 4),
        ("add", 3, 1, 6),
        ("add", 3, 2, 36),
        # A read, then a write: 4 orders of two tasks and 36 of three, at each counter.
        ("bump", 2, 1, 4),
        ("bump", 2, 2, 16),
        ("bump", 3, 1, 36),
    ],
)
def test_independent_counters_multiply(operation: str, tasks: int, k: int, orders: int) -> None:
    found = all_of((tuple((operation, n) for n in range(k)),) * tasks, "dpor")
    assert found is not None
    assert found[1].executions - found[1].blocked == orders == len({record.graph for record in found[0]})


def test_operations_that_commute_are_tried_in_one_order() -> None:
    found = all_of(((("read", 0), ("read", 1)), (("read", 1), ("read", 0)), (("read", 0),)), "dpor")
    assert found is not None
    assert found[1].executions == 1


def test_bounded_search_with_enough_preemptions_sees_every_outcome() -> None:
    program: Program = ((("read", 0), ("write", 1)), (("read", 1), ("write", 0)))
    everything = all_of(program, "naive")
    assert everything is not None
    search = Search("bounded", preemptions=4)
    bounded = all_of(program, "bounded", search=search)
    assert bounded is not None
    assert {r.outcome for r in bounded[0]} == {r.outcome for r in everything[0]}
    none = all_of(program, "bounded", search=Search("bounded", preemptions=0))
    assert none is not None
    assert none[1].executions == 2  # one task after the other, either first


def test_a_deadlock_is_found_though_the_acquire_that_would_show_it_never_happens() -> None:
    program: Program = ((("lock", 0), ("lock", 1)), (("lock", 1), ("lock", 0)))
    found = all_of(program, "dpor")
    assert found is not None
    assert any(record.outcome[0] for record in found[0])
