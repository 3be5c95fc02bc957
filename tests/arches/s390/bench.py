"""A CPU with DAT alone: memory that a test fills, no kernel, and both walkers asked the same question."""

from __future__ import annotations

from typing import Any

import attrs

from polymmu.description.model import TlbSpec, WalkCacheSpec
from polymmu.hardware.cpu import Cpu, Upcoming
from polymmu.hardware.entry import Access, WalkFault
from polymmu.hardware.ram import Frames, Ram
from polymmu_s390.dat import Dat

MIB = 1 << 20


class Interruption(Exception):
    """A program interruption: its code."""


class Vectors:
    """Software that only tells."""

    def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
        raise Interruption(code & 0xFF)


@attrs.define
class Bench:
    """``answer`` is (physical address, None) or (None, interruption code), from the compiled walker and from the
    one in Python, which must agree."""

    dat: Dat
    ram: Ram
    cpu: Cpu

    @classmethod
    def new(cls, memory: int = 256 * MIB, tlb: bool = False, **facilities: Any) -> Bench:
        dat = Dat(**({"esa": False} | facilities))
        ram = Ram(memory)
        tlbs = {"L1": TlbSpec(level=1, page_sizes=(4096,), entries=64, ways=4)} if tlb else {}
        levels = dat.table_shifts() if tlb else ()
        caches = {f"CRST{level}": WalkCacheSpec(level=level, entries=8, ways=4) for level in levels}
        cpu = Cpu(0, ram, Frames(memory >> 12, 4096), tlbs, caches, dat)
        cpu.vectors = Vectors()
        return cls(dat, ram, cpu)

    def put(self, place: int, *entries: int) -> None:
        """Write consecutive entries."""
        width = 4 if self.dat.esa else 8
        for n, entry in enumerate(entries):
            self.ram.write_entry(place + n * width, width, "big", entry)

    def answer(self, root: int, va: int, access: Access = Access.LOAD) -> tuple[int | None, int | None]:
        compiled = self.compiled(root, va, access)
        walk = self.dat.walk(self.ram, root, va, access)
        assert compiled == (walk.pa, None if walk.fault is WalkFault.NONE else walk.code & 0xFF)
        return compiled

    def compiled(self, root: int, va: int, access: Access = Access.LOAD) -> tuple[int | None, int | None]:
        self.cpu.load_root(root, asid=(root & ~0xFFF) >> 12)
        try:
            ((pa, _),) = self.cpu._translate(access, va, 1)
        except Interruption as interruption:
            return None, interruption.args[0]
        return pa, None
