"""Segments, hashes and hash-table entries: the arithmetic of the hashed page table.

An effective address lies in a segment of 256 MiB (or 1 TiB). The second word of the segment's buffer entry, here
the *segment word*, gives the rest of the virtual address, the VSID, and the base page size; both are hashed to a
group of eight 16-byte entries.

    first doubleword    63:62 segment size   61:7 AVPN   6:3 software, lock   2 L   1 H   0 V
    second doubleword   61:12 frame and, in its low bits, the size code   8 R  7 C  6:3 WIMG  2 N  1:0 PP

Sources: PowerPC Architecture Book III, hashed page table; Linux 2.6.12 to 2.6.39 for the VSIDs (``mmu.h``,
``mmu_context.h``). Plain Python; ``mmu`` compiles the same functions.
"""

from __future__ import annotations

SEGMENT, BIG_SEGMENT = 28, 40  # log2 of bytes
SLB_V = 0x08000000


def vsid_of(proto: int, segment_shift: int) -> int:
    """Linux's VSID for a proto-VSID: context and segment number, or a kernel segment's number."""
    if segment_shift == BIG_SEGMENT:
        return proto * 12538073 % ((1 << 24) - 1)
    return proto * 200730139 % ((1 << 36) - 1)


def segment_shift_of(word: int) -> int:
    """Log2 of a segment's size."""
    return BIG_SEGMENT if word >> 62 & 3 else SEGMENT


def base_page_of(word: int) -> int:
    """Log2 of the base page that a segment's L and LP say; 0: a value that translates nothing."""
    size = word & 0x130
    return 12 if size == 0 else 16 if size == 0x110 else 24 if size == 0x100 else 34 if size == 0x120 else 0


def vsid_in(word: int) -> int:
    """A segment's VSID, as wide as the field is."""
    return word >> 24 & (1 << 38) - 1 if word >> 62 & 3 else word >> 12 & (1 << 50) - 1


def slb_esid(ea: int, segment_shift: int) -> int:
    """The first word of a valid buffer entry for the segment of ``ea``."""
    return (ea & -(1 << segment_shift)) | SLB_V


def hash_of(vsid: int, ea: int, segment_shift: int, page_shift: int) -> int:
    """The 39-bit hash: its low bits choose the primary group, those of its complement the secondary one."""
    found = vsid ^ (ea & (1 << segment_shift) - 1) >> page_shift
    return (found ^ vsid << 25 if segment_shift == BIG_SEGMENT else found) & (1 << 39) - 1


def first_of(vsid: int, ea: int, segment_shift: int, page_shift: int) -> int:
    """The first doubleword of a base page's primary entry, L and the software bits zero."""
    offset = (ea & (1 << segment_shift) - 1) >> page_shift << page_shift
    avpn = vsid << (segment_shift - 23) | offset >> 23
    return avpn << 7 | 1 | (1 << 62 if segment_shift == BIG_SEGMENT else 0)
