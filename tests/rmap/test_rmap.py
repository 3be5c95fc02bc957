"""From a page to its ptes: walks against all tables (INV-RMAP), page_referenced (A6.2), try_to_unmap (A6.1 steps 1-2),
anon_vmas and their locking (A8.3)."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest

from polymmu.errors import SyscallError, UserMistake
from polymmu.hooks import ArchKernel
from polymmu.machine import Machine
from polymmu.mm import anon_vma as anon_vmas
from polymmu.mm import fork, rmap, vma
from polymmu.mm.anon_vma import page_anon_vma, put_anon_vma
from polymmu.mm.fork import dup_mm
from polymmu.mm.frames import get_page, put_page
from polymmu.mm.mm import activate, mmput
from polymmu.mm.mmap import do_mmap, do_munmap
from polymmu.mm.mprotect import do_mprotect
from polymmu.mm.mremap import do_mremap
from polymmu.mm.pagecache import new_file, put_file
from polymmu.mm.rmap import Unmapped, page_lock_anon_vma, page_referenced, try_to_unmap
from polymmu.registry import replaced
from polymmu.structs import PG_DIRTY, PG_REFERENCED, VM_READ, VM_SHARED, mm_struct
from tests.mm.toy import ARCHES, PAGE, PUD, RW, TOY, boot, frame_at, load, new_mm, pte_at, state, store
from tests.rmap.brute import all_mappings, walked

NAMES = ("x86_64", "x86", "x86-pae", "ia64", "ppc64", "sparc64", "s390", "s390-31")
SWAPPED = {"toy": 0x1240, "odd": 0x1243 | 0x400}
"""An entry that maps no page, on each of the two small architectures."""


# ---------------------------------------------------------------------- every pte is found
def random_work(machine: Machine, seed: int, steps: int = 90) -> None:
    """Programs of one family map, store, fork, split, merge, move, drop and truncate; nothing is taken down."""
    chance = random.Random(seed)
    page = machine.page_size
    cpu = machine.cpus[0]
    file = machine.new_file(64 * page)
    programs = [machine.new_mm()]
    for _ in range(steps):
        mm = chance.choice(programs)
        cpu.switch_mm(mm)
        areas = [(start, end) for start, end, rights in mm.mappings() if "w" in rights]
        start, end = chance.choice(areas) if areas else (0, 0)
        pages = (end - start) // page
        at = start + chance.randrange(pages) * page if pages else 0
        what = chance.choice(
            ("map", "file", "store", "store", "store", "fork", "protect", "move", "drop", "cut")
        )
        try:
            if what == "map":
                mm.mmap(chance.randrange(1, 9) * page, "rw")
            elif what == "file":
                first = chance.randrange(32)
                mm.mmap(8 * page, "rw", file=file, offset=first * page, shared=chance.random() < 0.5)
            elif what == "cut":
                file.truncate(chance.randrange(65) * page)
                file.truncate(64 * page)
            elif what == "fork" and len(programs) < 6:
                programs.append(mm.fork())
            elif pages and what == "store":
                for n in range(chance.randrange(1, 4)):
                    if at + n * page < end:
                        cpu.store(at + n * page, b"x")
            elif pages and what == "protect":
                mm.mprotect(at, page, "r")
                if chance.random() < 0.5:
                    mm.mprotect(at, page, "rw")
            elif pages and what == "move":
                mm.mremap(at, end - at, end - at + page * chance.randrange(3), may_move=True)
            elif pages and what == "drop":
                mm.munmap(at, page)
        except SyscallError:
            pass


TREES_ON = [*((name, "interval") for name in NAMES), ("x86", "prio"), ("ppc64", "prio"), ("x86_64", "list")]


@pytest.mark.parametrize(("name", "tree"), TREES_ON)
def test_a_walk_from_each_page_finds_exactly_the_ptes_that_map_it(name: str, tree: str) -> None:
    machine = Machine.from_file(name, sets=["memory=64 MiB", f"kernel.rmap_tree={tree}"], sanitize=True)
    random_work(machine, seed=1)
    kernel = machine.kernel
    mappings = all_mappings(kernel)
    assert len(mappings) > 20
    assert max(map(len, mappings.values())) > 1
    for pfn, places in mappings.items():
        assert walked(kernel, pfn) == places
    assert machine.sanitizer is not None
    machine.sanitizer.finish()
    assert not machine.sanitizer.violations


# ---------------------------------------------------------------------- families
def anonymous(kernel: ArchKernel, pages: int = 4) -> tuple[mm_struct, int]:
    """A program that stored to each page of a mapping."""
    mm = new_mm(kernel)
    at = do_mmap(mm, PUD, pages * PAGE, RW, fixed=True)
    for n in range(pages):
        store(mm, at + n * PAGE)
    return mm, at


def test_a_page_names_its_anon_vma_and_index_from_its_first_mapping_until_it_is_freed() -> None:
    kernel = boot()
    mm, at = anonymous(kernel)
    pfn = frame_at(mm, at + PAGE)
    area = mm.vmas[at]
    assert page_anon_vma(kernel, pfn) is area.anon_vma
    assert kernel.frames.index[pfn] == at // PAGE + 1
    do_munmap(mm, at, 4 * PAGE)
    assert kernel.frames.mapping[pfn] == kernel.frames.index[pfn] == 0
    assert kernel.anon_vmas.live == 0


def test_a_grandchilds_mapping_is_found_behind_its_parents() -> None:
    kernel = boot()
    mm, at = anonymous(kernel)
    child = dup_mm(mm)
    grandchild = dup_mm(child)
    pfn = frame_at(mm, at)
    order: list[int] = []
    rmap.rmap_walk(kernel, pfn, lambda area, addr, ptep: not order.append(area.vm_mm.slot))  # type: ignore[func-returns-value]
    assert order == [mm.slot, child.slot, grandchild.slot]


def test_a_family_outlives_its_eldest_and_is_freed_with_its_last() -> None:
    kernel = boot()
    before = state(kernel)
    mm, at = anonymous(kernel)
    child = dup_mm(mm)
    pfn = frame_at(mm, at)
    mmput(mm)
    assert walked(kernel, pfn) == [(child.slot, at)]
    assert kernel.anon_vmas.live == 2  # the child's and the root
    mmput(child)
    assert state(kernel) == before


def test_a_moved_page_keeps_its_index_and_is_found_in_its_new_place() -> None:
    kernel = boot()
    mm, at = anonymous(kernel)
    pfn = frame_at(mm, at + 2 * PAGE)
    new = do_mremap(mm, at + 2 * PAGE, 2 * PAGE, 2 * PAGE, new_addr=2 * PUD)
    assert walked(kernel, pfn) == [(mm.slot, new)]
    assert kernel.frames.index[pfn] == at // PAGE + 2


def test_split_and_merged_vmas_stay_in_one_family() -> None:
    kernel = boot()
    mm, at = anonymous(kernel)
    pfns = [frame_at(mm, at + n * PAGE) for n in range(4)]
    do_mprotect(mm, at + PAGE, PAGE, VM_READ)
    assert len(mm.vmas) == 3
    assert [walked(kernel, pfn) for pfn in pfns] == [[(mm.slot, at + n * PAGE)] for n in range(4)]
    do_mprotect(mm, at + PAGE, PAGE, RW)
    assert len(mm.vmas) == 1
    assert [walked(kernel, pfn) for pfn in pfns] == [[(mm.slot, at + n * PAGE)] for n in range(4)]


# ---------------------------------------------------------------------- the file's side, A7.4, A7.5
def test_a_split_enters_the_new_vma_first_and_moves_the_boundary_of_the_old_one_out_of_the_tree() -> None:
    kernel = boot()
    file = new_file(kernel, "f", 8 * PAGE)
    mm = new_mm(kernel)
    at = do_mmap(mm, PUD, 8 * PAGE, RW, fixed=True, file=file)
    store(mm, at)
    area = mm.vmas[at]
    known = file.mapping.i_mmap
    log: list[str] = []

    class Logged:
        def __getattr__(self, name: str) -> Any:
            return getattr(known, name)

        def insert(self, each: Any) -> None:
            log.append(f"insert {'old' if each is area else 'new'}")
            assert file.mapping.i_mmap_lock.held
            known.insert(each)

        def remove(self, each: Any) -> None:
            log.append(f"remove {'old' if each is area else 'new'}")
            assert (each.vm_start, each.vm_end) == (at, at + 8 * PAGE)
            assert area.anon_vma.root.lock.held
            known.remove(each)

    file.mapping.i_mmap = Logged()
    vma.split_vma(area, at + 4 * PAGE, new_below=False)
    assert log == ["insert new", "remove old", "insert old"]
    assert not file.mapping.i_mmap_lock.held


@pytest.mark.parametrize("tree", ["interval", "prio", "list"])
def test_a_forked_childs_vma_is_met_after_its_parents(tree: str) -> None:
    kernel = boot(rmap_tree=tree)
    file = new_file(kernel, "f", 8 * PAGE)
    mm = new_mm(kernel)
    do_mmap(mm, PUD, 8 * PAGE, RW, fixed=True, file=file)
    do_mmap(mm, 2 * PUD, 8 * PAGE, RW, fixed=True, file=file)
    first = dup_mm(mm)
    second = dup_mm(mm)
    grandchild = dup_mm(first)
    met = [area.vm_mm.slot for area in file.mapping.i_mmap]
    assert len(met) == 8
    for parent, child in ((mm, first), (mm, second), (first, grandchild)):
        seen = [slot for slot in met if slot in (parent.slot, child.slot)]
        assert seen[0] == parent.slot


@pytest.mark.parametrize("lock", ["mutex", "spin"])
@pytest.mark.parametrize("of_file", [False, True])
def test_a_move_holds_the_locks_of_the_walks_while_ptes_are_nowhere_and_not_while_it_makes_tables(
    of_file: bool, lock: str
) -> None:
    """Making tables may sleep, which below a spinlock is an error of its own."""
    moved: list[bool] = []

    def ptep_get_and_clear(mm: mm_struct, addr: int, ptep: int, n: int, tlb: Any) -> Any:
        area = mm.vmas.get(PUD)
        if tlb is None and area is not None:
            moved.append(
                area.anon_vma.root.lock.held and (not of_file or area.vm_file.mapping.i_mmap_lock.held)
            )
        return TOY.ops.ptep_get_and_clear(mm, addr, ptep, n, tlb)

    kernel = boot(replaced(TOY, "ptep_get_and_clear", ptep_get_and_clear), i_mmap_lock=lock)
    file = new_file(kernel, "f", 8 * PAGE) if of_file else None
    mm = new_mm(kernel)
    at = do_mmap(mm, PUD, 8 * PAGE, RW, fixed=True, file=file)
    for n in range(8):
        store(mm, at + n * PAGE)
    do_mremap(mm, at, 8 * PAGE, 8 * PAGE, new_addr=5 * PUD + PAGE)
    assert moved
    assert all(moved)
    assert not mm.vmas[5 * PUD + PAGE].anon_vma.root.lock.held


# ---------------------------------------------------------------------- page_referenced, A6.2
@pytest.mark.parametrize("arch", sorted(ARCHES))
def test_each_use_since_the_last_question_counts_once(arch: str) -> None:
    kernel = boot(ARCHES[arch])
    mm, at = anonymous(kernel)
    pfn = frame_at(mm, at)
    assert page_referenced(kernel, pfn) == 1
    assert page_referenced(kernel, pfn) == 0
    load(mm, at)  # the TLB was flushed: the walker marks the pte again
    assert page_referenced(kernel, pfn) == 1
    kernel.frames.flags[pfn] |= PG_REFERENCED
    assert page_referenced(kernel, pfn) == 1
    assert page_referenced(kernel, pfn) == 0


def test_both_users_of_a_shared_page_count() -> None:
    kernel = boot()
    mm, at = anonymous(kernel)
    pfn = frame_at(mm, at)
    child = dup_mm(mm)
    page_referenced(kernel, pfn)
    for each in (mm, child):
        activate(kernel, kernel.cpus[0], each)
        load(each, at)
    assert page_referenced(kernel, pfn) == 2


def test_the_walk_ends_with_the_last_pte_that_maps_the_page() -> None:
    kernel = boot()
    file = new_file(kernel, "f", 8 * PAGE)
    mm = new_mm(kernel)
    for n in range(1, 9):
        do_mmap(mm, n * PUD, 8 * PAGE, RW | VM_SHARED, fixed=True, file=file)
    load(mm, PUD)
    pfn = frame_at(mm, PUD)
    before = file.mapping.i_mmap.visited
    page_referenced(kernel, pfn)
    once = file.mapping.i_mmap.visited - before
    for n in range(2, 9):
        load(mm, n * PUD)
    page_referenced(kernel, pfn)
    assert once < 8 <= file.mapping.i_mmap.visited - before - once


# ---------------------------------------------------------------------- try_to_unmap
@pytest.mark.parametrize("tree", ["interval", "prio", "list"])
@pytest.mark.parametrize("arch", sorted(ARCHES))
def test_a_page_of_a_file_leaves_every_pte_and_comes_back_with_what_was_written(arch: str, tree: str) -> None:
    kernel = boot(ARCHES[arch], rmap_tree=tree)
    before = state(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    mm = new_mm(kernel)
    at = do_mmap(mm, PUD, 8 * PAGE, RW | VM_SHARED, fixed=True, file=file)
    again = do_mmap(mm, 2 * PUD, 4 * PAGE, VM_READ | VM_SHARED, fixed=True, file=file, pgoff=2)
    elsewhere = do_mmap(mm, 3 * PUD, PAGE, VM_READ | VM_SHARED, fixed=True, file=file, pgoff=5)
    store(mm, at + 2 * PAGE, b"written")
    load(mm, again)
    load(mm, elsewhere)
    child = dup_mm(mm)
    activate(kernel, kernel.cpus[0], child)
    load(child, at + 2 * PAGE)
    pfn = frame_at(mm, at + 2 * PAGE)
    other = frame_at(mm, elsewhere)
    assert kernel.frames.mapcount[pfn] == 3
    kernel.frames.flags[pfn] &= ~PG_DIRTY
    rss = mm.file_rss
    assert try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_SUCCESS
    assert kernel.frames.mapcount[pfn] == 0
    assert kernel.frames.flags[pfn] & PG_DIRTY  # handed over by the pte
    assert all_mappings(kernel).keys() == {other}
    assert mm.file_rss == rss - 2
    assert load(child, at + 2 * PAGE, 7) == b"written"
    mmput(child)
    mmput(mm)
    put_file(kernel, file)
    assert state(kernel) == before


@pytest.mark.parametrize("lock", ["mutex", "spin"])
@pytest.mark.parametrize("arch", sorted(ARCHES))
def test_an_anonymous_page_leaves_its_entry_in_each_pte(arch: str, lock: str) -> None:
    kernel = boot(ARCHES[arch], i_mmap_lock=lock)
    mm, at = anonymous(kernel)
    child = dup_mm(mm)
    pfn = frame_at(mm, at)
    get_page(kernel, pfn)
    held = kernel.frames.refcount[pfn]
    assert try_to_unmap(kernel, pfn, SWAPPED[arch]) is Unmapped.SWAP_SUCCESS
    assert [pte_at(each, at) for each in (mm, child)] == [SWAPPED[arch]] * 2
    assert [each.anon_rss for each in (mm, child)] == [3, 3]
    assert kernel.frames.refcount[pfn] == held - 2
    assert kernel.frames.flags[pfn] & PG_DIRTY
    put_page(kernel, pfn)


def test_no_tlb_knows_a_page_when_its_reference_goes() -> None:
    """A0.3: clear, flush, then drop."""
    kernel = boot(cpus=2)
    mm, at = anonymous(kernel)
    activate(kernel, kernel.cpus[1], mm)
    mm.last_cpu = 1
    load(mm, at)
    assert try_to_unmap(kernel, frame_at(mm, at), SWAPPED["toy"]) is Unmapped.SWAP_SUCCESS
    for cpu in kernel.cpus:
        assert cpu.translate(at).pa is None


def test_a_page_that_a_walk_cannot_find_may_be_found_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = boot()
    mm, at = anonymous(kernel)
    pfn = frame_at(mm, at)
    monkeypatch.setattr(rmap, "page_check_address", lambda area, addr, pfn, *, sync: -1)
    assert try_to_unmap(kernel, pfn, SWAPPED["toy"]) is Unmapped.SWAP_AGAIN
    assert frame_at(mm, at) == pfn


# ---------------------------------------------------------------------- A8.3
class ScriptedLock:
    """A mutex that somebody holds: who waits for it gets it after ``meanwhile``."""

    spins = False
    held = False

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile
        self.log: list[str] = []

    def trylock(self) -> bool:
        self.log.append("trylock")
        return False

    def lock(self) -> None:
        self.log.append("lock")
        self.meanwhile()

    def unlock(self) -> None:
        self.log.append("unlock")


def contended(kernel: ArchKernel, pfn: int, meanwhile: Callable[[], None]) -> ScriptedLock:
    anon: Any = page_anon_vma(kernel, pfn)
    anon.lock = lock = ScriptedLock(meanwhile)
    return lock


def test_a_page_that_nothing_maps_gives_no_anon_vma_though_it_names_one() -> None:
    kernel = boot()
    mm, at = anonymous(kernel)
    pfn = frame_at(mm, at)
    get_page(kernel, pfn)
    do_munmap(mm, at, 4 * PAGE)
    assert page_anon_vma(kernel, pfn) is not None
    assert kernel.anon_vmas.live == 0
    assert page_lock_anon_vma(kernel, pfn) is None
    assert kernel.sched.preempt_count == 0


def test_who_got_the_lock_looks_again_whether_the_page_is_mapped() -> None:
    """What it names may be another family's by then: that lock is given back."""
    kernel = boot()
    mm, at = anonymous(kernel)
    pfn = frame_at(mm, at)
    get_page(kernel, pfn)
    lock = contended(kernel, pfn, lambda: None)

    def quick() -> bool:
        lock.log.append("trylock")
        kernel.frames.mapcount[pfn] = 0
        return True

    lock.trylock = quick  # type: ignore[method-assign]
    assert page_lock_anon_vma(kernel, pfn) is None
    assert lock.log == ["trylock", "unlock"]
    kernel.frames.mapcount[pfn] = 1


def test_a_sleeper_holds_a_reference_and_is_no_rcu_reader() -> None:
    kernel = boot()
    mm, at = anonymous(kernel)
    pfn = frame_at(mm, at)
    anon: Any = page_anon_vma(kernel, pfn)
    seen: list[tuple[int, int]] = []
    lock = contended(kernel, pfn, lambda: seen.append((anon.references, kernel.sched.preempt_count)))
    assert page_lock_anon_vma(kernel, pfn) == anon
    assert seen == [(2, 0)]
    assert anon.references == 1
    assert lock.log == ["trylock", "lock"]


def test_a_sleeper_whose_reference_is_the_last_backs_out_and_frees() -> None:
    kernel = boot()
    mm, at = anonymous(kernel)
    pfn = frame_at(mm, at)
    anon: Any = page_anon_vma(kernel, pfn)

    def everybody_leaves() -> None:
        area = mm.vmas[at]
        del anon.vmas[area.slot]
        area.anon_vma = None
        put_anon_vma(kernel, anon)

    lock = contended(kernel, pfn, everybody_leaves)
    assert page_lock_anon_vma(kernel, pfn) is None
    assert lock.log == ["trylock", "lock", "unlock"]
    assert kernel.anon_vmas.live == 0


def test_an_anon_vma_without_references_is_not_slept_on() -> None:
    kernel = boot()
    mm, at = anonymous(kernel)
    pfn = frame_at(mm, at)
    anon: Any = page_anon_vma(kernel, pfn)
    lock = contended(kernel, pfn, lambda: None)
    anon.references = 0
    assert page_lock_anon_vma(kernel, pfn) is None
    assert lock.log == ["trylock"]
    assert kernel.sched.preempt_count == 0


def test_a_mutex_below_a_spinlock_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be waited for below i_mmap_lock"):
        boot(i_mmap_lock="spin", anon_vma_lock="mutex")
    with pytest.raises(UserMistake, match=r"anon_vma_lock"):
        Machine.from_file("x86_64", sets=["kernel.i_mmap_lock=spin", "kernel.anon_vma_lock=mutex"])


# ---------------------------------------------------------------------- CPUs at once
def race(seed: int, tree: str, *sets: str) -> Machine:
    """One CPU takes a file's pages out of all ptes and asks for the use of private ones, while the others store, fork,
    move, protect and unmap."""
    machine = Machine.from_file(
        "x86_64",
        sets=["cpus=3", "memory=64 MiB", f"seed={seed}", f"kernel.rmap_tree={tree}", *sets],
        driver="timed",
        sanitize=True,
    )
    kernel, page = machine.kernel, machine.page_size
    file = machine.new_file(16 * page)
    mm = machine.new_mm()
    shared = mm.mmap(16 * page, "rw", shared=True, file=file)
    unmapped = 0

    def reclaimer() -> None:
        nonlocal unmapped
        for _ in range(12):
            for pfn in list(file.file.mapping.pages.values()):
                get_page(kernel, pfn)
                page_referenced(kernel, pfn)
                unmapped += try_to_unmap(kernel, pfn, None) is Unmapped.SWAP_SUCCESS
                put_page(kernel, pfn)
            for pfn in sorted(all_mappings(kernel))[:40]:
                if kernel.frames.refcount[pfn]:
                    get_page(kernel, pfn)
                    page_referenced(kernel, pfn)
                    put_page(kernel, pfn)
            machine.work(3000)

    def worker(cpu: int) -> None:
        chance = random.Random(seed * 8 + cpu)
        for round_ in range(8):
            value = bytes([1 + round_])
            at = shared + (cpu * 8 - 8) * page
            for n in range(8):
                machine.cpus[cpu].store(at + n * page, value)
            mine = mm.mmap(8 * page, "rw")
            for n in range(8):
                machine.cpus[cpu].store(mine + n * page, value)
            if chance.random() < 0.5:
                mm.fork().exit()
            mine = mm.mremap(mine, 8 * page, 16 * page, may_move=True)
            mm.mprotect(mine, 2 * page, "r")
            machine.work(chance.randrange(4000))
            for n in range(8):
                assert machine.cpus[cpu].load(mine + n * page, 1) == value
                assert machine.cpus[cpu].load(at + n * page, 1) == value
            mm.munmap(mine, 16 * page)

    machine.spawn("reclaimer", 0, mm, reclaimer)
    for cpu in (1, 2):
        machine.spawn(f"worker/{cpu}", cpu, mm, functools.partial(worker, cpu))
    machine.run_tasks()
    assert unmapped > 20
    mm.exit()
    file.close()
    return machine


@pytest.mark.parametrize(
    "sets",
    [(), ("kernel.i_mmap_lock=spin",), ("kernel.anon_vma_lock=spin",)],
    ids=["mutex", "spin", "anon-spin"],
)
@pytest.mark.parametrize("tree", ["interval", "prio"])
def test_walks_race_with_every_change_of_the_vmas(tree: str, sets: tuple[str, ...]) -> None:
    for seed in range(2):
        machine = race(seed, tree, *sets)
        assert machine.sanitizer is not None
        machine.sanitizer.finish()
        assert not machine.sanitizer.violations
        assert not machine.sanitizer.balance()


# ---------------------------------------------------------------------- what the sanitizer says
def violations(machine: Machine) -> set[str]:
    assert machine.sanitizer is not None
    machine.sanitizer.finish()
    return {violation.invariant for violation in machine.sanitizer.violations}


def touched() -> tuple[Machine, Any, int]:
    machine = Machine.from_file("x86_64", sets=["memory=64 MiB"], sanitize=True)
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    at = mm.mmap(8 * PAGE, "rw")
    for n in range(8):
        machine.cpus[0].store(at + n * PAGE, b"x")
    return machine, mm, at


def test_the_sanitizer_names_a_page_with_a_wrong_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anon_vmas, "linear_index", lambda area, addr: 7)
    machine, _, _ = touched()
    assert violations(machine) == {"INV-RMAP"}


def test_the_sanitizer_names_a_vma_that_left_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, mm, at = touched()
    assert not violations(machine)
    del mm.struct.vmas[at].anon_vma.root.vmas[mm.struct.vmas[at].slot]
    assert violations(machine) == {"INV-RMAP"}


def test_the_sanitizer_names_a_child_that_began_a_family_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(area: Any) -> None:
        anon_vmas.unlink_anon_vma(area)
        anon_vmas.anon_vma_prepare(area)

    monkeypatch.setattr(fork, "anon_vma_fork", alone)
    machine, mm, _ = touched()
    mm.fork()
    assert violations(machine) == {"INV-RMAP"}


@pytest.mark.parametrize("tree", ["interval", "prio"])
def test_the_sanitizer_names_a_vma_that_was_cut_where_it_stood_in_the_tree(
    tree: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The split race of 2003: boundaries changed without taking the vma out first (A6.3)."""
    machine = Machine.from_file("x86_64", sets=["memory=64 MiB", f"kernel.rmap_tree={tree}"], sanitize=True)
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    file = machine.new_file(8 * PAGE)
    at = mm.mmap(8 * PAGE, "rw", shared=True, file=file)
    machine.cpus[0].store(at, b"x")
    area = mm.struct.vmas[at]
    monkeypatch.setattr(vma, "_unlink_file", lambda mapping, each: None)
    monkeypatch.setattr(
        vma, "_link_file", lambda mapping, each, after=None: each is not area and mapping.i_mmap.insert(each)
    )
    mm.mprotect(at, 4 * PAGE, "r")
    assert "INV-RMAP" in violations(machine)
