"""Run mutants, each in a process of its own, and tell who killed it."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

import attrs

from tests.mutants.killers import Endless, find, killers_of
from tests.mutants.overlay import ROOT, Row, install, rows

__all__ = ["PAGE", "Verdict", "alike", "judge", "page", "report", "sampled"]

PAGE = ROOT / "docs" / "mutants.md"
CPU_SECONDS = 30
"""Within so much CPU time a mutant must be killed."""
COMPILING = Endless.__name__, "RuntimeError: no compiled object"
"""What a killer also finds whose patience ends while kernels are compiled."""


@attrs.frozen
class Verdict:
    """What became of a mutant. ``killer`` and ``found``: who, and how; empty: nobody noticed."""

    row: Row
    killer: str
    found: str
    seconds: float


def judge(row: Row) -> Verdict:
    """Run one mutant in a new process. RuntimeError where it could not be run at all.

    A killer that came to no end must come to one on the source as it is. In a new clone it does not, for kernels are
    compiled in that time; each try leaves more of them compiled.
    """
    while True:
        verdict = _judged(row)
        if not verdict.found.startswith(COMPILING) or not _finds_anyway(verdict.killer):
            return verdict


def _finds_anyway(killer: str) -> bool:
    """Whether ``killer`` finds something where nothing was changed."""
    program = f"import sys; from tests.mutants.killers import find; sys.exit(bool(find({killer!r})))"
    return bool(subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT).returncode)


def _judged(row: Row) -> Verdict:
    program = f"from tests.mutants.table import report; report({row.name!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode == -signal.SIGXCPU:  # in something that no signal handler reaches
        return Verdict(row, "", "", float(CPU_SECONDS))
    if done.returncode:
        raise RuntimeError(f"{row.name} could not be run:\n{done.stderr}")
    return Verdict(row, *json.loads(done.stdout.splitlines()[-1]))


def report(name: str) -> None:
    """Change this process, which has imported nothing of polymmu, ask one killer after another, and print a line of
    JSON: who found something, what, and the CPU seconds."""
    row = rows()[name]
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS + 5, CPU_SECONDS + 10))
    install(row)
    by = found = ""
    for killer in killers_of(row):
        found = find(killer)
        if found:
            by = killer
            break
        if time.process_time() > CPU_SECONDS:
            break
    print(json.dumps([by, found, time.process_time()]))


def sampled(n: int) -> list[Row]:
    """``n`` mutants, evenly from all that the page says are killed."""
    text = PAGE.read_text(encoding="utf-8")
    able = [row for row in rows().values() if f"| {row.name} |" in text]
    return able[:: max(len(able) // n, 1)][:n]


# ------------------------------------------------------------------ the page
HEAD = """\
# Mutants

Made by `python -m tests.mutants`; do not edit.

Each row is a single change to the source of the core or of an architecture ([rows](../tests/mutants/rows)), made in
memory and run in a process of its own until somebody notices: the explorer on the scenarios of
[tests/explore/general](../tests/explore/general) and on the gallery's fixed variants (`explore`, `random`, `gallery`),
random correct work under the referee (`timed`, `run`), random programs whose contents a model foretells
(`differential`), the [conformance kit](conformance.md) (`kit`). All of them together have 30 seconds of CPU time for
it. The seconds are one run's, with the import of everything.

What breaks hooks' answers instead is in [mutations.md](mutations.md).
"""


def page(verdicts: Sequence[Verdict]) -> str:
    """docs/mutants.md."""
    killed = [verdict for verdict in verdicts if verdict.killer]
    left = [verdict for verdict in verdicts if not verdict.killer]
    share = 100 * len(killed) / len(verdicts)
    parts = [HEAD, f"{len(verdicts)} mutants; {len(killed)} killed ({share:.1f} %).\n"]
    for where, mine in _by_place(killed):
        parts.append(f"## {where}\n")
        parts.append("| mutant | what it breaks | killed by | found | s |\n|---|---|---|---|---:|")
        parts += [
            f"| {each.row.name} | {each.row.breaks} | {each.killer} | {_short(each.found)} | {each.seconds:.1f} |"
            for each in mine
        ]
        parts.append("")
    if left:
        parts.append("## Not noticed\n")
        parts.append("| mutant | what it breaks |\n|---|---|")
        parts += [f"| {each.row.name} | {each.row.breaks} |" for each in left]
        parts.append("")
    return "\n".join(parts)


def _by_place(verdicts: Iterable[Verdict]) -> Iterator[tuple[str, list[Verdict]]]:
    places: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        places.setdefault(verdict.row.file, []).append(verdict)
    yield from places.items()


def _short(found: str) -> str:
    """The rule that was broken, or else the beginning of what was said."""
    rule = re.match(r"INV-[A-Z]+", found)
    return rule[0] if rule else found[:60].replace("|", "\\|").strip()


def alike(one: str, other: str) -> bool:
    """Whether two pages say the same but for seconds."""
    return _without_seconds(one) == _without_seconds(other)


def _without_seconds(text: str) -> str:
    return re.sub(r"\| \d+\.\d \|$", "|", text, flags=re.MULTILINE)
