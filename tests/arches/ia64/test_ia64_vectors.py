"""The ia64 facts: how addresses split, entries, region registers, the VHPT's addresses, sizes of purges.

Values from the definitions in Linux's headers (2.6.11 to 3.0) and the SDM (vol. 2 ch. 4), computed by hand.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from polymmu.arch import Access, EntryFormat, Privilege, WalkFault, mm_struct
from polymmu.registry import arch_named
from polymmu_ia64 import Ia64Config
from polymmu_ia64.entries import decode, fault_codes, is_implemented, is_reserved, vhpt_address
from polymmu_ia64.mmu import page_table_address, region_register
from polymmu_ia64.tlbflush import purge_shift

OPS = arch_named("ia64").ops
SECTION = Ia64Config()
LAYOUT = OPS.page_table_layout(SECTION)
PTA = page_table_address(61, 14)
PFN = 0x12345 << 14


def mm_of(section: Ia64Config) -> mm_struct:
    """As much of an mm as the questions about addresses look at."""
    kernel = SimpleNamespace(description=SimpleNamespace(section=section))
    return cast(mm_struct, SimpleNamespace(kernel=kernel))


@pytest.mark.parametrize(
    ("va", "indices", "slot"),
    [
        (0x2000000000123456, (256, 0, 72), 0x3FFC000000000240),
        (0x6000000012345678, (768, 9, 209), 0x7FFC000000024688),
        (0x2000000800300010, (256, 1024, 192), 0x3FFC000001000600),
        (0x60000FFFFFFE0000, (1023, 2047, 2040), 0x7FFC0001FFFFFFC0),
    ],
)
def test_an_address_splits_into_region_and_three_indices_and_has_a_slot_in_its_regions_vhpt(
    va: int, indices: tuple[int, ...], slot: int
) -> None:
    assert tuple(LAYOUT.index_of(level, va) for level in range(3)) == indices
    assert vhpt_address(va, 14, PTA, 61) == slot


@pytest.mark.parametrize(
    ("va", "small", "indices", "slot"),
    [
        (0x8000000050000000, 0x8000000000014000, (1024, 0, 5), 0x9FFC000000000028),
        (0x80000FFFE0000000, 0x800000003FFF8000, (1024, 31, 2046), 0x9FFC00000007FFF0),
    ],
)
def test_a_huge_page_stands_where_a_small_page_of_the_scaled_address_would(
    va: int, small: int, indices: tuple[int, ...], slot: int
) -> None:
    assert SECTION.scaled(va) == small
    assert SECTION.unscaled(small) == va
    assert tuple(LAYOUT.index_of(level, small) for level in range(3)) == indices
    assert vhpt_address(va, 28, PTA, 61) == vhpt_address(small, 14, PTA, 61) == slot


@pytest.mark.parametrize(
    ("size", "entries", "pmd", "pgdir", "reach", "user"),
    [
        ("4K", 512, 21, 30, 36, 320),
        ("8K", 1024, 23, 33, 40, 640),
        ("16K", 2048, 25, 36, 44, 1280),
        ("64K", 8192, 29, 42, 52, 5120),
    ],
)
def test_every_page_size_has_linuxs_geometry(
    size: str, entries: int, pmd: int, pgdir: int, reach: int, user: int
) -> None:
    section = Ia64Config(page_size=size)
    layout = OPS.page_table_layout(section)
    limits = OPS.address_limits(section)
    assert [layout.entries_of(level) for level in range(3)] == [entries] * 3
    assert (layout.shift_of(1), layout.shift_of(0)) == (pmd, pgdir)
    assert limits.task_size == 0xA000000000000000
    assert layout.index_of(0, limits.task_size) == user
    for region, (start, end) in enumerate(limits.holes):
        base = region << 61
        assert (start, end) == (base + (1 << reach) - layout.page_size, base + (1 << 61))


def test_mappings_go_to_region_1_and_the_stack_to_region_3() -> None:
    limits = OPS.address_limits(SECTION)
    assert limits.mmap_base == 0x2000000000000000 + (1 << 44) - 0x4000
    assert limits.stack_top == 0x6000000000000000 + (1 << 44) - 0x4000


def test_the_last_root_entry_of_a_region_is_followed_by_the_next_regions_first() -> None:
    mm = mm_of(SECTION)
    top = 0xA000000000000000
    assert OPS.pgd_addr_end(mm, 0x20000FF000000000, top) == 0x4000000000000000
    assert OPS.pgd_addr_end(mm, 0x2000000000000000, top) == 0x2000001000000000
    assert OPS.pgd_addr_end(mm, 0x2000000000004000, 0x2000000000008000) == 0x2000000000008000
    assert OPS.pgd_addr_end(mm, 0x80000FF000000000, top) == top
    assert OPS.pgd_addr_end(mm, 0xA0000FF000000000, 0) == 0xA000100000000000, "region 5 is the kernel's"


# ------------------------------------------------------------------ entries
def pte() -> EntryFormat:
    return OPS.entry_format(SECTION, {}, 2)


def test_ptes_are_those_of_linux() -> None:
    form = pte()
    protections = OPS.page_protections(SECTION, {})
    shared = protections[1 | 2 | 8] | PFN
    assert form.dirty is not None
    assert form.accessed is not None
    assert shared == 0x10000048D145A1
    assert form.dirty.set(shared) == 0x10000048D145E1
    assert form.write.clear(form.dirty.set(shared)) == 0x10000048D141E1
    assert form.accessed.clear(form.dirty.set(shared)) == 0x10000048D145C1
    assert protections[1 | 4] | PFN == 0x10000048D143A1
    assert protections[4] | PFN == 0x10000048D14FA1
    assert protections[0] | PFN == 0x8000000048D14020
    assert form.frame_of(shared) == PFN


def test_a_page_without_rights_counts_as_mapped_though_hardware_calls_it_absent() -> None:
    none = OPS.page_protections(SECTION, {})[0] | PFN
    assert not pte().present.test(none)
    assert pte().is_mapped(none)
    assert not pte().is_mapped(0)
    assert not pte().is_mapped(0x20000C), "a swapped page: type 3, offset 0x1000"
    assert not pte().is_mapped(0x156), "a page of a nonlinear file mapping: offset 0x55"


def test_write_right_is_linuxs_reading_of_the_access_rights_it_uses() -> None:
    form = pte()
    writable = {ar for ar in (0, 1, 2, 3, 7) if form.write.test(ar << 9)}
    assert writable == {2, 3}
    assert [form.write.clear(ar << 9) >> 9 for ar in (2, 3)] == [0, 1]
    assert [form.write.set(ar << 9) >> 9 for ar in (0, 1)] == [2, 3]


def test_private_writable_pages_wait_for_their_copy() -> None:
    for flags, bits in enumerate(OPS.page_protections(SECTION, {})):
        assert pte().write.test(bits) == (flags & (2 | 8) == 2 | 8), flags


# ------------------------------------------------------------------ registers
def test_region_registers_of_context_5() -> None:
    assert [region_register(5, region, 14) for region in range(4)] == [0x2839, 0x2939, 0x2A39, 0x2B39]
    assert region_register(5, 4, 28) == 0x2C71


def test_the_page_table_address_register_fits_the_implemented_addresses() -> None:
    assert PTA == 0x1FFC0000000000C9
    assert page_table_address(51, 14) == 0x1FFFFF00000000A1
    assert vhpt_address(0x2000000000123456, 14, page_table_address(51, 14), 51) == 0x3FFFFF0000000240


def test_unimplemented_bits_must_copy_the_highest_implemented_one() -> None:
    assert is_implemented(0x3FFFFF0000000240, 51), "the VHPT itself"
    assert is_implemented(0x2000000000123456, 51)
    assert not is_implemented(0x2008000000123456, 51)
    assert all(is_implemented(region << 61 | 1 << 60, 61) for region in range(8)), "all 61 are there"


def test_reserved_encodings_are_bits_1_50_and_51_attributes_1_to_3_and_frames_out_of_reach() -> None:
    assert not is_reserved(0x10000048D145A1, 50)
    for bad in (1 << 1, 1 << 50, 1 << 51, 1 << 2, 2 << 2, 3 << 2):
        assert is_reserved(0x10000048D145A1 | bad, 50), hex(bad)
    assert not is_reserved(0x10000048D145A1 | 4 << 2, 50), "uncacheable"
    assert is_reserved(0x10000048D145A1 | 1 << 44, 44)


@pytest.mark.parametrize(
    ("size", "shift"),
    [(16 << 10, 14), (32 << 10, 16), (48 << 10, 16), (1 << 20, 20), (8, 12), (8 << 30, 32), (1 << 39, 32)],
)
def test_a_purge_is_as_large_as_the_processor_can_make_it(size: int, shift: int) -> None:
    assert purge_shift(size) == shift


def test_every_fault_says_what_was_wanted_and_by_whom() -> None:
    kinds = {
        WalkFault.NOT_PRESENT: ("not_present", 0x5000, 0x5000),
        WalkFault.NO_PERMISSION: ("protection", 0x5200, 0x5300),
        WalkFault.RESERVED_BIT: ("reserved", 0x0400, 0x0800),
        WalkFault.NON_CANONICAL: ("non_canonical", 0x5400, 0x5400),
    }
    for fault, (kind, fetch, data) in kinds.items():
        for access in Access:
            for privilege in Privilege:
                code = fault_codes()[fault, access, privilege]
                info = decode(code)
                assert code & -0x100 == (fetch if access == Access.FETCH else data)
                assert (info.access, info.kind, info.user) == (
                    access.name.lower(),
                    kind,
                    privilege == Privilege.USER,
                )


def test_only_huge_pages_live_in_region_4() -> None:
    mm: Any = mm_of(SECTION)
    inside = 0x8000000010000000
    assert OPS.is_hugepage_only_range(mm, inside, 0x4000)
    assert OPS.is_hugepage_only_range(mm, 0x7FFFFFFFFFFFC000, 0x8000), "it ends there"
    assert not OPS.is_hugepage_only_range(mm, 0x6000000000000000, 0x4000)
    OPS.prepare_hugepage_range(mm, inside, 1 << 28, 1 << 28)
    for addr, length in ((0x6000000010000000, 1 << 28), (inside + 0x4000, 1 << 28), (inside, 0x4000)):
        with pytest.raises(OSError, match="huge"):
            OPS.prepare_hugepage_range(mm, addr, length, 1 << 28)
