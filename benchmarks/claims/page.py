"""The claims as a page: ``docs/claims.md``, or parts of it on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from benchmarks.claims.model import Claim, Row

__all__ = ["Measured", "page", "section"]

Measured = Mapping[str, Sequence[Row]]
"""A claim's rows by machine."""

WIDTH = 120
HEAD = """\
# Claims

What changes to the mm were made for, measured before and after on every architecture. Made by
`python -m benchmarks claims --write`; do not edit.

    python -m benchmarks claims                    all of it, printed
    python -m benchmarks claims x86_64 s390        these machines only; a machine file's path will do too
    python -m benchmarks claims --only shootdowns  this claim only
    python -m benchmarks claims --check            whether this page is what the code gives; 1 if not

Every figure is a count, or cycles by the `costs` of the machine file: the same everywhere, each time. Cycles compare
variants on one machine; between machines they say little, for the plain machines have the same costs.

The gathers: `percpu` (Linux 2.6: `kernel: {gather: percpu, i_mmap_lock: spin}`), `stack` (the first patch for 3.0:
`gather: stack`), `linked` (3.0 on, the default).

Below each table stands for each machine whether its figures bear the claim out. **No** is an answer too.
"""


def section(claim: Claim, measured: Measured) -> str:
    """One claim's part of the page."""
    parts = [f"## {claim.title}", _filled(claim.statement), _filled(claim.method), table(claim, measured)]
    lines = []
    for machine, rows in measured.items():
        verdict = claim.judge(rows)
        lines.append(
            textwrap.fill(
                f"- {machine}: **{'yes' if verdict.holds else 'no'}**; {verdict.because}.",
                WIDTH,
                subsequent_indent="  ",
                break_on_hyphens=False,
            )
        )
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, break_on_hyphens=False)


def table(claim: Claim, measured: Measured) -> str:
    """Rows by machine and case; columns by figure, and below each figure the variants."""
    columns = [(figure, variant) for figure in claim.figures for variant in claim.variants]
    body = [
        [machine if not at else "", row.case]
        + [f"{row.cells[each]:,}" if each in row.cells else "-" for each in columns]
        for machine, rows in measured.items()
        for at, row in enumerate(rows)
    ]
    heads = ["machine", "case", *(variant for _, variant in columns)]
    widths = [max(len(line[at]) for line in (heads, *body)) for at in range(len(heads))]
    groups = len(claim.variants)
    above = " " * (widths[0] + 2 + widths[1])
    for at, figure in enumerate(claim.figures):
        first = 2 + at * groups
        room = sum(widths[first : first + groups]) + 2 * (groups - 1)
        # A figure's name needs room above its variants.
        widths[first] += max(len(figure) - room, 0)
        above += "    " + figure.rjust(max(room, len(figure)))
    lines = [above]
    for line in (heads, *body):
        text = line[0].ljust(widths[0]) + "  " + line[1].ljust(widths[1])
        for at, cell in enumerate(line[2:]):
            text += ("    " if at % groups == 0 else "  ") + cell.rjust(widths[2 + at])
        lines.append(text)
    return textwrap.indent("\n".join(line.rstrip() for line in lines), "    ")


def page(claims: Sequence[tuple[Claim, Measured]]) -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(claim, measured) for claim, measured in claims)])
