"""Walk page tables in a memory image (or in a machine's own RAM) and say what each address means.

No TLB and no mm core: a pure reading of tables under given registers, for one address or a whole array. Every
step of the walk is in the answer, so that a wrong entry can be found by looking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from polymmu.errors import UserMistake
from polymmu.hardware.entry import Access, Privilege, WalkFault
from polymmu.hardware.ram import Ram
from polymmu.hardware.walk import Translation, Walk
from polymmu.images import Image, open_image
from polymmu.machine import Machine
from polymmu.report import SCHEMA

__all__ = ["Translated", "result_json", "result_text", "translate"]


@attrs.frozen(kw_only=True)
class Translated:
    """What one address means. ``pa`` None: see ``fault`` (a WalkFault's name).

    ``flags``: rights combined over all levels, and the leaf's accessed, dirty and global bits. ``path``: level
    name, physical address of the entry, its value, top first. ``page_size`` in bytes, 0 without a page.
    """

    va: int
    pa: int | None
    page_size: int
    flags: dict[str, bool]
    fault: str | None
    path: tuple[tuple[str, int, int], ...]


def translate(
    machine: Machine,
    addresses: Iterable[int],
    memory: str | Path | Image | Ram | None = None,
    registers: Mapping[str, int] | None = None,
    access: str | None = None,
    privilege: str = "supervisor",
    space: str | None = None,
) -> list[Translated]:
    """Translate each address under ``registers`` in ``memory``.

    ``memory``: an image file or an opened image; None is the machine's own RAM with the tables CPU 0 has
    loaded. ``registers`` override the image's own. ``access`` None asks only what is mapped, not whether
    anyone may use it. Raises UserMistake.
    """
    ops, section = machine.arch.ops, machine.description.section
    image = open_image(memory, ops.read_image) if isinstance(memory, str | Path) else memory
    covers = image.covers if isinstance(image, Image) else None
    known: dict[str, int] = dict(image.registers) if isinstance(image, Image) else {}
    known |= {name.lower(): value for name, value in (registers or {}).items()}
    if image is None:
        ram: Ram = machine.kernel.ram
        known = machine.kernel.shape.registers | known
    else:
        ram = image.ram if isinstance(image, Image) else image
    translation = ops.translation(section, known)
    root = (
        machine.kernel.cpus[0].root if image is None and not registers else ops.root_of(section, known, space)
    )
    first = translation.walk(ram, root, 0).path[:1]
    if covers is not None and first and not covers(first[0][1], 1):
        raise UserMistake(
            f"the image does not hold the root table at {root:#x}; check the registers", place=str(memory)
        )
    want = _access(access)
    who = _privilege(privilege)
    asid = machine.kernel.cpus[0].asid if image is None else 0
    return [_one(ram, covers, translation, root, asid, va, want, who) for va in addresses]


def _access(access: str | None) -> Access | None:
    if access is None:
        return None
    if access.upper() not in Access.__members__:
        raise UserMistake(f"unknown access '{access}' (known: load, store, fetch)")
    return Access[access.upper()]


def _privilege(privilege: str) -> Privilege:
    if privilege.upper() not in Privilege.__members__:
        raise UserMistake(f"unknown privilege '{privilege}' (known: user, supervisor)")
    return Privilege[privilege.upper()]


def _one(
    ram: Ram,
    covers: Any,
    translation: Translation,
    root: int,
    asid: int,
    va: int,
    want: Access | None,
    who: Privilege,
) -> Translated:
    steps = translation.path_steps
    found = translation.walk(ram, root, va, want, who, asid)
    path, fault = found.path, found.fault
    if covers is not None:
        for at, (level, entry_pa, _) in enumerate(path):
            if not covers(entry_pa, steps[level][1]):
                path, fault = path[:at], WalkFault.TABLE_UNREADABLE
                break
    mapped = fault in (WalkFault.NONE, WalkFault.NO_PERMISSION)
    return Translated(
        va=va,
        pa=found.pa if fault is WalkFault.NONE else None,
        page_size=found.page_size if mapped else 0,
        flags=_flags(found) if mapped else {},
        fault=None if fault is WalkFault.NONE else fault.name,
        path=tuple((steps[level][0], entry_pa, entry) for level, entry_pa, entry in path),
    )


def _flags(found: Walk) -> dict[str, bool]:
    """Rights granted by every level, and the leaf's own bits as far as there are such."""
    flags = {
        "read": found.readable,
        "write": found.writable,
        "execute": found.executable,
        "user": found.user,
    }
    for name, bit in (("accessed", found.accessed), ("dirty", found.dirty), ("global", found.is_global)):
        if bit is not None:
            flags[name] = bit
    return flags


def result_json(machine: str, results: Sequence[Translated]) -> dict[str, Any]:
    """The JSON of ``polymmu translate``."""
    return {
        "schema": SCHEMA,
        "machine": machine,
        "results": [
            {
                "va": hex(result.va),
                "pa": None if result.pa is None else hex(result.pa),
                "page_size": result.page_size,
                "flags": result.flags,
                "fault": result.fault,
                "path": [
                    {"level": level, "entry_pa": hex(entry_pa), "entry": hex(entry)}
                    for level, entry_pa, entry in result.path
                ],
            }
            for result in results
        ],
    }


def result_text(results: Sequence[Translated]) -> str:
    """One line per address, its walk below it."""
    lines = []
    for result in results:
        flags = " ".join(name for name, on in result.flags.items() if on)
        answer = f"{result.pa:#x}" if result.pa is not None else f"no translation: {result.fault}"
        size = f", page of {result.page_size:#x} bytes" if result.page_size else ""
        lines.append(f"{result.va:#x} -> {answer}{size}{', ' + flags if flags else ''}")
        lines += [
            f"    {level:<4} at {entry_pa:#014x}: {entry:#018x}" for level, entry_pa, entry in result.path
        ]
    return "\n".join(lines)
