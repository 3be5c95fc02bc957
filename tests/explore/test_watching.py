"""How far an exploration is: shown on a terminal, and nowhere else."""

from __future__ import annotations

import argparse
import io
import sys

import pytest

import polymmu
from polymmu.cli.watching import line, watching
from polymmu.exploration.explorer import Left, Limits, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def options(*, quiet: bool) -> argparse.Namespace:
    return argparse.Namespace(quiet=quiet)


def test_nothing_is_shown_where_stderr_is_no_terminal_or_the_user_wants_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with watching(options(quiet=False)) as watcher:
        assert watcher is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    with watching(options(quiet=True)) as watcher:
        assert watcher is None


def test_a_terminal_shows_what_is_done_how_fast_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with watching(options(quiet=False)) as watcher:
        assert watcher is not None
        watcher("walker", Progress("dpor", 500, 2.0, None, lambda: Left(1500, 300, 95.0)))
    assert "walker: dpor, 500 executions, 250/s" in terminal.getvalue()


@pytest.mark.parametrize(
    ("progress", "told"),
    [
        (Progress("pct", 10, 0.0, None, lambda: None), "x: pct, 10 executions, 0/s"),
        (
            Progress("bounded", 30, 3.0, 1, lambda: None),
            "x: bounded (at most 1 preemptions), 30 executions, 10/s",
        ),
        (
            Progress("dpor", 30, 3.0, None, lambda: Left(100, 20, 7500.0)),
            "x: dpor, 30 executions, 10/s, about 100 executions (+- 20) left, 2 h 5 min at this rate",
        ),
    ],
)
def test_the_line_says_no_more_than_is_known(progress: Progress, told: str) -> None:
    assert line("x", progress) == told


def test_every_execution_is_told_of_with_its_strategy() -> None:
    told: list[tuple[str, int]] = []
    polymmu.explore(
        "gup-fast-against-munmap",
        "s390",
        limits=Limits(random=2, seconds=3600),
        progress=lambda progress: told.append((progress.strategy, progress.executions)),
    )
    assert told[:4] == [("default", 1), ("pct", 2), ("pct", 3), ("dpor", 4)]
    assert [executions for _, executions in told] == list(range(1, len(told) + 1))
