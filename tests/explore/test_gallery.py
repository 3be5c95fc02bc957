"""The gallery: what was once wrong in Linux is found by the explorer, and what cured it is exhausted.

Which entry shows on which architecture was looked at by hand; an entry that shows on some only says so (``arches``).
"""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

import polymmu
from polymmu.description.load_scenario import ScenarioFile, load_scenario
from polymmu.exploration.explorer import Limits, search
from polymmu.exploration.scenario import Explored

HERE = Path(__file__).parents[2] / "configs" / "polymmu_scenarios"
GALLERY = [load_scenario(str(path)) for path in sorted(HERE.glob("[0-9]*.yaml"))]
ARCHES = ("ia64", "ppc64", "s390", "sparc64", "x86", "x86_64")
EVERYWHERE = [(file, arch) for file in GALLERY for arch in file.scenario.arches or ARCHES]
SAMPLE = [
    (file, arches[(number + more) % len(arches)])
    for number, file in enumerate(GALLERY)
    for arches in [file.scenario.arches or ARCHES]
    for more in range(min(2, len(arches)))
]
"""Two architectures for each entry, in turn: what a change must pass."""

PATIENT = Limits(seconds=3600, shrink=0)
"""However slow the host is: executions are what counts."""
ALSO = {"9": {"INV-PROG"}, "11c": {"INV-REF"}, "16a": {"INV-REF"}, "16c": {"INV-WALK"}, "17": {"INV-LOCK"}}
"""Rules that the same bug breaks too, and that are seen first on some architecture."""


def name_of(value: object) -> str:
    return value.scenario.name if isinstance(value, ScenarioFile) else str(value)


def shows(file: ScenarioFile, arch: str) -> None:
    told = polymmu.explore(file, arch, variant="buggy", limits=PATIENT).to_dict()
    assert told["verdict"] == "violation"
    allowed = {file.scenario.invariant} | ALSO.get(file.scenario.corpus, set())
    assert told["violation"]["invariant"] in allowed


LARGE = (
    "002-no-mark-for-done",
    "003-no-restart-inside",
    "009-two-calls-at-once",
    "009b-calls-that-undo-each-other",
)


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=pytest.mark.slow) if file.scenario.name in LARGE else file for file in GALLERY],
    ids=name_of,
)
def test_what_was_wrong_is_found(file: ScenarioFile) -> None:
    shows(file, (file.scenario.arches or ("x86_64",))[-1])


def is_shown_and_cured(file: ScenarioFile, arch: str) -> None:
    shows(file, arch)
    told = polymmu.explore(file, arch, variant="fixed", strategy="dpor", limits=PATIENT).to_dict()
    assert (told["verdict"], told["complete"]) == ("clean", True)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "arch"), SAMPLE, ids=name_of)
def test_what_was_wrong_is_found_and_its_cure_is_clean_in_every_interleaving(
    file: ScenarioFile, arch: str
) -> None:
    is_shown_and_cured(file, arch)


@pytest.mark.long
@pytest.mark.parametrize(("file", "arch"), [cell for cell in EVERYWHERE if cell not in SAMPLE], ids=name_of)
def test_the_same_wherever_else_it_was(file: ScenarioFile, arch: str) -> None:
    is_shown_and_cured(file, arch)


LATER = {"045": 120, "055": 120, "086": 120}
"""Random schedules that find it, in the middle of nine seeds, where that is more than 100."""


@pytest.mark.slow
@pytest.mark.parametrize("file", GALLERY, ids=name_of)
def test_source_sets_find_it_within_500_executions_and_random_schedules_within_100(
    file: ScenarioFile,
) -> None:
    program = Explored((file.scenario.arches or ("x86_64",))[-1], file, variant="buggy")
    if file.scenario.invariant == "INV-PROG":
        fair = search(program, "fair", limits=PATIENT)
        assert (fair.verdict, fair.executions <= 100) == ("violation", True)
        return
    found = search(program, "dpor", limits=attrs.evolve(PATIENT, executions=500))
    assert found.verdict == "violation"
    limits = attrs.evolve(PATIENT, random=400)
    needed = sorted(search(program, "pct", seed=seed, limits=limits).executions for seed in range(9))
    assert needed[4] <= LATER.get(file.scenario.name[:3], 100)


@pytest.mark.parametrize(
    ("name", "invariant"),
    [("009-two-calls-at-once", "INV-TRUNC"), ("094-memory-freed-half-mapped", "INV-TLB")],
)
def test_a_race_of_the_gallery_is_found_by_source_sets_within_500_executions(
    name: str, invariant: str
) -> None:
    found = polymmu.explore(name, "x86_64", variant="buggy", strategy="dpor", limits=PATIENT)
    assert found.to_dict()["violation"]["invariant"] == invariant
    assert found.verdict.executions <= 500
    schedule = found.to_dict()["violation"]["schedule"]
    assert (len(schedule["turns"]) <= 3, len(schedule["values"]) <= 2) == (True, True)
