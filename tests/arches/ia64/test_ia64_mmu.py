"""The compiled MMU of a CPU: rights and hash as the simulator gives them, the walker's misses, what traps set.

Pages are entered in the tables by hand, so that every pte can be tried.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.arch import VM_READ, VM_SHARED, VM_WRITE, Access, Privilege, WalkFault, alloc_entry
from polymmu.errors import SegmentationFault
from polymmu.hardware.cpu import Cpu, InternalError
from polymmu.machine import Machine
from polymmu_ia64.entries import PAGE_NOT_PRESENT, A, D, P, R, W, X, is_reserved
from polymmu_ia64.mmu import RIGHTS, thash
from tests.arches.captured import DATA
from tests.arches.ia64.translation_unit import PSR_DT, PSR_IC, PSR_IT, Fault, TranslationUnit

CASES: list[dict[str, Any]] = json.loads((DATA / "ia64-ski.json").read_text())["cases"]
PAGE = 1 << 14
BASE = 0x2000000000000000
SHARED = P | A | D | 3 << 7 | 2 << 9
NEEDS = {Access.FETCH: X, Access.LOAD: R, Access.STORE: W}
CPL = {Privilege.SUPERVISOR: 0, Privilege.USER: 3}


class Bare:
    """A CPU of the plain machine with an address space whose ptes the test writes itself."""

    def __init__(self, machine: str = "ia64") -> None:
        self.machine = Machine.from_file(machine)
        self.mm = self.machine.new_mm()
        self.machine.cpus[0].switch_mm(self.mm)
        self.cpu: Cpu = self.machine.cpus[0].cpu
        self.ram = self.machine.kernel.ram
        self.cpu.vectors = self
        self.faults: list[tuple[WalkFault, int]] = []

    def fault(self, cpu: Cpu, code: int, va: int, upcoming: object) -> None:
        """Software that handles nothing."""
        self.faults.append((cpu.fault_kind, code))

    def enter(self, va: int, pte: int) -> int:
        """Make the tables for ``va`` and write its pte; where that is."""
        place = alloc_entry(self.mm.struct, va)
        self.ram.write_entry(place, 8, "little", pte)
        return place

    def try_access(self, va: int, access: Access) -> WalkFault:
        """One access of a byte: how it was refused, NONE where it was not."""
        self.faults.clear()
        try:
            if access == Access.STORE:
                self.cpu.store(va, b"x")
            else:
                (self.cpu.fetch if access == Access.FETCH else self.cpu.load)(va, 1)
        except InternalError:  # refused again after the handler, which did nothing
            return self.faults[0][0]
        return WalkFault.NONE

    def events(self) -> dict[str, int]:
        """What the walker and the handlers counted."""
        return dict(self.cpu.counters()["walk"])

    def forget(self) -> None:
        """Empty the TLBs."""
        self.cpu.invalidate(asid=None, include_global=True)


@pytest.fixture
def bare() -> Bare:
    return Bare()


# ------------------------------------------------------------------ against the simulator
def test_every_right_is_the_one_the_simulator_grants(bare: Bare) -> None:
    (case,) = [case for case in CASES if case["kind"] == "rights"]
    wanted = {"ld": Access.LOAD, "st": Access.STORE, "fetch": Access.FETCH}
    privileges = {0: Privilege.SUPERVISOR, 3: Privilege.USER}
    pte = asked = 0
    for name, *rest in case["ops"]:
        if name in ("itc.d", "itc.i"):
            pte = rest[2]
            continue
        if name not in wanted or rest[1] not in privileges:
            continue
        bare.forget()
        bare.enter(BASE, pte & 0xFFF | 0x123 << 14)
        bare.cpu.privilege = privileges[rest[1]]
        is_granted = rest[2][0] == "pa"
        expected = WalkFault.NONE if is_granted else WalkFault.NO_PERMISSION
        assert bare.try_access(BASE, wanted[name]) == expected, (hex(pte), name, rest[1])
        asked += 1
    assert asked == 8 * 4 * 2 * 3


def test_the_compiled_hash_is_the_simulators() -> None:
    asked = 0
    for case in CASES:
        if case["kind"] not in ("hash", "hash51"):
            continue
        rr, pta = [0x30] * 8, 0x3C
        for name, *rest in case["ops"]:
            if name == "rr":
                rr[rest[0]] = rest[1]
            elif name == "pta":
                pta = rest[0]
            elif name == "thash":
                va = rest[0]
                signed = va - (1 << 64) if va >> 63 else va
                base = pta - (1 << 64) if pta >> 63 else pta
                place = thash(signed, rr[va >> 61] >> 2 & 63, base, case["va_bits"])
                assert int(place) & (1 << 64) - 1 == rest[1][1], hex(va)
                asked += 1
    assert asked > 50


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    bits=st.integers(0, 0x1FFF),
    upper=st.sampled_from([0, 0, 0, 1 << 50, 1 << 51, 1 << 52, 1 << 63]),
    accesses=st.lists(st.tuples(st.sampled_from(Access), st.sampled_from(Privilege)), min_size=1, max_size=3),
)
def test_a_cpu_does_what_the_processor_and_linuxs_handlers_do_together(
    bits: int, upper: int, accesses: list[tuple[Access, Privilege]]
) -> None:
    """The page of ptes is in the TLB; a handler sets A, or D and A, in the pte, and purges what is absent."""
    bare = SHARED_BARE
    bare.forget()
    pte = bits & 0xFFF | 0x123 << 14 | upper
    place = bare.enter(BASE, pte)
    rr = [int(register) for register in bare.cpu.mmu[:8]]
    unit = TranslationUnit(
        lambda pa: bare_pte[0], rr=rr, pta=0x1FFC0000000000C9, psr=PSR_DT | PSR_IC | PSR_IT
    )
    bare_pte = [pte]
    slot = unit.thash(BASE)
    unit.insert(unit.data, slot, 14 << 2, (place & -PAGE) | 0x461)
    for access, privilege in accesses:
        expected = WalkFault.NONE
        for _ in range(3):
            try:
                unit.reference(BASE, NEEDS[access], CPL[privilege])
                break
            except Fault as fault:
                if fault.vector in (0x2000, 0x2400, 0x2800):
                    bare_pte[0] |= A | D if fault.vector == 0x2000 else A
                    unit.purge(BASE, 14)
                    continue
                if fault.vector == PAGE_NOT_PRESENT:
                    unit.purge(BASE, 14)
                    expected = WalkFault.NOT_PRESENT
                else:
                    expected = WalkFault.RESERVED_BIT if is_reserved(pte, 50) else WalkFault.NO_PERMISSION
                break
        bare.cpu.privilege = privilege
        assert bare.try_access(BASE, access) == expected
        assert bare.ram.read_entry(place, 8, "little") == bare_pte[0]


SHARED_BARE = Bare()


# ------------------------------------------------------------------ the walker and its handlers
def test_the_first_page_of_a_table_traps_and_its_neighbours_are_found_by_the_walker(bare: Bare) -> None:
    for n in range(3):
        bare.enter(BASE + n * PAGE, SHARED | (0x200 + n) << 14)
    before = bare.events()
    assert bare.try_access(BASE, Access.LOAD) == WalkFault.NONE
    assert bare.try_access(BASE + PAGE, Access.LOAD) == WalkFault.NONE
    assert bare.try_access(BASE + 2 * PAGE, Access.LOAD) == WalkFault.NONE
    now = bare.events()
    counted = {name: now[name] - before[name] for name in ("count", "references", "vhpt_misses", "vhpt_hits")}
    assert counted == {"count": 3, "references": 3 + 1 + 1, "vhpt_misses": 1, "vhpt_hits": 2}


def test_a_fetch_finds_its_pte_through_the_tlb_for_data(bare: Bare) -> None:
    code = P | A | 3 << 7 | 1 << 9
    bare.enter(BASE, code | 0x200 << 14)
    bare.enter(BASE + PAGE, code | 0x201 << 14)
    bare.try_access(BASE, Access.LOAD)
    assert bare.try_access(BASE + PAGE, Access.FETCH) == WalkFault.NONE
    assert bare.events()["vhpt_hits"] == 1


def test_the_tables_of_another_region_are_another_page_of_the_vhpt(bare: Bare) -> None:
    for region in range(5):
        bare.enter(region << 61, SHARED | (0x300 + 0x4000 * (region == 4)) << 14)
        assert bare.try_access(region << 61, Access.LOAD) == WalkFault.NONE
    assert bare.events()["vhpt_misses"] == 5


def test_an_absent_page_takes_a_tlb_entry_until_its_handler_purges_it(bare: Bare) -> None:
    bare.enter(BASE, SHARED | 0x200 << 14)
    place = bare.enter(BASE + PAGE, 0)
    bare.try_access(BASE, Access.LOAD)
    misses = bare.cpu.counters()["tlb"]["DTC"]["misses"]
    assert bare.try_access(BASE + PAGE, Access.LOAD) == WalkFault.NOT_PRESENT
    assert bare.cpu.counters()["tlb"]["DTC"]["misses"] == misses + 3, (
        "inserted at the attempt and at both retries"
    )
    assert bare.cpu.counters()["tlb"]["DTC"]["flushed"] == 3
    bare.ram.write_entry(place, 8, "little", SHARED | 0x201 << 14)
    assert bare.try_access(BASE + PAGE, Access.LOAD) == WalkFault.NONE


def test_a_store_to_a_clean_page_sets_dirty_in_a_trap_and_a_touch_of_an_old_page_accessed(bare: Bare) -> None:
    place = bare.enter(BASE, (SHARED & ~D & ~A) | 0x200 << 14)
    assert bare.try_access(BASE, Access.LOAD) == WalkFault.NONE
    assert bare.ram.read_entry(place, 8, "little") & (A | D) == A
    assert bare.try_access(BASE, Access.STORE) == WalkFault.NONE
    assert bare.ram.read_entry(place, 8, "little") & (A | D) == A | D
    assert bare.try_access(BASE, Access.STORE) == WalkFault.NONE
    events = bare.events()
    assert (events["access_traps"], events["dirty_traps"], events["count"]) == (1, 1, 2)


def test_a_store_whose_own_entry_is_evicted_by_the_look_at_its_pte_still_goes_to_its_page() -> None:
    machine = Machine.from_file("ia64", sets=["tlbs.DTC.entries=1", "tlbs.DTC.ways=1"])
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    addr = mm.mmap(PAGE)
    machine.cpus[0].store(addr, b"old")
    ram, place = machine.kernel.ram, alloc_entry(mm.struct, addr)
    ram.write_entry(place, 8, "little", ram.read_entry(place, 8, "little") & ~D)
    machine.kernel.ops.flush_tlb_mm(mm.struct)
    machine.cpus[0].load(addr, 1)
    frame = ram.read_entry(place, 8, "little") & (1 << 50) - PAGE
    machine.cpus[0].store(addr, b"new")
    assert machine.cpus[0].load(addr, 3) == ram.read(frame, 3) == b"new"
    assert ram.read_entry(place, 8, "little") & D


def test_a_page_that_refuses_is_cached_all_the_same(bare: Bare) -> None:
    """So that changing its pte without a purge is not enough."""
    read_only = P | A | 3 << 7
    place = bare.enter(BASE, read_only | 0x200 << 14)
    assert bare.try_access(BASE, Access.STORE) == WalkFault.NO_PERMISSION
    bare.ram.write_entry(place, 8, "little", SHARED | 0x200 << 14)
    assert bare.try_access(BASE, Access.STORE) == WalkFault.NO_PERMISSION
    bare.forget()
    assert bare.try_access(BASE, Access.STORE) == WalkFault.NONE


def test_addresses_beyond_a_regions_tables_are_page_faults(bare: Bare) -> None:
    for va in (BASE + (1 << 44), BASE + (1 << 60), BASE + 0x1FFC000000000000, 0xA000000000000000):
        assert bare.try_access(va, Access.LOAD) == WalkFault.NOT_PRESENT, hex(va)


def test_a_program_cannot_read_its_own_page_tables_in_the_vhpt(bare: Bare) -> None:
    bare.enter(BASE, SHARED | 0x200 << 14)
    bare.try_access(BASE, Access.LOAD)
    assert bare.try_access(0x3FFC000000000000, Access.LOAD) == WalkFault.NO_PERMISSION
    bare.cpu.privilege = Privilege.SUPERVISOR
    assert int.from_bytes(bare.cpu.load(0x3FFC000000000000, 8), "little") == SHARED | 0x200 << 14


def test_the_kernel_sees_physical_memory_in_regions_6_and_7_and_a_program_does_not(bare: Bare) -> None:
    bare.ram.write(0x1234, b"here")
    for window in (0xC000000000000000, 0xE000000000000000):
        bare.cpu.privilege = Privilege.USER
        assert bare.try_access(window + 0x1234, Access.LOAD) == WalkFault.NOT_PRESENT
        bare.cpu.privilege = Privilege.SUPERVISOR
        assert bare.cpu.load(window + 0x1234, 4) == b"here"


def test_fewer_implemented_bits_refuse_addresses_outright() -> None:
    machine = Machine.from_file("ia64", sets=["ia64.va_bits=51"])
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    addr = mm.mmap(PAGE)
    machine.cpus[0].store(addr, b"x")
    assert machine.cpus[0].load(addr, 1) == b"x"
    cpu = machine.cpus[0].cpu
    assert cpu.translate(0x2008000000000000).fault == WalkFault.NON_CANONICAL
    with pytest.raises(SegmentationFault, match="not an address"):
        machine.cpus[0].load(0x2008000000000000, 1)


def test_the_walk_that_shows_its_steps_agrees_with_the_compiled_one(bare: Bare) -> None:
    rng = np.random.default_rng(64)
    protections = bare.machine.kernel.shape.protections
    shared = protections[VM_READ | VM_WRITE | VM_SHARED]
    for n in range(200):
        va = (int(rng.integers(5)) << 61) + (int(rng.integers(1 << 30)) << 14)
        if va >> 61 == 4:
            continue
        pte = int(rng.integers(1 << 13)) & ~3 | int(rng.integers(8) > 0) | (0x400 + n) << 14
        place = bare.enter(va, pte if n % 5 else shared | (0x400 + n) << 14)
        bare.forget()
        for access in Access:
            for privilege in Privilege:
                walk = bare.cpu.translate(va, access, privilege)
                bare.cpu.privilege = privilege
                assert walk.path[-1] == (2, place, bare.ram.read_entry(place, 8, "little"))
                assert bare.try_access(va, access) == walk.fault, (hex(va), hex(pte), access, privilege)


def test_all_rights_are_in_the_mmus_own_words(bare: Bare) -> None:
    assert bare.cpu.mmu[RIGHTS + (2 << 2 | 3)] == 0b110110, "read-write at level 3"
    assert bare.cpu.mmu[RIGHTS + (7 << 2 | 0)] == 0b001011, "a gate: everybody executes, level 0 reads"
