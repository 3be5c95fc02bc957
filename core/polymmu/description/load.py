"""Reading machine files: from a name or a path to a checked ``MachineDescription``.

The order: parse the file and whatever it extends, merge, lay ``--set`` over it, lay the row of the release that it
names below, convert. So every check
sees the machine as it will run, and every message points into the file that wrote the value.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from polymmu import plugins
from polymmu.description.convert import convert_machine
from polymmu.description.installed import SUFFIX, InstalledFile, machine_files
from polymmu.description.mistakes import Mistakes, Place, Problems, unknown
from polymmu.description.model import MachineDescription
from polymmu.description.overlay import apply_set, merge, spelt_out
from polymmu.description.plain import sha256_of, to_plain
from polymmu.description.releases import with_release
from polymmu.description.yaml_source import Mapping, Node, Scalar, parse_yaml, read_text
from polymmu.errors import UserMistake

__all__ = [
    "InstalledMachine",
    "Mistakes",
    "installed_machines",
    "is_path",
    "load_machine",
    "load_machine_text",
    "read_text",
    "sha256_of",
    "to_plain",
]

MAX_EXTENDS = 8
_OWN_KEYS = ("name", "summary")
"""What a file says about itself; an extending file does not inherit it."""

SectionClassOf = Callable[[str], type]


def load_machine(
    name_or_path: str,
    *,
    section_class_of: SectionClassOf,
    sets: Sequence[str] = (),
    over: Mapping | None = None,
) -> MachineDescription:
    """The machine of an installed name, or of a YAML file: a path has a ``/`` or ends with ``.yaml``.

    ``section_class_of(arch)`` gives the attrs class of an arch's own section and raises ``UserMistake`` for
    an unknown arch; ``over`` is laid over the file (a scenario's wishes), and over that ``sets``, overrides such as
    ``tlbs.L2.entries=1024``. Raises ``UserMistake``; where it is about the contents it is ``Mistakes``, with all of
    them.
    """
    path = Path(name_or_path) if is_path(name_or_path) else _Reader().find(name_or_path).path
    text = read_text(path, str(path))
    return load_machine_text(
        text, filename=str(path), section_class_of=section_class_of, sets=sets, over=over
    )


def load_machine_text(
    text: str,
    *,
    filename: str,
    section_class_of: SectionClassOf,
    sets: Sequence[str] = (),
    over: Mapping | None = None,
) -> MachineDescription:
    """As ``load_machine``, from text; ``filename`` is for messages and for finding what it extends."""
    reader = _Reader()
    tree = reader.extend(reader.parse(text, filename), filename, ((os.path.realpath(filename), filename),))
    if over is not None:
        tree = merge(tree, _for_this_arch(spelt_out(over), tree), reader.problems)
    tree = apply_set(tree, sets, reader.problems)
    tree = with_release(tree, reader.problems)
    description = convert_machine(tree, section_class_of, reader.problems)
    reader.problems.finish()
    assert description is not None  # or there would have been a problem
    return description


def _for_this_arch(over: Mapping, tree: Mapping) -> Mapping:
    """A scenario's wishes without those for other architectures: one file fits them all."""
    arch = tree.items.get("arch", (None, None))[1]
    others = {*plugins.installed("polymmu.arch")} - {arch.text if isinstance(arch, Scalar) else ""}
    return Mapping(over.place, {key: item for key, item in over.items.items() if key not in others})


@attrs.frozen
class InstalledMachine:
    """One line of ``polymmu machines``. ``summary`` is the reason if the file cannot be read."""

    name: str
    summary: str
    arch: str
    path: Path
    distribution: str
    version: str


def installed_machines() -> list[InstalledMachine]:
    """Every installed machine by name. Raises ``UserMistake`` where two distributions bring one name.

    Files are parsed, not checked; no architecture is imported.
    """
    files = machine_files()
    return [
        InstalledMachine(name, *_summary_and_arch(file, files), file.path, file.distribution, file.version)
        for name, file in files.items()
    ]


def _summary_and_arch(file: InstalledFile, files: dict[str, InstalledFile]) -> tuple[str, str]:
    reader = _Reader(installed=files)
    label = str(file.path)
    try:
        tree = reader.parse(read_text(file.path, label), label)
        tree = reader.extend(tree, label, ((os.path.realpath(label), label),))
    except UserMistake as error:
        return str(error).partition("\n")[0], ""
    return _word(tree, "summary"), _word(tree, "arch")


def _word(tree: Mapping, key: str) -> str:
    node = tree.items[key][1] if key in tree.items else None
    return node.text if isinstance(node, Scalar) else ""


def is_path(text: str) -> bool:
    """Whether ``text`` is a file's path, not an installed name."""
    return "/" in text or os.sep in text or text.endswith((SUFFIX, ".yml"))


@attrs.define
class _Reader:
    """Reads one machine's files; ``problems`` is what was wrong in any of them.

    A chain is the files being read, each with its real path, the one opened first leading.
    """

    problems: Problems = attrs.field(factory=Problems)
    installed: dict[str, InstalledFile] | None = None

    def find(self, name: str) -> InstalledFile:
        """The installed machine ``name``. Raises ``UserMistake``."""
        if self.installed is None:
            self.installed = machine_files()
        if name not in self.installed:
            raise UserMistake(f"{unknown('machine', name, self.installed)}; a file's path ends with {SUFFIX}")
        return self.installed[name]

    def parse(self, text: str, label: str) -> Mapping:
        """The mapping that is the whole of ``text``."""
        node = parse_yaml(text, label, self.problems)
        if node is None:
            self.problems.fail(
                Place(label, 1, 1), "an empty file; a machine needs at least a name and 'extends'"
            )
        if not isinstance(node, Mapping):
            self.problems.fail(node.place, "a machine file is a mapping: lines of 'key: value'")
        return node

    def extend(self, tree: Mapping, label: str, chain: tuple[tuple[str, str], ...]) -> Mapping:
        """``tree`` merged over what its key ``extends`` names."""
        items = dict(tree.items)
        base = Mapping(tree.place, {})
        if "extends" in items:
            base = self._base(items.pop("extends")[1], label, chain)
            base = Mapping(
                base.place, {key: item for key, item in base.items.items() if key not in _OWN_KEYS}
            )
        return merge(base, spelt_out(Mapping(tree.place, items)), self.problems)

    def _base(self, node: Node, label: str, chain: tuple[tuple[str, str], ...]) -> Mapping:
        if not isinstance(node, Scalar) or node.is_null or not node.text.isprintable():
            expected = f"expected a machine's name, or a file's path such as ./base{SUFFIX}"
            self.problems.fail(node.place, f"extends: {expected}")
        try:
            path = Path(label).parent / node.text if is_path(node.text) else self.find(node.text).path
            text = read_text(path, str(path))
        except UserMistake as error:
            self.problems.fail(node.place, f"extends: {error}")
        link = (os.path.realpath(path), str(path))
        names = " -> ".join(name for _, name in (*chain, link))
        if link[0] in (real for real, _ in chain):
            self.problems.fail(node.place, f"extends: goes round in a circle: {names}")
        if len(chain) == MAX_EXTENDS:
            self.problems.fail(node.place, f"extends: more than {MAX_EXTENDS} files: {names}")
        return self.extend(self.parse(text, link[1]), link[1], (*chain, link))
