"""For each invariant a planted breach, one step left out or done wrong, that the sanitizer names; see A0.2 and A0.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polymmu.errors import SegmentationFault
from polymmu.hardware.scans import account_ptes
from polymmu.machine import CpuHandle, Machine, Mm
from polymmu.mm import copy, pgtables, truncate, vma
from polymmu.mm.tables import find_entry, pte_lock, pte_unlock
from polymmu.mm.truncate import unmap_mapping_range
from polymmu.mm.zap import zap_page_range
from polymmu.registry import replaced
from polymmu.sanitize.progress import NoProgress
from polymmu.sanitize.sanitizer import Sanitizer
from polymmu.sanitize.violation import Violation
from polymmu.sched.locks import Spinlock

PAGE = 4096
SIZE = 8 * PAGE


def left_out() -> None:
    """A hook that does nothing."""


def nothing(*args: Any) -> None:
    """A step of the core that does nothing."""


def machine(cpus: int = 2, **hooks: Callable[..., Any]) -> Machine:
    """An x86_64 with some hooks replaced, and its referee."""
    description, arch = Machine.describe("x86_64", sets=[f"cpus={cpus}", "memory=64 MiB"])
    for name, function in hooks.items():
        arch = replaced(arch, name, function)
    return Machine(description, arch, sanitize=True)


def running(made: Machine, **mapping: Any) -> tuple[Mm, CpuHandle, int]:
    """A program on every CPU that has touched eight pages from each; the last CPU is handed out."""
    mm = made.new_mm()
    at = mm.mmap(SIZE, **mapping)
    for cpu in made.cpus:
        cpu.switch_mm(mm)
        for page in range(8):
            cpu.store(at + page * PAGE, b"x")
    return mm, made.cpus[-1], at


def frame_at(cpu: CpuHandle, at: int) -> int:
    pa = cpu.cpu.translate(at).pa
    assert pa is not None
    return pa // PAGE


def judged(made: Machine) -> Sanitizer:
    assert made.sanitizer is not None
    return made.sanitizer


def only(made: Machine) -> Violation:
    """The first violation, which all others must be consequences of."""
    judged(made).finish()
    assert judged(made).violations, "the breach was not seen"
    return judged(made).violations[0]


# ------------------------------------------------------------------ what CPUs have cached
def test_inv_tlb_a_page_freed_while_a_tlb_maps_it() -> None:
    made = machine(tlb_flush=left_out)
    mm, cpu, at = running(made)
    other = mm.mmap(PAGE)
    with made.cpus[0]:  # whose pagevec still holds the pages, and is drained
        mm.munmap(at, SIZE)
    assert not any(each.invariant == "INV-TLB" for each in judged(made).violations), "not at the instant"
    cpu.store(other, b"y")
    seen = [each for each in judged(made).violations if each.invariant == "INV-TLB"]
    assert {each.second.what.split(" runs on")[0] for each in seen} == {"CPU 1"}
    assert seen[0].first.what.startswith("frame ")
    assert "gather.py" in seen[0].first.place
    assert f"{at:#x}" in str(seen[0])


def test_inv_tlb_is_not_judged_where_the_flush_comes_before_user_code_runs() -> None:
    made = machine(cpus=1)
    mm, cpu, at = running(made)
    other = mm.mmap(PAGE)
    pages = made.kernel.frames
    pfn = frame_at(cpu, at)
    held = pages.refcount[pfn]
    pages.refcount[pfn] = 0  # as fast mode does: freed first
    made.kernel.events.pages_freed(1)
    pages.refcount[pfn] = held
    cpu.cpu.invalidate(asid=None)
    cpu.store(other, b"y")
    judged(made).finish()
    assert judged(made).violations == []


def test_inv_walk_a_table_freed_while_a_walk_cache_leads_there() -> None:
    def without_walk_caches(tlb: Any) -> None:
        for cpu in tlb.mm.kernel.cpus:
            cpu.invalidate(asid=None, walk_caches="none")

    made = machine(tlb_flush=without_walk_caches, flush_tlb_pgtables=left_out)
    mm, cpu, at = running(made)
    mm.munmap(at, SIZE)
    mm.mmap(PAGE)
    with pytest.raises(SegmentationFault):
        cpu.load(at, 1)
    assert {each.invariant for each in judged(made).violations} == {"INV-WALK"}


def test_inv_walk_a_table_freed_while_another_cpu_could_walk_through_it_without_running_a_program() -> None:
    """Its hardware may do so for as long as it has the mm loaded."""

    def without_walk_caches(tlb: Any) -> None:
        for cpu in tlb.mm.kernel.cpus:
            cpu.invalidate(asid=None, walk_caches="none")

    made = machine(tlb_flush=without_walk_caches, flush_tlb_pgtables=left_out)
    mm, _, at = running(made)
    with made.cpus[0]:
        mm.munmap(at, SIZE)
    violation = judged(made).violations[0]
    assert violation.invariant == "INV-WALK"
    assert violation.second.what.startswith("CPU 1 has the mm loaded, its walk cache leads there")


def test_inv_walk_an_entry_that_leads_out_of_memory() -> None:
    made = machine(cpus=1)
    mm, _, at = running(made)
    made.kernel.ops.populate(mm.struct, 2, at, find_entry(mm.struct, at, -2), 1 << 40)
    assert only(made).invariant == "INV-WALK"
    assert only(made).second.what == "mm 1 links table 0x10000000000, where no memory is"


def test_inv_walk_a_root_freed_while_a_cpu_has_it_loaded() -> None:
    made = machine(cpus=1)
    mm, _, _ = running(made)
    kernel = made.kernel
    # Nor lazy: x86 lets a lazy CPU go over to the kernel's own tables by itself.
    made.kernel.ops = replaced(replaced(made.arch, "switch_mm", left_out), "enter_lazy_tlb", left_out).ops
    mm.exit()
    violation = only(made)
    assert violation.invariant == "INV-WALK"
    assert violation.first.what.startswith("root table ")
    assert kernel.cpus[0].index == violation.second.cpu


def test_inv_walk_a_lockless_walker_that_reads_a_freed_table() -> None:
    made = machine()
    mm, _, at = running(made)
    upper, lower = find_entry(mm.struct, at, -2), find_entry(mm.struct, at)
    tell = made.kernel.events.lockless_read
    tell(mm.struct, 1, -2, upper, lower & -PAGE)
    tell(mm.struct, 1, -1, lower, -1)
    assert judged(made).violations == []
    tell(mm.struct, 1, -2, upper, lower & -PAGE)
    mm.munmap(at, SIZE)
    tell(mm.struct, 1, -1, lower, -1)
    assert only(made).invariant == "INV-WALK"
    assert "lockless walker reads table" in only(made).second.what


def test_inv_perm_a_right_taken_back_but_not_from_tlbs() -> None:
    made = machine(flush_tlb_range=left_out)
    mm, cpu, at = running(made)
    mm.mprotect(at, SIZE, "r")
    cpu.load(at, 1)
    violation = only(made)
    assert violation.invariant == "INV-PERM"
    assert violation.second.what == f"CPU 1 runs on with the old entry for {at:#x}"
    assert "protect.py" in violation.first.place


def test_inv_cow_fork_without_the_parents_flush() -> None:
    made = machine(flush_tlb_mm=left_out)
    mm, cpu, _ = running(made)
    mm.fork()
    cpu.store(mm.mappings()[0][0], b"y")
    assert only(made).invariant == "INV-COW"


def test_inv_cow_a_replaced_page_that_other_cpus_still_read() -> None:
    made = machine()
    made.kernel.ops = replaced(
        made.arch,
        "ptep_clear_flush",
        lambda vma, addr, ptep, n: made.arch.ops.ptep_get_and_clear(vma.vm_mm, addr, ptep, n, None),
    ).ops
    mm, cpu, at = running(made)
    mm.fork()
    cpu.load(at, 1)
    made.cpus[0].store(at, b"y")
    cpu.load(at + PAGE, 1)
    assert only(made).invariant == "INV-COW"


def test_inv_cow_a_page_that_two_mms_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    made = machine(set_wrprotect=left_out)
    mm, _, _ = running(made)
    monkeypatch.setattr(copy, "_as_childs", lambda kernel, values, private: values)
    mm.fork()
    assert "INV-COW" in {each.invariant for each in judged(made).violations}


# ------------------------------------------------------------------ what tables and counters say
def test_inv_trunc_a_page_leaves_the_cache_while_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    made = machine()
    file = made.new_file(SIZE)
    running(made, file=file, shared=True)
    monkeypatch.setattr(truncate, "unmap_mapping_range", nothing)
    with pytest.raises(AssertionError):
        file.truncate(0)
    assert only(made).invariant == "INV-TRUNC"
    assert only(made).first.what == "page 0 leaves the cache"


def test_inv_trunc_private_copies_beyond_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def cache_only(kernel: Any, mapping: Any, start: int, length: int, even_cows: bool) -> None:
        unmap_mapping_range(kernel, mapping, start, length, False)

    made = machine()
    file = made.new_file(SIZE)
    running(made, file=file)
    monkeypatch.setattr(truncate, "unmap_mapping_range", cache_only)
    file.truncate(PAGE)
    assert only(made).invariant == "INV-TRUNC"
    assert "beyond the end" in only(made).second.what


def test_inv_dirty_a_dirty_bit_lost_on_the_way() -> None:
    made = machine()
    ops = made.arch.ops
    dirty = made.kernel.shape.pte.dirty
    assert dirty is not None

    def forgetful(mm: Any, addr: int, ptep: int, n: int, tlb: Any) -> Any:
        return ops.ptep_get_and_clear(mm, addr, ptep, n, tlb) & np.uint64(~dirty.mask & (1 << 64) - 1)

    made.kernel.ops = replaced(made.arch, "ptep_get_and_clear", forgetful).ops
    file = made.new_file(SIZE)
    mm, cpu = made.new_mm(), made.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(SIZE, file=file, shared=True)
    cpu.load(at, 1)
    cpu.store(at, b"x")  # the entry may be written already: hardware alone knows of this store
    mm.mprotect(at, SIZE, "r")
    violation = only(made)
    assert violation.invariant == "INV-DIRTY"
    assert "was stored to" in violation.first.what


def test_inv_ref_a_pte_that_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        copy,
        "account_ptes",
        lambda values, table, masks, count, delta, out: account_ptes(values, table, masks, count, 0, out),
    )
    made = machine()
    mm, _, _ = running(made)
    mm.fork()
    assert only(made).invariant == "INV-REF"
    assert "is mapped by 2 ptes and counts 1" in only(made).second.what


def test_inv_ref_an_rss_that_drifts() -> None:
    made = machine()
    mm, _, at = running(made)
    mm.struct.anon_rss += 1
    mm.mprotect(at, PAGE, "r")
    assert only(made).invariant == "INV-REF"
    assert "counts 9 anonymous and 0 file pages, its tables map 8 and 0" in only(made).second.what


def test_inv_rmap_a_vma_its_file_does_not_know() -> None:
    made = machine()
    file = made.new_file(SIZE)
    mm = made.new_mm()
    at = mm.mmap(SIZE, file=file, shared=True)
    vma.unlink_file_vma(mm.struct.vmas[at])
    assert only(made).invariant == "INV-RMAP"


def test_inv_ptall_a_table_that_no_vma_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgtables.VmaList, "free_pgd_range", nothing)
    made = machine()
    mm, _, at = running(made)
    mm.munmap(at, SIZE)
    assert only(made).invariant == "INV-PTALL"


# ------------------------------------------------------------------ locks, sleep, progress
def test_inv_lock_an_order_turned_round_by_an_arch() -> None:
    made = machine()
    lock = Spinlock(made.kernel.sched, "hash_lock")
    ops = made.arch.ops

    def set_pte(mm: Any, addr: int, ptep: int, values: Any) -> None:
        lock.lock()
        ops.set_pte(mm, addr, ptep, values)
        lock.unlock()

    def flush_cache_range(vma: Any, start: int, end: int) -> None:
        lock.lock()
        ptep = find_entry(vma.vm_mm, start)
        pte_lock(vma.vm_mm, ptep)
        pte_unlock(vma.vm_mm, ptep)
        lock.unlock()

    arch = replaced(made.arch, "set_pte", set_pte)
    made.kernel.ops = replaced(arch, "flush_cache_range", flush_cache_range).ops
    mm, _, at = running(made)
    mm.mprotect(at, SIZE, "r")
    violation = only(made)
    assert violation.invariant == "INV-LOCK"
    assert "pte_lock inside hash_lock, but hash_lock inside pte_lock" in str(violation)
    assert violation.first.place.endswith("set_pte")
    assert violation.second.place.endswith("flush_cache_range")


def test_inv_atomic_an_arch_that_sleeps_below_the_table_lock() -> None:
    made = machine()
    ops = made.arch.ops

    def set_pte(mm: Any, addr: int, ptep: int, values: Any) -> None:
        mm.kernel.sched.might_sleep("waiting for the hash table")
        ops.set_pte(mm, addr, ptep, values)

    made.kernel.ops = replaced(made.arch, "set_pte", set_pte).ops
    with pytest.raises(AssertionError, match="sleeping in atomic context"):
        running(made)
    violation = judged(made).violations[0]
    assert violation.invariant == "INV-ATOMIC"
    assert "below pte_lock" in violation.second.what


def test_inv_prog_a_truncation_that_forgets_how_far_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    made = machine()
    sched = made.kernel.sched
    file = made.new_file(512 * PAGE)
    mm = made.new_mm()
    mm.mmap(512 * PAGE, file=file, shared=True, populate=True)

    def forgets(vma: Any, start: int, length: int, details: Any) -> int:
        zap_page_range(vma, start, length, details)
        return start

    monkeypatch.setattr(truncate, "zap_page_range", forgets)
    monkeypatch.setattr(type(sched), "need_lockbreak", lambda self, lock: True)
    with pytest.raises(NoProgress):
        file.truncate(0)
    assert only(made).invariant == "INV-PROG"


# ------------------------------------------------------------------ what a violation says
def test_a_violation_is_one_line_and_a_mapping_for_the_report() -> None:
    made = machine(flush_tlb_range=left_out)
    mm, cpu, at = running(made)
    mm.mprotect(at, SIZE, "r")
    cpu.load(at, 1)
    said = made.report().to_dict()["violations"][0]
    assert said["invariant"] == "INV-PERM"
    assert said["text"].startswith("INV-PERM: CPU 1 runs on with the old entry for ")
    assert "\n" not in said["text"]
    for event in (said["first"], said["second"]):
        assert set(event) == {"what", "cpu", "task", "time", "place"}


def test_the_balance_names_what_is_left() -> None:
    made = machine()
    file = made.new_file(SIZE)
    mm, _, _ = running(made, file=file, shared=True)
    made.new_mm().exit()
    left = judged(made).balance()
    assert "1 mms left" in left
    assert "1 vmas left" in left
    assert "1 files left" in left
    assert any(line.endswith("frames are held that were not") for line in left)
    mm.exit()
    file.close()
    assert judged(made).balance() == []


def test_the_balance_names_a_lost_page() -> None:
    made = machine()
    mm, _, at = running(made)
    pfn = frame_at(made.cpus[0], at)
    made.kernel.frames.refcount[pfn] += 1
    mm.exit()
    assert judged(made).balance() == ["1 frames are held that were not"]


def test_without_a_sanitizer_nobody_is_told() -> None:
    description, arch = Machine.describe("x86_64", sets=["cpus=1", "memory=64 MiB"])
    made = Machine(description, arch)
    assert made.sanitizer is None
    assert made.kernel.sched.lockdep is None
    assert made.kernel.cpus[0].to_user is None
    assert made.report().to_dict()["violations"] == []
