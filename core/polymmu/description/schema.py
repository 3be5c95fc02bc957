"""The JSON Schema (draft-07) of machine files, made from the description classes.

A file that extends another may say as little as it likes, one that stands alone must be whole; so each class
gives two schemas, and the key ``extends`` chooses. What ``rules`` checks is beyond a schema.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import attrs

from polymmu.description.fields import Field, choices_of, fields_of, machine_fields
from polymmu.description.model import PART_NAME
from polymmu.description.scenario import Scenario
from polymmu.description.units import SIZE_PATTERN

__all__ = ["machine_schema", "scenario_schema"]

Schema = dict[str, Any]

_NULL: Schema = {"type": "null"}
_SET: Schema = {"minItems": 1, "uniqueItems": True}
_EXTENDS: Schema = {
    "description": "an installed machine's name, or the path of a file, from this one's directory",
    "type": "string",
    "minLength": 1,
}


def machine_schema(section_classes: Mapping[str, type]) -> Schema:
    """The schema, for the arches in ``section_classes`` (name: attrs class of the arch's own section)."""
    arches = {name: section_classes[name] for name in sorted(section_classes)}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "polymmu machine file",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": "#/definitions/extending"},
        "else": {"$ref": "#/definitions/whole"},
        "definitions": {"whole": _whole(arches), "extending": _extending(arches)},
    }


def scenario_schema(section_classes: Mapping[str, type]) -> Schema:
    """The schema of scenario files; ``machine`` and ``kernel`` are laid over the machine that runs one."""
    arches = {name: section_classes[name] for name in sorted(section_classes)}
    whole = _object(fields_of(Scenario), partial=False)
    machine = _object(machine_fields(arches), partial=True)
    variants = {"description": "by name, what each lays over the machine", "additionalProperties": machine}
    whole["properties"] |= {
        "machine": machine,
        "kernel": machine["properties"]["kernel"],
        "variants": {"type": "object", **variants},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "polymmu scenario file",
        **whole,
    }


def _whole(arches: Mapping[str, type]) -> Schema:
    schema = _object(machine_fields(arches), partial=False)
    schema["properties"]["arch"]["enum"] = list(arches)
    schema["allOf"] = [
        {"if": {"properties": {"arch": {"const": arch}}}, "then": _only_section(arch, arches)}
        for arch in arches
    ]
    return schema


def _only_section(arch: str, arches: Mapping[str, type]) -> Schema:
    rule: Schema = {"properties": {other: False for other in arches if other != arch}}
    if any(field.is_required for field in fields_of(arches[arch]).values()):
        rule["required"] = [arch]
    return rule


def _extending(arches: Mapping[str, type]) -> Schema:
    schema = _object(machine_fields(arches), partial=True)
    schema["properties"] = {"extends": _EXTENDS, **schema["properties"]}
    schema["properties"]["arch"]["anyOf"][0]["enum"] = list(arches)
    schema["required"] = ["name"]
    return schema


def _object(fields: Mapping[str, Field], partial: bool) -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": {name: _field(field, partial) for name, field in fields.items()},
        "additionalProperties": False,
    }
    required = [name for name, field in fields.items() if field.is_required]
    if required and not partial:
        schema["required"] = required
    return schema


def _field(field: Field, partial: bool) -> Schema:
    schema: Schema = {"description": field.metadata["doc"]} if "doc" in field.metadata else {}
    value = _value(field.type, field.metadata, partial)
    # In an extending file null takes the inherited key away.
    schema |= {"anyOf": [value, _NULL]} if partial else value
    if not field.is_required and isinstance(default := field.default(), bool | int | str):
        schema["default"] = default
    return schema


def _value(type_: Any, metadata: Mapping[str, Any], partial: bool) -> Schema:
    origin = typing.get_origin(type_)
    if origin is dict:
        below = _value(typing.get_args(type_)[1], {}, partial)
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^{metadata.get('names', PART_NAME)}$"},
            "additionalProperties": {"anyOf": [below, _NULL]} if partial else below,
        }
    if origin is tuple:
        items = _value(typing.get_args(type_)[0], metadata, partial)
        return {"type": "array", "items": items, **({} if metadata.get("repeats") else _SET)}
    if attrs.has(type_):
        whole = _object(fields_of(type_), partial)
        word = metadata.get("short_for")
        return {"anyOf": [whole, _field(fields_of(type_)[word], False)]} if word else whole
    choices = choices_of(type_, metadata)
    if choices and metadata.get("unit") == "size":
        return {"anyOf": [{"enum": list(choices)}, {"type": "string", "pattern": SIZE_PATTERN}]}
    if choices:
        return {"enum": list(choices)}
    if type_ is bool:
        return {"type": "boolean"}
    if type_ is int:
        return _number(metadata)
    schema: Schema = {"type": ["string", "number"] if metadata.get("verbatim") else "string"}
    return {**schema, "pattern": f"^{metadata['pattern']}$"} if "pattern" in metadata else schema


def _number(metadata: Mapping[str, Any]) -> Schema:
    limits = {key: metadata[key] for key in ("minimum", "maximum") if key in metadata}
    if metadata.get("unit") != "size":
        return {"type": "integer", **limits}
    return {
        "anyOf": [{"type": "integer", "minimum": 0, **limits}, {"type": "string", "pattern": SIZE_PATTERN}]
    }
