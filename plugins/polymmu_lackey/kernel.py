"""The compiled part: lackey's access lines, as fast as they can be read.

Two shapes of line, which differ in their first two letters:

    I  0401ab70,3          a fetch: address in hex, at least 8 digits; bytes in decimal
     S 1fff000cd8,8        store; L load, M modify
"""

from __future__ import annotations

from typing import Any

import numba
from numpy.typing import NDArray

__all__ = ["parse_accesses"]

_NEWLINE, _SPACE, _COMMA = ord("\n"), ord(" "), ord(",")
_I, _L, _S, _M = ord("I"), ord("L"), ord("S"), ord("M")
_ZERO, _NINE, _A, _F = ord("0"), ord("9"), ord("a"), ord("f")


@numba.njit(cache=True)
def parse_accesses(
    text: NDArray[Any], at: int, op: NDArray[Any], vaddr: NDArray[Any], size: NDArray[Any], n: int
) -> tuple[int, int]:  # pragma: no cover - compiled
    """Parse access lines of ``text`` from offset ``at`` into rows ``n`` on; the arrays are long enough.

    Stops at the start of the first line that is not exactly an access line, or is not complete.
    Returns that offset and the number of rows filled.
    """
    end = len(text)
    while True:
        if end - at < 4 or text[at + 2] != _SPACE:
            return at, n
        first, second = text[at], text[at + 1]
        if first == _I and second == _SPACE:
            kind = 0
        elif first != _SPACE:
            return at, n
        elif second == _L:
            kind = 1
        elif second == _S:
            kind = 2
        elif second == _M:
            kind = 3
        else:
            return at, n
        i = at + 3
        address = numba.uint64(0)
        while i < end:
            digit = text[i]
            if _ZERO <= digit <= _NINE:
                value = digit - _ZERO
            elif _A <= digit <= _F:
                value = digit - _A + 10
            else:
                break
            address = (address << numba.uint64(4)) | numba.uint64(value)
            i += 1
        digits = i - at - 3
        if digits < 8 or digits > 16 or i >= end or text[i] != _COMMA:
            return at, n
        i += 1
        count = 0
        while i < end and _ZERO <= text[i] <= _NINE and count < 256:
            count = count * 10 + (text[i] - _ZERO)
            i += 1
        if i >= end or text[i] != _NEWLINE or count == 0 or count > 255:
            return at, n
        op[n] = kind
        vaddr[n] = address
        size[n] = count
        n += 1
        at = i + 1
