"""The sparc64 facts: how addresses split, what entries look like, where buffers and the linear table keep them.

Expected values are worked out by hand from the definitions (Linux ``asm/pgtable_64.h``, ``asm/tsb.h``; UltraSPARC
User's Manual ch. 6).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from polymmu.arch import EntryFormat
from polymmu.errors import UserMistake
from polymmu.machine import Machine
from polymmu.registry import arch_named
from polymmu_sparc64 import Sparc64Config
from polymmu_sparc64.context import vpte_pages
from polymmu_sparc64.tte import SUN4U, SUN4V, tag_of, tsb_pointer

OPS = arch_named("sparc64").ops
LAYOUT = Sparc64Config().layout
RX, RW_SHARED, NONE = 5, 11, 0  # VM_READ | VM_EXEC, VM_READ | VM_WRITE | VM_SHARED
RWX_SHARED = 15
PAGE = 0x2468000
pointer: Any = tsb_pointer.py_func  # type: ignore[attr-defined]
tag: Any = tag_of.py_func  # type: ignore[attr-defined]

SPLITS = [
    (0x70001234, (0, 224, 0), 0xFFFFFFFE001C0000, 0, 0, 0x1C0),
    (0x10000000000, (64, 0, 0), 0xFFFFFFFE40000000, 0, 0, 0x40000),
    (0x7FFFFFFE000, (511, 2047, 1023), 0xFFFFFFFFFFFFFFF8, 511, 1023, 0x1FFFFF),
    (0xFFFFF80000000000, (1536, 0, 0), 0xFFFFFFFC00000000, 0, 0, 0x3FFFFE00000),
    (0xFFFFF80100123456, (1536, 512, 145), 0xFFFFFFFC00400488, 145, 145, 0x3FFFFE00400),
]


def pte(section: Sparc64Config | None = None) -> EntryFormat:
    section = section or Sparc64Config()
    return OPS.entry_format(section, {}, 2)


@pytest.mark.parametrize(("va", "indices", "linear", "in_512", "in_1024", "its_tag"), SPLITS)
def test_an_address_finds_its_entries(
    va: int, indices: tuple[int, ...], linear: int, in_512: int, in_1024: int, its_tag: int
) -> None:
    assert tuple(LAYOUT.index_of(level, va) for level in range(3)) == indices
    assert vpte_pages(va, va + 8, 8192).tolist() == [linear]
    assert pointer(0, va, 13, 0) == in_512 * 16
    assert pointer(1, va, 13, 0) == in_1024 * 16
    assert tag(va) == its_tag


def test_tables_are_pages_of_8_kib_and_cover_8_mib_and_16_gib() -> None:
    assert [LAYOUT.table_bytes_of(level) for level in range(3)] == [8192] * 3
    assert [LAYOUT.span_of(level) for level in range(3)] == [16 << 30, 8 << 20, 8 << 10]


def test_a_tsb_register_gives_an_entrys_address() -> None:
    assert pointer(0x12340001, 0xFFFFF80100123456, 13, 0) == 0x12340910
    assert pointer(0, 0x10001412345, 22, 0) == 5 * 16
    assert tag(0x10001412345) == 0x40005
    assert LAYOUT.index_of(2, 0x10001412345 & -(4 << 20)) == 512


@pytest.mark.parametrize(
    ("tte", "read_only", "clean", "dirty", "old", "huge"),
    [
        (
            *(SUN4U, 0x80000000024696B0, 0x80000000024697B0),
            *(0x8000000002469FB2, 0x0000000002469BB2, 0xE000000002469FB2),
        ),
        (
            *(SUN4V, 0x9800000002468690, 0x9C00000002468690),
            *(0xBC000000024686D0, 0x2C000000024686D0, 0xBC000000024686D3),
        ),
    ],
    ids=["sun4u", "sun4v"],
)
def test_the_bits_of_a_page_through_its_life(
    tte: Any, read_only: int, clean: int, dirty: int, old: int, huge: int
) -> None:
    form = tte.entry_format
    assert tte.protections[RX] | PAGE == read_only
    assert tte.protections[RWX_SHARED] | PAGE == clean
    assert form.write.set(read_only) == clean
    assert form.dirty.set(clean) == dirty
    assert form.accessed.clear(dirty) == old
    assert form.accessed.set(old) == dirty
    assert dirty | tte.size_bits(4 << 20) == huge
    assert [tte.page_shift_of(entry) for entry in (dirty, huge)] == [13, 22]


def test_a_page_without_rights_is_present_to_linux_alone() -> None:
    value = SUN4U.protections[NONE] | PAGE
    assert value == 0x24684B0
    assert not pte().present.test(value)
    assert pte().is_mapped(value)
    assert not pte().is_mapped(0)


@pytest.mark.parametrize("tte", [SUN4U, SUN4V], ids=["sun4u", "sun4v"])
def test_hardware_may_store_exactly_where_the_page_is_writable_and_dirty(tte: Any) -> None:
    form = tte.entry_format
    clean = tte.protections[RW_SHARED]
    dirty = form.dirty.set(clean)
    assert not clean & tte.writable
    assert dirty & tte.writable
    assert not form.write.clear(dirty) & tte.writable
    assert not form.dirty.clear(dirty) & tte.writable


def test_a_private_writable_page_is_entered_without_the_right() -> None:
    for flags in range(8):
        assert not pte().write.test(SUN4U.protections[flags])


def test_upper_entries_are_addresses_shifted_or_plain() -> None:
    narrow = OPS.entry_format(Sparc64Config(), {}, 1)
    wide = OPS.entry_format(Sparc64Config(upper_entries=64), {}, 0)
    assert narrow.of_table(0x123456000) == 0x2468AC
    assert narrow.table_of(0x2468AC) == 0x123456000
    assert wide.of_table(0x123456000) == wide.table_of(0x123456000) == 0x123456000


def test_sun4v_has_eight_page_sizes_and_sun4u_four() -> None:
    assert [1 << shift for shift in SUN4U.page_shifts] == [8 << 10, 64 << 10, 512 << 10, 4 << 20]
    assert [1 << shift >> 20 for shift in SUN4V.page_shifts[3:]] == [4, 32, 256, 2048, 16384]


def test_the_linear_tables_pages_of_a_range_are_those_of_its_whole_tables() -> None:
    assert vpte_pages(0x70000000, 0x70010000, 8 << 20).tolist() == [0xFFFFFFFE001C0000]
    assert vpte_pages(0x70000000, 0x70810000, 8 << 20).tolist() == [0xFFFFFFFE001C0000, 0xFFFFFFFE001C2000]
    assert vpte_pages(0x7FFFF800000, 0x80000000000, 8 << 20).tolist() == [0xFFFFFFFFFFFFE000]
    assert vpte_pages(0xFFFFF80000000000, 0xFFFFF80000002000, 8 << 20).tolist() == [0xFFFFFFFC00000000]


def test_range_walks_step_over_the_hole() -> None:
    mm: Any = SimpleNamespace(layout=LAYOUT)
    top = 0xFFFFFFFC00000000
    assert OPS.pgd_addr_end(mm, 0x7FC00000000, top) == 0xFFFFF80000000000
    assert OPS.addr_end(mm, 1, 0x7FFFF800000, top) == 0xFFFFF80000000000
    assert OPS.pgd_addr_end(mm, 0x7FC00000000, 0x7FC00002000) == 0x7FC00002000
    assert OPS.pgd_addr_end(mm, 0x10000000000, top) == 0x10400000000
    assert OPS.pgd_addr_end(mm, 0xFFFFF80000002000, top) == 0xFFFFF80400000000
    assert OPS.addr_end(mm, 1, 0xFFFFF80000002000, top) == 0xFFFFF80000800000
    steps, addr = [], 0x7F800000000
    while addr != 0xFFFFF80800000000:
        steps.append(LAYOUT.index_of(0, addr))
        addr = OPS.pgd_addr_end(mm, addr, 0xFFFFF80800000000)
    assert steps == [510, 511, 1536, 1537]


def test_user_addresses_end_one_pgd_slot_below_the_top_and_leave_the_hole_alone() -> None:
    limits = OPS.address_limits(Sparc64Config())
    assert limits.task_size == 0xFFFFFFFC00000000
    assert limits.holes == ((0x7FF00000000, 0xFFFFF80100000000),)
    assert limits.stack_top == 0x7FF00000000
    old = OPS.address_limits(Sparc64Config(generation="vpte"))
    assert old.holes == ((0x80000000000, 0xFFFFF80000000000),)


def test_the_linear_table_is_older_than_sun4v_and_wide_entries() -> None:
    for choice in ("sparc64.cpu=sun4v", "sparc64.upper_entries=64"):
        with pytest.raises(UserMistake, match="vpte ended before"):
            Machine.describe("sparc64", sets=("sparc64.generation=vpte", choice))


@pytest.mark.parametrize(
    ("section", "declared"),
    [
        (Sparc64Config(), ("tables_freed_early",)),
        (Sparc64Config(frees_before_flush=True), ("tables_freed_early", "pages_freed_early")),
        (Sparc64Config(upper_entries=64), ()),
    ],
)
def test_what_the_releases_freed_too_early_is_declared(
    section: Sparc64Config, declared: tuple[str, ...]
) -> None:
    assert OPS.deviations(section) == declared


def test_a_root_is_named_by_pgd() -> None:
    assert OPS.root_of(Sparc64Config(), {"pgd": 0x123456000}, None) == 0x123456000
    with pytest.raises(UserMistake, match="--register pgd="):
        OPS.root_of(Sparc64Config(), {}, None)
    with pytest.raises(UserMistake, match="unknown address space 'home'"):
        OPS.root_of(Sparc64Config(), {"pgd": 0}, "home")
