"""A search split into items: whoever does them, it visits what the search does that is not split."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import pytest

import polymmu
from polymmu.cli.main import main
from polymmu.exploration import split as splitting
from polymmu.exploration.explorer import Limits
from polymmu.exploration.items import search_item
from polymmu.exploration.search import Search
from polymmu.exploration.split import Split
from polymmu.sched.picker import Picker
from polymmu.workers import in_order, processes
from tests.explore.programs import Program, Record, Runner, all_of, random_program

PATIENT = Limits(seconds=3600)


def split_search(program: Program, strategy: str, batch: int, bound: int = 0) -> tuple[list[Record], Split]:
    """Every execution of a split search, in one process that numbers tasks anew for each item."""
    runner = Runner(program)
    split = Split(strategy, bound)
    split.batch = batch
    records: list[Record] = []

    def once(picker: Picker) -> bool:
        record = runner.once(picker)
        if record is not None and isinstance(picker, Search):
            records.append(record)
        return False

    while split.pending:
        item = split.pending.popleft()
        split.take(item, search_item(split.order(item), runner.sched, once))
    return records, split


def larger_program(seed: int) -> Program:
    """Three tasks whose races are found in other tasks' turns, so that items ask for what is not theirs."""
    rng = random.Random(seed)
    kinds = ["read", "write", "add", "copy", "choice", "lock", "trylock", "share", "guarded", "quiet", "ipi"]
    return tuple(
        tuple((rng.choice(kinds), rng.randrange(2)) for _ in range(rng.randint(2, 3))) for _ in range(3)
    )


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("strategy", ["dpor", "sleep"])
def test_a_split_search_visits_the_same_complete_executions(strategy: str, batch: int) -> None:
    judged = 0
    for seed in itertools.count():
        program = random_program(seed) if seed % 2 else larger_program(seed)
        whole = all_of(program, strategy, 400)
        if whole is None:
            continue
        records, _ = split_search(program, strategy, batch)
        assert Counter((record.outcome, record.graph) for record in records) == Counter(
            (record.outcome, record.graph) for record in whole[0]
        ), program
        judged += 1
        if judged == 40:
            return


def test_items_ask_for_what_is_to_be_tried_at_nodes_that_are_not_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the rule above is about nothing: two of the three orders of a counter's halves are granted."""
    granted = []
    grant = Split._grant

    def noted(self: Split, place: Any, first: Any, wanted: int) -> None:
        before = len(place.to_try)
        grant(self, place, first, wanted)
        granted.append(len(place.to_try) - before)

    monkeypatch.setattr(Split, "_grant", noted)
    split_search(((("bump", 0),),) * 3, "dpor", 1)
    assert sum(granted) >= 2


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_so_does_one_of_few_preemptions(bound: int) -> None:
    program: Program = ((("read", 0), ("write", 1)), (("read", 1), ("write", 0)), (("add", 0),))
    whole = all_of(program, "bounded", search=Search("bounded", bound))
    assert whole is not None
    records, split = split_search(program, "bounded", 3, bound)
    assert split.executions == whole[1].executions
    assert {record.outcome for record in records} == {record.outcome for record in whole[0]}


def test_what_is_left_can_be_written_down_at_any_time() -> None:
    program: Program = ((("bump", 0), ("bump", 1)),) * 2
    split, runner, complete = Split("dpor"), Runner(program), 0
    while split.pending:
        split = Split.from_dict("dpor", 0, split.to_dict())
        split.batch = 2
        item = split.pending.popleft()
        result = search_item(
            split.order(item), runner.sched, lambda picker: runner.once(picker) is None and False
        )
        complete += result.executions - result.blocked
        split.take(item, result)
    assert complete == 16


def test_two_processes_count_what_one_counts_and_find_what_one_finds_in_its_first_item() -> None:
    """Clean, a violation, and few preemptions; a search of one item is the search of one process."""
    for how in (
        {"strategy": "dpor"},
        {"strategy": "dpor", "sets": ["kernel.table_free=immediate"]},
        {"strategy": "bounded"},
    ):
        one, two = (
            polymmu.explore(
                "gup-fast-against-munmap",
                "s390",
                limits=Limits(preemptions=1, seconds=3600),
                jobs=jobs,
                **how,
            ).to_dict()
            for jobs in (1, 2)
        )
        for told in (one, two):
            del told["seconds"]
        assert one == two
        assert (one["verdict"] == "violation") == ("sets" in how)


def test_the_first_random_schedule_in_order_is_found_whoever_was_first() -> None:
    one, two = (
        polymmu.explore(
            "001-restart-vma-reused", "x86_64", variant="buggy", strategy="pct", jobs=jobs
        ).to_dict()
        for jobs in (1, 2)
    )
    for told in (one, two):
        del told["seconds"]
    assert one == two
    assert one["verdict"] == "violation"


def _slow_first(number: int) -> int:
    time.sleep(0.3 if number == 0 else 0)
    return number


def test_results_come_in_the_order_of_the_jobs() -> None:
    with processes(2, "polymmu.workers") as workers:
        jobs = deque([0, 1, 2])
        done = in_order(workers, jobs, lambda number: workers.submit(_slow_first, number), lambda: False)
        assert [number for number, _ in done] == [0, 1, 2]


def test_what_has_no_result_when_it_stops_is_pending_again() -> None:
    jobs = deque([0, 1, 2])
    here = splitting.Here()
    done = in_order(here, jobs, lambda number: here.submit(abs, number), lambda: False)
    assert next(done) == (0, 0)
    done.close()
    assert list(jobs) == [1, 2]


def test_a_limit_of_executions_is_kept_to_the_last_one() -> None:
    told = polymmu.explore(
        "001-restart-vma-reused",
        "x86_64",
        strategy="dpor",
        limits=Limits(executions=30, seconds=3600),
        jobs=2,
    ).to_dict()
    assert (told["verdict"], told["executions"]) == ("sampled", 30)
    assert told["left"]["executions"] > 0


def _dies(*args: Any) -> None:
    os._exit(7)


def test_a_worker_that_dies_is_our_own_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(splitting, "search_order", _dies)
    assert main(["explore", "001-restart-vma-reused", "--strategy", "dpor", "--jobs", "2"]) == 3
    assert "terminated abruptly" in capsys.readouterr().err


def test_no_processes_at_all_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "001-restart-vma-reused", "--jobs", "0"]) == 2
    assert "--jobs 0 is too few" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [2, 3])
def test_any_number_of_processes_finds_the_same(jobs: int, tmp_path: Path) -> None:
    """Not only the verdict: the same schedule, after the same number of executions, blocked ones and all."""
    told = [
        polymmu.explore(
            "001-restart-vma-reused", "x86_64", variant=variant, strategy="dpor", limits=PATIENT, jobs=n
        ).to_dict()
        for variant in ("buggy", "fixed")
        for n in (2, jobs)
    ]
    for each in told:
        del each["seconds"]
    assert told[0] == told[1]
    assert told[2] == told[3]
