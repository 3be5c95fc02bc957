"""Programs on sparc64: both generations of miss handlers, both CPUs, both halves of the address space."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.machine import Machine, Mm
from polymmu.mm.tables import find_entry, read_pte
from polymmu.translation import translate
from tests.arches.sparc64.machines import (
    KINDS,
    LOWER,
    PAGE,
    PMD,
    UPPER,
    events,
    machine,
    stale_buffer_entries,
    stale_translations,
)

kinds = pytest.mark.parametrize("kind", KINDS)
halves = pytest.mark.parametrize("base", [LOWER, UPPER], ids=["lower", "upper"])


def started(kind: str, *sets: str) -> tuple[Machine, Mm]:
    emulated = machine(kind, *sets)
    mm = emulated.new_mm()
    emulated.cpus[0].switch_mm(mm)
    return emulated, mm


def refused(emulated: Machine, access: str, va: int) -> bool:
    cpu = emulated.cpus[0]
    try:
        if access == "store":
            cpu.store(va, b"?")
        else:
            (cpu.load if access == "load" else cpu.fetch)(va, 1)
    except SegmentationFault as refusal:
        return refusal.access == access
    return False


@kinds
@halves
def test_a_program_maps_shares_moves_and_unmaps_and_leaves_nothing(kind: str, base: int) -> None:
    emulated = machine(kind)
    before = emulated.kernel.free.free
    mm, cpu = emulated.new_mm(), emulated.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(64 * PAGE, "rw", at=base, fixed=True)
    assert cpu.load(at, 4) == bytes(4)
    cpu.store(at + 5 * PAGE - 2, b"edge")
    assert cpu.load(at + 5 * PAGE - 2, 4) == b"edge"
    child = mm.fork()
    cpu.store(at + 5 * PAGE, b"parent")
    cpu.switch_mm(child)
    assert cpu.load(at + 5 * PAGE - 2, 4) == b"edge"
    cpu.store(at + 5 * PAGE, b"child")
    cpu.switch_mm(mm)
    assert cpu.load(at + 5 * PAGE, 6) == b"parent"
    mm.mprotect(at, 64 * PAGE, "r")
    assert refused(emulated, "store", at)
    assert cpu.load(at + 5 * PAGE, 6) == b"parent"
    mm.mprotect(at, 64 * PAGE, "rw")
    cpu.store(at, b"again")
    moved = mm.mremap(at, 64 * PAGE, 128 * PAGE, to=base + 4 * PMD)
    assert refused(emulated, "load", at)
    assert cpu.load(moved, 5) == b"again"
    assert not stale_translations(emulated, mm)
    mm.munmap(moved, 128 * PAGE)
    assert refused(emulated, "load", moved)
    assert not stale_translations(emulated, mm) + stale_buffer_entries(emulated, mm)
    assert mm.struct.nr_tables == [0, 0, 0]
    child.exit()
    mm.exit()
    assert emulated.kernel.free.free == before
    assert emulated.flushes.section()["missing"] == 0


@kinds
def test_a_clean_page_traps_at_its_first_store_and_never_again(kind: str) -> None:
    emulated, mm = started(kind)
    cpu = emulated.cpus[0]
    file = emulated.new_file(PAGE)
    at = mm.mmap(PAGE, "rw", shared=True, file=file)
    tte = emulated.description.section.tte

    def pte() -> int:
        return read_pte(mm.struct, find_entry(mm.struct, at))

    cpu.load(at, 1)
    assert not pte() & (tte.modified | tte.writable)
    faults = emulated.counters.sections()["faults"]["protection"]
    cpu.store(at, b"x")
    assert pte() & tte.modified
    assert pte() & tte.writable
    assert emulated.counters.sections()["faults"]["protection"] == faults + 1
    cpu.store(at, b"y")
    assert emulated.counters.sections()["faults"]["protection"] == faults + 1


@kinds
def test_a_page_that_may_not_be_written_never_has_the_hardwares_write_bit(kind: str) -> None:
    emulated, mm = started(kind)
    cpu = emulated.cpus[0]
    at = mm.mmap(4 * PAGE, "rw")
    cpu.store(at, b"x")
    tte = emulated.description.section.tte

    def pte(of: Mm) -> int:
        return read_pte(of.struct, find_entry(of.struct, at))

    assert pte(mm) & tte.writable
    child = mm.fork()
    assert not (pte(mm) | pte(child)) & (tte.writable | tte.write)
    assert pte(mm) & tte.modified
    mm.mprotect(at, PAGE, "r")
    assert not pte(mm) & tte.writable
    child.exit()
    mm.mprotect(at, PAGE, "rw")
    assert not pte(mm) & tte.writable
    cpu.store(at, b"y")
    assert pte(mm) & tte.writable
    mm.mprotect(at, PAGE, "")
    assert not pte(mm) >> 63
    assert pte(mm) & tte.present
    assert refused(emulated, "load", at)
    mm.mprotect(at, PAGE, "rw")
    assert cpu.load(at, 1) == b"y"


@kinds
def test_a_childs_pages_are_old_and_come_back_at_the_first_touch(kind: str) -> None:
    emulated, mm = started(kind)
    cpu = emulated.cpus[0]
    at = mm.mmap(PAGE, "rw")
    cpu.store(at, b"x")
    child = mm.fork()
    ptep = find_entry(child.struct, at)
    assert not read_pte(child.struct, ptep) >> 63
    cpu.switch_mm(child)
    assert cpu.load(at, 1) == b"x"
    assert read_pte(child.struct, ptep) >> 63
    assert child.struct.anon_rss == 1


@kinds
def test_a_page_that_was_made_old_misses_and_comes_back_young(kind: str) -> None:
    emulated, mm = started(kind)
    cpu, ops = emulated.cpus[0], emulated.kernel.ops
    at = mm.mmap(4 * PAGE, "rw")
    for n in (0, 2):
        cpu.store(at + n * PAGE, b"%d" % n)
    vma, ptep = mm.struct.vmas[at], find_entry(mm.struct, at)
    assert ops.test_and_clear_young(vma, at, ptep, 4) == 2
    assert ops.test_and_clear_young(vma, at, ptep, 4) == 0
    ops.flush_tlb_page(vma, at)
    assert not stale_translations(emulated, mm) + stale_buffer_entries(emulated, mm)
    faults = emulated.counters.sections()["faults"]["protection"]
    assert cpu.load(at + 2 * PAGE, 1) == b"2"
    assert emulated.counters.sections()["faults"]["protection"] == faults + 1
    assert ops.test_and_clear_young(vma, at, ptep, 4) == 1


@pytest.mark.parametrize(("kind", "may"), [("tsb", False), ("sun4v", False), ("vpte", True)])
def test_only_the_tsb_handler_looks_at_the_execute_bit(kind: str, may: bool) -> None:
    emulated, mm = started(kind)
    data, code = mm.mmap(PAGE, "rw"), mm.mmap(PAGE, "rx")
    emulated.cpus[0].store(data, b"x")
    assert refused(emulated, "fetch", data) is not may
    assert not refused(emulated, "fetch", code)


@kinds
def test_an_address_in_the_hole_is_no_address(kind: str) -> None:
    emulated, mm = started(kind)
    for va in (0x80000000000, 0x8000000000000000, 0xFFFFF7FFFFFFFFFF):
        with pytest.raises(SegmentationFault, match="not an address of this machine"):
            emulated.cpus[0].load(va, 1)
    with pytest.raises(SyscallError, match="not translated by this MMU"):
        mm.mmap(PAGE, "rw", at=0x80000000000, fixed=True)


def test_the_last_page_below_the_hole_and_the_first_above_share_no_table() -> None:
    emulated, mm = started("vpte")
    cpu = emulated.cpus[0]
    below, above = 0x80000000000 - PAGE, 0xFFFFF80000000000
    for at in (below, above):
        mm.mmap(PAGE, "rw", at=at, fixed=True)
        cpu.store(at, at.to_bytes(8, "big"))
    slots = [emulated.kernel.ram.read_entry(mm.struct.pgd + 4 * n, 4, "big") for n in (511, 1536)]
    assert all(slots)
    assert slots[0] != slots[1]
    mm.munmap(below, above + PAGE - below)
    assert mm.struct.nr_tables == [0, 0, 0]


@kinds
def test_mappings_go_into_the_upper_half_and_the_stack_below_the_hole(kind: str) -> None:
    emulated, mm = started(kind)
    assert mm.mmap(PAGE, "rw") > 0xFFFFF80000000000
    program = emulated.new_mm().exec()
    ((start, end, _),) = program.mappings()
    assert end == emulated.stack_top <= 0x80000000000
    emulated.cpus[0].switch_mm(program)
    emulated.cpus[0].store(start - 2 * PAGE, b"deeper")
    assert program.brk(program.brk() + PAGE) == program.struct.start_brk + PAGE


@kinds
def test_a_file_is_seen_by_both_who_map_it(kind: str) -> None:
    emulated, mm = started(kind)
    file = emulated.new_file(4 * PAGE)
    at = mm.mmap(4 * PAGE, "rw", shared=True, file=file)
    private = mm.mmap(4 * PAGE, "rw", file=file)
    cpu = emulated.cpus[0]
    assert cpu.load(private + PAGE, 4) == bytes(4)
    cpu.store(at + PAGE, b"news")
    assert cpu.load(private + PAGE, 4) == b"news"
    cpu.store(private + PAGE, b"mine")
    assert cpu.load(at + PAGE, 4) == b"news"
    file.truncate(PAGE)
    assert refused(emulated, "load", at + PAGE)
    assert not stale_translations(emulated, mm)


@pytest.mark.parametrize("kind", ["tsb", "vpte"])
def test_a_second_cpu_forgets_what_the_first_unmaps(kind: str) -> None:
    emulated, mm = started(kind, "cpus=2")
    first, second = emulated.cpus
    second.switch_mm(mm)
    at = mm.mmap(300 * PAGE, "rw", populate=True)
    for page in range(0, 300, 10):
        second.load(at + page * PAGE, 1)
    with first:
        mm.munmap(at, 300 * PAGE)
    assert not stale_translations(emulated, mm)
    with pytest.raises(SegmentationFault):
        second.load(at, 1)
    assert emulated.kernel.sched.spent_on["ipi"] > 0


@pytest.mark.parametrize("kind", ["tsb", "vpte"])
def test_a_first_store_demaps_the_read_only_translation_it_had_loaded(kind: str) -> None:
    """The miss loads a W=0 entry and the store traps on it: two misses, and one needed flush, as on the machine."""
    emulated, mm = started(kind)
    file = emulated.new_file(PAGE)
    at = mm.mmap(PAGE, "rw", shared=True, file=file)
    emulated.cpus[0].load(at, 1)
    emulated.kernel.cpus[0].invalidate(asid=None)
    before = emulated.kernel.cpus[0].counters()["tlb"]["D"]["misses"]
    traps = events(emulated)["traps"]
    emulated.cpus[0].store(at, b"x")
    assert events(emulated)["traps"] == traps + 2
    nested = 1 if kind == "vpte" else 0
    assert emulated.kernel.cpus[0].counters()["tlb"]["D"]["misses"] == before + 2 + nested


@kinds
def test_translate_shows_the_tables_and_agrees_with_the_accesses(kind: str) -> None:
    emulated, mm = started(kind)
    cpu = emulated.cpus[0]
    at = mm.mmap(4 * PAGE, "rx")
    cpu.load(at, 1)
    stored = mm.mmap(4 << 20, "rw", huge=4 << 20)
    cpu.store(stored + 5 * PAGE + 7, b"here")
    code, data, absent, hole = translate(
        emulated, [at, stored + 5 * PAGE + 7, at + PAGE, 0x80000000000], access="load", privilege="user"
    )
    assert data.pa is not None
    assert emulated.kernel.ram.read(data.pa, 4) == b"here"
    assert [name for name, _, _ in data.path] == ["pgd", "pmd", "pte"]
    assert (code.page_size, data.page_size) == (PAGE, 4 << 20)
    assert code.flags["execute"]
    assert (code.flags["write"], data.flags["write"], data.flags["dirty"]) == (False, True, True)
    assert (absent.fault, hole.fault) == ("NOT_PRESENT", "NON_CANONICAL")
    (refusal,) = translate(emulated, [at], access="store")
    assert refusal.fault == "NO_PERMISSION"


calls = st.lists(
    st.tuples(
        st.sampled_from(["store", "load", "munmap", "mprotect", "mmap", "fork", "dontneed"]),
        st.integers(0, 31),
        st.integers(1, 12),
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("kind", ["tsb", "vpte"])
@given(calls=calls)
@settings(max_examples=25, deadline=None)
def test_no_call_leaves_a_stale_translation(kind: str, calls: list[tuple[str, int, int]]) -> None:
    emulated, mm = started(kind)
    cpu, before = emulated.cpus[0], emulated.kernel.free.free
    mm.mmap(32 * PMD // 4, "rw", at=UPPER, fixed=True)
    for call, slot, pages in calls:
        at = UPPER + slot * (PMD // 4)
        try:
            if call == "store":
                cpu.store(at, b"x")
            elif call == "load":
                cpu.load(at, 1)
            elif call == "munmap":
                mm.munmap(at, pages * PMD // 4)
            elif call == "mprotect":
                mm.mprotect(at, pages * PMD // 4, "r" if pages % 2 else "rw")
            elif call == "mmap":
                mm.mmap(pages * PAGE, "rw", at=at, fixed=True)
            elif call == "dontneed":
                mm.madvise(at, pages * PAGE, "dontneed")
            else:
                mm.fork().exit()
        except (SegmentationFault, SyscallError):
            pass
        assert not stale_translations(emulated, mm)
        assert not stale_buffer_entries(emulated, mm)
    mm.exit()
    assert emulated.kernel.free.free >= before
