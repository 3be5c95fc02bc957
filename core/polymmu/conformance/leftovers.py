"""``Exit``: what is left when programs are gone, and whether a second run is like the first."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from polymmu.conformance.bench import Bench, NotApplicable, World, require
from polymmu.conformance.caches import filled
from polymmu.conformance.checks import Checks
from polymmu.conformance.freeing import FreedTooEarly, errands

__all__ = ["Exit"]


class Exit(Checks):
    """What is left."""

    def test_nothing_is_left_after_exit(self, bench: Bench) -> None:
        watch = FreedTooEarly()
        world = bench.world(watch)
        before = world.held()
        errands(world)
        require(world.held() == before, f"held before {before}, after {world.held()}")
        if not bench.deviations:
            require(not watch.found, watch.found[0] if watch.found else "")
        world.check_quiet("after exit")

    def test_a_second_run_is_like_the_first(self, bench: Bench) -> None:
        world = bench.world()
        counts = []
        for _ in range(3):
            before = counted(world)
            errands(world)
            counts.append({key: value - before[key] for key, value in counted(world).items()})
        require(counts[1] == counts[2], f"the second run counts {counts[1]}, the third {counts[2]}")

    def test_the_archs_own_state_does_not_grow(self, bench: Bench) -> None:
        world = bench.world()
        for _ in range(2):
            errands(world)
        per_frame = world.kernel.frames.count
        before = size_of(world.kernel.arch_state, per_frame)
        held = world.held()
        programs = 24  # two in each round of errands; a retired number may wait to be used again
        for _ in range(programs // 2):
            errands(world)
        after = size_of(world.kernel.arch_state, per_frame)
        require(
            after <= before + 2 * programs,
            f"after {programs} more programs the arch's state holds {after} things, before {before}",
        )
        require(world.held() == held, f"held before {held}, after {world.held()}")

    def test_free_tables_do_not_pile_up(self, bench: Bench) -> None:
        world = bench.world()
        before = world.held()["frames"]
        span = bench.shape.layout.span_of(bench.shape.layout.pmd_level)
        mm = world.program()
        low = mm.mmap(2 * span, "")
        mm.munmap(low, 2 * span)
        window = bench.windows()[-1]
        for _ in range(30):
            va = mm.mmap(world.page, at=window.end - world.page, fixed=True)
            world.cpus[0].store(va, b"x")
            mm.munmap(va, world.page)
        mm.exit()
        require(
            world.held()["frames"] <= before + 64,
            f"{world.held()['frames'] - before} frames stay with the arch",
        )

    def test_a_lockless_walk_leaves_the_cpu_as_it_was(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        cpu, ops = world.kernel.cpus[0], bench.arch.ops
        may_walk = ops.gup_fast_begin(cpu, mm.struct)
        require(isinstance(may_walk, bool), f"gup_fast_begin answers {may_walk!r}, neither yes nor no")
        if not may_walk:
            return  # Linux walks no tables of it without a lock
        stopped = not cpu.interrupts_enabled
        ops.gup_fast_end(cpu, mm.struct)
        require(cpu.interrupts_enabled, "gup_fast_end leaves interrupts off")
        require(
            "tables_freed_early" not in bench.deviations,
            "gup_fast_begin allows a walk without a lock, and tables are freed at once: under the walk",
        )
        va = filled(world, mm, 3)
        mm.munmap(va, 3 * world.page)
        interrupts = world.machine.report().to_dict()["shootdown"]["ipis"] > 0
        require(
            (stopped and interrupts) or ops.tables_need_rcu(mm.struct),
            "gup_fast_begin keeps no flush waiting, and tables do not wait for RCU: tables are freed under a walk",
        )

    def test_tables_wait_for_rcu_where_flushes_interrupt_nobody(self, bench: Bench) -> None:
        world = bench.world()
        mm = world.program()
        va = filled(world, mm, 3)
        mm.munmap(va, 3 * world.page)
        shootdown = world.machine.report().to_dict()["shootdown"]
        if shootdown["ipis"]:
            raise NotApplicable("its flushes interrupt the other CPUs, which stops lockless walkers")
        if "tables_freed_early" in bench.deviations:
            raise NotApplicable("it declares that tables are freed early")
        require(
            bench.arch.ops.tables_need_rcu(mm.struct), "flushes are broadcast, and tables do not wait for RCU"
        )


def counted(world: World) -> dict[str, int]:
    """Counts that one run adds to: faults, tables, pages, shootdowns."""
    world.settle()
    report = world.machine.report().to_dict()
    kept = {"faults": report["faults"], "gather": report["gather"], "shootdown": report["shootdown"]}
    kept["tables"] = {key: report["tables"][key] for key in ("allocated", "freed", "live")}
    kept["pages"] = {key: report["pages"][key] for key in ("allocated", "freed")}
    return {f"{section}.{key}": int(value) for section, part in kept.items() for key, value in part.items()}


def size_of(value: object, per_frame: int, seen: set[int] | None = None) -> int:
    """How many things hang from ``value``: elements of containers, set bits of bitmaps, non-zero array items.

    Arrays of ``per_frame`` items are state of frames, which the machine's memory bounds.
    """
    seen = set() if seen is None else seen
    if value is None or isinstance(value, (str, float, bool)) or id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, int):
        return value.bit_count() if value >> 64 else 0
    if isinstance(value, np.ndarray):
        return int(np.count_nonzero(value)) if len(value) != per_frame else 0
    if isinstance(value, (bytes, bytearray)):
        return len(value) - value.count(0)
    if isinstance(value, dict):
        return sum(1 + size_of(each, per_frame, seen) for each in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return sum(1 + size_of(each, per_frame, seen) for each in value)
    if type(value).__module__.startswith("polymmu."):
        return 0  # a kernel object: the core counts those
    names: Iterable[str] = getattr(value, "__slots__", ()) or getattr(value, "__dict__", ())
    return sum(size_of(getattr(value, name, None), per_frame, seen) for name in names)
