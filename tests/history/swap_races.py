"""Swap-out against mremap and fork, and nonlinear remapping against truncation, on CPUs that run at once.

Scenarios as in ``races``. ``swap_move``: a program's pages move to and fro while another CPU writes them out, by rmap.
``swap_fork``: the same while the program forks; each child must have its parent's bytes. ``remap_truncate``: pages of a
shared mapping are put in another order while its file is cut. What a program reads is compared with what it stored.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

from polymmu.errors import SegmentationFault
from polymmu.machine import Machine, Mm
from tests.history.races import Stage

__all__ = ["remap_truncate", "swap_fork", "swap_move"]

PAGES = 16


def _fill(made: Machine, at: int, byte: int) -> None:
    for page in range(PAGES):
        made.cpus[0].store(at + page * made.page_size, bytes([byte + page]))


def _check(made: Machine, at: int, byte: int) -> None:
    for page in range(PAGES):
        assert made.cpus[0].load(at + page * made.page_size, 1) == bytes([byte + page])


def _swapping(made: Machine, mm: Mm, seed: int, places: list[int], done: list[bool]) -> Callable[[], None]:
    def swaps() -> None:
        chance = random.Random(seed + 1)
        while not done[0]:
            mm.swap_out(chance.choice(places) + chance.randrange(PAGES) * made.page_size, 4 * made.page_size)
            if chance.random() < 0.3:
                made.reclaim(2)
            made.work(chance.randrange(3000))

    return swaps


def swap_move(made: Machine, seed: int, rounds: int = 4) -> None:
    stage, done = Stage(made, seed, PAGES), [False]
    mm, page, low = stage.mm, stage.page, stage.base
    away = low + stage.span - PAGES // 2 * page

    def moves() -> None:
        at = mm.mmap(PAGES * page, at=low, fixed=True)
        for n in range(rounds):
            _fill(made, at, n)
            made.work(stage.chance.randrange(8000))
            to = away if at == low else low
            mm.mremap(at, PAGES * page, PAGES * page, to=to)
            at = to
            _check(made, at, n)
        done[0] = True

    def looks() -> None:
        chance = random.Random(seed + 2)
        while not done[0]:
            with contextlib.suppress(SegmentationFault):
                made.cpus[2].load(chance.choice((low, away)) + chance.randrange(PAGES) * page, 1)
            made.work(chance.randrange(100))

    stage.play(moves, _swapping(made, mm, seed, [low, away], done), looks)


def swap_fork(made: Machine, seed: int, rounds: int = 2) -> None:
    stage, done = Stage(made, seed, PAGES), [False]
    mm, page, low = stage.mm, stage.page, stage.base

    def forks() -> None:
        mm.mmap(PAGES * page, at=low, fixed=True)
        for n in range(rounds):
            _fill(made, low, n)
            made.work(stage.chance.randrange(8000))
            child = mm.fork()
            _fill(made, low, n + 100)
            made.cpus[0].switch_mm(child)
            _check(made, low, n)
            _fill(made, low, n + 50)
            made.cpus[0].switch_mm(mm)
            child.exit()
            _check(made, low, n + 100)
        done[0] = True

    stage.play(forks, _swapping(made, mm, seed, [low], done))


def remap_truncate(made: Machine, seed: int, rounds: int = 8) -> None:
    stage = Stage(made, seed, PAGES)
    mm, page, low = stage.mm, stage.page, stage.base
    mm.mmap(PAGES * page, at=low, fixed=True, shared=True, file=stage.file)

    def remaps() -> None:
        for _ in range(rounds):
            first, shown = stage.chance.randrange(PAGES), stage.chance.randrange(PAGES)
            pages = stage.chance.randint(1, PAGES - max(first, shown))
            with contextlib.suppress(SegmentationFault):  # cut off while they are brought in
                mm.remap_file_pages(low + first * page, pages * page, shown * page)
            stage.touch(low, PAGES)
            made.work(stage.chance.randrange(6000))

    stage.play(
        remaps,
        lambda: stage.truncating(2 * rounds, 9000),
        lambda: stage.using(40 * rounds, [low], PAGES, 900),
    )
