"""Planted breaches where other architectures, huge pages, drivers and loops make a difference; see A0.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from polymmu.machine import CpuHandle, FileHandle, Machine, Mm
from polymmu.mm import hugetlb, unmap, vma, zap
from polymmu.mm.tables import find_entry
from polymmu.registry import replaced
from polymmu.sanitize.progress import NoProgress
from polymmu.sanitize.violation import Violation
from tests.sanitize.random_work import Device

HUGE = 2 << 20


def machine(name: str = "x86_64", **hooks: Callable[..., Any]) -> Machine:
    """A machine of two CPUs with some hooks replaced, and its referee."""
    description, arch = Machine.describe(name, sets=["cpus=2", "memory=64 MiB"])
    for hook, function in hooks.items():
        arch = replaced(arch, hook, function)
    return Machine(description, arch, sanitize=True)


def running(made: Machine) -> tuple[Mm, CpuHandle]:
    """A program on both CPUs; the last one is handed out."""
    mm = made.new_mm()
    for cpu in made.cpus:
        cpu.switch_mm(mm)
    return mm, made.cpus[-1]


def found(made: Machine) -> list[Violation]:
    assert made.sanitizer is not None
    made.sanitizer.finish()
    return made.sanitizer.violations


def only(made: Machine) -> Violation:
    """The first violation, which all others must be consequences of; complete in what it says."""
    violations = found(made)
    assert violations, "the breach was not seen"
    for event in (violations[0].first, violations[0].second):
        assert event.what
        assert ".py:" in event.place
        assert event.task == "solo"
    return violations[0]


# ------------------------------------------------------------------ storage keys
@pytest.mark.parametrize("name", ["s390", "s390-31"])
def test_inv_dirty_a_storage_key_that_nobody_asks(name: str) -> None:
    made = machine(name, page_test_and_clear_dirty=lambda kernel, pfn: False)
    file = made.new_file(4 * made.page_size)
    mm, cpu = running(made)
    at = mm.mmap(4 * made.page_size, file=file, shared=True)
    cpu.load(at, 1)  # so that the store needs no fault: the key alone knows of it
    cpu.store(at, b"x")
    assert found(made) == [], "the key still has it"
    mm.munmap(at, 4 * made.page_size)
    violation = only(made)
    assert violation.invariant == "INV-DIRTY"
    assert "was stored to" in violation.first.what


# ------------------------------------------------------------------ fragments
def two_tables_in_a_frame(made: Machine, mm: Mm) -> tuple[int, int]:
    """Two pages far enough apart for a page table each, both tables in one frame."""
    span = mm.struct.layout.span_of(mm.struct.layout.pmd_level)
    base = 1 << 28
    places = base, base + span
    for at in places:
        mm.mmap(made.page_size, at=at, fixed=True)
        made.cpus[0].store(at, b"x")
    first, second = (find_entry(mm.struct, at) // made.page_size for at in places)
    assert first == second
    return places


def test_inv_walk_a_lockless_walker_in_a_fragment_whose_frame_lives_on() -> None:
    made = machine("s390")
    mm, _ = running(made)
    at, _ = two_tables_in_a_frame(made, mm)
    pfn = find_entry(mm.struct, at) // made.page_size
    upper, lower = find_entry(mm.struct, at, -2), find_entry(mm.struct, at)
    size = mm.struct.layout.table_bytes_of(mm.struct.layout.pte_level)
    tell = made.kernel.events.lockless_read
    tell(mm.struct, 1, -2, upper, lower & -size)
    mm.munmap(at, made.page_size)
    assert made.kernel.frames.refcount[pfn] > 0
    tell(mm.struct, 1, -1, lower, -1)
    assert only(made).invariant == "INV-WALK"


def test_inv_walk_the_neighbour_of_a_freed_fragment_may_be_walked() -> None:
    made = machine("s390")
    mm, _ = running(made)
    at, other = two_tables_in_a_frame(made, mm)
    upper, lower = find_entry(mm.struct, other, -2), find_entry(mm.struct, other)
    size = mm.struct.layout.table_bytes_of(mm.struct.layout.pte_level)
    tell = made.kernel.events.lockless_read
    tell(mm.struct, 1, -2, upper, lower & -size)
    mm.munmap(at, made.page_size)
    tell(mm.struct, 1, -1, lower, -1)
    assert found(made) == []


def test_inv_walk_a_fragment_that_a_walk_cache_still_leads_to() -> None:
    made = machine("s390", tlb_flush=lambda: None)
    mm, cpu = running(made)
    at, other = two_tables_in_a_frame(made, mm)
    cpu.load(at, 1)
    mm.munmap(at, made.page_size)
    cpu.load(other, 1)
    violation = only(made)
    assert violation.invariant == "INV-WALK"
    assert violation.first.what.startswith("table 0x")
    assert f"its walk cache leads there for {at & -(1 << 20):#x}" in violation.second.what


# ------------------------------------------------------------------ rmap
def test_inv_rmap_an_anonymous_page_without_an_anon_vma(monkeypatch: pytest.MonkeyPatch) -> None:
    made = machine()
    mm, cpu = running(made)
    at = mm.mmap(made.page_size)
    cpu.store(at, b"x")
    vma.unlink_anon_vma(mm.struct.vmas[at])
    violation = only(made)
    assert violation.invariant == "INV-RMAP"
    assert f"an anonymous page, and its vma has no anon_vma: {at:#x}" in violation.second.what


def test_inv_rmap_a_family_that_lists_a_vma_which_is_gone() -> None:
    made = machine()
    mm, cpu = running(made)
    at = mm.mmap(made.page_size)
    cpu.store(at, b"x")
    gone = mm.struct.vmas[at]
    family = mm.fork().struct.vmas[at].anon_vma
    assert family is not None
    mm.munmap(at, made.page_size)
    family.root.vmas[gone.slot] = gone
    assert "lists a vma that is not of its family" in only(made).second.what
    del family.root.vmas[gone.slot]


def test_inv_rmap_a_family_that_is_free_and_has_vmas() -> None:
    made = machine()
    mm, cpu = running(made)
    at = mm.mmap(made.page_size)
    cpu.store(at, b"x")
    anon = mm.struct.vmas[at].anon_vma
    assert anon is not None
    anon.references -= 1
    assert "the anon_vma of the vma at" in only(made).second.what


# ------------------------------------------------------------------ huge pages
def huge_file(made: Machine) -> tuple[FileHandle, Mm, int]:
    """A file of two huge pages, mapped shared, both stored to."""
    file = made.new_file(2 * HUGE, huge=HUGE)
    mm, cpu = running(made)
    at = mm.mmap(2 * HUGE, file=file, shared=True)
    for page in range(2):
        cpu.store(at + page * HUGE, b"x")
    return file, mm, at


def test_huge_pages_in_order_are_not_accused() -> None:
    made = machine()
    file, mm, _ = huge_file(made)
    private = mm.mmap(HUGE, huge=HUGE)
    made.cpus[0].store(private, b"x")
    child = mm.fork()
    made.cpus[0].store(private, b"y")
    file.truncate(HUGE)
    child.exit()
    assert found(made) == []


def test_inv_ref_a_huge_page_that_rss_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    made = machine()
    monkeypatch.setattr(hugetlb, "count_rss", lambda mm, anon, pages: None)
    _, mm, _ = huge_file(made)
    assert only(made).invariant == "INV-REF"
    assert f"mm {mm.struct.serial} counts 0 anonymous and 0 file pages, its tables map 0 and 1024" in str(
        only(made)
    )


def test_inv_trunc_a_huge_page_beyond_the_end() -> None:
    made = machine()
    file, _, at = huge_file(made)
    file.file.size = HUGE
    assert only(made).invariant == "INV-TRUNC"
    assert f"a huge page beyond the end of the file is mapped: {at + HUGE:#x}" in str(only(made))


def test_inv_cow_a_huge_page_that_stays_writable_after_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    made = machine()
    mm, cpu = running(made)
    at = mm.mmap(HUGE, huge=HUGE)
    cpu.store(at, b"x")
    set_huge_pte = made.kernel.ops.set_huge_pte
    write = made.kernel.shape.huge_formats[HUGE].write

    def keeps(mm: Any, addr: int, ptep: int, value: int, size: int) -> None:
        set_huge_pte(mm, addr, ptep, write.set(value), size)

    made.kernel.ops = replaced(made.arch, "set_huge_pte", keeps).ops
    mm.fork()
    assert {each.invariant for each in found(made)} == {"INV-COW"}


# ------------------------------------------------------------------ a driver's frames
def test_inv_tlb_a_drivers_frame_freed_while_it_is_mapped() -> None:
    made = machine()
    device = Device(made.kernel)
    mm, _ = running(made)
    at = mm.mmap(4 * made.page_size, file=FileHandle(made, device.file), shared=True)
    assert found(made) == []
    device.close()  # nobody has touched it: no TLB tells
    violation = only(made)
    assert violation.invariant == "INV-TLB"
    assert f"a driver's page is mapped, and free: {at:#x}" in violation.second.what


# ------------------------------------------------------------------ loops
def test_inv_prog_a_munmap_that_begins_again_whenever_it_gave_way(monkeypatch: pytest.MonkeyPatch) -> None:
    made = machine()
    mm, _ = running(made)
    at = mm.mmap(64 * made.page_size, populate=True)
    unmap_vmas = zap.unmap_vmas

    def starts_over(*arguments: Any) -> None:
        while True:
            unmap_vmas(*arguments)

    monkeypatch.setattr(unmap, "unmap_vmas", starts_over)
    with pytest.raises(NoProgress):
        mm.munmap(at, 64 * made.page_size)
    violation = only(made)
    assert violation.invariant == "INV-PROG"
    assert violation.first.what == "munmap begins"
    assert "munmap visits the same entries again and again (zap)" in violation.second.what


def test_inv_prog_a_fork_that_copies_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    made = machine()
    mm, _ = running(made)
    mm.mmap(64 * made.page_size, populate=True)
    copy = "polymmu.mm.fork.copy_page_range"

    def starts_over(dst: Any, src: Any, vma: Any) -> None:
        while True:
            for each in src.vmas.values():
                made.kernel.events.entries_visited(
                    src, "copy", (each.vm_end - each.vm_start) // made.page_size
                )

    monkeypatch.setattr(copy, starts_over)
    with pytest.raises(NoProgress):
        mm.fork()
    assert only(made).invariant == "INV-PROG"
