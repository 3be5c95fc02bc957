"""``polymmu conformance``: the conformance kit against an installed architecture, one line per check."""

from __future__ import annotations

import argparse
from typing import Any

import attrs

from polymmu.cli import common

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "conformance", help="check an architecture against the conformance kit", description=__doc__
    )
    parser.add_argument("arch", metavar="ARCH", help="an installed architecture")
    parser.add_argument(
        "--machine", default="", metavar="M", help="check it on this machine (default: its plain one)"
    )
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="NAME",
        help="only checks or groups whose name contains NAME (repeatable)",
    )
    common.add_sets(parser)
    common.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the checks; 1 if one of them failed."""
    from polymmu import conformance
    from polymmu.cli.listings import table
    from polymmu.errors import UserMistake

    bench = conformance.Bench.of(options.arch, options.machine, common.sets_of(options))
    outcomes = []
    with common.progress(options, options.arch) as update:
        for outcome in conformance.run(bench, conformance.GROUPS, options.check):
            outcomes.append(outcome)
            if update is not None:
                update(
                    len(outcomes),
                    sum(1 for group in conformance.GROUPS for _ in conformance.checks_of(group)),
                )
    if not outcomes:
        raise UserMistake(f"no check is called like {', '.join(options.check)}; without --check all are run")
    rows = [attrs.asdict(outcome) for outcome in outcomes]
    counts = {
        status: sum(row["status"] == status for row in rows) for status in ("passed", "failed", "skipped")
    }
    value = {
        "schema": 1,
        "arch": bench.arch.name,
        "machine": bench.description.name,
        "deviations": list(bench.deviations),
        **counts,
        "checks": rows,
    }
    text = "\n".join([table(rows), ", ".join(f"{n} {status}" for status, n in counts.items())])
    common.emit(options, value, lambda: text)
    return 1 if counts["failed"] else 0
