"""No alarm: many executions of the code as it is, on every scenario that should be clean and every architecture.

Each of the gallery's fixed variants and of the general scenarios gets the same share: source sets to their end, or as
far as the share goes, then random schedules for what is left of it. A search that ends early leaves more to the others.

    python -m tests.explore.alarms [EXECUTIONS] [WORD...]     100,000 by default

With words only the cells whose names ("SCENARIO MACHINE VARIANT") contain one of them. Exit status 1 after an alarm.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import attrs

from polymmu.exploration.explorer import Limits, search
from polymmu.exploration.scenario import Explored
from tests.explore.golden import Cell, all_cells, scenario_files
from tests.mutants.killers import ALARMS

__all__ = ["Told", "alarms", "clean_cells"]

ALL = 100_000


@attrs.frozen
class Told:
    """What came of one cell. ``finding``: an alarm, or empty."""

    cell: Cell
    executions: int
    complete: bool
    finding: str


def clean_cells() -> list[Cell]:
    """What should be clean everywhere; the known alarms are left out."""
    return [
        cell
        for cell in all_cells()
        if cell.strategy == "dpor"
        and cell.variant in ("", "fixed")
        and (cell.scenario, cell.machine) not in ALARMS
    ]


def alarms(cells: Sequence[Cell], executions: int) -> Iterator[Told]:
    """Spread ``executions`` over ``cells``."""
    files = scenario_files()
    left = executions
    for place, cell in enumerate(cells):
        share = max(left // (len(cells) - place), 1)
        program = Explored(cell.machine, files[cell.scenario], variant=cell.variant or None)
        first = search(program, "dpor", limits=Limits(executions=share, seconds=1e9))
        made, outcome = first.executions, first.outcome
        if outcome is None and made < share:
            rest = search(
                program, "pct", limits=Limits(random=share - made, executions=share - made, seconds=1e9)
            )
            made, outcome = made + rest.executions, rest.outcome
        left -= made
        yield Told(cell, made, first.complete, outcome.finding if outcome is not None else "")


def main(arguments: Sequence[str]) -> int:
    """See the top of the module."""
    numbers = [int(word) for word in arguments if word.isdigit()]
    words = [word for word in arguments if not word.isdigit()]
    cells = [cell for cell in clean_cells() if not words or any(word in str(cell) for word in words)]
    made = found = 0
    for told in alarms(cells, numbers[0] if numbers else ALL):
        made += told.executions
        found += bool(told.finding)
        how = "complete" if told.complete else "not to its end"
        print(f"{made:7} {told.cell}: {told.executions}, {how} {told.finding}", flush=True)
    print(f"{made} executions of {len(cells)} cells, {found} alarms")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
