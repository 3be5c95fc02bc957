"""A machine that was put back is the machine that it was, whatever was done to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sortedcontainers import SortedDict

from polymmu.description.load_scenario import load_scenario
from polymmu.exploration.explorer import Limits, search
from polymmu.exploration.restore import Saved
from polymmu.exploration.scenario import Explored
from polymmu.exploration.schedule import Replay, Schedule

SCENARIO = """
scenario: 1
name: first-touches
summary: threads touch the first pages of a table
machine: {{cpus: 4}}
setup:
  - mm: a
  - mmap: {{mm: a, at: 16p, length: 4p}}
cpus: {cpus}
expect: clean
"""


def touching(path: Path, cpus: str) -> Explored:
    """Some CPUs of four store to pages of an mm that has none yet."""
    file = path / "first-touches.yaml"
    file.write_text(SCENARIO.format(cpus=cpus))
    return Explored("x86_64", load_scenario(str(file)))


def as_it_goes() -> Replay:
    return Replay(Schedule(), strict=False)


def test_frames_that_the_last_cpu_took_go_back_though_those_of_the_others_lie_between(tmp_path: Path) -> None:
    program = touching(tmp_path, "{3: {mm: a, do: [{store: {at: 16p}}]}}")
    kernel = program.machine.kernel
    most = kernel.free.bump + 100
    table = kernel.frames.table[:, :most].copy()
    memory = kernel.ram.bytes[: most * kernel.frames.page_size].copy()
    for _ in range(2):
        assert not program.once(as_it_goes()).finding
        assert np.array_equal(kernel.frames.table[:, :most], table)
        assert np.array_equal(kernel.ram.bytes[: len(memory)], memory)


def test_a_spare_object_that_was_handed_out_is_spare_again_with_its_lists_empty(tmp_path: Path) -> None:
    program = touching(tmp_path, "{1: {mm: a, do: [{fork: {child: b}}, {store: {mm: b, at: 16p}}]}}")
    mms = program.machine.kernel.mms
    spare = [mm for mm in mms.objects if mm.slot in mms.spares()]
    before = [(mm.generation, mm.serial, mm.mm_users, mm.nr_tables, list(mm.vmas)) for mm in spare]
    assert not program.once(as_it_goes()).finding
    assert [mm for mm in mms.objects if mm.slot in mms.spares()] == spare
    assert [(mm.generation, mm.serial, mm.mm_users, mm.nr_tables, list(mm.vmas)) for mm in spare] == before


def test_a_value_that_was_replaced_by_an_equal_one_is_the_old_one_again(tmp_path: Path) -> None:
    kernel = touching(tmp_path, "{0: {mm: a, do: [{load: {at: 16p}}]}}").machine.kernel
    old: list[int] = [1]
    values, ordered = {"x": old}, SortedDict({1: old})
    saved = Saved([values, ordered], kernel.ram, kernel.frames, kernel.free)
    values["x"], ordered[1], ordered[0] = [1], [1], old
    old.append(2)
    saved.restore()
    assert values["x"] is old
    assert ordered[1] is old
    assert old == [1]
    assert list(ordered) == [1]


@pytest.mark.slow
def test_a_lock_made_anew_in_each_execution_is_the_same_lock_to_the_search(tmp_path: Path) -> None:
    """Both CPUs find no page table, make one, and take its lock. Were that another lock each time, a task that sleeps
    since an earlier execution would not be woken by it: two ways to search must come to the same number of orders."""
    program = touching(
        tmp_path, "{0: {mm: a, do: [{store: {at: 16p}}]}, 1: {mm: a, do: [{store: {at: 17p}}]}}"
    )
    orders = []
    for strategy in ("dpor", "sleep"):
        verdict = search(program, strategy, limits=Limits(seconds=3600))
        assert (verdict.verdict, verdict.complete) == ("clean", True)
        orders.append(verdict.executions - verdict.blocked)
    assert orders[0] == orders[1]
