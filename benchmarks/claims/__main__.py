"""``python -m benchmarks claims [MACHINE...]``: measure the claims, print, write or check their page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.claims import CLAIMS
from benchmarks.claims.machines import MACHINES
from benchmarks.claims.model import FULL, Claim
from benchmarks.claims.page import Measured, page
from polymmu.errors import UserMistake

__all__ = ["PAGE", "main"]

PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
FINE, STALE, MISTAKE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks claims", description=__doc__)
    parser.add_argument("machines", nargs="*", metavar="MACHINE", help=f"default: {', '.join(MACHINES)}")
    parser.add_argument("--only", action="append", metavar="CLAIM", choices=list(CLAIMS), help="this claim")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print the result")
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument("--write", action="store_true", help="write docs/claims.md")
    whole.add_argument(
        "--check", action="store_true", help="say whether docs/claims.md is up to date; 1 if not"
    )
    options = parser.parse_args(argv)
    if (options.write or options.check) and (options.machines or options.only):
        parser.error("docs/claims.md is about every machine and claim: leave MACHINE and --only out")
    try:
        measured = [
            (claim, measure(claim, options.machines or MACHINES))
            for name, claim in CLAIMS.items()
            if not options.only or name in options.only
        ]
    except UserMistake as mistake:
        print(f"claims: {mistake}", file=sys.stderr)
        return MISTAKE
    if options.format == "json":
        told = [claim.to_dict(name, rows) for claim, each in measured for name, rows in each.items()]
        print(json.dumps({"schema": 1, "claims": told}, indent=2))
        return FINE
    text = page(measured)
    if options.check:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
            return FINE
        print(f"{PAGE} is out of date; run python -m benchmarks claims --write", file=sys.stderr)
        return STALE
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return FINE


def measure(claim: Claim, machines: Sequence[str]) -> Measured:
    """The claim's rows on each machine."""
    print(f"claims: {claim.name} ...", file=sys.stderr, flush=True)
    return {name: claim.measure(name, FULL) for name in machines}


if __name__ == "__main__":
    sys.exit(main())
