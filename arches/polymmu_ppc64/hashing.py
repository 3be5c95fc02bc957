"""Segments, hashes and hash-table entries: the arithmetic of the hashed page table.

An effective address lies in a segment of 256 MiB (or 1 TiB). The segment's buffer entry gives the rest of the
virtual address, the VSID, and the base page size; both are hashed to a group of eight 16-byte entries.

    first doubleword    63:62 segment size   61:7 AVPN   6:3 software, lock   2 L   1 H   0 V
    second doubleword   61:12 frame and, in its low bits, the size code   8 R  7 C  6:3 WIMG  2 N  1:0 PP

Sources: PowerPC Architecture Book III, hashed page table; Linux 2.6.12 to 2.6.39 for the VSIDs (``mmu.h``,
``mmu_context.h``). Each function is plain Python; a name that ends in ``_step`` is the same function compiled.
"""

from __future__ import annotations

from polymmu.arch import step
from polymmu_ppc64.formats import DIRTY, RW, USER

__all__ = [
    "BASE_PAGES",
    "HASH_BITS",
    "PAGE_CODES",
    "SLB_V",
    "avpn_of",
    "hash_of",
    "hpte_flags",
    "segment_shift_of",
    "slb_esid",
    "vsid_in",
    "vsid_of",
]

HASH_BITS = (1 << 39) - 1
SEGMENT, BIG_SEGMENT = 28, 40  # log2 of bytes
SLB_V = 0x08000000
SLB_N = 0x200
SLB_PAGE = 0x130  # L and LP of a segment

MULTIPLIER, MODULUS = 200730139, (1 << 36) - 1
BIG_MULTIPLIER, BIG_MODULUS = 12538073, (1 << 24) - 1

BASE_PAGES = {0x000: 12, 0x110: 16, 0x100: 24, 0x120: 34}
"""Log2 of a segment's base page by its L and LP; other values translate nothing."""
PAGE_CODES = {12: ((16, 7), (24, 0x38)), 16: ((16, 1), (24, 8)), 24: ((24, 0),), 34: ((34, 3),)}
"""By a segment's base page: (log2 of an L=1 entry's page, its code in the low frame bits). POWER7 and POWER8
firmware's; earlier processors know 4 KiB and 16 MiB only."""


def vsid_of(proto: int, segment_shift: int) -> int:
    """Linux's VSID for a proto-VSID: context and segment number, or a kernel segment's number."""
    if segment_shift == BIG_SEGMENT:
        return proto * BIG_MULTIPLIER % BIG_MODULUS
    return proto * MULTIPLIER % MODULUS


def segment_shift_of(vsid_word: int) -> int:
    """Log2 of a segment's size, from the second word of its buffer entry."""
    return BIG_SEGMENT if vsid_word >> 62 & 3 else SEGMENT


def vsid_in(vsid_word: int) -> int:
    """The VSID in the second word of a segment's buffer entry, as wide as the field is."""
    if vsid_word >> 62 & 3:
        return vsid_word >> 24 & (1 << 38) - 1
    return vsid_word >> 12 & (1 << 50) - 1


def slb_esid(ea: int, segment_shift: int) -> int:
    """The first word of a valid buffer entry for the segment of ``ea``."""
    return (ea & -(1 << segment_shift)) | SLB_V


def hash_of(vsid: int, ea: int, segment_shift: int, page_shift: int) -> int:
    """The 39-bit hash: its low bits choose the primary group, those of its complement the secondary one."""
    found = vsid ^ (ea & (1 << segment_shift) - 1) >> page_shift
    if segment_shift == BIG_SEGMENT:
        found = found ^ vsid << 25
    return found & HASH_BITS


def avpn_of(vsid: int, ea: int, segment_shift: int, page_shift: int) -> int:
    """The first doubleword that a base page's entry has in its bits 63:7."""
    offset = (ea & (1 << segment_shift) - 1) >> page_shift << page_shift
    avpn = vsid << (segment_shift - 23) | offset >> 23
    return avpn << 7 | (1 << 62 if segment_shift == BIG_SEGMENT else 0)


def hpte_flags(pte: int) -> int:
    """The low bits of the second doubleword that Linux makes of a pte.

    PP 2 (user may write) only where the pte is writable and dirty; a clean page is read-only to hardware, so that
    its first store traps. N where the pte is not executable; C is set at once.
    """
    flags = (pte & 0x1FE ^ 0x4) | DIRTY
    return flags | 1 if pte & USER and pte & (RW | DIRTY) != RW | DIRTY else flags


vsid_step = step(vsid_of)
segment_shift_step = step(segment_shift_of)
vsid_in_step = step(vsid_in)
slb_esid_step = step(slb_esid)
hash_step = step(hash_of)
avpn_step = step(avpn_of)
hpte_flags_step = step(hpte_flags)
