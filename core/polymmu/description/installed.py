"""The machines that come with installed distributions: packages of YAML files, group ``polymmu.machines``.

A machine's name is its file's name. Finding them reads no file and imports nothing but the packages.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from types import ModuleType

import attrs

from polymmu import plugins
from polymmu.errors import UserMistake

__all__ = ["GROUP", "SUFFIX", "MachineFile", "machine_files"]

GROUP = "polymmu.machines"
SUFFIX = ".yaml"


@attrs.frozen
class MachineFile:
    """Where a machine is described, and which distribution brought it."""

    path: Path
    distribution: str
    version: str


def machine_files() -> dict[str, MachineFile]:
    """All installed machines, by name. Raises ``UserMistake`` where two distributions bring one name."""
    found: dict[str, MachineFile] = {}
    for row in plugins.installed(GROUP).values():
        for path in _files_of(row):
            file = MachineFile(path, row.distribution, row.version)
            other = found.setdefault(path.stem, file)
            if other is not file:
                raise UserMistake(
                    f"machine '{path.stem}' comes twice, with {other.distribution} {other.version} and "
                    f"with {file.distribution} {file.version}; uninstall one of them"
                )
    return dict(sorted(found.items()))


def _files_of(row: plugins.Installed) -> list[Path]:
    package = plugins.load(row)
    directory = importlib.resources.files(package) if isinstance(package, ModuleType) else None
    if not isinstance(directory, Path):
        raise UserMistake(
            f"'{row.entry_point.value}' is not a package of files on disk",
            place=f"entry point '{row.name}' of {row.distribution} {row.version} in '{GROUP}'",
        )
    return sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)
