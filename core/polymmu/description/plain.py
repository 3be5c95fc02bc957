"""A description as plain values, and the fingerprint that says whether two results come from one machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import attrs

from polymmu.description.fields import fields_of
from polymmu.description.model import MachineDescription

__all__ = ["sha256_of", "to_plain"]


def to_plain(description: MachineDescription) -> dict[str, Any]:
    """What a machine file would say with everything written out: sizes in bytes, no ``extends``, no defaults.

    Made of dict, list, str, int and bool only; written as YAML it loads to an equal description.
    """
    plain: dict[str, Any] = _plain(description)
    plain[description.arch] = plain.pop("section")
    return plain


def sha256_of(description: MachineDescription) -> str:
    """SHA-256, in hex, of the plain description as JSON with sorted keys and no spaces."""
    text = json.dumps(to_plain(description), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _plain(value: Any) -> Any:
    cls: type = type(value)
    if attrs.has(cls):
        return {name: _plain(getattr(value, name)) for name in fields_of(cls)}
    if isinstance(value, dict):
        return {name: _plain(below) for name, below in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
