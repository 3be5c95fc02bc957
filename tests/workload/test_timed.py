"""Programs with threads under the timed driver: what is kept of the recording, and what may differ from solo."""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polymmu import Machine
from polymmu.errors import UserMistake
from polymmu.workload.model import AccessColumns, MmCall, ThreadSlice, Workload
from polymmu.workload.readers import open_workload
from tests.workload.samples import trace_path

PAGE = 4096
BASE = 0x4000_0000
LOAD, STORE = 1, 2
ANON_FIXED, RW = 0x32, 3


def machine(driver: str = "timed", *, name: str = "x86_64", sets: Sequence[str] = ("cpus=4",)) -> Machine:
    return Machine.from_file(name, sets=[*sets, "memory=256 MiB"], driver=driver)


def threads_of(program: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> Workload:
    """Rows of (tid, [(op, page), ...]): who ran, and what it accessed, in recorded order."""
    op: list[int] = []
    page: list[int] = []
    turns: list[ThreadSlice] = []
    for tid, accesses in program:
        turns.append(ThreadSlice(len(op), tid))
        op += [each for each, _ in accesses]
        page += [each for _, each in accesses]
    columns = AccessColumns(
        np.array(op, np.uint8),
        np.array([BASE + each * PAGE for each in page], np.uint64),
        np.full(len(op), 4, np.uint8),
    )
    return Workload(name="w", sha256="", format="hand", accesses=columns, threads=tuple(turns))


def mmap(pos: int, page: int, pages: int, tid: int) -> MmCall:
    at = BASE + page * PAGE
    return MmCall(pos, tid, 1, "mmap", (at, pages * PAGE, RW, ANON_FIXED, -1, 0), at)


def munmap(pos: int, page: int, pages: int, tid: int) -> MmCall:
    return MmCall(pos, tid, 1, "munmap", (BASE + page * PAGE, pages * PAGE), 0)


@attrs.define
class CallLog:
    """The mm calls a machine is asked for, and the CPU each runs on."""

    calls: list[tuple[str, int]] = attrs.field(factory=list[tuple[str, int]])

    @classmethod
    def of(cls, watched: Machine) -> CallLog:
        log, begin = cls(), watched.counters.mm_call_begin

        def mm_call_begin(mm: object, name: str) -> None:
            log.calls.append((name, watched.kernel.sched.cpu.index))
            begin(mm, name)

        watched.counters.mm_call_begin = mm_call_begin  # type: ignore[method-assign]
        watched.kernel.events = type(watched.kernel.events)((watched.counters, watched.flushes))
        return log


def test_two_timed_runs_of_a_recorded_program_are_alike_to_the_byte() -> None:
    workload = open_workload(trace_path("threads"))
    first, second = (machine().run(workload).to_json() for _ in range(2))
    assert first == second
    assert json.loads(first)["driver"] == "timed"


def test_threads_do_every_access_once_whatever_the_driver() -> None:
    workload = open_workload(trace_path("threads"))
    solo, timed = (machine(driver).run(workload).to_dict() for driver in ("solo", "timed"))
    assert timed["accesses"] == solo["accesses"]
    assert timed["faults"] == solo["faults"]
    assert timed["calls"] == solo["calls"]
    looked = {tlb["cpu"] for tlb in timed["tlb"] if tlb["hits"] + tlb["misses"]}
    assert looked == {0, 1}
    assert timed["shootdown"]["ipis"] > 0 == solo["shootdown"]["ipis"]
    assert timed["flushes"]["missing"] == 0
    assert "finding" not in timed


def test_user_cycles_count_once_in_the_sum_and_once_on_a_clock() -> None:
    """One thread: all its cycles lie on one clock, and there is nobody to wait for."""
    workload = threads_of([(1, [(STORE, n % 7) for n in range(3000)])])
    solo, timed = (machine(driver).run(workload).to_dict() for driver in ("solo", "timed"))
    assert timed["cycles"] == solo["cycles"] == timed["elapsed"]
    assert "elapsed" not in solo


def test_threads_between_two_calls_run_at_once() -> None:
    """Two threads of equal work on CPUs of their own take about half as long as on one CPU."""
    rows = [(STORE, n % 16) for n in range(100_000)]
    other = [(op, page + 64) for op, page in rows]
    workload = threads_of([(1, rows), (2, other)])
    one, two = (machine(sets=[f"cpus={cpus}"]).run(workload).to_dict()["elapsed"] for cpus in (1, 2))
    assert 1.8 < one / two < 2


def test_more_threads_than_cpus_share_them_round_robin() -> None:
    workload = threads_of([(tid, [(STORE, 16 * tid + n % 4) for n in range(50)]) for tid in (1, 2, 3)])
    told = machine(sets=["cpus=2"]).run(workload).to_dict()
    touched = dict.fromkeys((0, 1), 0)
    for tlb in told["tlb"]:
        if tlb["name"] == "L1D":
            touched[tlb["cpu"]] += tlb["hits"] + tlb["misses"]
    assert touched == {0: 100, 1: 50}


def test_calls_keep_their_recorded_order_and_run_where_their_thread_does() -> None:
    """Thread 2 has little to do before its munmap, thread 1 much before it: the munmap waits."""
    workload = threads_of(
        [(1, [(STORE, n % 8) for n in range(5000)]), (2, [(LOAD, 0)]), (1, [(STORE, 9)]), (2, [(STORE, 9)])]
    )
    calls = (mmap(0, 0, 8, 1), munmap(5001, 0, 8, 2), mmap(5001, 8, 4, 1), munmap(5003, 8, 4, 2))
    watched = machine()
    log = CallLog.of(watched)
    told = watched.run(attrs.evolve(workload, calls=calls)).to_dict()
    assert [call for call in log.calls if call[0] != "brk"] == [
        ("mmap", 0), ("munmap", 1), ("mmap", 0), ("munmap", 1)
    ]  # fmt: skip
    assert told["self_mapped_pages"] == 0, "every access found the mapping that it had in the recording"
    assert told["accesses"]["total"] == 5003


def test_a_thread_gets_no_interrupts_before_it_begins() -> None:
    """Thread 2 appears after the munmap: until then CPU 1 has not got the mm loaded."""
    rows = [(STORE, n) for n in range(8)]
    workload = attrs.evolve(
        threads_of([(1, rows), (2, [(STORE, 16)])]), calls=(mmap(0, 0, 32, 1), munmap(8, 0, 8, 1))
    )
    assert machine().run(workload).to_dict()["shootdown"]["ipis"] == 0


def test_a_thread_that_ran_is_interrupted_when_another_unmaps_what_it_used() -> None:
    workload = attrs.evolve(
        threads_of([(1, [(STORE, 0)]), (2, [(STORE, 0)]), (1, [(STORE, 1)]), (2, [(STORE, 2)])]),
        calls=(mmap(0, 0, 8, 1), munmap(3, 0, 1, 1)),
    )
    told = machine().run(workload).to_dict()
    assert told["shootdown"]["ipis"] == 1
    assert told["flushes"]["by_call"]["munmap"]["needed"] == 2


def test_an_access_that_the_recording_never_mapped_maps_itself_once_for_all_threads() -> None:
    """Both threads touch the same page at the same virtual time, and nothing ever mapped it."""
    calls = (mmap(0, 100, 1, 1),)
    rows = [(STORE, n) for n in range(6)]
    workload = attrs.evolve(threads_of([(1, rows), (2, rows), (3, rows)]), calls=calls)
    told = machine().run(workload).to_dict()
    assert told["self_mapped_pages"] == 6
    assert told["accesses"]["total"] == 18
    assert "finding" not in told


def test_a_forbidden_access_ends_all_threads() -> None:
    at = BASE
    read_only = MmCall(0, 1, 1, "mmap", (at, PAGE, 1, ANON_FIXED, -1, 0), at)
    workload = attrs.evolve(
        threads_of([(1, [(LOAD, 0)] * 4), (2, [(STORE, 0)]), (1, [(LOAD, 0)])]), calls=(read_only,)
    )
    told = machine().run(workload).to_dict()
    assert told["finding"].startswith("access 4: segmentation fault: store at 0x40000000")


@pytest.mark.parametrize("name", ["ia64", "ppc64-64k", "s390-31", "sparc64", "x86-pae"])
def test_every_architecture_runs_threads_on_cpus_of_their_own(name: str) -> None:
    workload = open_workload(trace_path("threads"))
    solo, timed = (machine(driver, name=name).run(workload).to_dict() for driver in ("solo", "timed"))
    assert timed["accesses"] == solo["accesses"]
    assert timed["flushes"]["missing"] == 0


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 4),
            st.lists(st.tuples(st.sampled_from([LOAD, STORE]), st.integers(0, 12)), min_size=1, max_size=30),
        ),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.integers(0, 10), st.integers(1, 4)), max_size=5),
)
def test_any_threads_do_what_they_did(
    program: list[tuple[int, list[tuple[int, int]]]], cuts: list[tuple[int, bool, int, int]]
) -> None:
    """Any slices of any threads with any calls between them: each access once, each call once, nothing missing."""
    workload = threads_of(program)
    assert workload.accesses is not None
    total = len(workload.accesses)
    calls = tuple(
        (munmap if drops else mmap)(min(pos, total), page, 2, tid)
        for pos, drops, page, tid in sorted(cuts, key=lambda cut: cut[0])
    )
    workload = attrs.evolve(workload, calls=calls)
    solo, timed = (machine(driver).run(workload).to_dict() for driver in ("solo", "timed"))
    assert timed["accesses"] == solo["accesses"]
    assert timed["calls"] == solo["calls"]
    assert timed["flushes"]["missing"] == 0


# ------------------------------------------------------------------ tasks in Python
def test_spawned_tasks_run_at_once_and_give_their_mm_up() -> None:
    here = machine()
    mm = here.new_mm()
    va = mm.mmap(8 * PAGE)

    def body(index: int) -> None:
        here.cpus[index].store(va + index * PAGE, b"hello")
        assert here.cpus[index].load(va + index * PAGE, 5) == b"hello"
        mm.munmap(va + index * PAGE, PAGE)

    for index in range(4):
        here.spawn(f"t{index}", index, mm, lambda index=index: body(index))  # type: ignore[misc]
    mm.exit()
    here.run_tasks()
    told = here.report().to_dict()
    assert told["accesses"]["total"] == 8
    assert told["tables"]["live"] == 0
    assert told["mm_calls"] == {"exit": 1, "mmap": 1, "munmap": 4}
    assert told["latency"]["max_lock_wait"]["mmap_lock"] > 0


def test_a_kernel_thread_borrows_the_mm_it_finds_loaded() -> None:
    """CPU 0 runs a program, a kernel thread and the program again: it loads tables once."""
    here = machine()
    mm = here.new_mm()
    va = mm.mmap(PAGE)

    def program() -> None:
        for _ in range(5):
            here.cpus[0].store(va, b"x")
            here.sleep(1000)

    def kernel_thread() -> None:
        for _ in range(5):
            here.sleep(1000)

    here.spawn("program", 0, mm, program)
    here.spawn("kthread", 0, None, kernel_thread)
    here.run_tasks()
    assert here.report().to_dict()["kernel_cycles"]["context_switch"] == here.description.costs.context_switch


def test_two_programs_on_one_cpu_switch_the_mm_each_time() -> None:
    here = machine()

    def program(va: int, byte: bytes) -> None:
        for _ in range(5):
            here.cpus[0].store(va, byte)
            here.sleep(10_000)
            assert here.cpus[0].load(va, 1) == byte

    for byte in (b"a", b"b"):
        mm = here.new_mm()
        va = mm.mmap(PAGE)
        here.spawn(byte.decode(), 0, mm, lambda va=va, byte=byte: program(va, byte))  # type: ignore[misc]
        mm.exit()
    here.run_tasks()
    assert (
        here.report().to_dict()["kernel_cycles"]["context_switch"]
        >= 10 * here.description.costs.context_switch
    )


def test_other_seeds_show_other_orders() -> None:
    def waited(seed: int) -> object:
        here = machine(sets=["cpus=4", f"seed={seed}"])
        mm = here.new_mm()
        order: list[int] = []

        def body(index: int) -> None:
            mm.mmap(PAGE)
            order.append(index)

        for index in range(4):
            here.spawn(f"t{index}", index, mm, lambda index=index: body(index))  # type: ignore[misc]
        here.run_tasks()
        return tuple(order)

    assert waited(0) == waited(0)
    assert len({waited(seed) for seed in range(6)}) > 1


def test_tasks_need_the_timed_driver() -> None:
    with pytest.raises(UserMistake, match="build the machine with driver='timed'"):
        machine("solo").run_tasks()
    with pytest.raises(UserMistake, match=r"unknown driver 'tmed'.*did you mean 'timed'"):
        machine("tmed")


def test_a_task_has_its_own_cpu_only() -> None:
    here = machine()
    mm = here.new_mm()
    va = mm.mmap(PAGE)
    here.spawn("t", 0, mm, lambda: here.cpus[1].store(va, b"x"))
    with pytest.raises(UserMistake, match="a task on CPU 0 uses CPU 1"):
        here.run_tasks()
    with pytest.raises(UserMistake, match="no CPU 4; this machine has 0 to 3"):
        here.spawn("t", 4, mm, lambda: None)
