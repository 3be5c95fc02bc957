"""Valgrind's lackey: reads its logs, and records programs with it.

``log`` understands the text, ``record`` runs valgrind. Nothing here is imported before a file looks like a
lackey log or a recording is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polymmu.workload.model import Workload
from polymmu.workload.plugins import hookimpl

__all__ = ["read_workload", "record_workload"]

_BANNER = re.compile(rb"^==\d+== Lackey", re.MULTILINE)
_FIRST_LINE = re.compile(
    rb"(I  | [LSM] )[0-9a-f]{8,16},\d{1,3}(\n|$)|SYSCALL\[\d+,\d+\]\(|--\d+--   SCHED\[\d+\]:"
)


@hookimpl
def read_workload(path: Path, head: bytes) -> Workload | None:
    """A log with lackey's banner, or whose first line that says anything is one of lackey's."""
    start = re.match(rb"(==\d+==[^\n]*\n|\s*\n)*", head)
    if not (_BANNER.search(head) or _FIRST_LINE.match(head, start.end() if start else 0)):
        return None
    from polymmu_lackey.log import read_log

    return read_log(path)


@hookimpl
def record_workload(out: Path, argv: Sequence[str]) -> Mapping[str, Any]:
    """Runs ``argv`` under valgrind and writes its trace."""
    from polymmu_lackey.record import record

    return record(out, argv)
