"""G1 to G8 of A4.6, in every generation of the gather, over random programs: alone, and on CPUs that run at once.

A referee of its own stands between the mm core, the generation and the arch. G5 (no page sizes mixed) has nothing to
watch: huge pages go without a gather. G4 says of which vma what is flushed may be: no flush here uses a vma's flags.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from polymmu import variants
from polymmu.machine import Machine
from polymmu.registry import replaced
from polymmu.structs import EntryRun, mm_struct, mmu_gather

GENERATIONS = (
    "percpu",
    "stack-posted",
    "stack",
    "linked-3.0",
    "linked-3.8",
    "linked-3.15",
    "linked-4.13",
    "linked",
)
TOP = 1 << 64


class Rules:
    """What must hold of the gathers of one machine; ``broken``: those that did not."""

    def __init__(self, name: str, arch_name: str, driver: str, seed: int) -> None:
        lock = "spin" if name == "percpu" else "mutex"
        self.preempts = name != "percpu"
        sets = [f"kernel={{gather: {name}, i_mmap_lock: {lock}, gather_batch: 8}}", f"seed={seed}"]
        description, arch = Machine.describe(arch_name, sets=["memory=64 MiB", "cpus=3", *sets])
        self.ops = arch.ops
        for hook in ("ptep_get_and_clear", "tlb_flush", "table_free"):
            arch = replaced(arch, hook, getattr(self, hook))
        self.broken: set[str] = set()
        self.unflushed: dict[int, list[tuple[int, int]]] = {}
        """By gather: what it cleared since its last flush."""
        self.all: dict[int, list[tuple[int, int]]] = {}
        self.frees = 0
        self.machine = Machine(description, arch, driver=driver)
        self.kernel = self.machine.kernel
        gather = watched(type(self.kernel.variants.gather), self)(self.kernel)
        self.kernel.variants = attrs.evolve(self.kernel.variants, gather=gather)

    def rule(self, name: str, holds: bool) -> None:
        if not holds:
            self.broken.add(name)

    # --- between the core and the arch
    def ptep_get_and_clear(
        self, mm: mm_struct, addr: int, ptep: int, n: int, tlb: mmu_gather | None
    ) -> EntryRun:
        if tlb is not None:
            for ranges in (self.unflushed, self.all):
                ranges[id(tlb)].append((addr, addr + (n << mm.layout.page_shift)))
        return self.ops.ptep_get_and_clear(mm, addr, ptep, n, tlb)

    def tlb_flush(self, tlb: mmu_gather) -> None:
        end = tlb.end or TOP
        covered = tlb.fullmm or all(tlb.start <= low and high <= end for low, high in self.unflushed[id(tlb)])
        self.rule("G2", covered)
        self.unflushed[id(tlb)].clear()
        self.ops.tlb_flush(tlb)

    def table_free(self, mm: mm_struct, level: int, table: int) -> None:
        self.frees += 1
        self.ops.table_free(mm, level, table)

    # --- after a gather, where nobody else is at work
    def nothing_left(self, mm: mm_struct, ranges: list[tuple[int, int]]) -> None:
        for cpu in self.kernel.cpus:
            if self.kernel.active_mm[cpu.index] is mm:
                for low, high in ranges:
                    self.rule("G3", not cpu.count_stale(None, cpu.root, low, high))


def watched(generation: type[Any], rules: Rules) -> type[Any]:
    """``generation``, looked at at each step."""
    sched = rules.kernel.sched

    class Watched(generation):  # type: ignore[misc]
        def begun(self, tlb: mmu_gather) -> mmu_gather:
            rules.unflushed[id(tlb)], rules.all[id(tlb)] = [], []
            return generation.begun(self, tlb)  # type: ignore[no-any-return]

        def tlb_remove_pages(self, tlb: mmu_gather, pfns: NDArray[np.int64]) -> bool:
            rules.rule("G6", tlb.need_flush)
            rules.rule("G8", rules.preempts or sched.preempt_count > 0)
            return generation.tlb_remove_pages(self, tlb, pfns)  # type: ignore[no-any-return]

        def tlb_flush_mmu_free(self, tlb: mmu_gather) -> None:
            rules.rule("G1", not rules.unflushed[id(tlb)])
            generation.tlb_flush_mmu_free(self, tlb)

        def tlb_finish_mmu(self, tlb: mmu_gather, start: int, end: int) -> None:
            rules.rule("G8", rules.preempts or sched.preempt_count > 0)
            generation.tlb_finish_mmu(self, tlb, start, end)
            rules.rule("G7", tlb.mm.tlb_flush_pending >= 0)
            del rules.unflushed[id(tlb)]
            ranges = rules.all.pop(id(tlb))
            if not sched.runs_tasks:
                rules.nothing_left(tlb.mm, ranges)

    return Watched


def work(rules: Rules, seed: int, steps: int = 12) -> None:
    """Three threads map, touch, drop and unmap in one mm, and truncate a file that they share."""
    machine = rules.machine
    mm, page = machine.new_mm(), machine.page_size
    file = machine.new_file(32 * page)
    shared = mm.mmap(32 * page, "rw", shared=True, file=file)

    def step(cpu: int, chance: random.Random) -> None:
        pages = chance.randrange(1, 60)
        addr = mm.mmap(pages * page, "rw")
        for n in range(0, pages, chance.randrange(1, 3)):
            machine.cpus[cpu].store(addr + n * page, b"x")
        for n in range(cpu, 24, 3):
            machine.cpus[cpu].store(shared + n * page, b"s")
        mm.madvise(addr, chance.randrange(1, pages + 1) * page, "dontneed")
        mm.madvise(shared, 32 * page, "dontneed")
        if cpu == 0:
            file.truncate(24 * page)
            file.truncate(32 * page)
        mm.munmap(addr, pages * page)

    def body(cpu: int) -> None:
        chance = random.Random(seed * 3 + cpu)
        for _ in range(steps):
            step(cpu, chance)

    if machine.driver == "timed":
        for cpu in range(3):
            machine.spawn(f"thread {cpu}", cpu, mm, partial(body, cpu))
        machine.run_tasks()
    else:
        chance = random.Random(seed)
        for handle in machine.cpus:
            handle.switch_mm(mm)
        for _ in range(steps):
            step(chance.randrange(3), chance)
    rules.rule("G7", mm.struct.tlb_flush_pending == 0)
    mm.exit()
    file.close()


@pytest.mark.parametrize("driver", ["solo", "timed"])
@pytest.mark.parametrize("name", GENERATIONS)
def test_a4_6_g1_to_g8(name: str, driver: str) -> None:
    for seed in range(2):
        rules = Rules(name, "x86_64", driver, seed)
        work(rules, seed)
        assert rules.frees
        if name == "linked-3.8":  # corpus 23
            assert rules.broken <= {"G2", "G3"}
            assert "G2" in rules.broken
        else:
            assert not rules.broken


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["solo", "timed"])
@pytest.mark.parametrize("name", GENERATIONS)
def test_a4_6_g1_to_g8_under_many_seeds(name: str, driver: str) -> None:
    for seed in range(2, 8):
        rules = Rules(name, "x86_64", driver, seed)
        work(rules, seed, steps=20)
        assert rules.broken <= ({"G2", "G3"} if name == "linked-3.8" else set())


@pytest.mark.parametrize("arch", ["ia64", "sparc64", "s390", "ppc64"])
@pytest.mark.parametrize("name", ["percpu", "linked-3.0", "linked-4.13"])
def test_a4_6_where_an_arch_has_a_way_of_its_own(name: str, arch: str) -> None:
    """G2 is its own business there: it has noted, or flushed already, what was cleared."""
    rules = Rules(name, arch, "solo", 1)
    work(rules, 1)
    assert rules.broken <= {"G2"}


def unhooked(hook: Callable[..., Any]) -> Rules:
    rules = Rules("linked", "x86_64", "solo", 1)
    rules.kernel.ops = replaced(rules.machine.arch, "tlb_flush", hook).ops
    work(rules, 1)
    return rules


def test_the_rules_see_a_flush_that_is_not_there() -> None:
    assert {"G1", "G3"} <= unhooked(lambda tlb: None).broken


def test_a_plugin_offers_all_of_these(history: None) -> None:
    (_, plugin), *_rest = variants.plugins_installed()
    offered = plugin.kernel_variants()["gather"]  # type: ignore[attr-defined]
    generations = {name for name in offered if not name.startswith("bug-")}
    assert {*generations, *variants.VARIANTS["gather"]} == set(GENERATIONS)
