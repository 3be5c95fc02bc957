"""x86's shootdown step by step: the mask of 2.6 (A8.4) and the generations of 4.13 (A8.5).

Interleavings are made by hand: each step is a direct call, on the CPU that ``on`` names.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from polymmu.errors import SegmentationFault, SyscallError, UserMistake
from polymmu.machine import Machine, Mm
from polymmu.mm.mm import activate, enter_lazy_tlb
from polymmu_x86.tlbflush import NR_DYN_ASIDS, Generations, LazyMask, protocol_of

PAGE = 4096
AT = 1 << 28


def sets_of(arch: str, shootdown: str) -> list[str]:
    """Without PCIDs unless a test says otherwise."""
    return ["memory=64 MiB", f"{arch}.shootdown={shootdown}", *(["x86_64.pcid=false"] * (arch == "x86_64"))]


class Bench:
    """A machine and programs of sixteen pages each, with what each CPU was told to invalidate."""

    def __init__(self, shootdown: str, *sets: str, name: str = "x86_64", cpus: int = 3) -> None:
        sets = (*sets_of(name, shootdown), f"cpus={cpus}", *sets)
        self.machine = Machine.from_file(name, sets=sets, sanitize=True)
        self.kernel = self.machine.kernel
        self.protocol: Any = protocol_of(self.kernel)

    def program(self) -> Mm:
        mm = self.machine.new_mm()
        with self.on(0):
            mm.mmap(16 * PAGE, at=AT, fixed=True)
        return mm

    @contextmanager
    def on(self, cpu: int) -> Iterator[None]:
        outer, self.kernel.sched.cpu = self.kernel.sched.cpu, self.kernel.cpus[cpu]
        with self.machine.cpus[cpu]:
            yield
        self.kernel.sched.cpu = outer

    def run(self, cpu: int, mm: Mm) -> None:
        self.machine.cpus[cpu].switch_mm(mm)

    def idle(self, cpu: int) -> None:
        enter_lazy_tlb(self.kernel, self.kernel.cpus[cpu])

    def back(self, cpu: int, mm: Mm) -> None:
        activate(self.kernel, self.kernel.cpus[cpu], mm.struct)

    def cached(self, cpu: int, mm: Mm, addr: int = AT) -> bool:
        """Whether ``cpu`` holds a translation of the page that the tables do not support any more."""
        struct = mm.struct
        return self.kernel.cpus[cpu].count_stale(None, struct.pgd, addr, addr + PAGE, False) > 0

    def loaded(self, cpu: int) -> int:
        return self.kernel.cpus[cpu].root

    def walks(self, cpu: int) -> int:
        """Table walks of ``cpu`` so far."""
        count: int = self.kernel.cpus[cpu].counters()["walk"]["count"]
        return count

    @property
    def ipis(self) -> int:
        return self.machine.counters.shootdowns["ipis"]

    def clean(self) -> None:
        assert not self.machine.sanitizer.violations  # type: ignore[union-attr]


def test_a_machine_file_names_the_protocol_and_todays_is_the_default() -> None:
    assert type(protocol_of(Machine.from_file("x86_64").kernel)) is Generations
    assert type(Bench("lazy-mask").protocol) is LazyMask
    assert type(Bench("lazy-mask", name="x86").protocol) is LazyMask


def test_a_mask_with_pcids_is_refused_with_the_reason() -> None:
    with pytest.raises(UserMistake, match=r"x86_64.shootdown: a mask says nothing .* `pcid: false`"):
        Machine.from_file("x86_64", sets=["x86_64.pcid=true", "x86_64.shootdown=lazy-mask"])


# ------------------------------------------------------------------ A8.4: the mask
@pytest.mark.parametrize("name", ["x86_64", "x86"])
def test_a84_a_running_cpu_is_interrupted_each_time_and_a_lazy_one_once(name: str) -> None:
    bench = Bench("lazy-mask", name=name)
    mm = bench.program()
    for cpu in range(3):
        bench.run(cpu, mm)
        bench.machine.cpus[cpu].store(AT + cpu * PAGE, b"x")
    bench.idle(2)
    swapper = bench.kernel.init_mm.pgd  # type: ignore[union-attr]
    with bench.on(0):
        mm.mprotect(AT, PAGE, "r")
    assert bench.ipis == 2  # CPU 1 flushes, CPU 2 leaves
    assert mm.struct.cpu_mask == 0b011
    assert (bench.loaded(1), bench.loaded(2)) == (mm.struct.pgd, swapper)
    with bench.on(0):
        mm.mprotect(AT + PAGE, PAGE, "r")
    assert bench.ipis == 3  # CPU 1 alone
    bench.clean()


def test_a84_who_comes_back_from_lazy_reloads_cr3_only_if_it_had_to_leave() -> None:
    bench = Bench("lazy-mask")
    mm = bench.program()
    for cpu in (0, 1):
        bench.run(cpu, mm)
        bench.machine.cpus[cpu].store(AT, b"x")
    misses = functools.partial(bench.walks, 1)
    before = misses()
    bench.idle(1)
    bench.back(1, mm)
    bench.machine.cpus[1].load(AT, 1)
    assert misses() == before  # its TLB is as it was
    bench.idle(1)
    with bench.on(0):
        bench.machine.cpus[0].store(AT + PAGE, b"x")
        mm.munmap(AT + PAGE, PAGE)
    assert not mm.struct.cpu_mask >> 1 & 1
    bench.back(1, mm)
    assert (mm.struct.cpu_mask, bench.loaded(1)) == (0b11, mm.struct.pgd)
    bench.machine.cpus[1].load(AT, 1)
    assert misses() == before + 1
    bench.clean()


def test_a84_a_sender_that_is_lazy_itself_leaves() -> None:
    bench = Bench("lazy-mask")
    mm = bench.program()
    bench.run(0, mm)
    bench.idle(0)
    with bench.on(0):
        bench.kernel.ops.flush_tlb_mm(mm.struct)
    assert bench.loaded(0) == bench.kernel.init_mm.pgd  # type: ignore[union-attr]
    assert mm.struct.cpu_mask == 0


def test_a84_there_is_no_flush_of_a_range() -> None:
    """One page is invalidated as such (a fault), a range of two costs the whole TLB."""
    bench = Bench("lazy-mask", cpus=1)
    mm = bench.program()
    bench.run(0, mm)
    cpu = bench.machine.cpus[0]
    for n in range(16):
        cpu.store(AT + n * PAGE, b"x")
    child = mm.fork()
    cpu.load(AT + 4 * PAGE, 1)
    cpu.load(AT + 9 * PAGE, 1)
    walks = functools.partial(bench.walks, 0)
    cpu.store(AT + 9 * PAGE, b"y")  # copy-on-write: flush_tlb_page
    before = walks()
    cpu.load(AT + 4 * PAGE, 1)
    assert walks() == before
    mm.munmap(AT, 2 * PAGE)
    cpu.load(AT + 4 * PAGE, 1)
    assert walks() == before + 1
    child.exit()
    bench.clean()


def test_a84_the_old_mms_bit_goes_and_the_new_ones_comes_with_cr3() -> None:
    bench = Bench("lazy-mask")
    one, two = bench.program(), bench.program()
    bench.run(1, one)
    assert (one.struct.cpu_mask, two.struct.cpu_mask) == (0b10, 0)
    bench.run(1, two)
    assert (one.struct.cpu_mask, two.struct.cpu_mask) == (0, 0b10)


# ------------------------------------------------------------------ A8.5: generations
def test_a85_each_flush_is_a_generation_and_lazy_cpus_are_skipped_unless_tables_go() -> None:
    bench = Bench("generations")
    mm = bench.program()
    for cpu in range(3):
        bench.run(cpu, mm)
        for n in range(4):
            bench.machine.cpus[cpu].store(AT + n * PAGE, b"x")
    first = mm.struct.context.tlb_gen
    bench.idle(2)
    with bench.on(0):
        mm.madvise(AT, PAGE, "dontneed")
    assert (mm.struct.context.tlb_gen, bench.ipis) == (first + 1, 1)
    assert bench.cached(2, mm)
    assert not bench.cached(1, mm)
    with bench.on(0):
        mm.munmap(AT, 16 * PAGE)  # with its tables
    assert bench.ipis == 3
    assert bench.loaded(2) == bench.kernel.init_mm.pgd  # type: ignore[union-attr]
    assert mm.struct.cpu_mask == 0b011
    bench.clean()


@pytest.mark.parametrize("pcid", ["false", "true"])
def test_a85_who_comes_back_from_lazy_flushes_only_if_it_is_behind(pcid: str) -> None:
    bench = Bench("generations", f"x86_64.pcid={pcid}")
    mm = bench.program()
    for cpu in (0, 1):
        bench.run(cpu, mm)
        bench.machine.cpus[cpu].store(AT, b"x")
        bench.machine.cpus[cpu].store(AT + PAGE, b"x")
    walks = functools.partial(bench.walks, 1)
    before = walks()
    bench.idle(1)
    bench.back(1, mm)
    bench.machine.cpus[1].load(AT, 1)
    assert walks() == before
    bench.idle(1)
    with bench.on(0):
        mm.madvise(AT, PAGE, "dontneed")
    assert bench.cached(1, mm)
    bench.back(1, mm)
    assert not bench.cached(1, mm)
    assert bench.machine.cpus[1].load(AT, 1) == b"\0"
    assert walks() > before
    bench.clean()


def flush_at(bench: Bench, mm: Mm, new: int, start: int, end: int) -> None:
    """The request with generation ``new`` reaches CPU 1."""
    bench.protocol.flush_tlb_func(bench.kernel.cpus[1], mm.struct, new, start, end)


@pytest.mark.parametrize(
    ("local", "mm_gen", "new", "left", "then"),
    [
        (4, 5, 5, 3, 5),  # the very next one, and the last: its page alone goes
        (5, 5, 5, 4, 5),  # done already: nothing
        (5, 6, 4, 4, 5),  # overtaken: nothing
        (3, 5, 5, 0, 5),  # one was missed: everything
        (4, 6, 5, 0, 6),  # another is on its way: everything, and that one will find it done
    ],
)
def test_a85_what_a_receiver_does_about_a_request(
    local: int, mm_gen: int, new: int, left: int, then: int
) -> None:
    """A8.5 step 3: f.new <= local: nothing; partial only if f.new == local + 1 == mm.tlb_gen; else all."""
    bench = Bench("generations")
    mm = bench.program()
    bench.run(1, mm)
    for n in range(4):
        bench.machine.cpus[1].store(AT + n * PAGE, b"x")
    state = bench.protocol.cpus[1]
    state.tlb_gen[state.slot], mm.struct.context.tlb_gen = local, mm_gen
    flush_at(bench, mm, new, AT, AT + PAGE)
    assert state.tlb_gen[state.slot] == then
    walks = bench.walks(1)
    for n in range(4):
        bench.machine.cpus[1].load(AT + n * PAGE, 1)
    assert 4 - (bench.walks(1) - walks) == left


def test_a85_a_request_for_another_mm_is_ignored_and_a_lazy_receiver_leaves() -> None:
    bench = Bench("generations")
    mm, other = bench.program(), bench.program()
    bench.run(1, other)
    flush_at(bench, mm, 2, 0, 0)
    assert bench.loaded(1) == other.struct.pgd
    bench.idle(1)
    flush_at(bench, other, 2, 0, 0)
    assert bench.loaded(1) == bench.kernel.init_mm.pgd  # type: ignore[union-attr]
    assert other.struct.cpu_mask == 0


def test_a85_two_senders_cross_and_the_receiver_flushes_everything_once() -> None:
    """Flushes 2 and 3 are sent at once, 3 arrives first: all goes, and 2 finds it done."""
    bench = Bench("generations")
    mm = bench.program()
    bench.run(1, mm)
    state = bench.protocol.cpus[1]
    assert state.tlb_gen[0] == 1
    mm.struct.context.tlb_gen = 3
    bench.machine.cpus[1].store(AT, b"x")
    flush_at(bench, mm, 3, AT + PAGE, AT + 2 * PAGE)
    walks = bench.walks(1)
    bench.machine.cpus[1].load(AT, 1)
    assert bench.walks(1) == walks + 1
    flush_at(bench, mm, 2, AT, AT + PAGE)
    bench.machine.cpus[1].load(AT, 1)
    assert bench.walks(1) == walks + 1


def test_a85_six_slots_are_recycled_in_turn() -> None:
    bench = Bench("generations", "x86_64.pcid=true", cpus=1)
    mms = [bench.program() for _ in range(NR_DYN_ASIDS + 1)]
    state = bench.protocol.cpus[0]
    slots = []
    for mm in mms:
        bench.run(0, mm)
        slots.append(state.slot)
    assert slots == [0, 1, 2, 3, 4, 5, 0]
    bench.run(0, mms[3])
    assert state.slot == 3  # still there
    bench.run(0, mms[0])
    assert state.slot == 1  # its own was taken, the next in turn goes


def test_a85_an_mm_left_under_its_pcid_is_flushed_on_return_iff_it_is_behind() -> None:
    bench = Bench("generations", "x86_64.pcid=true")
    mm, other = bench.program(), bench.program()
    for cpu in (0, 1):
        bench.run(cpu, mm)
        bench.machine.cpus[cpu].store(AT, b"x")
        bench.machine.cpus[cpu].store(AT + PAGE, b"x")
    walks = functools.partial(bench.walks, 1)
    before = walks()
    bench.run(1, other)
    bench.run(1, mm)
    bench.machine.cpus[1].load(AT, 1)
    assert walks() == before
    bench.run(1, other)
    with bench.on(0):
        mm.madvise(AT, PAGE, "dontneed")
    assert bench.ipis == 0  # it was not in the mask
    bench.run(1, mm)
    assert bench.machine.cpus[1].load(AT, 1) == b"\0"
    bench.clean()


# ------------------------------------------------------------------ exit, and the timed driver
@pytest.mark.parametrize("shootdown", ["generations", "lazy-mask"])
@pytest.mark.parametrize("name", ["x86_64", "x86", "x86-pae"])
def test_an_mm_that_exits_while_others_keep_it_lazily(name: str, shootdown: str) -> None:
    """Its root lives until the last of them runs something else; the exit makes each leave, by one interrupt."""
    arch = "x86_64" if name == "x86_64" else "x86"
    sets = [*sets_of(arch, shootdown), "cpus=3"]
    machine = Machine.from_file(name, sets=sets, driver="timed", sanitize=True)
    kernel = machine.kernel
    mm, second = machine.new_mm(), machine.new_mm()
    at = mm.mmap(16 * PAGE, at=AT, fixed=True)
    second.mmap(PAGE, at=AT, fixed=True)
    seen: dict[str, Any] = {}

    def short(cpu: int) -> None:
        machine.cpus[cpu].store(at + cpu * PAGE, b"x")

    def long() -> None:
        for n in range(16):
            machine.cpus[0].store(at + n * PAGE, b"x")
        machine.work(100_000)  # the others are idle by now
        seen["lazy"] = kernel.lazy
        mm.exit()
        seen["ipis"] = machine.counters.shootdowns["ipis"]
        machine.exit_mm()
        swapper = kernel.init_mm.pgd  # type: ignore[union-attr]
        seen["left"] = [cpu.root == swapper for cpu in kernel.cpus]
        seen["roots held"] = mm.struct.mm_count
        seen["after"] = machine.counters.shootdowns["ipis"]

    for cpu in (1, 2):
        machine.spawn(f"short {cpu}", cpu, mm, functools.partial(short, cpu))
    machine.spawn("long", 0, mm, long)
    machine.run_tasks()
    assert seen == {"lazy": 0b110, "ipis": 0, "left": [True] * 3, "roots held": 3, "after": 2}
    assert kernel.lazy == 0
    second.exit()
    assert not machine.sanitizer.violations  # type: ignore[union-attr]
    assert machine.sanitizer.balance() == []  # type: ignore[union-attr]


@pytest.mark.parametrize("shootdown", ["generations", "lazy-mask"])
def test_a_cpu_that_idles_between_two_sleeps_comes_back_without_a_switch(shootdown: str) -> None:
    sets = [*sets_of("x86_64", shootdown), "cpus=2"]
    machine = Machine.from_file("x86_64", sets=sets, driver="timed", sanitize=True)
    mm = machine.new_mm()
    at = mm.mmap(PAGE, at=AT, fixed=True)

    def sleeper() -> None:
        for _ in range(10):
            machine.cpus[0].store(at, b"x")
            machine.sleep(5_000)

    machine.spawn("sleeper", 0, mm, sleeper)
    machine.run_tasks()
    assert machine.kernel.cpus[0].counters()["walk"]["count"] == 2  # the fault and its retry
    mm.exit()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("shootdown", "pcid"), [("generations", "false"), ("generations", "true"), ("lazy-mask", "false")]
)
def test_random_sleeps_kernel_threads_and_unmaps_are_clean(shootdown: str, pcid: str, seed: int) -> None:
    sets = [*sets_of("x86_64", shootdown), "cpus=3", f"seed={seed}", f"x86_64.pcid={pcid}"]
    machine = Machine.from_file("x86_64", sets=sets, driver="timed", sanitize=True)
    mms = [machine.new_mm() for _ in range(2)]
    for mm in mms:
        mm.mmap(64 * PAGE, at=AT, fixed=True)

    def program(cpu: int, mm: Mm) -> None:
        here = machine.cpus[cpu]
        for n in range(12):
            for k in range(0, 64, 7):
                here.store(AT + k * PAGE, b"x")
            if n % 3 == cpu:
                mm.munmap(AT, 64 * PAGE)
                mm.mmap(64 * PAGE, at=AT, fixed=True)
            elif n % 3 == 1:
                mm.madvise(AT + 7 * PAGE, 14 * PAGE, "dontneed")
            machine.sleep(1_000 + 700 * cpu)

    def thread(cpu: int) -> None:
        for _ in range(20):
            machine.work(500)
            machine.sleep(1_500)

    for cpu in range(3):
        machine.spawn(
            f"program {cpu}", cpu, mms[cpu % 2], functools.partial(guarded, program, cpu, mms[cpu % 2])
        )
        machine.spawn(f"thread {cpu}", cpu, None, functools.partial(thread, cpu))
    machine.run_tasks()
    for mm in mms:
        mm.exit()
    assert not machine.sanitizer.violations  # type: ignore[union-attr]
    assert machine.sanitizer.balance() == []  # type: ignore[union-attr]


def guarded(program: Any, cpu: int, mm: Mm) -> None:
    """Two threads may find each other's mapping away for a moment, and end."""
    with contextlib.suppress(SegmentationFault, SyscallError):
        program(cpu, mm)
