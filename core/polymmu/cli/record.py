"""``polymmu record -o OUT -- PROGRAM ARGS...``: record a real program into a compact trace."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polymmu.cli.common import tell
from polymmu.errors import UserMistake

__all__ = ["add", "record", "run"]


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "record", help="record a real program into a compact trace", description=__doc__
    )
    parser.add_argument("-o", "--out", metavar="OUT", required=True, help="the trace to write, an .npz file")
    parser.add_argument("-q", "--quiet", action="store_true", help="no remarks on stderr")
    parser.add_argument(
        "program", metavar="PROGRAM", nargs=argparse.REMAINDER, help="-- and the program with its arguments"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Record; the program's own output stays its own."""

    argv = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not argv:
        raise UserMistake("no PROGRAM to record; write it after --, as in: record -o ls.npz -- ls -l")
    meta = record(options.out, argv)
    if not options.quiet:
        tell(f"{options.out}: {json.dumps(meta)}")
    return 130 if meta.get("partial") else 0


def record(
    out: str | Path, argv: Sequence[str], plugins: Sequence[tuple[str, object]] | None = None
) -> Mapping[str, Any]:
    """Run the program ``argv`` and write its trace to ``out``.

    ``plugins`` are (name, module) pairs, by default those installed. Returns the trace's ``meta``, with
    ``"partial": true`` if Ctrl-C ended the program. Raises ``UserMistake`` where recording cannot start.
    """
    from polymmu.workload.plugins import ask_recorders

    meta = ask_recorders(Path(out), tuple(argv), plugins)
    if meta is None:
        raise UserMistake("no installed plugin can record programs; install polymmu with its lackey plugin")
    return meta
