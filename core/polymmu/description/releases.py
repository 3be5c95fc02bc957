"""Releases of Linux: rows of names, one algorithm for each axis of the ``kernel:`` section.

A row is a file of an installed package (group ``polymmu.releases``), named after its release. A machine that names one
has the row laid under its own ``kernel:`` section, so that what the machine says wins. Core has no row: what nobody
says is core's own choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import attrs
from attrs import field

from polymmu.description import rules
from polymmu.description.convert import convert
from polymmu.description.installed import release_files
from polymmu.description.mistakes import Place, Problems, unknown
from polymmu.description.model import KernelChoice, doc
from polymmu.description.overlay import merge
from polymmu.description.yaml_source import Mapping, Scalar, parse_yaml, read_text

__all__ = ["Release", "by_age", "is_row", "load_row", "read_row", "with_release"]

_ROW = re.compile(r"^release\s*:", re.MULTILINE)


def _check_row(release: object, attribute: object, kernel: KernelChoice) -> None:
    if kernel.release:
        raise ValueError("names another release; a row stands alone")


@attrs.frozen(kw_only=True)
class Release:
    """A row."""

    release: int = field(metadata=doc("version of this format", choices=(1,)))
    summary: str = field(default="", metadata=doc("what came with it"), validator=rules.check_line)
    kernel: KernelChoice = field(metadata=doc("its mm algorithms"), validator=_check_row)


def with_release(tree: Mapping, problems: Problems) -> Mapping:
    """A machine's ``tree`` with the row of the release that it names, if any, below its ``kernel:`` section."""
    place, kernel = tree.items.get("kernel", (tree.place, None))
    if not isinstance(kernel, Mapping) or "release" not in kernel.items:
        return tree
    name = kernel.items["release"][1]
    if not isinstance(name, Scalar) or not name.text:
        return tree  # the converter says what is wrong with it
    files = release_files()
    if name.text not in files:
        problems.add(name.place, f"kernel.release: {unknown('release', name.text, by_age(files))}")
        return tree
    path = files[name.text].path
    row = read_row(read_text(path, str(path)), str(path), problems)
    if row is None:
        return tree
    return Mapping(tree.place, {**tree.items, "kernel": (place, merge(row[1], kernel, problems, "kernel."))})


def by_age(names: Iterable[str]) -> list[str]:
    """Releases in order: 2.6.9 before 2.6.10."""
    return sorted(names, key=lambda name: ([int(number) for number in re.findall("[0-9]+", name)], name))


def is_row(filename: str) -> bool:
    """Whether a file says that it is a release's."""
    return _ROW.search(read_text(Path(filename), filename)) is not None


def load_row(filename: str) -> Release:
    """The row in a file. Raises ``Mistakes``."""
    problems = Problems()
    row = read_row(read_text(Path(filename), filename), filename, problems)
    problems.finish()
    assert row is not None  # or there would have been a problem
    return row[0]


def read_row(text: str, filename: str, problems: Problems) -> tuple[Release, Mapping] | None:
    """The row in ``text``, and its ``kernel:`` section as written; None with ``problems`` saying why not."""
    tree = parse_yaml(text, filename, problems)
    if not isinstance(tree, Mapping):
        place = Place(filename, 1, 1) if tree is None else tree.place
        problems.fail(place, "the file of a release is a mapping: lines of 'key: value'")
    row = convert(Release, tree, problems)
    kernel = tree.items.get("kernel", (tree.place, None))[1]
    return (row, kernel) if row is not None and isinstance(kernel, Mapping) else None
