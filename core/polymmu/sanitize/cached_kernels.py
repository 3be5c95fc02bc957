"""Compiled looks at everything a CPU has cached, against what the page allocator says."""

from __future__ import annotations

from polymmu.hardware.compile import Words, kernel, step
from polymmu.hardware.ram import FLAGS, REFCOUNT
from polymmu.hardware.state import (
    ABSENT,
    ADDRESS_BITS,
    ASIDS,
    D_HOLDS,
    D_LEVEL,
    D_RECORDS,
    D_SETS,
    D_STRIDE,
    D_WAYS,
    DESCRIPTOR,
    DESCRIPTORS,
    DIRTY,
    E_INFO,
    E_SPACE,
    GLOBAL,
    NR_TLBS,
    NR_WALK_CACHES,
    ORDINAL_MASK,
    R_SHIFT,
    RIGHTS,
    RIGHTS_BITS,
    ROW,
    ROWS,
    SIZES,
    TAG_SHIFT,
    USER_RIGHTS,
)
from polymmu.hardware.tlb_kernels import entries_held

__all__ = ["COLUMNS_OUT", "dirty_frames", "entries_to_free_frames", "what_became_of"]

STORED = DIRTY | 1 << (USER_RIGHTS + 2)
"""In INFO of an entry through which user code may store, and has."""
COLUMNS_OUT = 6
"""Per entry found: its place, its cache's descriptor, tag, where it leads, ASID, first address it translates."""


@step
def leads_to(words: Words, cache: int, info: int) -> int:
    """The physical address that an entry with ``info`` leads to."""
    return info & ADDRESS_BITS if words[cache + D_HOLDS] != 0 else info >> RIGHTS_BITS


@kernel
def entries_to_free_frames(
    words: Words, frames: Words, shift: int, count: int, low: int, high: int, out: Words
) -> int:
    """Find entries of TLBs and walk caches that lead to a frame nobody holds, or walk cache entries that lead into
    [low, high), where a table was; how many were put into ``out``.

    ``frames``: the table of columns, flat, with ``count`` frames each. ``out`` bounds how many are looked for.
    """
    found = 0
    for n in range(words[NR_TLBS] + words[NR_WALK_CACHES]):
        cache = DESCRIPTORS + n * DESCRIPTOR
        ways = words[cache + D_WAYS]
        in_tlb = words[cache + D_HOLDS] != 0
        left = entries_held(words, cache)
        for nth in range(words[cache + D_SETS]):
            if not left:
                break
            record = words[cache + D_RECORDS] + nth * words[cache + D_STRIDE]
            for entry in range(record, record + ways):
                tag = words[entry]
                if tag < 0:
                    continue
                left -= 1
                info = words[entry + E_INFO * ways]
                if in_tlb and (info & ABSENT or not info & RIGHTS):
                    continue
                address = leads_to(words, cache, info)
                pfn = address >> shift
                if not (0 <= pfn < count and frames[REFCOUNT * count + pfn] == 0) and (
                    in_tlb or not low <= address < high
                ):
                    continue
                if found + COLUMNS_OUT > out.size:
                    return found // COLUMNS_OUT
                if in_tlb:
                    page_shift = words[SIZES + (tag & ORDINAL_MASK)]
                else:
                    page_shift = words[ROWS + words[cache + D_LEVEL] * ROW + R_SHIFT]
                out[found] = entry
                out[found + 1] = cache
                out[found + 2] = tag
                out[found + 3] = address
                out[found + 4] = words[entry + E_SPACE * ways]
                out[found + 5] = tag >> TAG_SHIFT << page_shift
                found += COLUMNS_OUT
    return found // COLUMNS_OUT


@kernel
def what_became_of(words: Words, suspect: Words) -> int:
    """What became of an entry that ``entries_to_free_frames`` found: 0 gone, 1 out of reach, 2 usable now."""
    entry, cache, space = suspect[0], suspect[1], suspect[4]
    ways = words[cache + D_WAYS]
    if (
        words[entry] != suspect[2]
        or leads_to(words, cache, words[entry + E_INFO * ways]) != suspect[3]
        or words[entry + E_SPACE * ways] != space
    ):
        return 0
    if space != GLOBAL and space != words[ASIDS + (suspect[5] >> 61 & 7)]:
        return 1
    return 2


@kernel
def dirty_frames(
    words: Words, frames: Words, shift: int, count: int, wanted: int, not_wanted: int, out: Words
) -> int:
    """Frames that stores went to through TLB entries that are usable now; how many were put into ``out``.

    Only those with all flags of ``wanted`` and none of ``not_wanted``. ``frames``: as above.
    """
    found = 0
    for n in range(words[NR_TLBS]):
        cache = DESCRIPTORS + n * DESCRIPTOR
        ways = words[cache + D_WAYS]
        left = entries_held(words, cache)
        for nth in range(words[cache + D_SETS]):
            if not left:
                break
            record = words[cache + D_RECORDS] + nth * words[cache + D_STRIDE]
            for entry in range(record, record + ways):
                tag = words[entry]
                if tag < 0:
                    continue
                left -= 1
                info = words[entry + E_INFO * ways]
                if info & STORED != STORED:
                    continue
                va = tag >> TAG_SHIFT << words[SIZES + (tag & ORDINAL_MASK)]
                space = words[entry + E_SPACE * ways]
                if space != GLOBAL and space != words[ASIDS + (va >> 61 & 7)]:
                    continue
                pfn = (info & ADDRESS_BITS) >> shift
                if 0 <= pfn < count and frames[FLAGS * count + pfn] & (wanted | not_wanted) == wanted:
                    if found == out.size:
                        return found
                    out[found] = pfn
                    found += 1
    return found
