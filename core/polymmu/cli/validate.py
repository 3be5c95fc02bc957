"""``polymmu validate FILE...``: check machine, scenario and release files.

Every mistake is told as ``file:line:column: message``.
"""

from __future__ import annotations

import argparse
from typing import Any

from polymmu.cli.common import tell
from polymmu.errors import UserMistake

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "validate", help="check machine, scenario and release files", description=__doc__
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="YAML files")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing about files that are fine")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check each file; goes on after a bad one."""
    from polymmu import variants
    from polymmu.description.load import is_path
    from polymmu.description.load_scenario import is_scenario, load_scenario
    from polymmu.description.model import KernelChoice
    from polymmu.description.releases import is_row, load_row
    from polymmu.machine import Machine

    def check_kernel(choice: KernelChoice) -> None:
        try:
            variants.classes(choice)
        except UserMistake as mistake:
            raise UserMistake(str(mistake), place=file) from None

    bad = False
    for file in options.files:
        try:
            if is_scenario(file):
                load_scenario(file)
            elif is_path(file) and is_row(file):
                check_kernel(load_row(file).kernel)
            else:
                check_kernel(Machine.describe(file)[0].kernel)
        except UserMistake as mistake:
            bad = True
            tell(str(mistake))
        else:
            if not options.quiet:
                print(f"{file}: fine")
    return 2 if bad else 0
