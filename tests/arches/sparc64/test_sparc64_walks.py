"""Walks: Python and the compiled handler read the same tables alike; range walks count right at every edge."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.hardware.cpu import Cpu, Upcoming
from polymmu.hardware.entry import Access, Privilege
from polymmu.hardware.ram import Frames, Ram
from polymmu.hardware.state import PA
from polymmu.registry import arch_named
from polymmu_sparc64 import Sparc64Config
from tests.arches.sparc64.machines import machine, stale_translations

OPS = arch_named("sparc64").ops
RAM = Ram(1 << 24)
ROOT, PMD, PTES = 0x100000, 0x200000, 0x300000
UPPER_EDGE = (1 << 64) - (1 << 43)
MASK_IN_RAM = (1 << 63) | 0xE000000000FFFFFF  # flags and sizes of all kinds, addresses inside the RAM
SECTIONS = {
    "tsb": Sparc64Config(),
    "vpte": Sparc64Config(generation="vpte"),
    "sun4v": Sparc64Config(cpu="sun4v"),
    "wide": Sparc64Config(upper_entries=64),
}


class Refused(Exception):
    """An access was refused."""


class Recorder:
    """Software that gives up at every trap."""

    def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
        raise Refused(code)


def enter(section: Sparc64Config, va: int, pgd: int, pmd: int, pte: int) -> None:
    """One entry in each table; an upper one is the next table's, 0, or an address outside memory."""
    layout = OPS.page_table_layout(section)
    width = section.upper_entries // 8
    tables = (ROOT, PMD, PTES)
    for table in tables:
        RAM.bytes[table : table + 0x10000] = 0
    for level, (choice, below) in enumerate(((pgd, PMD), (pmd, PTES))):
        address = (below, 0, 1 << 40)[choice]
        value = OPS.entry_format(section, {}, level).of_table(address)
        RAM.write_entry(layout.entry_address(level, tables[level], va), width, "big", value)
    RAM.write_entry(layout.entry_address(2, PTES, va), 8, "big", pte)


@pytest.mark.parametrize("kind", SECTIONS)
@given(
    va=st.one_of(
        st.integers(0, (1 << 43) - 1), st.integers((1 << 64) - (1 << 43), (1 << 64) - (1 << 34) - 1)
    ),
    upper=st.tuples(st.sampled_from([0, 0, 0, 1, 2]), st.sampled_from([0, 0, 0, 1, 2])),
    pte=st.integers(0, (1 << 64) - 1),
    live=st.booleans(),
    access=st.sampled_from(Access),
    privilege=st.sampled_from(Privilege),
)
@settings(max_examples=100, deadline=None)
def test_python_and_the_compiled_handler_agree(
    kind: str,
    va: int,
    upper: tuple[int, int],
    pte: int,
    live: bool,
    access: Access,
    privilege: Privilege,
) -> None:
    section = SECTIONS[kind]
    translation = OPS.translation(section, {})
    pte = pte & MASK_IN_RAM | live << 63
    enter(section, va, *upper, pte)
    cpu = Cpu(0, RAM, Frames(RAM.size >> 13, 8192), {}, {}, translation)
    cpu.vectors = Recorder()
    cpu.privilege = privilege
    cpu.load_root(ROOT)
    expected = translation.walk(RAM, ROOT, va, access, privilege)
    op = np.array([access], dtype=np.uint8)
    try:
        cpu.replay(op, np.array([va], dtype=np.uint64), np.ones(1, dtype=np.uint8), 0, 1)
    except Refused as refusal:
        assert expected.pa is None
        assert refusal.args[0] == expected.code
        assert cpu.fault_kind is expected.fault
    else:
        assert cpu._view[PA] == expected.pa
    assert cpu.counters()["walk"]["references"] == len(expected.path)


edges = st.sampled_from([1 << 34, 1 << 43, UPPER_EDGE, UPPER_EDGE + (1 << 34)])
near = st.integers(-3 * 1024, 3 * 1024 - 1)  # pages: three tables of ptes on either side


@given(
    places=st.sets(st.tuples(edges, near), min_size=1, max_size=12),
    kept=st.sets(st.integers(0, 11), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_tables_are_those_of_the_pages_that_are_mapped_on_both_sides_of_the_hole(
    places: set[tuple[int, int]], kept: set[int]
) -> None:
    emulated = machine("vpte")
    mm = emulated.new_mm()
    emulated.cpus[0].switch_mm(mm)
    pages = sorted({edge + n * 8192 for edge, n in places})
    pages = [va for va in pages if not 1 << 43 <= va < UPPER_EDGE]

    def tables(mapped: list[int]) -> list[int]:
        return [0, len({va >> 34 for va in mapped}), len({va >> 23 for va in mapped})]

    for va in pages:
        mm.mmap(8192, "rw", at=va, fixed=True)
        emulated.cpus[0].store(va, b"x")
    assert mm.struct.nr_tables == tables(pages)
    staying = [va for n, va in enumerate(pages) if n in kept]
    borders = [0, *staying, UPPER_EDGE + (1 << 36)]
    for below, above in pairwise(borders):
        start = below + 8192
        mm.munmap(start, above - start)
    assert mm.struct.nr_tables == tables(staying)
    assert not stale_translations(emulated, mm)
    for va in staying:
        assert emulated.cpus[0].load(va, 1) == b"x"
