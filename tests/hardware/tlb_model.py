"""A second TLB, written to be obviously right: dictionaries and lists, one step per sentence of the rules."""

from __future__ import annotations

import attrs

from polymmu.description.model import TlbSpec

MASK = (1 << 64) - 1


@attrs.define
class Page:
    """A mapping: ``size`` bytes at ``base``; ``space`` None: global."""

    base: int
    size: int
    space: int | None
    dirty: bool


@attrs.define
class Entry:
    """What a way holds: a piece of ``size`` bytes of ``page``."""

    number: int
    size: int
    page: Page
    dirty: bool


def xorshift(state: int) -> int:
    """The next state of the generator that random replacement is defined by."""
    state ^= (state << 13) & MASK
    state ^= state >> 7
    state ^= (state << 17) & MASK
    return state


class Way(list[Entry | None]):
    """The ways of one set, the recency of each, and the tree of tree-PLRU."""

    def __init__(self, ways: int) -> None:
        super().__init__([None] * ways)
        self.recent: list[int] = []
        self.towards_right = dict.fromkeys(range(1, ways), False)

    def use(self, way: int) -> None:
        """Way ``way`` is the most recently used one now."""
        self.recent = [other for other in self.recent if other != way] + [way]
        node = way + len(self)
        while node > 1:
            came_from_right = node % 2 == 1
            node //= 2
            self.towards_right[node] = not came_from_right


class ModelTlb:
    """One TLB."""

    def __init__(self, spec: TlbSpec) -> None:
        self.spec = spec
        self.sets = [Way(spec.ways) for _ in range(spec.entries // spec.ways)]
        self.touched: set[tuple[int, int, int]] = set()
        self.counts = dict.fromkeys(("hits", "misses", "compulsory", "evictions", "flushed"), 0)

    def set_of(self, va: int, size: int) -> Way:
        """Set index = page number mod sets."""
        return self.sets[va // size % len(self.sets)]

    def find(self, va: int, space: int) -> tuple[Way, int] | None:
        """Where the entry for ``va`` is."""
        for size in sorted(self.spec.page_sizes):
            ways = self.set_of(va, size)
            for way, entry in enumerate(ways):
                if (
                    entry
                    and (entry.number, entry.size) == (va // size, size)
                    and entry.page.space
                    in (
                        space,
                        None,
                    )
                ):
                    return ways, way
        return None

    def fill(self, va: int, entry_size: int, page: Page, dirty: bool, space: int, model: ModelCpu) -> None:
        """Count a miss and put the piece of ``page`` around ``va`` in."""
        self.counts["misses"] += 1
        if (va // entry_size, entry_size, space) not in self.touched:
            self.touched.add((va // entry_size, entry_size, space))
            self.counts["compulsory"] += 1
        ways = self.set_of(va, entry_size)
        if None in ways:
            way = ways.index(None)
        else:
            self.counts["evictions"] += 1
            way = self.victim(ways, model)
        ways[way] = Entry(va // entry_size, entry_size, page, dirty)
        ways.use(way)

    def victim(self, ways: Way, model: ModelCpu) -> int:
        """Which valid way goes."""
        if self.spec.replacement == "lru":
            return ways.recent[0]
        if self.spec.replacement == "plru":
            node = 1
            while node < len(ways):
                node = 2 * node + ways.towards_right[node]
            return node - len(ways)
        model.random = xorshift(model.random)
        return (model.random & (MASK >> 1)) % len(ways)

    def invalidate(self, space: int | None, low: int, high: int, with_global: bool) -> int:
        """Drop what a flush of [low, high) drops."""
        dropped = 0
        for ways in self.sets:
            for way, entry in enumerate(ways):
                if entry is None:
                    continue
                page = entry.page
                mine = with_global if page.space is None else space in (None, page.space)
                if mine and page.base < high and low < page.base + page.size:
                    ways[way] = None
                    if way in ways.recent:
                        ways.recent.remove(way)
                    dropped += 1
        self.counts["flushed"] += dropped
        return dropped


class ModelCpu:
    """A CPU's TLBs without paging-structure caches; every mapped page is present and allows everything."""

    def __init__(self, tlbs: dict[str, TlbSpec], seed: int) -> None:
        self.tlbs = {name: ModelTlb(spec) for name, spec in tlbs.items()}
        self.random = 2 * seed + 1
        self.walks = 0
        self.space = 0

    def access(self, kind: str, va: int, page: Page) -> None:
        """One look-up of ``va``, which ``page`` maps."""
        levels = sorted({tlb.spec.level for tlb in self.tlbs.values()})
        known, size, dirty, missed = page, page.size, False, []
        for level in levels:
            here = [t for t in self.tlbs.values() if t.spec.level == level and kind in t.spec.holds]
            hits = [(tlb, found) for tlb in here if (found := tlb.find(va, self.space))]
            if hits:
                tlb, (ways, way) = hits[0]
                entry = ways[way]
                assert entry is not None
                if kind == "store" and not entry.dirty:
                    self.walks += 1
                    page.dirty = True
                    self.mark_dirty(va)
                tlb.counts["hits"] += 1
                ways.use(way)
                known, size, dirty = entry.page, entry.size, entry.dirty
                break
            missed.append(here)
        else:
            self.walks += 1
            page.dirty |= kind == "store"
            dirty = page.dirty
        for here in reversed(missed):
            choices = [(s, -n) for n, t in enumerate(here) for s in t.spec.page_sizes if s <= size]
            if choices:
                best, n = max(choices)
                here[-n].fill(va, best, known, dirty, self.space, self)

    def mark_dirty(self, va: int) -> None:
        """All TLBs that serve stores learn that the page is dirty."""
        for tlb in self.tlbs.values():
            if "store" in tlb.spec.holds:
                for size in tlb.spec.page_sizes:
                    for entry in tlb.set_of(va, size):
                        if (
                            entry
                            and (entry.number, entry.size) == (va // size, size)
                            and entry.page.space
                            in (
                                self.space,
                                None,
                            )
                        ):
                            entry.dirty = True

    def invalidate(self, space: int | None, low: int, high: int, with_global: bool) -> int:
        """A flush of all TLBs."""
        return sum(tlb.invalidate(space, low, high, with_global) for tlb in self.tlbs.values())
