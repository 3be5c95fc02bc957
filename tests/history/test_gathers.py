"""The gathers of 2.6 and of the first patch for 3.0 (A4.1); and all of them on CPUs that run at once."""

from __future__ import annotations

import functools
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import polymmu_history
from polymmu import variants
from polymmu.errors import UserMistake
from polymmu.machine import Machine
from polymmu.mm import gather
from polymmu.mm.frames import alloc_run
from polymmu.registry import replaced
from polymmu.structs import mmu_gather
from tests.mm.test_gather import queued
from tests.mm.toy import TOY, GatherLog, boot, new_mm, state

PERCPU: dict[str, Any] = {"gather": "percpu", "i_mmap_lock": "spin"}
STACK: dict[str, Any] = {"gather": "stack"}
LINKED: dict[str, Any] = {}


# ---------------------------------------------------------------------- choosing
def test_the_plugin_is_declared_under_its_name() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert project["entry-points"]["polymmu.plugin"]["history"] == "polymmu_history"


def test_a_machine_file_names_the_generation() -> None:
    assert type(boot(**PERCPU).variants.gather) is polymmu_history.PercpuGather
    assert type(boot(**STACK).variants.gather) is polymmu_history.StackGather
    assert type(boot().variants.gather) is gather.LinkedGather


def test_a_per_cpu_gather_that_might_sleep_is_refused_with_the_reason() -> None:
    with pytest.raises(
        UserMistake, match=r"kernel\.gather: .*cannot sleep on i_mmap_lock.*`i_mmap_lock: spin`"
    ):
        boot(gather="percpu")


def test_a_name_that_two_plugins_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = (("another", polymmu_history), ("history", SimpleNamespace(**vars(polymmu_history))))
    monkeypatch.setattr(variants, "plugins_installed", lambda: twice)
    with pytest.raises(UserMistake, match="gather 'percpu' is offered twice"):
        boot(**PERCPU)


# ---------------------------------------------------------------------- percpu
def test_the_array_holds_506_pages_and_is_flushed_where_it_is_found_full() -> None:
    log = GatherLog()
    kernel = boot(memory=8 << 20, cpus=2, observers=[log], **PERCPU)
    tlb = gather.tlb_gather_mmu(new_mm(kernel))
    assert gather.tlb_room(tlb) == 506
    pfns = alloc_run(kernel, 507, "anon")
    gather.tlb_adjust_range(tlb, 0, 4096, 2)
    assert not gather.tlb_remove_pages(tlb, pfns[:506])  # nothing left for the caller to do
    assert log.flushes == [(506, 0)]
    assert log.freed == 506
    gather.tlb_remove_pages(tlb, pfns[506:])
    gather.tlb_finish_mmu(tlb, 0, 4096)
    assert log.batches == []


def test_the_arch_may_have_had_an_array_of_its_own_size() -> None:
    def tlb_gather(tlb: mmu_gather) -> None:
        tlb.limit = 2048  # ia64

    tlb = gather.tlb_gather_mmu(new_mm(boot(replaced(TOY, "tlb_gather", tlb_gather), cpus=2, **PERCPU)))
    assert gather.tlb_room(tlb) == 2048


def test_nobody_else_runs_from_gather_to_finish() -> None:
    kernel = boot(cpus=2, **PERCPU)
    tlb = gather.tlb_gather_mmu(new_mm(kernel))
    with pytest.raises(AssertionError, match="sleeping in atomic context"):
        kernel.sched.cond_resched()
    with pytest.raises(AssertionError, match="in use already"):
        gather.tlb_gather_mmu(tlb.mm)
    kernel.sched.preempt_enable()
    gather.tlb_finish_mmu(tlb, 0, 4096)
    kernel.sched.cond_resched()


@pytest.mark.parametrize("choice", [PERCPU, STACK])
def test_one_cpu_alone_frees_at_once(choice: dict[str, Any]) -> None:
    """Fast mode, by itself and not by a key."""
    log = GatherLog()
    kernel = boot(observers=[log], **choice)
    tlb = queued(kernel, new_mm(kernel), 30)
    assert log.freed == 30
    assert log.flushes == []
    gather.tlb_finish_mmu(tlb, 0, 4096)
    assert log.flushes == [(0, 0)]


# ---------------------------------------------------------------------- stack
def test_a_page_of_slots_takes_the_place_of_the_eight() -> None:
    log = GatherLog()
    kernel = boot(memory=8 << 20, cpus=2, observers=[log], **STACK)
    before = state(kernel)
    tlb = gather.tlb_gather_mmu(mm := new_mm(kernel))
    held = kernel.free.free
    assert gather.tlb_room(tlb) == 512
    gather.tlb_adjust_range(tlb, 0, 4096, 2)
    assert gather.tlb_remove_pages(
        tlb, alloc_run(kernel, 512, "anon")
    )  # the caller drops its lock and flushes
    assert log.flushes == []
    gather.tlb_flush_mmu(tlb)
    assert log.flushes == [(512, 0)]
    gather.tlb_finish_mmu(tlb, 0, 4096)
    assert kernel.free.free == held + 1
    assert mm.tlb_flush_pending == 0
    assert state(kernel) != before


def test_without_memory_eight_slots_do_and_each_flush_tries_again() -> None:
    log = GatherLog()
    kernel = boot(cpus=2, observers=[log], **STACK)
    refused = iter([True, True, False])
    kernel.free.fail_next = lambda what: what == "gather" and next(refused, False)
    tlb = queued(kernel, new_mm(kernel), 16)
    assert log.flushes == [(8, 0), (8, 0)]
    assert log.batches == [False, False, True]
    assert gather.tlb_room(tlb) == 512
    gather.tlb_finish_mmu(tlb, 0, 4096)


# ---------------------------------------------------------------------- whole programs
def work(machine: Machine, rounds: int = 6) -> None:
    """Three CPUs of one program map, touch, protect, drop and unmap; one also truncates a file that all map."""
    mm, page = machine.new_mm(), machine.page_size
    file = machine.new_file(32 * page)
    shared = mm.mmap(32 * page, "rw", shared=True, file=file)

    def body(cpu: int) -> None:
        chance = random.Random(cpu)
        for _ in range(rounds):
            addr = mm.mmap(1200 * page, "rw")
            for n in range(0, 1200, 2):
                machine.cpus[cpu].store(addr + n * page, bytes((cpu + 1,)))
            for n in range(8):
                machine.cpus[cpu].store(shared + (n + 8 * cpu) * page, b"s")
            machine.work(chance.randrange(50_000))
            mm.mprotect(addr, 8 * page, "r")
            mm.madvise(addr, 100 * page, "dontneed")
            assert machine.cpus[cpu].load(addr + 200 * page, 1) == bytes((cpu + 1,))
            if cpu == 0:
                file.truncate(24 * page)
                file.truncate(32 * page)
            mm.munmap(addr, 1200 * page)

    for cpu in range(len(machine.cpus)):
        machine.spawn(f"program/{cpu}", cpu, mm, functools.partial(body, cpu))
    machine.run_tasks()
    mm.exit()
    file.close()


def sets_of(choice: dict[str, Any]) -> list[str]:
    return [f"kernel.{key}={value}" for key, value in choice.items()]


def timed(name: str, *sets: str) -> Machine:
    description, arch = Machine.describe(name, sets=["memory=256 MiB", *sets])
    return Machine(description, arch, driver="timed")


LINKED30: dict[str, Any] = {"gather": "linked-3.0"}
LINKED413: dict[str, Any] = {"gather": "linked-4.13"}


@pytest.mark.parametrize(
    "choice",
    [PERCPU, STACK, LINKED30, LINKED413, LINKED],
    ids=["percpu", "stack", "linked-3.0", "linked-4.13", "linked"],
)
@pytest.mark.parametrize("name", ["x86_64", "x86", "ia64", "ppc64", "s390", "sparc64"])
def test_every_generation_leaves_nothing_behind_on_every_arch(name: str, choice: dict[str, Any]) -> None:
    machine = timed(name, "cpus=3", *sets_of(choice))
    kernel = machine.kernel
    machine.new_mm().exit()  # what the arch sets up once
    live = kernel.mms.live
    work(machine, rounds=2)
    assert (kernel.vmas.live, kernel.mappings.live, kernel.mms.live) == (0, 0, live)
    assert kernel.sched.preempt_count == 0
    assert not machine.flushes.section()["missing"]


def unmap_4000_pages(name: str, choice: dict[str, Any]) -> dict[str, Any]:
    """One thread unmaps 4000 pages while another one computes; the latencies of the machine."""
    machine = timed(name, "cpus=2", *sets_of(choice))
    mm, page = machine.new_mm(), machine.page_size
    addr = mm.mmap(4000 * page, "rw", populate=True)

    def unmapper() -> None:
        mm.munmap(addr, 4000 * page)

    def other() -> None:
        machine.work(machine.kernel.sched.clock[0])  # the mapping was made on CPU 0
        for _ in range(1000):
            machine.work(100)

    machine.spawn("unmapper", 0, mm, unmapper)
    machine.spawn("other", 1, mm, other)
    machine.run_tasks()
    mm.exit()
    return machine.kernel.sched.latency()


def test_preemption_is_off_for_as_long_as_the_per_cpu_gather_lives() -> None:
    """What the 2011 series was made for: from the whole of an unmap to one hold of the table lock."""
    latency = {
        choice.get("gather", "linked"): unmap_4000_pages("x86_64", {**choice, "page_table_lock": "mm"})
        for choice in (PERCPU, STACK, LINKED)
    }
    off = {name: each["max_preempt_off"] for name, each in latency.items()}
    hold = {name: each["max_lock_hold"]["page_table_lock"] for name, each in latency.items()}
    assert off["percpu"] > 5 * max(off["linked"], off["stack"])
    assert hold["percpu"] > 2 * max(hold["linked"], hold["stack"])


def test_a_full_array_is_flushed_below_the_page_table_lock_and_a_batch_is_not() -> None:
    """A4.1: while one CPU waits there for the others' answers, they may be waiting for its lock."""

    def flushes_below_the_lock(choice: dict[str, Any]) -> int:
        description, arch = Machine.describe(
            "x86_64", sets=["memory=256 MiB", "cpus=2", "kernel.page_table_lock=mm", *sets_of(choice)]
        )
        below: list[bool] = []
        hooks: dict[str, Callable[..., Any]] = {}

        def tlb_flush(tlb: mmu_gather) -> None:
            below.append(tlb.mm.page_table_lock.held)
            hooks["tlb_flush"](tlb)

        hooks["tlb_flush"] = arch.ops.tlb_flush
        machine = Machine(description, replaced(arch, "tlb_flush", tlb_flush))
        mm = machine.new_mm()
        machine.cpus[0].switch_mm(mm)
        addr = mm.mmap(1024 * 4096, "rw")
        for n in range(1024):
            machine.cpus[0].store(addr + n * 4096, b"x")
        mm.munmap(addr, 1024 * 4096)
        return sum(below)

    assert flushes_below_the_lock(PERCPU) == 2  # 1024 pages, 506 at a time
    assert flushes_below_the_lock(STACK) == 0
    assert flushes_below_the_lock(LINKED) == 0


@pytest.mark.parametrize(
    ("choice", "sound"),
    [
        (PERCPU, True),
        (STACK, False),
        ({"gather": "stack-posted"}, False),
        ({"gather": "linked-3.0"}, False),
        ({"gather": "linked-3.8"}, False),
        ({"gather": "linked-3.15"}, True),  # no fast mode
        ({"gather": "linked-4.13"}, True),
        (LINKED, True),
        ({"fast_mode": "true"}, False),
    ],
    ids=lambda choice: "-".join(choice.values()) if isinstance(choice, dict) else "",
)
def test_corpus_99_a_gather_on_the_stack_gave_up_what_made_fast_mode_sound(
    choice: dict[str, Any], sound: bool
) -> None:
    """One CPU, two threads: a page freed at once is another thread's next page, while a stale entry still leads to
    it. Per CPU, preemption is off until the flush, and the array is given up before somebody else may run."""
    description, arch = Machine.describe("x86_64", sets=["memory=256 MiB", "cpus=1", *sets_of(choice)])
    machine = Machine(description, arch, driver="timed", sanitize=True)
    machine.kernel.sched.timeslice = 2_000  # type: ignore[attr-defined]
    mm = machine.new_mm()
    shared = mm.mmap(1024 * 4096, "rw")

    def dropper() -> None:
        for _ in range(30):
            for n in (0, 1, 2, 3, 600):  # two tables: the unmapping may give way between them
                machine.cpus[0].store(shared + n * 4096, b"x")
            mm.madvise(shared, 1024 * 4096, "dontneed")

    def other() -> None:
        for round_ in range(60):
            machine.cpus[0].store(shared + 4096 * (round_ % 4), b"stale")
            own = mm.mmap(4 * 4096, "rw")
            for n in range(4):
                machine.cpus[0].store(own + n * 4096, b"mine")
            machine.work(500)
            mm.munmap(own, 4 * 4096)

    machine.spawn("dropper", 0, mm, dropper)
    machine.spawn("other", 0, mm, other)
    machine.run_tasks()
    assert machine.sanitizer is not None
    found = {violation.invariant for violation in machine.sanitizer.violations}
    assert found == (set() if sound else {"INV-TLB"})
