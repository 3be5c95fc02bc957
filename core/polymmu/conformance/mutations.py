"""The mutation table: break every hook of an architecture in turn, and say which check notices.

    python -m polymmu.conformance.mutations [ARCH...] [--output FILE]

A broken arch is the resolved one with one function replaced; nothing of the process changes. The checks run in order
on each machine of the arch that differs in the arch's own section, until one fails. A breakage that nothing notices
must have a reason in ``MAY_SURVIVE``; any other survivor is a hole in the kit.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import attrs

from polymmu import defaults, registry
from polymmu.conformance import GROUPS
from polymmu.conformance.bench import Bench, plain_machine
from polymmu.conformance.breakages import Breakage, breakages_of, is_empty
from polymmu.conformance.checks import Check, checks_of
from polymmu.conformance.run import attempt
from polymmu.conformance.survivors import MAY_SURVIVE, NEEDS
from polymmu.description.load import installed_machines
from polymmu.errors import UserMistake

__all__ = ["Row", "benches_of", "main", "page", "rows_of"]

PATIENCE_SECONDS = 10.0
"""No check takes a second; a broken hook that makes one run this long (of CPU time) has made it endless."""


@attrs.frozen
class Row:
    """One breakage and what became of it: ``caught_by`` a check, or, ``reason``, why nothing could notice."""

    arch: str
    hook: str
    breakage: str
    caught_by: str = ""
    reason: str = ""

    @property
    def survived(self) -> bool:
        """Whether it is a hole in the kit."""
        return not self.caught_by and not self.reason


def benches_of(arch: str, sets: Sequence[Sequence[str]] = ((),)) -> list[Bench]:
    """The installed machines of ``arch`` that differ in its own section, the plain one first, and the plain one with
    each of ``sets`` applied. Machines that only translate, and run no programs, are left out."""
    plain = plain_machine(arch)
    wanted = [(plain, each) for each in sets] + [
        (row.name, ()) for row in installed_machines() if row.arch == arch
    ]
    benches: list[Bench] = []
    for name, each in wanted:
        bench = Bench.of(arch, name, each)
        if all(bench.section != other.section for other in benches) and runs_programs(bench):
            benches.append(bench)
    return benches


def runs_programs(bench: Bench) -> bool:
    """Whether a machine can be built of it."""
    try:
        bench.world()
    except UserMistake:
        return False
    return True


def rows_of(benches: Sequence[Bench], hooks: Sequence[str] = ()) -> Iterator[Row]:
    """Break the hooks of the arch that ``benches`` have in common; ``hooks``: only these.

    Checks that fail on the unbroken arch take no part.
    """
    arch = benches[0].arch
    sound = [
        (bench, [row for row in all_checks() if attempt(row[1], bench)[0] == "passed"]) for bench in benches
    ]
    for breakage in breakages_of(arch):
        if hooks and breakage.hook not in hooks:
            continue
        original = getattr(arch.ops, breakage.hook)
        default = getattr(defaults, breakage.hook, None)
        other = breakage.text == "left out" and default is not None and not is_empty(default)
        if is_empty(arch.implementations[breakage.hook]) and not other:
            yield Row(arch.name, breakage.hook, breakage.text, reason="the arch's own does nothing either")
            continue
        applies, otherwise = NEEDS.get((breakage.hook, breakage.text), (None, ""))
        if applies is not None and not any(map(applies, benches)):
            yield Row(arch.name, breakage.hook, breakage.text, reason=otherwise)
            continue
        broken = breakage.make(original)
        caught = next(
            filter(None, (caught_on(bench, checks, breakage, broken) for bench, checks in sound)), ""
        )
        reason = "" if caught else MAY_SURVIVE.get((breakage.hook, breakage.text), "")
        if not (caught or reason) and not vars(broken).get("took_effect", True):
            reason = "it changes nothing on the machines checked"
        yield Row(arch.name, breakage.hook, breakage.text, caught, reason)


def all_checks() -> Iterator[tuple[str, Check]]:
    """Every check with its group's name."""
    for group in GROUPS:
        for name, check in checks_of(group):
            yield f"{group.__name__}.{name}", check


def caught_on(
    bench: Bench, checks: Sequence[tuple[str, Check]], breakage: Breakage, broken: Callable[..., object]
) -> str:
    """The first check that fails on ``bench`` with the broken hook; empty if none does."""
    wrong = bench.with_hook(breakage.hook, broken)
    for name, check in checks:
        with patience():
            if attempt(check, wrong)[0] == "failed":
                return name
    return ""


class Endless(Exception):
    """A check did not come to an end."""


@contextmanager
def patience() -> Iterator[None]:
    """End a check that a broken hook made endless."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Endless(f"no end within {PATIENCE_SECONDS:.0f} seconds")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


HEAD = """\
# The mutation table

Made by `python docs/mutations.py`; do not edit.

Every hook that an architecture implements is left out (the default then answers) or done wrong in turn, and the
[conformance kit](conformance.md) is run until a check fails. The table names that check. A breakage that no check can
notice is listed with its reason; hooks that an architecture leaves to the defaults are not broken.
"""


def page(rows: Sequence[Row]) -> str:
    """The table as a page: one section per arch."""
    parts = [HEAD]
    for arch in dict.fromkeys(row.arch for row in rows):
        mine = [row for row in rows if row.arch == arch]
        caught = [row for row in mine if row.caught_by]
        other = [row for row in mine if not row.caught_by]
        hooks = len({row.hook for row in mine})
        parts.append(f"## {arch}\n")
        parts.append(f"{hooks} hooks broken in {len(mine)} ways; {len(caught)} caught.\n")
        parts.append("| hook | breakage | caught by |\n|---|---|---|")
        parts += [f"| {row.hook} | {row.breakage} | {row.caught_by} |" for row in caught]
        if other:
            parts.append("\n| not applicable: hook | breakage | reason |\n|---|---|---|")
            parts += [f"| {row.hook} | {row.breakage} | {row.reason or '**SURVIVED**'} |" for row in other]
        parts.append("")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the table; 1 if a breakage survived without a reason."""
    parser = argparse.ArgumentParser(prog="python -m polymmu.conformance.mutations", description=__doc__)
    parser.add_argument(
        "arches", nargs="*", metavar="ARCH", help="default: the architectures of this distribution"
    )
    parser.add_argument("--output", metavar="FILE", help="write the page to FILE instead of stdout")
    options = parser.parse_args(arguments)
    known = registry.installed_arches()
    names = options.arches or [name for name, row in known.items() if row.distribution == "polymmu"]
    rows = [row for name in names for row in rows_of(benches_of(name))]
    text = page(rows)
    if options.output is None:
        print(text)
    else:
        Path(options.output).write_text(text, encoding="utf-8")
    survivors = [row for row in rows if row.survived]
    for row in survivors:
        print(f"{row.arch}: {row.hook} {row.breakage}: nothing noticed", file=sys.stderr)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
