"""Every release at work, on every machine: a recorded program, the shipped scenarios, random work; nothing is found.

Except what a generation is known to get wrong: then it must be one of the invariants named for the release, and the
same work must be clean with that one step as it was mended later.

| release | what is found | step |
|---|---|---|
| 2.6.11, 2.6.12 | INV-PROG: two calls overwrite each other's restart points (9) | ``truncate`` |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polymmu import Machine
from polymmu.description.load_scenario import load_scenario
from polymmu.description.releases import by_age
from polymmu.machine import Machine as AnyMachine
from tests.history.test_releases import NAMES, rows
from tests.sanitize.random_work import timed_run

__all__ = ["rows"]

ROOT = Path(__file__).parents[2]
RELEASES = by_age(NAMES)
SORT = ROOT / "examples" / "sort.npz"
SCENARIOS = sorted((ROOT / "configs" / "polymmu_scenarios").glob("*.yaml"))
MACHINES = sorted(
    path.stem
    for path in (ROOT / "configs" / "polymmu_machines").glob("*.yaml")
    if path.stem != "power9-radix"  # no program runs there
)
SEEDS = (0, 1)

TWO_CALLS = {"INV-PROG", "INV-TRUNC"}, "kernel.truncate=restart-count"
KNOWN = {"2.6.11": TWO_CALLS, "2.6.12": TWO_CALLS}
"""What a release may be found to break, and the setting that mends it."""

Work = Callable[[tuple[str, ...]], AnyMachine]


def sorting(name: str) -> Work:
    def work(sets: tuple[str, ...]) -> Machine:
        made = Machine.from_file(name, sets=["memory=1 GiB", *sets], sanitize=True)
        made.run(str(SORT))
        return made

    return work


def playing(name: str, scenario: Path) -> Work:
    def work(sets: tuple[str, ...]) -> Machine:
        file = load_scenario(str(scenario))
        made = Machine.to_run(name, file, sets=sets)
        made.run(file)
        return made

    return work


def at_random(name: str, seed: int) -> Work:
    return lambda sets: timed_run(name, seed, 40, sets)


def found(work: Work, *sets: str) -> list[str]:
    """What the referee says of ``work``, each with its invariant first."""
    try:
        made = work(sets)
    except (
        AssertionError
    ) as stopped:  # the referee's word is the beginning of the text where it was the referee
        return [str(stopped)]
    assert made.sanitizer is not None
    made.sanitizer.finish()
    told = list(map(str, made.sanitizer.violations))
    # The files of a recorded program stay open: nobody recorded who closed them.
    return told + made.sanitizer.balance() if made.kernel.sched.runs_tasks else told


def check(work: Work, release: str) -> None:
    """``work`` is clean with ``release``, but for what is known of it."""
    told = found(work, f"kernel={release}")
    if told and release in KNOWN:
        broken, mended = KNOWN[release]
        assert {each.partition(":")[0] for each in told} <= broken, told
        told = found(work, f"kernel={release}", mended)
    assert told == []


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_does_random_work_and_a_scenario(release: str) -> None:
    check(at_random("x86_64", 0), release)
    check(playing("x86_64", SCENARIOS[RELEASES.index(release) % len(SCENARIOS)]), release)


def test_what_is_known_of_2_6_12_is_seen() -> None:
    """Else the exception would be none."""
    for seed in range(8):
        told = found(at_random("ia64", seed), "kernel=2.6.12")
        if told:
            assert told[0].startswith("INV-PROG: truncation visits the same entries again and again")
            return
    pytest.fail("no seed shows it, and every other one should")


@pytest.mark.long
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", MACHINES)
def test_every_release_on_every_machine(name: str, release: str) -> None:
    check(sorting(name), release)
    for scenario in SCENARIOS:
        check(playing(name, scenario), release)
    for seed in SEEDS:
        check(at_random(name, seed), release)
