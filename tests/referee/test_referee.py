"""The kernel of this host as a referee: the same programs there and here, step by step, no tolerance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polymmu import Machine
from polymmu.mm.vma import find_vma
from polymmu.structs import VM_GROWSDOWN
from tests.referee.real import Zygote, why_not_here
from tests.referee.twins import PAGE, TABLE, Referee, Twin

pytestmark = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())

PMD = TABLE
PUD = 512 * PMD
PGD = 512 * PUD
BASE = 2 * PGD

ANCHORS = (BASE, BASE + PMD, BASE + 2 * PMD, BASE + 3 * PMD, BASE + PUD, BASE + 2 * PUD, BASE + PGD)
"""Table boundaries of each size: what lies around one has neighbours in the same table, or only further up."""


@pytest.fixture(scope="module")
def referee() -> Iterator[Referee]:
    with Zygote() as zygote:
        yield Referee(zygote, Machine.from_file("x86_64"))


@pytest.fixture
def twin(referee: Referee) -> Iterator[Twin]:
    yield referee.start()
    referee.end()


# ------------------------------------------------------------------ generated programs
pages = st.builds(lambda anchor, n: anchor + n * PAGE, st.sampled_from(ANCHORS), st.integers(-6, 9))
small = st.integers(1, 12).map(lambda n: n * PAGE)
large = st.sampled_from([PMD // 2, PMD - PAGE, PMD, PMD + 3 * PAGE, 2 * PMD, PUD, PUD + PMD, PGD])
lengths = st.one_of(small, small, small, large)
near = lengths.map(lambda length: min(length, 2 * PMD))
rights = st.sampled_from(["rw", "rw", "rw", "r", "", "w"])
which = st.integers(0, 2)
picks = st.integers(0, 1 << 10)

steps = st.one_of(
    st.tuples(st.just("mmap"), which, pages, lengths, rights, st.sampled_from(["", "", "", "shared", "grows"])),
    st.tuples(st.just("populate"), which, pages, small, rights, st.sampled_from(["", "shared"])),
    st.tuples(st.just("munmap"), which, pages, lengths),
    st.tuples(st.just("mprotect"), which, picks, lengths, rights),
    st.tuples(st.just("dontneed"), which, picks, near),
    st.tuples(st.just("move"), which, picks, lengths, lengths, pages),
    st.tuples(st.just("move whole"), which, st.sampled_from(ANCHORS), st.sampled_from(ANCHORS)),
    st.tuples(st.just("resize"), which, picks, lengths, lengths),
    *[st.tuples(st.sampled_from(["load", "store"]), which, picks, st.integers(1, 6))] * 4,
    st.tuples(st.just("below"), which, picks, st.integers(1, 40)),
    st.tuples(st.just("fork"), which),
    st.tuples(st.just("exit"), which),
)  # fmt: skip


def place(twin: Twin, pick: int) -> int:
    """A page near a boundary of a mapping, or near an anchor in it."""
    vmas = list(twin.mm.struct.vmas.values())
    if not vmas:
        return BASE
    vma = vmas[pick % len(vmas)]
    pick //= len(vmas)
    marks = [vma.vm_start, *(anchor for anchor in ANCHORS if vma.vm_start < anchor < vma.vm_end), vma.vm_end]
    return max(marks[pick % len(marks)] + (pick // len(marks) % 16 - 6) * PAGE, BASE - 16 * PAGE)


def inside(twin: Twin, pick: int, length: int) -> tuple[int, int]:
    """A page of a mapping, and at most ``length`` bytes of that mapping from there on; length 0 where there is none."""
    at = place(twin, pick)
    vma = find_vma(twin.mm.struct, at)
    if vma is None:
        return at, 0
    at = max(at, vma.vm_start)
    return at, min(length, vma.vm_end - at)


def perform(referee: Referee, step: tuple[Any, ...]) -> None:
    kind, number, *rest = step
    twin = referee.twins[number % len(referee.twins)]
    if kind in ("mmap", "populate"):
        at, length, prot, what = rest
        twin.mmap(
            at,
            length,
            prot,
            shared=what == "shared",
            grows_down=what == "grows",
            populate=kind == "populate",
        )
    elif kind == "munmap":
        twin.munmap(*rest)
    elif kind == "mprotect":
        pick, length, prot = rest
        twin.mprotect(place(twin, pick), length, prot)
    elif kind == "dontneed":
        pick, length = rest
        twin.dontneed(place(twin, pick), length)
    elif kind == "move":
        pick, length, new, to = rest
        at, old = inside(twin, pick, length)
        if old:
            twin.mremap(at, old, new, to)
    elif kind == "move whole":
        at, to = rest
        vma = find_vma(twin.mm.struct, at)
        if vma is not None and vma.vm_start <= at:
            length = vma.vm_end - at
            twin.mremap(at, length, length, to)
    elif kind == "resize":
        pick, length, new = rest
        at, old = inside(twin, pick, length)
        if old:
            twin.mremap(at, old, new)
    elif kind in ("load", "store"):
        pick, count = rest
        at = place(twin, pick)
        for page in range(at, at + count * PAGE, PAGE):
            twin.load(page) if kind == "load" else twin.store(page)
    elif kind == "below":
        pick, distance = rest
        growing = [vma for vma in twin.mm.struct.vmas.values() if vma.vm_flags & VM_GROWSDOWN]
        if growing:
            twin.store(growing[pick % len(growing)].vm_start - distance * PAGE)
    elif kind == "fork":
        if len(referee.twins) < 3:
            twin.fork()
    elif kind == "exit" and len(referee.twins) > 1:
        twin.exit()


def run_programs(referee: Referee, examples: int) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(steps, min_size=20, max_size=50))
    def run(program: list[tuple[Any, ...]]) -> None:
        referee.start()
        try:
            for step in program:
                perform(referee, step)
        finally:
            referee.end()

    run()


def test_generated_programs_have_the_same_tables_and_faults_as_in_the_kernel(referee: Referee) -> None:
    run_programs(referee, 200)


@pytest.mark.slow
def test_thousands_of_generated_programs_have_the_same_tables_and_faults_as_in_the_kernel(
    referee: Referee,
) -> None:
    run_programs(referee, 5000)
