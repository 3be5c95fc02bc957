"""mremap and fork against truncation on CPUs that run at once, with the referee: what it says of a run with a seed.

Three scenarios. ``move_beside``: half a mapping of a file moves beside the other half, over the edge of a page table,
and becomes one with it, while another CPU cuts the file and a third uses both places. ``move_far``: many pages move,
and are read at their old place all the time. ``fork``: a program with private copies forks while its file is cut.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from polymmu.errors import SegmentationFault
from polymmu.machine import FileHandle, Machine, Mm

Scenario = Callable[[Machine, int], None]


def machine(name: str, seed: int, choice: dict[str, Any]) -> Machine:
    # Entries are dear, so that much can happen between two of them.
    sets = [
        "cpus=3",
        "costs.entry_update=40",
        "memory=256 MiB",
        f"seed={seed}",
        *(f"kernel.{key}={value}" for key, value in choice.items()),
    ]
    description, arch = Machine.describe(name, sets=sets)
    return Machine(description, arch, driver="timed", sanitize=True)


def verdict(scenario: Scenario, name: str, seed: int, choice: dict[str, Any]) -> str:
    """The first invariant that a run broke, ``stopped`` where the core itself would not go on, or nothing."""
    made = machine(name, seed, choice)
    referee = made.sanitizer
    assert referee is not None
    try:
        scenario(made, seed)
        referee.finish()
    except AssertionError:
        return referee.violations[0].invariant if referee.violations else "stopped"
    return referee.violations[0].invariant if referee.violations else ""


def verdicts(scenario: Scenario, name: str, seeds: Iterable[int], choice: dict[str, Any]) -> dict[str, int]:
    """How many runs came to which verdict; clean ones are left out."""
    found = Counter(verdict(scenario, name, seed, choice) for seed in seeds)
    del found[""]
    return dict(found)


class Stage:
    """A program on CPU 0, a truncating one on CPU 1, a user of the program's memory on CPU 2; they share a file."""

    def __init__(self, made: Machine, seed: int, pages: int) -> None:
        self.made = made
        self.pages = pages
        self.page = made.page_size
        self.seed = seed
        self.file: FileHandle = made.new_file(pages * self.page)
        self.mm: Mm = made.new_mm()
        layout = made.kernel.shape.layout
        self.span = layout.span_of(layout.pmd_level)
        """Bytes that one page table maps."""
        room = self.mm.mmap(8 * self.span)
        self.mm.munmap(room, 8 * self.span)
        self.base = room + 2 * self.span & -self.span
        self.chance = random.Random(seed)

    def use(self, cpu: int, addr: int, chance: random.Random) -> None:
        with contextlib.suppress(SegmentationFault):
            if chance.random() < 0.5:
                self.made.cpus[cpu].store(addr, b"u")
            else:
                self.made.cpus[cpu].load(addr, 1)

    def touch(self, at: int, pages: int) -> None:
        """Store to each page from CPU 0."""
        for page in range(pages):
            with contextlib.suppress(SegmentationFault):
                self.made.cpus[0].store(at + page * self.page, b"m")

    def truncating(self, times: int, pause: int) -> None:
        chance = random.Random(self.seed + 1)
        for _ in range(times):
            self.made.work(chance.randrange(pause))
            self.file.truncate(chance.randrange(self.pages) * self.page)
            self.made.work(chance.randrange(1000))
            self.file.truncate(self.pages * self.page)

    def using(self, times: int, places: list[int], pages: int, pause: int) -> None:
        chance = random.Random(self.seed + 2)
        for _ in range(times):
            self.use(2, chance.choice(places) + chance.randrange(pages) * self.page, chance)
            self.made.work(chance.randrange(pause))

    def play(self, *parts: Callable[[], None]) -> None:
        for cpu, part in enumerate(parts):
            self.made.spawn(part.__name__, cpu, self.mm, part)
        self.made.run_tasks()
        self.mm.exit()
        self.file.close()


def move_beside(made: Machine, seed: int, rounds: int = 6) -> None:
    stage = Stage(made, seed, 24)
    half, page, mm = 12, stage.page, stage.mm
    low, away = stage.base - half * page, stage.base + 2 * stage.span

    def moves() -> None:
        for _ in range(rounds):
            mm.mmap(half * page, at=low, fixed=True, shared=True, file=stage.file)
            mm.mmap(half * page, at=away, fixed=True, shared=True, file=stage.file, offset=half * page)
            stage.touch(low, half)
            stage.touch(away, half)
            made.work(stage.chance.randrange(20_000))
            mm.mremap(away, half * page, half * page, to=stage.base)
            made.work(stage.chance.randrange(3000))
            mm.munmap(low, 2 * half * page)

    stage.play(
        moves,
        lambda: stage.truncating(2 * rounds, 40_000),
        lambda: stage.using(80 * rounds, [low, away], half, 1500),
    )


def move_far(made: Machine, seed: int, rounds: int = 6) -> None:
    pages, hot = 512, 16
    stage = Stage(
        made, seed, hot
    )  # the mapping is longer than the file: what is zapped is flushed page by page
    page, mm = stage.page, stage.mm
    low, away = stage.base, stage.base + 2 * stage.span
    done = [0, 0]
    """Rounds that the mover has begun to move in, and that the truncating one is through with."""

    def moves() -> None:
        for n in range(rounds):
            while done[1] < n:
                made.work(500)
            mm.mmap(pages * page, at=low, fixed=True, shared=True, file=stage.file)
            for at in range(low, low + hot * page, page):
                made.cpus[0].load(at, 1)
            made.work(3000)
            done[0] += 1
            mm.mremap(low, pages * page, pages * page, to=away)
            mm.munmap(away, pages * page)

    def truncates() -> None:
        for n in range(rounds):
            while done[0] <= n:
                made.work(100)
            made.work(stage.chance.randrange(4000))
            stage.file.truncate(0)
            stage.file.truncate(hot * page)
            made.work(2000)
            done[1] += 1

    def uses() -> None:
        chance = random.Random(seed + 2)
        while done[1] < rounds:
            with contextlib.suppress(SegmentationFault):
                made.cpus[2].load(low + chance.randrange(hot) * page, 1)
            made.work(chance.randrange(100))

    stage.play(moves, truncates, uses)


def fork(made: Machine, seed: int, rounds: int = 6) -> None:
    pages = 64
    stage = Stage(made, seed, pages)
    page, mm = stage.page, stage.mm
    mm.mmap(
        4 * page, at=stage.base - 8 * page, fixed=True, file=stage.file
    )  # forked first, while truncation begins
    mm.mmap(pages * page, at=stage.base, fixed=True, file=stage.file)
    ready, forked = [0], [0]

    def forks() -> None:
        for _ in range(rounds):
            stage.touch(stage.base, pages)
            ready[0] += 1
            made.work(2000)
            child = mm.fork()
            made.work(2000)
            child.mprotect(stage.base, page, "r")  # the referee looks after a call
            forked[0] += 1
            child.exit()

    def truncates() -> None:
        for n in range(rounds):
            while ready[0] <= n:
                made.work(100)
            made.work(stage.chance.randrange(4000))
            stage.file.truncate(0)
            while forked[0] <= n:
                made.work(500)
            stage.file.truncate(pages * page)

    stage.play(forks, truncates, lambda: stage.using(60 * rounds, [stage.base], pages, 1500))
