"""Sizes with units: ``16 GiB`` in a file, bytes everywhere else.

Only the binary units exist. ``4 KB`` and ``4K`` are refused, for half their readers take them as 4000.
"""

from __future__ import annotations

import re

__all__ = ["SIZE_PATTERN", "UNITS", "format_size", "parse_size"]

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

SIZE_PATTERN = rf"^(?:0|[1-9][0-9]{{0,15}}) *({'|'.join(UNITS)})$"
_SIZE = re.compile(SIZE_PATTERN)
_LIKE_A_SIZE = re.compile(r"([0-9]{1,18})(\.[0-9]{1,9})? *([bkmgt])(i?b|ytes?)?", re.IGNORECASE)


def format_size(size: int) -> str:
    """``size`` bytes in the largest unit that divides it: ``4096`` is ``4 KiB``."""
    if not size:
        return "0 B"
    unit = next(name for name, factor in reversed(UNITS.items()) if size % factor == 0)
    return f"{size // UNITS[unit]} {unit}"


def parse_size(text: str) -> int:
    """Bytes of ``16 GiB``. Raises ``ValueError`` with the way out for anything else."""
    if match := _SIZE.match(text):
        return int(text[: match.start(1)]) * UNITS[match[1]]
    hint = ""
    if match := _LIKE_A_SIZE.fullmatch(text):
        number, fraction, letter = match[1], match[2], match[3].upper()
        unit = "B" if letter == "B" else f"{letter}iB"
        hint = f"; did you mean '{number} {unit}'?"
        if fraction:
            digits = fraction[1:]
            size, rest = divmod(int(number + digits) * UNITS[unit], 10 ** len(digits))
            hint = "" if rest else f"; did you mean '{format_size(size)}'?"
    raise ValueError(f"not a size (bytes, or a whole number of {', '.join(UNITS)}){hint}")
