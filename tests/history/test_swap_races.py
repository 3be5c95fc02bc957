"""Swap-out against mremap and fork, nonlinear remapping against truncation, under seeds of the timed driver.

What is sound is clean on every architecture and in every release; with one step left out the referee tells.
"""

from __future__ import annotations

from typing import Any

import pytest

from polymmu.machine import Machine
from polymmu.mm import copy
from polymmu.mm.truncate import RestartCount, Unmapping
from polymmu.structs import EntryRun, mm_struct
from tests.history.races import Scenario
from tests.history.swap_races import remap_truncate, swap_fork, swap_move

MACHINES = ("x86", "x86-pae", "x86_64", "ia64", "ppc64", "s390-31", "s390", "sparc64")
RELEASES = ("2.6.9", "2.6.11", "2.6.12", "2.6.39", "3.0", "3.15", "4.13")
SCENARIOS = (swap_move, swap_fork, remap_truncate)


def broken(scenario: Scenario, name: str, seed: int, choice: dict[str, Any]) -> str:
    """The invariant that a run broke first; ``stopped`` by a wrong byte or by the core itself; what is left."""
    sets = ["cpus=3", "costs.entry_update=40", "costs.page_io=2000", "memory=64 MiB", "swap=16 MiB"]
    made = Machine.from_file(
        name,
        sets=[*sets, f"seed={seed}", *(f"kernel.{key}={value}" for key, value in choice.items())],
        driver="timed",
        sanitize=True,
    )
    referee = made.sanitizer
    assert referee is not None
    try:
        scenario(made, seed)
        referee.finish()
    except AssertionError as error:
        return referee.violations[0].invariant if referee.violations else f"stopped: {error}"
    return referee.violations[0].invariant if referee.violations else "; ".join(referee.balance())


def has_file_ptes(name: str) -> bool:
    return Machine.from_file(name, sets=["memory=64 MiB"]).kernel.shape.pte.file is not None


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", MACHINES)
def test_what_is_sound_is_clean(scenario: Scenario, name: str) -> None:
    if scenario is remap_truncate and not has_file_ptes(name):
        pytest.skip("a pte of this machine cannot name a page of a file")
    assert broken(scenario, name, 1, {}) == ""


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("release", RELEASES[2::2])
def test_older_releases_are_clean(scenario: Scenario, release: str) -> None:
    assert broken(scenario, "x86", 1, {"release": release}) == ""


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", MACHINES)
def test_clean_under_many_seeds_in_every_release(scenario: Scenario, name: str) -> None:
    if scenario is remap_truncate and not has_file_ptes(name):
        pytest.skip("a pte of this machine cannot name a page of a file")
    for seed in range(20):
        release = (None, *RELEASES)[seed % (1 + len(RELEASES))]
        assert broken(scenario, name, seed, {"release": release} if release else {}) == "", (seed, release)


# ------------------------------------------------------------------ with a step left out
def test_a_child_whose_entries_nobody_counts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def counts_nothing(mm: mm_struct, values: EntryRun) -> None:
        pass

    monkeypatch.setattr(copy, "swap_duplicate_in", counts_nothing)
    assert broken(swap_fork, "x86", 0, {}) == "INV-REF"


def test_a_truncation_that_forgets_the_list_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(self: RestartCount, call: Unmapping) -> None:
        pass

    monkeypatch.setattr(RestartCount, "list_pass", forgets)
    assert broken(remap_truncate, "x86", 0, {}) == "INV-TRUNC"
