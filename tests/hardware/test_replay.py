"""Replaying accesses: faults, what they cost, and pages that are mapped ahead of their first touch."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.description.model import TlbSpec
from polymmu.errors import SegmentationFault, UserMistake
from polymmu.hardware.cpu import Cpu, InternalError, Upcoming
from polymmu.hardware.entry import Access, Privilege, WalkFault
from polymmu.hardware.ram import NONZERO
from polymmu.hardware.walk import BadRoot, RadixTranslation
from tests.hardware.bench import ACCESSED, CACHES, DIRTY, LARGE, LEAF, USER, WRITE, Bench, MapsWhatIsTouched
from tests.hardware.x86_formats import GIB, MIB, four_level, pae, two_level

HERE = 0x7F00_0000_0000
PAGE = 4096


def test_a_store_and_a_load_move_real_bytes_across_a_page_boundary() -> None:
    bench = Bench(four_level())
    first, second = bench.map(HERE), bench.map(HERE + PAGE)
    bench.cpu.store(HERE + PAGE - 3, b"abcdef")
    assert bench.cpu.load(HERE + PAGE - 3, 6) == b"abcdef"
    assert bench.cpu.fetch(HERE + PAGE - 3, 6) == b"abcdef"
    assert bench.ram.read(first + PAGE - 3, 3) == b"abc"
    assert bench.ram.read(second, 3) == b"def"
    assert bench.cpu.frames.flags[first >> 12] & bench.cpu.frames.flags[second >> 12] & NONZERO
    counters = bench.cpu.counters()
    assert counters["accesses"] == {"fetch": 1, "load": 1, "store": 1}
    assert counters["tlb"]["L1D"]["hits"] + counters["tlb"]["L1D"]["misses"] == 4


def test_nothing_is_stored_when_the_second_page_is_refused() -> None:
    class Refuses:
        def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
            raise SegmentationFault(va, "store", "no mapping here")

    bench = Bench(four_level())
    frame = bench.map(HERE)
    bench.cpu.vectors = Refuses()
    with pytest.raises(SegmentationFault):
        bench.cpu.store(HERE + PAGE - 2, b"xyz")
    assert bench.ram.read(frame + PAGE - 2, 2) == b"\0\0"


@pytest.mark.parametrize("op", range(4))
def test_accessed_is_set_at_every_level_and_dirty_on_the_leaf_of_a_store(op: int) -> None:
    bench = Bench(four_level())
    bench.map(HERE)
    for level in range(3):
        value = bench.entry(HERE, level)[2]
        bench.set(HERE, value & ~(ACCESSED | DIRTY), level)
    bench.run([(op, HERE, 4)])
    levels = [bench.entry(HERE, level)[2] for level in range(4)]
    assert [bool(entry & ACCESSED) for entry in levels] == [True] * 4
    assert [bool(entry & DIRTY) for entry in levels] == [False, False, False, op >= 2]
    # The load of a modify sets the four accessed bits, its store then needs a walk for the dirty bit.
    assert bench.cpu.counters()["walk"]["ad_updates"] == (5 if op == 3 else 4)
    assert bench.cpu.counters()["walk"]["count"] == (2 if op == 3 else 1)


def test_a_store_through_a_clean_entry_is_a_hit_and_a_walk_once() -> None:
    bench = Bench(four_level())
    bench.map(HERE)
    bench.run([(1, HERE, 1), (2, HERE, 1), (2, HERE, 1)])
    counters = bench.cpu.counters()
    assert (counters["tlb"]["L1D"]["hits"], counters["tlb"]["L1D"]["misses"]) == (2, 1)
    assert counters["walk"]["count"] == 2


CASES: list[tuple[str, Access, Privilege, int | None, int, WalkFault]] = [
    ("absent", Access.LOAD, Privilege.USER, None, 4, WalkFault.NOT_PRESENT),
    ("absent", Access.STORE, Privilege.SUPERVISOR, None, 2, WalkFault.NOT_PRESENT),
    ("absent", Access.FETCH, Privilege.USER, None, 20, WalkFault.NOT_PRESENT),
    ("read only", Access.STORE, Privilege.USER, LEAF & ~WRITE, 7, WalkFault.NO_PERMISSION),
    ("supervisor's", Access.LOAD, Privilege.USER, LEAF & ~USER, 5, WalkFault.NO_PERMISSION),
    ("no execute", Access.FETCH, Privilege.USER, LEAF | 1 << 63, 21, WalkFault.NO_PERMISSION),
    ("reserved", Access.LOAD, Privilege.USER, LEAF | 1 << 50, 13, WalkFault.RESERVED_BIT),
]


@pytest.mark.parametrize(("name", "access", "privilege", "flags", "code", "kind"), CASES)
@pytest.mark.parametrize("known", [False, True])
def test_a_refused_access_faults_with_the_manuals_error_code(
    name: str,
    access: Access,
    privilege: Privilege,
    flags: int | None,
    code: int,
    kind: WalkFault,
    known: bool,
) -> None:
    seen: list[tuple[int, int, WalkFault, Access]] = []

    class Notes:
        def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
            seen.append((code, va, cpu.fault_kind, cpu.fault_access))
            raise SegmentationFault(va, access.name.lower(), name)

    bench = Bench(four_level(46))
    if flags is not None:
        bench.map(HERE, flags)
    if known and kind == WalkFault.NO_PERMISSION:
        # A supervisor's load brings the entry into the TLBs; the refusal then comes from there.
        bench.cpu.privilege = Privilege.SUPERVISOR
        bench.run([(1, HERE, 1)])
    bench.cpu.privilege = privilege
    bench.cpu.vectors = Notes()
    with pytest.raises(SegmentationFault):
        bench.run([(int(access), HERE + 0x123, 1)])
    assert seen == [(code, HERE + 0x123, kind, access)]
    assert bench.cpu.translate(HERE + 0x123, access, privilege).code == code


def test_a_fault_drops_the_entry_that_refused_so_that_more_rights_need_no_flush() -> None:
    class Allows:
        def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
            _, _, value = bench.entry(va)
            bench.set(va, value | WRITE)

    bench = Bench(four_level())
    bench.map(HERE, LEAF & ~WRITE)
    bench.cpu.vectors = Allows()
    bench.run([(1, HERE, 1), (2, HERE, 1)])
    counts = bench.cpu.counters()["tlb"]
    assert (counts["L1D"]["flushed"], counts["L2"]["flushed"], counts["L1D"]["misses"]) == (1, 1, 2)


def test_a_handler_is_asked_twice_where_an_older_translation_hid_what_it_entered() -> None:
    class MapsAtSecondSight(MapsWhatIsTouched):
        asked = 0

        def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
            self.asked += 1
            if self.asked == 2:
                super().fault(cpu, code, va, upcoming)

    bench = Bench(four_level())
    bench.cpu.vectors = handler = MapsAtSecondSight(bench)
    assert bench.cpu.load(HERE, 1) == b"\0"
    assert handler.asked == 2


def test_the_same_fault_three_times_without_progress_is_an_internal_error() -> None:
    class DoesNothing:
        def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
            pass

    bench = Bench(four_level())
    bench.cpu.vectors = DoesNothing()
    with pytest.raises(InternalError, match="load at 0x7f0000000000 faults again"):
        bench.cpu.load(HERE, 1)


def test_non_canonical_addresses_are_refused_without_a_walk() -> None:
    bench = Bench(four_level())
    bench.cpu.vectors = MapsWhatIsTouched(bench)
    for va in (1 << 47, (1 << 64) - (1 << 47) - 1):
        assert bench.cpu.translate(va).fault == WalkFault.NON_CANONICAL
        with pytest.raises(InternalError):
            bench.cpu.load(va, 1)
    assert bench.cpu.counters()["walk"]["count"] == 0
    bench.cpu.load((1 << 64) - (1 << 47), 1)


def test_paes_top_entries_are_read_when_the_root_is_loaded_and_not_again() -> None:
    bench = Bench(pae())
    software = MapsWhatIsTouched(bench)
    bench.cpu.vectors = software
    with pytest.raises(InternalError):
        bench.cpu.load(0x4000_0000, 1)  # the handler links a table, the register still says absent
    bench.cpu.load_root(bench.root)
    bench.cpu.load(0x4000_0000, 1)


def test_a_reserved_bit_in_a_top_entry_of_pae_refuses_the_root() -> None:
    bench = Bench(pae())
    bench.ram.write_entry(bench.root + 8, 8, "little", 0x35A1E067)
    with pytest.raises(BadRoot, match="entry 1 is 0x35a1e067"):
        bench.cpu.load_root(bench.root)


def test_pse_36_pages_lie_above_four_gib() -> None:
    bench = Bench(two_level())
    bench.set(0xC000_0000, 0x0080_20E7, 0)
    assert bench.cpu.translate(0xC012_3456).pa == 0x1_0092_3456
    bench.cpu.store(0xC012_3456, b"!")
    assert bench.ram.read(0x1_0092_3456, 1) == b"!"


def test_walk_caches_shorten_walks_until_they_are_invalidated() -> None:
    bench = Bench(four_level(), {}, CACHES)
    for n in range(3):
        bench.map(HERE + n * PAGE)

    def references(n: int) -> int:
        bench.cpu.reset_counters()
        bench.run([(1, HERE + n * PAGE, 1)])
        return int(bench.cpu.counters()["walk"]["references"])

    assert [references(0), references(1), references(2)] == [4, 1, 1]
    assert bench.cpu.invalidate(asid=0, start=HERE, walk_caches="none") == 0
    assert references(0) == 1
    assert bench.cpu.invalidate(asid=1) == 0
    assert bench.cpu.invalidate(asid=0, start=HERE + GIB, walk_caches="path") == 1  # the pgd entry only
    assert bench.cpu.invalidate(asid=0, start=HERE, walk_caches="path") == 2
    assert references(0) == 4


def test_stale_entries_are_those_that_say_more_than_the_tables() -> None:
    bench = Bench(four_level(), caches=CACHES)
    for n in range(8):
        bench.map(HERE + n * PAGE)
        bench.run([(2, HERE + n * PAGE, 1)])

    def stale(start: int = HERE, end: int = HERE + 8 * PAGE) -> int:
        return bench.cpu.count_stale(0, bench.root, start, end)

    assert stale() == 0
    bench.set(HERE, 0)  # each page is in L1D and L2
    assert stale() == 2
    _, _, value = bench.entry(HERE + PAGE)
    bench.set(HERE + PAGE, value & ~WRITE)
    assert stale() == 4
    assert stale(HERE + PAGE) == 2
    bench.map(HERE + 2 * PAGE)  # another frame
    assert stale() == 6
    bench.cpu.invalidate(asid=0, start=HERE, end=HERE + 3 * PAGE, walk_caches="none")
    assert stale() == 0
    bench.set(HERE, 0, 2)  # the table of these pages is gone: five pages twice, and the PDE
    assert stale() == 11


def test_a_run_of_pages_counts_as_its_accesses_do() -> None:
    vpn = np.array([5, 6, 5, 7, 5, 6], dtype=np.uint64) + np.uint64(HERE >> 12)
    data = np.array([1, 0, 1, 1, 0, 1], dtype=np.uint8)
    write = np.array([0, 0, 1, 0, 0, 1], dtype=np.uint8)
    count = np.array([3, 1, 2, 4, 9, 1], dtype=np.uint32)
    runs, singles = Bench(four_level()), Bench(four_level())
    for bench in (runs, singles):
        bench.cpu.vectors = MapsWhatIsTouched(bench)
    assert runs.cpu.replay_runs(vpn, data, write, count, 0, 6) == 6
    for n in range(6):
        op = 0 if not data[n] else 2 if write[n] else 1
        singles.run([(op, int(vpn[n]) << 12, 1)] * int(count[n]))
    assert runs.cpu.counters() == singles.cpu.counters()


def batches(seed: int, length: int) -> tuple[Any, Any, Any]:
    """Accesses that often touch a page for the first time, often in a row, of all kinds, some crossing."""
    rng = np.random.default_rng(seed)
    where = rng.integers(0, 6, length) * (1 << 21) * 200
    step = np.cumsum(rng.integers(0, 3, length) * (rng.random(length) < 0.7)) * rng.choice([PAGE, 8, 2 * MIB])
    near = rng.integers(0, 40, length) * PAGE
    va = (
        HERE
        + np.where(rng.random(length) < 0.8, step, where + near)
        + rng.integers(0, PAGE, length) * (rng.random(length) < 0.3)
    )
    weights = rng.dirichlet([1, 1, 3, 1])
    op = rng.choice(4, length, p=weights)
    return op.astype(np.uint8), va.astype(np.uint64), rng.integers(1, 17, length).astype(np.uint8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from((1, 3, 64, 512)), st.booleans(), st.booleans())
def test_mapping_ahead_changes_no_count(seed: int, limit: int, cached: bool, with_pae: bool) -> None:
    op, va, size = batches(seed, 600)
    if with_pae:
        va = va & np.uint64(0xBFFF_FFFF)
    results = []
    for ahead in (0, limit):
        bench = Bench(pae() if with_pae else four_level(), caches={"PDE": CACHES["PDE"]} if cached else {})
        software = MapsWhatIsTouched(bench, ahead)
        if with_pae:
            for gib in range(4):
                bench.entry(gib * GIB, 1)
            bench.cpu.load_root(bench.root)
        bench.cpu.vectors = software
        bench.cpu.replay(op, va, size, 0, len(op))
        faults = len(software.faults) + software.mapped_ahead
        results.append((bench.cpu.counters(), faults, bench.next_frame))
    assert results[0] == results[1]


def test_pages_are_handed_over_in_order_and_only_as_long_as_nothing_else_can_happen() -> None:
    given_pages: list[list[int]] = []

    class Software(MapsWhatIsTouched):
        def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
            given_pages.append([int(page - HERE) // PAGE for page in upcoming(HERE, HERE + 100 * PAGE, 8)])
            self.bench.map(va)
            for n in given_pages[-1]:
                self.bench.map(HERE + n * PAGE)

    bench = Bench(four_level())
    bench.cpu.vectors = Software(bench)
    touches = [(2, 0), (2, 3), (1, 3), (2, 1), (2, 0), (1, 9), (2, 10)]
    bench.run([(op, HERE + n * PAGE + 5, 4) for op, n in touches])
    assert given_pages == [[3, 1], [], []]  # a load's first touch of page 9 ends the stores' list


def test_a_trace_outside_its_columns_is_refused() -> None:
    bench = Bench(four_level())
    column = np.zeros(3, dtype=np.uint8)
    with pytest.raises(UserMistake, match=r"accesses \[0, 4\) are not inside the batch of 3"):
        bench.cpu.replay(column, column.astype(np.uint64), column, 0, 4)


def test_the_table_of_touched_pages_grows_and_forgets_nothing() -> None:
    bench = Bench(four_level())
    bench.cpu.vectors = MapsWhatIsTouched(bench)
    pages = [(1, HERE + n * 4 * MIB, 1) for n in range(3000)]
    bench.run(pages)
    bench.run(pages)
    counts = bench.cpu.counters()["tlb"]["L1D"]
    assert counts["compulsory"] == 3000
    assert counts["misses"] == 6000


def test_two_machines_with_one_seed_count_alike_and_with_another_seed_may_not() -> None:
    random_one = {"L1": TlbSpec(level=1, page_sizes=(PAGE,), entries=8, ways=8, replacement="random")}
    op, va, size = batches(3, 2000)

    def counts(seed: int) -> dict[str, Any]:
        bench = Bench(four_level(), random_one, seed=seed)
        bench.cpu.vectors = MapsWhatIsTouched(bench)
        bench.cpu.replay(op, va, size, 0, len(op))
        return bench.cpu.counters()

    assert counts(1) == counts(1)
    assert counts(1) != counts(2)


def test_a_two_mib_page_is_dirty_and_accessed_in_its_own_leaf() -> None:
    bench = Bench(four_level())
    bench.map(HERE, LEAF | LARGE, 2)
    bench.cpu.store(HERE + MIB, b"x")
    assert bench.entry(HERE, 2)[2] & (ACCESSED | DIRTY) == ACCESSED | DIRTY


@pytest.mark.parametrize("levels", [two_level(), four_level()])
def test_tables_of_the_other_byte_order_work_alike(levels: RadixTranslation) -> None:
    bench = Bench(attrs.evolve(levels, byte_order="big"), caches={"PDE": CACHES["PDE"]})
    frame = bench.map(0x1234000, LEAF) if levels.layout.levels == 4 else 0x5000
    bench.set(0x1234000, frame | LEAF)
    bench.set(0x1235000, 0x7000 | LEAF)
    bench.cpu.store(0x1234FFE, b"abcd")
    assert bench.ram.read(frame + 0xFFE, 2) + bench.ram.read(0x7000, 2) == b"abcd"
    assert [bench.entry(va)[2] & 0xFFF for va in (0x1234000, 0x1235000)] == [LEAF | ACCESSED | DIRTY] * 2
    place, nbytes, value = bench.entry(0x1234000)
    assert bench.ram.read(place, nbytes) == value.to_bytes(nbytes, "big")


def test_an_mmu_that_leaves_the_bits_to_software_faults_for_them() -> None:
    class Marks:
        def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
            kinds.append((cpu.fault_kind, cpu.fault_access))
            bench.set(va, bench.entry(va)[2] | ACCESSED | (DIRTY if cpu.fault_access == Access.STORE else 0))

    kinds: list[tuple[WalkFault, Access]] = []
    bench = Bench(attrs.evolve(four_level(), sets_accessed_dirty=False))
    bench.map(HERE)
    bench.cpu.vectors = Marks()
    bench.run([(1, HERE, 1), (2, HERE, 1), (2, HERE, 1)])
    assert kinds == [(WalkFault.NOT_ACCESSED, Access.LOAD), (WalkFault.NOT_ACCESSED, Access.STORE)]
    assert bench.cpu.counters()["walk"]["ad_updates"] == 0
