"""What a claim is: a sentence, a scenario measured per machine in several variants, and a judge of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

__all__ = ["FULL", "SMALL", "Claim", "Effort", "Row", "Verdict"]


@attrs.frozen(kw_only=True)
class Effort:
    """How much is measured. ``pages``: sizes of what is unmapped, ascending; ``vmas``: numbers of them, too;
    ``threads``: CPUs that ran the program."""

    pages: tuple[int, ...]
    seeds: int
    threads: tuple[int, ...]
    accesses: int
    """Of the recorded program."""
    vmas: tuple[int, ...]


FULL = Effort(
    pages=(4096, 8192, 16384),
    seeds=12,
    threads=(1, 2, 4, 8),
    accesses=5_000_000,
    vmas=(10, 100, 1_000, 10_000, 100_000),
)
SMALL = Effort(pages=(4096, 8192), seeds=4, threads=(1, 2, 4), accesses=300_000, vmas=(10, 100, 1_000))
"""For the tests: what the claims say must be seen with it too."""


@attrs.frozen
class Row:
    """One case: ``cells[figure, variant]``; what was not measured, or has no meaning, is left out."""

    case: str
    cells: Mapping[tuple[str, str], int]

    def of(self, figure: str, variants: Sequence[str]) -> Iterator[int]:
        """One figure in several variants."""
        return (self.cells[figure, variant] for variant in variants)


@attrs.frozen
class Verdict:
    """Whether one machine's figures bear the claim out, and what in them says so."""

    holds: bool
    because: str


@attrs.frozen(kw_only=True)
class Claim:
    """One claim. ``statement`` says what is claimed and on what condition, ``method`` what was run and counted."""

    name: str
    title: str
    statement: str
    method: str
    variants: tuple[str, ...]
    figures: tuple[str, ...]
    measure: Callable[[str, Effort], list[Row]]
    """Of a machine, by name."""
    judge: Callable[[Sequence[Row]], Verdict]

    def to_dict(self, machine: str, rows: Sequence[Row]) -> dict[str, Any]:
        """One machine's part of ``--format json``."""
        verdict = self.judge(rows)
        return {
            "claim": self.name,
            "machine": machine,
            "holds": verdict.holds,
            "because": verdict.because,
            "rows": [
                {
                    "case": row.case,
                    "figures": {
                        figure: {
                            variant: row.cells[figure, variant]
                            for variant in self.variants
                            if (figure, variant) in row.cells
                        }
                        for figure in self.figures
                    },
                }
                for row in rows
            ],
        }
