"""Random correct work for the sanitizer to watch: mm calls, accesses, files and forks, one by one or on CPUs at once.

What a task reads in memory of its own is compared with what it stored there, so a wrong byte is an error too.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.events import Events, Observer
from polymmu.machine import CpuHandle, FileHandle, Machine, Mm
from polymmu.registry import replaced

PRIVATE, SHARED, FILE = 16, 32, 24
"""Pages of a task's own mapping, of the one that all tasks share, and of the file."""


class Worker:
    """One task's share: ``step`` does one thing, chosen by ``rng``."""

    def __init__(
        self, machine: Machine, cpu: CpuHandle, mm: Mm, shared: int, file: FileHandle, seed: int
    ) -> None:
        self.machine, self.cpu, self.mm = machine, cpu, mm
        self.shared, self.file = shared, file
        self.rng = random.Random(seed)
        self.page = machine.page_size
        self.mine: int | None = None
        self.pages = 0
        self.model: dict[int, bytes] = {}
        self.mapped_file: int | None = None
        self.children: list[Mm] = []

    def step(self) -> None:
        """One thing."""
        self.rng.choice(
            (
                self.map_or_unmap,
                self.store,
                self.store,
                self.load,
                self.load,
                self.touch_shared,
                self.touch_shared,
                self.drop_shared,
                self.protect,
                self.fork,
                self.move,
                self.work_on_file,
                self.work_on_file,
                self.truncate,
                self.pin,
            )
        )()

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

    def finish(self) -> None:
        """Give back what no other task has."""
        for child in self.children:
            child.exit()


class Swapper(Worker):
    """A worker whose pages come and go, and whose file is seen in any order."""

    def step(self) -> None:
        if self.mine is None or self.rng.random() < 0.02:
            self.map_or_unmap()
        stays = (*[self.load] * 5, *[self.store] * 4, self.touch_shared, self.work_on_file, self.work_on_file)
        goes = (self.swap_out, self.swap_out, self.reclaim, self.remap, self.truncate)
        self.rng.choice((*stays, *goes, self.fork, self.move, self.protect, self.pin))()

    def swap_out(self) -> None:
        at, pages = self.rng.choice(
            ((self.mine, self.pages), (self.shared, SHARED), (self.mapped_file, FILE))
        )
        if at is not None:
            first = self.rng.randrange(pages)
            self.mm.swap_out(at + first * self.page, self.rng.randint(1, pages - first) * self.page)

    def reclaim(self) -> None:
        self.machine.reclaim(self.rng.randint(1, 8))

    def remap(self) -> None:
        if self.mapped_file is not None and self.machine.kernel.shape.pte.file is not None:
            first, shown = self.rng.randrange(FILE), self.rng.randrange(FILE)
            at, pages = self.mapped_file + first * self.page, self.rng.randint(1, FILE - max(first, shown))
            with contextlib.suppress(SyscallError, SegmentationFault):  # private, or cut off meanwhile
                self.mm.remap_file_pages(
                    at, pages * self.page, shown * self.page, populate=self.rng.random() < 0.5
                )


def machine(
    name: str, cpus: int, seed: int, driver: str, *, sets: Sequence[str] = (), **hooks: Callable[..., Any]
) -> Machine:
    """A machine with its referee; ``hooks`` are answered otherwise than the arch does."""
    description, arch = Machine.describe(name, sets=[f"cpus={cpus}", "memory=256 MiB", f"seed={seed}", *sets])
    for hook, function in hooks.items():
        arch = replaced(arch, hook, function)
    return Machine(description, arch, driver=driver, sanitize=True)


class Stall(Observer):
    """Holds a lockless walker up behind each entry it has read, long enough for others to free the next table."""

    def __init__(self, made: Machine) -> None:
        self.sched = made.kernel.sched

    def lockless_read(self, mm: object, cpu: int, rank: int, entry: int, table: int) -> None:
        self.sched.spend(3000, "stall")
        self.sched.point("stall", None)


def race_of_walkers(made: Machine, seed: int, rounds: int = 8) -> None:
    """CPU 0 maps and unmaps pages in a table of their own while CPUs 1 and 2 look for them without a lock."""
    mm, page = made.new_mm(), made.page_size
    at = 1 << 30
    made.kernel.events = Events((*made.kernel.events.observers, Stall(made)))

    def unmaps() -> None:
        chance = random.Random(seed)
        for _ in range(rounds):
            mm.mmap(4 * page, at=at, fixed=True)
            made.cpus[0].store(at, b"x")
            made.work(chance.randrange(20_000))
            mm.munmap(at, 4 * page)

    def walks(cpu: int) -> None:
        chance = random.Random(seed * 3 + cpu)
        for _ in range(20 * rounds):
            with contextlib.suppress(SegmentationFault):
                mm.put(mm.gup_fast(at))
            made.work(chance.randrange(2000))

    made.spawn("unmaps", 0, mm, unmaps)
    for cpu in (1, 2):
        made.spawn(f"walks {cpu}", cpu, mm, partial(walks, cpu))
    made.run_tasks()
    mm.exit()


def solo_run(
    name: str,
    seed: int,
    steps: int = 150,
    fails: Callable[[str], bool] | None = None,
    *,
    kind: type[Worker] = Worker,
    sets: Sequence[str] = (),
) -> Machine:
    """Two programs take turns on three CPUs, one step at a time.

    ``fails``: asked at each allocation once the programs have begun; a step that fails for it has not happened.
    """
    made = machine(name, 3, seed, "solo", sets=sets)
    rng = random.Random(seed)
    file = made.new_file(FILE * made.page_size)
    workers = []
    for n in range(2):
        mm = made.new_mm()
        shared = mm.mmap(SHARED * made.page_size)
        workers.append(kind(made, made.cpus[0], mm, shared, file, seed * 7 + n))
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
    file.close()
    return finished(made)


def timed_run(
    name: str,
    seed: int,
    steps: int = 60,
    *,
    kind: type[Worker] = Worker,
    sets: Sequence[str] = (),
    **hooks: Callable[..., Any],
) -> Machine:
    """Three threads of one program on a CPU each, and another program that shares CPU 0 with the first."""
    made = machine(name, 3, seed, "timed", sets=sets, **hooks)
    file = made.new_file(FILE * made.page_size)
    threads, alone = made.new_mm(), made.new_mm()
    shared = {mm: mm.mmap(SHARED * made.page_size) for mm in (threads, alone)}
    places = [(0, threads), (1, threads), (2, threads), (0, alone)]

    def body(worker: Worker) -> Callable[[], None]:
        def run() -> None:
            for _ in range(steps):
                worker.step()
                made.work(worker.rng.randrange(2000))
            worker.finish()

        return run

    for n, (cpu, mm) in enumerate(places):
        worker = kind(made, made.cpus[cpu], mm, shared[mm], file, seed * 31 + n)
        made.spawn(f"task {n}", cpu, mm, body(worker))
    made.run_tasks()
    for mm in (threads, alone):
        mm.exit()
    file.close()
    return finished(made)


def finished(made: Machine) -> Machine:
    assert made.sanitizer is not None
    made.sanitizer.finish()
    return made
