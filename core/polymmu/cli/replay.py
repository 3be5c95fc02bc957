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
    common.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Replay it; 1 if it breaks something again."""
    from polymmu.exploration.replay_file import replay
    from polymmu.exploration.telling import columns, steps_of

    program, outcome, schedule = replay(Path(options.file))
    names = program.sched.names
    value = {
        "schema": 1,
        "scenario": program.file.scenario.name,
        "machine": program.machine.name,
        "verdict": "violation" if outcome.finding else "clean",
        "invariant": outcome.invariant,
        "message": outcome.finding,
        "steps": steps_of(schedule, names),
    }
    common.emit(
        options,
        value,
        lambda: f"{outcome.finding or 'nothing broke this time'}\n\n{columns(schedule, names)}",
    )
    return 1 if outcome.finding else 0
