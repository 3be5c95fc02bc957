"""A walk remembers the last leaf that was fine; a leaf that only looks alike is judged anew."""

from __future__ import annotations

import pytest

from polymmu.hardware.cpu import InternalError
from polymmu.hardware.entry import Privilege, WalkFault
from tests.hardware.bench import ACCESSED, CACHES, DIRTY, K4, LEAF, PRESENT, USER, WRITE, Bench
from tests.hardware.x86_formats import four_level

HERE, THERE = 0x40000000, 0x80000000  # below different entries of every table but the root
PMD = 2


def machine() -> Bench:
    """A CPU whose last leaf was that of a store, and all of whose walks start at the lowest table."""
    bench = Bench(four_level(), caches=CACHES)
    for page in range(4):
        bench.map(HERE + page * K4, LEAF | ACCESSED | DIRTY)
        bench.map(THERE + page * K4, LEAF | ACCESSED | DIRTY)
    for va in (HERE, HERE + K4, THERE):
        bench.cpu.load(va, 1)
    bench.cpu.store(HERE + 2 * K4, b"x")
    return bench


def test_rights_of_the_tables_above_still_count() -> None:
    bench = machine()
    _, _, entry = bench.entry(THERE, PMD)
    bench.set(THERE, entry & ~WRITE, PMD)
    bench.cpu.invalidate(asid=None, walk_caches="all")
    bench.cpu.load(THERE, 1)
    bench.cpu.load(HERE, 1)
    bench.cpu.store(HERE + K4, b"x")
    bench.cpu.store(HERE + 3 * K4, b"x")
    with pytest.raises(InternalError):
        bench.cpu.store(THERE + 3 * K4, b"x")
    assert bench.cpu.fault_kind == WalkFault.NO_PERMISSION


def test_the_privilege_that_asks_still_counts() -> None:
    bench = machine()
    for page in (4, 5):
        bench.map(HERE + page * K4, PRESENT | WRITE | ACCESSED)
    bench.cpu.privilege = Privilege.SUPERVISOR
    bench.cpu.load(HERE + 4 * K4, 1)
    bench.cpu.privilege = Privilege.USER
    with pytest.raises(InternalError):
        bench.cpu.load(HERE + 5 * K4, 1)
    assert bench.cpu.fault_kind == WalkFault.NO_PERMISSION


def test_accessed_and_dirty_are_set_on_every_page_of_a_kind() -> None:
    bench = machine()
    for page in range(8, 16):
        bench.map(HERE + page * K4, LEAF)
        bench.map(HERE + (page + 8) * K4, LEAF | ACCESSED)
    for page in range(8, 16):
        bench.cpu.load(HERE + page * K4, 1)
        bench.cpu.store(HERE + (page + 8) * K4, b"x")
    for page in range(8, 16):
        assert bench.entry(HERE + page * K4)[2] & (ACCESSED | DIRTY) == ACCESSED
        assert bench.entry(HERE + (page + 8) * K4)[2] & (ACCESSED | DIRTY) == ACCESSED | DIRTY


def test_a_reserved_bit_is_found_beside_pages_without_one() -> None:
    bench = Bench(four_level(physical_bits=40), caches=CACHES)
    for page in range(3):
        bench.map(HERE + page * K4, LEAF | ACCESSED | USER)
    bench.cpu.load(HERE, 1)
    bench.cpu.load(HERE + K4, 1)
    _, _, entry = bench.entry(HERE + 2 * K4)
    bench.set(HERE + 2 * K4, entry | 1 << 45)
    with pytest.raises(InternalError):
        bench.cpu.load(HERE + 2 * K4, 1)
    assert bench.cpu.fault_kind == WalkFault.RESERVED_BIT
