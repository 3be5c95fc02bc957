"""python -m tests.mutants [--check] [NAME...]

Without names: all of them, and docs/mutants.md is written (``--check``: compared). With names: these, printed.
Exit status 1 if a mutant survived, or the page is out of date.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.mutants.overlay import rows
from tests.mutants.table import PAGE, alike, judge, page


def main(arguments: Sequence[str]) -> int:
    """See the top of the module."""
    names = [word for word in arguments if word != "--check"]
    verdicts = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each thread waits for a process
        for verdict in pool.map(judge, [rows()[name] for name in names] if names else rows().values()):
            verdicts.append(verdict)
            killer = verdict.killer or "SURVIVED"
            print(
                f"{verdict.row.name:32} {verdict.seconds:5.1f} s  {killer}  {verdict.found[:100]}", flush=True
            )
    text = page(verdicts)
    stale = False
    if not names:
        if "--check" in arguments:
            stale = not PAGE.exists() or not alike(PAGE.read_text(encoding="utf-8"), text)
        else:
            PAGE.write_text(text, encoding="utf-8")
    if stale:
        print(f"{PAGE} is out of date; run python -m tests.mutants", file=sys.stderr)
    return 1 if stale or not all(verdict.killer for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
