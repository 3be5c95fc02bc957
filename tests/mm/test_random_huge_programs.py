"""Random programs with small and huge pages side by side, against a model that knows bytes and nothing else.

The window has sixteen places of 64 KiB; each may hold a mapping of one huge page or of sixteen small ones. After
every step the bytes, the rights and the pages counted as present are what the model says; at the end nothing is
left, and no flush was missing.
"""

from __future__ import annotations

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from polymmu.errors import SegmentationFault
from polymmu.machine import Mm
from polymmu.mm.frames import lru_add_drain
from tests.mm.huge import BIG, EINVAL, PLUGINS, machine, refusal
from tests.mm.toy import PAGE

FIRST, PLACES = 0x400000, 16
BLOCK = BIG // PAGE
places, pages = st.integers(0, PLACES - 1), st.integers(0, BLOCK - 1)


@attrs.define
class Place:
    """One mapping: ``bytes`` by page; ``shared`` ones are held by every process that has the mapping."""

    huge: bool
    shared: bool
    rights: str
    bytes: dict[int, bytes]
    present: set[int]
    """Pages of its own that a private mapping has: all of a huge page, or none."""

    def copy(self) -> Place:
        if self.shared:
            return attrs.evolve(self, present=set())
        return attrs.evolve(self, bytes=dict(self.bytes), present=set(self.present))


class HugePrograms(RuleBasedStateMachine):
    arch = "toy"

    @initialize()
    def start(self) -> None:
        self.made = machine(PLUGINS[self.arch](), cpus=2, memory=16 << 20)
        self.before = self.made.kernel.free.free
        self.mms: list[Mm] = [self.made.new_mm()]
        self.models: list[dict[int, Place]] = [{}]
        self.switch(0, 0)
        for at in range(0, PLACES, 2):
            self.mmap(at, True, at % 4 == 0)

    @property
    def mm(self) -> Mm:
        return self.mms[self.current]

    @property
    def model(self) -> dict[int, Place]:
        return self.models[self.current]

    @rule(which=st.integers(0, 2), cpu=st.integers(0, 1))
    def switch(self, which: int, cpu: int) -> None:
        self.current = which % len(self.mms)
        self.cpu = self.made.cpus[cpu]
        self.cpu.switch_mm(self.mm)

    @rule()
    def fork(self) -> None:
        if len(self.mms) < 3:
            self.mms.append(self.mm.fork())
            self.models.append({at: place.copy() for at, place in self.model.items()})

    @rule()
    def exit(self) -> None:
        if len(self.mms) > 1:
            self.mm.exit()
            del self.mms[self.current], self.models[self.current]
            self.switch(0, self.cpu.index)

    @rule(at=places, huge=st.booleans(), shared=st.booleans())
    def mmap(self, at: int, huge: bool, shared: bool) -> None:
        self.mm.mmap(BIG, at=FIRST + at * BIG, fixed=True, shared=shared, huge=BIG if huge else 0)
        self.model[at] = Place(huge, shared, "rw", {}, set())

    @rule(at=places, n=st.integers(1, 5))
    def munmap(self, at: int, n: int) -> None:
        self.mm.munmap(FIRST + at * BIG, min(n, PLACES - at) * BIG)
        for each in range(at, at + n):
            self.model.pop(each, None)

    @rule(at=places, page=st.integers(1, BLOCK - 1))
    def munmap_of_a_part(self, at: int, page: int) -> None:
        place = self.model.get(at)
        if place is not None and place.huge:
            assert refusal(self.mm.munmap, FIRST + at * BIG + page * PAGE, PAGE) == EINVAL

    @rule(at=places, rights=st.sampled_from(["", "r", "rw"]))
    def mprotect(self, at: int, rights: str) -> None:
        if at in self.model:
            self.mm.mprotect(FIRST + at * BIG, BIG, rights)
            self.model[at].rights = rights

    @rule(at=places, page=pages, byte=st.integers(1, 255))
    def store(self, at: int, page: int, byte: int) -> None:
        place, addr = self.model.get(at), FIRST + at * BIG + page * PAGE
        if place is None or "w" not in place.rights:
            try:
                self.cpu.store(addr, b"no")
            except SegmentationFault:
                return
            raise AssertionError(f"a store to {addr:#x} succeeded")
        self.cpu.store(addr, bytes((byte, page)))
        place.bytes[page] = bytes((byte, page))
        if not place.shared:
            place.present |= set(range(BLOCK)) if place.huge else {page}

    @rule(at=places, page=pages)
    def load(self, at: int, page: int) -> None:
        place, addr = self.model.get(at), FIRST + at * BIG + page * PAGE
        if place is None or not place.rights:
            try:
                self.cpu.load(addr, 2)
            except SegmentationFault:
                return
            raise AssertionError(f"a load from {addr:#x} succeeded")
        assert self.cpu.load(addr, 2) == place.bytes.get(page, bytes(2)), hex(addr)
        if place.huge and not place.shared:
            place.present |= set(range(BLOCK))

    @invariant()
    def pages_present_are_those_that_were_touched(self) -> None:
        for mm, model in zip(self.mms, self.models, strict=True):
            assert mm.struct.anon_rss == sum(len(place.present) for place in model.values())
            assert mm.struct.total_vm == BLOCK * len(model)

    def teardown(self) -> None:
        if not hasattr(self, "cpu"):
            return
        for which in range(len(self.mms)):
            self.switch(which, 0)
            for at in range(PLACES):
                for page in range(0, BLOCK, 5):
                    self.load(at, page)
        for mm in self.mms:
            mm.exit()
        for cpu in self.made.kernel.cpus:
            self.made.kernel.sched.cpu = cpu
            lru_add_drain(self.made.kernel)
        assert self.made.kernel.free.free == self.before
        assert self.made.flushes.section()["missing"] == 0


def run(arch: str, examples: int) -> None:
    run_state_machine_as_test(
        type(f"HugePrograms_{arch}", (HugePrograms,), {"arch": arch}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_programs_with_huge_pages_see_what_the_model_says() -> None:
    run("toy", 60)


def test_random_programs_with_huge_pages_where_bits_mean_no() -> None:
    run("odd", 30)
