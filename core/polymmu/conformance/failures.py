"""Every allocation may fail, once: the call says ENOMEM or does without, nothing is lost, and the rest goes on.

A piece of work runs once while its allocations are counted by site. Then, for a site and an occurrence, it runs again
on a machine of its own with that one failing. So whatever allocates is covered, an arch's hooks too, provided that it
asks ``alloc_page`` or ``alloc_pages``, or a slab. The work is a row of small errands; one that is refused is done again
at once, and must succeed, and so must all that come after it.

First reading: ``run_with``, ``Failures``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

import attrs

from polymmu.conformance.bench import Bench, Window, World, require
from polymmu.conformance.checks import Checks
from polymmu.errors import SyscallError, syscall_error
from polymmu.machine import CpuHandle, Mm
from polymmu.sanitize.sanitizer import Sanitizer

__all__ = ["Allocations", "Failures", "Outcome", "allocations_of", "run_with"]

T = TypeVar("T")


class Allocations:
    """For ``kernel.free.fail_next``: counts allocations by site, and makes the ``nth`` of ``site`` fail."""

    def __init__(self, site: str = "", nth: int = 0) -> None:
        self.site, self.nth = site, nth
        self.counts: dict[str, int] = {}

    def __call__(self, site: str) -> bool:
        self.counts[site] = self.counts.get(site, 0) + 1
        return site == self.site and self.counts[site] == self.nth

    @property
    def failed(self) -> bool:
        """Whether the one that was to fail has been asked for."""
        return self.counts.get(self.site, 0) >= self.nth > 0


@attrs.define
class Errand:
    """What an errand works with. ``at``: a place for small pages of its own. What it opens it gives to ``end``."""

    world: World
    mm: Mm
    at: int
    end: ExitStack

    @property
    def page(self) -> int:
        """Bytes of a small page."""
        return self.world.page

    @property
    def cpus(self) -> Sequence[CpuHandle]:
        """The machine's CPUs, both in ``mm``."""
        return self.world.cpus

    def fill(self, va: int, pages: int, byte: bytes = b"x") -> None:
        """Store a byte to each page, from both CPUs in turn."""
        for n in range(pages):
            self.cpus[n % 2].store(va + n * self.page, byte)

    def check(self, va: int, pages: int, byte: bytes = b"x") -> None:
        """Both CPUs must read that byte."""
        for n in range(pages):
            for cpu in self.cpus:
                read = cpu.load(va + n * self.page, 1)
                require(read == byte, f"page {n} of {pages} at {va:#x} reads {read!r}, not {byte!r}")


# ------------------------------------------------------------------ errands
def maps_and_splits(errand: Errand) -> None:
    """Vmas, tables, pages and a gather that needs more than its bundle."""
    mm, page, at = errand.mm, errand.page, errand.at
    mm.mmap(14 * page, at=at, fixed=True)
    errand.fill(at, 12)
    mm.mprotect(at + 3 * page, page, "r")
    errand.check(at, 12)
    mm.munmap(at + 5 * page, page)
    errand.check(at + 6 * page, 6)
    mm.madvise(at + 6 * page, 6 * page, "dontneed")
    errand.check(at + 6 * page, 6, b"\0")
    errand.fill(at + 6 * page, 6)
    mm.munmap(at, 14 * page)


def populates(errand: Errand) -> None:
    mm, page, at = errand.mm, errand.page, errand.at
    mm.mmap(6 * page, at=at, fixed=True, populate=True)
    errand.check(at, 6, b"\0")
    errand.fill(at, 6)
    mm.mmap(3 * page, at=at + 6 * page, fixed=True, shared=True, populate=True)
    errand.fill(at, 9)
    errand.check(at, 9)


def forks(errand: Errand) -> None:
    """Copies of tables, and of pages; and a program that execs."""
    mm, page, at = errand.mm, errand.page, errand.at
    mm.mmap(3 * page, at=at, fixed=True)
    errand.fill(at, 2, b"p")
    family = [mm.fork()]

    def exits() -> None:
        family[0].exit()  # it is another one after exec

    errand.end.callback(exits)
    errand.fill(at, 2, b"q")
    errand.world.run(family[0], 1)
    errand.end.callback(errand.world.run, mm, 1)
    require(errand.cpus[1].load(at, 1) == b"p", "a child sees what its parent stored after the fork")
    errand.cpus[1].store(at + page, b"c")
    family[0] = family[0].exec()
    errand.world.run(mm, 1)
    errand.check(at, 2, b"q")


def uses_files(errand: Errand) -> None:
    """A page cache, private copies of it, and a truncation."""
    mm, page, at = errand.mm, errand.page, errand.at
    file = errand.world.machine.new_file(4 * page)
    errand.end.callback(file.close)
    mm.mmap(4 * page, at=at, fixed=True, file=file, shared=True)
    errand.fill(at, 4, b"f")
    mm.mmap(4 * page, at=at + 4 * page, fixed=True, file=file)
    errand.check(at + 4 * page, 2, b"f")
    errand.fill(at + 4 * page, 4, b"g")
    errand.check(at, 4, b"f")
    file.truncate(page)
    errand.check(at, 1, b"f")


def moves(errand: Errand) -> None:
    """mremap out of the middle of a mapping, and growth."""
    mm, page, at = errand.mm, errand.page, errand.at
    mm.mmap(6 * page, at=at, fixed=True)
    errand.fill(at, 6)
    try:
        there = mm.mremap(at + 2 * page, 2 * page, 3 * page, to=at + 8 * page)
    except SyscallError:
        errand.check(at, 6)  # what is refused has not happened
        raise
    errand.check(there, 2)
    errand.check(there + 2 * page, 1, b"\0")
    errand.check(at + 4 * page, 2)


def looks_pages_up(errand: Errand) -> None:
    mm, page, at = errand.mm, errand.page, errand.at
    mm.mmap(2 * page, at=at, fixed=True)
    for n, write in enumerate((False, True)):
        mm.put(mm.gup_fast(at + n * page, write))
    errand.fill(at, 2)
    errand.check(at, 2)


def grows(errand: Errand) -> None:
    """The heap."""
    mm, page = errand.mm, errand.page
    start = mm.brk()
    if mm.brk(start + 2 * page) != start + 2 * page:
        raise syscall_error(errno.ENOMEM, "the heap did not grow")
    errand.fill(start, 1)
    mm.brk(start)


def starts_a_program(errand: Errand) -> None:
    mm = errand.world.machine.new_mm()
    errand.end.callback(mm.exit)
    errand.world.run(mm, 0)
    errand.end.callback(errand.world.run, errand.mm, 0)
    va = mm.mmap(errand.page)
    errand.cpus[0].store(va, b"y")


def uses_huge_pages(errand: Errand) -> None:
    """Of the smallest size: private and copied, and of a file."""
    mm, world = errand.mm, errand.world
    for size in world.bench.huge_sizes[:1]:
        file = world.machine.new_file(size, huge=size)
        errand.end.callback(file.close)
        shared = mm.mmap(size, file=file, shared=True)
        errand.end.callback(mm.munmap, shared, size)
        private = mm.mmap(size, huge=size)
        errand.end.callback(mm.munmap, private, size)
        for at in (shared, private):
            errand.cpus[0].store(at, b"h")
        child = mm.fork()
        errand.end.callback(child.exit)
        errand.cpus[0].store(private, b"i")
        errand.check(shared, 1, b"h")
        errand.check(private, 1, b"i")


ERRANDS: tuple[Callable[[Errand], None], ...] = (
    maps_and_splits,
    populates,
    forks,
    uses_files,
    moves,
    looks_pages_up,
    grows,
    starts_a_program,
    uses_huge_pages,
)
ROOM = 16
"""Pages that an errand may use at its place."""


# ------------------------------------------------------------------ the whole work
@attrs.frozen(kw_only=True)
class Outcome:
    """What became of a run. ``refused``: errands that said ENOMEM. ``wrong``: what is not right, a line each."""

    allocations: Allocations
    refused: tuple[str, ...]
    wrong: tuple[str, ...]


def allocations_of(bench: Bench) -> dict[str, int]:
    """How many allocations of each site the work makes on ``bench``."""
    return run_with(bench, Allocations()).allocations.counts


def run_with(bench: Bench, allocations: Allocations) -> Outcome:
    """Do the work on a new machine while ``allocations`` says what fails, under the sanitizer's eyes."""
    windows = bench.windows()
    places = [windows[0], windows[-1]] if len(windows) > 1 else windows
    memory = bench.description.memory + sum(4 * size for size in bench.huge_sizes[:1])
    world = bench.world(memory=memory)
    sanitizer = Sanitizer(world.kernel)
    world.kernel.free.fail_next = allocations
    refused: list[str] = []
    mm = _insist(world.program, "a new program", refused)
    for n, errand in enumerate(ERRANDS):
        _do(errand, world, mm, places[n % len(places)], refused)
    mm.exit()
    world.kernel.free.fail_next = None
    sanitizer.finish()
    wrong = [] if bench.deviations else [str(violation) for violation in sanitizer.violations]
    return Outcome(allocations=allocations, refused=tuple(refused), wrong=(*wrong, *sanitizer.balance()))


def _do(errand: Callable[[Errand], None], world: World, mm: Mm, place: Window, refused: list[str]) -> None:
    """One errand; if it is refused for want of memory, it goes away without a trace and is done again."""
    at = -(-place.start // world.page) * world.page

    def attempt() -> None:
        with ExitStack() as end:
            end.callback(_clear, mm, at, at + ROOM * world.page)
            errand(Errand(world, mm, at, end))

    _insist(attempt, errand.__name__, refused)


def _clear(mm: Mm, start: int, end: int) -> None:
    """Unmap what is mapped in [start, end)."""
    for low, high, _ in mm.mappings():
        if low < end and start < high:
            mm.munmap(max(low, start), min(high, end) - max(low, start))


def _insist(work: Callable[[], T], name: str, refused: list[str]) -> T:
    """``work()``, and once more if it says ENOMEM."""
    try:
        return work()
    except SyscallError as refusal:
        require(refusal.errno == errno.ENOMEM, f"{name} was refused without need: {refusal}")
        refused.append(name)
        return work()


class Failures(Checks):
    """Memory that is not there."""

    def test_an_allocation_that_fails_is_refused_or_done_without(self, bench: Bench) -> None:
        """The first and the last of each site."""
        for site, count in sorted(allocations_of(bench).items()):
            for nth in sorted({1, count}):
                self.check(bench, site, nth)

    @staticmethod
    def check(bench: Bench, site: str, nth: int) -> Outcome:
        """The work with the ``nth`` allocation of ``site`` failing."""
        where = f"with allocation {nth} of '{site}' failing"
        try:
            outcome = run_with(bench, Allocations(site, nth))
        except SyscallError as refusal:
            raise AssertionError(f"{where}: refused twice: {refusal}") from None
        require(outcome.allocations.failed, f"{where}: it was not asked for, though the work is the same")
        require(len(outcome.refused) <= 1, f"{where}: more was refused: {', '.join(outcome.refused)}")
        require(not outcome.wrong, f"{where}: {'; '.join(outcome.wrong[:3])}")
        return outcome
