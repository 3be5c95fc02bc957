"""``polymmu run MACHINE WORKLOAD``: run a workload or scenario on a machine and print what its memory did."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from polymmu.cli import common

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "run", help="run a workload on a machine, print a report", description=__doc__
    )
    parser.add_argument("machine", metavar="MACHINE", help="an installed machine's name, or a YAML file")
    parser.add_argument(
        "workload", metavar="WORKLOAD", help="a lackey log, strace log, access trace or scenario"
    )
    parser.add_argument("--variant", metavar="NAME", help="which variant of a scenario (default: fixed)")
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
        "--driver",
        choices=("solo", "timed"),
        default=None,
        help="who picks the next CPU (default: solo for one thread, timed for several and for a scenario)",
    )
    parser.add_argument(
        "--sanitize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="have a referee name every broken invariant of the mm core (default: for scenarios)",
    )


def is_finding(value: Mapping[str, Any]) -> bool:
    """Whether a report says something that should not be so."""
    return bool(value.get("finding") or value["violations"])


def run(options: argparse.Namespace) -> int:
    """Run it."""
    from polymmu.api import Machine
    from polymmu.workload.readers import open_any

    workload = open_any(options.workload)
    machine = Machine.to_run(
        options.machine,
        workload,
        sets=common.sets_of(options),
        driver=options.driver,
        sanitize=options.sanitize,
        variant=options.variant,
    )
    with common.progress(options, machine.name) as update:
        report = machine.run(workload, ignore_mm_calls=options.ignore_mm_calls, progress=update)
    common.emit(options, report.to_dict(), lambda: str(report))
    if report.to_dict().get("partial"):
        return 130
    return 1 if is_finding(report.to_dict()) else 0
