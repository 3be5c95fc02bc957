"""The ppc64 facts: indices, VSIDs, groups, both halves of hash-table entries, segment buffer words.

Expected values: worked out by hand from PowerPC Architecture Book III and Linux's headers. Where a machine is asked,
the entry was made by the compiled hash fault handler.
"""

from __future__ import annotations

import pytest

from polymmu.hardware.entry import Access, Privilege, WalkFault
from polymmu.hardware.ram import Ram
from polymmu.machine import Machine
from polymmu.registry import arch_named
from polymmu_ppc64 import mmu
from polymmu_ppc64.formats import Ppc64Config
from polymmu_ppc64.hashing import hash_of, slb_esid, vsid_of
from polymmu_ppc64.huge import slices_of
from polymmu_ppc64.images import HashImage
from tests.arches.ppc64.hashed import entries, machine_with, pte_at

OPS = arch_named("ppc64").ops
OLD, NEW, LARGE = Ppc64Config(levels=3), Ppc64Config(), Ppc64Config(page=1 << 16)


@pytest.mark.parametrize(
    ("section", "va", "indices"),
    [
        (OLD, 0x10012345, (0, 128, 18)),
        (OLD, 0x1FF12345678, (1022, 145, 325)),
        (NEW, 0x10012345, (0, 1, 0, 18)),
        (NEW, 0x1FF12345678, (63, 113, 17, 325)),
        (NEW, 0xFFFFFFFFFFF, (511, 127, 127, 511)),
        (LARGE, 0x10012345, (0, 1, 1)),
        (LARGE, 0x1FF12345678, (1, 4081, 564)),
        (LARGE, 0xFFFFFFFFFFF, (15, 4095, 4095)),
    ],
)
def test_linux_splits_an_address_so(section: Ppc64Config, va: int, indices: tuple[int, ...]) -> None:
    layout = OPS.page_table_layout(section)
    assert tuple(layout.index_of(level, va) for level in range(layout.levels)) == indices


def test_tables_have_linux_sizes() -> None:
    def bytes_of(section: Ppc64Config) -> list[int]:
        layout = OPS.page_table_layout(section)
        return [layout.table_bytes_of(level) for level in range(layout.levels)]

    assert bytes_of(OLD) == [4096, 4096, 4096]
    assert bytes_of(NEW) == [4096, 1024, 1024, 4096]
    assert bytes_of(LARGE)[:2] == [128, 32 << 10]


def test_user_space_is_2_tib_with_three_levels_and_16_tib_with_four() -> None:
    assert OPS.address_limits(OLD).task_size == 1 << 41
    assert OPS.address_limits(NEW).task_size == OPS.address_limits(LARGE).task_size == 1 << 44
    assert OPS.address_limits(OLD).mm_vm_size == 1 << 41


@pytest.mark.parametrize(
    ("proto", "shift", "vsid"),
    [
        (0x8001, 28, 0xB7F04667A),
        (0x151FF1, 28, 0xF0982F436),
        (0x29000, 28, 0x8ADA531EA),
        (0x10001, 28, 0x6F211E6DA),
        (0x70002, 28, 0x62AAD172),
        (0x11, 40, 0xB45E75),
        (0xC00000000, 28, 0x408F92C94),
        (0xD00000000, 28, 0xF09B89AF5),
        (0xE00000000, 28, 0xA0A780957),
    ],
)
def test_vsids(proto: int, shift: int, vsid: int) -> None:
    assert vsid_of(proto, shift) == vsid


@pytest.mark.parametrize(
    ("vsid", "ea", "segment", "page", "found"),
    [
        (0xB7F04667A, 0x10012345, 28, 12, 0xB7F046668),
        (0xF0982F436, 0x1FF12345678, 28, 12, 0xF0982D773),
        (0x8ADA531EA, 0x10001000000, 28, 24, 0x8ADA531EB),
        (0x6F211E6DA, 0x10012345, 28, 12, 0x6F211E6C8),
        (0x62AAD172, 0x20345678, 28, 16, 0x62AAD146),
        (0xB45E75, 0x10012345678, 40, 12, 0x3CEAB57D30),
    ],
)
def test_hashes(vsid: int, ea: int, segment: int, page: int, found: int) -> None:
    assert hash_of(vsid, ea, segment, page) == found


def test_the_shifted_vsid_counts_in_a_large_table() -> None:
    assert hash_of(0xB45E75, 0x12345678, 40, 12) & (1 << 26) - 1 == 0x2B57D30


@pytest.mark.parametrize(
    ("machine", "context", "ea", "sets", "group", "first", "slb"),
    [
        ("power5", 1, 0x10012345, (), 0x6668, 0xB7F04667A001, (0x18000000, 0xB7F04667AC00)),
        ("power5", 42, 0x1FF12345678, (), 0xD773, 0xF0982F436201, (0x1FF18000000, 0xF0982F436C00)),
        ("ppc64", 1, 0x10012345, (), 0x1E6C8, 0x6F211E6DA001, (0x18000000, 0x6F211E6DAC80)),
        ("ppc64-64k", 7, 0x20345678, (), 0xD146, 0x62AAD172005, (0x28000000, 0x062AAD172D90)),
        (
            "ppc64",
            1,
            0x10012345678,
            ("ppc64.big_segments=true",),
            0x17D30,
            0x4000B45E75001201,
            (0x10008000000, 0x4000B45E75000C80),
        ),
    ],
)
def test_a_store_makes_the_entry_and_the_segment_of_its_vector(
    machine: str, context: int, ea: int, sets: tuple[str, ...], group: int, first: int, slb: tuple[int, int]
) -> None:
    built = machine_with(machine, "cpus=1", "ppc64.hash_groups=131072", *sets)
    mms = [built.new_mm() for _ in range(context)]
    mm, cpu = mms[-1], built.cpus[0]
    page = built.page_size
    cpu.switch_mm(mm)
    mm.mmap(page, at=ea & -page, fixed=True)
    cpu.store(ea, b"x")
    (entry,) = entries(built)
    assert (entry.group, entry.slot, entry.first) == (group, 0, first)
    pte = pte_at(mm.struct, ea)
    pfn = pte >> (30 if page > 4096 else 17)
    # user, writable, dirty, not executable: N, C, R, M and PP 2; a 64 KiB page says 1 in its lowest frame bit
    assert entry.second == pfn * page | (0x1000 if page > 4096 else 0) | 0x196
    assert pte & 0xFFF == 0x001 | 0x002 | 0x010 | 0x080 | 0x100 | 0x200 | (0 if page > 4096 else 0x400)
    assert pte & 0xF000 == 0
    words = cpu.cpu.mmu[mmu.FIRST_SLOT : mmu.FIRST_SLOT + 2].tolist()
    assert tuple(words) == slb


def test_a_huge_page_makes_the_entry_of_its_vector() -> None:
    built = Machine.from_file("power5", sets=("memory=512 MiB", "ppc64.hash_groups=131072"))
    mm = [built.new_mm() for _ in range(5)][-1]
    built.cpus[0].switch_mm(mm)
    assert mm.mmap(32 << 20, huge=16 << 20) == 0x10000000000
    built.cpus[0].load(0x10001000000, 1)
    (entry,) = entries(built)
    assert (entry.group, entry.first) == (0x131EB, 0x8ADA531EA105)
    assert entry.second & (16 << 20) - (1 << 12) == 0, "its size code"
    words = built.cpus[0].cpu.mmu[mmu.FIRST_SLOT : mmu.FIRST_SLOT + 2].tolist()
    assert words == [0x10008000000, 0x8ADA531EAD00]
    root = mm.struct.context.huge_root
    ram = built.kernel.ram
    table = ram.read_entry(root + 128 * 4, 4, "big") << 12
    assert ram.read_entry(table + 1 * 8, 8, "big") & 0x10001 == 0x10001, "huge, present, index 128 then 1"


def test_the_second_hash_is_the_complement() -> None:
    """EA 0x10012345 of context 1: primary group 0x6668, secondary 0x19997."""
    assert ~hash_of(0xB7F04667A, 0x10012345, 28, 12) & 0x1FFFF == 0x19997


@pytest.mark.parametrize(
    ("pte", "flags"),
    [
        (0x2468B793, 0x196),
        (0x2468B797, 0x192),
        (0x2468B593, 0x197),
        (0x2468B713, 0x197),
        (0x2468B711, 0x194),
    ],
)
def test_the_entry_says_what_linux_makes_of_the_pte(pte: int, flags: int) -> None:
    """Writable and dirty: PP 2. Read-only, or clean: PP 3, so that a store traps. No user: PP 0. C is forced."""
    assert mmu.flags_of(pte) == flags


def test_a_pte_holds_its_frame_and_its_slot() -> None:
    pte = OPS.entry_format(NEW, {}, 3)
    assert pte.frame_of(0x2468B793) == 0x1234000
    assert pte.of_frame(0x1234000) == 0x24680000
    assert 0x2468B793 & NEW.hash_flags == 0x8000 | 0x3000 | 0x400
    assert OPS.entry_format(LARGE, {}, 2).of_frame(0x12340000) == 0x1234 << 30


def test_upper_entries_are_frame_numbers_with_three_levels_and_kernel_addresses_with_four() -> None:
    assert OPS.entry_format(OLD, {}, 1).of_table(0x1234000) == 0x1234
    assert OPS.entry_format(OLD, {}, 1).table_of(0x1234) == 0x1234000
    assert OPS.entry_format(NEW, {}, 1).of_table(0x1234400) == 0xC000000001234400
    assert OPS.entry_format(NEW, {}, 1).table_of(0xC000000001234400) == 0x1234400


def test_prot_none_is_present_without_the_user_bit() -> None:
    none = OPS.page_protections(NEW, {})[0]
    assert none & 0x3 == 0x1
    assert OPS.entry_format(NEW, {}, 3).is_mapped(none)


def test_segment_buffer_words() -> None:
    assert slb_esid(0x10012345, 28) | 4 == 0x18000004
    assert slb_esid(0x10001000000, 28) | 5 == 0x10008000005
    assert slb_esid(0x10012345678, 40) | 6 == 0x10008000006


def test_slices_of_a_range() -> None:
    """A bit for each 256 MiB below 4 GiB, above them one for each 512 GiB or 1 TiB."""
    assert slices_of(0x2F000000, 0x2000000, 39) == 0xC
    assert slices_of(0xF0000000, 0x20000000, 40) == 0x18000
    assert slices_of(0x10000000000, 1 << 39, 39) == 0b100 << 16


VSID, EA = 0x123456789, 0x55678ABC
ONE_MIB = 1 << 20


def image(page: int, first: int, second: int, slot: int = 0, secondary: bool = False) -> tuple[Ram, int]:
    """A hash table of 2**11 groups at 1 MiB with one entry."""
    ram = Ram(4 * ONE_MIB)
    found = VSID ^ (EA & 0xFFFFFFF) >> page
    group = (~found if secondary else found) & 0x7FF
    place = ONE_MIB + group * 128 + slot * 16
    ram.write_entry(place, 8, "big", first)
    ram.write_entry(place + 8, 8, "big", second)
    return ram, place


AVPN = (VSID << 5 | (EA & 0xFFFFFFF) >> 23) << 7
HUGE_AVPN = AVPN & ~(1 << 7)
MATCHES = [
    # segment's L and LP, base page, first doubleword, second, answer
    (0x110, 16, AVPN | 5, 0x3ABF1002, 0x3ABF8ABC),
    (0x110, 16, AVPN | 5, 0x3ABF3002, None),
    (0x110, 16, AVPN | 1, 0x3ABCD002, None),
    (0x100, 24, HUGE_AVPN | 5, 0x3A000002, 0x3A678ABC),
    (0x000, 12, AVPN | 5, 0x3ABC7002, 0x3ABC8ABC),
    (0x000, 12, AVPN | 5, 0x3A038002, 0x3A678ABC),
    (0x110, 16, AVPN | 5, 0x3A008002, 0x3A678ABC),
    (0x100, 24, HUGE_AVPN | 5 | 1 << 7, 0x3A000002, None),
    (0x000, 12, AVPN | 1, 0x3ABCD002, 0x3ABCDABC),
    (0x000, 12, AVPN | 1 | 2, 0x3ABCD002, None),
    (0x000, 12, AVPN | 1 | 0x78, 0x3ABCD002, 0x3ABCDABC),
    (0x000, 12, AVPN | 1 | 1 << 62, 0x3ABCD002, None),
    (0x010, 12, AVPN | 1, 0x3ABCD002, None),
]


@pytest.mark.parametrize(("size", "page", "first", "second", "answer"), MATCHES)
def test_which_entry_matches(size: int, page: int, first: int, second: int, answer: int | None) -> None:
    """As QEMU's POWER8 answers: both codes of a size, the wrong ones, H, B, L and the ignored bits."""
    ram, _ = image(page, first, second)
    mmu_of_image = HashImage(segments=((0x50000000 | 0x8000000, VSID << 12 | 0xC00 | size),))
    assert mmu_of_image.walk(ram, ONE_MIB, EA, Access.LOAD, Privilege.USER).pa == answer


def test_the_secondary_group_wants_h_and_its_last_slot_is_looked_at() -> None:
    mmu_of_image = HashImage(segments=((0x58000000, VSID << 12 | 0xC00),))
    ram, _ = image(12, AVPN | 3, 0x3ABCD002, slot=7, secondary=True)
    assert mmu_of_image.walk(ram, ONE_MIB, EA, Access.LOAD).pa == 0x3ABCDABC
    ram, _ = image(12, AVPN | 1, 0x3ABCD002, slot=7, secondary=True)
    assert mmu_of_image.walk(ram, ONE_MIB, EA, Access.LOAD).pa is None


def test_an_entry_of_no_known_size_is_passed_over_and_the_first_match_decides() -> None:
    large = HashImage(segments=((0x58000000, VSID << 12 | 0xC00 | 0x110),))
    ram, place = image(16, AVPN | 5, 0x3ABF3002)
    ram.write_entry(place + 16, 8, "big", AVPN | 5)
    ram.write_entry(place + 24, 8, "big", 0x3ABF1000)
    ram.write_entry(place + 32, 8, "big", AVPN | 5)
    ram.write_entry(place + 40, 8, "big", 0x3ACF1002)
    refused = large.walk(ram, ONE_MIB, EA, Access.LOAD, Privilege.USER)
    assert refused.fault is WalkFault.NO_PERMISSION, "PP 0 under key 1, though a later entry would allow it"
    assert large.walk(ram, ONE_MIB, EA).pa == 0x3ABF8ABC


RIGHTS = [
    # second doubleword's low bits, pp0, Ks and Kp: load and store as supervisor, as user
    (0, 0, 0x400, (True, True), (False, False)),
    (1, 0, 0x400, (True, True), (True, False)),
    (2, 0, 0x400, (True, True), (True, True)),
    (3, 0, 0x400, (True, False), (True, False)),
    (0, 0, 0xC00, (False, False), (False, False)),
    (2, 1, 0x400, (True, False), (False, False)),
    (0, 1, 0x400, (False, False), (False, False)),
]


@pytest.mark.parametrize(("pp", "pp0", "keys", "supervisor", "user"), RIGHTS)
def test_protection_by_key(
    pp: int, pp0: int, keys: int, supervisor: tuple[bool, bool], user: tuple[bool, bool]
) -> None:
    ram, _ = image(12, AVPN | 1, 0x3ABCD000 | pp | pp0 << 63)
    found = HashImage(segments=((0x58000000, VSID << 12 | keys),))
    for privilege, expected in ((Privilege.SUPERVISOR, supervisor), (Privilege.USER, user)):
        walk = found.walk(ram, ONE_MIB, EA, None, privilege)
        assert (walk.readable, walk.writable) == expected


@pytest.mark.parametrize(
    ("second", "segment", "may"), [(2, 0, True), (2 | 4, 0, False), (2 | 8, 0, False), (2, 0x200, False)]
)
def test_no_execute_and_guarded_pages_are_not_fetched_from(second: int, segment: int, may: bool) -> None:
    ram, _ = image(12, AVPN | 1, 0x3ABCD000 | second)
    found = HashImage(segments=((0x58000000, VSID << 12 | 0xC00 | segment),))
    assert (found.walk(ram, ONE_MIB, EA, Access.FETCH, Privilege.USER).pa is not None) == may


@pytest.mark.parametrize(
    ("code", "access", "kind"),
    [
        (0x300_40004000, "load", "not_present"),
        (0x300_42004000, "store", "not_present"),
        (0x300_0A004000, "store", "protection"),
        (0x400_40004000, "fetch", "not_present"),
        (0x400_10004000, "fetch", "protection"),
    ],
)
def test_interrupts_and_their_status_bits(code: int, access: str, kind: str) -> None:
    info = OPS.decode_fault(code)
    assert (info.access, info.kind, info.user) == (access, kind, True)


def test_only_a_hash_machine_runs_programs() -> None:
    with pytest.raises(Exception, match="no program runs on radix tables"):
        Machine.from_file("power9-radix").new_mm()


def test_64_kib_pages_need_the_later_tables() -> None:
    with pytest.raises(Exception, match="64 KiB pages need levels: 4"):
        Machine.from_file("power5", sets=("ppc64.page=64 KiB",))
