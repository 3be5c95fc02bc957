"""From a tree of YAML nodes to attrs objects, with every mistake at the place that wrote it.

Each value is read by the type of the field that wants it, so nothing is guessed: the same word is a
size in one place and a name in another. A part with a mistake becomes ``BAD``; its siblings are still read.

First reading: ``convert_machine``, then ``_Converter.value`` and ``make``.
"""

from __future__ import annotations

import enum
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import attrs

from polymmu.description import yaml_source
from polymmu.description.fields import Field, choices_of, fields_of, machine_fields
from polymmu.description.mistakes import Problems, did_you_mean, shown, unknown
from polymmu.description.model import PART_NAME, MachineDescription
from polymmu.description.scalars import read_bool, read_int, read_text
from polymmu.description.units import format_size, parse_size
from polymmu.description.yaml_source import Node, Scalar
from polymmu.errors import UserMistake

__all__ = ["convert", "convert_machine"]

Described = TypeVar("Described")


class _Bad(enum.Enum):
    BAD = enum.auto()


BAD = _Bad.BAD
"""Stands for a value about which a mistake has been noted."""


def convert_machine(
    tree: yaml_source.Mapping, section_class_of: Callable[[str], type], problems: Problems
) -> MachineDescription | None:
    """The machine that ``tree`` describes, or None with ``problems`` saying why not.

    ``section_class_of(arch)`` gives the class of an arch's own section, or raises ``UserMistake`` if there is
    no such arch.
    """
    items = dict(tree.items)
    arch = items["arch"][1] if "arch" in items else None
    sections: dict[str, type] = {}
    if isinstance(arch, Scalar) and not arch.is_null:
        try:
            sections[arch.text] = section_class_of(arch.text)
        except UserMistake as error:
            problems.add(arch.place, f"arch: {error}")
            if arch.text not in machine_fields({}):
                items.pop(arch.text, None)
        else:
            items.setdefault(arch.text, (arch.place, yaml_source.Mapping(arch.place, {})))
    fields = machine_fields(sections)
    for key, (place, _) in tree.items.items():
        if key in items and key not in fields and _is_arch(key, section_class_of):
            del items[key]
            problems.add(
                place,
                f"{key}: section of another arch; delete it, or what extends brought with '{key}: null'",
            )
    converter = _Converter(problems)
    node = yaml_source.Mapping(tree.place, items)
    values = converter.fields(fields, node, "")
    for name in sections:
        values["section"] = values.pop(name)
    made = converter.make(MachineDescription, values, node, "")
    return made if isinstance(made, MachineDescription) else None


def convert(cls: type[Described], tree: yaml_source.Mapping, problems: Problems) -> Described | None:
    """The ``cls`` that ``tree`` describes, or None with ``problems`` saying why not."""
    converter, described = _Converter(problems), cast("type", cls)
    made = converter.make(cls, converter.fields(fields_of(described), tree, ""), tree, "")
    return made if isinstance(made, cls) else None


def _is_arch(name: str, section_class_of: Callable[[str], type]) -> bool:
    try:
        section_class_of(name)
    except UserMistake:
        return False
    return True


@attrs.define
class _Converter:
    """Reads values; what is wrong goes to ``problems``. ``path`` is the dotted path, for messages."""

    problems: Problems

    def value(self, node: Node, type_: Any, metadata: Mapping[str, Any], path: str) -> Any:
        """``node`` as a ``type_``, or ``BAD``."""
        origin = typing.get_origin(type_)
        if origin is dict:
            return self._named(node, typing.get_args(type_)[1], metadata, path)
        if origin is tuple:
            return self._list(node, typing.get_args(type_)[0], metadata, path)
        if attrs.has(type_):
            return self._part(node, type_, metadata, path)
        if not isinstance(node, Scalar) or node.is_null:
            return self._wrong_kind(node, "one value", metadata, path)
        try:
            return _read_scalar(node, type_, metadata)
        except ValueError as error:
            self.problems.add(node.place, f"{path}: {error}")
            return BAD

    def fields(
        self, fields: Mapping[str, Field], node: yaml_source.Mapping, path: str, hint: str = ""
    ) -> dict[str, Any]:
        """A value for every field: given, default, or ``BAD``. ``hint`` ends the message about a lack."""
        values: dict[str, Any] = {}
        for key, (place, _) in node.items.items():
            if key not in fields:
                self.problems.add(place, _join(path, unknown_key(key, fields), ": "))
        for name, field in fields.items():
            if name in node.items:
                values[name] = self.value(node.items[name][1], field.type, field.metadata, _join(path, name))
            else:
                values[name] = BAD if field.is_required else field.default()
        missing = [
            f"'{name}'" for name, field in fields.items() if field.is_required and name not in node.items
        ]
        if missing:
            self.problems.add(node.place, _join(path, f"missing {', '.join(missing)}{hint}", ": "))
        return values

    def make(self, cls: type, values: Mapping[str, Any], node: yaml_source.Mapping, path: str) -> Any:
        """An instance of ``cls``, or ``BAD``; what a validator refuses is told at its field's place."""
        # attrs' own __init__ would stop at the first validator and not say whose it was. So they are run here
        # first, one by one, on an object that has only its fields.
        good = {name: value for name, value in values.items() if value is not BAD}
        blank: Any = object.__new__(cls)
        for name, value in good.items():
            object.__setattr__(blank, name, value)
        is_whole = len(good) == len(values)
        for attribute in attrs.fields(cls):
            if attribute.validator is None or attribute.name not in good:
                continue
            place = node.items[attribute.name][1].place if attribute.name in node.items else node.place
            try:
                attribute.validator(blank, attribute, good[attribute.name])
            except (ValueError, TypeError) as error:
                # attrs' own validators put the sentence first in a row of arguments.
                reason = error.args[0] if error.args else "not accepted"
                self.problems.add(place, _join(path, f"{attribute.name}: {reason}"))
                is_whole = False
            except AttributeError:
                if len(good) == len(values):
                    raise  # otherwise it compared with a field that is BAD, which has been told
        if not is_whole:
            return BAD
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:
            if node.items.keys() <= values.keys():  # or a misspelt key has been told, and may be why
                self.problems.add(node.place, _join(path, str(error), ": "))
            return BAD

    def _part(self, node: Node, cls: type, metadata: Mapping[str, Any], path: str, hint: str = "") -> Any:
        if not isinstance(node, yaml_source.Mapping):
            return self._wrong_kind(node, "a mapping", metadata, path)
        return self.make(cls, self.fields(fields_of(cls), node, path, hint), node, path)

    def _named(self, node: Node, type_: Any, metadata: Mapping[str, Any], path: str) -> Any:
        if not isinstance(node, yaml_source.Mapping):
            return self._wrong_kind(node, "a mapping by name", metadata, path)
        values: dict[str, Any] = {}
        for name, (place, below) in node.items.items():
            if not re.fullmatch(metadata.get("names", PART_NAME), name):
                wanted = metadata.get("names_doc", "a name (letters, digits, - and _)")
                self.problems.add(place, f"{path}: {shown(name)} is not {wanted}")
                values[name] = BAD
            elif attrs.has(type_):
                # A misspelt name in an overriding file makes a new, incomplete part: say what was meant.
                hint = did_you_mean(name, (other for other in node.items if other != name))
                values[name] = self._part(below, type_, {}, f"{path}.{name}", hint)
            else:
                values[name] = self.value(below, type_, metadata, f"{path}.{name}")
        return BAD if BAD in values.values() else values

    def _list(self, node: Node, type_: Any, metadata: Mapping[str, Any], path: str) -> Any:
        if not isinstance(node, yaml_source.Sequence):
            example = f"; write [{node.text}]" if isinstance(node, Scalar) and not node.is_null else ""
            return self._wrong_kind(node, "a list", metadata, path, example)
        values = tuple(self.value(item, type_, metadata, path) for item in node.items)
        return BAD if BAD in values else values

    def _wrong_kind(
        self, node: Node, wanted: str, metadata: Mapping[str, Any], path: str, hint: str = ""
    ) -> _Bad:
        if isinstance(node, Scalar):
            found = "nothing" if node.is_null else shown(node.text)
        else:
            found = "a list" if isinstance(node, yaml_source.Sequence) else "a mapping"
        instead = metadata.get("instead", "")
        self.problems.add(node.place, f"{path}: found {found}, expected {wanted}{hint or instead}")
        return BAD


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for a key that means nothing where it stands."""
    if key == "<<":
        return "merge keys are not read; use 'extends', or an alias for a whole value"
    return unknown("key", key, known)


def _join(path: str, rest: str, by: str = ".") -> str:
    return f"{path}{by}{rest}" if path else rest


def _read_scalar(node: Scalar, type_: Any, metadata: Mapping[str, Any]) -> bool | int | str:
    """One word as ``type_``. Raises ``ValueError`` with the way out."""
    text, plain = node.text, node.plain
    choices = choices_of(type_, metadata)
    kind = type(choices[0]) if choices else type_
    if kind is str:
        if text in choices:
            return text
        if choices:
            raise ValueError(unknown("choice", text, [str(choice) for choice in choices]))
        return _checked_text(text, plain, metadata)
    is_size = metadata.get("unit") == "size"
    try:
        if kind is bool:
            return read_bool(text, plain)
        number = _read_size(text, plain) if is_size else read_int(text, plain)
    except ValueError as error:
        raise ValueError(f"{shown(text)} is {error}") from None
    if choices and number not in choices:
        raise ValueError(f"{number} is not one of {', '.join(map(str, choices))}")
    spelt = format_size if is_size else str
    if number < (minimum := metadata.get("minimum", 0 if is_size else -(1 << 63))):
        raise ValueError(f"{text} is less than {spelt(minimum)}")
    if number > (maximum := metadata.get("maximum", (1 << 63) - 1)):
        raise ValueError(f"{text} is more than {spelt(maximum)}")
    return number


def _checked_text(text: str, plain: bool, metadata: Mapping[str, Any]) -> str:
    try:
        if not metadata.get("verbatim"):
            read_text(text, plain)
    except ValueError as error:
        raise ValueError(f"{shown(text)} is {error}") from None
    pattern = metadata.get("pattern")
    if pattern is not None and not re.fullmatch(pattern, text):
        raise ValueError(f"{shown(text)} is not {metadata['pattern_doc']}")
    return text


def _read_size(text: str, plain: bool) -> int:
    has_unit = text[-1:].isalpha() and not text.startswith("0x")
    return parse_size(text) if has_unit else read_int(text, plain)
