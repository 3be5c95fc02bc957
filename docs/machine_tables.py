"""The tables of ``docs/machine-files.md``, made from the description classes.

A page keeps the place of each table between ``<!-- table: TlbSpec -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from typing import Any

import attrs

from polymmu.description import model
from polymmu.description.fields import Field, choices_of, fields_of, machine_fields
from polymmu.description.units import format_size

__all__ = ["with_tables"]

_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """``page`` with each of its tables made anew."""
    return _TABLE.sub(lambda match: match[1] + _table(match[2]) + match[3], page)


def _table(name: str) -> str:
    cls: type = getattr(model, name)
    fields = machine_fields({}) if cls is model.MachineDescription else fields_of(cls)
    rows = [
        f"| `{field.name}` | {_values(field)} | {_default(field)} | {field.metadata['doc']} |"
        for field in fields.values()
    ]
    return "\n".join(["| key | value | default | |", "|---|---|---|---|", *rows, ""])


def _values(field: Field) -> str:
    text = _one_value(field.type, field.metadata)
    limits = [
        f"{word} {_spelt(field.metadata[key], field.metadata)}"
        for key, word in (("minimum", "from"), ("maximum", "up to"))
        if key in field.metadata
    ]
    return " ".join([text, *limits])


def _one_value(type_: Any, metadata: Mapping[str, Any]) -> str:
    origin = typing.get_origin(type_)
    if origin is tuple:
        return f"list of: {_one_value(typing.get_args(type_)[0], metadata)}"
    if origin is dict:
        return "mapping by name"
    if attrs.has(type_):
        return "mapping, or a word" if "short_for" in metadata else "mapping"
    if choices := choices_of(type_, metadata):
        return ", ".join(f"`{choice}`" for choice in choices)
    if metadata.get("unit") == "size":
        return "size"
    return {bool: "`true` or `false`", int: "number", str: "text"}[type_]


def _default(field: Field) -> str:
    if field.is_required:
        return "required"
    default = field.default()
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    if default == "" or not isinstance(default, bool | int | str):
        return ""
    return f"`{_spelt(default, field.metadata)}`"


def _spelt(value: Any, metadata: Mapping[str, Any]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return format_size(value) if metadata.get("unit") == "size" else str(value)
