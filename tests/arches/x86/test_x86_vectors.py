"""The 32-bit x86 facts: indices, entries and error codes as the manuals and Linux's own layout give them.

Vectors: Intel SDM vol. 3A "32-bit paging" and "PAE paging", worked by hand.
"""

from __future__ import annotations

import pytest

from polymmu.arch import Access, EntryFormat, Privilege, UserMistake, WalkFault
from polymmu.registry import arch_named
from polymmu_x86 import PAE, TWO_LEVEL, X86Config
from polymmu_x86.entries import fault_codes

MIB = 1 << 20
X86 = arch_named("x86").ops
PAE_SECTION = X86Config(paging="pae", nx=True, phys_bits=36)
FLAT_SECTION = X86Config(paging="2level", phys_bits=36)


def formats(section: X86Config) -> list[EntryFormat]:
    registers = X86.boot_registers(section)
    layout = X86.page_table_layout(section)
    return [X86.entry_format(section, registers, level) for level in range(layout.levels)]


@pytest.mark.parametrize(
    ("va", "pgd", "pte", "offset"),
    [
        (0x08048000, 32, 72, 0),
        (0xB7FE1ABC, 735, 993, 0xABC),
        (0xBFFFF123, 767, 1023, 0x123),
        (0xC0000000, 768, 0, 0),
        (0xFFFFE000, 1023, 1022, 0),
    ],
)
def test_two_level_splits_an_address_10_10_12(va: int, pgd: int, pte: int, offset: int) -> None:
    assert (TWO_LEVEL.index_of(0, va), TWO_LEVEL.index_of(1, va), va & 0xFFF) == (pgd, pte, offset)


@pytest.mark.parametrize(
    ("va", "indices"),
    [
        (0x08048000, (0, 64, 72)),
        (0x40000000, (1, 0, 0)),
        (0xB7FE1ABC, (2, 447, 481)),
        (0xBFFFF123, (2, 511, 511)),
        (0xC0000000, (3, 0, 0)),
    ],
)
def test_pae_splits_an_address_2_9_9_12(va: int, indices: tuple[int, int, int]) -> None:
    assert tuple(PAE.index_of(level, va) for level in range(3)) == indices


def test_pgdir_and_pmd_sizes_are_those_of_linux() -> None:
    assert TWO_LEVEL.span_of(0) == 4 * MIB
    assert PAE.span_of(0) == 1024 * MIB
    assert PAE.span_of(PAE.pmd_level) == 2 * MIB
    assert [PAE.table_bytes_of(level) for level in range(3)] == [32, 4096, 4096]


def test_pte_with_0x067_is_writable_user_accessed_and_dirty() -> None:
    pte = formats(FLAT_SECTION)[1]
    assert pte.frame_of(0x12345067) == 0x12345000
    for field in (pte.present, pte.write, pte.user, pte.accessed, pte.dirty):
        assert field is not None
        assert field.test(0x12345067)


def test_pte_with_0x025_is_read_only_and_clean() -> None:
    pte = formats(FLAT_SECTION)[1]
    assert pte.dirty is not None
    assert not pte.write.test(0x12345025)
    assert not pte.dirty.test(0x12345025)


def test_prot_none_pte_is_absent_to_hardware_and_present_to_the_core() -> None:
    pte = formats(FLAT_SECTION)[1]
    value = 0x12345000 | X86.page_protections(FLAT_SECTION, X86.boot_registers(FLAT_SECTION))[0]
    assert not pte.present.test(value)
    assert pte.is_mapped(value)


def test_four_mib_page_takes_bits_32_to_39_from_13_to_20() -> None:
    pde = formats(X86Config(phys_bits=40))[0]
    assert 0x008020E3 & pde.leaf_mask
    assert pde.frame_of(0x008020E3) == 0x1_0080_0000
    assert pde.frame_of(0x1C0001E3) == 0x1C00_0000
    assert pde.reserved_leaf == 1 << 21


def test_four_mib_page_without_pse_36_reserves_those_bits() -> None:
    assert formats(X86Config(phys_bits=32))[0].reserved_leaf == 0x3FE000


def test_pae_top_entry_with_rights_bits_is_malformed() -> None:
    top = formats(PAE_SECTION)[0]
    assert 0x35A1E067 & top.reserved_table
    assert not 0x35A1E001 & top.reserved_table


def test_pae_large_page_vectors() -> None:
    pde = formats(PAE_SECTION)[1]
    assert pde.frame_of(0x1236000E7) == 0x123600000
    assert not 0x1236000E7 & pde.reserved_leaf
    assert 0x1236020E7 & pde.reserved_leaf


def test_pae_pte_above_4_gib_with_no_execute() -> None:
    pte = formats(PAE_SECTION)[2]
    assert pte.frame_of(0x8000000123456067) == 0x123456000
    assert not pte.execute.test(0x8000000123456067)


def test_bit_63_is_reserved_without_nx() -> None:
    pte = formats(X86Config(paging="pae", nx=False))[2]
    assert pte.reserved_leaf >> 63


def test_error_code_bits_are_p_w_u_rsvd_id() -> None:
    codes = fault_codes(reports_fetch=True)
    assert codes[WalkFault.NO_PERMISSION, Access.STORE, Privilege.USER] == 7
    assert codes[WalkFault.NOT_PRESENT, Access.STORE, Privilege.USER] == 6
    assert codes[WalkFault.NOT_PRESENT, Access.LOAD, Privilege.SUPERVISOR] == 0
    assert codes[WalkFault.RESERVED_BIT, Access.LOAD, Privilege.USER] == 0b1101
    assert codes[WalkFault.NO_PERMISSION, Access.FETCH, Privilege.USER] == 0b10101
    assert fault_codes(reports_fetch=False)[WalkFault.NOT_PRESENT, Access.FETCH, Privilege.USER] == 4


@pytest.mark.parametrize("kind", [WalkFault.NOT_PRESENT, WalkFault.NO_PERMISSION, WalkFault.RESERVED_BIT])
@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize("privilege", list(Privilege))
def test_every_error_code_is_decoded_to_what_happened(
    kind: WalkFault, access: Access, privilege: Privilege
) -> None:
    info = X86.decode_fault(fault_codes(reports_fetch=True)[kind, access, privilege])
    expected = {
        WalkFault.NOT_PRESENT: "not_present",
        WalkFault.NO_PERMISSION: "protection",
        WalkFault.RESERVED_BIT: "reserved",
    }
    assert (info.access, info.kind, info.user) == (
        access.name.lower(),
        expected[kind],
        privilege is Privilege.USER,
    )


def test_registers_with_paging_off_are_refused() -> None:
    with pytest.raises(UserMistake, match=r"paging \(bit 31\) off"):
        X86.translation(FLAT_SECTION, {"cr0": 0x11})


def test_root_under_pae_is_32_byte_aligned() -> None:
    assert X86.root_of(PAE_SECTION, {"cr3": 0x1234567F, "cr4": 0x20}, None) == 0x12345660
    assert X86.root_of(FLAT_SECTION, {"cr3": 0x1234567F}, None) == 0x12345000
