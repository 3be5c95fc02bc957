"""YAML text as a tree of nodes that remember where they stand.

PyYAML supplies the grammar (its event stream, in its own Python form: libyaml words its complaints
differently); the tree is built here, in one loop without recursion, because a file from a stranger must not
be able to exhaust the stack, expand aliases without bound, or have one key twice. Tags are refused, so no
text can name a Python object. What a scalar means is decided later, where the wanted type is known.

First reading: ``Scalar``, ``Sequence``, ``Mapping`` and the signature of ``parse_yaml``.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import yaml

from polymmu.description.mistakes import Place, Problems, shown
from polymmu.description.scalars import is_null
from polymmu.errors import UserMistake

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_NODES",
    "Mapping",
    "Node",
    "Scalar",
    "Sequence",
    "decode",
    "parse_yaml",
    "read_text",
]

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 20_000
"""Nodes of one file, every alias counted as if written out: ten times a machine of 64 TLBs."""


@attrs.frozen
class Scalar:
    """One word or text; ``plain`` when it stood without quotes."""

    place: Place
    text: str
    plain: bool

    @property
    def is_null(self) -> bool:
        """Whether this is YAML's null."""
        return is_null(self.text, self.plain)


@attrs.frozen
class Sequence:
    """A list."""

    place: Place
    items: tuple[Node, ...]


@attrs.frozen
class Mapping:
    """Keys in the order of the file, each with its own place."""

    place: Place
    items: dict[str, tuple[Place, Node]]


Node = Scalar | Sequence | Mapping

# What YAML's own character set leaves out: control characters, surrogates, a byte order mark inside the text.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read_text(path: Path, label: str) -> str:
    """A file's text. Raises ``UserMistake`` if it cannot be read, is too long, or is not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserMistake(f"cannot be read: {reason}", place=label) from None
    return decode(data, label)


def decode(data: bytes, source: str) -> str:
    """The text of a file's bytes: UTF-8, a byte order mark is dropped. Raises ``Mistakes``."""
    if len(data) > MAX_BYTES:
        Problems().fail(Place(source), "longer than 1 MiB; a machine file is a page or two")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", errors="replace")
        Problems().fail(
            _place_after(before, source), f"byte {data[error.start]:#04x} is not UTF-8; save as UTF-8"
        )


def _place_after(text: str, source: str) -> Place:
    return Place(source, text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1)


def parse_yaml(text: str, source: str, problems: Problems, *, whole: bool = False) -> Node | None:
    """The one document in ``text``, or None if there is none.

    ``source`` names the text in places (``whole``: places carry no line). What can be read past is added to
    ``problems``; what cannot raises ``Mistakes``.
    """

    def place(mark: Any) -> Place:
        return Place(source) if whole else Place(source, mark.line + 1, mark.column + 1)

    if match := _UNPRINTABLE.search(text):
        where = Place(source) if whole else _place_after(text[: match.start()], source)
        problems.fail(
            where, f"character {ord(match[0]):#x} may not stand in YAML; write it as an escape in quotes"
        )
    builder = _Builder(problems, place, Place(source) if whole else Place(source, 1, 1))
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    while True:
        # Only PyYAML stands in this try: a mistake that the builder tells is a ValueError, too.
        try:
            event = next(events, None)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problems.fail(place(mark) if mark else Place(source), _syntax_message(error, mark, text))
        except (ValueError, OverflowError):
            # Escapes and version numbers become characters and ints without a look at their range.
            problems.fail(builder.last, "not YAML: an escape or a number after this place is out of range")
        if event is None:
            return builder.root
        builder.take(event)


def _syntax_message(error: yaml.MarkedYAMLError, mark: Any, text: str) -> str:
    if mark is not None and text[mark.index : mark.index + 1] == "\t":
        return "not YAML: a tab; indent with spaces"
    context = f" {error.context}" if error.context else ""
    return f"not YAML: {error.problem}{context}".replace("\n", " ")


@attrs.define
class _Open:
    """A collection whose end has not come yet; ``nodes`` and ``height`` have aliases written out."""

    place: Place
    anchor: str | None
    is_mapping: bool
    items: list[Node] = attrs.field(factory=list[Node])
    nodes: int = 1
    height: int = 0


@attrs.define
class _Builder:
    """The tree as far as the events have told it."""

    problems: Problems
    place: Callable[[Any], Place]
    last: Place
    root: Node | None = None
    _open: list[_Open] = attrs.field(factory=list[_Open])
    _anchors: dict[str, tuple[Node, int, int]] = attrs.field(factory=dict[str, tuple[Node, int, int]])
    _nodes: int = 0
    _documents: int = 0

    def take(self, event: yaml.Event) -> None:
        """Add one event to the tree."""
        self.last = place = self.place(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self.problems.fail(place, "a second document starts here; one file describes one thing")
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event.anchor or "", place)
        elif isinstance(event, yaml.ScalarEvent):
            self._check_tag(event.tag, place)
            self._count(1, place)
            self._add(Scalar(place, event.value, event.style is None), 1, 0, event.anchor)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._check_tag(event.tag, place)
            self._count(1, place)
            self._check_depth(len(self._open) + 1, place)
            self._open.append(_Open(place, event.anchor, isinstance(event, yaml.MappingStartEvent)))
        elif isinstance(event, yaml.CollectionEndEvent):
            done = self._open.pop()
            node = self._mapping(done) if done.is_mapping else Sequence(done.place, tuple(done.items))
            self._add(node, done.nodes, done.height + 1, done.anchor)

    def _alias(self, name: str, place: Place) -> None:
        if any(collection.anchor == name for collection in self._open):
            self.problems.fail(place, f"alias '*{name}' stands inside what it names")
        if name not in self._anchors:
            self.problems.fail(place, f"alias '*{name}' names nothing above; anchors are written '&{name}'")
        node, nodes, height = self._anchors[name]
        self._count(nodes, place)
        self._check_depth(len(self._open) + height, place)
        self._add(node, nodes, height, None)

    def _check_tag(self, tag: str | None, place: Place) -> None:
        if tag is not None:
            self.problems.add(place, f"tag {shown(tag)} is not read; leave it out")

    def _count(self, nodes: int, place: Place) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            self.problems.fail(place, f"more than {MAX_NODES} values, aliases written out")

    def _check_depth(self, depth: int, place: Place) -> None:
        if depth > MAX_DEPTH:
            self.problems.fail(place, f"nested more than {MAX_DEPTH} deep")

    def _add(self, node: Node, nodes: int, height: int, anchor: str | None) -> None:
        # Invariant: an open collection's `nodes` counts everything inside it with aliases written out.
        if self._open:
            parent = self._open[-1]
            parent.items.append(node)
            parent.nodes += nodes
            parent.height = max(parent.height, height)
        else:
            self.root = node
        if anchor is not None:
            self._anchors[anchor] = (node, nodes, height)

    def _mapping(self, done: _Open) -> Mapping:
        items: dict[str, tuple[Place, Node]] = {}
        for key, value in zip(done.items[::2], done.items[1::2], strict=True):
            if not isinstance(key, Scalar) or not key.text:
                self.problems.add(key.place, "a key must be a word")
            elif key.text in items:
                first = items[key.text][0]
                where = f" (first on line {first.line})" if first.line else ""
                self.problems.add(key.place, f"key {shown(key.text)} stands here a second time{where}")
            else:
                items[key.text] = (key.place, value)
        return Mapping(done.place, items)
