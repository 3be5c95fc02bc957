"""``python -m benchmarks [NAME...]``: measure, print one table (or JSON) on stdout; 1 if a target is missed.

``python -m benchmarks claims [MACHINE...]`` is another command: ``benchmarks.claims``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.arches import arches
from benchmarks.claims import __main__ as claims
from benchmarks.explore import explore
from benchmarks.explore_split import explore_split
from benchmarks.faults import faults
from benchmarks.growth import growth
from benchmarks.measure import Row
from benchmarks.peers import peers
from benchmarks.process import process
from benchmarks.replay import replay
from benchmarks.sanitizer import sanitizer
from benchmarks.workloads import Lab

__all__ = ["BENCHMARKS", "host", "main", "table"]

BENCHMARKS: dict[str, Callable[[Lab], list[Row]]] = {
    "replay": replay,
    "peers": peers,
    "process": process,
    "faults": faults,
    "arches": arches,
    "growth": growth,
    "sanitizer": sanitizer,
    "explore": explore,
    "explore-split": explore_split,
}
FINE, MISSED, MISTAKE = 0, 1, 2


def host() -> dict[str, Any]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "numba": version("numba"),
    }


def number(value: float | None) -> str:
    """Three digits that mean something."""
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """The rows in columns; a missed target is said in words."""
    lines: list[tuple[str, ...]] = [("what", "figure", "ratio", "target", "")]
    for row in rows:
        ratio = "" if row.ratio is None else f"{number(row.ratio)} x {row.reference}"
        verdict = {None: "", True: "met", False: "MISSED"}[row.is_met]
        target = "" if row.target is None else f"{row.target} {verdict}"
        lines.append((f"{row.what}", f"{number(row.figure)} {row.unit}", ratio, target, row.note))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    out: list[str] = []
    for at, line in enumerate(lines):
        if at and (at == 1 or rows[at - 1].group != rows[at - 2].group):
            out.append(f"-- {rows[at - 1].group}")
        cells = (
            cell.rjust(width) if column == 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        out.append(("  ".join(cells) + "  " + line[4]).rstrip())
    return "\n".join(out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks named, by default all; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["claims"]:
        return claims.main(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print the result")
    parser.add_argument("--rounds", type=int, default=7, help="rounds whose median counts (default: 7)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown or options.rounds < 1:
        wrong = f"unknown benchmark '{unknown[0]}'" if unknown else f"--rounds {options.rounds}"
        print(f"benchmarks: {wrong} (known: {', '.join(BENCHMARKS)}; rounds from 1)", file=sys.stderr)
        return MISTAKE
    lab = Lab(rounds=options.rounds)
    rows: list[Row] = []
    for name in options.names or BENCHMARKS:
        print(f"benchmarks: {name} ...", file=sys.stderr, flush=True)
        rows += BENCHMARKS[name](lab)
    if options.format == "json":
        print(json.dumps({"schema": 1, "host": host(), "rows": [row.to_dict() for row in rows]}, indent=2))
    else:
        print("  ".join(f"{key}: {value}" for key, value in host().items()))
        print(table(rows))
    return MISSED if any(row.is_met is False for row in rows) else FINE


if __name__ == "__main__":
    sys.exit(main())
