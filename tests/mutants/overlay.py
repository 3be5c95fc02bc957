"""A mutant: one module with one piece of its text replaced, and nothing of it on disk.

The changed text is compiled by whoever imports the module; no file is written, neither source nor bytecode. A module
with compiled kernels is refused: numba keeps its compiled code by the file, and would mix the two up.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import attrs
import yaml

__all__ = ["ROOT", "Row", "install", "rows"]

ROOT = Path(__file__).parents[2]
TABLES = Path(__file__).parent / "rows"
COMPILES = ("@step", "@kernel", "njit")


@attrs.frozen(kw_only=True)
class Row:
    """One change. ``old`` stands in ``file`` exactly once; ``breaks``: what goes wrong then; ``by``: the killers to
    try first."""

    name: str
    file: str
    old: str
    new: str
    breaks: str
    by: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The module's name."""
        parts = Path(self.file).with_suffix("").parts[1:]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def arch(self) -> str:
        """The architecture whose plugin it is in; empty for the core."""
        top, package = Path(self.file).parts[:2]
        return package.removeprefix("polymmu_") if top == "arches" else ""

    def text(self) -> str:
        """The module's text with the change made. ValueError where it cannot be."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: the text to replace stands {text.count(self.old)} times in {self.file}"
            )
        if any(mark in text for mark in COMPILES):
            raise ValueError(f"{self.name}: {self.file} has compiled kernels, which are cached by file")
        return text.replace(self.old, self.new)


def rows() -> dict[str, Row]:
    """Every mutant by its name, in the order of the tables."""
    found: dict[str, Row] = {}
    for path in sorted(TABLES.glob("*.yaml")):
        for file, changes in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            for change in changes:
                by = tuple(change.pop("by", "").split())
                row = Row(file=file, by=by, **change)
                assert row.name not in found, f"two mutants are called {row.name}"
                found[row.name] = row
    return found


class _Changed(importlib.machinery.SourceFileLoader):
    """Loads the changed text in place of the file's."""

    def __init__(self, row: Row) -> None:
        super().__init__(row.module, str(ROOT / row.file))
        self.row = row

    def get_code(self, fullname: str) -> types.CodeType:
        code: types.CodeType = compile(self.row.text(), self.path, "exec")
        return code


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, row: Row) -> None:
        self.row = row

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.row.module:
            return None
        file = ROOT / self.row.file
        below = [str(file.parent)] if file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            fullname, file, loader=_Changed(self.row), submodule_search_locations=below
        )


def install(row: Row) -> None:
    """From now on this process has the mutant in place of the module, which it must not have imported yet."""
    assert row.module not in sys.modules, f"{row.module} was imported before it could be changed"
    row.text()
    sys.meta_path.insert(0, _Finder(row))
