"""Truncation in its generations: right but for what is documented, which happens (A1.3 to A1.10, A2.2).

Random programs as in ``tests.mm.truncating``, 100 seeds each: ``restart-count-2004`` goes wrong with 16, with bug 98
mended with none; ``bug-4`` with 8, ``bug-7b`` with 20, all others with none. What chance does
not meet there a script does below.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from greenlet import greenlet

import polymmu_history
from polymmu.description.model import KernelChoice
from polymmu.errors import SegmentationFault, UserMistake
from polymmu.hooks import ArchKernel
from polymmu.mm import fault, pagecache
from polymmu.mm.mmap import do_munmap
from polymmu.mm.pagecache import new_file
from polymmu.mm.truncate import do_truncate
from polymmu.mm.truncate_count import TruncateCounts
from polymmu.structs import VM_SHARED, File
from polymmu_history.known_bugs import Bug006
from polymmu_history.truncate import NoBreak, RestartCount2004, RestartVma
from tests.mm import test_truncate_breaks as breaks
from tests.mm.test_truncate_breaks import TINY, V, cut_off, mapped, shows
from tests.mm.toy import ARCHES, PAGE, PUD, RW, GatherLog, add_vma, boot, new_mm, touch
from tests.mm.truncating import in_breaks, wrong_runs

SPIN: dict[str, Any] = {"i_mmap_lock": "spin", "page_table_lock": "mm"}
OCT_3: dict[str, Any] = {"truncate": "restart-vma", **SPIN}
OCT_7: dict[str, Any] = {"truncate": "restart-count-2004", **SPIN}
NO_BREAK: dict[str, Any] = {"truncate": "no-break", **SPIN}
MUTEX: dict[str, Any] = {"truncate": "mutex"}
CORE: dict[str, Any] = {}
GENERATIONS = {
    "no-break": NO_BREAK,
    "restart-vma": OCT_3,
    "restart-count-2004": OCT_7,
    "mutex": MUTEX,
    "core": CORE,
}


def zapping(loop: str) -> dict[str, Any]:
    """The choice of a loop; blocks by address hold the mm's one lock."""
    return {"unmap_vmas": loop, "page_table_lock": "mm" if loop == "blocks" else "split"}


def bug(number: str, **more: Any) -> dict[str, Any]:
    return {"truncate": f"bug-{number}", **more}


# ------------------------------------------------------------------ choosing
@pytest.mark.parametrize(
    ("choice", "way_out"),
    [
        ({"truncate": "no-break"}, "add `i_mmap_lock: spin`"),
        ({"truncate": "restart-vma"}, "add `i_mmap_lock: spin`"),
        ({"truncate": "restart-count-2004"}, "add `i_mmap_lock: spin`"),
        ({"truncate": "mutex", "i_mmap_lock": "spin"}, "leave out `i_mmap_lock: spin`"),
        ({"truncate": "bug-3"}, "add `unmap_vmas: blocks`"),
        ({"truncate": "bug-55"}, "add `fault_recheck: page-lock`"),
        ({"truncate": "mutex", "fault_recheck": "count"}, "choose another `truncate`"),
        ({**OCT_7, "fault_recheck": "page-lock"}, "choose a later `truncate`"),
    ],
)
def test_what_makes_no_sense_together_is_refused_with_the_way_out(
    choice: dict[str, Any], way_out: str
) -> None:
    with pytest.raises(UserMistake, match=rf"kernel\.\w+: .*{way_out}"):
        boot(**choice)


@pytest.mark.parametrize("axis", ["truncate", "unmap_vmas", "fault_recheck"])
def test_every_generation_and_bug_can_be_chosen_by_its_name(axis: str) -> None:
    rests: list[dict[str, Any]] = [
        {},
        SPIN,
        zapping("blocks"),
        {"fault_recheck": "page-lock"},
    ]
    for name, made in polymmu_history.kernel_variants()[axis].items():
        choices = [{**rest, axis: name} for rest in rests]
        choice = next(each for each in choices if not made.refuses(KernelChoice(**each)))
        assert type(getattr(boot(**choice).variants, axis)) is made


# ------------------------------------------------------------------ at random
@pytest.mark.parametrize("generation", ["no-break", "restart-vma", "mutex"])
def test_right_at_random(generation: str) -> None:
    assert wrong_runs(lambda: boot(ARCHES["odd"], **TINY, **GENERATIONS[generation]), range(12)) == []


@pytest.mark.parametrize("loop", ["blocks", "zap-work"])
def test_right_at_random_with_every_loop(loop: str) -> None:
    assert wrong_runs(lambda: boot(**zapping(loop), **TINY), range(12)) == []


class Mended98(RestartCount2004):
    """October 2004 with the cure for 98."""

    vma_resized = TruncateCounts.vma_resized


def test_october_2004_is_wrong_at_random_for_the_leftover_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exempt for 98 and for nothing else: with the cure the same programs go well."""

    def make() -> ArchKernel:
        return boot(**TINY, **OCT_7)

    wrong = wrong_runs(make, range(40))
    assert wrong
    monkeypatch.setitem(polymmu_history.kernel_variants.__globals__, "RestartCount2004", Mended98)
    assert wrong_runs(make, wrong) == []


@pytest.mark.slow
def test_the_table_at_the_top() -> None:
    def found(choice: dict[str, Any]) -> int:
        return len(wrong_runs(lambda: boot(**TINY, **choice), range(100)))

    assert {name: found(choice) for name, choice in GENERATIONS.items()} == {
        "no-break": 0,
        "restart-vma": 0,
        "restart-count-2004": 16,
        "mutex": 0,
        "core": 0,
    }
    bugs = ("4", "5", "7a", "7b", "7c", "7d")
    assert [found(bug(number)) for number in bugs] == [8, 0, 0, 20, 0, 0]


# ------------------------------------------------------------------ what is documented
@pytest.mark.parametrize(
    ("setup", "left"),
    list(zip(sorted(breaks.SETUPS), ([4, 5, 6, 7], list(range(4, 16)), [0, 1, 2, 3]), strict=True)),
)
def test_corpus_1_a_struct_in_its_second_life_is_taken_for_the_one_that_was_left(
    setup: str, left: list[int]
) -> None:
    """A1.6. From 7 October 2004 on the restart address lies in the struct itself."""
    assert breaks.reuse(boot(**OCT_3), setup) == left
    assert breaks.reuse(boot(**OCT_7), setup) == []


@pytest.mark.parametrize(
    ("sequence", "choice", "left"),
    [
        (breaks.leftover, {**OCT_7, "zap_block": 4}, [0, 1, 2, 3]),
        (breaks.leftover, {**OCT_3, "zap_block": 4}, []),
        (breaks.made_nonlinear_in_the_break, bug("6"), list(range(8))),
        (breaks.made_nonlinear_in_the_break, OCT_3, [0, 1, 2, 3]),
        (breaks.after_wrap, bug("4", truncate_count_bits=2, truncate_restart_bits=1), [0]),
        (breaks.after_wrap, {**OCT_7, "truncate_count_bits": 2, "truncate_restart_bits": 1}, []),
        (breaks.after_an_address, bug("5"), [0, 1]),
        (breaks.after_an_address, OCT_3, []),
        (breaks.after_an_address, OCT_7, []),
        (breaks.merged_in_the_break, bug("7a"), [4, 5, 6, 7]),
        (breaks.merged_in_the_break, OCT_3, []),
        (breaks.merged_in_the_break, OCT_7, []),
        (breaks.moved_in_the_break, bug("7b"), [4, 5, 6, 7]),
        (breaks.moved_in_the_break, OCT_3, []),
        (breaks.moved_in_the_break, OCT_7, []),
        (breaks.moved_below_the_restart_address, {**OCT_3, "rmap_tree": "prio"}, [0, 1, 2, 3]),
        (breaks.moved_below_the_restart_address, {**OCT_7, "rmap_tree": "prio"}, []),
    ],
)
def test_corpus_each_sequence_leaves_what_it_should(
    sequence: Callable[[ArchKernel], list[int]], choice: dict[str, Any], left: list[int]
) -> None:
    """98; 6; 4; 5; 7a; 7b; 8, which is met where the call remembers the vma (3 October): pages left mapped."""
    assert sequence(boot(**choice)) == left


def test_corpus_7c_a_new_vma_with_an_old_number_is_scanned_for_nothing() -> None:
    assert breaks.visits_of_a_new_vma(boot(**bug("7c"))) == 4
    assert breaks.visits_of_a_new_vma(boot(**OCT_7)) == 0


def test_corpus_7d_a_number_copied_without_the_lock_may_be_void(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = boot(**bug("7d", truncate_count_bits=2, truncate_restart_bits=1))
    assert breaks.copied_before_the_wrap(kernel, monkeypatch) == [4, 5, 6, 7]


def test_corpus_8_the_rule_of_2004_leaves_equal_counts_alone() -> None:
    """A1.7: where both are the same restart address, from a split, it stays (Linux thought it possible, in 2011)."""
    kernel, mended = boot(**OCT_7), boot()
    for made, after in ((kernel, V + PAGE), (mended, 0)):
        mm = new_mm(made)
        file = new_file(made, "f", 8 * PAGE)
        one, two = shows(mm, file, V, 4), shows(mm, file, V + PUD, 4)
        one.vm_truncate_count = two.vm_truncate_count = V + PAGE
        made.variants.truncate.vma_moved(one, two)
        assert one.vm_truncate_count == after


def test_corpus_9_a_small_call_below_a_big_ones_restart_address_does_nothing() -> None:
    """A1.10. The page was faulted in again after the big call had passed; the core lets one call in at a time."""
    kernel = boot(**OCT_7)
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 16 * PAGE)
    shows(mm, file, V, 16)
    seen: list[list[int]] = []

    def another_call() -> None:
        touch(mm, V + 2 * PAGE, "load")
        cut_off(kernel, file, 2, 1)
        seen.append(mapped(mm, V, 4))

    in_breaks(kernel, file, [another_call])
    cut_off(kernel, file)
    assert seen == [[2]]


@pytest.mark.parametrize(
    ("choice", "ends"),
    [
        (bug("2"), False),
        (bug("3", **zapping("blocks")), False),
        (OCT_3, True),
        (OCT_7, True),
        (CORE, True),
        (zapping("blocks"), True),
        (zapping("zap-work"), True),
    ],
)
def test_corpus_2_3_somebody_always_waits_and_the_end_comes_all_the_same(
    choice: dict[str, Any], ends: bool
) -> None:
    """INV-PROG, A1.2: without a mark for what is done (2), or for where it was left (3), it does not."""
    kernel = boot(**choice)
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 24 * PAGE)
    shows(mm, file, V, 24)
    shows(mm, file, V + PUD, 24)
    left = in_breaks(kernel, file, [lambda: None] * 500)
    cut_off(kernel, file)
    # Six blocks of eight pages.
    assert len(left) == (494 if ends else 0)


def test_corpus_100_who_waited_once_makes_every_later_block_the_last() -> None:
    def drops(choice: dict[str, Any]) -> int:
        kernel = boot(**choice)
        mm = new_mm(kernel)
        file = new_file(kernel, "f", 40 * PAGE)
        shows(mm, file, V, 40)
        in_breaks(kernel, file, [lambda: None])
        count = 0
        give_way = kernel.variants.truncate.give_way

        def counted(lock: object) -> None:
            nonlocal count
            count += 1
            give_way(lock)

        kernel.variants.truncate.give_way = counted
        cut_off(kernel, file)
        return count

    assert drops(CORE) == 1
    assert drops(bug("100")) == 5


# ------------------------------------------------------------------ A1.3
def test_a1_3_the_call_remembers_one_vma_only() -> None:
    """Another that is inserted ahead of it and breaks too makes the first begin again (A1.2)."""
    visited = {}
    for name, choice in (("restart-vma", OCT_3), ("restart-count-2004", OCT_7)):
        kernel = boot(**choice)
        mm = new_mm(kernel)
        file = new_file(kernel, "f", 16 * PAGE)
        first, second = shows(mm, file, V, 16), shows(mm, file, V + PUD, 16)
        mapping = file.mapping
        mapping.i_mmap.remove(first)
        zapped: list[int] = []
        kernel.events.entries_visited = lambda mm, what, n, to=zapped: to.append(n)  # type: ignore[method-assign,misc]

        def ahead(i_mmap: Any = mapping.i_mmap, one: Any = first, two: Any = second) -> None:
            i_mmap.remove(two)
            i_mmap.insert(one)
            i_mmap.insert(two)

        in_breaks(kernel, file, [ahead, lambda: None])
        cut_off(kernel, file)
        assert mapped(mm, V, 16) == mapped(mm, V + PUD, 16) == []
        visited[name] = sum(zapped)
    assert visited == {"restart-vma": 40, "restart-count-2004": 32}


def test_a1_10_nothing_is_dropped_or_numbered_with_a_mutex() -> None:
    kernel = boot(**MUTEX)
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 16 * PAGE)
    shows(mm, file, V, 16)
    left = in_breaks(kernel, file, [lambda: None])
    cut_off(kernel, file)
    assert (len(left), file.mapping.truncate_count, mapped(mm, V, 16)) == (1, 0, [])


# ------------------------------------------------------------------ A1.8
@pytest.mark.parametrize(("recheck", "reads"), [("cache", 1), ("count", 2), ("page-lock", 1)])
def test_a1_8_a_fault_that_counts_begins_anew_after_any_truncation(recheck: str, reads: int) -> None:
    """Also after one that cut off something else. Linux from July 2003 to 2.6.22."""
    kernel = boot(fault_recheck=recheck)
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    begun: list[int] = []

    def read_page(index: int) -> bytes:
        do_truncate(kernel, file, 6 * PAGE)
        return b"read"

    file.read_page = read_page
    strategy = kernel.variants.fault_recheck
    begin = strategy.begin

    def counted(file: File) -> int:
        begun.append(1)
        seq: int = begin(file)
        return seq

    strategy.begin = counted
    add_vma(mm, V, V + 8 * PAGE, RW | VM_SHARED, file=file, pgoff=0)
    touch(mm, V, "load")
    assert (len(begun), mapped(mm, V, 8)) == (reads, [0])


@pytest.mark.parametrize("recheck", ["cache", "count", "page-lock"])
@pytest.mark.parametrize("access", ["load", "store"])
def test_a1_8_a_page_cut_off_while_it_is_read_is_not_mapped(recheck: str, access: str) -> None:
    kernel = boot(fault_recheck=recheck)
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)

    def read_page(index: int) -> bytes:
        do_truncate(kernel, file, 0)
        return b"read"

    file.read_page = read_page
    add_vma(mm, V, V + 8 * PAGE, RW | VM_SHARED, file=file, pgoff=0)
    with pytest.raises(SegmentationFault):
        touch(mm, V, access)
    assert mapped(mm, V, 8) == []


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        (bug("55", fault_recheck="page-lock"), [0]),
        ({"fault_recheck": "page-lock"}, []),
        ({"fault_recheck": "count"}, []),
        (CORE, []),
    ],
)
def test_corpus_55_a_private_copy_made_between_unmap_and_removal(
    choice: dict[str, Any], left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1.1: the fault has read the size, and copies; the file is cut, unmapped; the copy is mapped; the page goes."""
    kernel = boot(**choice)
    mm = new_mm(kernel)
    file = new_file(kernel, "f", 8 * PAGE)
    add_vma(mm, V, V + 8 * PAGE, RW, file=file, pgoff=0)
    main = greenlet.getcurrent()

    def fault_in() -> None:
        with contextlib.suppress(SegmentationFault):
            touch(mm, V, "store")

    faulting = greenlet(fault_in)
    copy_of = fault._copy_of

    def copying(kernel: ArchKernel, source: int) -> int:
        pfn = copy_of(kernel, source)
        main.switch()
        return pfn

    def dropping(*args: Any) -> None:
        if not faulting.dead:
            faulting.switch()
        pagecache.drop_page_cache(*args)

    monkeypatch.setattr(fault, "_copy_of", copying)
    monkeypatch.setattr("polymmu.mm.truncate.drop_page_cache", dropping)
    faulting.switch()
    do_truncate(kernel, file, 0)
    assert faulting.dead
    assert mapped(mm, V, 8) == left


# ------------------------------------------------------------------ A2.2
def test_a2_2_until_2_6_37_every_block_ends_with_a_flush() -> None:
    """Later the gather stays open. Blocks of eight pages."""
    flushes = {}
    for loop in ("blocks", "zap-work", "work"):
        log = GatherLog()
        kernel = boot(observers=[log], **zapping(loop))
        mm = new_mm(kernel)
        add_vma(mm, V, V + 32 * PAGE)
        for page in range(32):
            touch(mm, V + page * PAGE)
        do_munmap(mm, V, 32 * PAGE)
        flushes[loop] = [pages for pages, _ in log.flushes if pages]
    assert flushes == {"blocks": [8] * 4, "zap-work": [8] * 4, "work": [32]}


def test_a2_2_step_3_small_vmas_share_a_block() -> None:
    for loop in ("blocks", "zap-work"):
        log = GatherLog()
        kernel = boot(observers=[log], **zapping(loop))
        mm = new_mm(kernel)
        for n in range(8):
            add_vma(mm, V + 4 * n * PAGE, V + (4 * n + 2) * PAGE)
            for page in range(2):
                touch(mm, V + (4 * n + page) * PAGE)
        do_munmap(mm, V, 32 * PAGE)
        assert [pages for pages, _ in log.flushes if pages] == [8, 8]


def test_a2_2_a_block_was_so_many_addresses_and_is_so_much_work() -> None:
    """64 pages of which the last four are mapped, with somebody always waiting."""
    drops = {}
    for loop in ("blocks", "work"):
        kernel = boot(**zapping(loop))
        mm = new_mm(kernel)
        file = new_file(kernel, "f", 64 * PAGE)
        add_vma(mm, V, V + 64 * PAGE, RW | VM_SHARED, file=file, pgoff=0)
        for page in range(60, 64):
            touch(mm, V + page * PAGE, "load")
        left = in_breaks(kernel, file, [lambda: None] * 100)
        cut_off(kernel, file)
        drops[loop] = 100 - len(left)
    assert drops == {"blocks": 8, "work": 1}


def test_a2_2_the_table_lock_was_held_from_block_to_block_and_flushes_came_below_it() -> None:
    below: dict[str, list[bool]] = {}
    for loop in ("blocks", "zap-work", "work"):
        kernel = boot(**zapping(loop))
        mm = new_mm(kernel)
        add_vma(mm, V, V + 16 * PAGE)
        for page in range(16):
            touch(mm, V + page * PAGE)
        seen: list[bool] = []
        kernel.events.gather_flush = lambda mm, pages, tables, to=seen: (  # type: ignore[method-assign,misc]
            to.append(mm.page_table_lock.held) if pages else None
        )
        do_munmap(mm, V, 16 * PAGE)
        below[loop] = seen
    assert below == {"blocks": [True, True], "zap-work": [False, False], "work": [False]}


def test_the_bugs_are_one_step_each() -> None:
    """And the generations change what history changed."""
    words = {"since", "wrong", "refuses", "asked"}
    own = {name for name in vars(Bug006) if not name.startswith("_")}
    assert own - words == {"passes"}
    assert issubclass(RestartVma, RestartCount2004)
    assert issubclass(NoBreak, RestartCount2004)
    for name, made in polymmu_history.kernel_variants()["truncate"].items():
        if name.startswith("bug-"):
            assert len({step for step in vars(made) if not step.startswith("_")} - words) <= 3
