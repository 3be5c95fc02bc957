"""The gallery: what was once wrong in Linux is found by the explorer, and what cured it is exhausted.

Which entry shows on which architecture was looked at by hand; an entry that shows on some only says so (``arches``).
"""

from __future__ import annotations

from pathlib import Path

import pytest

import polymmu
from polymmu.description.load_scenario import ScenarioFile, load_scenario
from polymmu.exploration.explorer import Limits

HERE = Path(__file__).parents[2] / "configs" / "polymmu_scenarios"
GALLERY = [load_scenario(str(path)) for path in sorted(HERE.glob("[0-9]*.yaml"))]
ARCHES = ("ia64", "ppc64", "s390", "sparc64", "x86", "x86_64")
EVERYWHERE = [(file, arch) for file in GALLERY for arch in file.scenario.arches or ARCHES]

PATIENT = Limits(seconds=3600)
"""However slow the host is: executions are what counts."""
ALSO = {"11c": {"INV-REF"}, "16a": {"INV-REF"}, "16c": {"INV-WALK"}}
"""Rules that the same bug breaks too, and that are seen first on some architecture."""


def name_of(value: object) -> str:
    return value.scenario.name if isinstance(value, ScenarioFile) else str(value)


def shows(file: ScenarioFile, arch: str) -> None:
    told = polymmu.explore(file, arch, variant="buggy", limits=PATIENT).to_dict()
    assert told["verdict"] == "violation"
    allowed = {file.scenario.invariant} | ALSO.get(file.scenario.corpus, set())
    assert told["violation"]["invariant"] in allowed


@pytest.mark.parametrize("file", GALLERY, ids=name_of)
def test_what_was_wrong_is_found(file: ScenarioFile) -> None:
    shows(file, (file.scenario.arches or ("x86_64",))[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("file", "arch"), EVERYWHERE, ids=name_of)
def test_what_was_wrong_is_found_wherever_it_was_and_its_cure_is_clean_in_every_interleaving(
    file: ScenarioFile, arch: str
) -> None:
    shows(file, arch)
    told = polymmu.explore(file, arch, variant="fixed", strategy="dpor", limits=PATIENT).to_dict()
    assert (told["verdict"], told["complete"]) == ("clean", True)
