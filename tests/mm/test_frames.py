"""The page allocator: who gets which frame, when it is clean, and when it is free again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.hardware.ram import NONZERO
from polymmu.hooks import ArchKernel
from polymmu.mm import frames
from polymmu.structs import PG_LRU
from tests.mm.toy import PAGE, boot

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)


def pfns_of(*pfns: int) -> Any:
    return np.array(pfns, dtype=np.int64)


def lru_of(kernel: ArchKernel) -> list[int]:
    """The LRU from its head, checked backwards too."""
    head, tail, length = kernel.free.lru.tolist()
    forwards = []
    at = head
    while at:
        forwards.append(at)
        at = kernel.frames.lru_next[at]
    backwards = []
    at = tail
    while at:
        backwards.append(at)
        at = kernel.frames.lru_prev[at]
    assert forwards == backwards[::-1]
    assert len(forwards) == length
    return forwards


def test_the_frame_freed_last_is_handed_out_first(kernel: ArchKernel) -> None:
    first, second = frames.alloc_page(kernel, "anon"), frames.alloc_page(kernel, "anon")
    frames.free_page(kernel, first)
    frames.free_page(kernel, second)
    assert frames.alloc_page(kernel, "anon") == second
    assert frames.alloc_page(kernel, "anon") == first


def test_a_freed_frame_moves_on_to_its_next_generation(kernel: ArchKernel) -> None:
    pfn = frames.alloc_page(kernel, "anon")
    before = kernel.frames.generation[pfn]
    frames.get_page(kernel, pfn)
    frames.put_page(kernel, pfn)
    assert kernel.frames.generation[pfn] == before
    frames.put_page(kernel, pfn)
    assert kernel.frames.generation[pfn] == before + 1


def test_bytes_of_the_last_owner_are_cleared_unless_the_caller_overwrites_them(kernel: ArchKernel) -> None:
    pfn = frames.alloc_page(kernel, "anon")
    kernel.ram.write(pfn * PAGE + 8, b"secret")
    kernel.frames.flags[pfn] |= NONZERO
    frames.free_page(kernel, pfn)
    assert frames.alloc_page(kernel, "anon", zero=False) == pfn
    assert kernel.frames.flags[pfn] & NONZERO
    frames.free_page(kernel, pfn)
    assert frames.alloc_page(kernel, "anon") == pfn
    assert kernel.ram.read(pfn * PAGE, PAGE) == bytes(PAGE)
    assert not kernel.frames.flags[pfn] & NONZERO


def test_all_memory_can_be_had_once_and_given_back() -> None:
    kernel = boot(memory=1 << 20)
    total = kernel.free.free
    got = [frames.alloc_page(kernel, "anon") for _ in range(total)]
    assert len(set(got)) == total == (1 << 20) // PAGE - 3  # frame 0, the zero page, the kernel's own root
    assert frames.alloc_page(kernel, "anon") == -1
    assert len(frames.alloc_run(kernel, 5, "anon")) == 0
    frames.free_run(kernel, pfns_of(*got))
    assert kernel.free.free == total


def test_a_cpu_without_free_frames_takes_over_another_ones() -> None:
    kernel = boot(memory=1 << 20, cpus=2)
    got = frames.alloc_run(kernel, kernel.free.free, "anon")
    frames.free_run(kernel, got[:3])
    kernel.sched.cpu = kernel.cpus[1]
    assert sorted(frames.alloc_run(kernel, 5, "anon")) == sorted(got[:3])


def test_freeing_a_mapped_frame_is_caught(kernel: ArchKernel) -> None:
    pfn = frames.alloc_page(kernel, "anon")
    kernel.frames.mapcount[pfn] = 1
    with pytest.raises(AssertionError, match="mapped 1 times"):
        frames.free_page(kernel, pfn)


def test_freeing_a_frame_twice_is_caught(kernel: ArchKernel) -> None:
    pfn = frames.alloc_page(kernel, "anon")
    frames.free_page(kernel, pfn)
    with pytest.raises(AssertionError, match="0 references"):
        frames.free_page(kernel, pfn)


@SETTINGS
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=12), st.integers(0, 60))
def test_a_run_gives_the_frames_that_single_allocations_would(
    steps: list[tuple[bool, int]], dirty: int
) -> None:
    one, many = boot(memory=1 << 20), boot(memory=1 << 20)
    held: list[int] = []
    for take, n in steps:
        if take:
            singles = [pfn for pfn in (frames.alloc_page(one, "anon") for _ in range(n)) if pfn >= 0]
            assert frames.alloc_run(many, n, "anon").tolist() == singles
            held += singles
            for kernel in (one, many):
                kernel.frames.flags[held[dirty % len(held)]] |= NONZERO
        else:
            gone, held = held[:n], held[n:]
            for pfn in gone:
                frames.put_page(one, pfn)
            frames.put_run(many, pfns_of(*gone))
    assert (one.frames.table == many.frames.table).all()
    assert one.free.free == many.free.free


def test_an_injected_failure_ends_a_run_where_it_hits(kernel: ArchKernel) -> None:
    asked: list[str] = []

    def third(what: str) -> bool:
        asked.append(what)
        return len(asked) == 3

    kernel.free.fail_next = third
    assert len(frames.alloc_run(kernel, 10, "anon")) == 2
    assert asked == ["anon"] * 3


# ------------------------------------------------------------------ blocks
def test_a_block_is_aligned_to_its_size_and_comes_back_as_a_block(kernel: ArchKernel) -> None:
    frames.alloc_page(kernel, "anon")
    free = kernel.free.free
    first = frames.alloc_pages(kernel, 2, "table")
    assert first % 4 == 0
    assert [kernel.frames.refcount[first + n] for n in range(4)] == [1] * 4
    assert kernel.free.free == free - 4
    frames.free_pages(kernel, first, 2)
    assert kernel.free.free == free
    assert frames.alloc_pages(kernel, 2, "table") == first


def test_a_larger_block_is_cut_when_nothing_smaller_is_left() -> None:
    kernel = boot(memory=1 << 20)
    block = frames.alloc_pages(kernel, 3, "table")
    frames.alloc_run(kernel, kernel.free.free, "anon")
    frames.free_pages(kernel, block, 3)
    assert frames.alloc_pages(kernel, 1, "table") == block
    assert frames.alloc_pages(kernel, 2, "table") == block + 4
    assert frames.alloc_page(kernel, "anon") in (block + 2, block + 3)


def test_frames_freed_one_by_one_make_a_block_again_when_no_other_is_left() -> None:
    kernel = boot(memory=1 << 20)
    got = frames.alloc_run(kernel, kernel.free.free, "anon")
    aligned = got[(got >= 16) & (got < 20)]
    assert frames.alloc_pages(kernel, 2, "table") == -1
    frames.free_run(kernel, aligned[::-1].copy())
    assert frames.alloc_pages(kernel, 2, "table") == 16
    assert kernel.free.free == 0
    assert frames.alloc_page(kernel, "anon") == -1


# ------------------------------------------------------------------ LRU
def test_a_pagevec_holds_its_pages_until_it_is_drained(kernel: ArchKernel) -> None:
    pfn = frames.alloc_page(kernel, "anon")
    frames.lru_cache_add(kernel, pfn)
    free = kernel.free.free
    frames.put_page(kernel, pfn)
    assert kernel.free.free == free
    frames.lru_add_drain(kernel)
    assert kernel.free.free == free + 1
    assert lru_of(kernel) == []


def test_a_full_pagevec_drains_itself(kernel: ArchKernel) -> None:
    size = kernel.description.kernel.pagevec
    pfns = [frames.alloc_page(kernel, "anon") for _ in range(size)]
    for pfn in pfns[:-1]:
        frames.lru_cache_add(kernel, pfn)
    assert lru_of(kernel) == []
    frames.lru_cache_add(kernel, pfns[-1])
    assert lru_of(kernel) == pfns[::-1]
    assert [kernel.frames.refcount[pfn] for pfn in pfns] == [1] * size


def test_a_freed_page_leaves_the_lru_wherever_it_is(kernel: ArchKernel) -> None:
    pfns = [frames.alloc_page(kernel, "anon") for _ in range(5)]
    for pfn in pfns:
        frames.lru_cache_add(kernel, pfn)
    frames.lru_add_drain(kernel)
    for gone in (pfns[2], pfns[0], pfns[4]):
        frames.put_page(kernel, gone)
        assert not kernel.frames.flags[gone] & PG_LRU
    assert lru_of(kernel) == [pfns[3], pfns[1]]


@SETTINGS
@given(st.lists(st.integers(1, 50), max_size=6), st.integers(1, 16))
def test_a_run_reaches_the_lru_as_its_pages_one_by_one_would(sizes: list[int], pagevec: int) -> None:
    one, many = boot(pagevec=pagevec), boot(pagevec=pagevec)
    for n in sizes:
        for pfn in frames.alloc_run(one, n, "anon").tolist():
            frames.lru_cache_add(one, pfn)
        frames.lru_cache_add_run(many, frames.alloc_run(many, n, "anon"))
    assert lru_of(one) == lru_of(many)
    assert one.free.pagevecs == many.free.pagevecs
    assert (one.frames.table == many.frames.table).all()
