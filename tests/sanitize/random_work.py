"""Random correct work for the sanitizer to watch: mm calls, accesses, files and forks, one by one or on CPUs at once.

``timed_run`` has all of it: programs that share CPUs, threads that end while others run on, children that run as tasks
of their own, kernel threads that borrow an mm, huge pages, a driver's frames, shared memory, pins that are held. On a
machine with a swap area (``AREA``) pages also come and go, and the file is seen in any order.

What a task reads in memory of its own is compared with what it stored there, so a wrong byte is an error too.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hooks import ArchKernel
from polymmu.machine import CpuHandle, FileHandle, Machine, Mm
from polymmu.mm.frames import alloc_page, put_page
from polymmu.mm.pagecache import new_file
from polymmu.mm.tables import alloc_entry, pte_lock, pte_unlock
from polymmu.mm.truncate import unmap_mapping_range
from polymmu.registry import replaced
from polymmu.structs import VM_DONTEXPAND, VM_PFNMAP, File, vm_area_struct

PRIVATE, SHARED, FILE, DEVICE = 16, 32, 24, 4
"""Pages of a task's own mapping, of the one that all tasks share, of the file, and of the driver."""
AREA = ("swap=16 MiB", "costs.page_io=3000")
"""Makes a machine one that swaps."""
LARGEST = 16 << 20
"""Bytes of the largest huge page that is tried: a few of them must fit."""


class Device:
    """A driver whose mmap maps frames of its own, which have no count of ptes (VM_PFNMAP)."""

    def __init__(self, kernel: ArchKernel) -> None:
        self.kernel = kernel
        self.frames = [alloc_page(kernel, "file") for _ in range(DEVICE)]
        self.file = new_file(kernel, "device", DEVICE * kernel.shape.layout.page_size, mmap=self.mmap)

    def mmap(self, file: File, vma: vm_area_struct) -> None:
        mm, shape = vma.vm_mm, self.kernel.shape
        vma.vm_flags |= VM_PFNMAP | VM_DONTEXPAND
        for addr, pfn in zip(
            range(vma.vm_start, vma.vm_end, shape.layout.page_size), self.frames, strict=False
        ):
            ptep = alloc_entry(mm, addr)
            value = np.array([pfn << shape.pfn_shift | shape.stored[vma.vm_page_prot]], dtype=np.uint64)
            pte_lock(mm, ptep)
            self.kernel.ops.set_pte(mm, addr, ptep, value)
            pte_unlock(mm, ptep)

    def close(self) -> None:
        for pfn in self.frames:
            put_page(self.kernel, pfn)


@attrs.define
class Common:
    """What all tasks of a machine share. ``huge``: size of the huge pages that are tried, 0: none."""

    machine: Machine
    file: FileHandle
    device: Device | None = None
    huge: int = 0
    huge_file: FileHandle | None = None
    tasks: int = 0

    def close(self) -> None:
        """The programs have gone: give everything back."""
        kernel = self.machine.kernel
        for file in filter(None, (self.file, self.huge_file)):
            file.close()
        if self.device is not None:
            FileHandle(self.machine, self.device.file).close()
            self.device.close()
        assert not kernel.free.fail_next


class Worker:
    """One task's share: ``step`` does one thing, chosen by ``rng``."""

    CALLS: tuple[str, ...] = (
        "map_or_unmap",
        "store",
        "store",
        "load",
        "load",
        "touch_shared",
        "touch_shared",
        "drop_shared",
        "protect",
        "fork",
        "move",
        "work_on_file",
        "work_on_file",
        "truncate",
        "pin",
    )
    SWAPPING = (
        "store",
        "store",
        "load",
        "load",
        "load",
        "swap_out",
        "swap_out",
        "reclaim",
        "remap",
        "work_on_file",
    )
    """What is done besides on a machine that swaps."""

    def __init__(self, common: Common, cpu: CpuHandle, mm: Mm, shared: int, seed: int) -> None:
        self.common, self.machine, self.cpu, self.mm = common, common.machine, cpu, mm
        self.shared, self.file = shared, common.file
        self.calls = self.CALLS + (self.SWAPPING if self.machine.kernel.swap is not None else ())
        self.rng = random.Random(seed)
        self.page = self.machine.page_size
        self.mine: int | None = None
        self.pages = 0
        self.model: dict[int, bytes] = {}
        self.mapped_file: int | None = None
        self.children: list[Mm] = []

    def step(self) -> None:
        """One thing."""
        getattr(self, self.rng.choice(self.calls))()

    def map_or_unmap(self) -> None:
        if self.mine is None:
            self.mine, self.pages, self.model = self.mm.mmap(PRIVATE * self.page), PRIVATE, {}
        elif self.rng.random() < 0.5:
            self.mm.munmap(self.mine, self.pages * self.page)
            self.mine = None

    def store(self) -> None:
        if self.mine is not None:
            page, value = self.rng.randrange(self.pages), bytes([self.rng.randrange(1, 256)])
            self.cpu.store(self.mine + page * self.page, value)
            self.model[page] = value

    def load(self) -> None:
        if self.mine is not None:
            page = self.rng.randrange(self.pages)
            read = self.cpu.load(self.mine + page * self.page, 1)
            assert read == self.model.get(page, b"\0"), f"page {page} reads {read!r}"

    def touch_shared(self) -> None:
        self.cpu.store(self.shared + self.rng.randrange(SHARED) * self.page, b"s")

    def drop_shared(self) -> None:
        first = self.rng.randrange(SHARED)
        self.mm.madvise(self.shared + first * self.page, (SHARED - first) * self.page, "dontneed")

    def protect(self) -> None:
        if self.mine is not None:
            self.mm.mprotect(self.mine, self.pages * self.page, "r")
            self.load()
            self.mm.mprotect(self.mine, self.pages * self.page, "rw")

    def fork(self) -> None:
        if self.children:
            self.children.pop().exit()
        else:
            self.children.append(self.mm.fork())

    def move(self) -> None:
        if self.mine is not None:
            pages = self.rng.choice((PRIVATE, 2 * PRIVATE))
            self.mine = self.mm.mremap(self.mine, self.pages * self.page, pages * self.page)
            self.pages = pages
            self.model = {page: value for page, value in self.model.items() if page < pages}

    def work_on_file(self) -> None:
        if self.mapped_file is None:
            self.mapped_file = self.mm.mmap(FILE * self.page, file=self.file, shared=self.rng.random() < 0.7)
        elif self.rng.random() < 0.1:
            self.mm.munmap(self.mapped_file, FILE * self.page)
            self.mapped_file = None
        else:
            at = self.mapped_file + self.rng.randrange(FILE) * self.page
            with contextlib.suppress(SegmentationFault):  # cut off meanwhile
                if self.rng.random() < 0.5:
                    self.cpu.load(at, 1)
                else:
                    self.cpu.store(at, b"f")

    def truncate(self) -> None:
        if self.rng.random() < 0.3:
            self.file.truncate(self.rng.randrange(FILE * self.page))
            self.file.truncate(FILE * self.page)

    def pin(self) -> None:
        at = self.shared if self.mine is None or self.rng.random() < 0.5 else self.mine
        pfn = self.mm.gup_fast(at + self.rng.randrange(PRIVATE) * self.page, self.rng.random() < 0.5)
        self.mm.put(pfn)

    def swap_out(self) -> None:
        ours = ((self.mine, self.pages), (self.shared, SHARED), (self.mapped_file, FILE))
        at, pages = self.rng.choice(ours)
        if at is not None:
            first = self.rng.randrange(pages)
            self.mm.swap_out(at + first * self.page, self.rng.randint(1, pages - first) * self.page)

    def reclaim(self) -> None:
        self.machine.reclaim(self.rng.randint(1, 8))

    def remap(self) -> None:
        if self.mapped_file is not None and self.machine.kernel.shape.pte.file is not None:
            first, shown = self.rng.randrange(FILE), self.rng.randrange(FILE)
            at, pages = self.mapped_file + first * self.page, self.rng.randint(1, FILE - max(first, shown))
            now = self.rng.random() < 0.5
            with contextlib.suppress(SyscallError, SegmentationFault):  # private, or cut off meanwhile
                self.mm.remap_file_pages(at, pages * self.page, shown * self.page, populate=now)

    def finish(self) -> None:
        """Give back what no other task has."""
        for child in self.children:
            child.exit()


class Task(Worker):
    """A worker that is a task of the timed driver. ``depth``: how many generations of tasks it may start."""

    CALLS = (
        *Worker.CALLS,
        "truncate",
        "pin_and_hold",
        "pin_and_hold",
        "use_device",
        "use_huge",
        "use_huge",
        "use_huge_file",
        "share",
        "heap",
        "invalidate",
        "exec",
        "run_child",
        "run_thread",
        "sleep",
    )

    def __init__(self, *arguments: Any, depth: int = 1) -> None:
        super().__init__(*arguments)
        self.depth = depth
        self.pins: list[int] = []
        self.places: dict[str, int] = {}
        self.huge_model = b"\0"

    def run(self, steps: int) -> None:
        """The task's whole life."""
        for _ in range(steps):
            self.step()
            self.machine.work(self.rng.randrange(2000))
        self.finish()

    def finish(self) -> None:
        super().finish()
        for pfn in self.pins:
            self.mm.put(pfn)

    def pin_and_hold(self) -> None:
        """A page stays held while its mapping goes."""
        if self.pins and self.rng.random() < 0.6:
            self.mm.put(self.pins.pop(0))
        else:
            at = self.shared + self.rng.randrange(SHARED) * self.page
            self.pins.append(self.mm.gup_fast(at, self.rng.random() < 0.7))

    def _toggle(self, name: str, length: int, **mapping: Any) -> int | None:
        """Map it, or with some chance take it back: where it is, None if it is not."""
        if name not in self.places:
            self.places[name] = self.mm.mmap(length, **mapping)
        elif self.rng.random() < 0.25:
            self.mm.munmap(self.places.pop(name), length)
        return self.places.get(name)

    def use_device(self) -> None:
        if self.common.device is not None:
            file = FileHandle(self.machine, self.common.device.file)
            at = self._toggle("device", DEVICE * self.page, file=file, shared=True)
            if at is not None:
                self.cpu.store(at + self.rng.randrange(DEVICE) * self.page, b"d")

    def use_huge(self) -> None:
        size = self.common.huge
        with contextlib.suppress(OutOfMemory):
            if size and "huge" not in self.places:
                self.huge_model = b"\0"
            at = self._toggle("huge", size, huge=size) if size else None
            if at is not None:
                with out_of_memory():
                    assert self.cpu.load(at + size // 2, 1) == self.huge_model
                    value = bytes([self.rng.randrange(1, 256)])
                    self.cpu.store(at + size // 2, value)
                    self.huge_model = value

    def use_huge_file(self) -> None:
        size, file = self.common.huge, self.common.huge_file
        if file is not None:
            if self.rng.random() < 0.2:
                file.truncate(0)
                file.truncate(size)
            at = self._toggle("huge file", size, file=file, shared=True)
            if at is not None:
                with contextlib.suppress(SegmentationFault, OutOfMemory), out_of_memory():
                    self.cpu.store(at + self.page, b"H")

    def share(self) -> None:
        """Shared memory that children see."""
        at = self._toggle("shared", 4 * self.page, shared=True)
        if at is not None:
            self.cpu.store(at + self.rng.randrange(4) * self.page, b"S")

    def heap(self) -> None:
        self.mm.brk(self.mm.struct.start_brk + self.rng.randrange(8) * self.page)

    def invalidate(self) -> None:
        """As a network file system does that learns of another's store: private copies stay."""
        unmap_mapping_range(self.machine.kernel, self.file.file.mapping, 0, 0, False)

    def exec(self) -> None:
        if self.children:
            self.children[-1] = self.children[-1].exec()

    def run_child(self) -> None:
        """A child as a task of its own, on any CPU; its mm goes when it ends, whoever runs then."""
        if self.depth and self.rng.random() < 0.3:
            child = self.mm.fork()
            self._start(child)
            child.exit()

    def run_thread(self) -> None:
        """Another thread in this mm, which ends while this one runs on."""
        if self.depth and self.rng.random() < 0.3:
            self._start(self.mm)

    def _start(self, mm: Mm) -> None:
        self.common.tasks += 1
        cpu = self.rng.choice(self.machine.cpus)
        seed = self.rng.randrange(1 << 30)
        other = Task(self.common, cpu, mm, self.shared, seed, depth=self.depth - 1)
        self.machine.spawn(f"child {self.common.tasks}", cpu.cpu.index, mm, partial(other.run, 6))

    def sleep(self) -> None:
        self.machine.sleep(self.rng.randrange(1, 5000))


class OutOfMemory(Exception):
    """There is no block for a huge page."""


@contextlib.contextmanager
def out_of_memory() -> Any:
    try:
        yield
    except SyscallError as refusal:
        if refusal.errno != errno.ENOMEM:
            raise
        raise OutOfMemory from refusal


def machine(
    name: str, cpus: int, seed: int, driver: str, sets: Sequence[str] = (), **hooks: Callable[..., Any]
) -> Machine:
    """A machine with its referee; ``hooks`` are answered otherwise than the arch does."""
    plain = (f"cpus={cpus}", "memory=256 MiB", f"seed={seed}")
    description, arch = Machine.describe(name, sets=[*plain, *sets])
    for hook, function in hooks.items():
        arch = replaced(arch, hook, function)
    return Machine(description, arch, driver=driver, sanitize=True)


def solo_run(
    name: str,
    seed: int,
    steps: int = 150,
    fails: Callable[[str], bool] | None = None,
    sets: Sequence[str] = (),
) -> Machine:
    """Two programs take turns on three CPUs, one step at a time.

    ``fails``: asked at each allocation once the programs have begun; a step that fails for it has not happened.
    """
    made = machine(name, 3, seed, "solo", sets)
    rng = random.Random(seed)
    common = Common(made, made.new_file(FILE * made.page_size))
    workers = []
    for n in range(2):
        mm = made.new_mm()
        shared = mm.mmap(SHARED * made.page_size)
        workers.append(Worker(common, made.cpus[0], mm, shared, seed * 7 + n))
    made.kernel.free.fail_next = fails
    for _ in range(steps):
        worker, cpu = rng.choice(workers), rng.choice(made.cpus)
        cpu.switch_mm(worker.mm)
        worker.cpu = cpu
        if fails is None:
            worker.step()
        else:
            with contextlib.suppress(SyscallError, SegmentationFault):
                worker.step()
    for worker in workers:
        worker.finish()
        worker.mm.exit()
    made.kernel.free.fail_next = None
    common.close()
    return finished(made)


class Points:
    """Counts the timed steps of a machine: its visible operations, at each of which another CPU may come first."""

    def __init__(self) -> None:
        self.n = 0

    def watch(self, made: Machine) -> None:
        sched = made.kernel.sched
        point = sched.point

        def counting(kind: str, what: object) -> None:
            self.n += 1
            point(kind, what)

        sched.point = counting  # type: ignore[method-assign]


def timed_run(
    name: str,
    seed: int,
    steps: int = 60,
    sets: Sequence[str] = (),
    points: Points | None = None,
    **hooks: Callable[..., Any],
) -> Machine:
    """Three threads of one program on a CPU each, two more programs that share CPUs 0 and 1 with them, and a kernel
    thread on each CPU; and what tasks they start."""
    made = machine(name, 3, seed, "timed", sets, **hooks)
    if points is not None:
        points.watch(made)
    huge = next((size for size in made.huge_page_sizes if size <= LARGEST), 0)
    common = Common(made, made.new_file(FILE * made.page_size), Device(made.kernel), huge)
    if huge:
        common.huge_file = made.new_file(huge, huge=huge)
    threads, alone, other = made.new_mm(), made.new_mm(), made.new_mm()
    shared = {mm: mm.mmap(SHARED * made.page_size) for mm in (threads, alone, other)}
    places = [(0, threads), (1, threads), (2, threads), (0, alone), (1, other)]
    for n, (cpu, mm) in enumerate(places):
        task = Task(common, made.cpus[cpu], mm, shared[mm], seed * 31 + n)
        made.spawn(f"task {n}", cpu, mm, partial(task.run, steps))

    def borrows(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(steps // 3):
            made.sleep(rng.randrange(20_000))
            made.work(rng.randrange(2000))

    for cpu in range(3):
        made.spawn(f"kernel thread {cpu}", cpu, None, partial(borrows, seed * 37 + cpu))
    made.run_tasks()
    for mm in shared:
        mm.exit()
    common.close()
    return finished(made)


def finished(made: Machine) -> Machine:
    assert made.sanitizer is not None
    made.sanitizer.finish()
    return made
