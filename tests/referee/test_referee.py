"""The kernel of this host as a referee: the same programs there and here, step by step, no tolerance."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polymmu import Machine
from polymmu.mm.vma import find_vma
from tests.referee.real import Zygote, why_not_here
from tests.referee.twins import PAGE, TABLE, Match, Twin

pytestmark = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())

PMD = TABLE
PUD = 512 * PMD
PGD = 512 * PUD
BASE = 2 * PGD

ANCHORS = (BASE, BASE + PMD, BASE + 2 * PMD, BASE + 3 * PMD, BASE + PUD, BASE + 2 * PUD, BASE + PGD)
"""Table boundaries of each size: what lies around one has neighbours in the same table, or only further up."""


@pytest.fixture(scope="module")
def match() -> Iterator[Match]:
    with Zygote() as zygote:
        yield Match(zygote, Machine.from_file("x86_64"))


@pytest.fixture
def twin(match: Match) -> Iterator[Twin]:
    yield match.start()
    match.end()


# ------------------------------------------------------------------ generated programs
pages = st.builds(lambda anchor, n: anchor + n * PAGE, st.sampled_from(ANCHORS), st.integers(-6, 9))
small = st.integers(1, 12).map(lambda n: n * PAGE)
large = st.sampled_from([PMD // 2, PMD - PAGE, PMD, PMD + 3 * PAGE, 2 * PMD, PUD, PUD + PMD, PGD])
lengths = st.one_of(small, small, small, large)
rights = st.sampled_from(["rw", "rw", "rw", "r", "", "w"])
which = st.integers(0, 2)
picks = st.integers(0, 1 << 10)

steps = st.one_of(
    st.tuples(st.just("mmap"), which, pages, lengths, rights, st.sampled_from(["", "", "", "shared", "grows"])),
    st.tuples(st.just("populate"), which, pages, small, rights, st.sampled_from(["", "shared"])),
    st.tuples(st.just("munmap"), which, pages, lengths),
    st.tuples(st.just("mprotect"), which, picks, lengths, rights),
    st.tuples(st.just("dontneed"), which, picks, lengths),
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


def perform(match: Match, step: tuple) -> None:
    kind, number, *rest = step
    twin = match.twins[number % len(match.twins)]
    match kind:
        pass


def run_program(match: Match, program: list[tuple]) -> None:
    match.start()
    try:
        for step in program:
            perform(match, step)
    finally:
        match.end()
