"""What several subcommands share: their common options, where results go, and progress."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polymmu.errors import UserMistake

__all__ = ["add_output", "add_sets", "emit", "progress", "sets_of", "tell"]


def tell(message: str) -> None:
    """Messages to the user go to stderr, each line with the program's name."""
    for line in message.splitlines() or [""]:
        print(f"polymmu: {line}", file=sys.stderr)


def add_output(parser: argparse.ArgumentParser) -> None:
    """``--format``, ``--output`` and ``-q``."""
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print the result")
    parser.add_argument("--output", metavar="FILE", help="write the result to FILE instead of stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no remarks on stderr")


def add_sets(parser: argparse.ArgumentParser) -> None:
    """``--set`` and ``--seed``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="change one setting of the machine, for instance tlbs.L2.entries=1024 (repeatable)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of everything random (same as --set seed=N)"
    )


def sets_of(options: argparse.Namespace) -> list[str]:
    """The ``--set`` list with ``--seed`` in it."""
    sets: list[str] = list(options.set)
    if options.seed is not None:
        sets.append(f"seed={options.seed}")
    return sets


def emit(options: argparse.Namespace, value: Any, text: Callable[[], str]) -> None:
    """Print ``value`` as JSON or as the text that ``text`` makes, to stdout or ``--output``."""
    out = json.dumps(value, indent=2) if options.format == "json" else text()
    if options.output is None:
        print(out)
        return
    try:
        Path(options.output).write_text(out + "\n", encoding="utf-8")
    except OSError as error:
        raise UserMistake(
            f"cannot write: {error.strerror}; choose another file", place=options.output
        ) from error


@contextmanager
def progress(options: argparse.Namespace, title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr, on a terminal only; yields ``update(done, total)`` or None."""
    if options.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update
