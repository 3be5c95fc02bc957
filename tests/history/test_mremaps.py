"""mremap in its generations (A5.1 to A5.3), alone, and against truncation and its users on CPUs that run at once.

Runs of twenty seeds on x86_64 that the referee caught, and with what (``test_the_table``; all others are clean):

| generation | scenario | caught |
|---|---|---|
| ``mremap: one-page-unlocked`` (corpus 10) | move_beside | 14 INV-TRUNC |
| ``mremap: bug-11a`` | move_beside | 20 INV-ATOMIC |
| ``mremap: bug-11b`` | move_beside | 20 INV-LOCK |
| ``mremap: bug-11c`` | move_beside | 6: a page is freed that is mapped once less than not at all |
| ``mremap: extents-3.2`` (corpus 43) | move_far | 20 INV-TLB |
| ``mremap: extents-4.9`` | move_far | 20 INV-TLB |
| a child's vma taken for a new one (planted) | fork | 11 INV-TRUNC |
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

import polymmu_history
from polymmu.errors import SegmentationFault, SyscallError, UserMistake
from polymmu.hooks import ArchKernel
from polymmu.machine import Machine
from polymmu.mm.mmap import do_mmap
from polymmu.mm.mremap import do_mremap
from polymmu.mm.pagecache import new_file
from polymmu.mm.truncate import RestartCount, unmap_mapping_range
from polymmu.registry import Arch, replaced
from polymmu.structs import VM_SHARED, address_space, mm_struct, vm_area_struct
from polymmu_history.mremap import OnePage
from tests.history.races import fork, move_beside, move_far, verdict, verdicts
from tests.mm.programs import check_links
from tests.mm.toy import ARCHES, PAGE, PMD, PUD, RW, boot, frame_at, load, new_mm, pte_lock_held, state, store

SPIN: dict[str, Any] = {"i_mmap_lock": "spin", "page_table_lock": "mm"}
ONE_PAGE: dict[str, Any] = {"mremap": "one-page", **SPIN}
UNLOCKED: dict[str, Any] = {"mremap": "one-page-unlocked", **SPIN}
EXTENTS = [{"mremap": f"extents-{release}"} for release in ("2.6.15", "3.2", "4.9")]
GENERATIONS: list[dict[str, Any]] = [ONE_PAGE, UNLOCKED, *EXTENTS, {}]
MUTEX: dict[str, Any] = {"truncate": "mutex"}
OLD, NEW = 2 * PUD, 5 * PUD


def name_of(choice: dict[str, Any]) -> str:
    return str(choice.get("mremap", "today"))


every_generation = pytest.mark.parametrize("choice", GENERATIONS, ids=name_of)


def program(kernel: ArchKernel, pages: int, at: int = OLD) -> mm_struct:
    """Its file's page n holds ``n`` and a dot; all are mapped and touched."""
    mm = new_mm(kernel)
    file = new_file(kernel, "f", pages * PAGE, read_page=lambda index: b"%d." % index)
    do_mmap(mm, at, pages * PAGE, RW | VM_SHARED, fixed=True, file=file, pgoff=0)
    for page in range(pages):
        load(mm, at + page * PAGE)
    return mm


# ------------------------------------------------------------------ choosing
@pytest.mark.parametrize(
    "name", ["one-page", "one-page-unlocked", "bug-11a", "bug-11b", "bug-11c", "bug-11d"]
)
def test_a_pte_at_a_time_is_moved_below_a_spinlock(name: str) -> None:
    with pytest.raises(UserMistake, match=r"kernel\.mremap: .*add `i_mmap_lock: spin`"):
        boot(mremap=name)
    made = polymmu_history.kernel_variants()["mremap"][name]
    assert type(boot(mremap=name, **SPIN).variants.mremap) is made


# ------------------------------------------------------------------ what all do
@every_generation
@pytest.mark.parametrize("arch", sorted(ARCHES))
@pytest.mark.parametrize("offset", [0, 3 * PAGE])
def test_every_page_goes_along_and_nothing_stays(choice: dict[str, Any], arch: str, offset: int) -> None:
    kernel = boot(ARCHES[arch], **choice)
    mm = program(kernel, 40)
    before = (mm.file_rss, state(kernel).on_lru)
    store(mm, OLD + 5 * PAGE, b"mine")
    assert do_mremap(mm, OLD, 40 * PAGE, 40 * PAGE, new_addr=NEW + offset) == NEW + offset
    assert [load(mm, NEW + offset + page * PAGE, 2) for page in (0, 5, 39)] == [b"0.", b"mi", b"39"]
    assert (mm.file_rss, state(kernel).on_lru) == before
    with pytest.raises(SegmentationFault):
        load(mm, OLD)
    check_links(mm)


@every_generation
def test_a_move_without_memory_fails_and_puts_everything_back(choice: dict[str, Any]) -> None:
    """A5.2: what was moved goes back, which needs no table; the new place is unmapped."""
    kernel = boot(**choice)
    mm = program(kernel, 40)
    left = [1]  # tables of ptes to be had at the new place: three would be needed

    def fails(what: str) -> bool:
        if what.startswith("table."):
            left[0] -= 1
        return what.startswith("table.") and left[0] < 0

    n = 0
    for n in range(4):
        left[0] = n
        kernel.free.fail_next = fails
        try:
            do_mremap(mm, OLD, 40 * PAGE, 40 * PAGE, new_addr=NEW)
        except SyscallError as error:
            assert error.errno == errno.ENOMEM
        else:
            break
        finally:
            kernel.free.fail_next = None
        assert [page for page in range(40) if frame_at(mm, OLD + page * PAGE) < 0] == []
        assert [page for page in range(40) if frame_at(mm, NEW + page * PAGE) >= 0] == []
        check_links(mm)
    assert n >= 2, "it failed, and more than once"


@every_generation
@pytest.mark.parametrize("name", ["x86_64", "x86", "ia64", "ppc64", "s390", "sparc64"])
def test_bytes_follow_on_every_arch_and_its_maps_of_tables_balance(choice: dict[str, Any], name: str) -> None:
    """Maps of page tables (in high memory on x86) nest, are undone in reverse order, and nobody sleeps meanwhile."""
    sets = [f"kernel.{key}={value}" for key, value in choice.items()]
    description, arch = Machine.describe(name, sets=["memory=64 MiB", *sets])
    mapped: list[int] = []
    made = Machine(description, with_counted_maps(arch, mapped))
    sched = made.kernel.sched
    might_sleep = sched.might_sleep

    def awake(why: str) -> None:
        assert not mapped, f"{why} with {len(mapped)} page tables mapped"
        might_sleep(why)

    sched.might_sleep = awake  # type: ignore[method-assign]
    page = made.page_size
    mm = made.new_mm()
    with made.cpus[0] as cpu:
        cpu.switch_mm(mm)
        file = made.new_file(6 * page)
        at = mm.mmap(6 * page, shared=True, file=file)
        room = mm.mmap(64 * page)
        mm.munmap(room, 64 * page)
        for n in range(6):
            cpu.store(at + n * page, b"%d" % n)
        to = mm.mremap(at, 6 * page, 6 * page, to=room + 9 * page)
        assert [cpu.load(to + n * page, 1) for n in range(6)] == [b"%d" % n for n in range(6)]
        with pytest.raises(SegmentationFault):
            cpu.load(at, 1)
        file.truncate(2 * page)
        assert cpu.load(to + page, 1) == b"1"
    mm.exit()
    file.close()
    assert not mapped
    assert not made.flushes.section()["missing"]


def with_counted_maps(arch: Arch, mapped: list[int]) -> Arch:
    """``arch``, with the tables that are mapped now in ``mapped``: two at most, as x86 had slots for."""
    ops = arch.ops

    def pte_map(mm: mm_struct, table: int) -> None:
        mapped.append(table)
        assert len(mapped) <= 2
        ops.pte_map(mm, table)

    def pte_unmap(mm: mm_struct, table: int) -> None:
        assert mapped, f"table {table:#x} is unmapped, and none is mapped"
        assert mapped.pop() == table
        ops.pte_unmap(mm, table)

    return replaced(replaced(arch, "pte_map", pte_map), "pte_unmap", pte_unmap)


def test_corpus_11d_a_table_that_could_not_be_had_is_unmapped() -> None:
    for choice, wrong in ((ONE_PAGE, False), ({**ONE_PAGE, "mremap": "bug-11d"}, True)):
        mapped: list[int] = []
        kernel = boot(with_counted_maps(ARCHES["toy"], mapped), **choice)
        mm = program(kernel, 1)
        kernel.free.fail_next = lambda what: what.startswith("table.")
        with pytest.raises(AssertionError if wrong else SyscallError):
            do_mremap(mm, OLD, PAGE, PAGE, new_addr=NEW)


# ------------------------------------------------------------------ A5.1 by step
class Steps(OnePage):
    """Notes the steps, and lets another CPU do something while the locks are dropped."""

    def __init__(self, kernel: ArchKernel, meanwhile: Callable[[], object], contended: bool = False) -> None:
        super().__init__(kernel)
        self.meanwhile = meanwhile
        self.contended = contended
        self.seen: list[str] = []

    def lock_rmap(self, mapping: address_space | None, vma: vm_area_struct, new_vma: vm_area_struct) -> None:
        super().lock_rmap(mapping, vma, new_vma)
        assert mapping is not None
        self.seen.append(f"i_mmap {mapping.i_mmap_lock.held}, count {new_vma.vm_truncate_count}")

    def alloc_one_pte_map(self, mm: mm_struct, addr: int) -> int:
        mapping = next(vma.vm_file.mapping for vma in mm.vmas.values() if vma.vm_file is not None)
        self.seen.append(f"alloc with i_mmap {mapping.i_mmap_lock.held}")
        self.meanwhile()
        return super().alloc_one_pte_map(mm, addr)

    def again(self, mm: mm_struct, old: int) -> int:
        src = super().again(mm, old)
        self.seen.append("again" if src >= 0 else "gone")
        return src

    def move(self, vma: vm_area_struct, old: int, src: int, new: int, dst: int) -> None:
        self.seen.append(f"move below ptl {vma.vm_mm.page_table_lock.held}")
        super().move(vma, old, src, new, dst)


def stepped(kernel: ArchKernel, meanwhile: Callable[[], object]) -> Steps:
    steps = Steps(kernel, meanwhile)
    object.__setattr__(kernel.variants, "mremap", steps)
    return steps


def test_a5_1_locks_are_dropped_to_make_a_table_and_the_old_pte_is_looked_at_again() -> None:
    """Steps 1 to 6: the second page finds the table there."""
    kernel = boot(**ONE_PAGE)
    mm = program(kernel, 2)
    steps = stepped(kernel, lambda: None)
    do_mremap(mm, OLD, 2 * PAGE, 2 * PAGE, new_addr=NEW)
    assert steps.seen == [
        "i_mmap True, count 0",
        "alloc with i_mmap False",
        "again",
        "move below ptl True",
        "i_mmap True, count 0",
        "move below ptl True",
    ]


def test_a5_1_step_2_where_nothing_is_mapped_no_table_is_made() -> None:
    kernel = boot(**ONE_PAGE)
    mm = program(kernel, 1)
    unmap_mapping_range(kernel, mm.vmas[OLD].vm_file.mapping, 0, 0, True)
    tables = list(mm.nr_tables)
    steps = stepped(kernel, lambda: None)
    do_mremap(mm, OLD, PAGE, PAGE, new_addr=NEW)
    assert steps.seen == ["i_mmap True, count 0"]
    assert sum(mm.nr_tables) <= sum(tables)


def test_a5_1_step_5_a_page_truncated_meanwhile_is_not_moved() -> None:
    """And corpus 11c: what was read before is."""
    for name, kept in (("one-page", False), ("bug-11c", True)):
        kernel = boot(**{**ONE_PAGE, "mremap": name})
        mm = program(kernel, 1)
        mapping = mm.vmas[OLD].vm_file.mapping
        strategy = kernel.variants.mremap
        alloc = strategy.alloc_one_pte_map

        def truncated_first(
            mm: mm_struct, addr: int, kernel: Any = kernel, mapping: Any = mapping, alloc: Any = alloc
        ) -> int:
            mm.page_table_lock.unlock()
            unmap_mapping_range(kernel, mapping, 0, 0, True)
            mm.page_table_lock.lock()
            ptep: int = alloc(mm, addr)
            return ptep

        strategy.alloc_one_pte_map = truncated_first
        do_mremap(mm, OLD, PAGE, PAGE, new_addr=NEW)
        assert (frame_at(mm, NEW) >= 0) is kept


def test_a5_1_step_5_contention_is_met_in_the_right_order() -> None:
    """trylock fails: the page-table lock goes first."""
    kernel = boot(**ONE_PAGE)
    mm = program(kernel, 1)
    lock = mm.vmas[OLD].vm_file.mapping.i_mmap_lock
    order: list[tuple[str, bool]] = []

    class Contended:
        """Held by somebody at the moment of the trylock."""

        held, spins, waiters = False, True, ()

        def trylock(self) -> bool:
            order.append(("trylock", mm.page_table_lock.held))
            return False

        def lock(self) -> None:
            order.append(("lock", mm.page_table_lock.held))
            lock.lock()

        def unlock(self) -> None:
            lock.unlock()

    mm.vmas[OLD].vm_file.mapping.i_mmap_lock = Contended()
    do_mremap(mm, OLD, PAGE, PAGE, new_addr=NEW)
    assert order[:3] == [("lock", False), ("lock", False), ("trylock", True)] or ("trylock", True) in order
    assert order[order.index(("trylock", True)) + 1] == ("lock", False)


def test_a5_1_before_may_2004_pages_moved_downwards_and_the_tail_went_back() -> None:
    kernel = boot(**UNLOCKED)
    mm = program(kernel, 3)
    moved: list[int] = []
    strategy = kernel.variants.mremap
    move = strategy.move

    def noted(vma: Any, old: int, src: int, new: int, dst: int) -> None:
        moved.append((old - OLD) // PAGE)
        move(vma, old, src, new, dst)

    strategy.move = noted
    do_mremap(mm, OLD, 3 * PAGE, 3 * PAGE, new_addr=NEW)
    assert moved == [2, 1, 0]


# ------------------------------------------------------------------ A5.3
@pytest.mark.parametrize(
    ("release", "access", "flushes"),
    [
        ("2.6.15", "load", ["below"] * 20),
        ("3.2", "load", ["after"]),
        ("3.2", "store", ["after"]),
        ("4.9", "load", ["after"]),
        ("4.9", "store", ["below", "below", "after"]),
        ("", "load", ["below", "below"]),
    ],
)
def test_a5_3_where_the_flush_comes(release: str, access: str, flushes: list[str]) -> None:
    """Twenty pages in two tables: per pte below the lock; one at the end; one per extent below the lock."""
    seen: list[str] = []
    arch = ARCHES["toy"]
    kernels: list[ArchKernel] = []

    def flush_tlb_range(vma: vm_area_struct, start: int, end: int) -> None:
        if vma.vm_start == OLD and kernels:
            below = vma.vm_mm.page_table_lock.held or pte_lock_held(vma.vm_mm, start)
            seen.append("below" if below else "after")
        arch.ops.flush_tlb_range(vma, start, end)

    noting = replaced(arch, "flush_tlb_range", flush_tlb_range)
    kernel = boot(noting, mremap=f"extents-{release}" if release else "extents")
    mm = program(kernel, 20)
    if access == "store":
        for page in range(20):
            store(mm, OLD + page * PAGE, b"x")
    kernels.append(kernel)
    do_mremap(mm, OLD, 20 * PAGE, 20 * PAGE, new_addr=NEW + 3 * PMD)
    assert seen == flushes or (not release and set(seen) == {"below"})


def test_a5_2_until_2018_at_most_64_ptes_move_at_once_and_tables_never() -> None:
    for choice, counts in (({"mremap": "extents-4.9"}, [64] * 8), ({}, [1])):
        description, arch = Machine.describe(
            "x86_64", sets=["memory=64 MiB", *(f"kernel.{key}={value}" for key, value in choice.items())]
        )
        made = Machine(description, arch)
        mm = made.new_mm()
        made.cpus[0].switch_mm(mm)
        at = mm.mmap(2 << 20, at=1 << 30, fixed=True)
        made.cpus[0].store(at, b"x")
        seen: list[int] = []
        made.kernel.events.entries_visited = lambda mm, what, n, to=seen: (  # type: ignore[method-assign,misc]
            to.append(n) if what == "move" else None
        )
        mm.mremap(at, 2 << 20, 2 << 20, to=2 << 30)
        assert seen == counts


# ------------------------------------------------------------------ races
FEW = range(2)
MANY = range(20)


class ForkedAsNew(RestartCount):
    """A child's vma is taken for a new one, with nothing to scan; and truncation unmaps once."""

    second_unmap = False

    def vma_forked(self, child: vm_area_struct, parent: vm_area_struct) -> None:
        assert parent.vm_file is not None
        self.vma_linked(child, parent.vm_file.mapping)


CLEAN = [
    (move_beside, {}),
    (move_beside, MUTEX),
    (move_beside, ONE_PAGE),
    (move_beside, {"mremap": "extents-2.6.15"}),
    (move_far, MUTEX),
    (move_far, {**MUTEX, "mremap": "extents-2.6.15"}),
    (fork, {}),
    (fork, MUTEX),
    (fork, {**SPIN, "truncate": "restart-count-2004", "unmap_vmas": "blocks", "gather": "percpu"}),
    (fork, {**SPIN, "truncate": "restart-vma", "unmap_vmas": "blocks"}),
    (fork, {**SPIN, "truncate": "no-break", "unmap_vmas": "blocks"}),
]
WRONG = [
    (move_beside, UNLOCKED, "INV-TRUNC", 14),
    (move_beside, {**SPIN, "mremap": "bug-11a"}, "INV-ATOMIC", 20),
    (move_beside, {**SPIN, "mremap": "bug-11b"}, "INV-LOCK", 20),
    (move_beside, {**SPIN, "mremap": "bug-11c"}, "stopped", 6),
    (move_far, {**MUTEX, "mremap": "extents-3.2"}, "INV-TLB", 20),
    (move_far, {**MUTEX, "mremap": "extents-4.9"}, "INV-TLB", 20),
    (fork, {"truncate": "forked-as-new"}, "INV-TRUNC", 11),
]
"""With how many of twenty seeds are caught."""


@pytest.fixture
def forked_as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted one can be chosen by name."""
    bugs = polymmu_history.known_bugs.TRUNCATE
    monkeypatch.setitem(bugs, "forked-as-new", ForkedAsNew)


@pytest.mark.parametrize(("scenario", "choice"), CLEAN)
def test_what_is_sound_is_clean_under_seeds(scenario: Any, choice: dict[str, Any]) -> None:
    assert verdicts(scenario, "x86_64", FEW, choice) == {}


@pytest.mark.usefixtures("forked_as_new")
@pytest.mark.parametrize(("scenario", "choice", "breach", "caught"), WRONG)
def test_what_is_wrong_is_caught_under_seeds(
    scenario: Any, choice: dict[str, Any], breach: str, caught: int
) -> None:
    for seed in MANY:
        if verdict(scenario, "x86_64", seed, choice) == breach:
            return
    pytest.fail(f"no seed shows it, and {caught} should")


@pytest.mark.slow
@pytest.mark.usefixtures("forked_as_new")
@pytest.mark.parametrize(("scenario", "choice", "breach", "caught"), WRONG)
def test_the_table(scenario: Any, choice: dict[str, Any], breach: str, caught: int) -> None:
    assert verdicts(scenario, "x86_64", MANY, choice) == {breach: caught}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x86_64", "x86", "ia64", "ppc64", "s390", "sparc64"])
def test_clean_under_many_seeds_on_every_arch(name: str) -> None:
    for scenario, choice in CLEAN:
        assert verdicts(scenario, name, MANY, choice) == {}, (scenario, choice)
