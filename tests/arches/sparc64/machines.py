"""Machines of every kind of sparc64, and what must hold on them between two calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

import polymmu_sparc64
from polymmu.machine import Machine, Mm
from polymmu.mm.tables import find_entry, read_pte
from polymmu.registry import resolve
from polymmu_sparc64.tsb import INVALID, Tsb, tsb_words

PAGE = 8192
PMD = 8 << 20
LOWER, UPPER = 0x10000000000, 0xFFFFF80200000000
KINDS = {
    "tsb": (),
    "vpte": ("sparc64.generation=vpte",),
    "sun4v": ("sparc64.cpu=sun4v",),
    "wide": ("sparc64.upper_entries=64",),
    "early": ("sparc64.frees_before_flush=true",),
}


def machine(kind: str = "tsb", *sets: str, without: str = "", **instead: Any) -> Machine:
    """A machine of one kind; hooks of the plugin left out (``without``) or replaced."""
    description, arch = Machine.describe("sparc64", sets=(*KINDS[kind], *sets))
    if without or instead:
        hooks = {name: getattr(polymmu_sparc64, name) for name in arch.implementations if name != without}
        arch = resolve("sparc64", SimpleNamespace(**hooks | instead))
    return Machine(description, arch)


def stale_translations(of: Machine, mm: Mm) -> int:
    """TLB entries that a CPU of the mm's mask could use for it and that its tables do not bear out, those for the
    tables themselves included. (What another CPU holds under its number it demaps before it runs it.)"""
    struct = mm.struct
    cpus = [cpu for cpu in of.kernel.cpus if struct.cpu_mask >> cpu.index & 1]
    return sum(cpu.count_stale(struct.context.number, struct.pgd, 0, 0) for cpu in cpus)


def stale_buffer_entries(of: Machine, mm: Mm) -> int:
    """TSB entries of ``mm`` that are not the pte."""
    stale = 0
    for tsb in (mm.struct.context.tsb, mm.struct.context.huge_tsb):
        for addr, tte in entries_of(of, tsb).items() if tsb is not None else ():
            ptep = find_entry(mm.struct, addr)
            pte = read_pte(mm.struct, ptep) if ptep >= 0 else 0
            stale += pte != tte
    return stale


def entries_of(of: Machine, tsb: Tsb) -> dict[int, int]:
    """Address -> TTE of what a TSB holds. The slot says the address bits below the tag, down to its page size."""
    words = tsb_words(of.kernel, tsb).astype(np.uint64)
    found = {}
    for slot in np.flatnonzero(words[:, 0] != INVALID).tolist():
        low = slot << tsb.page_shift & ((1 << 22) - 1)
        found[int(words[slot, 0]) << 22 | low] = int(words[slot, 1])
    return found


def events(of: Machine) -> dict[str, int]:
    """What CPU 0's walks counted."""
    walk: dict[str, int] = of.kernel.cpus[0].counters()["walk"]
    return walk
