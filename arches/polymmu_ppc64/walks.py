"""What the core asks of an MMU without a compiled kernel, and the MMU of a machine that runs programs.

On a running machine the page tables are what is true, and the hash table a cache of them; so a walk for a human reads
the tables. The hash table itself is searched where an image of one is given (``images``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import attrs

from polymmu import arch
from polymmu.arch import Access, Privilege, Walk, WalkFault
from polymmu_ppc64 import formats, mmu
from polymmu_ppc64.formats import ACCESSED, DIRTY, EXEC, PRESENT, RW, USER
from polymmu_ppc64.hashing import slb_esid, vsid_of


class Refusal(Exception):
    """A walk found no page; the argument is the WalkFault."""


@attrs.define
class Tables:
    """Memory, and what of it a walk has to show."""

    ram: arch.EntryReader
    path: list[tuple[int, int, int]] = attrs.field(factory=list)

    def read(self, place: int, level: int = -1, nbytes: int = 8) -> int:
        """An entry, shown as one of ``level`` (-1: not at all)."""
        if not 0 <= place <= self.ram.size - nbytes:
            raise Refusal(WalkFault.TABLE_UNREADABLE)
        entry = self.ram.read_entry(place, nbytes, "big")
        if level >= 0:
            self.path.append((level, place, entry))
        return entry


def page(va: int, shift: int, frame: int, may: tuple[bool, bool, bool], user: bool) -> Walk:
    """A page of 2**shift bytes that whoever asked may fetch from, load from, store to."""
    size = 1 << shift
    execute, read, write = may
    pa = frame & -size | va & size - 1
    return Walk(va=va, pa=pa, page_size=size, readable=read, writable=write, executable=execute, user=user)


@attrs.frozen(kw_only=True)
class Mmu:
    """The part of ``Translation`` that is alike: no walk starts halfway, nothing is read when a root is loaded, and
    hash table and TLBs remember addresses, so nothing is mapped ahead."""

    page_shift: int
    page_shifts: tuple[int, ...]
    path_steps: tuple[tuple[str, int], ...]
    event_costs: Mapping[str, int] = attrs.field(factory=dict[str, int])
    looks_ahead: bool = False

    def table_shifts(self) -> Mapping[int, tuple[int, int]]:
        return {}

    def latch_root(self, ram: arch.EntryReader, root: int) -> tuple[int, ...]:
        return ()

    def install(self, words: Any) -> None:
        """All that a machine needs on which nothing runs."""
        words[arch.BASE_SHIFT] = self.page_shift

    def find(self, tables: Tables, root: int, va: int, who: Privilege) -> Walk:
        """The page of ``va``, whatever ``who`` may do there; raises Refusal."""
        raise NotImplementedError

    def walk(
        self,
        ram: arch.EntryReader,
        root: int,
        va: int,
        access: Access | None = None,
        privilege: Privilege = Privilege.SUPERVISOR,
        asid: int = 0,
    ) -> Walk:
        """See ``Translation.walk``."""
        tables = Tables(ram)
        try:
            found = self.find(tables, root, va, privilege)
        except Refusal as refusal:
            found = Walk(va=va, fault=refusal.args[0])
        may = found.executable, found.readable, found.writable
        if found.pa is not None and access is not None and not may[access]:
            found = attrs.evolve(found, pa=None, fault=WalkFault.NO_PERMISSION)
        return attrs.evolve(found, path=tuple(tables.path))


# ------------------------------------------------------------------ faults
NO_ENTRY, NO_EXECUTE, PROTECTED, STORE, USER_MODE = 0x40000000, 0x10000000, 0x08000000, 0x02000000, 0x4000


def code_of(fault: WalkFault, access: Access, who: Privilege) -> int:
    """The interrupt's vector (data or instruction storage) above 32 bits of DSISR (SRR1 at a fetch) with MSR.PR."""
    fetch = access is Access.FETCH
    why = NO_ENTRY if fault is not WalkFault.NO_PERMISSION else NO_EXECUTE if fetch else PROTECTED
    code = (0x400 if fetch else 0x300) << 32 | why | (USER_MODE if who is Privilege.USER else 0)
    return code | STORE if access is Access.STORE else code


def decoded(code: int) -> arch.FaultInfo:
    """What such a code says."""
    return arch.FaultInfo(
        access="fetch" if code >> 32 == 0x400 else "store" if code & STORE else "load",
        kind="not_present" if code & NO_ENTRY else "protection",
        user=bool(code & USER_MODE),
    )


# ------------------------------------------------------------------ a machine that runs programs
@attrs.frozen(kw_only=True)
class HashMmu(Mmu):
    """A machine's. ``huge_roots``, of three levels: pgd -> the mm's tree of huge pages, which no register and no
    table leads to."""

    section: formats.Ppc64Config
    huge_roots: dict[int, int] = attrs.field(factory=dict[int, int])

    def install(self, words: Any) -> None:
        """Write the facts, and the kernel's bolted segments: linear mapping and vmalloc."""
        section, layout = self.section, self.section.layout
        three = section.levels == 3
        words[arch.BASE_SHIFT] = layout.page_shift
        words[arch.HAS_SEGMENTS] = 1
        # A store that is refused goes to the hash fault handler first, whose updatepp sends tlbie: so a page fault
        # that raises rights finds no entry left with the old ones.
        words[arch.FAULT_DROPS] = 1 << WalkFault.NO_PERMISSION
        for refused in itertools.product(WalkFault, Access, Privilege):
            words[arch.CODES + (refused[0] * 3 + refused[1]) * 2 + refused[2]] = code_of(*refused)
        own = words[arch.MMU : arch.MMU + mmu.SLB + mmu.SLB_WORDS]
        own[mmu.THREE_LEVELS] = three
        own[mmu.BIG_SEGMENTS] = section.big_segments
        own[mmu.HASHED] = formats.FIRST_SUBPAGE if layout.page_shift == 16 else formats.HASHPTE
        own[mmu.PFN_SHIFT] = section.pfn_shift
        own[mmu.PAGE_SHIFT] = layout.page_shift
        own[mmu.HUGE_ROOT] = -1
        own[mmu.USER_BITS] = layout.va_bits
        own[mmu.NEXT_SLB] = own[mmu.LAST_SLB] = mmu.FIRST_SLOT
        for n, row in enumerate(range(mmu.LEVELS, mmu.LEVELS + 4 * layout.levels, 4)):
            index = layout.shift_of(n), layout.entries_of(n) - 1
            own[row : row + 4] = *index, layout.entry_bytes[n], n < layout.pte_level
        own[mmu.HUGE_TREE : mmu.HUGE_TREE + 4] = 33, 0x3FF, 4, 1
        own[mmu.HUGE_PTES : mmu.HUGE_PTES + 4] = mmu.HUGE_SHIFT, 0x1FF if three else 0xF, 8, 0
        for slot, ea in ((mmu.SLB, 0xC << 60), (mmu.SLB + 2, 0xD << 60)):
            own[slot] = slb_esid(ea, 28) - (1 << 64)
            own[slot + 1] = vsid_of(ea >> 28, 28) << 12 | (0x480 if three else 0x400)
        words[arch.MISS_ADDRESS] = arch.address_of(mmu.ppc64_miss)

    def find(self, tables: Tables, root: int, va: int, who: Privilege) -> Walk:
        """What Linux's tables say."""
        section, layout = self.section, self.section.layout
        level, shift, place = 0, layout.page_shift, layout.entry_address(0, root, va)
        if va >> layout.va_bits:
            raise Refusal(WalkFault.NOT_PRESENT)
        tree = self.huge_roots.get(root, 0) + (va >> 33) * 4
        if root in self.huge_roots and tables.read(tree, nbytes=4):
            level, shift = layout.pte_level, mmu.HUGE_SHIFT
            place = (tables.read(tree, 0, 4) << 12) + (va >> shift & 0x1FF) * 8
        while level < layout.pte_level:
            entry = tables.read(place, level, layout.entry_bytes[level])
            if not entry:
                raise Refusal(WalkFault.NOT_PRESENT)
            if section.levels == 4 and not entry >> 63:  # a hugepd
                level, shift = layout.pte_level, entry & 63
                place = (entry & mmu.HUGEPD_ADDRESS) + (va >> shift & 0xF) * 8
            else:
                level += 1
                place = layout.entry_address(level, section.table_format.table_of(entry), va)
        pte = tables.read(place, level)
        if not pte & PRESENT:
            raise Refusal(WalkFault.NOT_PRESENT)
        may = pte & (USER | EXEC) == USER | EXEC, pte & USER != 0, pte & (USER | RW) == USER | RW
        found = page(va, shift, section.pte_format.frame_of(pte), may, may[1])
        return attrs.evolve(found, accessed=pte & ACCESSED != 0, dirty=pte & DIRTY != 0)
