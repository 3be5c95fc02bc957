"""A root table in parts: the top address bits choose one, and what lies between the parts is not translated."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.hardware.layout import RadixLayout
from polymmu.hardware.walk import RadixTranslation
from tests.mm.toy import Toy

PLAIN = RadixLayout((5, 4, 4), 12, ("pgd", "pmd", "pte"), (8, 8, 8), frozenset({2}))
PARTS = attrs.evolve(PLAIN, regions=3)


@pytest.mark.parametrize(
    ("va", "indices"),
    [
        (0, (0, 0, 0)),
        (0x2000000000012345, (4, 1, 2)),
        (0x20000000003FF000, (7, 15, 15)),
        (0x4000000000000000, (8, 0, 0)),
        (0xFFFFFFFFFFFFFFFF, (31, 15, 15)),
    ],
)
def test_three_top_bits_lead_the_roots_index(va: int, indices: tuple[int, ...]) -> None:
    assert tuple(PARTS.index_of(level, va) for level in range(3)) == indices


@settings(deadline=None, derandomize=True)
@given(region=st.integers(0, 7), inside=st.integers(0, (1 << 22) - 1))
def test_a_folded_address_needs_no_regions(region: int, inside: int) -> None:
    folded = PARTS.folded(region << 61 | inside)
    assert folded == region << 22 | inside
    for level in range(3):
        assert PARTS.index_of(level, region << 61 | inside) == PLAIN.index_of(level, folded)


def test_without_regions_an_address_is_itself() -> None:
    assert PLAIN.folded(0xFFFF000012345678) == 0xFFFF000012345678
    assert (PLAIN.va_bits, PARTS.va_bits) == (25, 64)


def test_there_cannot_be_more_regions_than_the_root_has_entries() -> None:
    with pytest.raises(ValueError, match="regions"):
        attrs.evolve(PLAIN, regions=6)


def test_a_radix_walker_refuses_a_layout_with_regions() -> None:
    formats = tuple(Toy().entry_format(level) for level in range(3))
    with pytest.raises(ValueError, match="regions"):
        RadixTranslation(layout=PARTS, formats=formats)
