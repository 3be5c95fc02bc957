"""Where a mistake stands, how it is worded, and how all mistakes of one file are told together.

A machine file is often written once and then hunted through for an hour; so reading one collects
every mistake it meets and tells them in the order of the file, one line each.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NoReturn

import attrs

from polymmu.errors import UserMistake

__all__ = ["Mistakes", "Place", "Problems", "did_you_mean", "shown", "unknown"]


@attrs.frozen(order=True)
class Place:
    """A point in a file, line and column from 1; ``line`` 0: the source as a whole (``--set a=1``)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Mistakes(UserMistake):
    """All mistakes of one description; the text has one line for each, ``mistakes`` has them apart."""

    def __init__(self, mistakes: Iterable[UserMistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


@attrs.define
class Problems:
    """What was found wrong so far. ``limit`` keeps the answer to a hopeless file readable."""

    limit: int = 50
    _found: dict[tuple[Place, str], None] = attrs.field(factory=dict[tuple[Place, str], None], init=False)

    def add(self, place: Place, message: str) -> None:
        """Note one mistake; the same one met twice (through an alias) counts once."""
        self._found[place, " ".join(message.splitlines())] = None
        if len(self._found) == self.limit:
            self.fail(place, f"{self.limit} mistakes found; reading stops here")

    def fail(self, place: Place, message: str) -> NoReturn:
        """Note one mistake after which nothing sensible can be read, and tell all."""
        self._found[place, message] = None
        raise self._mistakes()

    def finish(self) -> None:
        """Raise ``Mistakes`` if there is anything to tell."""
        if self._found:
            raise self._mistakes()

    def _mistakes(self) -> Mistakes:
        in_order = sorted(self._found, key=lambda found: found[0])
        return Mistakes(UserMistake(message, place=str(place)) for place, message in in_order)


def shown(text: str) -> str:
    """``text`` as a message quotes it: on one line, printable, short."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` if something in ``known`` looks like ``word``, else nothing."""
    # A name differing only in case is closer than difflib, which compares exactly, would have it.
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word[:100].lower(), names, n=1)
    return f"; did you mean '{names[close[0]]}'?" if close else ""


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist: what is known, and what was probably meant."""
    names = list(known)
    return f"unknown {kind} {shown(word)} (known: {', '.join(names) or 'none'}){did_you_mean(word, names)}"
