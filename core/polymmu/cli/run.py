"""``polymmu run MACHINE WORKLOAD``: run a workload on a machine and print what its memory did."""

from __future__ import annotations

import argparse
from typing import Any

from polymmu.cli import common

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "run", help="run a workload on a machine, print a report", description=__doc__
    )
    parser.add_argument("machine", metavar="MACHINE", help="an installed machine's name, or a YAML file")
    parser.add_argument("workload", metavar="WORKLOAD", help="a lackey log, strace log or access trace")
    add_replay(parser)
    common.add_sets(parser)
    common.add_output(parser)
    parser.set_defaults(run=run)


def add_replay(parser: argparse.ArgumentParser) -> None:
    """Options of replaying, shared with ``compare``."""
    parser.add_argument(
        "--ignore-mm-calls",
        action="store_true",
        help="replay accesses alone: no mmap, munmap or flush; every page maps itself",
    )
    parser.add_argument(
        "--driver", choices=("solo",), default=None, help="who picks the next CPU (default: solo)"
    )


def run(options: argparse.Namespace) -> int:
    """Run it."""
    from polymmu.api import Machine
    from polymmu.workload.readers import open_workload

    machine = Machine.from_file(options.machine, sets=common.sets_of(options))
    workload = open_workload(options.workload)
    with common.progress(options, machine.name) as update:
        report = machine.run(workload, ignore_mm_calls=options.ignore_mm_calls, progress=update)
    common.emit(options, report.to_dict(), lambda: str(report))
    if report.to_dict().get("partial"):
        return 130
    return 1 if report.to_dict().get("finding") else 0
