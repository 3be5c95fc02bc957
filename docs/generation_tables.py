"""The tables of ``docs/generations.md``, made from the classes of the generations and from the rows of the releases.

A page keeps the place of each table between ``<!-- generations: AXIS -->`` or ``<!-- releases -->`` and
``<!-- end -->``.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import polymmu_history
from polymmu.description.mistakes import Problems
from polymmu.description.model import KernelChoice
from polymmu.description.releases import by_age, read_row
from polymmu.variants import VARIANTS

__all__ = ["with_generations"]

_TABLE = re.compile(r"(<!-- (?:generations: (\w+)|releases) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_generations(page: str) -> str:
    """``page`` with each of its tables made anew."""
    return _TABLE.sub(
        lambda match: match[1] + (_generations(match[2]) if match[2] else _releases()) + match[3], page
    )


def _generations(axis: str) -> str:
    known = {**polymmu_history.kernel_variants()[axis], **VARIANTS[axis]}
    default = getattr(KernelChoice(), axis)
    rows = [
        f"| {f'**`{name}`**' if name == default else f'`{name}`'} | {cls.since} | {_what(cls)} | {cls.wrong} |"
        for name, cls in sorted(known.items(), key=lambda row: row[0].startswith("bug-"))
    ]
    return "\n".join(["| name | since | what it is | what it gets wrong |", "|---|---|---|---|", *rows, ""])


def _what(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def _releases() -> str:
    directory = Path(polymmu_history.__file__).parent / "releases"
    rows = [
        (name, *_row(directory / f"{name}.yaml"))
        for name in by_age(path.stem for path in directory.glob("*.yaml"))
    ]
    axes = dict.fromkeys(axis for _, _, kernel in rows for axis in kernel)
    lines = [
        " | ".join(
            [f"| `{name}`", *(f"`{kernel[axis]}`" if axis in kernel else "" for axis in axes), f"{what} |"]
        )
        for name, what, kernel in rows
    ]
    head = " | ".join(["| release", *(f"`{axis}`" for axis in axes), "|"])
    return "\n".join([head, "|" + "---|" * (len(axes) + 2), *lines, ""])


def _row(path: Path) -> tuple[str, dict[str, object]]:
    """What a row says of itself, and the keys that it names, in its order."""
    problems = Problems()
    row = read_row(path.read_text(encoding="utf-8"), str(path), problems)
    problems.finish()
    assert row is not None
    return row[0].summary, {key: getattr(row[0].kernel, key) for key in row[1].items}
