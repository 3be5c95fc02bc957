"""Installed plugins: reading entry-point groups in a stable order, and saying clearly what is wrong with one.

Entry points arrive in file-system order; they are sorted by name here. Two distributions that claim one name
are refused with both named. Nothing is imported until a name is asked for.
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points

import attrs

from polymmu.errors import PluginMistake, UserMistake

__all__ = ["Installed", "installed", "load", "suggestion"]


@attrs.frozen
class Installed:
    """One entry point: ``name`` and where it came from."""

    name: str
    distribution: str
    version: str
    entry_point: EntryPoint


def suggestion(word: str, known: list[str]) -> str:
    """`` (known: ...); did you mean '...'?`` for a message about an unknown ``word``."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (known: {', '.join(known) or 'none'})" + (f"; did you mean '{close[0]}'?" if close else "")


def installed(group: str) -> dict[str, Installed]:
    """What is registered under an entry-point group, by name, sorted.

    Raises UserMistake where two distributions register one name.
    """
    found: dict[str, Installed] = {}
    rows = [
        Installed(
            point.name,
            point.dist.name if point.dist else "?",
            point.dist.version if point.dist else "?",
            point,
        )
        for point in entry_points(group=group)
    ]
    for row in sorted(rows, key=lambda row: (row.name, row.distribution, row.version)):
        other = found.get(row.name)
        if other is None:
            found[row.name] = row
        elif (other.distribution, other.entry_point.value) != (row.distribution, row.entry_point.value):
            raise UserMistake(
                f"'{row.name}' is registered twice, by {other.distribution} {other.version} and by "
                f"{row.distribution} {row.version}; uninstall one of them",
                place=f"entry points '{group}'",
            )
    return found


def load(row: Installed) -> object:
    """Import what an entry point names. Raises PluginMistake if that fails."""
    try:
        return row.entry_point.load()
    except Exception as error:
        raise PluginMistake(
            f"{row.name}' of '{row.distribution} {row.version}",
            "import",
            f"{type(error).__name__}: {error}".splitlines()[0],
        ) from error
