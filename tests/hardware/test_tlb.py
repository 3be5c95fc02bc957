"""TLBs against a model of dictionaries and lists, for every policy, geometry, page size and ASID."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.description.model import TlbSpec, WalkCacheSpec
from polymmu.errors import UserMistake
from tests.hardware.bench import DIRTY, GLOBAL, LARGE, LEAF, Bench
from tests.hardware.tlb_model import ModelCpu, Page
from tests.hardware.x86_formats import GIB, KIB, MIB, four_level

SIZES = (4 * KIB, 2 * MIB, GIB)
KINDS = ("fetch", "load", "store")
LEVEL_OF = {4 * KIB: 3, 2 * MIB: 2, GIB: 1}
HERE = 0x7F00_0000_0000


@st.composite
def tlb(draw: st.DrawFn, level: int, holds: tuple[str, ...], sizes: tuple[int, ...]) -> TlbSpec:
    """A TLB of any geometry; its sets need not be a power of two."""
    replacement = draw(st.sampled_from(("lru", "plru", "random")))
    ways = draw(st.sampled_from((1, 2, 4) if replacement == "plru" else (1, 2, 3, 4, 6)))
    sets = draw(st.integers(1, 7))
    return TlbSpec(
        level=level, holds=holds, page_sizes=sizes, entries=sets * ways, ways=ways, replacement=replacement
    )


@st.composite
def machines(draw: st.DrawFn) -> dict[str, TlbSpec]:
    """Split or unified first level, perhaps one TLB per page size, perhaps a second and third level."""
    small: tuple[int, ...] = SIZES[:1]
    tlbs: dict[str, TlbSpec] = {}
    if draw(st.booleans()):
        tlbs["L1I"] = draw(tlb(1, ("fetch",), small))
        tlbs["L1D"] = draw(tlb(1, ("load", "store"), draw(st.sampled_from((small, SIZES[:2])))))
    else:
        tlbs["L1"] = draw(tlb(1, KINDS, draw(st.sampled_from((small, SIZES[:2], SIZES)))))
    if draw(st.booleans()):
        tlbs["L1D-2M"] = draw(tlb(1, ("load", "store"), SIZES[1:2]))
    if draw(st.booleans()):
        tlbs["L2"] = draw(tlb(2, KINDS, draw(st.sampled_from((small, SIZES[:2], SIZES)))))
    if draw(st.booleans()):
        tlbs["L2-1G"] = draw(tlb(2, ("load",), SIZES[2:]))
    if draw(st.booleans()):
        tlbs["L3"] = draw(tlb(3, KINDS, small))
    return tlbs


def mapped(bench: Bench, globals_too: bool) -> tuple[list[int], list[dict[int, Page]]]:
    """Two address spaces of 40 small, 3 middle and 2 large pages; the first small ones may be global.

    Their roots, and their pages by address.
    """
    roots: list[int] = []
    spaces: list[dict[int, Page]] = []
    for space in (0, 1):
        root = bench.root if space == 0 else bench.new_table(0)
        pages: dict[int, Page] = {}
        for size, count, first in ((4 * KIB, 40, HERE), (2 * MIB, 3, HERE + GIB), (GIB, 2, HERE + 4 * GIB)):
            for n in range(count):
                va = first + n * size
                is_global = globals_too and size == 4 * KIB and n < 6
                dirty = n % 3 == 0
                flags = LEAF | (LARGE if size > 4 * KIB else 0) | (DIRTY if dirty else 0)
                if is_global and space == 1:
                    # The same frame, entered in each space's own tables, where it becomes dirty by itself.
                    pages[va] = Page(va, size, None, dirty)
                    value = bench.entry(va, 3, bench.root)[2]
                    bench.set(va, value, 3, root)
                    continue
                bench.map(va, flags | (GLOBAL if is_global else 0), LEVEL_OF[size], root)
                pages[va] = Page(va, size, None if is_global else space, dirty)
        spaces.append(pages)
        roots.append(root)
    return roots, spaces


def random_steps(seed: int) -> list[tuple[Any, ...]]:
    """300 steps: mostly accesses to a few pages at a time, sometimes a switch, now and then a flush."""
    rng = random.Random(seed)
    steps: list[tuple[Any, ...]] = []
    first, width = 0, 45
    for _ in range(300):
        if rng.random() < 0.03:
            width = rng.choice((4, 8, 16, 45))
            first = rng.randrange(46 - width)
        what = rng.choices(("access", "switch", "flush", "flush all"), (90, 4, 4, 1))[0]
        if what == "access":
            page = first + rng.randrange(width)
            steps.append((what, rng.randrange(4), page, rng.randrange(512), rng.random() < 0.2))
        elif what == "switch":
            steps.append((what, rng.randrange(2)))
        elif what == "flush":
            space, with_global = rng.choice((0, 1, None)), rng.random() < 0.5
            steps.append((what, space, rng.randrange(45), rng.randrange(13), with_global))
        else:
            steps.append((what, rng.choice((0, 1, None)), rng.random() < 0.5))
    return steps


@settings(max_examples=150, deadline=None, derandomize=True)
@given(machines(), st.integers(0, 1 << 32), st.booleans(), st.integers(0, 5))
def test_every_count_equals_the_models(
    tlbs: dict[str, TlbSpec], program: int, globals_too: bool, seed: int
) -> None:
    bench = Bench(four_level(), tlbs, seed=seed)
    roots, spaces = mapped(bench, globals_too and all(len(spec.page_sizes) == 1 for spec in tlbs.values()))
    model = ModelCpu(tlbs, seed)
    bench.cpu.load_root(roots[0], 0, space=0)
    order = sorted(spaces[0])
    for what, *step in random_steps(program):
        if what == "switch":
            bench.cpu.load_root(roots[step[0]], step[0], space=step[0])
            model.space = step[0]
        elif what == "flush":
            space, first, count, with_global = step
            low = order[first]
            high = low + count * 4 * KIB
            dropped = bench.cpu.invalidate(asid=space, start=low, end=high, include_global=with_global)
            assert dropped == (model.invalidate(space, low, high, with_global) if count else 0)
        elif what == "flush all":
            space, with_global = step
            dropped = bench.cpu.invalidate(asid=space, include_global=with_global)
            assert dropped == model.invalidate(space, 0, 1 << 64, with_global)
        else:
            op, n, inside, at_end = step
            base = order[n]
            page = spaces[model.space][base]
            va = base + inside * 4 * KIB % page.size + 8
            size = 8
            pages = [(va, page)]
            if at_end and n + 1 < len(order) and order[n + 1] == base + page.size:
                va = base + page.size - 4
                pages = [(va, page), (base + page.size, spaces[model.space][order[n + 1]])]
            elif at_end:
                va = base + 4 * KIB - 4 if page.size > 4 * KIB else va
                pages = [(va, page), (va + 4, page)] if page.size > 4 * KIB else pages
            for kind in ("load", "store") if op == 3 else (KINDS[op],):
                for where, one in pages:
                    model.access(kind, where, one)
            bench.run([(op, va, size)])
    counters = bench.cpu.counters()
    assert counters["tlb"] == {name: one.counts for name, one in model.tlbs.items()}
    assert counters["walk"]["count"] == model.walks


def lru(entries: int, ways: int, sizes: tuple[int, ...] = (4 * KIB,), **more: Any) -> TlbSpec:
    return TlbSpec(level=1, page_sizes=sizes, entries=entries, ways=ways, **more)


def test_sets_need_not_be_a_power_of_two() -> None:
    bench = Bench(four_level(), {"L1": lru(3, 1)})
    for n in (0, 1, 2, 3):
        bench.map(n * 4 * KIB)
    bench.run([(1, n * 4 * KIB, 1) for n in (0, 1, 2, 0, 1, 2, 3, 0)])
    assert bench.cpu.counters()["tlb"]["L1"] == {
        "hits": 3,
        "misses": 5,
        "compulsory": 4,
        "evictions": 2,
        "flushed": 0,
    }


def test_invalidating_any_address_of_a_large_page_drops_all_its_fragments() -> None:
    bench = Bench(four_level(), {"L1": lru(64, 4)})
    bench.map(4 * MIB, LEAF | LARGE, 2)
    bench.run([(1, 4 * MIB + n * 68 * KIB, 1) for n in range(10)])
    assert bench.cpu.counters()["tlb"]["L1"]["misses"] == 10
    assert bench.cpu.invalidate(asid=0, start=4 * MIB + 0x1F_F000) == 10


def test_a_page_takes_the_tlb_of_the_largest_size_not_larger_than_its_own() -> None:
    tlbs = {
        "4K": lru(4, 4),
        "2M": lru(4, 4, (2 * MIB,)),
        "1G": lru(4, 4, (GIB,)),
    }
    bench = Bench(four_level(), tlbs)
    bench.map(GIB, LEAF | LARGE, 2)
    bench.run([(1, GIB, 1), (1, GIB + MIB, 1)])
    misses = {name: counts["misses"] for name, counts in bench.cpu.counters()["tlb"].items()}
    assert misses == {"4K": 0, "2M": 1, "1G": 0}
    assert bench.cpu.counters()["tlb"]["2M"]["hits"] == 1


def test_entries_of_another_asid_do_not_hit_and_global_ones_do() -> None:
    bench = Bench(four_level(), {"L1": lru(16, 4)})
    other = bench.new_table(0)
    bench.map(0x1000)
    frame = bench.map(0x2000, LEAF | GLOBAL)
    bench.map(0x1000, root=other)
    bench.set(0x2000, frame | LEAF | GLOBAL, root=other)
    bench.run([(1, 0x1000, 1), (1, 0x2000, 1)])
    bench.cpu.load_root(other, asid=5)
    bench.run([(1, 0x1000, 1), (1, 0x2000, 1)])
    counts = bench.cpu.counters()["tlb"]["L1"]
    assert (counts["hits"], counts["misses"]) == (1, 3)


def test_a_tlb_of_pages_smaller_than_the_mmus_is_refused_in_one_line() -> None:
    with pytest.raises(
        UserMistake, match=r"^tlbs.L1: pages of 1024 bytes, but this MMU's smallest have 4096$"
    ):
        Bench(four_level(), {"L1": lru(4, 4, (1024,))})


def test_a_walk_cache_of_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserMistake, match=r"walk_caches.PML9: level 4 is none of the levels"):
        Bench(four_level(), {}, {"PML9": WalkCacheSpec(level=4, entries=2, ways=2)})
