"""Every search makes the executions that it made when they were written down (``tests.explore.golden``)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.explore.golden import THOROUGH, Cell, all_cells, differences, golden

KNOWN = golden()
CELLS = [cell for cell in all_cells() if str(cell) in KNOWN]
QUICK = 30


def executions(cell: Cell) -> int:
    count = KNOWN[str(cell)][2]
    assert isinstance(count, int)
    return count


SMALL = [cell for cell in CELLS if executions(cell) <= QUICK]
SAMPLE = SMALL[:: max(len(SMALL) // 40, 1)]


def test_a_sample_of_the_counts_is_as_it_was() -> None:
    assert differences(SAMPLE, KNOWN) == []


def test_a_count_that_changed_is_told() -> None:
    cell = SAMPLE[0]
    verdict, invariant, n, blocked = KNOWN[str(cell)]
    assert isinstance(n, int)
    wrong: dict[str, list[object]] = {str(cell): [verdict, invariant, n + 1, blocked]}
    assert [line.split(":")[0] for line in differences([cell], wrong)] == [str(cell)]


def test_no_count_is_of_a_cell_that_is_gone() -> None:
    assert set(KNOWN) <= {str(cell) for cell in all_cells()}


@pytest.mark.slow
def test_what_is_counted_on_the_thorough_machines_is_as_it_was() -> None:
    cells = [cell for cell in CELLS if cell.machine in THOROUGH and cell.strategy in ("dpor", "pct")]
    assert differences(cells, KNOWN) == []


@pytest.mark.long
def test_every_cell_is_counted_and_as_it_was() -> None:
    assert differences(all_cells(), KNOWN) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "4711"])
def test_hash_seeds_do_not_count(seed: str) -> None:
    """In a process of its own, for the seed is the process's."""
    names = [str(cell) for cell in SAMPLE[::2]]
    program = (
        "from tests.explore.golden import all_cells, differences, golden\n"
        f"names = set({names!r})\n"
        "print(differences([cell for cell in all_cells() if str(cell) in names], golden()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
