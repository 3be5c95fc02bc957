"""Trace files that Perfetto and Chrome's about:tracing open: the Trace Event Format, JSON.

    timeline = Timeline()
    timeline.track(1, 0, "CPU 0", "task 0")
    timeline.begin(1, 0, 10, "munmap"); timeline.end(1, 0, 25)
    timeline.write(path)

A track is a thread (``tid``) of a process (``pid``); slices of one track nest, and each is ended in its track. What
overlaps without nesting (locks do) is a span with an identity of its own. Times are whole microseconds as the viewer
counts them; what one stands for is the caller's business. Whoever runs a program, or explores one, says what happened:
this module only writes it down.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polymmu.errors import UserMistake

__all__ = ["Timeline"]


class Timeline:
    """Events in any order; ``to_dict`` sorts them by time, those of one moment as they came."""

    def __init__(self) -> None:
        self._heads: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []

    def track(self, pid: int, tid: int, process: str, thread: str) -> None:
        """Give a track its two names."""
        for kind, name in (("process_name", process), ("thread_name", thread)):
            self._heads.append(
                {"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}
            )

    def begin(self, pid: int, tid: int, ts: int, name: str, **args: Any) -> None:
        """A slice begins, inside those of its track that have not ended."""
        self._add("B", pid, tid, ts, name=name, args=args)

    def end(self, pid: int, tid: int, ts: int) -> None:
        """The innermost slice of the track ends."""
        self._add("E", pid, tid, ts)

    def span(self, pid: int, tid: int, ts: int, until: int, name: str, *, category: str, number: int) -> None:
        """Something that lasts from ``ts`` to ``until`` whatever else does; ``number`` is its own in ``category``."""
        for phase, at in (("b", ts), ("e", until)):
            self._add(phase, pid, tid, at, name=name, cat=category, id=number)

    def instant(self, pid: int, tid: int, ts: int, name: str, **args: Any) -> None:
        """A moment that concerns everybody."""
        self._add("i", pid, tid, ts, name=name, s="g", args=args)

    def arrow(self, number: int, name: str, source: tuple[int, int, int], goal: tuple[int, int, int]) -> None:
        """From inside a slice to inside another one, each as (pid, tid, ts)."""
        self._add("s", *source, name=name, cat="flow", id=number)
        self._add("f", *goal, name=name, cat="flow", id=number, bp="e")

    def _add(self, phase: str, pid: int, tid: int, ts: int, **more: Any) -> None:
        self._events.append({"ph": phase, "pid": pid, "tid": tid, "ts": ts, **more})

    def to_dict(self) -> dict[str, Any]:
        """The whole file."""
        events = [*self._heads, *sorted(self._events, key=lambda event: int(event["ts"]))]
        return {"traceEvents": events, "displayTimeUnit": "ns"}

    def write(self, path: Path) -> None:
        """Write the file. Raises UserMistake where that cannot be."""
        try:
            path.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserMistake(
                f"cannot write: {error.strerror}; choose another place", place=str(path)
            ) from error
