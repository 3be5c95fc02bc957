"""Programs on the hash machines: what the hash table and the TLBs know is never more than what Linux's tables say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polymmu.errors import SegmentationFault
from polymmu.hardware.entry import Access, Privilege
from polymmu.hardware.ram import FLAGS
from polymmu.machine import Machine, Mm
from polymmu.registry import Arch, replaced
from polymmu.structs import PG_TABLE
from polymmu_ppc64 import mmu
from polymmu_ppc64.images import HashImage
from tests.arches.ppc64.hashed import Heard, check, entries, machine_with, pte_at

MACHINES = ("ppc64", "ppc64-64k", "power5")
MIB = 1 << 20
LOW = 0x10000000
ROOMY = ("tlbs.DERAT.ways=128", "tlbs.TLB.ways=1024")
"""Without sets, in which pages at regular distances would push each other out."""


def running(machine: Machine) -> Mm:
    """A new program on CPU 0."""
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    return mm


def counted(machine: Machine, cpu: int = 0) -> dict[str, int]:
    walk: dict[str, int] = machine.cpus[cpu].cpu.counters()["walk"]
    return walk


@pytest.mark.parametrize("name", MACHINES)
def test_a_program_lives_forks_and_leaves_nothing(name: str) -> None:
    machine = machine_with(name, "cpus=2")
    first, second = machine.cpus
    page = machine.page_size
    free = machine.kernel.free.free
    mm = running(machine)
    here = mm.mmap(40 * page, at=LOW, fixed=True)
    for n in range(40):
        first.store(here + n * page, b"%02d" % n)
    check(machine, mm)
    child = mm.fork()
    check(machine, mm, child)
    first.store(here, b"parent")
    second.switch_mm(child)
    assert second.load(here, 2) == b"00"
    second.store(here, b"child")
    assert first.load(here, 6) == b"parent"
    check(machine, mm, child)
    mm.mprotect(here, 20 * page, "r")
    with pytest.raises(SegmentationFault):
        first.store(here, b"x")
    assert first.load(here, 6) == b"parent"
    mm.mprotect(here, 20 * page, "rw")
    first.store(here, b"again!")
    mm.mprotect(here, page, "")
    with pytest.raises(SegmentationFault):
        first.load(here, 1)
    mm.mprotect(here, page, "rw")
    assert first.load(here, 6) == b"again!"
    check(machine, mm, child)
    moved = mm.mremap(here, 40 * page, 40 * page, to=here + (64 << 20))
    assert first.load(moved + 39 * page, 2) == b"39"
    with pytest.raises(SegmentationFault):
        first.load(here, 1)
    check(machine, mm, child)
    file = machine.new_file(8 * page)
    shared = mm.mmap(8 * page, shared=True, file=file, at=LOW + (128 << 20), fixed=True)
    first.load(shared, 1)
    first.store(shared, b"in the file")
    file.truncate(0)
    with pytest.raises(SegmentationFault):
        first.load(shared, 1)
    check(machine, mm, child)
    mm.munmap(moved, 20 * page)
    check(machine, mm, child)
    mm.exit()
    child.exit()
    file.close()
    assert list(entries(machine)) == []
    assert machine.kernel.free.free == free
    assert machine.flushes.section()["missing"] == 0


def test_a_store_to_a_clean_page_is_the_hash_fault_handlers_business() -> None:
    machine = machine_with("ppc64")
    mm = running(machine)
    page, cpu = machine.page_size, machine.cpus[0]
    file = machine.new_file(page)
    here = mm.mmap(page, shared=True, file=file, at=LOW, fixed=True)
    cpu.load(here, 1)
    (entry,) = entries(machine)
    assert entry.second & 3 == 3, "read-only to hardware"
    assert pte_at(mm.struct, here) & 0x80 == 0
    heard = Heard(machine)
    before = counted(machine)["hash_faults"]
    cpu.store(here, b"x")
    assert counted(machine)["hash_faults"] == before + 1
    assert heard.faults == [], "no page fault"
    (entry,) = entries(machine)
    assert entry.second & 3 == 2
    assert pte_at(mm.struct, here) & 0x80
    cpu.store(here, b"y")
    assert counted(machine)["hash_faults"] == before + 1


def test_a_fault_preloads_so_that_the_retry_needs_no_hash_fault() -> None:
    machine = machine_with("ppc64")
    mm = running(machine)
    here = mm.mmap(machine.page_size)
    machine.cpus[0].store(here, b"x")
    # One hash fault that became a page fault; the retry found the entry.
    assert counted(machine)["hash_faults"] == 1
    assert counted(machine)["count"] == 2


def colliding(machine: Machine, mm: Mm, n: int) -> list[int]:
    """Addresses of pages that hash to one pair of groups in a table of 2048: 8 MiB apart, in one segment."""
    places = [LOW + k * 8 * MIB for k in range(n)]
    for place in places:
        mm.mmap(machine.page_size, at=place, fixed=True)
    return places


def test_full_groups_lose_entries_without_tlbie_and_nothing_stale_is_left() -> None:
    machine = machine_with("ppc64", "ppc64.hash_groups=2048", *ROOMY)
    mm, cpu = running(machine), machine.cpus[0]
    places = colliding(machine, mm, 32)
    for n, place in enumerate(places):
        cpu.store(place, bytes([n]))
    assert len(list(entries(machine))) == 16, "two groups of eight"
    check(machine, mm)
    walks, references = counted(machine)["count"], counted(machine)["references"]
    assert [cpu.load(place, 1)[0] for place in places] == list(range(32))
    assert counted(machine)["count"] == walks, "the TLB knows what the hash table lost"
    cpu.cpu.invalidate(asid=None)
    assert [cpu.load(place, 1)[0] for place in places] == list(range(32))
    assert counted(machine)["hash_evictions"] >= 16
    assert counted(machine)["references"] > references
    check(machine, mm)
    mm.munmap(LOW, 256 * MIB)
    check(machine, mm)
    assert list(entries(machine)) == []
    for place in places:
        with pytest.raises(SegmentationFault):
            cpu.load(place, 1)
    assert machine.flushes.section()["missing"] == 0


def test_the_eviction_count_alternates_groups_and_goes_through_slots() -> None:
    machine = machine_with("ppc64", "ppc64.hash_groups=2048")
    mm, cpu = running(machine), machine.cpus[0]
    places = colliding(machine, mm, 20)
    for place in places:
        cpu.store(place, b"x")
    slots = [pte_at(mm.struct, place) >> 12 & 15 for place in places]
    assert slots[:16] == list(range(16)), "primary slots, then secondary ones"
    assert slots[16:] == [0, 8, 1, 9], "evictions 0 to 3: bit 0 chooses the group, the bits above the slot"


@pytest.mark.parametrize("name", MACHINES)
def test_a_batch_is_flushed_at_192_and_on_leaving(name: str) -> None:
    machine = machine_with(name, "cpus=2", "memory=512 MiB")
    mm = running(machine)
    page = machine.page_size
    here = mm.mmap(300 * page, at=LOW, fixed=True)
    for n in range(300):
        machine.cpus[0].store(here + n * page, b"x")
    heard = Heard(machine)
    mm.mprotect(here, 300 * page, "r")
    assert heard.seen == [("local", 0), ("local", 0)], "tlbiel: the mm only ever ran here"
    assert list(entries(machine)) == []
    for n in range(300):
        machine.cpus[0].load(here + n * page, 1)
    machine.cpus[1].switch_mm(mm)
    machine.cpus[0].switch_mm(mm)
    heard.seen.clear()
    mm.munmap(here, 300 * page)
    assert heard.seen == [("broadcast", 1), ("broadcast", 1)]
    check(machine, mm)


def test_outside_lazy_mode_every_update_goes_to_all_cpus_at_once() -> None:
    machine = machine_with("ppc64", "cpus=4")
    mm = running(machine)
    page, kernel = machine.page_size, machine.kernel
    here = mm.mmap(2 * page)
    machine.cpus[0].store(here, b"x")
    heard = Heard(machine)
    ptep = pte_place(mm, here)
    kernel.ops.set_wrprotect(mm.struct, here, ptep, 1)
    assert heard.seen == [("broadcast", 3)]
    assert pte_at(mm.struct, here) & 0x600 == 0x400, "no longer writable; the slot stays remembered"
    kernel.ops.set_wrprotect(mm.struct, here + page, ptep + 8, 1)
    assert len(heard.seen) == 1, "an entry that was never hashed needs no flush"


def test_in_lazy_mode_nothing_goes_before_leaving_or_another_address_space() -> None:
    machine = machine_with("ppc64")
    kernel, page = machine.kernel, machine.page_size
    mms = [running(machine) for _ in range(2)]
    for mm in mms:
        machine.cpus[0].switch_mm(mm)
        mm.mmap(page, at=LOW, fixed=True)
        machine.cpus[0].store(LOW, b"x")
    heard = Heard(machine)
    one, two = (mm.struct for mm in mms)
    kernel.ops.enter_lazy_mmu(one)
    kernel.ops.ptep_get_and_clear(one, LOW, pte_place(mms[0], LOW), 1, None)
    assert len(heard.seen) == 0 and len(list(entries(machine))) == 2
    kernel.ops.set_wrprotect(two, LOW, pte_place(mms[1], LOW), 1)
    assert len(heard.seen) == 1 and len(list(entries(machine))) == 1
    kernel.ops.leave_lazy_mmu(two)
    assert len(heard.seen) == 2 and list(entries(machine)) == []


def pte_place(mm: Mm, ea: int) -> int:
    """Physical address of the pte, four levels of 4 KiB pages or whatever the layout says."""
    layout, ram, table = mm.struct.layout, mm.machine.kernel.ram, mm.struct.pgd
    for level in range(layout.pte_level):
        place = layout.entry_address(level, table, ea)
        table = ram.read_entry(place, 8, "big") & ~(0xC << 60)
    return layout.entry_address(layout.pte_level, table, ea)


def test_a_present_entry_is_flushed_before_another_takes_its_place() -> None:
    machine = machine_with("ppc64")
    mm, cpu, page = running(machine), machine.cpus[0], machine.page_size
    here = mm.mmap(2 * page, at=LOW, fixed=True)
    cpu.store(here, b"one")
    cpu.store(here + page, b"two")
    other = pte_at(mm.struct, here + page)
    ptep = pte_place(mm, here)
    machine.kernel.ops.set_pte(mm.struct, here, ptep, np.array([other], dtype=np.uint64))
    assert pte_at(mm.struct, here) == other & ~0xFC00, "what is about the other's entry is not taken over"
    assert cpu.load(here, 3) == b"two"


def test_a_page_that_was_made_old_is_noticed_at_its_next_use() -> None:
    machine = machine_with("ppc64")
    mm, cpu = running(machine), machine.cpus[0]
    here = mm.mmap(machine.page_size)
    cpu.store(here, b"x")
    vma = mm.struct.mmap
    ops, ptep = machine.kernel.ops, pte_place(mm, here)
    assert vma is not None
    assert ops.test_and_clear_young(vma, here, ptep, 1) == 1
    assert ops.test_and_clear_young(vma, here, ptep, 1) == 0
    cpu.load(here, 1)
    assert ops.test_and_clear_young(vma, here, ptep, 1) == 1


def test_the_segment_buffer_is_asked_only_when_the_erat_misses_and_refilled_in_turn() -> None:
    machine = machine_with("ppc64", *ROOMY)
    mm, cpu = running(machine), machine.cpus[0]
    places = [n << 28 for n in range(1, 63)]
    for place in places:
        mm.mmap(machine.page_size, at=place, fixed=True)
    for place in places[:61]:
        cpu.load(place, 1)
    assert counted(machine)["slb_misses"] == 61
    slots = cpu.cpu.mmu[mmu.SLB : mmu.SLB + mmu.SLB_WORDS : 2]
    assert [int(word) & (1 << 64) - 1 for word in slots[:3]] == [0xC000000008000000, 0xD000000008000000, 0]
    assert slots[3:].tolist() == [place | 0x8000000 for place in places[:61]]
    for place in places[:61]:
        cpu.load(place, 1)
    assert counted(machine)["slb_misses"] == 61
    cpu.load(places[61], 1)
    assert slots[3] == places[61] | 0x8000000, "behind the bolted ones"
    cpu.load(places[0], 1)
    assert counted(machine)["slb_misses"] == 62, "the ERAT still has it"
    cpu.cpu.invalidate(asid=None, first_level_only=True)
    cpu.load(places[0], 1)
    assert counted(machine)["slb_misses"] == 63
    walks = counted(machine)["count"]
    assert walks == 2 * 62, "two per page fault; the TLB had the page all along"


def test_a_switch_empties_segment_buffer_and_erats_but_not_the_tlb() -> None:
    machine = machine_with("ppc64")
    mm, cpu = running(machine), machine.cpus[0]
    here = mm.mmap(machine.page_size)
    cpu.store(here, b"x")
    walks = counted(machine)["count"]
    other = machine.new_mm()
    cpu.switch_mm(other)
    assert not cpu.cpu.mmu[mmu.FIRST_SLOT : mmu.SLB + mmu.SLB_WORDS].any()
    cpu.switch_mm(mm)
    misses = cpu.cpu.counters()["tlb"]["DERAT"]["misses"]
    cpu.load(here, 1)
    counts = cpu.cpu.counters()
    assert counts["tlb"]["DERAT"]["misses"] == misses + 1
    assert counts["walk"]["count"] == walks
    assert mm.struct.cpu_mask == 1, "a CPU stays in the mask"


def test_the_lowest_free_context_is_taken_and_its_predecessor_is_not_seen() -> None:
    machine = machine_with("ppc64")
    first, second, third = (machine.new_mm() for _ in range(3))
    assert [mm.struct.context.number for mm in (first, second, third)] == [1, 2, 3]
    cpu = machine.cpus[0]
    cpu.switch_mm(second)
    here = second.mmap(machine.page_size)
    cpu.store(here, b"secret")
    second.exit()
    first.exit()
    heir, next_heir = machine.new_mm(), machine.new_mm()
    assert [heir.struct.context.number, next_heir.struct.context.number] == [1, 2]
    cpu.switch_mm(next_heir)
    with pytest.raises(SegmentationFault):
        cpu.load(here, 1)
    next_heir.mmap(machine.page_size, at=here, fixed=True)
    assert cpu.load(here, 6) == bytes(6)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("place", [0x30000000, 0x10000000000])
def test_huge_pages_have_segments_of_their_own(name: str, place: int) -> None:
    machine = machine_with(name, "cpus=2")
    size, free = 16 * MIB, machine.kernel.free.free
    mm, cpu = running(machine), machine.cpus[0]
    mm.mmap(machine.page_size, at=0x10000000, fixed=True)
    cpu.store(0x10000000, b"small")
    here = mm.mmap(4 * size, at=place, fixed=True, huge=size)
    for n in range(4):
        cpu.store(here + n * size + 12345, b"page%d" % n)
    assert len(list(entries(machine))) == 5, "one entry for each huge page"
    with pytest.raises(OSError, match="huge"):
        mm.mmap(machine.page_size, at=here + 8 * size, fixed=True)
    with pytest.raises(OSError, match="share"):
        mm.mmap(size, at=0x11000000, fixed=True, huge=size)
    child = mm.fork()
    with pytest.raises(OSError, match="huge"):
        child.mmap(machine.page_size, at=here + 8 * size, fixed=True)
    machine.cpus[1].switch_mm(child)
    machine.cpus[1].store(here + 12345, b"CHILD")
    assert cpu.load(here + 12345, 5) == b"page0"
    mm.mprotect(here, 4 * size, "r")
    with pytest.raises(SegmentationFault):
        cpu.store(here, b"x")
    mm.munmap(here, 2 * size)
    assert cpu.load(here + 2 * size + 12345, 5) == b"page2"
    with pytest.raises(SegmentationFault):
        cpu.load(here, 1)
    mm.exit()
    child.exit()
    assert list(entries(machine)) == []
    assert machine.kernel.free.free == free
    assert machine.flushes.section()["missing"] == 0


def test_opening_a_slice_drops_the_segment_that_was_loaded_for_small_pages() -> None:
    machine = machine_with("ppc64")
    mm, cpu, size = running(machine), machine.cpus[0], 16 * MIB
    mm.mmap(machine.page_size, at=0x30000000, fixed=True)
    cpu.store(0x30000000, b"small")
    mm.munmap(0x30000000, machine.page_size)
    mm.mmap(size, at=0x30000000, fixed=True, huge=size)
    cpu.store(0x30000000, b"huge")
    (entry,) = entries(machine)
    assert entry.first & 4, "a large page"


def test_three_levels_have_huge_pages_in_half_a_tebibyte_and_below_4_gib_only() -> None:
    machine = machine_with("power5")
    mm, size = running(machine), 16 * MIB
    for place in (0x1800_000_0000, 0xFFFF000000):
        with pytest.raises(OSError, match=r"huge"):
            mm.mmap(size, at=place, fixed=True, huge=size)
    for place in (0x17FFF000000, 0x10000000000, 0xFF000000):
        assert mm.mmap(size, at=place, fixed=True, huge=size) == place
    with pytest.raises(OSError, match="huge"):
        mm.mmap(machine.page_size, at=0x14000000000, fixed=True)
    mm.mmap(machine.page_size, at=0x18000000000, fixed=True)


@pytest.mark.parametrize("name", ["ppc64", "ppc64-64k"])
def test_the_table_of_a_hugepd_goes_with_the_last_mapping_of_its_256_mib(name: str) -> None:
    machine = machine_with(name)
    mm, cpu, size = running(machine), machine.cpus[0], 16 * MIB

    def tables() -> int:
        return int((machine.kernel.frames.table[FLAGS] & PG_TABLE != 0).sum())

    before = tables()
    for place in (0x30000000, 0x34000000, 0x38000000):
        mm.mmap(size, at=place, fixed=True, huge=size)
        cpu.store(place, b"x")
    assert tables() == before + 2, "the hugepd's and the one above it"
    mm.munmap(0x34000000, size)
    mm.munmap(0x30000000, size)
    assert tables() == before + 2
    assert cpu.load(0x38000000, 1) == b"x"
    mm.munmap(0x38000000, size)
    assert tables() == before
    assert not any(mm.struct.nr_tables[1:])


def test_addresses_beyond_the_user_are_page_faults() -> None:
    machine = machine_with("ppc64")
    running(machine)
    for ea in (1 << 44, 0xC000000000000000, (1 << 64) - 4096):
        with pytest.raises(SegmentationFault):
            machine.cpus[0].load(ea, 1)


def test_a_walk_shows_linux_tables_and_the_hugepd() -> None:
    machine = machine_with("ppc64")
    mm, cpu = running(machine), machine.cpus[0]
    mm.mmap(machine.page_size, at=LOW, fixed=True)
    cpu.store(LOW + 0x123, b"x")
    walk = cpu.cpu.translate(LOW + 0x123, Access.STORE)
    assert walk.pa is not None
    assert machine.kernel.ram.read(walk.pa, 1) == b"x"
    assert [level for level, _, _ in walk.path] == [0, 1, 2, 3]
    huge = mm.mmap(16 * MIB, huge=16 * MIB)
    cpu.store(huge + 0x345678, b"y")
    walk = cpu.cpu.translate(huge + 0x345678)
    assert walk.pa is not None
    assert machine.kernel.ram.read(walk.pa, 1) == b"y"
    assert walk.page_size == 16 * MIB
    assert walk.path[1][2] >> 62 == 1, "a hugepd: kernel address without bit 63"
    assert walk.path[1][2] & 63 == 24


def test_a_walk_finds_the_separate_tree_of_huge_pages() -> None:
    machine = machine_with("power5")
    mm, cpu = running(machine), machine.cpus[0]
    huge = mm.mmap(32 * MIB, huge=16 * MIB)
    cpu.store(huge + 17 * MIB, b"z")
    walk = cpu.cpu.translate(huge + 17 * MIB)
    assert walk.pa is not None
    assert machine.kernel.ram.read(walk.pa, 1) == b"z"
    assert cpu.cpu.translate(huge).pa is None


def test_too_small_a_memory_for_the_hash_table_is_a_users_mistake() -> None:
    with pytest.raises(Exception, match=r"no room for a hash table of 0x8000000 bytes"):
        machine_with("ppc64", "memory=64 MiB", "ppc64.hash_groups=1048576")


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["load", "store", "store", "unmap", "map", "ro", "rw", "fork", "exit", "switch", "old"]
        ),
        st.integers(0, 31),
        st.integers(0, 1),
    ),
    min_size=5,
    max_size=60,
)


class Model:
    """What programs should see: by program, page -> its byte and whether it may be written."""

    def __init__(self, name: str) -> None:
        self.machine = machine_with(name, "cpus=2", "ppc64.hash_groups=2048")
        self.running: list[int] = [0, 0]
        self.programs: dict[int, tuple[Mm, dict[int, tuple[int, bool]]]] = {}
        self.serial = 0
        self.begin({})

    def begin(self, pages: dict[int, tuple[int, bool]], mm: Mm | None = None) -> int:
        self.serial += 1
        self.programs[self.serial] = (mm or self.machine.new_mm(), dict(pages))
        return self.serial

    def do(self, step: Step) -> None:
        what, page, index = step
        cpu = self.machine.cpus[index]
        known = sorted(self.programs)
        if self.running[index] not in self.programs:
            self.running[index] = known[page % len(known)]
            cpu.switch_mm(self.programs[self.running[index]][0])
        mm, pages = self.programs[self.running[index]]
        ea, size = LOW + page * 8 * MIB, self.machine.page_size
        present = page in pages
        with cpu:
            if what == "switch":
                self.running[index] = known[page % len(known)]
                cpu.switch_mm(self.programs[self.running[index]][0])
            elif what == "fork" and len(known) < 4:
                self.begin(pages, mm.fork())
            elif what == "exit" and len(known) > 1:
                del self.programs[self.running[index]]
                mm.exit()
            elif what == "map" and not present:
                mm.mmap(size, at=ea, fixed=True)
                pages[page] = (0, True)
            elif what == "unmap":
                mm.munmap(ea, size)
                pages.pop(page, None)
            elif what in ("ro", "rw") and present:
                mm.mprotect(ea, size, "r" if what == "ro" else "rw")
                pages[page] = (pages[page][0], what == "rw")
            elif what == "load" and present:
                assert cpu.load(ea, 1)[0] == pages[page][0]
            elif what == "store" and present and pages[page][1]:
                pages[page] = ((pages[page][0] + 1) % 256, True)
                cpu.store(ea, bytes([pages[page][0]]))
            elif what in ("load", "store"):
                with pytest.raises(SegmentationFault):
                    cpu.load(ea, 1) if what == "load" and not present else cpu.store(ea, b"x")
        check(self.machine, *(mm for mm, _ in self.programs.values()))


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_whatever_programs_do_hash_table_and_tlbs_agree_with_the_tables(name: str, steps: list[Step]) -> None:
    """32 pages of one pair of groups, two CPUs, up to four programs; the hash table overflows at the 17th page."""
    model = Model(name)
    for step in [("map", page, 0) for page in range(0, 32, 2)] + [("store", page, 0) for page in range(32)]:
        model.do(step)
    for step in steps:
        model.do(step)
    for mm, _ in model.programs.values():
        mm.exit()
    assert list(entries(model.machine)) == []
    assert model.machine.flushes.section()["missing"] == 0


@pytest.mark.parametrize(
    ("name", "sets"),
    [("ppc64", ()), ("ppc64-64k", ()), ("power5", ()), ("ppc64", ("ppc64.big_segments=true",))],
)
def test_the_table_a_machine_made_reads_as_any_other(name: str, sets: tuple[str, ...]) -> None:
    """What compiled code entered, the reader of images finds by itself, with SDR1 and the segment buffer."""
    machine = machine_with(name, "ppc64.hash_groups=2048", *sets)
    mm, cpu, size = running(machine), machine.cpus[0], machine.page_size
    huge = mm.mmap(16 * MIB, huge=16 * MIB)  # first: opening a slice empties the segment buffer
    cpu.store(huge + 5, b"x")
    top = machine.task_size - (1 << 33)
    places = [base + n * 3 * MIB for base in (LOW, 0x1F0000000, top) for n in range(9)]
    for n, place in enumerate(places):
        mm.mmap(size, at=place, fixed=True)
        if n % 2:
            cpu.store(place + 5, b"x")
        else:
            cpu.load(place + 5, 1)
    slots = cpu.cpu.mmu[mmu.SLB : mmu.SLB + mmu.SLB_WORDS].tolist()
    image = HashImage(segments=tuple(zip(slots[::2], slots[1::2], strict=True)))
    ram, sdr1 = machine.kernel.ram, machine.kernel.arch_state.hash_table
    for n, place in enumerate([*places, huge]):
        expected = cpu.cpu.translate(place + 5)
        assert image.walk(ram, sdr1, place + 5, Access.LOAD, Privilege.USER).pa == expected.pa is not None
        written = n % 2 == 1 or place == huge
        found = image.walk(ram, sdr1, place + 5, Access.STORE, Privilege.USER)
        assert found.pa == (expected.pa if written else None), hex(place)
        assert not found.executable


def test_without_the_preload_there_are_only_more_hash_faults() -> None:
    """A page fault that raises a right leaves no TLB entry behind that still lacks it."""

    def hash_faults(arch: Arch) -> int:
        machine = Machine(description, arch)
        mm, cpu = running(machine), machine.cpus[0]
        here = mm.mmap(machine.page_size)
        cpu.store(here, b"1")
        child = mm.fork()
        assert cpu.load(here, 1) == b"1"
        child.exit()
        cpu.store(here, b"2")  # nobody else maps it: the pte becomes writable again
        assert cpu.load(here, 1) == b"2"
        return counted(machine)["hash_faults"]

    description, arch = Machine.describe("ppc64", sets=("memory=256 MiB",))
    without = replaced(arch, "update_mmu_cache", lambda vma, addr, ptep, n: None)
    assert hash_faults(without) == hash_faults(arch) + 2
