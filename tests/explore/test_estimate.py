"""What a search says is left, against trees whose size is known: by hand, or by searching them to the end."""

from __future__ import annotations

import math
import random
import statistics

import pytest

import polymmu
from polymmu.exploration.estimate import Estimate, left_of, total
from polymmu.exploration.explorer import Limits
from polymmu.exploration.search import Later, Search
from tests.explore.programs import Program, Runner


def searched(program: Program, strategy: str) -> tuple[int, list[Estimate]]:
    """How many executions a search takes, and what it said before each but the first."""
    search, runner, said = Search(strategy), Runner(program), list[Estimate]()
    while True:
        runner.once(search)
        if not search.back_up():
            return search.executions, said
        said.append(left_of(search))


def shuffled(seed: int) -> Program:
    """Programs alike but for the order of things, so that what is searched first differs."""
    rng = random.Random(seed)
    tasks = [[("bump", 0), ("add", 1)], [("bump", 1), ("add", 0)], [("add", 0), ("read", 1)]]
    for task in tasks:
        rng.shuffle(task)
    rng.shuffle(tasks)
    return tuple(map(tuple, tasks))


@pytest.mark.parametrize(("counters", "orders"), [(1, 2), (3, 8), (5, 32)])
def test_where_all_branches_are_alike_the_estimate_is_exact_once_a_branch_of_each_is_known(
    counters: int, orders: int
) -> None:
    """Two tasks add to n counters: 2^n orders. Half-way nothing is left to learn."""
    executions, said = searched((tuple(("add", n) for n in range(counters)),) * 2, "dpor")
    assert executions == orders
    for done, estimate in enumerate(said, 1):
        if done >= orders // 2:
            assert estimate.executions == pytest.approx(orders - done)


@pytest.mark.parametrize("strategy", ["dpor", "sleep"])
def test_on_the_average_it_misses_by_less_than_its_errors_say(strategy: str) -> None:
    """Each of thirty programs is asked once, half-way: the mean of what is missed by, in standard errors, is around
    nought, and four in five of them miss by less than two."""
    missed = []
    for seed in range(30):
        executions, said = searched(shuffled(seed), strategy)
        half = executions // 2
        estimate = said[half - 1]
        missed.append((estimate.executions - (executions - half)) / max(estimate.error, 1))
    assert abs(statistics.mean(missed)) < 1
    assert sum(abs(each) < 2 for each in missed) >= 24


def test_nothing_but_the_last_branch_left_is_one_execution() -> None:
    search, runner = Search("dpor"), Runner(((("add", 0),), (("add", 0),)))
    runner.once(search)
    assert search.back_up()
    assert left_of(search).executions == 1


def test_later_branches_half_as_large_as_the_first_are_expected_to_be_so() -> None:
    later = Later()
    later.note([10, 5, 5])
    later.note([4, 2])
    assert later.ratio == (0.5, 0.0)
    later.note([10, 9])
    ratio, variance = later.ratio
    assert ratio == 21 / 34
    # (5 - 10 r)^2 twice, (2 - 4 r)^2, (9 - 10 r)^2, beside the squares of 10, 10, 4 and 10
    by_hand = 2 * (5 - 10 * ratio) ** 2 + (2 - 4 * ratio) ** 2 + (9 - 10 * ratio) ** 2
    assert variance == pytest.approx(by_hand / 316)


def test_errors_of_parts_that_know_nothing_of_each_other_add_in_squares() -> None:
    assert total([Estimate(10, 3), Estimate(5, 4)]) == Estimate(15, 5)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_report_says_what_is_left_where_a_limit_was_hit_and_only_there(jobs: int) -> None:
    cut = polymmu.explore(
        "001-restart-vma-reused",
        "x86_64",
        strategy="dpor",
        limits=Limits(executions=30, seconds=3600),
        jobs=jobs,
    )
    left = cut.to_dict()["left"]
    assert set(left) == {"executions", "error", "seconds"}
    assert left["executions"] > 0
    assert f"about {left['executions']} executions (+- {left['error']}) left" in str(cut)
    whole = polymmu.explore("gup-fast-against-munmap", "s390", strategy="dpor", limits=Limits(seconds=3600))
    assert whole.to_dict()["left"] is None
    assert "left" not in str(whole)


@pytest.mark.slow
def test_on_the_real_core_four_in_five_say_the_truth_within_two_errors() -> None:
    from polymmu.description.load_scenario import load_scenario
    from polymmu.exploration.scenario import Explored

    program = Explored("x86_64", load_scenario("001-restart-vma-reused"))
    search, said = Search("dpor"), list[Estimate]()
    program.once(search)
    while search.back_up():
        said.append(left_of(search))
        program.once(search)
    right = [
        abs(estimate.executions - (search.executions - done)) <= 2 * estimate.error
        for done, estimate in enumerate(said, 1)
    ]
    assert sum(right) >= 0.8 * len(right)
    assert all(math.isfinite(estimate.error) for estimate in said)
