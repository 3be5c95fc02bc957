"""Facts of DAT, entry by entry: z/Architecture Principles of Operation, ch. 3 (and ESA/390's for 31 bits)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.errors import UserMistake
from polymmu.hardware.entry import Access
from polymmu.registry import arch_named
from polymmu_s390 import S390Config
from polymmu_s390.formats import (
    CR0_EDAT,
    CR0_IEP,
    ESA,
    LAYOUTS,
    PTE_PROTECTIONS,
    SEGMENT_PROTECTIONS,
    designation,
)
from tests.arches.s390.bench import Bench

OPS = arch_named("s390").ops
FETCH, LOAD, STORE = Access.FETCH, Access.LOAD, Access.STORE

R3, SEGMENT, PAGES = 0x10000, 0x14000, 0x18800
ASCE_R3 = R3 | 0x1C7


def three_levels(pte: int, *, rtte: int = SEGMENT | 7, ste: int = PAGES, **facilities: Any) -> Bench:
    """Address 0x123 000 under a region-third table leads to ``pte``."""
    bench = Bench.new(**facilities)
    bench.put(R3, *[0x24] * 2048)
    bench.put(SEGMENT, *[0x20] * 2048)
    bench.put(PAGES, *[0x400] * 256)
    bench.put(R3, rtte)
    bench.put(SEGMENT + 8, ste)
    bench.put(PAGES + 8 * 0x23, pte)
    return bench


VA = 0x123ABC


@pytest.mark.parametrize(
    ("va", "rf", "rs", "rt", "sx", "px"),
    [
        (0x0000000000401000, 0, 0, 0, 4, 1),
        (0x000000007FFF7123, 0, 0, 0, 2047, 247),
        (0x0000000080001234, 0, 0, 1, 0, 1),
        (0x000003FFFFFFE123, 0, 0, 2047, 2047, 254),
        (0x0000123456789ABC, 0, 4, 1128, 1383, 137),
        (0x001FFFFFFFFFFFFF, 0, 2047, 2047, 2047, 255),
    ],
)
def test_an_address_splits_into_elevens_and_an_eight(
    va: int, rf: int, rs: int, rt: int, sx: int, px: int
) -> None:
    """Five tables of one's own for this address, each at 64 KiB times its level, lead to its page."""
    bench = Bench.new()
    tables = [0x10000 * (level + 1) for level in range(5)]
    for level, index in enumerate((rf, rs, rt, sx)):
        bench.put(tables[level] + 8 * index, tables[level + 1] | (3 - level) << 2 | (3 if level < 3 else 0))
    bench.put(tables[4] + 8 * px, 0x7654000)
    assert bench.answer(tables[0] | 0x0F, va) == (0x7654000 | va & 0xFFF, None)
    assert tuple(LAYOUTS[4].index_of(level, va) for level in range(4)) == (rs, rt, sx, px)


@pytest.mark.parametrize(
    ("asce", "va", "code"),
    [
        (R3 | 0x0B, 0x0020000000000000, 0x38),  # RFX 1 under a region-second table
        (R3 | 0x05, 0x0000020000000000, 0x3B),  # RTX 1024 and a table of two quarters
        (R3 | 0x03, 0x0000000080000000, 0x38),  # RTX 1 under a segment table
        (R3 | 0x07, 0x0000123456789ABC, 0x38),  # four levels' address, three levels
        (R3 | 0x0C, 0xFFE0000000000000, 0x39),  # the last quarter of a region-first table of one
        (R3 | 0x08, 0x0010000000000000, 0x3A),
        (R3 | 0x00, 0x0000000020000000, 0x10),
    ],
)
def test_an_address_beyond_the_first_table_is_refused_before_anything_is_read(
    asce: int, va: int, code: int
) -> None:
    bench = Bench.new()
    assert bench.answer(asce, va) == (None, code)
    assert bench.cpu.counters()["walk"]["references"] == 0


def test_a_real_space_designation_needs_no_table() -> None:
    bench = Bench.new()
    assert bench.answer(0x20, 0x12345678 & 0xFFFFFFF) == (0x2345678, None)
    assert bench.answer(0x20, 1 << 28) == (None, 0x05)


@pytest.mark.parametrize(
    ("pte", "load", "store"),
    [
        (0x12345000, None, None),
        (0x12345200, None, 0x04),
        (0x12345400, 0x11, 0x11),  # read-write, after IPTE
        (0x12345600, 0x11, 0x11),  # read-only, after IPTE
        (0x12345800, 0x12, 0x12),
        (0x12345C00, 0x11, 0x11),  # I is looked at first
        (0x123450FF, None, None),  # software's
        (0x91A688, 0x11, 0x11),  # a swap entry of Linux 2.6.12
    ],
)
def test_what_a_pte_allows(pte: int, load: int | None, store: int | None) -> None:
    bench = three_levels(pte)
    pa = 0x12345ABC
    assert bench.answer(ASCE_R3, VA, LOAD) == (None if load else pa, load)
    assert bench.answer(ASCE_R3, VA, FETCH) == (None if load else pa, load)
    assert bench.answer(ASCE_R3, VA, STORE) == (None if store else pa, store)


@pytest.mark.parametrize(
    ("rtte", "code"),
    [
        (SEGMENT | 0x07, None),
        (SEGMENT | 0x47, 0x10),  # TF 1: the first quarter is not there
        (SEGMENT | 0x03, 0x12),  # TT of a segment entry
        (SEGMENT | 0x0B, 0x12),
        (SEGMENT | 0x27, 0x3B),
        (SEGMENT | 0x2B, 0x3B),  # invalid comes before the wrong type
        (0x24, 0x3B),  # empty
        (0x7FFFFFFFFFFFF007, 0x05),  # no storage there
        (SEGMENT | 0x04, None),  # TL 0 has the first quarter
        (SEGMENT | 0x17, None),  # CR without EDAT-2
    ],
)
def test_what_a_region_third_entry_leads_to(rtte: int, code: int | None) -> None:
    bench = three_levels(0x12345000, rtte=rtte)
    assert bench.answer(ASCE_R3, VA) == (None if code else 0x12345ABC, code)


@pytest.mark.parametrize(
    ("ste", "private", "code"),
    [
        (PAGES, True, None),
        (PAGES | 0x20, True, 0x10),
        (PAGES | 0x04, True, 0x12),
        (PAGES | 0x10, True, 0x12),  # a common segment in a private space
        (PAGES | 0x10, False, None),
        (PAGES | 0x400, True, None),  # FC without EDAT
        (0x7FFFFFFFFFFFF000, True, 0x05),
    ],
)
def test_what_a_segment_entry_leads_to(ste: int, private: bool, code: int | None) -> None:
    bench = three_levels(0x12345000, ste=ste)
    asce = ASCE_R3 if private else ASCE_R3 & ~0x100
    assert bench.answer(asce, VA) == (None if code else 0x12345ABC, code)


def test_a_page_table_may_lie_in_the_second_half_of_a_frame() -> None:
    assert PAGES == 0x18800
    pmd = OPS.entry_format(S390Config(), {}, 2)
    assert pmd.table_of(0x1234A800) == 0x1234A800


def test_a_protected_segment_protects_its_pages_and_a_protected_region_only_with_edat() -> None:
    assert three_levels(0x12345000, ste=PAGES | 0x200).answer(ASCE_R3, VA, STORE) == (None, 0x04)
    region = SEGMENT | 0x207
    assert three_levels(0x12345000, rtte=region).answer(ASCE_R3, VA, STORE)[1] is None
    assert three_levels(0x12345000, rtte=region, edat=1).answer(ASCE_R3, VA, STORE) == (None, 0x04)


@pytest.mark.parametrize(
    ("ste", "code"), [(0x02300500, None), (0x02300700, 0x04), (0x02300520, 0x10), (0x02300510, 0x12)]
)
def test_edat_1_maps_a_mib_by_a_segment_entry(ste: int, code: int | None) -> None:
    bench = three_levels(0x12345000, ste=ste, edat=1)
    assert bench.answer(ASCE_R3, VA, STORE) == (None if code else 0x02323ABC, code)
    assert bench.dat.walk(bench.ram, ASCE_R3, VA).page_size in (0, 1 << 20)


def test_edat_2_maps_two_gib_by_a_region_third_entry_and_edat_1_does_not() -> None:
    leaf = 0x0000000080300407
    bench = three_levels(0, rtte=leaf, edat=2)
    assert bench.dat.walk(bench.ram, ASCE_R3, VA).pa == 0x80000000 + VA
    # FC does not count: a segment table at 0x80300000, where there is no storage
    assert three_levels(0, rtte=leaf, edat=1).answer(ASCE_R3, VA) == (None, 0x05)
    # Table length and offset are part of nothing here; common and private do not go together.
    bench = three_levels(0, rtte=leaf & ~3 | 0xC0, edat=2)
    assert bench.dat.walk(bench.ram, ASCE_R3, VA).pa == 0x80000000 + VA
    assert three_levels(0, rtte=leaf | 0x10, edat=2).answer(ASCE_R3, VA) == (None, 0x12)


@pytest.mark.parametrize(
    ("facilities", "fetch", "load"),
    [
        ({}, None, None),
        ({"strict": True}, 0x12, 0x12),
        ({"edat": 1}, None, None),  # change-recording override
        ({"edat": 1, "strict": True}, None, None),
        ({"iep": True}, 0x04, None),
        ({"iep": True, "edat": 1}, 0x04, None),
        ({"iep": True, "strict": True}, 0x04, None),
    ],
)
def test_bit_55_of_a_pte_means_what_the_facilities_say(
    facilities: dict[str, Any], fetch: int | None, load: int | None
) -> None:
    bench = three_levels(0x12345100, **facilities)
    assert bench.answer(ASCE_R3, VA, FETCH)[1] == fetch
    assert bench.answer(ASCE_R3, VA, LOAD)[1] == load


def test_a_strict_machine_refuses_bit_52_in_an_invalid_pte_too() -> None:
    assert three_levels(0x12345C00).answer(ASCE_R3, VA) == (None, 0x11)
    assert three_levels(0x12345C00, strict=True).answer(ASCE_R3, VA) == (None, 0x12)


def test_facilities_count_only_where_control_register_0_enables_them() -> None:
    section = S390Config(edat=2, iep=True)
    off, on = OPS.translation(section, {"cr0": 0}), OPS.translation(section, {"cr0": CR0_EDAT | CR0_IEP})
    assert (off.page_shifts, on.page_shifts) == ((12,), (12, 20, 31))
    assert OPS.translation(S390Config(edat=1), {"cr0": CR0_EDAT | CR0_IEP}).page_shifts == (12, 20)
    assert OPS.boot_registers(S390Config(edat=1)) == {"cr0": CR0_EDAT}
    assert OPS.boot_registers(S390Config(mode="esa", edat=1)) == {"cr0": 0}


# ---------------------------------------------------------------------- 31 bits
STD = 0x20000 | 0x8000_01FF
ESA_PAGES = 0x24C00


def two_levels(va: int, *, ste: int = ESA_PAGES | 0x0F, pte: int = 0x2345000) -> Bench:
    bench = Bench.new(esa=True)
    bench.put(0x20000, *[0x20] * 2048)
    bench.put(0x20000 + 4 * (va >> 20), ste)
    bench.put(ESA_PAGES + 4 * (va >> 12 & 0xFF), pte)
    return bench


@pytest.mark.parametrize(
    ("va", "sx", "px", "offset"),
    [
        (0x00401000, 4, 1, 0x000),
        (0x12345678, 291, 69, 0x678),
        (0x40000000, 1024, 0, 0x000),
        (0x7FFFF123, 2047, 255, 0x123),
    ],
)
def test_a_31_bit_address_splits_into_eleven_and_eight(va: int, sx: int, px: int, offset: int) -> None:
    bench = Bench.new(esa=True)
    bench.put(0x20000 + 4 * sx, ESA_PAGES | 0x0F)
    bench.put(ESA_PAGES + 4 * px, 0x2345000)
    assert bench.answer(STD, va) == (0x2345000 | offset, None)
    assert (ESA.index_of(0, va), ESA.index_of(1, va)) == (sx, px)


@pytest.mark.parametrize(
    ("ste", "pte", "load", "store"),
    [
        (ESA_PAGES | 0x0F, 0x2345000, None, None),
        (ESA_PAGES | 0x0F, 0x2345200, None, 0x04),
        (ESA_PAGES | 0x0F, 0x2345400, 0x11, 0x11),
        (ESA_PAGES | 0x0F, 0x2345800, 0x12, 0x12),
        (ESA_PAGES | 0x0F, 0x2345100, 0x12, 0x12),
        (ESA_PAGES | 0x0F, 0x82345000, 0x12, 0x12),
        (0x20, 0x2345000, 0x10, 0x10),
        (ESA_PAGES | 0x2F, 0x2345000, 0x10, 0x10),
        (ESA_PAGES | 0x1F, 0x2345000, 0x12, 0x12),  # common, and the space is private
        (ESA_PAGES | 0x0F | 1 << 31, 0x2345000, 0x12, 0x12),
        (ESA_PAGES | 0x03, 0x2345000, 0x11, 0x11),  # a table of 64 entries, and PX is 69
        (ESA_PAGES | 0x04, 0x2345000, None, None),
        (0x7FFFF00F, 0x2345000, 0x05, 0x05),
    ],
)
def test_what_31_bit_entries_say(ste: int, pte: int, load: int | None, store: int | None) -> None:
    va = 0x12345678
    bench = two_levels(va, ste=ste, pte=pte)
    assert bench.answer(STD, va, LOAD) == (None if load else 0x2345678, load)
    assert bench.answer(STD, va, STORE) == (None if store else 0x2345678, store)


def test_a_segment_table_ends_where_its_designation_says() -> None:
    bench = two_levels(0x12345678)
    assert bench.answer(STD & ~0x7F | 0x12, 0x12345678)[1] is None
    assert bench.answer(STD & ~0x7F | 0x11, 0x12345678) == (None, 0x10)


def test_a_short_page_table_is_not_lengthened_by_a_cached_segment_entry() -> None:
    bench = two_levels(0x12300678, ste=ESA_PAGES | 0x03)
    cached = Bench.new(esa=True, tlb=True)
    cached.ram.write(0, bench.ram.read(0, 0x40000))
    assert cached.answer(STD, 0x12300678)[1] is None
    assert cached.answer(STD, 0x12345678) == (None, 0x11)


# ---------------------------------------------------------------- Linux's values
def test_empty_entries_are_what_linux_3_0_writes() -> None:
    z, esa = S390Config(), S390Config(mode="esa")
    assert [OPS.entry_format(z, {}, level).empty for level in range(4)] == [0x28, 0x24, 0x20, 0x400]
    assert [OPS.entry_format(esa, {}, level).empty for level in range(2)] == [0x20, 0x400]


def test_directory_entries_are_what_linux_3_0_writes() -> None:
    z, esa = S390Config(), S390Config(mode="esa")
    values = [OPS.entry_format(z, {}, level).of_table(0x12344000) for level in range(3)]
    assert values == [0x1234400B, 0x12344007, 0x12344000]
    assert OPS.entry_format(esa, {}, 0).of_table(0x12344C00) == 0x12344C0F


def test_designations_are_what_linux_3_0_loads() -> None:
    loaded = [designation(0x4000, LAYOUTS[levels]) & 0xFFF for levels in (2, 3, 4, 5)]
    assert loaded == [0x1C3, 0x1C7, 0x1CB, 0x1CF]
    assert designation(0x4000, ESA) == 0x8000_41FF


def test_layouts_cover_what_linux_calls_pmd_pud_and_pgdir() -> None:
    assert [LAYOUTS[4].span_of(level) for level in range(4)] == [1 << 42, 1 << 31, 1 << 20, 1 << 12]
    assert [LAYOUTS[4].table_bytes_of(level) for level in range(4)] == [16384, 16384, 16384, 2048]
    assert [LAYOUTS[n].shifts for n in (2, 3, 5)] == [(20, 12), (31, 20, 12), (53, 42, 31, 20, 12)]
    assert [ESA.span_of(0), ESA.table_bytes_of(0), ESA.table_bytes_of(1)] == [1 << 20, 8192, 1024]


def test_protections_are_read_only_0x200_and_none_0x401() -> None:
    read, write, none, shared = 1, 2, 0, 8
    assert PTE_PROTECTIONS[none] == PTE_PROTECTIONS[shared] == 0x401
    assert PTE_PROTECTIONS[read] == PTE_PROTECTIONS[read | write] == PTE_PROTECTIONS[read | shared] == 0x200
    assert PTE_PROTECTIONS[read | write | shared] == 0
    assert (SEGMENT_PROTECTIONS[read], SEGMENT_PROTECTIONS[read | write | shared]) == (0x700, 0x500)


def test_a_page_without_rights_is_mapped_to_the_core_and_absent_to_hardware() -> None:
    pte = OPS.entry_format(S390Config(), {}, 3)
    assert pte.is_mapped(0x12345401)
    assert not pte.present.test(0x12345401)
    assert [pte.is_mapped(value) for value in (0x400, 0x403, 0x12345400, 0x12345600)] == [False] * 4
    assert pte.is_none(0x400)
    pmd = OPS.entry_format(S390Config(edat=1), {}, 2)
    assert [pmd.is_mapped(value) for value in (0x20, 0x2300500, 0x2300700, SEGMENT_PROTECTIONS[0])] == [
        False, True, True, True,
    ]  # fmt: skip


def test_a_space_that_does_not_exist_or_is_not_given_is_one_line() -> None:
    registers = {"cr1": 0x1000, "cr7": 0x2000, "cr13": 0x3000}
    roots = [OPS.root_of(S390Config(), registers, space) for space in ("primary", "secondary", "home")]
    assert roots == [0x1000, 0x2000, 0x3000]
    with pytest.raises(UserMistake, match="known: primary, secondary, home"):
        OPS.root_of(S390Config(), registers, "access-register")
    with pytest.raises(UserMistake, match="give --register cr13=VALUE"):
        OPS.root_of(S390Config(), {"cr1": 0}, "home")


# -------------------------------------------------------------------- properties
PLACES = (0x10000, 0x14000, 0x18000, 0x1C000, 0x20800)
"""A table for each level, region-first to pages; each leads to the next."""
SHIFTS = (53, 42, 31, 20, 12)
FLIPS = st.sampled_from([0] * 12 + [1 << n for n in range(12)] + [0xC0, 0x40, 3, 1 << 62])


def tables_of(flips: tuple[tuple[int, int], ...]) -> dict[int, tuple[int, int]]:
    """By place: the first and the last entry of each table, right but for the flipped bits."""
    right = [PLACES[level + 1] | (3 - level) << 2 | 3 * (level < 3) for level in range(4)]
    return {
        place: (value ^ first, value ^ last)
        for place, value, (first, last) in zip(PLACES, [*right, 0x34000], flips, strict=True)
    }


def address(ends: tuple[bool, ...], level: int) -> int:
    """The address whose index at each level from ``level`` on is the first or the last."""
    top = (2047, 2047, 2047, 2047, 255)
    return sum(top[n] << SHIFTS[n] for n in range(5) if ends[n] and n >= level)


BENCHES = [
    [Bench.new(1 << 20, tlb=tlb, edat=edat, iep=iep, strict=strict) for tlb in (False, True)]
    for edat in (0, 1, 2)
    for iep in (False, True)
    for strict in (False, True)
]


@settings(max_examples=200, deadline=None)
@given(
    flips=st.tuples(*[st.tuples(FLIPS, FLIPS)] * 5),
    bench=st.sampled_from(range(len(BENCHES))),
    level=st.integers(0, 3),
    length=st.sampled_from([3, 3, 3, 0, 1]),
    private=st.booleans(),
    asks=st.lists(
        st.tuples(st.tuples(*[st.booleans()] * 5), st.sampled_from([FETCH, LOAD, STORE])),
        min_size=1,
        max_size=12,
    ),
)
def test_both_walkers_and_a_cpu_with_caches_say_the_same(
    flips: tuple[tuple[int, int], ...],
    bench: int,
    level: int,
    length: int,
    private: bool,
    asks: list[tuple[tuple[bool, ...], Access]],
) -> None:
    asce = PLACES[level] | 0x100 * private | (3 - level) << 2 | length
    plain, cached = BENCHES[bench]
    for each in (plain, cached):
        for place, (first, last) in tables_of(flips).items():
            each.put(place, first)
            each.put(place + 8 * (255 if place == PLACES[4] else 2047), last)
        each.cpu.invalidate(asid=None, walk_caches="all")
    for ends, access in asks:
        va = address(ends, level)
        assert plain.answer(asce, va, access) == cached.compiled(asce, va, access)
