"""Memory images of real machines: raw, ELF core, or sparse ``.npz``, as RAM that a walker can read.

A raw image holds physical address = offset. An ELF core is what QEMU's dump-guest-memory writes: its PT_LOAD
segments carry physical addresses. A sparse ``.npz`` has ``table_pa`` (ascending physical addresses of 4096-byte
blocks), ``table_data`` (their bytes) and ``meta`` (JSON; ``registers`` in hexadecimal).

``Image.covers`` says whether the image holds a physical address at all: a table outside it is not an empty table.
"""

from __future__ import annotations

import bisect
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from polymmu.errors import UserMistake
from polymmu.hardware.ram import Ram

__all__ = ["Image", "open_image"]

BLOCK = 4096
HIGHEST = 1 << 44
"""Physical addresses an image may use; beyond it the file is taken to be corrupt."""


@attrs.frozen(eq=False)
class Image:
    """An opened image: its bytes as ``ram``, ascending disjoint ``ranges`` it holds, its own ``registers``."""

    ram: Ram
    ranges: tuple[tuple[int, int], ...]
    registers: dict[str, int]

    def covers(self, pa: int, size: int) -> bool:
        """Whether the image holds [pa, pa + size)."""
        at = bisect.bisect_right(self.ranges, (pa, HIGHEST)) - 1
        return at >= 0 and self.ranges[at][0] <= pa and pa + size <= self.ranges[at][1]


ReadMore = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[dict[str, int], list[tuple[int, bytes]]]]
"""The arch's ``read_image``."""


def nothing_more(meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[dict[str, int], list[Any]]:
    """For an image that holds nothing in an architecture's own way."""
    return {}, []


def open_image(path: str | Path, read_more: ReadMore = nothing_more) -> Image:
    """Open an image, whatever its kind; decided by content. Raises UserMistake.

    ``read_more``: what the architecture reads out of a sparse image beyond tables and plain registers.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise UserMistake(f"cannot read: {error.strerror}", place=str(path)) from error
    if not head:
        raise UserMistake("the image is empty", place=str(path))
    if head[:4] == b"\x7fELF":
        return _elf_core(file, head)
    if head[:4] == b"PK\x03\x04":
        return _sparse(file, read_more)
    size = file.stat().st_size
    if size < BLOCK:
        raise UserMistake(
            f"{size} bytes are too short for a memory image; a table takes {BLOCK}", place=str(path)
        )
    ram = Ram.from_file(file)
    return Image(ram, ((0, ram.size),), {})


def merged(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Adjacent and overlapping ranges joined, ascending."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


def _elf_core(file: Path, head: bytes) -> Image:
    """An ELF core (32 or 64 bit, either byte order): PT_LOAD segments by physical address."""
    place = str(file)
    if len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
        raise UserMistake("the ELF header is cut short or corrupt", place=place)
    order = "<" if head[5] == 1 else ">"
    wide = head[4] == 2
    if wide and len(head) < 64:
        raise UserMistake("the ELF header is cut short", place=place)
    kind = struct.unpack_from(order + "H", head, 16)[0]
    if kind != 4:
        raise UserMistake(
            f"an ELF file of type {kind} is not a memory dump; a core file (type 4) is wanted", place=place
        )
    table, entry, count = (
        (*struct.unpack_from(order + "Q", head, 32), *struct.unpack_from(order + "HH", head, 54))
        if wide
        else (*struct.unpack_from(order + "I", head, 28), *struct.unpack_from(order + "HH", head, 42))
    )
    wanted = 56 if wide else 32
    if entry != wanted:
        raise UserMistake(f"program headers of {entry} bytes are not {wanted}", place=place)
    size = file.stat().st_size
    if table + entry * count > size:
        raise UserMistake("the program headers lie beyond the end of the file", place=place)
    loads: list[tuple[int, int, int]] = []
    with file.open("rb") as stream:
        stream.seek(table)
        raw = stream.read(entry * count)
        for index in range(count):
            if wide:
                p_type, _, offset, _, paddr, filesz = struct.unpack_from(order + "IIQQQQ", raw, index * entry)
            else:
                p_type, offset, _, paddr, filesz = struct.unpack_from(order + "IIIII", raw, index * entry)
            if p_type != 1 or not filesz:
                continue
            if offset + filesz > size:
                raise UserMistake(
                    f"segment {index} ends at offset {offset + filesz:#x}, beyond the file's {size:#x} bytes; "
                    "the dump is cut short",
                    place=place,
                )
            if paddr + filesz > HIGHEST:
                raise UserMistake(
                    f"segment {index} has physical address {paddr:#x}; beyond {HIGHEST:#x}", place=place
                )
            loads.append((paddr, offset, filesz))
        if not loads:
            raise UserMistake("the core holds no memory (no PT_LOAD segment with bytes)", place=place)
        top = max(paddr + filesz for paddr, _, filesz in loads)
        ram = Ram(-(-top // BLOCK) * BLOCK)
        for paddr, offset, filesz in loads:
            stream.seek(offset)
            stream.readinto(ram.m8[paddr : paddr + filesz])
    return Image(ram, merged([(paddr, paddr + filesz) for paddr, _, filesz in loads]), {})


def _sparse(file: Path, read_more: ReadMore) -> Image:
    """A ``.npz`` with table_pa, table_data and meta."""
    place = str(file)
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise UserMistake(f"cannot read as .npz: {error}", place=place) from error
    for name in ("table_pa", "table_data", "meta"):
        if name not in arrays:
            raise UserMistake(
                f"no array '{name}'; a sparse image has table_pa, table_data and meta", place=place
            )
    pa, data, meta = arrays["table_pa"], arrays["table_data"], arrays["meta"]
    if pa.ndim != 1 or pa.dtype.kind != "u" or data.dtype != np.uint8 or data.shape != (len(pa), BLOCK):
        raise UserMistake(
            f"table_pa must be unsigned[N] and table_data uint8[N,{BLOCK}], not {pa.dtype}{list(pa.shape)} and "
            f"{data.dtype}{list(data.shape)}",
            place=place,
        )
    blocks = pa.astype(np.uint64)
    if len(blocks) and (bool((blocks % BLOCK).any()) or bool((blocks[1:] <= blocks[:-1]).any())):
        raise UserMistake(f"table_pa must be ascending multiples of {BLOCK}", place=place)
    if len(blocks) and int(blocks[-1]) + BLOCK > HIGHEST:
        raise UserMistake(f"table_pa {int(blocks[-1]):#x} is beyond {HIGHEST:#x}", place=place)
    document = _document(meta, place)
    own_registers, own_memory = read_more(document, arrays)
    ranges = [(at, at + BLOCK) for at in blocks.tolist()]
    ranges += [(at, at + len(data)) for at, data in own_memory]
    if any(high > HIGHEST for _, high in ranges):
        raise UserMistake(f"the image holds memory beyond {HIGHEST:#x}", place=place)
    ram = Ram(-(-max((high for _, high in ranges), default=BLOCK) // BLOCK) * BLOCK)
    for at, block in zip(blocks.tolist(), data, strict=True):
        ram.bytes[at : at + BLOCK] = block
    for at, own in own_memory:
        ram.write(at, own)
    return Image(ram, merged(ranges), _registers(document, place) | own_registers)


def _document(meta: Any, place: str) -> dict[str, Any]:
    """``meta`` as a mapping; empty where it is none."""
    try:
        document = json.loads(str(meta))
    except ValueError as error:
        raise UserMistake(f"meta is not JSON: {error}", place=place) from error
    return document if isinstance(document, dict) else {}


def _registers(document: Mapping[str, Any], place: str) -> dict[str, int]:
    """The registers of ``meta``: names in lower case, hexadecimal strings or ints; others are left out."""
    named = document.get("registers", {})
    if not isinstance(named, dict):
        raise UserMistake("meta.registers is not a mapping of name to value", place=place)
    registers: dict[str, int] = {}
    for name, value in named.items():
        try:
            registers[name.lower()] = value if isinstance(value, int) else int(value, 16)
        except (TypeError, ValueError):
            continue  # a list (an SLB), or a word such as a mode's name: not a plain register
    return registers
