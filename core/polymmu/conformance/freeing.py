"""Unhook, flush, free: in that order, and exactly what nobody needs any more.

``Gather``: nothing is freed, and no table handed out again, while a CPU can still reach it. ``TableFreeing``: the
page tables that munmap leaves are those that a count by brute force says are needed, over holes, regions and the top.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from polymmu.conformance.bench import (
    Bench,
    NotApplicable,
    Window,
    World,
    require,
    tables_for,
    tables_in_memory,
)
from polymmu.conformance.caches import filled
from polymmu.conformance.checks import Checks
from polymmu.events import Observer
from polymmu.machine import Mm
from polymmu.structs import mm_struct, mmu_gather

__all__ = ["Gather", "TableFreeing"]

TOP = 1 << 64


class FreedTooEarly(Observer):
    """Looks, whenever frames are freed in a call, whether a CPU still reaches what the call has changed."""

    def __init__(self) -> None:
        self.changed: dict[int, tuple[mm_struct, int, int]] = {}
        self.found: list[str] = []
        self.depth = 0
        self.followed: dict[int, int] | None = None

    def follow(self, world: World, mm: Mm, va: int, pages: int) -> None:
        """From now on judge only the frames that ``mm`` has in these pages; tables are not looked at."""
        places = range(va, va + pages * world.page, world.page)
        self.followed = {world.frame(mm, place): place for place in places}

    def mm_call_begin(self, mm: mm_struct, name: str) -> None:
        if not self.depth:
            self.changed.clear()
        self.depth += 1

    def mm_call_end(self, mm: mm_struct, name: str) -> None:
        self.depth -= 1

    def entries_changed(self, mm: mm_struct, start: int, end: int, n: int, what: str) -> None:
        self._widen(mm, start, end)

    def table_unhooked(self, mm: mm_struct, start: int, end: int) -> None:
        self._widen(mm, start, end)

    def _widen(self, mm: mm_struct, start: int, end: int) -> None:
        if self.depth:
            _, low, high = self.changed.get(mm.slot, (mm, start, end or TOP))
            self.changed[mm.slot] = mm, min(low, start), max(high, end or TOP)

    def pages_freed(self, n: int) -> None:
        for mm, low, high in self.changed.values():
            if self.followed is not None:
                count = mm.kernel.frames.refcount
                gone = [self.followed.pop(pfn) for pfn in list(self.followed) if not count[pfn]]
                if not gone:
                    continue
                low, high = min(gone), max(gone) + mm.layout.page_size  # noqa: PLW2901
            for cpu in mm.kernel.cpus:
                if mm.kernel.active_mm[cpu.index] is mm:
                    stale = cpu.count_stale(None, cpu.root, low, high)
                    if stale:
                        self.found.append(
                            f"{n} frames are freed while cpu {cpu.index} holds {stale} stale translations of "
                            f"[{low:#x}, {high:#x})"
                        )


class Gather(Checks):
    """Nobody reaches what is freed."""

    def test_no_page_is_freed_before_every_cpu_has_forgotten_it(self, bench: Bench) -> None:
        found: list[str] = []
        for pages in (1, 9, 600):
            for by in (0, 1):
                watch = FreedTooEarly()
                world = bench.world(watch)
                mm = world.program()
                va = filled(world, mm, pages)
                watch.follow(world, mm, va, pages)
                with world.cpus[by]:
                    mm.munmap(va, pages * world.page)
                va = filled(world, mm, pages)
                watch.follow(world, mm, va, pages)
                mm.madvise(va, pages * world.page, "dontneed")
                found += watch.found
        self._judge(bench, "pages_freed_early", found)

    def test_no_table_is_freed_before_every_cpu_has_forgotten_it(self, bench: Bench) -> None:
        watch = FreedTooEarly()
        world = bench.world(watch)
        mm = world.program()
        for window in bench.windows():
            for by in (0, 1):
                va = filled(world, mm, 3, at=window.start)
                with world.cpus[by]:
                    mm.munmap(va, 3 * world.page)
        filled(world, mm, 3)
        mm.exit()
        if not bench.deviations:
            require(not watch.found, watch.found[0] if watch.found else "")

    def test_no_table_is_handed_out_again_before_the_flush(self, bench: Bench) -> None:
        """A table that can be had again at once, while its gather has not flushed, was not queued."""
        found: list[str] = []
        ops = bench.arch.ops

        def reused(tlb: mmu_gather, level: int, table: int, addr: int) -> None:
            if not tlb.need_flush or tlb.fullmm:
                return
            again = ops.table_alloc(tlb.mm, level, addr)
            if again == table:
                found.append(f"the table of level {level} at {table:#x} can be had again before the flush")
            if again >= 0:
                ops.table_free(tlb.mm, level, again)

        def pte_free_tlb(tlb: mmu_gather, table: int, addr: int) -> None:
            ops.pte_free_tlb(tlb, table, addr)
            reused(tlb, tlb.mm.layout.pte_level, table, addr)

        def table_free_tlb(tlb: mmu_gather, level: int, table: int, addr: int) -> None:
            ops.table_free_tlb(tlb, level, table, addr)
            reused(tlb, level, table, addr)

        watched = bench.with_hook("pte_free_tlb", pte_free_tlb).with_hook("table_free_tlb", table_free_tlb)
        world = watched.world()
        mm = world.program()
        for window in bench.windows():
            va = filled(world, mm, 2, at=window.start)
            mm.munmap(va, 2 * world.page)
        self._judge(bench, "tables_freed_early", found)

    @staticmethod
    def _judge(bench: Bench, deviation: str, found: list[str]) -> None:
        if deviation in bench.deviations:
            require(
                bool(found), f"the declared deviation '{deviation}' is not there: nothing was freed early"
            )
        else:
            require(not found, found[0] if found else "")

    def test_a_gather_larger_than_its_batches_loses_nothing(self, bench: Bench) -> None:
        watch = FreedTooEarly()
        world = bench.world(watch, gather_batch=8)
        before = world.held()
        mm = world.program()
        va = filled(world, mm, 100)
        watch.follow(world, mm, va, 100)
        mm.munmap(va, 100 * world.page)
        mm.exit()
        require(world.held() == before, f"held before {before}, after {world.held()}")
        if "pages_freed_early" not in bench.deviations:
            require(not watch.found, watch.found[0] if watch.found else "")

    def test_one_cpu_in_fast_mode_sees_nothing_old(self, bench: Bench) -> None:
        world = bench.world(cpus=1, fast_mode=True)
        before = world.held()
        mm = world.program()
        for _ in range(3):
            va = mm.mmap(30 * world.page)
            for n in range(30):
                require(
                    world.cpus[0].load(va + n * world.page, 1) == b"\0",
                    f"page {n} of fresh memory is not zero",
                )
                world.cpus[0].store(va + n * world.page, b"x")
            mm.munmap(va, 30 * world.page)
            require(not world.allows(0, "load", va), "a page is in reach after munmap")
        mm.exit()
        require(world.held() == before, f"held before {before}, after {world.held()}")

    def test_maps_and_unmaps_of_page_tables_balance(self, bench: Bench) -> None:
        ops = bench.arch.ops
        mapped: list[tuple[Any, int]] = []

        def pte_map(mm: mm_struct, table: int) -> None:
            mapped.append((mm, table))
            ops.pte_map(mm, table)

        def pte_unmap(mm: mm_struct, table: int) -> None:
            require(bool(mapped) and mapped[-1] == (mm, table), f"table {table:#x} is unmapped out of order")
            mapped.pop()
            ops.pte_unmap(mm, table)

        world = bench.with_hook("pte_map", pte_map).with_hook("pte_unmap", pte_unmap).world()
        errands(world)
        require(not mapped, f"{len(mapped)} page tables stay mapped")

    def test_lazy_updates_end_where_their_lock_ends(self, bench: Bench) -> None:
        ops = bench.arch.ops
        lazy: list[mm_struct] = []

        def enter_lazy_mmu(mm: mm_struct) -> None:
            require(not lazy, "lazy mode is entered twice")
            lazy.append(mm)
            ops.enter_lazy_mmu(mm)

        def leave_lazy_mmu(mm: mm_struct) -> None:
            require(lazy == [mm], "lazy mode is left by another mm, or was never entered")
            lazy.clear()
            ops.leave_lazy_mmu(mm)

        world = (
            bench.with_hook("enter_lazy_mmu", enter_lazy_mmu)
            .with_hook("leave_lazy_mmu", leave_lazy_mmu)
            .world()
        )
        errands(world)
        require(not lazy, "lazy mode is never left")
        world.check_quiet("after lazy updates")


def errands(world: World) -> None:
    """A program that does a little of everything, and exits."""
    mm = world.program()
    va = filled(world, mm, 20)
    child = mm.fork()
    world.cpus[0].store(va, b"cow")
    mm.mprotect(va, 10 * world.page, "r")
    mm.mremap(va, 4 * world.page, 4 * world.page, to=va - 64 * world.page)
    mm.madvise(va + 12 * world.page, 4 * world.page, "dontneed")
    mm.munmap(va + 5 * world.page, 10 * world.page)
    child.exit()
    mm.exit()


class TableFreeing(Checks):
    """Exact floors and ceilings."""

    def test_munmap_leaves_exactly_the_tables_that_are_needed(self, bench: Bench) -> None:
        for window in bench.windows():
            rng = random.Random(window.start)
            world = bench.world()
            mm = world.program()
            for _ in range(6):
                self._round(world, mm, [window], rng)

    def test_tables_between_distant_mappings_are_freed_alone(self, bench: Bench) -> None:
        rng = random.Random(11)
        world = bench.world()
        mm = world.program()
        for _ in range(6):
            self._round(world, mm, bench.windows(), rng)

    def _round(self, world: World, mm: Mm, windows: list[Window], rng: random.Random) -> None:
        """Map some ranges, touch every page table of them, unmap some; count tables before and after."""
        vmas = disjoint(vma for window in windows for vma in layout_in(world, window, rng))
        for start, end in vmas:
            mm.mmap(end - start, at=start, fixed=True)
            for va in touched(world, start, end):
                world.cpus[rng.randrange(2)].store(va, b"t")
        struct = mm.struct
        before = tables_in_memory(struct)
        for start, end in vmas:
            missing = tables_for(struct, start, end) - before
            require(not missing, f"tables {sorted(missing)} for [{start:#x}, {end:#x}) are not in memory")
        first = rng.randrange(len(vmas))
        last = rng.randrange(first, len(vmas))
        cuts = [vmas[first : last + 1], vmas[:first], vmas[last + 1 :]]
        kept = list(vmas)
        for gone in cuts:
            if not gone:
                continue
            for start, end in runs_of(gone):
                mm.munmap(start, end - start)
            kept = [vma for vma in kept if vma not in gone]
            wanted = before - {t for start, end in gone for t in tables_for(struct, start, end)}
            wanted |= {t for start, end in kept for t in tables_for(struct, start, end)}
            now = tables_in_memory(struct)
            spans = ", ".join(f"[{start:#x}, {end:#x})" for start, end in gone)
            require(now >= wanted, f"munmap of {spans} freed tables still needed: {sorted(wanted - now)}")
            require(now <= wanted, f"munmap of {spans} left tables nobody needs: {sorted(now - wanted)}")
            counts = [sum(len(t) == level for t in now) for level in range(1, struct.layout.levels)]
            require(
                struct.nr_tables[1:] == counts,
                f"nr_tables {struct.nr_tables[1:]}, in memory {counts} by level",
            )
            before = now
        for cpu in world.kernel.cpus:
            stale = cpu.count_stale(None, cpu.root, 0, 0)
            require(not stale or bool(world.bench.deviations), f"cpu {cpu.index} holds {stale} stale entries")

    def test_exit_frees_every_table(self, bench: Bench) -> None:
        world = bench.world()
        before = world.held()
        mm = world.program()
        rng = random.Random(5)
        for window in bench.windows():
            for start, end in layout_in(world, window, rng):
                mm.mmap(end - start, at=start, fixed=True)
                for va in touched(world, start, end):
                    world.cpus[0].store(va, b"t")
        mm.exit()
        require(world.held() == before, f"held before {before}, after {world.held()}")

    def test_a_stack_that_moves_takes_its_tables_along(self, bench: Bench) -> None:
        layout = bench.shape.layout
        span = layout.span_of(layout.pmd_level)
        for shift in (layout.page_size, span, 2 * span + layout.page_size):
            world = bench.world()
            bare = tables_in_memory(world.machine.new_mm().struct)
            mm = world.program().exec(arguments=2, stack_shift=shift)
            end = world.machine.stack_top - shift
            wanted = bare | tables_for(mm.struct, end - 2 * world.page, end)
            now = tables_in_memory(mm.struct)
            require(now == wanted, f"a stack moved down by {shift:#x} has tables {now}, needs {wanted}")
            mm.exit()

    def test_neighbours_in_one_table_keep_it(self, bench: Bench) -> None:
        layout = bench.shape.layout
        if layout.pte_level < 1:
            raise NotApplicable("it has one level of tables")
        world = bench.world()
        mm = world.program()
        for window in bench.windows():
            base = window.start
            for n in (0, 1, 2):
                mm.mmap(world.page, "rw" if n % 2 else "rwx", at=base + n * world.page, fixed=True)
                world.cpus[0].store(base + n * world.page, bytes([n + 1]))
            mm.munmap(base + world.page, world.page)
            for cpu in (0, 1):
                require(
                    world.cpus[cpu].load(base, 1) == b"\1", f"{base:#x}: the neighbour below lost its page"
                )
                got = world.cpus[cpu].load(base + 2 * world.page, 1)
                require(got == b"\3", f"{base:#x}: the neighbour above lost its page")
            mm.munmap(base, 3 * world.page)


def layout_in(world: World, window: Window, rng: random.Random) -> list[tuple[int, int]]:
    """Disjoint ranges in a window, ascending, that meet inside page tables, at their ends, and not at all."""
    page = world.page
    per_table = world.kernel.shape.layout.entries_of(-1)
    total = (window.end - window.start) // page
    base = window.start // page
    edge = -base % per_table
    marks = {0, 1, total - 1, total} | {rng.randrange(total) for _ in range(3)}
    marks |= {edge + n * per_table + off for n in range(4) for off in (0, rng.randrange(-2, 3))}
    edges = sorted(rng.sample(sorted(m for m in marks if 0 <= m <= total), k=min(8, len(marks) & -2)))
    pairs = list(pairwise(edges))
    chosen = [pair for pair in pairs if rng.random() < 0.7] or pairs[:1]
    return [(window.start + a * page, window.start + b * page) for a, b in chosen]


def disjoint(vmas: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """``vmas`` ascending, without those that overlap one below (windows of a small address space do)."""
    kept: list[tuple[int, int]] = []
    for start, end in sorted(vmas):
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


def touched(world: World, start: int, end: int) -> list[int]:
    """One page in every page table of [start, end), and the last."""
    span = world.kernel.shape.layout.span_of(world.kernel.shape.layout.pmd_level)
    return sorted({start, *range((start & -span) + span, end, span), end - world.page})


def runs_of(vmas: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges that one munmap each can take: vmas of one neighbourhood together, gaps included."""
    runs = [vmas[0]]
    for start, end in vmas[1:]:
        if start - runs[-1][1] < 1 << 32:
            runs[-1] = runs[-1][0], end
        else:
            runs.append((start, end))
    return runs
