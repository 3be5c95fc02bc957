"""Logs of ``strace -f``: system calls of whole process trees, without accesses."""

from __future__ import annotations

from pathlib import Path

from polymmu.workload.model import Workload
from polymmu.workload.plugins import hookimpl
from polymmu_strace.log import looks_like_strace, read_log

__all__ = ["read_workload"]


@hookimpl
def read_workload(path: Path, head: bytes) -> Workload | None:
    """A text whose first lines are strace's."""
    return read_log(path) if looks_like_strace(head) else None
