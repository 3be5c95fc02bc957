"""Scenario by architecture by kernel: one exploration in each cell.

Columns of a scenario are its variants; of one that has none, today's kernel and every installed release. Cells that
make no sense (a machine the scenario is not about, choices that exclude each other) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs

from polymmu import registry
from polymmu.description.installed import machine_files, release_files
from polymmu.description.load_scenario import ScenarioFile
from polymmu.description.releases import by_age
from polymmu.errors import UserMistake
from polymmu.exploration.explored import Finding, explore
from polymmu.exploration.explorer import Limits, Progress
from polymmu.workers import Workers

__all__ = ["Cell", "cells", "matrix_text"]

TODAY = "today"


@attrs.frozen
class Cell:
    """One exploration. ``kernel``: the variant, the release, or ``today``."""

    scenario: str
    kernel: str
    finding: Finding

    @property
    def is_as_it_should_be(self) -> bool:
        """Whether a buggy variant breaks something, and any other does not."""
        return (self.finding.verdict.verdict == "violation") == (self.kernel == "buggy")

    def to_dict(self) -> dict[str, Any]:
        """As an item of ``cells``: what ``explore`` says, with the column's name."""
        return {**self.finding.to_dict(), "kernel": self.kernel}


def cells(
    scenarios: Sequence[ScenarioFile],
    *,
    machine: str | None = None,
    variant: str | None = None,
    strategy: str = "portfolio",
    sets: Sequence[str] = (),
    limits: Limits | None = None,
    seed: int = 0,
    workers: Workers | None = None,
    progress: Callable[[str, Progress], None] | None = None,
) -> Iterator[Cell]:
    """Every cell, one after another. ``machine``, ``variant``: these only. ``progress`` is also told which cell it is.
    Raises UserMistake.

    Schedules are left as they were found: whoever wants to read one explores that cell.
    """
    limits = attrs.evolve(limits or Limits(), shrink=0)
    known = machine_files()
    for file in scenarios:
        arches = file.scenario.arches or tuple(registry.installed_arches())
        for name in [machine] if machine is not None else [arch for arch in arches if arch in known]:
            for kernel, how in _columns(file, variant):
                try:
                    finding = explore(
                        file,
                        name,
                        variant=kernel if how == () else None,
                        strategy=strategy,
                        sets=[*sets, *how],
                        limits=limits,
                        seed=seed,
                        workers=workers,
                        progress=progress and partial(progress, f"{file.scenario.name} {name} {kernel}"),
                    )
                except UserMistake:
                    if machine is not None:
                        raise
                    continue
                yield Cell(file.scenario.name, kernel, finding)


def _columns(file: ScenarioFile, variant: str | None) -> list[tuple[str, tuple[str, ...]]]:
    """Names of a scenario's columns, and what to set for each that is no variant."""
    if file.variants.items:
        return [(name, ()) for name in file.variants.items if variant in (None, name)]
    # What a release says is laid below the scenario's own wishes, as below any machine's.
    releases = [(name, (f"kernel.release={name}",)) for name in by_age(release_files())]
    return [*releases, (TODAY, ("seed=0",))]


def matrix_text(found: Sequence[Cell]) -> str:
    """A line per cell."""
    lines = []
    for cell in found:
        verdict = cell.finding.verdict
        invariant = verdict.outcome.invariant if verdict.outcome is not None else ""
        known = cell.kernel in ("buggy", "fixed")
        mark = "  <-- not as it should be" if known and not cell.is_as_it_should_be else ""
        lines.append(
            f"{cell.scenario:44} {cell.finding.machine:10} {cell.kernel:8} "
            f"{verdict.verdict:10} {invariant:11} {verdict.executions:6} executions{mark}"
        )
    return "\n".join(lines)
