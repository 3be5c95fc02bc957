"""Which file is what: by content, never by its suffix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polymmu.description.load_scenario import ScenarioFile, has_scenario, is_scenario, load_scenario
from polymmu.errors import UserMistake
from polymmu.workload.model import Workload
from polymmu.workload.npz import NPZ_MAGIC, read_npz
from polymmu.workload.parquet import PARQUET_MAGIC, read_parquet
from polymmu.workload.plugins import ask_readers
from polymmu.workload.source import Source

__all__ = ["open_any", "open_workload"]


def open_any(name_or_path: str | Path) -> Workload | ScenarioFile:
    """The workload or scenario in a file, or the installed scenario of that name. Raises ``UserMistake``."""
    return load_scenario(str(name_or_path)) if is_scenario(str(name_or_path)) else open_workload(name_or_path)


def open_workload(path: str | Path, plugins: Sequence[tuple[str, object]] | None = None) -> Workload:
    """The workload in the file ``path``.

    ``plugins`` are (name, module) pairs asked for text formats, by default those installed. Raises
    ``UserMistake`` with one line for a file that is missing, damaged, or nobody's format.
    """
    path = Path(path)
    if path.is_dir():
        raise UserMistake("is a directory; name one trace file", place=str(path))
    head = Source(path).head()
    if not head:
        raise UserMistake("is empty; record it again", place=str(path))
    if head.startswith(NPZ_MAGIC):
        return read_npz(path)
    if head.startswith(PARQUET_MAGIC):
        return read_parquet(path)
    workload = ask_readers(path, head, plugins)
    if workload is not None:
        return workload
    if has_scenario(head):
        raise UserMistake("is a scenario, not a trace; polymmu run MACHINE FILE runs it", place=str(path))
    raise UserMistake(
        "is no workload that can be read (lackey log, strace log, mmtrace npz, Parquet); "
        "polymmu record makes one",
        place=str(path),
    )
