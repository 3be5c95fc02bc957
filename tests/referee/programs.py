"""Programs for both sides: seeded, small in space so that calls meet, and cut short where the sides disagree.

A program's mappings lie around a few boundaries of pte, pmd and pud tables, so that neighbours are found at every
distance: in the same pte table, in the same pmd or pud table only, nowhere near.

First reading: ``ANCHORS``, ``program``; skip ``shortest``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from polymmu.mm.vma import find_vma
from polymmu.structs import VM_GROWSDOWN
from tests.referee.twins import PAGE, TABLE, Referee, Twin

__all__ = ["BASE", "PMD", "PUD", "outcome", "program", "shortest"]

PMD = TABLE
PUD = 512 * PMD
PGD = 512 * PUD
BASE = 2 * PGD

ANCHORS = (BASE, BASE + PMD, BASE + 2 * PMD, BASE + 3 * PMD, BASE + PUD, BASE + 2 * PUD, BASE + PGD)
LARGE = (PMD // 2, PMD - PAGE, PMD, PMD + 3 * PAGE, 2 * PMD, PUD, PUD + PMD, PGD)
RIGHTS = ("rw", "rw", "rw", "rw", "r", "", "w")
PROCESSES = 3

WEIGHTS = {
    "mmap": 4,
    "populate": 1,
    "munmap": 2,
    "mprotect": 3,
    "dontneed": 1,
    "move": 2,
    "move whole": 1,
    "resize": 2,
    "load": 5,
    "store": 7,
    "below": 1,
    "fork": 2,
    "exit": 1,
}

Step = tuple[Any, ...]
"""What to do, which process does it, and numbers that ``perform`` gives a meaning in that process's state."""


def program(seed: int, length: int) -> list[Step]:
    """``length`` steps."""
    rng = random.Random(seed)
    anchors = rng.sample(ANCHORS, rng.randint(1, len(ANCHORS)))  # the fewer, the more often calls meet

    def page() -> int:
        return rng.choice(anchors) + rng.randint(-6, 9) * PAGE

    def few() -> int:
        return rng.randint(1, 12) * PAGE

    def size(large: tuple[int, ...] = LARGE) -> int:
        return few() if rng.random() < 0.75 else rng.choice(large)

    def step(kind: str) -> Step:
        prot, pick, count = rng.choice(RIGHTS), rng.randint(0, 1 << 10), rng.randint(1, 6)
        detail: dict[str, Callable[[], Step]] = {
            "mmap": lambda: (page(), size(), prot, rng.choice(("", "", "", "", "shared", "grows"))),
            "populate": lambda: (page(), few(), prot, rng.choice(("", "", "shared"))),
            "munmap": lambda: (page(), size()),
            "mprotect": lambda: (pick, size(), prot),
            "dontneed": lambda: (pick, size(LARGE[:5])),
            "move": lambda: (pick, size(), size(), page()),
            "move whole": lambda: (rng.choice(anchors), rng.choice(ANCHORS)),
            "resize": lambda: (pick, size(), size()),
            "load": lambda: (pick, count),
            "store": lambda: (pick, count),
            "below": lambda: (pick, rng.randint(1, 40)),
        }
        return kind, rng.randrange(PROCESSES), *(detail[kind]() if kind in detail else ())

    return [step(kind) for kind in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=length)]


def perform(referee: Referee, step: Step) -> None:
    """Make one step on both sides; a step that makes no sense now is passed over."""
    kind, number, *rest = step
    twin = referee.twins[number % len(referee.twins)]
    if kind in ("mmap", "populate"):
        at, length, prot, what = rest
        shared, grows = what == "shared", what == "grows"
        twin.mmap(at, length, prot, shared=shared, grows_down=grows, populate=kind == "populate")
    elif kind == "munmap":
        twin.munmap(*rest)
    elif kind == "mprotect":
        pick, length, prot = rest
        twin.mprotect(_place(twin, pick), length, prot)
    elif kind == "dontneed":
        pick, length = rest
        twin.dontneed(_place(twin, pick), length)
    elif kind == "move":
        pick, length, new, to = rest
        at, old = _inside(twin, _place(twin, pick), length)
        if old:
            twin.mremap(at, old, new, to)
    elif kind == "move whole":
        at, to = rest
        at, old = _inside(twin, at, PGD)
        if old:
            twin.mremap(at, old, old, to)
    elif kind == "resize":
        pick, length, new = rest
        at, old = _inside(twin, _place(twin, pick), length)
        if old:
            twin.mremap(at, old, new)
    elif kind in ("load", "store"):
        pick, count = rest
        at = _place(twin, pick)
        touch = twin.load if kind == "load" else twin.store
        for page in range(at, at + count * PAGE, PAGE):
            touch(page)
    elif kind == "below":
        pick, distance = rest
        growing = [vma for vma in twin.mm.struct.vmas.values() if vma.vm_flags & VM_GROWSDOWN]
        if growing:
            twin.store(growing[pick % len(growing)].vm_start - distance * PAGE)
    elif kind == "fork":
        if len(referee.twins) < PROCESSES:
            twin.fork()
    elif len(referee.twins) > 1:
        twin.exit()


def _place(twin: Twin, pick: int) -> int:
    """A page around an end of a mapping, or around an anchor inside it."""
    vmas = list(twin.mm.struct.vmas.values())
    if not vmas:
        return BASE
    pick, which = divmod(pick, len(vmas))
    vma = vmas[which]
    marks: list[int] = [
        vma.vm_start,
        *(anchor for anchor in ANCHORS if vma.vm_start < anchor < vma.vm_end),
        vma.vm_end,
    ]
    pick, which = divmod(pick, len(marks))
    return marks[which] + (pick % 16 - 6) * PAGE


def _inside(twin: Twin, at: int, length: int) -> tuple[int, int]:
    """Rule one mapping: the first mapped page from ``at`` on, and how much of ``length`` lies in its mapping."""
    vma = find_vma(twin.mm.struct, at)
    if vma is None:
        return at, 0
    at = max(at, vma.vm_start)
    return at, min(length, vma.vm_end - at)


# ------------------------------------------------------------------------------ verdicts
def outcome(referee: Referee, steps: list[Step]) -> str:
    """How the sides disagree about a program; empty where they do not."""
    referee.start()
    try:
        for step in steps:
            perform(referee, step)
    except (AssertionError, RuntimeError) as disagreement:
        return str(disagreement)
    finally:
        referee.end()
    return ""


def shortest(referee: Referee, steps: list[Step]) -> str:
    """A program that the sides disagree about, without the steps that this does not need, as text."""
    size = len(steps) // 2
    while size:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if outcome(referee, fewer):
                steps = fewer
            else:
                at += size
        size //= 2
    return "\n".join([outcome(referee, steps), *map(repr, steps)])
