"""A description class as the loader and the schema see it: its fields, with their types worked out.

The types a field may have are few, so that a class says the same to Python, YAML and JSON Schema:
``bool``, ``int``, ``str``, ``Literal[...]``, another description class, ``tuple[T, ...]`` (a list) and
``dict[str, T]`` (things by name).
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

import attrs

from polymmu.description.model import MachineDescription
from polymmu.errors import UserMistake

__all__ = ["Field", "choices_of", "fields_of", "machine_fields"]


@attrs.frozen
class Field:
    """One key of a mapping: its type, and the metadata that ``model.doc`` wrote."""

    name: str
    type: Any
    metadata: Mapping[str, Any]
    attribute: attrs.Attribute[Any] | None = None

    @property
    def is_required(self) -> bool:
        """Whether the file must say it."""
        return self.attribute is not None and self.attribute.default is attrs.NOTHING

    def default(self) -> Any:
        """The value where the file says nothing. Only for a field that is not required."""
        if self.attribute is None:
            return None
        default: Any = self.attribute.default
        # Not isinstance: to a type checker attrs.Factory is a function, so that fields get the right type.
        return default.factory() if type(default).__name__ == "Factory" else default


@functools.cache
def fields_of(cls: type) -> dict[str, Field]:
    """The fields of a description class by name, in order. Raises ``UserMistake`` for another class."""
    if not attrs.has(cls):
        raise UserMistake(f"{cls.__name__} describes a part of a machine file, so it must be an attrs class")
    try:
        hints = {name: _wanted(hint) for name, hint in typing.get_type_hints(cls).items()}
    except NameError as error:
        raise UserMistake(f"{cls.__name__}: a field's type cannot be worked out: {error}") from error
    for attribute in attrs.fields(cls):
        if attribute.init and not _is_readable(hints[attribute.name]):
            raise UserMistake(
                f"{cls.__name__}.{attribute.name}: a machine file has no {hints[attribute.name]}"
            )
    return {
        attribute.name: Field(attribute.name, hints[attribute.name], attribute.metadata, attribute)
        for attribute in attrs.fields(cls)
        if attribute.init
    }


def _wanted(hint: Any) -> Any:
    """What a file may write for a field: ``X`` of ``X | None``, whose None is the field left out."""
    options = [each for each in typing.get_args(hint) if each is not types.NoneType]
    return options[0] if isinstance(hint, types.UnionType) and len(options) == 1 else hint


def _is_readable(type_: Any) -> bool:
    below = typing.get_args(type_)
    if typing.get_origin(type_) is tuple:
        return len(below) == 2 and below[1] is ... and _is_readable(below[0])
    if typing.get_origin(type_) is dict:
        return below[0] is str and _is_readable(below[1])
    if typing.get_origin(type_) is typing.Literal:
        return len({type(choice) for choice in below}) == 1 and type(below[0]) in (int, str)
    return type_ in (bool, int, str, Any) or attrs.has(type_)


def machine_fields(sections: Mapping[str, type]) -> dict[str, Field]:
    """The keys at the top of a machine file: ``MachineDescription``'s, and each arch's in ``sections``."""
    fields = dict(fields_of(MachineDescription))
    section = fields.pop("section")
    for arch, cls in sections.items():
        if arch in fields:
            raise UserMistake(f"an arch cannot be named '{arch}': that is a key of every machine file")
        fields[arch] = Field(arch, cls, {**section.metadata, "doc": f"what only {arch} has"})
    return fields


def choices_of(type_: Any, metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    """The only values a field may have; empty if there is no such list."""
    if typing.get_origin(type_) is typing.Literal:
        return typing.get_args(type_)
    return tuple(metadata.get("choices", ()))
