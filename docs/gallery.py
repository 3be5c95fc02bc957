"""Make docs/gallery.md: every known bug of the gallery with what the explorer really says of it.

python docs/gallery.py             writes the page
python docs/gallery.py --check     compares it; exit status 1 if it is out of date
python docs/gallery.py NAME...     prints the parts of these entries

It explores, so it takes minutes and is not part of docs/make.py; a test marked slow makes the comparison.
"""

from __future__ import annotations

import sys
from pathlib import Path

import attrs

import polymmu
from polymmu import registry
from polymmu.description.installed import scenario_files
from polymmu.description.load_scenario import ScenarioFile, load_scenario
from polymmu.exploration.columns import told_text
from polymmu.exploration.explorer import Limits

PAGE = Path(__file__).parent / "gallery.md"
PATIENT = Limits(seconds=3600)
"""Executions count, not seconds: the page is the same wherever it is made."""

HEAD = """\
# The gallery: bugs that were, and what the explorer says of them

Made by `python docs/gallery.py` from the scenarios and from what `polymmu explore` found; do not edit. Each entry has
two variants. The buggy one is a small named deviation of the mm core (or of an architecture) and breaks a rule; its
cure is exhausted. The numbers are executions on the machine that the entry below names: until a violation, by source
sets alone and by the portfolio (`fair` and `pct` come first there), and to the end of the cure.

| entry | what goes wrong | rule | where | dpor | portfolio | cure |
|---|---|---|---|---|---|---|
"""


@attrs.frozen
class Entry:
    """One scenario and what was found."""

    file: ScenarioFile
    arches: tuple[str, ...]
    line: str
    shown: str


def entry_of(file: ScenarioFile) -> Entry:
    """Explore both variants on the first architecture."""
    scenario = file.scenario
    everywhere = tuple(name for name in registry.installed_arches() if is_ours(name))
    arches = scenario.arches or everywhere
    machine = "x86_64" if "x86_64" in arches else arches[0]
    found = polymmu.explore(file, machine, variant="buggy", limits=PATIENT)
    verdict = found.verdict
    assert found.broken is not None, f"{scenario.name} on {machine}: nothing is wrong"
    assert verdict.outcome is not None
    cure = polymmu.explore(file, machine, variant="fixed", strategy="dpor", limits=PATIENT).verdict
    where = "everywhere" if arches == everywhere else ", ".join(arches)
    by_dpor = "no end"
    if scenario.invariant != "INV-PROG":
        alone = polymmu.explore(file, machine, variant="buggy", strategy="dpor", limits=PATIENT).verdict
        by_dpor = str(alone.executions) if alone.verdict == "violation" else alone.verdict
    line = (
        f"| [{scenario.name}](#{scenario.name}) | {scenario.summary} | {scenario.invariant} | {where} | {by_dpor} | "
        f"{verdict.executions} ({verdict.strategy}) | {cure.verdict}, {cure.executions} |\n"
    )
    shown = "\n".join(
        [
            f"## {scenario.name}\n",
            f"{reason(file)}\n",
            f"    $ polymmu explore {scenario.name} --machine {machine} --variant buggy\n",
            *indented(verdict.outcome.finding),
            "",
            *indented("\n".join(told_text(found.broken.told))),
            "",
        ]
    )
    return Entry(file, arches, line, shown)


def is_ours(arch: str) -> bool:
    """Whether an architecture comes with polymmu."""
    return registry.arch_named(arch).distribution == "polymmu"


def reason(file: ScenarioFile) -> str:
    """What the file says before its first key."""
    lines = Path(file.filename).read_text(encoding="utf-8").splitlines()
    head = lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").strip() for line in head) or file.scenario.summary


def indented(text: str) -> list[str]:
    """As Markdown shows what a program prints."""
    return [f"    {line}".rstrip() for line in text.splitlines()]


def main() -> int:
    """Write, check or print."""
    wanted = [word for word in sys.argv[1:] if word != "--check"]
    names = wanted or [name for name in scenario_files() if name[0].isdigit()]
    entries = [entry_of(load_scenario(name)) for name in names]
    text = HEAD + "".join(entry.line for entry in entries) + "".join(f"\n{entry.shown}" for entry in entries)
    if wanted:
        print(text)
    elif "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is out of date; run python docs/gallery.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
