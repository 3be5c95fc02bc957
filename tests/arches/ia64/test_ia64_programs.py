"""Programs on the ia64 machines: every region, holes, fork, mremap, files, huge pages, contexts; nothing is left over.

Also the order of an unmap that Linux really had: tables free, then the VHPT purged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from polymmu.arch import alloc_page, find_entry, free_page
from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hardware.cpu import Cpu
from polymmu.machine import Machine, Mm
from polymmu.mm.gather import tlb_finish_mmu, tlb_gather_mmu
from polymmu.mm.vma import find_vma
from polymmu.mm.zap import unmap_vmas
from polymmu_ia64.tlbflush import Contexts, vhpt_slot

PAGE = 1 << 14
PMD = 1 << 25
MIB = 1 << 20
HUGE = 256 * MIB
REACH = (1 << 44) - PAGE
REGION = [region << 61 for region in range(6)]
VHPT = [base + 0x1FFC000000000000 for base in REGION]


@pytest.fixture(params=["ia64", "itanium2"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine on which, at the end, nothing is held."""
    machine = Machine.from_file(request.param)
    free = machine.kernel.free.free
    yield machine
    assert machine.kernel.mms.live == 1, "the kernel's own"
    assert machine.kernel.free.free == free
    assert machine.flushes.section()["missing"] == 0


@pytest.fixture
def pair() -> Machine:
    """Two CPUs."""
    return Machine.from_file("itanium2")


def run(machine: Machine) -> Mm:
    """A program on CPU 0."""
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    return mm


def contexts(machine: Machine) -> Contexts:
    return cast(Contexts, machine.kernel.arch_state)


def stale(cpu: Cpu, mm: Mm, start: int, end: int) -> int:
    """Translations of [start, end) that a CPU could use and the tables do not support."""
    return cpu.count_stale(None, mm.struct.pgd, start, end)


# ------------------------------------------------------------------ regions
def test_a_program_lives_in_all_its_regions(machine: Machine) -> None:
    cpu, mm = machine.cpus[0], run(machine)
    places = [REGION[0] + PAGE, REGION[1], REGION[2] + PMD, REGION[3] + REACH - PAGE]
    for n, place in enumerate(places):
        assert mm.mmap(PAGE, at=place, fixed=True) == place
        cpu.store(place, bytes([n]) * 8)
    assert [cpu.load(place, 1)[0] for place in places] == [0, 1, 2, 3]
    assert mm.struct.nr_tables == [0, 4, 4], "a region shares no table below the root with another"
    mm.munmap(places[1], PAGE)
    assert mm.struct.nr_tables == [0, 3, 3]
    mm.exit()


def test_nothing_can_be_mapped_between_what_the_tables_of_a_region_reach_and_the_next_region(
    machine: Machine,
) -> None:
    mm = run(machine)
    last = REGION[1] + REACH - PAGE
    assert mm.mmap(PAGE, at=last, fixed=True) == last
    for at, length in (
        (last + PAGE, PAGE),
        (last, 2 * PAGE),
        (REGION[1] + (1 << 44), PAGE),
        (REGION[2] - PAGE, PAGE),
        (REGION[2] - PAGE, 2 * PAGE),
    ):
        with pytest.raises(SyscallError, match="not translated"):
            mm.mmap(length, at=at, fixed=True)
    with pytest.raises(SyscallError, match="ends above"):
        mm.mmap(PAGE, at=REGION[5], fixed=True)
    mm.exit()


def test_one_munmap_across_regions_empties_every_tlb(machine: Machine) -> None:
    cpu, mm = machine.cpus[0], run(machine)
    places = [REGION[1] + PAGE, REGION[2] + PAGE, REGION[3] + PAGE]
    for place in places:
        mm.mmap(PAGE, at=place, fixed=True)
        cpu.store(place, b"x")
    mm.munmap(places[0], places[2] + PAGE - places[0])
    assert mm.struct.nr_tables == [0, 0, 0]
    assert cpu.cpu.invalidate(asid=None, include_global=True) == 0
    for place in places:
        with pytest.raises(SegmentationFault):
            cpu.load(place, 1)
    mm.exit()


def test_tables_go_at_the_ends_of_a_region_as_anywhere(machine: Machine) -> None:
    cpu, mm = machine.cpus[0], run(machine)
    first = mm.mmap(PAGE, at=REGION[1] + REACH - PAGE, fixed=True)
    mm.mmap(PAGE, at=REGION[2], fixed=True)
    cpu.store(first, b"x")
    cpu.store(REGION[2], b"y")
    mm.munmap(first, PAGE)
    assert mm.struct.nr_tables == [0, 1, 1], "its neighbour by root entry is 2**61 bytes away"
    assert cpu.load(REGION[2], 1) == b"y"
    mm.exit()


def test_a_stack_grows_at_the_top_of_region_3_and_a_heap_from_its_bottom(machine: Machine) -> None:
    mm = run(machine).exec()
    cpu = machine.cpus[0]
    (stack,) = mm.mappings()
    assert stack[1] == REGION[3] + REACH
    cpu.store(stack[0] - PAGE, b"deeper")
    heap = mm.brk()
    assert heap >> 61 == 3
    assert mm.brk(heap + MIB) == heap + MIB
    cpu.store(heap, b"heap")
    assert mm.brk(heap) == heap
    mm.exit()


# ------------------------------------------------------------------ fork, mprotect, mremap, files
def test_parent_and_child_part_at_the_first_store(machine: Machine) -> None:
    cpu, mm = machine.cpus[0], run(machine)
    addr = mm.mmap(4 * PAGE)
    cpu.store(addr, b"both")
    child = mm.fork()
    cpu.store(addr, b"mine")
    cpu.switch_mm(child)
    assert cpu.load(addr, 4) == b"both"
    cpu.store(addr, b"own!")
    cpu.switch_mm(mm)
    assert cpu.load(addr, 4) == b"mine"
    child.exit()
    mm.exit()


def test_a_right_taken_away_is_gone_and_comes_back(machine: Machine) -> None:
    cpu, mm = machine.cpus[0], run(machine)
    addr = mm.mmap(2 * PAGE)
    cpu.store(addr, b"keep")
    mm.mprotect(addr, PAGE, "r")
    with pytest.raises(SegmentationFault, match="not writable"):
        cpu.store(addr, b"x")
    mm.mprotect(addr, PAGE, "")
    with pytest.raises(SegmentationFault, match="not readable"):
        cpu.load(addr, 1)
    mm.mprotect(addr, PAGE, "rw")
    assert cpu.load(addr, 4) == b"keep"
    mm.mprotect(addr, PAGE, "x")
    assert cpu.fetch(addr, 4) == b"keep"
    with pytest.raises(SegmentationFault):
        cpu.load(addr, 1)
    mm.exit()


def test_mremap_moves_a_mapping_from_one_region_to_another(machine: Machine) -> None:
    cpu, mm = machine.cpus[0], run(machine)
    addr = mm.mmap(4 * PMD, at=REGION[1], fixed=True)
    for n in range(4):
        cpu.store(addr + n * PMD, bytes([65 + n]))
    to = REGION[2] + (1 << 40)
    assert mm.mremap(addr, 4 * PMD, 4 * PMD, to=to) == to
    assert [cpu.load(to + n * PMD, 1) for n in range(4)] == [b"A", b"B", b"C", b"D"]
    with pytest.raises(SegmentationFault):
        cpu.load(addr, 1)
    mm.exit()


def test_a_shared_file_is_seen_by_all_and_truncation_takes_it_from_all(machine: Machine) -> None:
    file = machine.new_file(4 * PAGE)
    cpu, mm = machine.cpus[0], run(machine)
    first = mm.mmap(4 * PAGE, shared=True, file=file)
    second = mm.mmap(4 * PAGE, "r", shared=True, file=file, at=REGION[2], fixed=True)
    cpu.store(first + PAGE, b"file")
    assert cpu.load(second + PAGE, 4) == b"file"
    file.truncate(PAGE)
    with pytest.raises(SegmentationFault, match="end of the file"):
        cpu.load(second + PAGE, 1)
    mm.exit()
    file.close()


# ------------------------------------------------------------------ what is purged
def test_unmapping_purges_the_pages_and_their_place_in_the_vhpt(pair: Machine) -> None:
    cpu, mm = pair.cpus[0], run(pair)
    addr = mm.mmap(2 * PMD, at=REGION[1], fixed=True)
    for place in (addr, addr + PMD):
        cpu.store(place, b"x")
    assert cpu.cpu.count_stale(None, mm.struct.pgd, REGION[1], REGION[2]) == 0
    mm.munmap(addr, PMD)
    assert mm.struct.nr_tables == [0, 1, 1]
    assert stale(cpu.cpu, mm, REGION[1], REGION[2]) == 0, "the VHPT's translation of the freed table went too"
    assert cpu.load(addr + PMD, 1) == b"x"
    mm.exit()


def test_a_purge_reaches_every_cpu_by_broadcast_unless_the_program_ran_on_this_one_alone(
    pair: Machine,
) -> None:
    first, second = pair.cpus
    mm = run(pair)
    addr = mm.mmap(2 * PAGE)
    first.store(addr, b"x")
    mm.munmap(addr + PAGE, PAGE)
    with first:
        mm.mprotect(addr, PAGE, "r")
    assert shootdowns(pair) == (0, 0)
    second.switch_mm(mm)
    second.load(addr, 1)
    with first:
        mm.munmap(addr, PAGE)
    broadcast, interrupts = shootdowns(pair)
    assert broadcast > 0
    assert interrupts == 0
    for cpu in pair.cpus:
        assert stale(cpu.cpu, mm, REGION[1], REGION[2]) == 0
        with pytest.raises(SegmentationFault):
            cpu.load(addr, 1)
    mm.exit()


def shootdowns(machine: Machine) -> tuple[int, int]:
    """(Broadcasts, CPUs interrupted)."""
    kinds = machine.counters.shootdowns
    return kinds["broadcast"], kinds["ipis"]


def test_a_table_is_free_before_the_vhpt_is_purged_and_the_walker_still_reads_it() -> None:
    """Linux's window of 2.6.12 to 3.0. The machine option closes it."""
    for early in (True, False):
        machine = Machine.from_file("ia64", sets=[f"ia64.frees_tables_early={str(early).lower()}"])
        assert machine.arch.ops.deviations(machine.description.section) == (
            ("tables_freed_early",) if early else ()
        )
        cpu, mm = machine.cpus[0], run(machine)
        addr = mm.mmap(2 * PAGE)
        cpu.store(addr, b"x")
        table = find_entry(mm.struct, addr) & -PAGE
        vma = find_vma(mm.struct, addr)
        assert vma is not None
        tlb = tlb_gather_mmu(mm.struct)
        unmap_vmas(tlb, vma, vma.vm_start, vma.vm_end)
        machine.kernel.variants.free_pgtables.free_pgtables(tlb, vma, 0, 0)
        taken = [alloc_page(machine.kernel, "anon") for _ in range(2)]
        assert (table >> 14 in taken) == early, (
            "the next pages anybody asks for; the other was the upper table"
        )
        slot = vhpt_slot(mm.struct, addr + PAGE)
        assert stale(cpu.cpu, mm, slot, slot + 8) == 1
        machine.kernel.ram.write(0x48004000, b"reached")
        entry = table + (addr + PAGE) // PAGE % 2048 * 8
        machine.kernel.ram.write_entry(entry, 8, "little", 0x10000048004000 | 0x5E1)
        assert cpu.load(addr + PAGE, 7) == b"reached", "through whatever the frame holds now"
        for pfn in taken:
            free_page(machine.kernel, pfn)
        tlb_finish_mmu(tlb, addr, addr + 2 * PAGE)
        assert stale(cpu.cpu, mm, slot, slot + 8) == 0


# ------------------------------------------------------------------ contexts
def test_flushing_a_program_gives_it_new_identifiers_and_drops_nothing(pair: Machine) -> None:
    cpu, mm = pair.cpus[0], run(pair)
    addr = mm.mmap(PAGE)
    cpu.store(addr, b"x")
    before, number = cpu.cpu.asid, mm.struct.context.number
    flushed = cpu.cpu.counters()["tlb"]["L1D"]["flushed"]
    pair.kernel.ops.flush_tlb_mm(mm.struct)
    assert mm.struct.context.number == number + 1
    assert cpu.cpu.asid == before + 8
    assert cpu.cpu.counters()["tlb"]["L1D"]["flushed"] == flushed
    assert cpu.load(addr, 1) == b"x"
    assert number in contexts(pair).waiting
    mm.exit()
    assert number + 1 in contexts(pair).waiting, "an exit leaves its number waiting, too"


def test_at_a_fork_every_cpu_that_runs_the_parent_takes_the_new_identifiers(pair: Machine) -> None:
    first, second = pair.cpus
    mm = run(pair)
    addr = mm.mmap(PAGE)
    second.switch_mm(mm)
    second.store(addr, b"both")
    with first:
        child = mm.fork()
    assert first.cpu.asid == second.cpu.asid == mm.struct.context.number << 3
    second.store(addr, b"mine")
    first.switch_mm(child)
    assert first.load(addr, 4) == b"both"


def test_with_a_new_number_a_program_has_run_nowhere_else(pair: Machine) -> None:
    mm = run(pair)
    pair.cpus[1].switch_mm(mm)
    pair.cpus[1].switch_mm(pair.new_mm())
    assert mm.struct.cpu_mask == 0b11, "its translations are still there"
    with pair.cpus[0]:
        mm.fork()
    assert mm.struct.cpu_mask == 0b01


def test_a_program_that_never_mapped_anything_gives_its_number_back(pair: Machine) -> None:
    mm = run(pair)
    number = mm.struct.context.number
    mm.exit()
    assert contexts(pair).waiting == {number}


def test_region_registers_hold_the_context_and_the_huge_page_size() -> None:
    machine = Machine.from_file("ia64")
    mm = run(machine)
    mm.struct.context.number = 5
    machine.cpus[0].cpu.mmu[:5] = 0
    machine.kernel.active_mm[0] = machine.kernel.init_mm
    machine.cpus[0].switch_mm(mm)
    assert machine.cpus[0].cpu.mmu[:5].tolist() == [0x2839, 0x2939, 0x2A39, 0x2B39, 0x2C71]


def test_when_the_numbers_run_out_those_of_the_dead_come_back_after_every_cpu_forgot(pair: Machine) -> None:
    first, second = pair.cpus
    old, live = run(pair), pair.new_mm()
    addr = old.mmap(PAGE, at=REGION[1], fixed=True)
    first.store(addr, b"old")
    second.switch_mm(live)
    live.mmap(PAGE, at=REGION[1], fixed=True)
    second.store(addr, b"live")
    state, dead, kept = contexts(pair), old.struct.context.number, live.struct.context.number
    old.exit()
    state.following = state.limit
    state.taken |= set(range(300, state.limit)) - {400}
    state.waiting |= {401}
    third = pair.new_mm()
    first.switch_mm(third)
    assert third.struct.context.number == 400
    assert state.must_flush == {1}
    assert dead not in state.taken
    assert kept in state.taken
    third.mmap(PAGE, at=REGION[1], fixed=True)
    assert first.load(addr, 3) == b"\0\0\0"
    assert second.load(addr, 4) == b"live", "who runs goes on"
    fourth = pair.new_mm()
    second.switch_mm(fourth)
    assert fourth.struct.context.number == 401
    assert state.must_flush == set()
    assert second.cpu.invalidate(asid=kept << 3 | 1) == 0, "it forgot before it switched"


def test_a_machine_may_have_few_numbers_and_many_programs_one_after_another() -> None:
    machine = Machine.from_file("ia64", sets=["ia64.context_bits=3"])
    cpu, parent = machine.cpus[0], run(machine)
    addr = parent.mmap(PAGE, at=REGION[1], fixed=True)
    cpu.store(addr, b"parent")
    for n in range(20):
        child = parent.fork()
        cpu.switch_mm(child)
        cpu.store(addr, b"child%d" % n)
        cpu.switch_mm(parent)
        assert cpu.load(addr, 6) == b"parent"
        child.exit()
        assert 0 < parent.struct.context.number < contexts(machine).limit == 8


def test_an_exited_programs_pages_are_not_reached_by_the_next(machine: Machine) -> None:
    cpu = machine.cpus[0]
    for n in range(5):
        mm = run(machine)
        addr = mm.mmap(8 * PAGE, at=REGION[1], fixed=True)
        assert cpu.load(addr, 8) == bytes(8)
        for page in range(8):
            cpu.store(addr + page * PAGE, bytes([n + 1]) * 8)
        mm.exit()


# ------------------------------------------------------------------ huge pages
def test_a_huge_page_lives_in_region_4_at_a_scaled_place_of_the_tables(machine: Machine) -> None:
    cpu, mm = machine.cpus[0], run(machine)
    addr = mm.mmap(2 * HUGE, huge=HUGE)
    assert addr >> 61 == 4
    cpu.store(addr + HUGE + 12345, b"huge")
    assert cpu.load(addr + HUGE + 12345, 4) == b"huge"
    assert cpu.cpu.translate(addr + HUGE).page_size == HUGE
    assert mm.struct.nr_tables == [0, 1, 1]
    child = mm.fork()
    cpu.store(addr + HUGE + 12345, b"mine")
    cpu.switch_mm(child)
    assert cpu.load(addr + HUGE + 12345, 4) == b"huge"
    child.exit()
    cpu.switch_mm(mm)
    mm.munmap(addr, 2 * HUGE)
    assert mm.struct.nr_tables == [0, 0, 0]
    assert stale(cpu.cpu, mm, REGION[4], REGION[5]) == 0, "the table's place in the VHPT, too"
    with pytest.raises(SegmentationFault):
        cpu.load(addr, 1)
    mm.exit()


def test_region_4_is_refused_to_small_pages_and_other_regions_to_huge_ones(machine: Machine) -> None:
    mm = run(machine)
    with pytest.raises(SyscallError, match="huge pages only"):
        mm.mmap(PAGE, at=REGION[4], fixed=True)
    with pytest.raises(SyscallError, match="not for huge pages"):
        mm.mmap(HUGE, at=REGION[1], fixed=True, huge=HUGE)
    mm.exit()


def test_a_huge_table_stays_while_a_neighbour_in_it_lives(machine: Machine) -> None:
    cpu, mm = machine.cpus[0], run(machine)
    far = mm.mmap(HUGE, huge=HUGE, at=REGION[4] + (1 << 40), fixed=True)
    cpu.store(far, b"far")
    mm.munmap(far, HUGE)
    assert stale(cpu.cpu, mm, REGION[4], REGION[5]) == 0, (
        "its table's place in the VHPT is that of the huge page"
    )
    first = mm.mmap(HUGE, huge=HUGE, at=REGION[4], fixed=True)
    other = mm.mmap(HUGE, huge=HUGE, at=REGION[4] + 4 * HUGE, fixed=True)
    cpu.store(first, b"1")
    cpu.store(other, b"2")
    mm.munmap(first, HUGE)
    assert mm.struct.nr_tables == [0, 1, 1]
    assert cpu.load(other, 1) == b"2"
    mm.exit()


@pytest.mark.parametrize("size", ["4K", "8K", "64K"])
def test_other_base_pages_only_change_the_numbers(size: str) -> None:
    sizes = f"[{size[:-1]} KiB, 16 MiB, 256 MiB]"
    machine = Machine.from_file(
        "ia64",
        sets=[f"ia64.page_size={size}", f"tlbs.ITC.page_sizes={sizes}", f"tlbs.DTC.page_sizes={sizes}"],
    )
    page = machine.page_size
    cpu, mm = machine.cpus[0], run(machine)
    addr = mm.mmap(8 * page)
    for n in range(8):
        cpu.store(addr + n * page, bytes([n]))
    child = mm.fork()
    cpu.store(addr, b"m")
    cpu.switch_mm(child)
    assert [cpu.load(addr + n * page, 1)[0] for n in range(8)] == list(range(8))
    child.exit()
    mm.exit()
    assert machine.kernel.mms.live == 1
