"""Run the kit without pytest: every check of every group, each on machines of its own, one line per outcome."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from polymmu.conformance.bench import Bench, NotApplicable
from polymmu.conformance.checks import Check, Checks, checks_of
from polymmu.errors import PolymmuError

__all__ = ["Outcome", "attempt", "run"]


@attrs.frozen
class Outcome:
    """How a check of a group came out. ``status``: passed, failed or skipped; ``reason``: why, one line."""

    group: str
    check: str
    status: str
    reason: str = ""


def run(bench: Bench, groups: Sequence[type[Checks]], names: Sequence[str] = ()) -> Iterator[Outcome]:
    """The outcomes one by one. ``names``: only checks or groups whose names contain one of these."""
    for group in groups:
        for name, check in checks_of(group):
            if not names or any(each in (name, group.__name__) or each in name for each in names):
                status, reason = attempt(check, bench)
                yield Outcome(group.__name__, name, status, reason)


def attempt(check: Check, bench: Bench) -> tuple[str, str]:
    """One check's status and reason; whatever it raises is a failure that is told in one line."""
    try:
        check(bench)
    except NotApplicable as skip:
        return "skipped", str(skip)
    except (AssertionError, PolymmuError) as failure:
        return "failed", one_line(failure)
    except Exception as failure:
        last = traceback.extract_tb(failure.__traceback__)[-1]
        text = f"{type(failure).__name__}: {one_line(failure)} ({Path(last.filename).name}:{last.lineno})"
        return "failed", text
    return "passed", ""


def one_line(error: BaseException) -> str:
    """The first line of what an exception says, or its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0]
