"""``polymmu replay FILE``: make a schedule that ``explore`` wrote again, step by step."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from polymmu.cli import common

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "replay", help="make a schedule that explore wrote again", description=__doc__
    )
    parser.add_argument("file", metavar="FILE", help="the replay file")
    parser.add_argument("--timeline", metavar="OUT", help="write it for Perfetto, too")
    common.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Replay it; 1 if it breaks something again."""
    from polymmu.exploration.replay_file import replay
    from polymmu.exploration.timeline import write_timeline

    again = replay(options.file)
    if options.timeline is not None:
        write_timeline(Path(options.timeline), again.told)
    common.emit(options, again.to_dict(), lambda: str(again))
    return 1 if again.told.outcome.finding else 0
