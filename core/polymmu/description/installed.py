"""The machines and scenarios that come with installed distributions: packages of YAML files.

Groups ``polymmu.machines`` and ``polymmu.scenarios``; a machine's name is its file's name, and so is a scenario's.
Finding them reads no file and imports nothing but the packages.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from types import ModuleType

import attrs

from polymmu import plugins
from polymmu.errors import UserMistake

__all__ = ["GROUP", "SCENARIO_GROUP", "SUFFIX", "InstalledFile", "machine_files", "scenario_files"]

GROUP = "polymmu.machines"
SCENARIO_GROUP = "polymmu.scenarios"
SUFFIX = ".yaml"


@attrs.frozen
class InstalledFile:
    """Where a machine or scenario is described, and which distribution brought it."""

    path: Path
    distribution: str
    version: str


def machine_files() -> dict[str, InstalledFile]:
    """All installed machines, by name. Raises ``UserMistake`` where two distributions bring one name."""
    return _installed("machine", GROUP)


def scenario_files() -> dict[str, InstalledFile]:
    """All installed scenarios, likewise."""
    return _installed("scenario", SCENARIO_GROUP)


def _installed(kind: str, group: str) -> dict[str, InstalledFile]:
    found: dict[str, InstalledFile] = {}
    for row in plugins.installed(group).values():
        for path in _files_of(row, group):
            file = InstalledFile(path, row.distribution, row.version)
            other = found.setdefault(path.stem, file)
            if other is not file:
                raise UserMistake(
                    f"{kind} '{path.stem}' comes twice, with {other.distribution} {other.version} and "
                    f"with {file.distribution} {file.version}; uninstall one of them"
                )
    return dict(sorted(found.items()))


def _files_of(row: plugins.Installed, group: str) -> list[Path]:
    package = plugins.load(row)
    directory = importlib.resources.files(package) if isinstance(package, ModuleType) else None
    if not isinstance(directory, Path):
        raise UserMistake(
            f"'{row.entry_point.value}' is not a package of files on disk",
            place=f"entry point '{row.name}' of {row.distribution} {row.version} in '{group}'",
        )
    return sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)
