"""How far an exploration is, in one line on stderr, on a terminal only: what it does, how fast, and what is left."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # heavy, and not wanted for --help
    from polymmu.exploration.explorer import Progress

__all__ = ["line", "watching"]

EVERY = 0.25
"""Seconds between two looks."""


@contextmanager
def watching(options: argparse.Namespace) -> Iterator[Callable[[str, Progress], None] | None]:
    """Yields who is to be told ``(title, progress)`` as often as one likes, or None."""
    if options.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    console = Console(stderr=True)
    shown = 0.0
    with console.status("...") as status:

        def update(title: str, progress: Progress) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= EVERY:
                shown = now
                status.update(line(title, progress))

        yield update


def line(title: str, progress: Progress) -> str:
    """One line."""
    from polymmu.exploration.telling import left_text

    rate = progress.executions / progress.seconds if progress.seconds else 0.0
    bound = "" if progress.bound is None else f" (at most {progress.bound} preemptions)"
    left = progress.left()
    ahead = "" if left is None else f", {left_text(left)}"
    return f"{title}: {progress.strategy}{bound}, {progress.executions} executions, {rate:.0f}/s{ahead}"
