"""Random TLB contents and what QEMU's UltraSPARC IIi made of each access (``sparc64-tlb.json``; see the README there).

Each case's entries are put into the page tables of the context they belong to and touched once, so that the miss
handler loads them into the data TLB as they are: size code, G, P, W. Then the case's own context is loaded with empty
tables, and every probe is made: what the TLB does not answer is a miss.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from polymmu.description.model import TlbSpec
from polymmu.hardware.cpu import Cpu, Upcoming
from polymmu.hardware.entry import Privilege
from polymmu.hardware.ram import Frames, Ram
from polymmu.registry import arch_named
from polymmu_sparc64 import Sparc64Config
from polymmu_sparc64.tte import tsb_pointer
from tests.arches.captured import DATA

SET: dict[str, Any] = json.loads((DATA / "sparc64-tlb.json").read_text())
OPS = arch_named("sparc64").ops
LAYOUT = Sparc64Config().layout
TABLES = 512 << 20  # behind every page that an entry of the set maps
SIZES = (8 << 10, 64 << 10, 512 << 10, 4 << 20)
DATA_TLB = {"D": TlbSpec(level=1, page_sizes=SIZES, entries=64, ways=64)}
RAM = Ram(1 << 30)


class Trapped(Exception):
    """An access was refused."""


class Recorder:
    """Software that gives up at every trap."""

    def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
        raise Trapped(code & 0xFF)


class Tables:
    """Page tables made one page at a time."""

    def __init__(self) -> None:
        RAM.bytes[TABLES:] = 0
        self.free = TABLES

    def table(self) -> int:
        self.free += 8192
        return self.free - 8192

    def enter(self, root: int, va: int, tte: int) -> None:
        table = root
        for level in range(2):
            place = LAYOUT.entry_address(level, table, va)
            if not RAM.read_entry(place, 4, "big"):
                RAM.write_entry(place, 4, "big", self.table() >> 11)
            table = RAM.read_entry(place, 4, "big") << 11
        RAM.write_entry(LAYOUT.entry_address(2, table, va), 8, "big", tte)


def loaded(case: dict[str, Any]) -> Cpu:
    """A CPU whose data TLB holds the case's entries, in the case's context."""
    translation = OPS.translation(Sparc64Config(), {})
    cpu = Cpu(0, RAM, Frames(RAM.size >> 13, 8192), DATA_TLB, {}, translation)
    cpu.vectors = Recorder()
    cpu.privilege = Privilege.SUPERVISOR
    tables = Tables()
    roots: dict[int, int] = {}
    for tag_access, tte in case["tte"]:
        context, va = tag_access & 0x1FFF, tag_access & -8192
        root = roots.setdefault(context, tables.table() if context not in roots else 0)
        first = va & -(8192 << 3 * (tte >> 61 & 3))
        tables.enter(root, first, tte)
        cpu.load_root(root, asid=context)
        if tte >> 63:
            cpu.load(first, 8)
    cpu.load_root(tables.table(), asid=case["primary_context"])
    return cpu


def outcome_of_load(cpu: Cpu, va: int, expected: Any) -> Any:
    if expected[0] == "pa":
        RAM.write(expected[1], expected[1].to_bytes(8, "little"))
    try:
        return ["pa", int.from_bytes(cpu.load(va, 8), "little")]
    except Trapped as trap:
        return ["trap", trap.args[0]]


@pytest.mark.parametrize("number", range(len(SET["tlb"])))
def test_every_probe_meets_the_entry_or_the_trap_that_qemu_gave(number: int) -> None:
    case = SET["tlb"][number]
    cpu = loaded(case)
    for va, load, user_load, store in case["probes"]:
        cpu.privilege = Privilege.SUPERVISOR
        assert outcome_of_load(cpu, va, load) == load, hex(va)
        try:
            cpu.store(va, b"polymmu!")
            assert store == "ok", hex(va)
            assert RAM.read(load[1], 8) == b"polymmu!"
        except Trapped as trap:
            assert ["trap", trap.args[0]] == store, hex(va)
        cpu.privilege = Privilege.USER
        assert outcome_of_load(cpu, va, user_load) == user_load, hex(va)


def test_the_set_has_hits_and_every_kind_of_trap() -> None:
    outcomes = [str(each) for case in SET["tlb"] for probe in case["probes"] for each in probe[1:]]
    assert {"ok", "['trap', 48]", "['trap', 104]", "['trap', 108]"} <= set(outcomes)
    assert len(outcomes) > 1000


def test_every_tsb_pointer_is_the_one_that_qemu_computed() -> None:
    pointer: Any = tsb_pointer.py_func  # type: ignore[attr-defined]
    assert len(SET["tsb_pointers"]) > 100
    for tag_access, register, for_8k, for_64k in SET["tsb_pointers"]:
        assert pointer(register, tag_access, 13, 0) == for_8k
        assert pointer(register, tag_access, 16, 1) == for_64k
