"""``polymmu validate FILE...``: check machine and scenario files; every mistake as ``file:line:column: message``."""

from __future__ import annotations

import argparse
from typing import Any

from polymmu.cli.common import tell
from polymmu.errors import UserMistake

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "validate", help="check machine and scenario files", description=__doc__
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="YAML files")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing about files that are fine")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check each file; goes on after a bad one."""
    from polymmu.description.load_scenario import is_scenario, load_scenario
    from polymmu.machine import Machine

    bad = False
    for file in options.files:
        try:
            if is_scenario(file):
                load_scenario(file)
            else:
                Machine.describe(file)
        except UserMistake as mistake:
            bad = True
            tell(str(mistake))
        else:
            if not options.quiet:
                print(f"{file}: fine")
    return 2 if bad else 0
