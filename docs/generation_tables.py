"""The tables of ``docs/generations.md``, made from the classes of the generations and from the rows of the releases.

A page keeps the place of each table between ``<!-- generations: AXIS -->`` or ``<!-- releases -->`` and
``<!-- end -->``.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import polymmu_history
from polymmu.description.releases import by_age, load_row
from polymmu.variants import VARIANTS

__all__ = ["with_generations"]

_TABLE = re.compile(r"(<!-- (?:generations: (\w+)|releases) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_generations(page: str) -> str:
    """``page`` with each of its tables made anew."""
    return _TABLE.sub(
        lambda match: match[1] + (_generations(match[2]) if match[2] else _releases()) + match[3], page
    )


def _generations(axis: str) -> str:
    older = polymmu_history.kernel_variants().get(axis, {})
    rows = [
        f"| `{name}` | {cls.since} | {_what(cls)} | {cls.wrong} |"
        for name, cls in {**older, **VARIANTS[axis]}.items()
    ]
    return "\n".join(["| name | since | what it is | what it gets wrong |", "|---|---|---|---|", *rows, ""])


def _what(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def _releases() -> str:
    directory = Path(polymmu_history.__file__).parent / "releases"
    names = by_age(path.stem for path in directory.glob("*.yaml"))
    rows = {name: load_row(str(directory / f"{name}.yaml")) for name in names}
    axes = [*VARIANTS, "i_mmap_lock"]
    lines = [
        " | ".join([f"| `{name}`", *(f"`{getattr(row.kernel, axis)}`" for axis in axes), f"{row.summary} |"])
        for name, row in rows.items()
    ]
    head = " | ".join(["| release", *(f"`{axis}`" for axis in axes), "|"])
    return "\n".join([head, "|" + "---|" * (len(axes) + 2), *lines, ""])
