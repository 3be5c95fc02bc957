"""``Programs``: random programs on two CPUs against a dictionary of what each of their pages must hold.

The check that knows least and finds most. Address spaces map, unmap, protect, move, drop and fork over the edges of
the address space, and change CPUs; after every few steps nothing stale may be held anywhere.
"""

from __future__ import annotations

import random

from polymmu.conformance.bench import Bench, World, require
from polymmu.conformance.checks import Checks
from polymmu.errors import SyscallError
from polymmu.machine import Mm

__all__ = ["Programs"]


class Programs(Checks):
    """Random programs against a dictionary."""

    def test_random_programs_read_what_a_dictionary_says(self, bench: Bench) -> None:
        for seed in range(3):
            world = bench.world()
            before = world.held()
            Random(world, seed).play(160)
            require(world.held() == before, f"seed {seed}: held before {before}, after {world.held()}")


class Random:
    """Two address spaces on two CPUs doing what ``rng`` says; ``pages`` is what each must find."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        windows = world.bench.windows()
        layout = world.kernel.shape.layout
        span = layout.span_of(layout.pmd_level)
        self.places: list[int] = []
        for window in windows:
            middle = (window.start + span) & -span
            for va in (
                window.start,
                middle - 3 * world.page,
                middle + span - world.page,
                window.end - 8 * world.page,
            ):
                if window.start <= va and va + 8 * world.page <= window.end:
                    self.places.append(va)
        self.stamp = 0
        self.mms: list[Mm] = []
        self.pages: list[dict[int, tuple[bytes, str]]] = []
        self.running = [0, 0]
        for _ in range(2):
            self._add(world.machine.new_mm(), {})
        for cpu in (0, 1):
            self._switch(cpu, cpu)

    def _add(self, mm: Mm, pages: dict[int, tuple[bytes, str]]) -> None:
        self.mms.append(mm)
        self.pages.append(pages)

    def _switch(self, cpu: int, which: int) -> None:
        self.running[cpu] = which
        self.world.run(self.mms[which], cpu)

    def play(self, steps: int) -> None:
        """Do ``steps`` things, then exit all programs."""
        doings = [
            self._map,
            self._map,
            self._unmap,
            self._protect,
            self._move,
            self._drop,
            self._fork,
            self._turn,
        ]
        for step in range(steps):
            cpu = self.rng.randrange(2)
            with self.world.cpus[cpu]:
                if self.rng.random() < 0.6:
                    self._access(step, cpu)
                else:
                    self.rng.choice(doings)(cpu)
            if step % 16 == 15:
                self.world.check_quiet(f"step {step}")
        for step, which in enumerate(range(len(self.mms))):
            self._switch(0, which)
            for va in list(self.pages[which])[:24]:
                self._look(-step, 0, va)
        for mm in self.mms:
            mm.exit()

    def _range(self) -> tuple[int, int]:
        start = self.rng.choice(self.places) + self.rng.randrange(3) * self.world.page
        return start, self.rng.randrange(1, 5)

    def _each(self, start: int, n: int) -> list[int]:
        return [start + k * self.world.page for k in range(n)]

    def _access(self, step: int, cpu: int) -> None:
        known = sorted(self.pages[self.running[cpu]])
        va = self.rng.choice(known) if known and self.rng.random() < 0.8 else self._range()[0]
        if self.rng.random() < 0.5:
            self._look(step, cpu, va)
            return
        page = self.pages[self.running[cpu]].get(va)
        self.stamp += 1
        data = b"%8d" % self.stamp
        allowed = page is not None and "w" in page[1]
        done = True
        try:
            self.world.cpus[cpu].store(va, data)
        except Exception as error:
            done = False
            require(not allowed, f"step {step}: cpu {cpu} may store at {va:#x} and cannot: {error}")
        require(done == allowed, f"step {step}: cpu {cpu} may not store at {va:#x} and can")
        if page is not None and done:
            self.pages[self.running[cpu]][va] = data, page[1]

    def _look(self, step: int, cpu: int, va: int) -> None:
        page = self.pages[self.running[cpu]].get(va)
        try:
            got: bytes | None = self.world.cpus[cpu].load(va, 8)
        except Exception as error:
            require(
                page is None or not page[1], f"step {step}: cpu {cpu} may load {va:#x} and cannot: {error}"
            )
            return
        require(page is not None and bool(page[1]), f"step {step}: cpu {cpu} may not load {va:#x} and can")
        assert page is not None
        require(got == page[0], f"step {step}: cpu {cpu} reads {got!r} at {va:#x}, not {page[0]!r}")

    def _map(self, cpu: int) -> None:
        start, n = self._range()
        prot = self.rng.choice(("r", "rw", "rw", "rw", "rwx"))
        self.mms[self.running[cpu]].mmap(n * self.world.page, prot, at=start, fixed=True)
        self.pages[self.running[cpu]] |= {va: (bytes(8), prot) for va in self._each(start, n)}

    def _unmap(self, cpu: int) -> None:
        start, n = self._range()
        try:
            self.mms[self.running[cpu]].munmap(start, n * self.world.page)
        except SyscallError:  # above what the program's tables reach so far
            require(
                not any(va in self.pages[self.running[cpu]] for va in self._each(start, n)),
                "munmap is refused",
            )
        for va in self._each(start, n):
            self.pages[self.running[cpu]].pop(va, None)

    def _whole(self, cpu: int) -> tuple[int, int] | None:
        """A range in which every page is mapped."""
        start, n = self._range()
        pages = self.pages[self.running[cpu]]
        return (start, n) if all(va in pages for va in self._each(start, n)) else None

    def _protect(self, cpu: int) -> None:
        found = self._whole(cpu)
        if found is not None:
            prot = self.rng.choice(("", "r", "rw", "rw"))
            self.mms[self.running[cpu]].mprotect(found[0], found[1] * self.world.page, prot)
            for va in self._each(*found):
                self.pages[self.running[cpu]][va] = self.pages[self.running[cpu]][va][0], prot

    def _drop(self, cpu: int) -> None:
        found = self._whole(cpu)
        if found is not None:
            self.mms[self.running[cpu]].madvise(found[0], found[1] * self.world.page, "dontneed")
            for va in self._each(*found):
                self.pages[self.running[cpu]][va] = bytes(8), self.pages[self.running[cpu]][va][1]

    def _move(self, cpu: int) -> None:
        found, (to, _) = self._whole(cpu), self._range()
        if found is None:
            return
        start, n = found
        if abs(to - start) < n * self.world.page:
            return
        try:
            self.mms[self.running[cpu]].mremap(start, n * self.world.page, n * self.world.page, to=to)
        except SyscallError:
            # EFAULT: the range is several mappings. The new place was cleared by then, as Linux does.
            for va in self._each(to, n):
                self.pages[self.running[cpu]].pop(va, None)
            return
        pages = self.pages[self.running[cpu]]
        moved = [pages.pop(va) for va in self._each(start, n)]
        pages |= dict(zip(self._each(to, n), moved, strict=True))

    def _fork(self, cpu: int) -> None:
        if len(self.mms) < 5:
            self._add(self.mms[self.running[cpu]].fork(), dict(self.pages[self.running[cpu]]))

    def _turn(self, cpu: int) -> None:
        self._switch(cpu, self.rng.randrange(len(self.mms)))
