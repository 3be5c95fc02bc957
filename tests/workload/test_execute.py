"""Running workloads: places of mappings, order of calls, what maps itself. On a machine that only remembers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu.errors import UserMistake
from polymmu.workload.execute import execute
from polymmu.workload.model import AccessColumns, InitialMapping, MmCall, PageRuns, Workload
from polymmu.workload.placement import PlaceMap, Segment
from polymmu.workload.result import ExecutionResult
from tests.workload.fake_machine import FakeMachine
from tests.workload.samples import DISTINCT_PAGES, TRACES, read, trace_path

GIB = 1 << 30
TASK_32 = 0xC000_0000
ANON, FIXED, MAP_HUGETLB = 0x22, 0x10, 0x40000
STACK = InitialMapping(0x1F_FF00_0000, 0x1F_FF00_2000, "rw", False)


def accesses(*rows: tuple[int, int]) -> AccessColumns:
    """Rows are (op, address); each access has 4 bytes."""
    op, vaddr = zip(*rows, strict=True) if rows else ((), ())
    return AccessColumns(np.array(op, np.uint8), np.array(vaddr, np.uint64), np.full(len(rows), 4, np.uint8))


def call(name: str, *args: int, ret: int | None = 0, pos: int = 0, process: int = 1, tid: int = 0) -> MmCall:
    return MmCall(pos, tid or process, process, name, args, ret)


def mmap(addr: int, length: int, flags: int = ANON, *, prot: int = 3, pos: int = 0, fd: int = -1) -> MmCall:
    wish = addr if flags & FIXED else 0
    return call("mmap", wish, length, prot, flags, fd, 0, ret=addr, pos=pos)


def run(
    machine: FakeMachine,
    calls: Sequence[MmCall] = (),
    touches: AccessColumns | PageRuns | None = None,
    initial: Sequence[InitialMapping] = (),
) -> ExecutionResult:
    workload = Workload(
        name="w", sha256="", format="hand", accesses=touches, calls=tuple(calls), initial=tuple(initial)
    )
    return execute(machine, workload)


def test_a_recorded_mapping_of_huge_pages_is_one_here_where_the_machine_has_that_size() -> None:
    """Size 2 MiB where the flags' upper bits are zero, else two to their power; a length is rounded up to it."""
    machine = FakeMachine()
    machine.huge_page_sizes = (2 << 20, 1 << 30)
    calls = [
        mmap(0x40000000, 1 << 30, ANON | MAP_HUGETLB | 30 << 26),
        mmap(0x10000000, 3 << 20, ANON | MAP_HUGETLB),
        mmap(0x20000000, 2 << 20),
    ]
    result = run(machine, calls)
    assert machine.huge == [(0x40000000, 1 << 30, 1 << 30), (0x10000000, 4 << 20, 2 << 20)]
    assert (result.calls_executed, result.small_for_huge) == (3, 0)


def test_where_the_machine_has_not_that_size_it_is_small_pages_and_the_report_says_so() -> None:
    machine = FakeMachine()
    machine.huge_page_sizes = (4 << 20,)
    result = run(machine, [mmap(0x10000000, 1 << 20, ANON | MAP_HUGETLB)])
    assert (machine.huge, len(machine.mms[0].pages)) == ([], 512)
    assert (result.refused, result.to_dict()["small_for_huge"]) == ([], 1)


def pages_touched(machine: FakeMachine) -> list[int]:
    return [int(page) for part in machine.cpus[0].touched for page in part]


def where(result: ExecutionResult) -> list[tuple[int, int]]:
    return [(each.start, each.target) for each in result.relocations]


# --- calls and accesses in turn


def test_a_call_happens_between_the_accesses_it_was_recorded_between() -> None:
    """Access 1 needs the mapping of the call at 1; access 2 must not find it."""
    machine = FakeMachine()
    calls = [mmap(0x10000, 4096), mmap(0x20000, 4096, pos=1), call("munmap", 0x20000, 4096, pos=2)]
    result = run(machine, calls, accesses((1, 0x10000), (2, 0x20000), (1, 0x10008)))
    assert (result.done, result.calls_executed, result.self_mapped_pages) == (3, 3, 0)
    assert sorted(machine.mms[0].pages) == [0x10]


def test_calls_behind_the_last_access_are_made() -> None:
    machine = FakeMachine()
    run(machine, [mmap(0x10000, 4096), call("exit_group", 0, ret=None, pos=1)], accesses((1, 0x10000)))
    assert machine.mms[0].dead


def test_calls_that_failed_when_recorded_are_not_made_again() -> None:
    machine = FakeMachine()
    result = run(machine, [call("mmap", 0, 4096, 3, ANON, -1, 0, ret=-12)], accesses())
    assert (result.calls_failed, machine.log) == (1, [])


def test_an_access_outside_every_mapping_maps_its_page_once() -> None:
    machine = FakeMachine()
    touches = accesses((1, 0x50000), (2, 0x50008), (0, 0x60000))
    result = run(machine, [mmap(0x10000, 4096)], touches)
    assert (result.done, result.self_mapped_pages) == (3, 2)
    assert pages_touched(machine) == [0x50, 0x50, 0x60]


def test_a_store_to_a_readable_page_ends_the_run_as_a_finding() -> None:
    machine = FakeMachine()
    result = run(machine, [mmap(0x10000, 4096, prot=1)], accesses((1, 0x10000), (2, 0x10000), (1, 0x10000)))
    assert result.segfault is not None
    assert (result.done, result.segfault.va) == (1, 0x10000)
    assert "finding" in result.to_dict()


def test_page_runs_meet_calls_at_the_run_that_begins_there() -> None:
    machine = FakeMachine()
    runs = PageRuns(
        np.array([0x10, 0x20], np.uint64),
        np.array([1, 1], np.uint8),
        np.array([1, 1], np.uint8),
        np.array([9, 1], np.uint32),
        np.array([0, 9], np.uint64),
        12,
    )
    calls = [mmap(0x10000, 4096), mmap(0x20000, 4096, pos=9), call("munmap", 0x10000, 4096, pos=9)]
    result = run(machine, calls, runs)
    assert (result.done, result.self_mapped_pages, sorted(machine.mms[0].pages)) == (2, 0, [0x20])


def test_page_runs_larger_than_the_machines_pages_are_refused() -> None:
    empty = np.zeros(0, np.uint64)
    runs = PageRuns(empty, empty.astype(np.uint8), empty.astype(np.uint8), empty.astype(np.uint32), empty, 16)
    with pytest.raises(UserMistake, match="page runs of 65536 bytes"):
        run(FakeMachine(), (), runs)


def test_ctrl_c_leaves_a_partial_result(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    monkeypatch.setattr("polymmu.workload.executor.SLICE", 2)
    done: list[int] = []

    def progress(at: int, total: int) -> None:
        done.append(at)
        if at == 4:
            raise KeyboardInterrupt

    touches = accesses(*[(1, 0x10000)] * 9)
    result = execute(
        machine, Workload(name="w", sha256="", format="hand", accesses=touches), progress=progress
    )
    assert (result.partial, result.done, done) == (True, 4, [2, 4])
    assert result.to_dict()["partial"] is True


# --- relocation


def test_what_fits_keeps_its_address_and_what_does_not_moves_alone() -> None:
    machine = FakeMachine(TASK_32)
    calls = [mmap(0x10000, 8192), mmap(0x7F00_0000_0000, 8192)]
    result = run(machine, calls, accesses((1, 0x11000), (1, 0x7F00_0000_1004)))
    ((start, target),) = where(result)
    assert start == 0x7F00_0000_0000
    assert pages_touched(machine) == [0x11, (target >> 12) + 1]
    assert result.self_mapped_pages == 0


def test_a_librarys_parts_move_with_its_reservation() -> None:
    """As ld.so maps: the whole file, then parts of it over that, then a change of rights."""
    machine = FakeMachine(TASK_32)
    base = 0x7F00_0000_0000
    calls = [
        mmap(base, 0x6000, prot=1),
        mmap(base + 0x2000, 0x2000, ANON | FIXED, prot=5),
        mmap(base + 0x4000, 0x2000, ANON | FIXED),
        call("mprotect", base + 0x4000, 4096, 1),
        call("munmap", base, 4096),
    ]
    result = run(machine, calls, accesses((0, base + 0x2000), (2, base + 0x5000)))
    ((_, target),) = where(result)
    first = target >> 12
    rights = {page - first: prot for page, prot in machine.mms[0].pages.items()}
    assert rights == {1: "r", 2: "rx", 3: "rx", 4: "r", 5: "rw"}
    assert pages_touched(machine) == [first + 2, first + 5]


def test_a_program_and_its_data_keep_their_distance() -> None:
    machine = FakeMachine(TASK_32)
    base = 0x5555_0000_0000
    initial = [
        InitialMapping(base, base + 0x1000, "rx", True),
        InitialMapping(base + 0x1000, base + 0x3000, "rw", True),
    ]
    result = run(machine, [], accesses((0, base), (2, base + 0x2000)), initial)
    code, data = pages_touched(machine)
    assert data - code == 2
    assert where(result) == [(base, code << 12)]


def test_a_moved_stack_lies_at_the_top_and_still_grows() -> None:
    machine = FakeMachine(TASK_32)
    below = STACK.start - 0x3000
    result = run(machine, [mmap(0x10000, 4096)], accesses((2, STACK.start), (2, below)), [STACK])
    assert where(result) == [(STACK.start, TASK_32 - 0x2000)]
    assert pages_touched(machine) == [(TASK_32 >> 12) - 2, (TASK_32 >> 12) - 5]
    assert result.self_mapped_pages == 0


def test_a_heap_that_does_not_fit_gets_room_for_all_it_will_hold() -> None:
    machine = FakeMachine(TASK_32)
    start = 0x5555_5000_0000
    calls = [
        call("brk", 0, ret=start),
        call("brk", start + 0x3000, ret=start + 0x3000),
        mmap(0x7F00_0000_0000, GIB),
        call("brk", start + 0x9000, ret=start + 0x9000, pos=1),
    ]
    result = run(machine, calls, accesses((2, start + 0x2000), (2, start + 0x8000)))
    assert result.refused == []
    low, high = pages_touched(machine)
    assert high - low == 6
    assert machine.mms[0].break_now - machine.mms[0].break_start == 0x9000


def test_the_first_page_of_the_heap_may_be_an_initial_mapping() -> None:
    """As valgrind has it: one page is mapped at the break before the program asks."""
    machine = FakeMachine()
    initial = [InitialMapping(0x4035000, 0x4036000, "rwx", False), STACK]
    calls = [call("brk", 0, ret=0x4035000), call("brk", 0x4056000, ret=0x4056000, pos=1)]
    result = run(machine, calls, accesses((1, 0x4035000), (1, 0x4055000)), initial)
    assert (result.self_mapped_pages, machine.mms[0].break_now, result.refused) == (0, 0x4056000, [])


def test_mremap_in_place_becomes_a_move_where_the_neighbourhood_is_taken() -> None:
    """The machine puts the second mapping right below the first, so the second cannot grow in place here."""
    machine = FakeMachine(TASK_32)
    a, b = 0x7F00_0000_0000, 0x7F10_0000_0000
    calls = [
        mmap(a, 0x2000),
        mmap(b, 0x2000),
        call("mremap", b, 0x2000, 0x4000, 1, ret=b),
    ]
    result = run(machine, calls, accesses((1, b + 0x3000), (1, a)))
    assert [start for start, _ in where(result)] == [a, b, b]
    first, last = pages_touched(machine)
    assert first != last
    assert (result.self_mapped_pages, result.refused) == (0, [])


def test_mremap_moves_to_the_recorded_address_where_that_fits() -> None:
    machine = FakeMachine()
    calls = [mmap(0x10000, 0x2000), call("mremap", 0x10000, 0x2000, 0x3000, 1, ret=0x50000)]
    result = run(machine, calls, accesses((1, 0x52000)))
    assert sorted(machine.mms[0].pages) == [0x50, 0x51, 0x52]
    assert result.relocations == []


def test_a_mapping_without_any_place_refuses_the_trace() -> None:
    with pytest.raises(UserMistake) as caught:
        run(FakeMachine(TASK_32), [mmap(0x7F00_0000_0000, 4 * GIB)], accesses())
    assert str(caught.value).startswith(
        "w: the mapping [0x7f0000000000, 0x7f0100000000) of 4294967296 bytes has no place"
    )


def test_touched_memory_without_calls_moves_in_areas() -> None:
    machine = FakeMachine(TASK_32)
    base = 0x7F00_0000_0000
    touches = accesses((1, 0x10000), (2, base), (1, base + 0x5000), (1, base + 64 * GIB))
    result = run(machine, [], touches)
    assert result.self_mapped_pages == 4
    assert [start for start, _ in where(result)] == [base, base + 64 * GIB]
    first, second, third, _ = pages_touched(machine)
    assert (first, third - second) == (0x10, 5)


def test_larger_pages_move_what_is_not_aligned_to_them() -> None:
    """Two mappings in one 64 KiB page cannot both stay; the first one can."""
    machine = FakeMachine(page_size=65536)
    calls = [mmap(0x10000, 4096), mmap(0x11000, 4096), call("munmap", 0x10000, 4096, pos=2)]
    result = run(machine, calls, accesses((1, 0x10000), (1, 0x11000), (1, 0x11008)))
    assert [start for start, _ in where(result)] == [0x11000]
    assert result.self_mapped_pages == 0
    assert len(machine.mms[0].pages) == 1


# --- processes and files


def test_a_forked_child_lives_until_its_parent_has_waited() -> None:
    machine = FakeMachine()
    calls = [mmap(0x10000, 4096), call("fork", ret=77), call("wait4", 77, ret=77, pos=1)]
    run(machine, calls, accesses((1, 0x10000)))
    assert [mm.dead for mm in machine.mms] == [False, True]


@pytest.mark.parametrize(
    "end",
    [
        call("wait4", -1, ret=77, pos=1),
        call("wait4", -1, ret=-10, pos=1),  # ECHILD: an earlier wait was interrupted after it had reaped
        call("exit_group", 0, ret=None, pos=1),
    ],
)
def test_an_untraced_child_ends_when_its_parent_knows_or_ends(end: MmCall) -> None:
    machine = FakeMachine()
    run(machine, [mmap(0x10000, 4096), call("fork", ret=77), end], accesses((1, 0x10000)))
    assert machine.mms[1].dead
    assert machine.mms[0].dead == (end.name == "exit_group")


def test_a_vforked_child_shares_until_it_execs() -> None:
    machine = FakeMachine()
    calls = [
        mmap(0x10000, 4096),
        call("vfork", ret=77),
        call("execve", ret=0, process=77),
        call("brk", 0, ret=0x30000, process=77),
        call("exit_group", 0, ret=None, process=77),
        call("exit_group", 0, ret=None),
    ]
    result = run(machine, calls)
    assert (len(machine.mms), [mm.dead for mm in machine.mms], result.processes) == (2, [True, True], 2)
    assert [entry[0] for entry in machine.log] == ["mmap", "set_brk_start", "exit", "exit"]


def test_one_threads_exit_leaves_the_others_their_memory() -> None:
    machine = FakeMachine()
    thread = call("clone", 0x10100, ret=2)
    run(machine, [mmap(0x10000, 4096), thread, call("exit", 0, ret=None, tid=2)])
    assert not machine.mms[0].dead
    machine = FakeMachine()
    run(machine, [mmap(0x10000, 4096), thread, call("exit", 0, ret=None, tid=2), call("exit", 0, ret=None)])
    assert machine.mms[0].dead


def test_two_descriptors_of_one_file_share_it_and_its_size() -> None:
    machine = FakeMachine()
    opened = MmCall(0, 1, 1, "openat", (-100, 0, 0), 3, "/lib/a")
    again = MmCall(0, 1, 1, "openat", (-100, 0, 0), 5, "/lib/a")
    calls = [
        opened,
        mmap(0x10000, 0x3000, 2, fd=3),
        call("dup", 3, ret=4),
        call("close", 3),
        mmap(0x20000, 0x1000, 2, fd=4),
        again,
        mmap(0x30000, 0x9000, 2, fd=5),
        call("ftruncate", 4, 0x2000),
    ]
    run(machine, calls)
    assert [(file.name, file.size) for file in machine.files] == [("/lib/a", 0x2000)]


# --- real programs


@pytest.mark.parametrize("name", ["sort", "threads", "numpy_runs"])
@pytest.mark.parametrize("task_size", [0x7FFF_FFFF_F000, TASK_32])
def test_real_programs_touch_only_what_they_mapped(name: str, task_size: int) -> None:
    """Every touched page lies in a recorded mapping or just below the stack (stated by the recorders)."""
    machine = FakeMachine(task_size)
    result = execute(machine, read(trace_path(name)))
    assert (result.done, result.refused, result.segfault) == (result.total, [], None)
    assert result.self_mapped_pages == 0
    expected = [] if task_size > TASK_32 else [(0x1FFEFFF000, TASK_32 - 0x2000)]
    assert where(result) == expected


@pytest.mark.parametrize("name", ["sort", "numpy_runs"])
@pytest.mark.parametrize("task_size", [0x7FFF_FFFF_F000, TASK_32])
def test_without_its_calls_a_program_maps_every_page_it_touches(name: str, task_size: int) -> None:
    machine = FakeMachine(task_size)
    result = execute(machine, read(trace_path(name)), ignore_mm_calls=True)
    assert (result.done, result.self_mapped_pages) == (result.total, DISTINCT_PAGES[name])
    assert len(machine.mms[0].pages) == DISTINCT_PAGES[name]


@pytest.mark.parametrize("name", ["make", "pyfork", "churn", "threads"])
@pytest.mark.parametrize("task_size", [0x7FFF_FFFF_F000, TASK_32])
def test_recorded_process_trees_run_without_a_refusal(name: str, task_size: int) -> None:
    machine = FakeMachine(task_size)
    result = execute(machine, read(TRACES / "strace" / f"{name}.strace.txt.gz"))
    assert result.refused == []
    assert all(mm.dead for mm in machine.mms)
    if task_size > TASK_32:
        assert result.relocations == []


def test_a_strace_log_without_its_calls_is_refused() -> None:
    with pytest.raises(UserMistake, match="nothing is left to replay"):
        execute(FakeMachine(), read(TRACES / "strace" / "sort.strace.txt.gz"), ignore_mm_calls=True)


# --- the map of places


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 8), st.integers(0, 3)), max_size=25)
)
def test_the_place_map_is_a_dictionary_of_pages(steps: list[tuple[bool, int, int, int]]) -> None:
    """The model maps each recorded page to its delta."""
    places, model = PlaceMap(), dict[int, int]()
    for is_add, start, length, which in steps:
        delta = which * 1000
        removed = places.cut(start, start + length)
        expected = [page for page in range(start, start + length) if page in model]
        assert [page for piece in removed for page in range(piece.start, piece.end)] == expected
        for page in expected:
            del model[page]
        if is_add and places.is_free(start + delta, start + length + delta, delta):
            places.add(Segment(start, start + length, delta, (start, start + length)))
            model.update(dict.fromkeys(range(start, start + length), delta))
    pages = np.arange(45, dtype=np.uint64)
    targets, known = places.translation().apply(pages)
    assert known.tolist() == [page in model for page in range(45)]
    assert targets.tolist() == [page + model.get(page, 0) for page in range(45)]
    assert places.is_moved == any(model.values())
