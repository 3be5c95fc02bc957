"""The shortest way to refill a TLB changes nothing but the time: the rules alone come to the same state."""

from __future__ import annotations

import random

import attrs
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.description.model import TlbSpec, WalkCacheSpec
from polymmu.hardware import state as at
from polymmu.hardware.cpu import Cpu, Upcoming
from polymmu.hardware.entry import Privilege
from tests.hardware.bench import (
    ACCESSED,
    DIRTY,
    GLOBAL,
    K4,
    LARGE,
    LEAF,
    USER,
    WRITE,
    Bench,
    MapsWhatIsTouched,
)
from tests.hardware.x86_formats import GIB, MIB, four_level, pae, two_level

HERE = 0x4000_0000
MEMORY = 1 << 28  # where pages lie: an entry of 4 bytes can say so
UNTOUCHED = 12345
FORMATS = {"4-level": (four_level, 2), "pae": (pae, 1), "2-level": (two_level, 0)}
"""Each with the level whose entries map large pages."""

L1D = TlbSpec(level=1, holds=("load", "store"), page_sizes=(K4,), entries=8, ways=4)
TLBS = {
    "L1I": TlbSpec(level=1, holds=("fetch",), page_sizes=(K4,), entries=4, ways=4),
    "L1D": L1D,
    "L1D-2M": TlbSpec(level=1, holds=("load", "store"), page_sizes=(2 * MIB,), entries=4, ways=4),
    "L2": TlbSpec(level=2, page_sizes=(K4, 2 * MIB), entries=32, ways=4),
}
PDE = {"PDE": WalkCacheSpec(level=1, entries=8, ways=4)}


def words_of(bench: Bench) -> npt.NDArray[np.int64]:
    """Everything the CPU's hardware knows."""
    return bench.cpu.words


class MapsYoungPages(MapsWhatIsTouched):
    """Software that maps pages as if used before, so that a walk to one mapped ahead has nothing to set."""

    def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
        self.faults.append((code, va))
        more = upcoming(self.low, self.high, self.ahead).tolist() if self.ahead else []
        for page in [va, *more]:
            self.bench.map(page, LEAF | ACCESSED | DIRTY)


def run_pages(bench: Bench, batch: list[tuple[int, int, int]]) -> None:
    """The accesses as page runs of one to four touches."""
    op, va, _ = np.array(batch, dtype=np.uint64).T
    count = (va & np.uint64(3)) + np.uint64(1)
    bench.cpu.replay_runs(
        va >> np.uint64(12), (op > 0).astype(np.uint8), (op > 1).astype(np.uint8), count, 0, len(batch)
    )


def run(bench: Bench, seed: int, large: int) -> list[tuple[int, int]]:
    """A program of faults, page crossings, switches, flushes and changed rights; returns its faults.

    Small pages lie below 5 entries of the table above; nine in ten accesses go to a dozen of them at a time.
    """
    rng = random.Random(seed)
    bench.next_frame = MEMORY
    software = MapsYoungPages(bench, ahead=rng.choice((0, 8)))
    bench.cpu.vectors = software
    pages = [HERE + region * 4 * MIB + n * K4 for region in range(5) for n in range(16)]
    large_ones = [HERE + GIB // 2 + n * 4 * MIB for n in range(3)]
    roots = [bench.root, bench.root]
    if large == 2:  # in the other formats a root is more than a new table
        roots[1] = bench.new_table(0)
    for root in dict.fromkeys(roots):
        for va in pages:
            if rng.random() < 0.8:
                kind = rng.choice((LEAF, LEAF, LEAF, LEAF | GLOBAL, USER | 1))
                bench.map(va, kind | rng.choice((0, ACCESSED, ACCESSED | DIRTY)), root=root)
        for va in large_ones:
            bench.map(va, LEAF | LARGE | ACCESSED | DIRTY, large, root)
    bench.cpu.load_root(bench.root)  # what the MMU keeps of it in registers was empty
    for _ in range(12):
        recent = rng.sample(pages, 12)
        if rng.random() < 0.2:
            recent += large_ones
        batch = []
        for _ in range(60):
            va = rng.choice(recent if rng.random() < 0.9 else pages)
            inside, size = rng.choice(((8, 8), (K4 - 7, 7), (K4 - 4, 8)))
            batch.append((rng.choice((0, 1, 1, 2, 3)), va + inside, size))
        if rng.random() < 0.5:
            bench.run(batch)
        else:
            run_pages(bench, batch)
        what = rng.randrange(6)
        if what == 0:
            space = rng.randrange(2)
            bench.root = roots[space]
            bench.cpu.load_root(bench.root, space, space=space)
        elif what == 1:
            bench.cpu.privilege = rng.choice((Privilege.USER, Privilege.SUPERVISOR))
        elif what == 2:
            low = rng.choice(pages)
            bench.cpu.invalidate(asid=bench.cpu.asid, start=low, end=low + 4 * K4, include_global=True)
        elif what == 3:
            bench.cpu.invalidate(asid=None, include_global=True, walk_caches=rng.choice(("all", "none")))
        elif what == 4:
            va = rng.choice(pages)
            entry = bench.entry(va)[2]
            bench.set(va, entry & ~rng.choice((WRITE, ACCESSED, DIRTY)))
            bench.cpu.invalidate(asid=None, start=va, include_global=True)
    return software.faults


@pytest.mark.parametrize("mmu", FORMATS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 32))
def test_it_leaves_the_hardware_as_the_rules_would(mmu: str, seed: int) -> None:
    make, large = FORMATS[mmu]
    by_rules, quick = (Bench(make(), TLBS, PDE) for _ in range(2))
    words_of(by_rules)[at.QUICK : at.QUICK_WALK + 1] = 0
    assert run(by_rules, seed, large) == run(quick, seed, large)
    assert by_rules.cpu.counters() == quick.cpu.counters()
    expected, found = words_of(by_rules), words_of(quick)
    assert found[at.PA] == expected[at.PA]
    assert found[at.CLOCK] == expected[at.CLOCK]
    assert found[at.WALK_CLOCK] == expected[at.WALK_CLOCK]
    assert found[at.FRAGMENTS] == expected[at.FRAGMENTS]
    assert np.array_equal(found[at.FRONT : at.PROBE_ROWS], expected[at.FRONT : at.PROBE_ROWS])
    assert np.array_equal(found[at.DESCRIPTORS :], expected[at.DESCRIPTORS :])
    sizes = [
        found[home + at.D_COUNTS + 1 : home + at.D_COUNTS + 16].sum() for home in quick.cpu._tlbs.values()
    ]
    assert found[at.LARGE_ENTRIES] == sum(sizes)


def walked_by_the_rules(
    tlbs: dict[str, TlbSpec], caches: dict[str, WalkCacheSpec], *, large: bool = False
) -> bool:
    """Whether the second of two neighbouring pages needs the general walk, which notes where it refused."""
    bench = Bench(four_level(), tlbs, caches)
    for va in (HERE, HERE + K4):
        bench.map(va, LEAF | ACCESSED | DIRTY)
    if large:
        bench.map(HERE + GIB // 2, LEAF | LARGE | ACCESSED | DIRTY, 2)
        bench.run([(1, HERE + GIB // 2, 8)])
    bench.run([(1, HERE, 8)])
    words_of(bench)[at.FAULT_PLACE] = UNTOUCHED
    walks = bench.cpu.counters()["walk"]["count"]
    bench.run([(1, HERE + K4, 8)])
    counters = bench.cpu.counters()["walk"]
    assert counters["count"] == walks + 1
    return bool(words_of(bench)[at.FAULT_PLACE] != UNTOUCHED)


def test_an_ordinary_machine_walks_the_short_way() -> None:
    assert not walked_by_the_rules(TLBS, PDE)


def test_a_large_page_in_a_tlb_brings_the_rules_back() -> None:
    assert walked_by_the_rules(TLBS, PDE, large=True)


UNUSUAL = {
    "random replacement": {"L1D": attrs.evolve(L1D, replacement="random")},
    "tree-PLRU": {"L2": attrs.evolve(TLBS["L2"], replacement="plru")},
    "eight ways": {"L2": attrs.evolve(TLBS["L2"], ways=8)},
    "three sets": {"L1D": attrs.evolve(L1D, entries=12)},
    "two TLBs for one size": {"another": L1D},
    "a third level": {"L3": attrs.evolve(TLBS["L2"], level=3)},
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_an_unusual_tlb_goes_by_the_rules(what: str) -> None:
    assert walked_by_the_rules({**TLBS, **UNUSUAL[what]}, PDE)


@pytest.mark.parametrize(
    "caches", [{}, {"PDE": WalkCacheSpec(level=1, entries=8, ways=2)}], ids=["none", "2 ways"]
)
def test_a_walk_that_cannot_start_in_the_usual_cache_goes_by_the_rules(
    caches: dict[str, WalkCacheSpec],
) -> None:
    assert walked_by_the_rules(TLBS, caches)
