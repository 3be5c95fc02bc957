"""Test hardware: a CPU with page tables built entry by entry, and software that maps what is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
import numpy as np

from polymmu.description.model import TlbSpec, WalkCacheSpec
from polymmu.hardware.cpu import Cpu, Upcoming
from polymmu.hardware.ram import Frames, Ram
from polymmu.hardware.walk import RadixTranslation

PRESENT, WRITE, USER, ACCESSED, DIRTY, LARGE, GLOBAL = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
TABLE = PRESENT | WRITE | USER | ACCESSED | DIRTY
LEAF = PRESENT | WRITE | USER
K4 = 4096

SPLIT = {
    "L1I": TlbSpec(level=1, holds=("fetch",), page_sizes=(K4,), entries=64, ways=4),
    "L1D": TlbSpec(level=1, holds=("load", "store"), page_sizes=(K4,), entries=64, ways=4),
    "L2": TlbSpec(level=2, page_sizes=(K4,), entries=1024, ways=4),
}
CACHES = {
    "PDE": WalkCacheSpec(level=1, entries=32, ways=4),
    "PDPTE": WalkCacheSpec(level=2, entries=4, ways=4),
    "PML4": WalkCacheSpec(level=3, entries=2, ways=2),
}


@attrs.define
class Bench:
    """One CPU, its memory, and tables below ``root``. Frames are handed out in order, from 1 MiB on."""

    translation: RadixTranslation
    tlbs: Mapping[str, TlbSpec] = attrs.field(factory=lambda: dict(SPLIT))
    caches: Mapping[str, WalkCacheSpec] = attrs.field(factory=dict)
    seed: int = 0
    ram: Ram = attrs.field(init=False)
    cpu: Cpu = attrs.field(init=False)
    root: int = attrs.field(init=False)
    next_table: int = attrs.field(init=False, default=1 << 20)
    next_frame: int = attrs.field(init=False, default=1 << 32)

    def __attrs_post_init__(self) -> None:
        page = self.translation.layout.page_size
        self.ram = Ram(1 << 36)
        frames = Frames((1 << 36) // page, page)
        self.cpu = Cpu(0, self.ram, frames, self.tlbs, self.caches, self.translation, self.seed)
        self.root = self.new_table(0)
        self.cpu.load_root(self.root)

    def new_table(self, level: int) -> int:
        """A zeroed table, aligned to its size."""
        size = max(self.translation.layout.table_bytes_of(level), 4096)
        self.next_table = -(-self.next_table // size) * size
        self.next_table += size
        return self.next_table - size

    def entry(self, va: int, level: int | None = None, root: int | None = None) -> tuple[int, int, int]:
        """(place, bytes, value) of the entry for ``va`` at ``level``; tables above are made as needed."""
        layout, order = self.translation.layout, self.translation.byte_order
        level = layout.pte_level if level is None else level
        table = self.root if root is None else root
        for n in range(level):
            place, nbytes = layout.entry_address(n, table, va), layout.entry_bytes[n]
            entry = self.ram.read_entry(place, nbytes, order)
            if not entry:
                entry = self.new_table(n + 1)
                entry |= PRESENT if n < 1 and self.translation.root_registers else TABLE
                self.ram.write_entry(place, nbytes, order, entry)
            table = entry & self.translation.formats[n].table_mask
        place, nbytes = layout.entry_address(level, table, va), layout.entry_bytes[level]
        return place, nbytes, self.ram.read_entry(place, nbytes, order)

    def set(self, va: int, entry: int, level: int | None = None, root: int | None = None) -> None:
        """Write the entry for ``va``."""
        place, nbytes, _ = self.entry(va, level, root)
        self.ram.write_entry(place, nbytes, self.translation.byte_order, entry)

    def map(self, va: int, flags: int = LEAF, level: int | None = None, root: int | None = None) -> int:
        """Map ``va``'s page to the next free frame; returns the frame."""
        layout = self.translation.layout
        size = layout.span_of(layout.pte_level if level is None else level)
        self.next_frame = -(-self.next_frame // size) * size
        frame = self.next_frame
        self.next_frame += size
        self.set(va, frame | flags, level, root)
        return frame

    def run(self, accesses: Iterable[tuple[int, int, int]]) -> int:
        """Replay (op, va, size) triples."""
        rows = list(accesses)
        op = np.array([row[0] for row in rows], dtype=np.uint8)
        va = np.array([row[1] for row in rows], dtype=np.uint64)
        size = np.array([row[2] for row in rows], dtype=np.uint8)
        return self.cpu.replay(op, va, size, 0, len(rows))


@attrs.define
class MapsWhatIsTouched:
    """Software that maps every page a fault asks for; ``ahead`` > 0: up to so many further ones at once."""

    bench: Bench
    ahead: int = 0
    low: int = 0
    high: int = 1 << 47
    faults: list[tuple[int, int]] = attrs.field(factory=list)
    mapped_ahead: int = 0

    def fault(self, cpu: Cpu, code: int, va: int, upcoming: Upcoming) -> None:
        """Map the page, and those that come next if asked to."""
        self.faults.append((code, va))
        more = upcoming(self.low, self.high, self.ahead).tolist() if self.ahead else []
        self.mapped_ahead += len(more)
        for page in [va, *more]:
            self.bench.map(page)
