"""Rights that only leaves carry, and user pages that a supervisor may not touch: both walkers agree.

A made-up format: bit 0 present, 1 a leaf, 2 write, 3 user, 4 execute, 5 accessed, 6 dirty; the page number stands two
bits too low.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from polymmu.hardware.entry import Access, EntryFormat, Field, Privilege, WalkFault
from polymmu.hardware.layout import RadixLayout
from polymmu.hardware.ram import Ram
from polymmu.hardware.walk import RadixTranslation, walk, walk_many
from tests.hardware.bench import Bench

P, LEAF, W, U, X, A, D = (1 << n for n in range(7))
NUMBER = (1 << 30) - (1 << 10)
LAYOUT = RadixLayout((9, 9), 12, ("pgd", "pte"), (8, 8), frozenset({0, 1}))
FORMAT = EntryFormat(
    present=Field(P, P),
    frame_mask=NUMBER,
    table_mask=NUMBER,
    leaf_mask=LEAF,
    write=Field(W, W),
    user=Field(U, U),
    execute=Field(X, X),
    accessed=Field(A, A),
    dirty=Field(D, D),
    address_shift=2,
    leaves_alone=True,
)
TABLE, PAGE, LARGE = 0x2000, 0x40000, 0x200000
LARGE_VA = 1 << 21


def mmu(refused: frozenset[Access] = frozenset()) -> RadixTranslation:
    return RadixTranslation(layout=LAYOUT, formats=(FORMAT, FORMAT), refused_on_user=refused)


def tables(ram: Ram, small: int, large: int) -> None:
    ram.write_entry(0x1000, 8, "little", TABLE >> 2 | P)
    ram.write_entry(TABLE, 8, "little", PAGE >> 2 | P | LEAF | small)
    ram.write_entry(0x1008, 8, "little", LARGE >> 2 | P | LEAF | large)


def test_an_entry_that_points_to_a_table_takes_no_right_away_and_is_never_marked() -> None:
    bench = Bench(mmu())
    tables(bench.ram, W | U | X, W)
    bench.cpu.load_root(0x1000)
    bench.cpu.store(0, b"x")
    assert bench.ram.read(PAGE, 1) == b"x"
    assert bench.ram.read_entry(0x1000, 8, "little") == TABLE >> 2 | P
    assert bench.ram.read_entry(TABLE, 8, "little") == PAGE >> 2 | P | LEAF | W | U | X | A | D


@pytest.mark.parametrize(
    "refused",
    [frozenset[Access](), frozenset({Access.FETCH}), frozenset(Access)],
    ids=["none", "fetch", "all"],
)
@pytest.mark.parametrize(("access", "privilege"), list(itertools.product(Access, Privilege)))
def test_both_walkers_grant_what_the_leaf_grants(
    access: Access, privilege: Privilege, refused: frozenset[Access]
) -> None:
    for flags in itertools.product((0, W), (0, U), (0, X)):
        ram = Ram(1 << 23)
        tables(ram, sum(flags), sum(flags))
        allowed = {Access.LOAD: True, Access.STORE: W in flags, Access.FETCH: X in flags}[access]
        if privilege is Privilege.USER:
            allowed &= U in flags
        elif U in flags:
            allowed &= access not in refused
        fault = WalkFault.NONE if allowed else WalkFault.NO_PERMISSION
        for va, pa in ((0, PAGE), (LARGE_VA, LARGE)):
            found = walk(ram, mmu(refused), 0x1000, va, access, privilege)
            assert (found.fault, found.pa) == (fault, pa if allowed else None)
        vas = np.array([0, LARGE_VA], dtype=np.uint64)
        _, _, faults = walk_many(ram.words, mmu(refused), 0x1000, vas, access, privilege)
        assert faults.tolist() == [fault, fault]
