"""What a plain word in YAML means: the YAML 1.2 core schema, read strictly.

YAML 1.1 takes ``on`` for true, ``0755`` for 493 and ``1:30`` for 90, and libraries differ in which of
these they keep. Here a word means one thing in every place, and a word that some reader would take for
another value is refused with the spelling that nobody can mistake.
"""

from __future__ import annotations

import re

__all__ = ["is_null", "read_bool", "read_int", "read_text"]

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_BOOL_HINTS = {
    **dict.fromkeys(("on", "yes", "y", "1"), "true"),
    **dict.fromkeys(("off", "no", "n", "0"), "false"),
}
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_OTHER_BASE = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_LEADING_ZERO = re.compile(r"[-+]?0+([0-9]+)")
_UNDERSCORES = re.compile(r"[-+]?[0-9]+(_[0-9]+)+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NUMBERS = (_FLOAT, _NOT_FINITE, _OTHER_BASE)


def is_null(text: str, plain: bool) -> bool:
    """Whether the scalar is null: nothing at all, ``~`` or ``null``, without quotes."""
    return plain and text in _NULLS


def read_bool(text: str, plain: bool) -> bool:
    """``true`` or ``false``. Raises ``ValueError`` with the way out for anything else."""
    if plain and text in _BOOLS:
        return _BOOLS[text]
    meant = _BOOL_HINTS.get(text.lower(), text.lower())
    raise ValueError(f"not true or false{f'; write {meant}' if meant in _BOOLS else ''}")


def read_int(text: str, plain: bool) -> int:
    """A whole number: decimal, ``0x..`` or ``0o..``. Raises ``ValueError`` with the way out otherwise."""
    if len(text) > 40:
        raise ValueError("not a whole number that fits in 64 bits")
    if plain and _DECIMAL.fullmatch(text):
        return int(text)
    if plain and _OTHER_BASE.fullmatch(text):
        return int(text, 0)
    raise ValueError(f"not a whole number{_int_hint(text)}")


def _int_hint(text: str) -> str:
    if _DECIMAL.fullmatch(text) or _OTHER_BASE.fullmatch(text):
        return f"; write {text} without quotes"
    if match := _LEADING_ZERO.fullmatch(text):
        octal = f", or 0o{match[1]} if octal is meant" if not set(match[1]) & set("89") else ""
        return f"; write {int(text)}{octal}"
    if _UNDERSCORES.fullmatch(text):
        return f"; write {int(text)}"
    if re.fullmatch(r"0b[01]+", text):
        return f"; write {int(text, 2):#x}"
    if _FLOAT.fullmatch(text):
        number = float(text)
        if number.is_integer() and abs(number) < 1 << 53:
            return f"; write {int(number)}"
    return ""


def read_text(text: str, plain: bool) -> str:
    """A string. A plain word that YAML takes for null, a truth value or a number raises ``ValueError``."""
    if is_null(text, plain):
        raise ValueError("no value; write one, or leave the key out")
    if plain and (text in _BOOLS or any(pattern.fullmatch(text) for pattern in _NUMBERS)):
        raise ValueError(f'not text to YAML; write "{text}"')
    return text
