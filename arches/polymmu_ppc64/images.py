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

from polymmu.arch import Privilege, UserMistake, Walk, WalkFault, hookimpl
from polymmu_ppc64.hashing import SLB_V, base_page_of, first_of, hash_of, segment_shift_of, vsid_in
from polymmu_ppc64.walks import Mmu, Refusal, Tables, page

PAGE_CODES = {12: ((16, 7), (24, 0x38)), 16: ((16, 1), (24, 8)), 24: ((24, 0),), 34: ((34, 3),)}
"""By a segment's base page: (log2 of an L=1 entry's page, its code in the low frame bits). POWER7 and POWER8
firmware's; earlier processors know 4 KiB and 16 MiB only."""

SLB_N = 0x200
HPTE_H, HPTE_L, HPTE_SOFTWARE = 0x2, 0x4, 0x78
NO_FETCH = 0xC  # N, or G: guarded


def bits(value: int, high: int, low: int) -> int:
    """Bits high..low, both included, where they stand."""
    return value & (1 << high + 1) - (1 << low)


def hpte_rights(word: int, second: int, who: Privilege) -> tuple[bool, bool, bool]:
    """Fetch, load, store: what PP, pp0 and the storage attributes of an entry allow under the segment's key."""
    pp, key = second & 3, word & (0x400 if who is Privilege.USER else 0x800)  # Kp, Ks
    if second >> 63:
        read, write = pp == 2 and not key, False
    else:
        read, write = not (key and pp == 0), pp == 2 or (pp < 2 and not key)
    return read and not second & NO_FETCH and not word & SLB_N, read, write


def page_of(base: int, first: int, second: int) -> int:
    """Log2 of the page that an entry maps in a segment of 2**base pages; 0: it belongs to no such segment."""
    if not first & HPTE_L:
        return base if base == 12 else 0
    sizes = (page for page, code in PAGE_CODES[base] if bits(second, page - 1, 12) == code << 12)
    return next(sizes, 0)


@attrs.frozen(kw_only=True)
class HashImage(Mmu):
    """A hash table. ``segments``: (ESID word, VSID word) of every entry of the buffer; the root is SDR1."""

    segments: tuple[tuple[int, int], ...]
    page_shift: int = 12
    page_shifts: tuple[int, ...] = (12, 16, 24, 34)
    path_steps: tuple[tuple[str, int], ...] = (("v", 8), ("r", 8))

    def find(self, tables: Tables, root: int, va: int, who: Privilege) -> Walk:
        """Segment, primary group, secondary group. The first entry that matches decides, also if it refuses."""
        held = (w for esid, w in self.segments if esid & SLB_V and (va ^ esid) >> segment_shift_of(w) == 0)
        word = next(held, -1)
        base = base_page_of(word)
        if word < 0 or not base:
            raise Refusal(WalkFault.NOT_PRESENT)
        where = vsid_in(word), va, segment_shift_of(word), base
        for secondary in (0, HPTE_H):
            chosen = ~hash_of(*where) if secondary else hash_of(*where)
            group = bits(root, 63, 18) + (chosen & (1 << 11 + (root & 31)) - 1) * 128
            for place in range(group, group + 128, 16):
                first = tables.read(place)
                if first & ~(HPTE_SOFTWARE | HPTE_L) != first_of(*where) | secondary:
                    continue
                second = tables.read(place + 8)
                shift = page_of(base, first, second)
                if shift:
                    tables.path += (0, place, first), (1, place + 8, second)
                    user = any(hpte_rights(word, second, Privilege.USER))
                    return page(va, shift, bits(second, 59, 12), hpte_rights(word, second, who), user)
        raise Refusal(WalkFault.NOT_PRESENT)


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

    def find(self, tables: Tables, root: int, va: int, who: Privilege) -> Walk:
        """The process table, whose address goes through the partition's own tree, then the process's tree."""
        quadrant = va >> 62
        if quadrant not in (0, 3):
            raise Refusal(WalkFault.NOT_PRESENT)
        partition, processes = tables.read(root, 0), tables.read(root + 8)
        pid = self.pid if quadrant == 0 else 0
        if pid * 16 >= 1 << (processes & 31) + 12:
            raise Refusal(WalkFault.NOT_PRESENT)
        place = bits(processes, 59, 12) + pid * 16
        entry = self.follow(Tables(tables.ram), partition, place, Privilege.SUPERVISOR).pa
        assert entry is not None
        return self.follow(tables, tables.read(entry, 1), va, who)

    def follow(self, tables: Tables, descriptor: int, va: int, who: Privilege) -> Walk:
        """Follow the tree that a root descriptor names."""
        below = bits(va, 61, 0)
        shift = 31 + (bits(descriptor, 62, 61) >> 58 | bits(descriptor, 7, 5) >> 5)
        if below >> shift:
            raise Refusal(WalkFault.NOT_PRESENT)
        table, index_bits = bits(descriptor, 59, 8), descriptor & 31
        for level in range(2, 10):
            if not 0 < index_bits <= shift:
                break
            shift -= index_bits
            entry = tables.read(table + (below >> shift & (1 << index_bits) - 1) * 8, level)
            if not entry >> 63:
                raise Refusal(WalkFault.NOT_PRESENT)
            if entry >> 62 & 1:
                user = not entry & 8
                right = entry if user or who is Privilege.SUPERVISOR else 0
                may = right & 1 != 0, right & 6 != 0, right & 2 != 0
                return page(va, shift, bits(entry, 56, 12), may, user)
            table, index_bits = bits(entry, 59, 8), entry & 31
        raise Refusal(WalkFault.RESERVED_BIT)


def segments_in(registers: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    """The buffer's entries among the registers, in order of their numbers."""
    numbers = set()
    for name in registers:
        parts = name.split(".")
        if parts[0] == "slb":
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
