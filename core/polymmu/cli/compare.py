"""``polymmu compare WORKLOAD MACHINE MACHINE...``: one workload on several machines, side by side."""

from __future__ import annotations

import argparse
from typing import Any

from polymmu.cli import common
from polymmu.cli.run import add_replay, is_finding

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Declare the arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "compare", help="the same workload on several machines, side by side", description=__doc__
    )
    parser.add_argument(
        "workload", metavar="WORKLOAD", help="a lackey log, strace log, access trace or scenario"
    )
    parser.add_argument(
        "machines", metavar="MACHINE", nargs="+", help="installed machines' names, or YAML files"
    )
    add_replay(parser)
    common.add_sets(parser)
    common.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run it."""
    from polymmu import api
    from polymmu.report import compare_dict, compare_text
    from polymmu.workload.readers import open_any

    workload = open_any(options.workload)
    reports = []
    for name in options.machines:
        with common.progress(options, name) as update:
            machine = api.Machine.to_run(
                name,
                workload,
                sets=common.sets_of(options),
                driver=options.driver,
                sanitize=options.sanitize,
            )
            reports.append(machine.run(workload, ignore_mm_calls=options.ignore_mm_calls, progress=update))
        if reports[-1].to_dict().get("partial"):
            break
    common.emit(options, compare_dict(reports), lambda: compare_text(reports))
    if reports[-1].to_dict().get("partial"):
        return 130
    return 1 if any(is_finding(report.to_dict()) for report in reports) else 0
