"""The facts of RISC-V's page tables, decoded by hand from the Privileged Architecture: addresses, entries, limits."""

from __future__ import annotations

import pytest

import polymmu_riscv as riscv
from polymmu.arch import Access, Privilege, Ram, UserMistake, Walk, WalkFault
from polymmu_riscv import LAYOUTS, RiscvConfig
from polymmu_riscv.entries import A, D, G, R, U, V, W, X, decode

PLAIN = 0x0
SUM, MXR = 1 << 18, 1 << 19
ROOT = 0x80200 << 12
SATP = 0x8001200000080200
NAPOT = 1 << 63


@pytest.mark.parametrize(
    ("va", "sv39", "sv48", "offset"),
    [
        (0x0000000000010000, (0, 0, 16), (0, 0, 0, 16), 0),
        (0x0000001234567ABC, (72, 418, 359), (0, 72, 418, 359), 0xABC),
        (0x0000003FFFFFF123, (255, 511, 511), (0, 255, 511, 511), 0x123),
        (0xFFFFFFC000000000, (256, 0, 0), (511, 256, 0, 0), 0),
    ],
)
def test_an_address_is_split_into_nines(
    va: int, sv39: tuple[int, ...], sv48: tuple[int, ...], offset: int
) -> None:
    for mode, indices in (("sv39", sv39), ("sv48", sv48)):
        layout = LAYOUTS[mode]
        assert tuple(layout.index_of(level, va) for level in range(layout.levels)) == indices
    assert va & 0xFFF == offset


def test_levels_span_what_linux_calls_them() -> None:
    assert LAYOUTS["sv39"].names == ("pgd", "pmd", "pte")
    assert LAYOUTS["sv57"].names == ("pgd", "p4d", "pud", "pmd", "pte")
    assert LAYOUTS["sv57"].shifts == (48, 39, 30, 21, 12)


@pytest.mark.parametrize(("mode", "top"), [("sv39", 38), ("sv48", 47), ("sv57", 56)])
def test_half_of_the_address_space_is_the_users(mode: str, top: int) -> None:
    limits = riscv.address_limits(RiscvConfig(mode=mode))
    assert limits.task_size == 1 << top
    assert limits.stack_top == 1 << min(top, 47)


class Tables:
    """Sv39 tables that lead 0x200000 to one entry: of the last level, or of the one above."""

    def __init__(self, entry: int, level: int = 2, status: int = PLAIN, **section: object) -> None:
        self.ram = Ram(1 << 32)
        self.section = RiscvConfig(mode="sv39", **section)  # type: ignore[arg-type]
        self.translation = riscv.translation(self.section, {"satp": SATP, "sstatus": status})
        self.put(ROOT, 0x80201 << 10 | V)
        if level == 1:
            self.put(0x80201008, entry)
        else:
            self.put(0x80201008, 0x80202 << 10 | V)
            self.put(0x80202000, entry)

    def put(self, pa: int, entry: int) -> None:
        self.ram.write_entry(pa, 8, "little", entry)

    def ask(
        self, access: Access = Access.LOAD, privilege: Privilege = Privilege.USER, va: int = 0x200000
    ) -> Walk:
        root = riscv.root_of({"satp": SATP}, None)
        return self.translation.walk(self.ram, root, va, access, privilege)


def test_satp_names_mode_and_root() -> None:
    assert riscv.root_of({"satp": SATP}, None) == 0x80200000
    assert riscv.mode_of(SATP) == "sv39"
    with pytest.raises(UserMistake, match="satp 0x80200 has mode 0; a paging mode is wanted"):
        riscv.translation(RiscvConfig(), {"satp": 0x80200})
    with pytest.raises(UserMistake, match="no satp; give --register satp=VALUE"):
        riscv.root_of({}, None)
    with pytest.raises(UserMistake, match="unknown address space 'kernel'"):
        riscv.root_of({"satp": SATP}, "kernel")


@pytest.mark.parametrize(
    ("entry", "allowed"),
    [
        (0x00000000048D14D7, {Access.LOAD, Access.STORE}),
        (0x00000000048D145B, {Access.LOAD, Access.FETCH}),
        (0x12345 << 10 | V | X | U | A, {Access.FETCH}),
    ],
)
def test_a_users_leaf_grants_the_user_its_rights(entry: int, allowed: set[Access]) -> None:
    for access in Access:
        walk = Tables(entry).ask(access)
        assert (walk.pa == 0x12345000) == (access in allowed), access
        assert walk.fault is (WalkFault.NONE if access in allowed else WalkFault.NO_PERMISSION)


def test_a_pointer_leads_to_the_next_table_and_grants_nothing_by_itself() -> None:
    pointer, leaf = 0x00000000048D1401, 0x00000000048D14D7
    tables = Tables(pointer, level=1)
    tables.put(0x12345000, leaf)
    assert tables.ask(Access.STORE).pa == 0x12345000
    assert Tables(pointer, level=2).ask().fault is WalkFault.RESERVED_BIT, "the last level has no next table"


@pytest.mark.parametrize(
    "entry",
    [
        0x00000000048D1405,
        0x00000000048D1405 | X | U | A,
        0x00000000048D14D7 | 1 << 54,
        0x00000000048D14D7 | 1 << 60,
        0x00000000048D14D7 | 1 << 61,
        0x80000000048D20D7,
    ],
    ids=["W", "WX", "bit 54", "bit 60", "Svpbmt", "Svnapot"],
)
def test_a_reserved_encoding_is_refused(entry: int) -> None:
    assert Tables(entry).ask().fault is WalkFault.RESERVED_BIT
    assert Tables(entry).ask().code == 13


@pytest.mark.parametrize("bit", [A, D, U, 1 << 54, NAPOT, 1 << 61])
def test_a_pointer_with_a_leafs_bits_is_refused(bit: int) -> None:
    assert Tables(0x80202 << 10 | V | bit, level=1).ask().fault is WalkFault.RESERVED_BIT


def test_memory_types_need_svpbmt_and_one_is_reserved() -> None:
    leaf = 0x00000000048D14D7
    for kind, refused in ((0, False), (1, False), (2, False), (3, True)):
        walk = Tables(leaf | kind << 61, svpbmt=True).ask()
        assert (walk.fault is WalkFault.RESERVED_BIT) == refused
        assert refused or walk.pa == 0x12345000


def test_a_superpage_must_be_aligned() -> None:
    assert Tables(0x00000000048800D7, level=1).ask(va=0x234567).pa == 0x12234567
    assert Tables(0x00000000048804D7, level=1).ask().fault is WalkFault.MISALIGNED


def test_a_clear_accessed_or_dirty_bit_faults_where_software_sets_it() -> None:
    clean, old = 0x00000000048D1457, 0x00000000048D1417
    assert Tables(clean, ad_bits="svade").ask(Access.LOAD).pa == 0x12345000
    assert Tables(clean, ad_bits="svade").ask(Access.STORE).fault is WalkFault.NOT_ACCESSED
    assert Tables(old, ad_bits="svade").ask(Access.LOAD).fault is WalkFault.NOT_ACCESSED
    assert Tables(old, ad_bits="svadu").ask(Access.STORE).pa == 0x12345000


@pytest.mark.parametrize(
    ("status", "allowed"),
    [(PLAIN, set[Access]()), (SUM, {Access.LOAD, Access.STORE})],
    ids=["plain", "SUM"],
)
def test_a_supervisor_needs_sum_for_user_pages_and_never_executes_them(
    status: int, allowed: set[Access]
) -> None:
    leaf = 0x12345 << 10 | V | R | W | X | U | A | D
    for access in Access:
        walk = Tables(leaf, status=status).ask(access, Privilege.SUPERVISOR)
        assert (walk.pa is not None) == (access in allowed), access
        assert Tables(leaf & ~U, status=status).ask(access, Privilege.SUPERVISOR).pa == 0x12345000
        assert Tables(leaf & ~U, status=status).ask(access, Privilege.USER).pa is None


def test_mxr_makes_what_may_be_executed_readable() -> None:
    leaf = 0x12345 << 10 | V | X | U | A
    assert Tables(leaf).ask().fault is WalkFault.NO_PERMISSION
    assert Tables(leaf, status=MXR).ask().pa == 0x12345000
    assert Tables(leaf, status=MXR).ask(Access.STORE).pa is None


@pytest.mark.parametrize(("access", "cause"), [(Access.FETCH, 12), (Access.LOAD, 13), (Access.STORE, 15)])
def test_every_refusal_is_a_page_fault_of_its_access(access: Access, cause: int) -> None:
    """Also an address that is not canonical; only a table outside memory is an access fault."""
    for va in (0x300000, 0x4000000000, 0x8000000000):
        walk = Tables(0).ask(access, va=va)
        assert walk.code == cause
        info = decode(walk.code)
        assert (info.access, info.kind, info.user) == (access.name.lower(), "not_present", True)
    beyond = Tables(0xFFFFFFFFFFF << 10 | V, level=1).ask(access)
    assert beyond.fault is WalkFault.TABLE_UNREADABLE
    assert beyond.code == {12: 1, 13: 5, 15: 7}[cause]


def test_private_writable_pages_start_read_only_and_shared_ones_writable() -> None:
    protections = riscv.page_protections()
    assert protections[0b0011] == V | R | U | A
    assert protections[0b1011] == V | R | W | U | A
    assert protections[0b0100] == V | X | U | A
    assert protections[0b1010] == V | R | W | U | A, "W without R is reserved"


def test_a_page_without_rights_is_not_valid_and_keeps_its_frame() -> None:
    pte = riscv.entry_format(RiscvConfig(), {}, 3)
    entry = riscv.page_protections()[0] | pte.of_frame(0x12345000)
    assert not entry & V
    assert entry & G
    assert pte.is_mapped(entry)
    assert not pte.is_mapped(pte.empty)
    assert pte.frame_of(entry) == 0x12345000
