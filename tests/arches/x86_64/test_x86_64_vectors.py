"""The 64-bit x86 facts: indices, entries, limits. Intel SDM vol. 3A "4-level paging and 5-level paging"."""

from __future__ import annotations

import pytest

from polymmu.arch import EntryFormat
from polymmu.registry import arch_named
from polymmu_x86_64 import FIVE_LEVEL, FOUR_LEVEL, X86_64Config

OPS = arch_named("x86_64").ops
SECTION = X86_64Config()


def formats(section: X86_64Config) -> list[EntryFormat]:
    registers = OPS.boot_registers(section)
    return [
        OPS.entry_format(section, registers, level) for level in range(OPS.page_table_layout(section).levels)
    ]


@pytest.mark.parametrize(
    ("va", "indices", "offset"),
    [
        (0x0000000000400000, (0, 0, 2, 0), 0),
        (0x00000000FFFFE000, (0, 3, 511, 510), 0),
        (0x00007F1234567ABC, (254, 72, 418, 359), 0xABC),
        (0x00007FFFFFFFE123, (255, 511, 511, 510), 0x123),
        (0xFFFF810000000000, (258, 0, 0, 0), 0),
        (0xFFFFFFFF80000000, (511, 510, 0, 0), 0),
    ],
)
def test_four_levels_split_an_address_into_nines(va: int, indices: tuple[int, ...], offset: int) -> None:
    assert tuple(FOUR_LEVEL.index_of(level, va) for level in range(4)) == indices
    assert va & 0xFFF == offset


@pytest.mark.parametrize(
    ("va", "indices"),
    [
        (0x007F123456789ABC, (127, 36, 209, 179, 393)),
        (0x00007FFFFFFFE123, (0, 255, 511, 511, 510)),
        (0x00FFFFFFFFFFF000, (255, 511, 511, 511, 511)),
        (0xFF11000000000000, (273, 0, 0, 0, 0)),
    ],
)
def test_five_levels_split_an_address_into_nines(va: int, indices: tuple[int, ...]) -> None:
    assert tuple(FIVE_LEVEL.index_of(level, va) for level in range(5)) == indices


def test_levels_cover_what_linux_calls_pgdir_pud_pmd() -> None:
    assert [FOUR_LEVEL.span_of(level) for level in range(4)] == [1 << 39, 1 << 30, 1 << 21, 1 << 12]


def test_entry_vectors() -> None:
    pgd, pud, pmd, pte = formats(SECTION)
    assert pte.frame_of(0x8000000123456067) == 0x123456000
    assert not pte.execute.test(0x8000000123456067)
    assert not pte.write.test(0x0000000123457205)
    assert pte.accessed is not None
    assert not pte.accessed.test(0x0000000123457205)
    assert 0x80000001236000E7 & pmd.leaf_mask
    assert pmd.frame_of(0x80000001236000E7) == 0x123600000
    assert 0xC00000E7 & pud.leaf_mask
    assert pud.frame_of(0xC00000E7) == 0xC0000000
    assert 0x12345067 & pgd.table_mask == 0x12345000
    assert not 0x12345067 & pgd.reserved_table
    assert 0x123450E7 & pgd.reserved_table, "bit 7 is reserved in the top entry"


def test_bits_above_maxphyaddr_are_reserved_at_every_level() -> None:
    for level, each in enumerate(formats(X86_64Config(phys_bits=40))):
        if level:
            assert each.reserved_leaf & 1 << 40
        if level < 3:
            assert each.reserved_table & 1 << 51
        assert not each.reserved_leaf & 1 << 52, "bits 52 to 58 are ignored"


def test_user_space_ends_a_page_below_the_hole() -> None:
    assert OPS.address_limits(SECTION).task_size == 0x7FFFFFFFF000
    assert OPS.address_limits(X86_64Config(levels=5)).task_size == 0xFFFFFFFFFFF000


def test_private_writable_pages_start_read_only_and_shared_ones_writable() -> None:
    protections = OPS.page_protections(SECTION, OPS.boot_registers(SECTION))
    read_write, shared = 0b0011, 0b1011
    assert protections[read_write] & 0b111 == 0b101
    assert protections[shared] & 0b111 == 0b111
    assert protections[read_write] >> 63 == 1
    assert protections[0b0101] >> 63 == 0
