"""Reading memory of real machines: a hash table with its segment buffer, or POWER9's radix tables.

Registers: ``sdr1`` and the buffer's entries as ``slb.N.0`` (ESID word) and ``slb.N.1`` (VSID word), as slbmfee and
slbmfev give them; or ``ptcr`` and ``pid``. Both are walked by the architecture's rules, whatever Linux made of them.
Storage keys and what only a guest has (quadrants 1 and 2) are left out.
Sources: Power ISA Book III, hashed page table and radix tree translation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

from polymmu.arch import Access, EntryReader, Privilege, UserMistake, Walk, WalkFault, hookimpl
from polymmu_ppc64.hashing import (
    BASE_PAGES,
    PAGE_CODES,
    SLB_N,
    SLB_PAGE,
    SLB_V,
    avpn_of,
    hash_of,
    segment_shift_of,
    vsid_in,
)
from polymmu_ppc64.walks import Mmu, Rights, judged

KEY = {Privilege.SUPERVISOR: 0x800, Privilege.USER: 0x400}  # Ks, Kp
HPTE_V, HPTE_H, HPTE_L, HPTE_SOFTWARE = 0x1, 0x2, 0x4, 0x78
GUARDED, HPTE_N, PP = 0x8, 0x4, 0x3
FRAME = ((1 << 60) - 1) & -(1 << 12)  # of an entry, storage key aside
TABLE = ((1 << 60) - 1) & -(1 << 8)
LEAF_FRAME = ((1 << 57) - 1) & -(1 << 12)


def bits(value: int, high: int, low: int) -> int:
    """Bits high..low, both included."""
    return value >> low & (1 << high - low + 1) - 1


def hpte_rights(second: int, key: bool) -> Rights:
    """What PP, pp0 and the storage attributes of an entry allow under a key."""
    pp = second & PP
    if second >> 63:
        read, write = pp == 2 and not key, False
    else:
        read, write = not (key and pp == 0), pp == 2 or (pp < 2 and not key)
    return read, write, read and not second & (HPTE_N | GUARDED)


def page_of(base: int, first: int, second: int) -> int:
    """Log2 of the page that an entry maps in a segment of 2**base pages; 0: it belongs to no such segment."""
    if not first & HPTE_L:
        return base if base == 12 else 0
    for page, code in PAGE_CODES[base]:
        if bits(second, page - 1, 12) == code:
            return page
    return 0


@attrs.frozen(kw_only=True)
class HashImage(Mmu):
    """A hash table. ``segments``: (ESID word, VSID word) of every entry of the buffer; the root is SDR1."""

    segments: tuple[tuple[int, int], ...]
    page_shift: int = 12
    page_shifts: tuple[int, ...] = (12, 16, 24, 34)
    path_steps: tuple[tuple[str, int], ...] = (("v", 8), ("r", 8))

    def segment_of(self, va: int) -> int | None:
        """The VSID word of the segment that holds ``va``; None: a segment fault."""
        for esid, word in self.segments:
            if esid & SLB_V and (va ^ esid) >> segment_shift_of(word) == 0:
                return word
        return None

    def walk(
        self,
        ram: EntryReader,
        root: int,
        va: int,
        access: Access | None = None,
        privilege: Privilege = Privilege.SUPERVISOR,
        asid: int = 0,
    ) -> Walk:
        """Segment, primary group, secondary group. The first entry that matches decides, also if it refuses."""
        word = self.segment_of(va)
        base = None if word is None else BASE_PAGES.get(word & SLB_PAGE)
        if word is None or base is None:
            return Walk(va=va, fault=WalkFault.NOT_PRESENT)
        if access is Access.FETCH and word & SLB_N:
            return Walk(va=va, fault=WalkFault.NO_PERMISSION)
        table, groups = root & bits(-1, 63, 18) << 18, 1 << 11 + (root & 31)
        vsid, segment = vsid_in(word), segment_shift_of(word)
        found = hash_of(vsid, va, segment, base)
        wanted = avpn_of(vsid, va, segment, base) | HPTE_V
        for secondary in (0, HPTE_H):
            group = (~found if secondary else found) & groups - 1
            for slot in range(8):
                place = table + group * 128 + slot * 16
                if place + 16 > ram.size:
                    return Walk(va=va, fault=WalkFault.TABLE_UNREADABLE)
                first = ram.read_entry(place, 8, "big")
                if first & ~(HPTE_SOFTWARE | HPTE_L) != wanted | secondary:
                    continue
                second = ram.read_entry(place + 8, 8, "big")
                page = page_of(base, first, second)
                if not page:
                    continue
                rights = {who: hpte_rights(second, bool(word & key)) for who, key in KEY.items()}
                path = ((0, place, first), (1, place + 8, second))
                user = any(rights[Privilege.USER])
                return judged(va, second & FRAME, page, rights[privilege], user, access, path)
        return Walk(va=va, fault=WalkFault.NOT_PRESENT)


@attrs.frozen(kw_only=True)
class RadixImage(Mmu):
    """POWER9's radix trees, LPID 0 with MSR.HV. The root is the partition table."""

    pid: int
    page_shift: int = 16
    page_shifts: tuple[int, ...] = (12, 16, 21, 30)
    path_steps: tuple[tuple[str, int], ...] = (
        ("part", 8),
        ("proc", 8),
        *((f"level{n}", 8) for n in range(8)),
    )

    def walk(
        self,
        ram: EntryReader,
        root: int,
        va: int,
        access: Access | None = None,
        privilege: Privilege = Privilege.SUPERVISOR,
        asid: int = 0,
    ) -> Walk:
        """The process table, whose address goes through the partition's own tree, then the process's tree."""
        path: list[tuple[int, int, int]] = []
        quadrant = va >> 62
        if quadrant not in (0, 3):
            return Walk(va=va, fault=WalkFault.NOT_PRESENT)
        partition, processes = self.read(ram, root, 0, path), self.read(ram, root + 8, 0, [])
        if partition is None or processes is None:
            return Walk(va=va, fault=WalkFault.TABLE_UNREADABLE, path=tuple(path))
        pid = self.pid if quadrant == 0 else 0
        if pid * 16 >= 1 << bits(processes, 4, 0) + 12:
            return Walk(va=va, fault=WalkFault.NOT_PRESENT, path=tuple(path))
        entry = self.tree(ram, partition, (processes & bits(-1, 59, 12) << 12) + pid * 16, [])
        process = None if entry.pa is None else self.read(ram, entry.pa, 1, path)
        if process is None:
            return Walk(va=va, fault=WalkFault.TABLE_UNREADABLE, path=tuple(path))
        return self.tree(ram, process, va, path, access, privilege)

    def read(self, ram: EntryReader, place: int, level: int, path: list[tuple[int, int, int]]) -> int | None:
        """One doubleword, noted in the path; None where there is no memory."""
        if not 0 <= place <= ram.size - 8:
            return None
        entry = ram.read_entry(place, 8, "big")
        path.append((level, place, entry))
        return entry

    def tree(
        self,
        ram: EntryReader,
        descriptor: int,
        va: int,
        path: list[tuple[int, int, int]],
        access: Access | None = None,
        privilege: Privilege = Privilege.SUPERVISOR,
    ) -> Walk:
        """Follow the tree that a root descriptor names."""
        below = va & (1 << 62) - 1
        shift = 31 + (bits(descriptor, 62, 61) << 3 | bits(descriptor, 7, 5))
        if below >> shift:
            return Walk(va=va, fault=WalkFault.NOT_PRESENT, path=tuple(path))
        table, index_bits = descriptor & TABLE, bits(descriptor, 4, 0)
        for level in range(2, 10):
            if not 0 < index_bits <= shift:
                break
            shift -= index_bits
            index = bits(below, shift + index_bits - 1, shift)
            entry = self.read(ram, table + index * 8, level, path)
            if entry is None:
                return Walk(va=va, fault=WalkFault.TABLE_UNREADABLE, path=tuple(path))
            if not entry >> 63:
                return Walk(va=va, fault=WalkFault.NOT_PRESENT, path=tuple(path))
            if entry >> 62 & 1:
                user = not entry & 8
                allowed = user or privilege is Privilege.SUPERVISOR
                read, write, execute = bool(entry & 6), bool(entry & 2), bool(entry & 1)
                rights = (allowed and read, allowed and write, allowed and execute)
                return judged(va, entry & LEAF_FRAME, shift, rights, user, access, path)
            table, index_bits = entry & TABLE, bits(entry, 4, 0)
        return Walk(va=va, fault=WalkFault.RESERVED_BIT, path=tuple(path))


def segments_in(registers: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    """The buffer's entries among the registers, in order of their numbers."""
    numbers = set()
    for name in registers:
        if name.split(".")[0] == "slb":
            parts = name.split(".")
            if len(parts) != 3 or not parts[1].isdecimal() or parts[2] not in ("0", "1"):
                raise UserMistake(f"{name} is no entry of the segment buffer; give slb=INDEX:ESID:VSID")
            numbers.add(int(parts[1]))
    return tuple((registers.get(f"slb.{n}.0", 0), registers.get(f"slb.{n}.1", 0)) for n in sorted(numbers))


@hookimpl
def read_image(
    meta: Mapping[str, Any], arrays: Mapping[str, Any]
) -> tuple[dict[str, int], list[tuple[int, bytes]]]:
    """The segment buffer, and the hash table as it lies in memory: all of it, invalid entries zero."""
    try:
        named = meta.get("registers", {})
        registers: dict[str, int] = {}
        for index, *words in named.get("slb", []):
            registers |= {f"slb.{index}.{n}": int(word, 16) for n, word in enumerate(words)}
        if "hpte" not in arrays:
            return registers, []
        table = np.zeros(int(named["htab_size"], 16) // 16 * 16, dtype=np.uint8).reshape(-1, 16)
        table[arrays["hpte_index"]] = arrays["hpte"]
        return registers, [(int(named["htab_base"], 16), table.tobytes())]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserMistake(
            f"meta.registers needs htab_base and htab_size, and slb as [index, ESID word, VSID word], in "
            f"hexadecimal, for the entries in hpte_index and hpte: {error}"
        ) from error
