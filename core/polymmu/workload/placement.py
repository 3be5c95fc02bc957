"""Where a recorded address lies on this machine: segments of recorded space, each moved by one distance.

A trace was recorded on another machine, and its addresses are kept wherever they fit. Where a mapping does
not fit it moves as a whole, so every recorded byte belongs to at most one segment, and a segment knows its
``delta``: target = recorded + delta. ``hull`` is the range of the mapping that a segment is a piece of; what
a program later maps inside that range (a library's parts over its reservation) moves along.

``PlaceMap`` only remembers; deciding and calling the machine is ``space``'s part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from sortedcontainers import SortedDict

__all__ = ["PlaceMap", "Segment", "Translation"]

WORD = (1 << 64) - 1


@attrs.frozen
class Segment:
    """Recorded bytes [start, end) lie at [start + delta, end + delta)."""

    start: int
    end: int
    delta: int
    hull: tuple[int, int]


@attrs.frozen(eq=False)
class Translation:
    """A ``PlaceMap`` as arrays, sorted by start, for whole columns of addresses."""

    starts: NDArray[np.uint64]
    ends: NDArray[np.uint64]
    deltas: NDArray[np.uint64]  # modulo 2**64, so that adding wraps to the right place

    def apply(self, recorded: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """(targets, known): where each address lies, itself where it is in no segment (``known`` False)."""
        if not len(self.starts):
            return recorded.copy(), np.zeros(len(recorded), np.bool_)
        # Index -1 of an address below every segment picks the last one, whose start lies above it.
        index = np.searchsorted(self.starts, recorded, side="right") - 1
        known = (recorded >= self.starts[index]) & (recorded < self.ends[index])
        return recorded + np.where(known, self.deltas[index], np.uint64(0)), known


class PlaceMap:
    """The segments of one address space, in recorded order and in target order."""

    def __init__(self) -> None:
        self._recorded: Any = SortedDict()
        self._target: Any = SortedDict()
        self._moved = 0
        self._translation: Translation | None = None
        self.reserved: list[tuple[int, int, int]] = []
        """Target ranges [lo, hi) that only segments of the third number, a delta, may use: room to grow."""
        self.stack_room: tuple[int, int, int] | None = None
        """(lowest, start, delta) of the room below the initial stack, in recorded addresses."""

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._recorded.values())

    @property
    def is_moved(self) -> bool:
        """Whether any recorded address lies elsewhere than it says."""
        return self._moved > 0

    def copy(self) -> PlaceMap:
        """An independent map with the same segments (fork)."""
        twin = PlaceMap()
        for segment in self:
            twin.add(segment)
        twin.reserved = list(self.reserved)
        twin.stack_room = self.stack_room
        return twin

    def add(self, segment: Segment) -> None:
        """Remember a segment; nothing may overlap it in either space."""
        self._recorded[segment.start] = segment
        self._target[segment.start + segment.delta] = segment
        self._moved += segment.delta != 0
        self._translation = None

    def _remove(self, segment: Segment) -> None:
        del self._recorded[segment.start]
        del self._target[segment.start + segment.delta]
        self._moved -= segment.delta != 0
        self._translation = None

    def overlapping(self, start: int, end: int) -> list[Segment]:
        """Segments that share a recorded byte with [start, end), in order."""
        below = self._recorded.bisect_right(start) - 1
        first = self._recorded.peekitem(below)[0] if below >= 0 else start
        found: list[Segment] = []
        for key in self._recorded.irange(first):
            segment: Segment = self._recorded[key]
            if segment.start >= end:
                break
            if segment.end > start:
                found.append(segment)
        return found

    def delta_near(self, address: int, distance: int) -> int:
        """The delta of the nearest segment within ``distance`` of recorded ``address``; 0 without one."""
        near = self.overlapping(max(address - distance, 0), address + distance)
        return min(near, key=lambda s: max(s.start - address, address - s.end)).delta if near else 0

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of recorded [start, end) in no segment."""
        found: list[tuple[int, int]] = []
        cursor = start
        for segment in self.overlapping(start, end):
            if segment.start > cursor:
                found.append((cursor, segment.start))
            cursor = segment.end
        if cursor < end:
            found.append((cursor, end))
        return found

    def cut(self, start: int, end: int) -> list[Segment]:
        """Forget recorded [start, end); return what was there, clipped, neighbours of one delta joined."""
        pieces: list[Segment] = []
        for segment in self.overlapping(start, end):
            self._remove(segment)
            if segment.start < start:
                self.add(attrs.evolve(segment, end=start))
            if segment.end > end:
                self.add(attrs.evolve(segment, start=end))
            pieces.append(attrs.evolve(segment, start=max(segment.start, start), end=min(segment.end, end)))
        return joined(pieces)

    def is_free(self, start: int, end: int, delta: int) -> bool:
        """Whether target [start, end) holds no segment, nor room reserved for segments of another delta."""
        if any(start < high and low < end and owner != delta for low, high, owner in self.reserved):
            return False
        index = self._target.bisect_left(end) - 1
        if index < 0:
            return True
        segment: Segment = self._target.peekitem(index)[1]
        return segment.end + segment.delta <= start

    def lowest_gap(self, low: int, high: int, length: int, align: int) -> int | None:
        """The lowest aligned target address in [low, high) with ``length`` free bytes; None if there is
        none.
        """
        cursor = -(-low // align) * align
        busy = sorted(
            [(s.start + s.delta, s.end + s.delta) for s in self] + [(lo, hi) for lo, hi, _ in self.reserved]
        )
        for start, end in busy:
            if start >= cursor + length:
                break
            cursor = max(cursor, -(-end // align) * align)
        return cursor if cursor + length <= high else None

    def translation(self) -> Translation:
        """This map as arrays; room below a moved stack counts as the stack's."""
        if self._translation is None:
            rows = [(s.start, s.end, s.delta & WORD) for s in self]
            if self.stack_room is not None:
                low, start, delta = self.stack_room
                rows += [(lo, hi, delta & WORD) for lo, hi in self.gaps(low, start)]
                rows.sort()
            columns = np.array(rows, dtype=np.uint64).reshape(-1, 3)
            self._translation = Translation(columns[:, 0].copy(), columns[:, 1].copy(), columns[:, 2].copy())
        return self._translation


def joined(pieces: list[Segment]) -> list[Segment]:
    """``pieces`` with neighbours of one delta made one: what one system call can cover."""
    result: list[Segment] = []
    for piece in pieces:
        if result and result[-1].end == piece.start and result[-1].delta == piece.delta:
            result[-1] = attrs.evolve(result[-1], end=piece.end)
        else:
            result.append(piece)
    return result
