"""Mmu notifiers and a device that lives by them (A8.2)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from polymmu.errors import SegmentationFault
from polymmu.machine import DeviceHandle, Machine, Mm
from polymmu.mm import secondary_mmu
from polymmu.mm.notifier import MmuNotifier, mmu_notifier_register, mmu_notifier_unregister
from polymmu.mm.secondary_mmu import SecondaryMmu
from polymmu.structs import mm_struct

PAGE = 4096
ARCHES = ["x86_64", "x86", "ia64", "ppc64", "s390", "sparc64"]


class Log(MmuNotifier):
    """What a secondary MMU is told, in order; ``inside`` says what was so meanwhile."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.told: list[tuple[Any, ...]] = []

    def invalidate_range_start(self, mm: mm_struct, start: int, end: int) -> None:
        assert not self.kernel.sched.preempt_count, "a start may sleep"
        self.told.append(("start", start, end))

    def invalidate_range_end(self, mm: mm_struct, start: int, end: int) -> None:
        self.told.append(("end", start, end))

    def invalidate_range(self, mm: mm_struct, start: int, end: int) -> None:
        self.told.append(("flush", start, end))

    def release(self, mm: mm_struct) -> None:
        self.told.append(("release", mm.anon_rss))

    def entries_changed(self, mm: mm_struct, start: int, end: int, n: int, what: str) -> None:
        self.told.append(("change", start, end))

    def shootdown(self, mm: mm_struct, kind: str, cpus: int) -> None:
        self.told.append(("tlb",))


def made(name: str = "x86_64", driver: str = "solo", *sets: str, cpus: int = 2) -> Machine:
    description, arch = Machine.describe(name, sets=["memory=256 MiB", f"cpus={cpus}", *sets])
    return Machine(description, arch, driver=driver, sanitize=True)


def watched() -> tuple[Machine, Mm, int, Log]:
    """A running program with 16 pages, and a log of what notifiers, tables and TLBs see."""
    machine = made()
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    at = mm.mmap(16 * PAGE, at=1 << 30, fixed=True)
    for n in range(16):
        machine.cpus[0].store(at + n * PAGE, b"x")
    log = Log(machine.kernel)
    mmu_notifier_register(mm.struct, log)
    events = machine.kernel.events
    events.entries_changed = log.entries_changed  # type: ignore[method-assign]
    events.shootdown = log.shootdown  # type: ignore[method-assign]
    return machine, mm, at, log


CALLS: dict[str, Callable[[Machine, Mm, int], Any]] = {
    "munmap": lambda machine, mm, at: mm.munmap(at, 4 * PAGE),
    "mprotect": lambda machine, mm, at: mm.mprotect(at, 4 * PAGE, "r"),
    "madvise": lambda machine, mm, at: mm.madvise(at, 4 * PAGE, "dontneed"),
    "mremap": lambda machine, mm, at: mm.mremap(at, 4 * PAGE, 4 * PAGE, to=1 << 31),
    "mmap over it": lambda machine, mm, at: mm.mmap(4 * PAGE, at=at, fixed=True),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_change_begins_after_the_start_and_the_end_comes_after_the_flush(call: str) -> None:
    """A8.2: start before the pte change, invalidate_range with the primary flush, end after it."""
    machine, mm, at, log = watched()
    CALLS[call](machine, mm, at)
    words = [each[0] for each in log.told]
    assert words[:5] == ["start", "change", "tlb", "flush", "end"]
    assert log.told[0] == ("start", at, at + 4 * PAGE)
    assert log.told[4] == ("end", at, at + 4 * PAGE)
    _, start, end = log.told[3]
    assert start <= at
    assert not end or end >= at + 4 * PAGE
    assert words.count("start") == words.count("end")


def test_fork_tells_of_the_whole_mm_once() -> None:
    _, mm, _, log = watched()
    child = mm.fork()
    assert [each for each in log.told if each[0] in ("start", "end", "flush")] == [
        ("start", 0, 0),
        ("flush", 0, 0),
        ("end", 0, 0),
    ]
    assert [each[0] for each in log.told] == ["start", "change", "tlb", "flush", "end"]
    child.exit()


def test_a_copy_on_write_fault_tells_of_its_page_without_the_table_lock() -> None:
    machine, mm, at, log = watched()
    child = mm.fork()
    log.told.clear()
    machine.cpus[0].store(at + 2 * PAGE, b"y")
    page = at + 2 * PAGE, at + 3 * PAGE
    assert log.told == [("start", *page), ("change", *page), ("tlb",), ("flush", *page), ("end", *page)]
    child.exit()


def test_truncation_tells_of_each_mapping_below_the_files_lock() -> None:
    machine, mm, _, log = watched()
    file = machine.new_file(8 * PAGE)
    va = mm.mmap(8 * PAGE, file=file, shared=True, populate=True)
    log.told.clear()
    file.truncate(4 * PAGE)
    starts = [each[1:] for each in log.told if each[0] == "start"]
    assert starts == [(va + 4 * PAGE, va + 8 * PAGE)] * 2  # A1.1: unmapped twice
    assert [each[0] for each in log.told[:5]] == ["start", "change", "tlb", "flush", "end"]
    file.close()


def test_exit_releases_while_everything_is_still_mapped_and_says_no_more() -> None:
    """A7.3: the notifiers' release is the first thing of an exit."""
    _, mm, _, log = watched()
    mm.exit()
    assert [each for each in log.told if each[0] in ("start", "end", "flush", "release")] == [("release", 16)]


def test_who_unregistered_hears_of_nothing_but_its_release() -> None:
    _, mm, at, log = watched()
    mmu_notifier_unregister(mm.struct, log)
    mm.munmap(at, PAGE)
    assert [each[0] for each in log.told if each[0] not in ("change", "tlb")] == ["release"]


# ------------------------------------------------------------------ the device
def with_device(machine: Machine, **more: Any) -> tuple[Mm, DeviceHandle, int]:
    mm = machine.new_mm()
    device = mm.attach_device(**more)
    at = mm.mmap(8 * machine.page_size, at=1 << 28, fixed=True)
    return mm, device, at


@pytest.mark.parametrize("name", ARCHES)
def test_device_and_cpu_see_each_others_bytes_also_after_fork_and_move(name: str) -> None:
    machine = made(name)
    page = machine.page_size
    mm, device, at = with_device(machine)
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    cpu.store(at + page - 2, b"both sides")
    assert device.load(at + page - 2, 10) == b"both sides"
    device.store(at + page - 2, b"back again")
    assert cpu.load(at + page - 2, 10) == b"back again"
    child = mm.fork()
    device.store(at, b"mine alone")
    cpu.switch_mm(child)
    assert cpu.load(at, 4) == bytes(4)
    assert cpu.load(at + page - 2, 4) == b"back"
    moved = mm.mremap(at, page, page, to=1 << 29)
    assert device.load(moved, 10) == b"mine alone"
    with pytest.raises(SegmentationFault):
        device.load(at, 1)
    mm.mprotect(moved, page, "r")
    assert device.load(moved, 4) == b"mine"
    with pytest.raises(SegmentationFault):
        device.store(moved, b"no")
    child.exit()
    mm.exit()
    assert not machine.kernel.secondary_mmus
    assert not machine.sanitizer.violations  # type: ignore[union-attr]
    assert machine.sanitizer.balance() == []  # type: ignore[union-attr]


def test_a_detached_device_holds_nothing_and_one_of_a_dead_mm_is_refused() -> None:
    machine = made()
    mm, device, at = with_device(machine)
    device.store(at, b"x")
    device.detach()
    assert (device.mmu.entries, mm.struct.notifiers) == ({}, [])
    device.detach()
    other = mm.attach_device()
    other.store(at, b"y")
    mm.exit()
    with pytest.raises(SegmentationFault, match="the address space is gone"):
        other.load(at, 1)


@pytest.mark.parametrize(
    ("before", "after"), [(("start",), ("end",)), ((), ("start", "end")), ((), ("start",))]
)
def test_what_was_looked_up_around_an_invalidation_is_not_entered(
    before: tuple[str, ...], after: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A8.2, count and sequence. The three overlaps of a look-up with an invalidation: it began before and ends after
    the page was found; it came and went meanwhile; it began meanwhile."""
    machine = made()
    mm, device, at = with_device(machine)
    mmu = device.mmu
    do = {"start": mmu.invalidate_range_start, "end": mmu.invalidate_range_end}
    find: Callable[[mm_struct, int, bool], int] = vars(secondary_mmu)["get_user_pages"]

    def found(of: mm_struct, addr: int, write: bool) -> int:
        pfn = find(of, addr, write)
        for word in after:
            do[word](of, at, at + PAGE)
        return pfn

    for word in before:
        do[word](mm.struct, at, at + PAGE)
    monkeypatch.setattr(secondary_mmu, "get_user_pages", found)
    mmu._enter(at, at, "load", mmu.sequence)
    assert (mmu.entries, mmu.refused) == ({}, 1)
    monkeypatch.undo()
    if mmu.invalidating:
        do["end"](mm.struct, at, at + PAGE)
    assert device.load(at, 1) == b"\0"
    assert (set(mmu.entries), mmu.refused) == ({at}, 1)


def test_only_the_range_is_forgotten() -> None:
    machine = made()
    mm, device, at = with_device(machine)
    for n in range(4):
        device.store(at + n * PAGE, b"x")
    mm.munmap(at + PAGE, 2 * PAGE)
    assert set(device.mmu.entries) == {at, at + 3 * PAGE}


# ------------------------------------------------------------------ breaches
def deaf(word: str) -> type[SecondaryMmu]:
    return type("Deaf", (SecondaryMmu,), {word: lambda self, mm, start, end: None})


@pytest.mark.parametrize(
    ("call", "invariant", "what"),
    [
        ("munmap", "INV-TLB", "leads there"),
        ("madvise", "INV-TLB", "leads there"),
        ("mprotect", "INV-PERM", "still lets stores through"),
        ("mremap", "INV-TLB", "leads to a page that is not there any more"),
    ],
)
def test_a_device_that_does_not_listen_is_caught(call: str, invariant: str, what: str) -> None:
    machine = made()
    mm, _, at = with_device(machine)
    device = deaf("invalidate_range_start")(mm.struct)
    device.invalidate_range_end = lambda mm, start, end: None  # type: ignore[method-assign]
    mmu_notifier_register(mm.struct, device)
    device.store(at, b"x")
    CALLS[call](machine, mm, at)
    violations = machine.sanitizer.violations  # type: ignore[union-attr]
    assert violations[0].invariant == invariant
    assert f"a device's entry for {at:#x} {what}" in violations[0].second.what


def test_a_device_that_stores_through_a_fork_breaks_inv_cow() -> None:
    machine = made()
    mm, _, at = with_device(machine)
    device = deaf("invalidate_range_start")(mm.struct)
    device.invalidate_range_end = lambda mm, start, end: None  # type: ignore[method-assign]
    mmu_notifier_register(mm.struct, device)
    device.store(at, b"x")
    child = mm.fork()
    assert [each.invariant for each in machine.sanitizer.violations] == ["INV-COW"]  # type: ignore[union-attr]
    child.exit()


def unmapper_against_device(seed: int, device_of: type[SecondaryMmu]) -> list[str]:
    """One CPU maps, touches and drops pages while a device stores to them; what the sanitizer says."""
    machine = made("x86_64", "timed", f"seed={seed}")
    mm, other, at = with_device(machine)
    other.detach()
    device = device_of(mm.struct)
    mmu_notifier_register(mm.struct, device)

    def dropper() -> None:
        for n in range(30):
            machine.cpus[0].store(at + n % 4 * PAGE, b"y")
            mm.madvise(at, 4 * PAGE, "dontneed")

    def user() -> None:
        for n in range(60):
            device.store(at + n % 4 * PAGE, b"x")

    machine.spawn("dropper", 0, mm, dropper)
    machine.spawn("user", 1, mm, user)
    machine.run_tasks()
    mm.exit()
    assert machine.sanitizer.balance() == []  # type: ignore[union-attr]
    return [each.invariant for each in machine.sanitizer.violations]  # type: ignore[union-attr]


class NoCount(SecondaryMmu):
    """Looks at the sequence only."""

    def may_enter(self, sequence: int) -> bool:
        return self.sequence == sequence


def test_the_protocol_is_clean_under_many_seeds_and_without_its_count_it_is_not() -> None:
    seeds = range(12)
    assert not any(unmapper_against_device(seed, SecondaryMmu) for seed in seeds)
    assert any("INV-TLB" in unmapper_against_device(seed, NoCount) for seed in seeds)


# ------------------------------------------------------------------ sleeping
def test_a_sleeping_notifier_below_a_spinning_i_mmap_lock_breaks_inv_atomic() -> None:
    machine = made("x86_64", "solo", "kernel.i_mmap_lock=spin")
    mm, device, _ = with_device(machine, sleeps=True)
    file = machine.new_file(2 * PAGE)
    va = mm.mmap(2 * PAGE, file=file, shared=True)
    device.store(va, b"x")
    with pytest.raises(AssertionError, match="sleeping in atomic context: secondary_mmu"):
        file.truncate(0)
    violation = machine.sanitizer.violations[0]  # type: ignore[union-attr]
    assert violation.invariant == "INV-ATOMIC"
    assert "may sleep (secondary_mmu) in atomic context below i_mmap_lock" in violation.second.what
    assert violation.second.place.endswith("zap_page_range")
    assert re.fullmatch(r"truncate\.py:\d+ unmap", violation.first.place)


@pytest.mark.parametrize(("lock", "sleeps"), [("mutex", True), ("mutex", False), ("spin", False)])
def test_a_truncation_may_tell_a_device_that_does_not_sleep_or_below_a_mutex(lock: str, sleeps: bool) -> None:
    machine = made("x86_64", "timed", f"kernel.i_mmap_lock={lock}")
    mm, device, _ = with_device(machine, sleeps=sleeps)
    file = machine.new_file(8 * PAGE)
    va = mm.mmap(8 * PAGE, file=file, shared=True)

    def user(va: int) -> None:
        for n in range(40):
            try:
                device.store(va + n % 8 * PAGE, b"x")
            except SegmentationFault:
                assert file.size < 8 * PAGE

    def cutter() -> None:
        for _ in range(5):
            file.truncate(PAGE)
            file.truncate(8 * PAGE)

    machine.spawn("user", 0, mm, functools.partial(user, va))
    machine.spawn("cutter", 1, mm, cutter)
    machine.run_tasks()
    file.close()
    mm.exit()
    assert not machine.sanitizer.violations  # type: ignore[union-attr]
    assert machine.sanitizer.balance() == []  # type: ignore[union-attr]
