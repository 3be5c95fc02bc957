"""What a judge says: which invariant was broken, by which two events, where and when."""

from __future__ import annotations

import attrs

__all__ = ["Happened", "Violation"]


@attrs.define(unsafe_hash=True)
class Happened:
    """One event: ``what``, on which ``cpu``, by which ``task``, at which ``time`` (that CPU's cycles), and ``place``
    (``file.py:line function``). Made for every event that might be the first of two, so not frozen, though nobody
    changes one: that takes thrice as long."""

    what: str
    cpu: int
    task: str
    time: int
    place: str

    def __str__(self) -> str:
        return f"{self.what} by {self.task} on CPU {self.cpu} at {self.time}, {self.place}"


@attrs.frozen(kw_only=True)
class Violation:
    """``invariant`` (a name of the reference, A0.2) does not hold: ``first`` made it possible, ``second`` showed it."""

    invariant: str
    first: Happened
    second: Happened

    def __str__(self) -> str:
        return f"{self.invariant}: {self.second}; first {self.first}"

    def to_dict(self) -> dict[str, object]:
        """As an item of a report's ``violations``."""
        return {
            "invariant": self.invariant,
            "text": str(self),
            "first": attrs.asdict(self.first),
            "second": attrs.asdict(self.second),
        }
