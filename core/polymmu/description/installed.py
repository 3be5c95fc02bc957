"""The machines, scenarios and releases that come with installed distributions: packages of YAML files.

Groups ``polymmu.machines``, ``polymmu.scenarios`` and ``polymmu.releases``; the name of each is its file's name.
Finding them reads no file and imports nothing but the packages.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from types import ModuleType

import attrs

from polymmu import plugins
from polymmu.errors import UserMistake

__all__ = [
    "GROUP",
    "RELEASE_GROUP",
    "SCENARIO_GROUP",
    "SUFFIX",
    "InstalledFile",
    "machine_files",
    "release_files",
    "scenario_files",
]

GROUP = "polymmu.machines"
SCENARIO_GROUP = "polymmu.scenarios"
RELEASE_GROUP = "polymmu.releases"
SUFFIX = ".yaml"


@attrs.frozen
class InstalledFile:
    """Where a machine, scenario or release is described, and which distribution brought it."""

    path: Path
    distribution: str
    version: str


def machine_files() -> dict[str, InstalledFile]:
    """All installed machines, by name. Raises ``UserMistake`` where two distributions bring one name."""
    return _installed("machine", GROUP)


def scenario_files() -> dict[str, InstalledFile]:
    """All installed scenarios, likewise."""
    return _installed("scenario", SCENARIO_GROUP)


def release_files() -> dict[str, InstalledFile]:
    """All releases of Linux that installed packages have a row for, likewise."""
    return _installed("release", RELEASE_GROUP)


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
