"""The gathers from Linux 3.0 to 4.13 (A4.1), one test per step that history changed, and the patch as first posted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from polymmu.hooks import ArchKernel
from polymmu.machine import Machine
from polymmu.mm import gather
from polymmu.mm.frames import alloc_page, alloc_run
from polymmu.mm.zap import zap_page_range
from polymmu.registry import Arch, replaced
from polymmu.structs import VM_PFNMAP, mm_struct, mmu_gather
from tests.mm.test_gather import queued
from tests.mm.toy import PAGE, RW, TOY, GatherLog, add_vma, boot, new_mm, pte_lock_held, touch

GENERATIONS = ("linked-3.0", "linked-3.8", "linked-3.15", "linked-4.13", "linked")


def since(first: str) -> list[tuple[str, bool]]:
    """Every generation, and whether it came with ``first`` or after it."""
    return [(name, n >= GENERATIONS.index(first)) for n, name in enumerate(GENERATIONS)]


class Steps:
    """What a gather asked of the arch, in order: ("flush", start, end, fullmm, freed_tables), ("free", table)."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def on(self, arch: Arch, **hooks: Callable[..., Any]) -> Arch:
        table_free = arch.ops.table_free

        def freed(mm: mm_struct, level: int, table: int) -> None:
            self.seen.append(("free", table))
            table_free(mm, level, table)

        answers: dict[str, Callable[..., Any]] = {"tlb_flush": self.flushed, "table_free": freed, **hooks}
        for name, hook in answers.items():
            arch = replaced(arch, name, hook)
        return arch

    def flushed(self, tlb: mmu_gather) -> None:
        self.seen.append(("flush", tlb.start, tlb.end, tlb.fullmm, tlb.freed_tables))

    @property
    def names(self) -> list[str]:
        return [each[0] for each in self.seen]


# ---------------------------------------------------------------------- pages
@pytest.mark.parametrize(("name", "limited"), since("linked-3.8"))
def test_a4_1_from_3_8_on_a_gather_of_ten_thousand_pages_must_flush(name: str, limited: bool) -> None:
    log = GatherLog()
    kernel = boot(memory=64 << 20, cpus=2, observers=[log], gather=name)
    tlb = queued(kernel, new_mm(kernel), 12_000)
    assert log.flushes == ([(8 + 19 * 510, 0)] if limited else [])
    gather.tlb_finish_mmu(tlb, 0, PAGE)
    assert sum(pages for pages, _ in log.flushes) == 12_000


@pytest.mark.parametrize("name", GENERATIONS)
def test_a4_1_fast_mode_on_one_cpu_ended_with_3_10(name: str) -> None:
    log = GatherLog()
    kernel = boot(observers=[log], gather=name)
    queued(kernel, new_mm(kernel), 5)
    assert log.freed == (5 if name in ("linked-3.0", "linked-3.8") else 0)


@pytest.mark.parametrize(("name", "below"), since("linked-3.15"))
def test_a2_4_from_3_15_on_dirty_file_pages_are_flushed_below_the_table_lock(name: str, below: bool) -> None:
    held: list[bool] = []
    description, arch = Machine.describe("x86_64", sets=["memory=64 MiB", "cpus=2", f"kernel.gather={name}"])
    tlb_flush = arch.ops.tlb_flush

    def flush(tlb: mmu_gather) -> None:
        held.append(pte_lock_held(tlb.mm, addr))
        tlb_flush(tlb)

    machine = Machine(description, replaced(arch, "tlb_flush", flush))
    mm, file = machine.new_mm(), machine.new_file(4 * PAGE)
    addr = mm.mmap(4 * PAGE, "rw", shared=True, file=file)
    machine.cpus[0].switch_mm(mm)
    machine.cpus[0].store(addr, b"dirty")
    mm.madvise(addr, 4 * PAGE, "dontneed")
    assert held == [below]


# ---------------------------------------------------------------------- ranges
@pytest.mark.parametrize(
    ("name", "hull"),
    [
        ("percpu", (0, 0)),
        ("stack", (0, 0)),
        ("linked-3.0", (0, 0)),
        ("linked-3.8", (0, 0x9000)),
        ("linked-3.15", (0x2000, 0x3000)),
        ("linked-4.13", (0x2000, 0x3000)),
        ("linked", (0x2000, 0x3000)),
    ],
)
def test_a4_1_a_flush_is_the_mms_then_the_callers_range_then_what_was_cleared(
    name: str, hull: tuple[int, int]
) -> None:
    steps = Steps()
    lock = "spin" if name == "percpu" else "mutex"
    tlb = gather.tlb_gather_mmu(new_mm(boot(steps.on(TOY), cpus=2, gather=name, i_mmap_lock=lock)))
    gather.tlb_adjust_range(tlb, 0x2000, 0x3000, 2)
    gather.tlb_finish_mmu(tlb, 0, 0x9000)
    assert steps.seen == [("flush", *hull, False, False)]


@pytest.mark.parametrize("name", GENERATIONS)
def test_corpus_23_a_full_gathers_flush_left_out_the_entry_it_stopped_at(name: str) -> None:
    """Found by the sanitizer: another CPU keeps that page in its TLB; it is freed, and perhaps never flushed."""
    sets = ["memory=64 MiB", "cpus=2", f"kernel.gather={name}", "kernel.gather_batch=8"]
    description, arch = Machine.describe("x86_64", sets=sets)
    machine = Machine(description, arch, driver="timed", sanitize=True)
    machine.kernel.free.fail_next = lambda what: what == "gather"  # eight pages at a time
    mm = machine.new_mm()
    addr = mm.mmap(16 * PAGE, "rw")

    def dropper() -> None:
        for _ in range(20):
            for n in range(16):
                machine.cpus[0].store(addr + n * PAGE, b"x")
            mm.madvise(addr, 16 * PAGE, "dontneed")

    def reader() -> None:
        for _ in range(2000):
            machine.cpus[1].load(addr + 7 * PAGE, 1)

    machine.spawn("dropper", 0, mm, dropper)
    machine.spawn("reader", 1, mm, reader)
    machine.run_tasks()
    assert machine.sanitizer is not None
    wrong = {violation.invariant for violation in machine.sanitizer.violations}
    assert wrong == ({"INV-TLB", "INV-PERM"} if name == "linked-3.8" else set())


@pytest.mark.parametrize("name", GENERATIONS)
def test_a4_9_ranges_without_mapcounts_are_flushed_before_the_vma_is_unlinked_in_the_last_only(
    name: str,
) -> None:
    steps = Steps()
    kernel = boot(steps.on(TOY), cpus=2, gather=name)
    mm = new_mm(kernel)
    vma = add_vma(mm, 0, 4 * PAGE, RW)
    touch(mm, 0)
    vma.vm_flags |= VM_PFNMAP
    finished: list[int] = []
    finish = kernel.variants.gather.end

    def ending(*args: Any) -> None:
        finished.append(len(steps.seen))
        finish(*args)

    kernel.variants.gather.end = ending
    zap_page_range(vma, 0, 4 * PAGE)
    assert finished == [int(name == "linked")]
    assert steps.names == ["flush"]


# ---------------------------------------------------------------------- several at a time
@pytest.mark.parametrize(("name", "known"), since("linked-4.13"))
def test_a4_3_from_4_13_on_others_know_of_a_gather(name: str, known: bool) -> None:
    mm = new_mm(boot(cpus=2, gather=name))
    tlb = gather.tlb_gather_mmu(mm)
    assert mm.tlb_flush_pending == known
    gather.tlb_finish_mmu(tlb, 0, PAGE)
    assert mm.tlb_flush_pending == 0


@pytest.mark.parametrize(
    ("name", "flushes"),
    [
        ("linked-3.0", []),
        ("linked-3.15", []),
        ("linked-4.13", [("flush", 0x1000, 0x9000, False, False)]),
        ("linked", [("flush", 0, 0, True, True)]),
    ],
)
def test_a4_2_step_9_a_gather_beside_another_flushes_its_range_then_everything(
    name: str, flushes: list[tuple[Any, ...]]
) -> None:
    steps = Steps()
    mm = new_mm(boot(steps.on(TOY), cpus=2, gather=name))
    other, mine = gather.tlb_gather_mmu(mm), gather.tlb_gather_mmu(mm)
    gather.tlb_finish_mmu(mine, 0x1000, 0x9000)  # it cleared nothing itself
    assert steps.seen == flushes
    gather.tlb_finish_mmu(other, 0, PAGE)


def test_an_arch_that_notes_the_range_itself_is_told_of_the_others() -> None:
    noted: list[tuple[int, int, int]] = []

    def note(tlb: mmu_gather, ptep: int, addr: int, n: int) -> None:
        noted.append((ptep, addr, n))

    mm = new_mm(boot(replaced(TOY, "tlb_remove_tlb_entry", note), cpus=2, gather="linked-4.13"))
    other, mine = gather.tlb_gather_mmu(mm), gather.tlb_gather_mmu(mm)
    gather.tlb_finish_mmu(mine, 0x1000, 0x9000)
    assert noted == [(-1, 0x1000, 8)]
    gather.tlb_finish_mmu(other, 0, PAGE)


# ---------------------------------------------------------------------- tables
def with_tables(
    name: str, users: int = 2, table_limit: int = 0, **choice: Any
) -> tuple[ArchKernel, mm_struct, Steps, list[Callable[[], None]]]:
    """A kernel whose tables wait for RCU, an mm, what happens there, and the callbacks that wait."""
    steps = Steps()
    waiting: list[Callable[[], None]] = []

    def tlb_gather(tlb: mmu_gather) -> None:
        tlb.table_limit = table_limit

    arch = steps.on(TOY, tables_need_rcu=lambda mm: True, tlb_gather=tlb_gather)
    kernel = boot(arch, cpus=2, memory=8 << 20, gather=name, **choice)
    kernel.sched.call_rcu = waiting.append  # type: ignore[method-assign, assignment]
    mm = new_mm(kernel)
    mm.mm_users = users
    return kernel, mm, steps, waiting


def table(kernel: ArchKernel) -> int:
    return alloc_page(kernel, "table") << 12


OLD = ("linked-3.0", "linked-3.8", "linked-3.15", "linked-4.13")


@pytest.mark.parametrize("name", GENERATIONS)
@pytest.mark.parametrize("users", [1, 2])
def test_a4_4_step_2_a_table_of_an_mm_with_one_user_was_freed_at_once(name: str, users: int) -> None:
    """Corpus 25."""
    kernel, mm, steps, waiting = with_tables(name, users)
    tlb = gather.tlb_gather_mmu(mm)
    gather.tlb_remove_table(tlb, 2, table(kernel))
    assert steps.names == (["free"] if users == 1 and name in OLD else [])
    gather.tlb_finish_mmu(tlb, 0, PAGE)
    assert steps.names[-1] == "flush"
    assert len(waiting) == (0 if users == 1 and name in OLD else 1)


@pytest.mark.parametrize("name", GENERATIONS)
def test_a4_4_step_4_a_full_batch_of_tables_went_to_rcu_unflushed(name: str) -> None:
    """Corpus 26."""
    kernel, mm, steps, waiting = with_tables(name)
    tlb = gather.tlb_gather_mmu(mm)
    for _ in range(509):
        gather.tlb_remove_table(tlb, 2, table(kernel))
    assert len(waiting) == 1
    assert steps.names == ([] if name in OLD else ["flush"])
    gather.tlb_finish_mmu(tlb, 0, PAGE)
    assert steps.names == ["flush"]


@pytest.mark.parametrize("name", GENERATIONS)
def test_a4_4_step_3_a_table_without_a_batch_was_freed_unflushed(name: str) -> None:
    """Corpus 27: after an interrupt to all CPUs in every generation."""
    kernel, mm, steps, waiting = with_tables(name)
    kernel.free.fail_next = lambda what: what == "table_batch"
    tlb = gather.tlb_gather_mmu(mm)
    gather.tlb_remove_table(tlb, 2, table(kernel))
    assert steps.names == (["free"] if name in OLD else ["flush", "free"])
    assert kernel.sched.spent_on["ipi"] == kernel.description.costs.ipi
    assert not waiting
    gather.tlb_finish_mmu(tlb, 0, PAGE)


@pytest.mark.parametrize("name", GENERATIONS)
def test_an_arch_with_a_list_of_its_own_did_it_right_but_for_3_0(name: str) -> None:
    kernel, mm, steps, waiting = with_tables(name, users=1, table_limit=508)
    tlb = gather.tlb_gather_mmu(mm)
    gather.tlb_remove_table(tlb, 2, table(kernel))
    gather.tlb_finish_mmu(tlb, 0, PAGE)
    assert steps.names == (["free", "flush"] if name == "linked-3.0" else ["flush"])
    assert len(waiting) == (0 if name == "linked-3.0" else 1)


@pytest.mark.parametrize("name", [*OLD, "percpu", "stack"])
def test_where_tables_wait_for_the_flush_alone_they_did_in_every_generation(name: str) -> None:
    steps = Steps()
    lock = "spin" if name == "percpu" else "mutex"
    kernel = boot(steps.on(TOY), cpus=2, gather=name, i_mmap_lock=lock)
    tlb = gather.tlb_gather_mmu(new_mm(kernel))
    gather.tlb_remove_table(tlb, 2, table(kernel))
    gather.tlb_finish_mmu(tlb, 0, PAGE)
    assert steps.names == ["flush", "free"]
    assert steps.seen[0][-1], "the arch must know that a table was freed"


@pytest.mark.parametrize("name", ["percpu", "stack"])
@pytest.mark.parametrize(("users", "mask", "waits"), [(1, 3, 0), (2, 1, 0), (2, 3, 1)])
def test_before_3_0_tables_went_to_rcu_if_another_cpu_could_be_walking(
    name: str, users: int, mask: int, waits: int
) -> None:
    kernel, mm, steps, waiting = with_tables(name, users, i_mmap_lock="spin")
    mm.cpu_mask = mask
    tlb = gather.tlb_gather_mmu(mm)
    gather.tlb_remove_table(tlb, 2, table(kernel))
    gather.tlb_finish_mmu(tlb, 0, PAGE)
    assert steps.names == (["flush"] if waits else ["flush", "free"])
    assert len(waiting) == waits


@pytest.mark.parametrize(("limit", "room"), [(0, 509), (508, 508)])
def test_before_3_0_an_archs_list_of_tables_held_so_many(limit: int, room: int) -> None:
    """A4.1, 2.6.39: a page of them (ppc64), or an array in its own gather (s390)."""
    kernel, mm, _, waiting = with_tables("percpu", table_limit=limit, i_mmap_lock="spin")
    mm.cpu_mask = 3
    tlb = gather.tlb_gather_mmu(mm)
    for _ in range(room - 1):
        gather.tlb_remove_table(tlb, 2, table(kernel))
    assert not waiting
    gather.tlb_remove_table(tlb, 2, table(kernel))
    assert len(waiting) == 1
    gather.tlb_finish_mmu(tlb, 0, PAGE)


def test_before_3_0_without_a_page_for_tables_each_was_freed_after_an_interrupt_to_all() -> None:
    kernel, mm, steps, waiting = with_tables("percpu", i_mmap_lock="spin")
    kernel.free.fail_next = lambda what: what == "table_batch"
    mm.cpu_mask = 3
    tlb = gather.tlb_gather_mmu(mm)
    for _ in range(3):
        gather.tlb_remove_table(tlb, 2, table(kernel))
    gather.tlb_finish_mmu(tlb, 0, PAGE)
    assert steps.names == ["flush", "free", "free", "free"]
    assert kernel.sched.spent_on["ipi"] == 3 * kernel.description.costs.ipi
    assert not waiting


@pytest.mark.parametrize(
    ("arch", "name", "wrong"),
    [
        ("s390", "linked-3.0", True),
        ("s390", "linked-3.8", False),  # its own list, from 3.4
        ("s390", "linked", False),
        ("x86_64", "linked-4.13", True),
        ("x86_64", "linked", False),
        ("ppc64", "linked-4.13", False),  # no hardware walks the tables
    ],
)
def test_corpus_27_the_sanitizer_finds_walk_caches_that_lead_to_the_freed_table(
    arch: str, name: str, wrong: bool
) -> None:
    sets = ["memory=256 MiB", "cpus=2", f"kernel={{gather: {name}, table_free: rcu}}"]
    machine = Machine.from_file(arch, sets=sets, driver="timed", sanitize=True)
    layout = machine.kernel.shape.layout
    span = layout.span_of(layout.pmd_level)
    machine.kernel.free.fail_next = lambda what: what == "table_batch"
    mm = machine.new_mm()
    own, at, mapped = mm.mmap(machine.page_size, "rw"), 1 << 30, []

    def unmaps() -> None:
        for _ in range(2):
            mm.mmap(8 * span, "rw", at=at, fixed=True)
            for n in range(8):
                machine.cpus[0].store(at + n * span, b"x")
            mapped.append(True)
            machine.work(20_000)
            mm.munmap(at, 8 * span)

    def runs_on() -> None:
        for _ in range(600):
            if mapped:
                mapped.clear()
                for n in range(8):
                    machine.cpus[1].load(at + n * span, 1)
            machine.cpus[1].load(own, 1)
            machine.work(200)

    machine.spawn("unmaps", 0, mm, unmaps)
    machine.spawn("runs on", 1, mm, runs_on)
    machine.run_tasks()
    assert machine.sanitizer is not None
    assert {each.invariant for each in machine.sanitizer.violations} == ({"INV-WALK"} if wrong else set())


@pytest.mark.parametrize(("name", "early"), [("linked-3.0", True), ("linked-3.8", False), ("linked", False)])
def test_b5_s390_freed_tables_before_the_flush_in_3_0(name: str, early: bool) -> None:
    """12.3 of its sheet. A page table and a segment table, below a region table that stays."""
    description, arch = Machine.describe("s390", sets=["memory=64 MiB", "cpus=2", f"kernel.gather={name}"])
    tlb_flush, steps = arch.ops.tlb_flush, Steps()

    def flush(tlb: mmu_gather) -> None:
        steps.flushed(tlb)
        tlb_flush(tlb)

    machine = Machine(description, steps.on(arch, tlb_flush=flush))
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    addr = mm.mmap(PAGE, "rw")
    machine.cpus[0].store(addr, b"x")
    mm.munmap(addr, PAGE)
    assert steps.names == (["free", "free", "flush"] if early else ["flush", "free", "free"])


# ---------------------------------------------------------------------- arches with a gather of their own
@pytest.mark.parametrize("name", OLD)
def test_ia64_had_eight_slots_or_one_page_from_the_first_page_queued(name: str) -> None:
    """Section 1.1 of its sheet: 2048 pointers in a page of 16 KiB."""
    machine = Machine.from_file("ia64", sets=["cpus=2", "memory=128 MiB", f"kernel.gather={name}"])
    kernel, page, mm = machine.kernel, machine.page_size, machine.new_mm().struct
    assert page == 16 << 10
    tlb = gather.tlb_gather_mmu(mm)
    assert gather.tlb_room(tlb) == 8
    gather.tlb_adjust_range(tlb, 0, page, 2)
    assert not gather.tlb_remove_pages(tlb, alloc_run(kernel, 8, "anon"))
    assert gather.tlb_room(tlb) == 2040
    assert gather.tlb_remove_pages(tlb, alloc_run(kernel, 2040, "anon"))  # and no other batch
    gather.tlb_flush_mmu(tlb)
    kernel.free.fail_next = lambda what: what == "gather"
    gather.tlb_finish_mmu(tlb, 0, page)
    tlb = gather.tlb_gather_mmu(mm)
    gather.tlb_adjust_range(tlb, 0, page, 2)
    assert gather.tlb_remove_pages(tlb, alloc_run(kernel, 8, "anon"))
    gather.tlb_flush_mmu(tlb)
    gather.tlb_finish_mmu(tlb, 0, page)


@pytest.mark.parametrize(
    ("name", "pages", "tables"),
    [("x86_64", 506, 0), ("x86", 506, 0), ("ppc64", 506, 0), ("sparc64", 506, 0), ("ia64", 2048, 0),
     ("s390", 506, 508)],
)  # fmt: skip
def test_a4_1_what_each_arch_had_per_cpu(name: str, pages: int, tables: int) -> None:
    """Also x86_64, whose request for more never took effect."""
    machine = Machine.from_file(
        name, sets=["cpus=2", "memory=128 MiB", "kernel={gather: percpu, i_mmap_lock: spin}"]
    )
    tlb = gather.tlb_gather_mmu(machine.new_mm().struct)
    assert len(tlb.batches[0].pfns) == pages
    assert tlb.table_limit == tables
    assert tlb.fast_mode == (name == "s390")  # IPTE was sent: pages go at once
    gather.tlb_finish_mmu(tlb, 0, 0)


@pytest.mark.parametrize(("name", "pages"), [("percpu", 506), ("stack", 512)])
def test_before_3_0_tables_took_slots_of_the_same_array(name: str, pages: int) -> None:
    log = GatherLog()
    kernel = boot(memory=8 << 20, cpus=2, observers=[log], gather=name, i_mmap_lock="spin")
    tlb = gather.tlb_gather_mmu(new_mm(kernel))
    gather.tlb_adjust_range(tlb, 0, PAGE, 2)
    gather.tlb_remove_pages(tlb, alloc_run(kernel, pages - 3, "anon"))
    for _ in range(2):
        gather.tlb_remove_table(tlb, 2, table(kernel))
    assert not log.flushes
    gather.tlb_remove_table(tlb, 2, table(kernel))
    assert log.flushes == [(pages - 3, 3)]
    gather.tlb_finish_mmu(tlb, 0, PAGE)


# ---------------------------------------------------------------------- as first posted
@pytest.mark.parametrize(
    ("name", "mapped", "rss", "seen"),
    [
        ("stack", 12, 0, 16),
        ("stack-posted", 12, -8, 17),  # 8, and then 8 + 4, are subtracted; one entry is seen again
        ("stack-posted", 16, -24, 17),  # 8, 16, and 16 again behind the end of the table
        ("stack-posted", 7, 0, 16),
    ],
)
def test_a2_4_as_posted_pages_of_the_first_round_leave_rss_twice(
    name: str, mapped: int, rss: int, seen: int
) -> None:
    """Corpus 49. A table of 16 entries, and a gather with eight slots."""
    kernel = boot(cpus=2, gather=name)
    kernel.free.fail_next = lambda what: what == "gather"
    mm = new_mm(kernel)
    vma = add_vma(mm, 0, 16 * PAGE, RW)
    for n in range(mapped):
        touch(mm, n * PAGE)
    before = kernel.sched.spent_on.get("zap", 0)
    zap_page_range(vma, 0, 16 * PAGE)
    assert mm.anon_rss == rss
    entries = (kernel.sched.spent_on["zap"] - before) // kernel.description.costs.entry_update
    assert entries == (18 if mapped == 16 and name != "stack" else seen)


def test_the_sanitizer_names_the_rss_that_was_subtracted_twice() -> None:
    def found(name: str) -> set[str]:
        sets = ["memory=64 MiB", "cpus=2", f"kernel.gather={name}"]
        machine = Machine.from_file("x86_64", sets=sets, sanitize=True)
        machine.kernel.free.fail_next = lambda what: what == "gather"
        mm = machine.new_mm()
        machine.cpus[0].switch_mm(mm)
        addr = mm.mmap(64 * PAGE, "rw", populate=True)
        mm.madvise(addr, 32 * PAGE, "dontneed")
        assert machine.sanitizer is not None
        machine.sanitizer.finish()
        return {violation.invariant for violation in machine.sanitizer.violations}

    assert found("stack") == set()
    assert found("stack-posted") == {"INV-REF"}
