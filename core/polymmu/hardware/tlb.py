"""From a machine file's TLBs and paging-structure caches to a CPU's flat state.

The description has checked the geometry; what depends on the MMU is checked here, once, so that the kernels
need not ask. A miss fills, at each level, the TLB that holds the largest page size not larger than the
page's; so a TLB of 4 KiB entries serves a 2 MiB page in fragments, and dropping any address of the page
drops them all.

First reading: ``build`` from top to bottom; ``grow`` only keeps the table of touched pages roomy.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np
import numpy.typing as npt

from polymmu.description.model import ACCESSES, TlbSpec, WalkCacheSpec
from polymmu.errors import UserMistake
from polymmu.hardware import state as at
from polymmu.hardware.walk import Translation

__all__ = ["CpuState", "build", "grow", "new_seen"]

Words = npt.NDArray[np.int64]
POLICIES = {"lru": at.LRU, "plru": at.PLRU, "random": at.RANDOM_POLICY}
FRONT_COUNTS = np.array([[1 << 16 * op] for op in range(4)], dtype=np.int64)
EMPTY_ROWS = np.arange(1 << at.FRONT_BITS, dtype=np.int64) ^ at.OTHER_ROW
FIRST_SEEN_SLOTS = 1024
LINE_BYTES = 64


@attrs.frozen
class CpuState:
    """A CPU's words, and where its TLBs' and paging-structure caches' descriptors lie in them, by name."""

    words: Words
    tlbs: dict[str, int]
    walk_caches: dict[str, int]


def _check(place: str, spec: TlbSpec | WalkCacheSpec) -> None:
    """Refuse what the description allows and the state has no room for: a set's tree is one word."""
    if spec.replacement == "plru" and spec.ways > 64:
        raise UserMistake(f"plru with {spec.ways} ways; at most 64 are supported, choose lru", place=place)


def _sizes(tlbs: Mapping[str, TlbSpec], translation: Translation) -> list[int]:
    """Log2 of every page size in use, ascending."""
    shifts = set(translation.page_shifts)
    for name, spec in tlbs.items():
        for size in spec.page_sizes:
            if size.bit_length() - 1 < translation.page_shift:
                raise UserMistake(
                    f"pages of {size} bytes, but this MMU's smallest have {1 << translation.page_shift}",
                    place=f"tlbs.{name}",
                )
            shifts.add(size.bit_length() - 1)
    if len(shifts) > 15:
        raise UserMistake(f"{len(shifts)} different page sizes; at most 15 are supported", place="tlbs")
    return sorted(shifts)


def _whole_lines(words: int) -> int:
    """``words`` rounded up to a host cache line."""
    return -(-words * 8 // LINE_BYTES) * LINE_BYTES // 8


@attrs.define
class _Builder:
    """Places descriptors and sets one after the other, then writes them."""

    next_free: int
    rows: dict[int, int] = attrs.field(factory=dict)
    sets: list[tuple[int, int, int]] = attrs.field(factory=list)

    def place(self, descriptor: int, spec: TlbSpec | WalkCacheSpec, weight: int) -> None:
        sets = spec.entries // spec.ways
        facts = {
            at.D_RECORDS: self.next_free,
            at.D_SETS: sets,
            at.D_MASK: sets - 1 if sets & (sets - 1) == 0 else -1,
            at.D_WAYS: spec.ways,
            at.D_STRIDE: spec.ways * at.ENTRY_WORDS,
            at.D_POLICY: POLICIES[spec.replacement],
            at.D_WEIGHT: weight,
            at.D_HIT_SHIFT: max(0, weight.bit_length() - 1),
        }
        self.sets.append((self.next_free, sets, spec.ways))
        self.next_free += _whole_lines(spec.entries * at.ENTRY_WORDS)
        if spec.replacement == "plru":
            facts[at.D_TREES] = self.next_free
            self.next_free += _whole_lines(sets)
        self.rows.update({descriptor + place: value for place, value in facts.items()})

    def write(self) -> Words:
        # Sets of four ways or more are whole cache lines, so the array starts at one.
        raw = np.zeros(self.next_free * 8 + LINE_BYTES, dtype=np.uint8)
        skip = -raw.ctypes.data % LINE_BYTES
        words = raw[skip : skip + self.next_free * 8].view(np.int64)
        for place, value in self.rows.items():
            words[place] = value
        for first, count, ways in self.sets:
            block = words[first : first + count * ways * at.ENTRY_WORDS].reshape(count, at.ENTRY_WORDS, ways)
            block[:, at.E_TAG] = -1
            block[:, at.E_STAMP] = -1
        return words


def build(
    tlbs: Mapping[str, TlbSpec],
    walk_caches: Mapping[str, WalkCacheSpec],
    translation: Translation,
    seed: int,
) -> CpuState:
    """A new CPU's state. UserMistake, with the machine file's path, for what cannot be built."""
    sizes = _sizes(tlbs, translation)
    for name, spec in tlbs.items():
        _check(f"tlbs.{name}", spec)
    present = {name: spec for name, spec in walk_caches.items() if spec.entries}
    shifts = translation.table_shifts()
    for name, cache in present.items():
        _check(f"walk_caches.{name}", cache)
        if cache.level not in shifts:
            raise UserMistake(
                f"level {cache.level} is none of the levels that this MMU's walks can start below "
                f"({', '.join(map(str, sorted(shifts))) or 'it has none'})",
                place=f"walk_caches.{name}",
            )

    first_level = [name for name, spec in tlbs.items() if spec.level == 1]
    bits = min(16, 60 // max(1, len(first_level)))
    if bits < 4:
        raise UserMistake(f"{len(first_level)} TLBs of level 1; at most 15 are supported", place="tlbs")
    descriptors = at.DESCRIPTORS
    builder = _Builder(descriptors + (len(tlbs) + len(present)) * at.DESCRIPTOR)
    homes: dict[str, int] = {}
    for n, (name, spec) in enumerate(tlbs.items()):
        homes[name] = descriptors + n * at.DESCRIPTOR
        weight = 1 << bits * first_level.index(name) if name in first_level else 0
        builder.place(homes[name], spec, weight)
        builder.rows[homes[name] + at.D_HOLDS] = sum(1 << ACCESSES.index(kind) for kind in spec.holds)
    cache_homes: dict[str, int] = {}
    for n, (name, cache) in enumerate(present.items(), len(tlbs)):
        cache_homes[name] = descriptors + n * at.DESCRIPTOR
        builder.place(cache_homes[name], cache, 0)
        builder.rows[cache_homes[name] + at.D_LEVEL] = shifts[cache.level][0]
    words = builder.write()

    words[at.NR_SIZES] = len(sizes)
    words[at.SIZES : at.SIZES + len(sizes)] = sizes
    words[at.NR_TLBS] = len(tlbs)
    words[at.NR_WALK_CACHES] = len(present)
    words[at.HIT_BITS] = bits
    words[at.HAS_PLRU] = any(tlbs[name].replacement == "plru" for name in first_level)
    words[at.TLB_LEVELS] = max((spec.level for spec in tlbs.values()), default=0)
    words[at.RANDOM] = seed_word(seed)
    translation.install(words)
    clear_front(words)
    for name, cache in present.items():
        words[at.ROWS + shifts[cache.level][0] * at.ROW + at.R_CACHE] = cache_homes[name]
        if cache.level == 1:
            words[at.QUICK_WALK] = cache_homes[name] if _is_quick(cache) else 0
    _route(words, tlbs, homes, sizes)
    _route_quick(words, tlbs, homes)
    return CpuState(words, homes, cache_homes)


def clear_front(words: Words) -> None:
    """Forget all shortcuts: another address space or privilege runs."""
    rows = words[at.FRONT : at.FRONT + at.FRONT_WORDS].reshape(4, -1, at.FRONT_ROW)
    rows[:, :, at.F_START] = EMPTY_ROWS << words[at.BASE_SHIFT]
    rows[:, :, at.F_STAMP] = 0
    rows[:, :, at.F_COUNT] = FRONT_COUNTS


def seed_word(seed: int) -> int:
    """The first state of the replacement's pseudo-random generator: never zero, where xorshift would stay."""
    return (seed * 2 + 1) & ((1 << 63) - 1)


def _route(words: Words, tlbs: Mapping[str, TlbSpec], homes: Mapping[str, int], sizes: list[int]) -> None:
    """Say for each kind of access and level where to look, and what a page of each size fills."""
    words[at.FILLS : at.QUICK] = -1
    used = 0
    looks: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for access, kind in enumerate(ACCESSES):
        for level in range(int(words[at.TLB_LEVELS])):
            probes = [
                (homes[name], sizes.index(size.bit_length() - 1))
                for name, spec in tlbs.items()
                if spec.level == level + 1 and kind in spec.holds
                for size in sorted(spec.page_sizes)
            ]
            looks[access, level] = probes
            row = access * at.MAX_TLB_LEVELS + level
            if used + len(probes) > at.MAX_PROBES:
                raise UserMistake("too many TLBs with too many page sizes", place="tlbs")
            words[at.PROBE_ROWS + 2 * row : at.PROBE_ROWS + 2 * row + 2] = used, len(probes)
            for n, (home, ordinal) in enumerate(probes, used):
                place = at.PROBES + at.PROBE * n
                words[place : place + at.PROBE] = home, ordinal, sizes[ordinal], home + at.D_COUNTS + ordinal
            for mapped in range(len(sizes)):
                fitting = [(ordinal, -n) for n, (_, ordinal) in enumerate(probes, used) if ordinal <= mapped]
                if fitting:
                    words[at.FILLS + row * 16 + mapped] = -max(fitting)[1]
            used += len(probes)
    words[at.MODIFY_SHORTCUT] = looks.get((1, 0)) == looks.get((2, 0))


def _is_quick(spec: TlbSpec | WalkCacheSpec) -> bool:
    """Whether ``quick_kernels`` knows this shape."""
    sets = spec.entries // spec.ways
    return spec.ways == at.QUICK_WAYS and spec.replacement == "lru" and sets & (sets - 1) == 0


def _route_quick(words: Words, tlbs: Mapping[str, TlbSpec], homes: Mapping[str, int]) -> None:
    """Say for which kinds of access a base page has one TLB of the quick shape at each of two levels."""
    if words[at.TLB_LEVELS] != 2 or not words[at.IS_RADIX]:
        return
    base = 1 << int(words[at.BASE_SHIFT])
    fitting = [(name, spec) for name, spec in tlbs.items() if base in spec.page_sizes]
    for access, kind in enumerate(ACCESSES):
        levels = [
            [name for name, spec in fitting if spec.level == level and kind in spec.holds] for level in (1, 2)
        ]
        if all(len(names) == 1 and _is_quick(tlbs[names[0]]) for names in levels):
            row = at.QUICK + 2 * access
            words[row : row + 2] = [homes[name] for (name,) in levels]


def new_seen(slots: int, words: Words) -> Words:
    """An empty table of touched pages; ``words`` learns its size and how many insertions it takes."""
    words[at.SEEN_MASK] = slots - 1
    words[at.SEEN_ROOM] = slots // 2
    seen = np.zeros((slots, at.SEEN_BITS + int(words[at.NR_TLBS])), dtype=np.int64)
    seen[:, at.SEEN_KEY] = -1
    words[at.SEEN_ADDRESS] = seen.ctypes.data
    return seen.reshape(-1)


def grow(seen: Words, words: Words) -> Words:
    """The same table of touched pages with twice the slots."""
    width = at.SEEN_BITS + int(words[at.NR_TLBS])
    old = seen.reshape(-1, width)
    rows = old[old[:, at.SEEN_KEY] >= 0]
    slots = 2 * len(old)
    bigger = new_seen(slots, words)
    words[at.SEEN_ROOM] -= len(rows)
    table = bigger.reshape(-1, width)
    slot = rows[:, at.SEEN_KEY] * at.HASH_PAGE ^ rows[:, at.SEEN_SPACE] * at.HASH_SPACE
    slot = (slot ^ (slot >> 29)) & (slots - 1)
    # Each round puts in, of the rows that want the same free slot, the first; the others try the next one.
    while len(rows):
        wanted, chosen = np.unique(slot, return_index=True)
        free = table[wanted, at.SEEN_KEY] < 0
        table[wanted[free]] = rows[chosen[free]]
        waiting = np.ones(len(rows), dtype=bool)
        waiting[chosen[free]] = False
        rows, slot = rows[waiting], (slot[waiting] + 1) & (slots - 1)
    return bigger
