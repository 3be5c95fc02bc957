"""Golden counts: what each search says of each scenario, and after how many executions.

The explorer is deterministic, so these are exact; what changes one on purpose writes the file anew, and the difference
shows what it did. A cell is a scenario on a machine, its variant and a strategy: ``dpor`` to its end, ``sleep`` (sleep
sets alone) and ``bounded`` (at most one preemption) as far as ``MOST`` executions, ``pct`` to its first finding with
seed 0.

    python -m tests.explore.golden [WORD...]             compares
    python -m tests.explore.golden --write [WORD...]     writes golden.json

With words only the cells whose names ("SCENARIO MACHINE VARIANT STRATEGY") contain one of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from polymmu.description.load_scenario import ScenarioFile, load_scenario
from polymmu.exploration.explorer import Limits, search
from polymmu.exploration.scenario import Explored

__all__ = ["THOROUGH", "Cell", "all_cells", "counted", "differences", "golden", "write"]

HERE = Path(__file__).parent
FILE = HERE / "golden.json"
GALLERY = HERE.parents[1] / "configs" / "polymmu_scenarios"
GENERAL = HERE / "general"
ARCHES = ("ia64", "ppc64", "s390", "sparc64", "x86", "x86_64")
MOST = 200
"""Executions after which a search is ended, and counted as ``sampled``."""

LIMITS = {
    "dpor": Limits(executions=MOST, seconds=3600),
    "sleep": Limits(executions=MOST, seconds=3600),
    "bounded": Limits(executions=MOST, seconds=3600, preemptions=1),
    "pct": Limits(random=60, executions=60, seconds=3600),
}
THOROUGH = ("x86_64",)
"""Where all strategies are counted; elsewhere ``dpor``."""


@attrs.frozen(order=True)
class Cell:
    """What is searched, and how."""

    scenario: str
    machine: str
    variant: str
    strategy: str

    def __str__(self) -> str:
        return f"{self.scenario} {self.machine} {self.variant or '-'} {self.strategy}"


def scenario_files() -> dict[str, ScenarioFile]:
    """The gallery and the general scenarios."""
    paths = [*sorted(GALLERY.glob("[0-9]*.yaml")), *sorted(GENERAL.glob("*.yaml"))]
    return {path.stem: load_scenario(str(path)) for path in paths}


def all_cells() -> Iterator[Cell]:
    """Every cell, scenario by scenario."""
    for name, file in scenario_files().items():
        for machine in file.scenario.arches or ARCHES:
            for variant in file.variants.items or ("",):
                for strategy in LIMITS if machine in THOROUGH else ("dpor",):
                    yield Cell(name, machine, variant, strategy)


def counted(cell: Cell) -> list[object]:
    """Verdict, invariant, executions and how many of them were blocked."""
    folder = GALLERY if cell.scenario[0].isdigit() else GENERAL
    file = load_scenario(str(folder / f"{cell.scenario}.yaml"))
    program = Explored(cell.machine, file, variant=cell.variant or None)
    verdict = search(program, cell.strategy, limits=LIMITS[cell.strategy], seed=0)
    invariant = verdict.outcome.invariant if verdict.outcome is not None else ""
    return [verdict.verdict, invariant, verdict.executions, verdict.blocked]


def golden() -> dict[str, list[object]]:
    """What was written down, by the name of the cell."""
    if not FILE.exists():
        return {}
    value: dict[str, list[object]] = json.loads(FILE.read_text(encoding="utf-8"))
    return value


def differences(cells: Iterable[Cell], known: Mapping[str, list[object]]) -> list[str]:
    """A line for each of ``cells`` that is not as it is ``known``."""
    lines = []
    for cell in cells:
        was, now = known.get(str(cell)), counted(cell)
        if was != now:
            lines.append(f"{cell}: was {was}, is {now}")
    return lines


def write(cells: Iterable[Cell]) -> None:
    """Write ``cells`` anew, and keep what else there is and still has a cell."""
    names = [str(cell) for cell in all_cells()]
    known = golden()
    for cell in cells:
        known[str(cell)] = counted(cell)
        print(f"{cell}: {known[str(cell)]}", flush=True)
        lines = [f"{json.dumps(name)}: {json.dumps(known[name])}" for name in names if name in known]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """See the top of the module."""
    words = [word for word in arguments if word != "--write"]
    cells = [cell for cell in all_cells() if not words or any(word in str(cell) for word in words)]
    if "--write" in arguments:
        write(cells)
        return 0
    found = differences(cells, golden())
    gone = [] if words else sorted(set(golden()) - set(map(str, cells)))
    print("\n".join([*found, *(f"{name}: there is no such cell any more" for name in gone)]))
    return 1 if found or gone else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
