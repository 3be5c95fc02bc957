"""Truncations with somebody at work in every break: by script, and at random against a brute-force look at all ptes.

Somebody waits for i_mmap_lock as long as there is something left to do; whenever the lock is dropped, the next thing
is done by "another CPU". Everything runs solo, so a run is what its script or its seed says.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.hooks import ArchKernel
from polymmu.mm.fork import dup_mm
from polymmu.mm.mm import activate, mmput
from polymmu.mm.mmap import do_mmap, do_munmap
from polymmu.mm.mprotect import do_mprotect
from polymmu.mm.mremap import do_mremap
from polymmu.mm.pagecache import new_file
from polymmu.mm.truncate import unmap_mapping_range
from polymmu.mm.vma import vma_pages, vmas_of
from polymmu.sched.locks import Lock
from polymmu.structs import VM_READ, VM_SHARED, File, mm_struct, vm_area_struct
from tests.mm.toy import PAGE, PUD, RW, frame_at, new_mm, touch

Action = Callable[[], object]
PAGES = 24
"""Pages of the file."""
BASE, ROOM = PUD, 64
"""Where a program maps, and how many pages it has there."""

UNCOUNTED = ("no-break", "mutex")
"""Generations whose vmas do not say what is done."""


def in_breaks(kernel: ArchKernel, file: File, actions: Iterable[Action]) -> list[Action]:
    """Do ``actions``, one whenever a truncation of ``file`` drops its lock, which is wanted while one is left.

    The list that is handed back holds those that are still to come, and may be added to.
    """
    left = list(actions)
    mine = file.mapping.i_mmap_lock
    truncate, sched = kernel.variants.truncate, kernel.sched

    def give_way(_: object) -> None:
        mine.unlock()
        if left:
            left.pop(0)()
        mine.lock()

    def wanted_by_somebody(lock: Lock) -> bool:
        return lock is mine and bool(left)

    sched.runs_tasks = True
    sched.need_lockbreak = wanted_by_somebody  # type: ignore[method-assign]
    truncate.give_way = give_way
    return left


def file_ptes(mms: Iterable[mm_struct]) -> Iterator[tuple[mm_struct, int, int]]:
    """Every pte that shows a page of a file, found page by page: (mm, address, page of the file)."""
    for mm in mms:
        for vma in vmas_of(mm.mmap):
            for page, addr in enumerate(range(vma.vm_start, vma.vm_end, PAGE)):
                if vma.vm_file is not None and frame_at(mm, addr) >= 0:
                    yield mm, addr, vma.vm_pgoff + page


class Wrong(AssertionError):
    """A truncation did not do what it is for."""


class Truncating:
    """Two programs and the children they fork, one file, and a ``chance`` that chooses what happens."""

    def __init__(self, kernel: ArchKernel, chance: random.Random) -> None:
        self.kernel = kernel
        self.chance = chance
        self.file = new_file(kernel, "f", PAGES * PAGE)
        self.mms = [new_mm(kernel), new_mm(kernel)]
        self.cut = PAGES
        self.watched: set[tuple[int, int, int]] | None = None
        for mm in self.mms:
            self.act(self.map, mm)

    def act(self, what: Callable[[mm_struct], object], mm: mm_struct) -> None:
        """One thing that some program does; what it may not do, it does not."""
        activate(self.kernel, self.kernel.cpus[0], mm)
        with contextlib.suppress(SegmentationFault, SyscallError):
            what(mm)

    def somebody(self) -> None:
        """Some program does something."""
        do = self.chance.choice(
            (
                self.map,
                self.touch,
                self.touch,
                self.unmap,
                self.protect,
                self.protect,
                self.move,
                self.move,
                self.fork,
            )
        )
        self.act(do, self.chance.choice(self.mms))

    def part(self) -> tuple[int, int]:
        """Some pages of a program's room: (address, bytes)."""
        first = self.chance.randrange(ROOM)
        return BASE + first * PAGE, self.chance.randrange(1, min(ROOM - first, 12) + 1) * PAGE

    def map(self, mm: mm_struct) -> None:
        addr = BASE + self.chance.randrange(ROOM - PAGES) * PAGE
        flags = RW | self.chance.choice((0, VM_SHARED))
        do_mmap(mm, addr, PAGES * PAGE, flags, fixed=True, file=self.file, pgoff=0)
        for vma in vmas_of(mm.mmap):
            for at in range(vma.vm_start, vma.vm_end, PAGE):
                if self.chance.random() < 0.8:
                    touch(mm, at, self.chance.choice(("load", "store")))

    def touch(self, mm: mm_struct) -> None:
        touch(mm, self.part()[0], self.chance.choice(("load", "store")))

    def unmap(self, mm: mm_struct) -> None:
        do_munmap(mm, *self.part())

    def protect(self, mm: mm_struct) -> None:
        do_mprotect(mm, *self.part(), self.chance.choice((RW, VM_READ)))

    def move(self, mm: mm_struct) -> None:
        addr, length = self.part()
        do_mremap(mm, addr, length, length, new_addr=self.part()[0])

    def fork(self, mm: mm_struct) -> None:
        if len(self.mms) < 4:
            self.mms.append(dup_mm(mm))
        else:
            mmput(self.mms.pop())

    # ------------------------------------------------------------------ truncating
    def truncate(self) -> None:
        """Cut the file somewhere while others are at work, then make it whole again. Raises Wrong."""
        self.cut = self.chance.randrange(PAGES)
        in_breaks(self.kernel, self.file, [self.in_break] * self.chance.randrange(12))
        self.watch()
        # Only the first step of a truncation: the second unmap would hide what the first one missed.
        self.file.size = self.cut * PAGE
        unmap_mapping_range(self.kernel, self.file.mapping, self.cut * PAGE, 0, True)
        self.compare()
        for mm, addr, index in file_ptes(self.mms):
            if index >= self.cut:
                raise Wrong(f"page {index} of the file is still mapped at {addr:#x} of mm {mm.serial}")
        if self.kernel.description.kernel.truncate not in UNCOUNTED and self.not_done():
            raise Wrong("a vma was passed over")
        self.file.size = PAGES * PAGE

    def in_break(self) -> None:
        self.compare()
        self.somebody()
        self.watch()

    def watch(self) -> None:
        """Remember what is mapped."""
        self.watched = {(mm.serial, addr, index) for mm, addr, index in file_ptes(self.mms)}

    def compare(self) -> None:
        """Since ``watch`` only truncation was at work: it may have taken what was cut off, and nothing else."""
        assert self.watched is not None
        now = {(mm.serial, addr, index) for mm, addr, index in file_ptes(self.mms)}
        gone = [index for _, _, index in self.watched - now]
        if now - self.watched or any(index < self.cut for index in gone):
            raise Wrong(f"cut at {self.cut}, and pages {sorted(gone)} went")

    def not_done(self) -> list[vm_area_struct]:
        """The vmas that show pages the call was to cut off, and do not say that it was there (A9.3)."""
        count = self.file.mapping.truncate_count
        everything = (vma for mm in self.mms for vma in vmas_of(mm.mmap) if vma.vm_file is not None)
        return [
            vma
            for vma in everything
            if vma.vm_pgoff + vma_pages(vma) > self.cut and vma.vm_truncate_count != count
        ]


def run(kernel: ArchKernel, chance: random.Random, rounds: int = 8, busy: int = 3) -> None:
    """Some truncations in a row, and programs that do something in between. Raises Wrong."""
    world = Truncating(kernel, chance)
    for _ in range(rounds):
        for _ in range(chance.randrange(busy)):
            world.somebody()
        world.truncate()


def wrong_runs(make: Callable[[], Any], seeds: Iterable[int]) -> list[int]:
    """The seeds with which a kernel that ``make`` boots goes wrong."""
    wrong = []
    for seed in seeds:
        try:
            run(make(), random.Random(seed))
        except Wrong:
            wrong.append(seed)
    return wrong
