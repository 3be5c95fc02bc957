"""Looking into a running machine's hash table, with arithmetic of its own, and small programs for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from polymmu.events import Events, Observer
from polymmu.machine import Machine, Mm
from polymmu.structs import mm_struct

MODULUS = (1 << 36) - 1


@attrs.frozen
class Hpte:
    """A valid entry: group, slot, both doublewords."""

    group: int
    slot: int
    first: int
    second: int


def machine_with(name: str, *sets: str) -> Machine:
    """``name`` with less memory, so that its hash table is quick to look through."""
    return Machine.from_file(name, sets=("memory=256 MiB", *sets))


def entries(machine: Machine) -> Iterator[Hpte]:
    """Every valid entry of the hash table."""
    state = machine.kernel.arch_state
    base = state.hash_table >> 3
    words = machine.kernel.ram.u64[base : base + state.groups * 16].byteswap()
    for n in ((words[::2] & 1).nonzero()[0]).tolist():
        yield Hpte(n // 8, n % 8, int(words[2 * n]), int(words[2 * n + 1]))


def vsids(machine: Machine, mms: list[mm_struct], top: int) -> dict[int, tuple[mm_struct, int]]:
    """VSID -> (mm, segment) for the segments that the tests use: the lowest and highest of the address space."""
    shift = 15 if machine.description.section.levels == 3 else 16
    found = {}
    for mm in mms:
        for segment in [*range(64), *range((top >> 28) - 64, top >> 28), *range(1 << 12, (1 << 12) + 64)]:
            vsid = (mm.context.number << shift | segment) * 200730139 % MODULUS
            assert vsid not in found
            found[vsid] = mm, segment
    return found


def check(machine: Machine, *alive: Mm) -> None:
    """Each valid entry stands for a present pte of a live address space, grants no more, and is where that says;
    no TLB knows what the tables do not say."""
    mms = [mm.struct for mm in alive]
    kernel = machine.kernel
    page = kernel.shape.layout.page_shift
    where = vsids(machine, mms, kernel.shape.limits.task_size)
    hashed = 0x08000000 if page == 16 else 0x400
    for entry in entries(machine):
        avpn = entry.first >> 7 & (1 << 55) - 1
        vsid, offset = avpn >> 5, (avpn & 31) << 23
        mm, segment = where[vsid]
        # What the AVPN leaves out of the page number is in the hash.
        low = (~entry.group if entry.first & 2 else entry.group) ^ vsid
        ea = segment << 28 | offset | (low << page & (1 << 23) - 1)
        pte = pte_at(mm, ea)
        assert pte & 1, hex(ea)
        assert pte & hashed, hex(ea)
        assert pte >> 12 & 15 == entry.slot | (8 if entry.first & 2 else 0)
        if entry.second & 3 == 2:
            assert pte & 0x280 == 0x280, "a store would pass that the pte does not allow or note"
    for cpu in machine.cpus:
        mm_loaded = kernel.active_mm[cpu.index]
        if mm_loaded is not None:
            assert cpu.cpu.count_stale(None, cpu.cpu.root, 0, 0) == 0


def pte_at(mm: mm_struct, ea: int) -> int:
    """Linux's pte for ``ea``, 0 where there is no table, walked by hand."""
    kernel: Any = mm.kernel
    layout, table = mm.layout, mm.pgd
    for level in range(layout.levels):
        place = (
            table + (ea >> layout.shifts[level] & layout.entries_of(level) - 1) * layout.entry_bytes[level]
        )
        value: int = kernel.ram.read_entry(place, layout.entry_bytes[level], "big")
        if level == layout.pte_level or not value:
            return value
        table = value << 12 if layout.entry_bytes[level] == 4 else value & ~(0xC << 60)
    raise AssertionError


class Heard(Observer):
    """Notes every flush of a machine, (how, how many other CPUs), and every page fault's kind."""

    def __init__(self, machine: Machine) -> None:
        self.seen: list[tuple[str, int]] = []
        self.faults: list[str] = []
        machine.kernel.events = Events((machine.counters, machine.flushes, self))

    def shootdown(self, mm: Any, kind: str, cpus: int) -> None:
        self.seen.append((kind, cpus))

    def fault(self, mm: Any, addr: int, kind: str, n: int) -> None:
        self.faults.append(kind)
