"""The hash MMU as a running machine has it: what the miss routine must know, and a walk that shows Linux's tables.

On a running machine the page tables are what is true, and the hash table a cache of them; so a walk for a human reads
the tables. The hash table itself is searched where an image of one is given (``images``).
"""

from __future__ import annotations

from typing import Any

import attrs

from polymmu.arch import (
    BASE_SHIFT,
    CODES,
    FAULT_DROPS,
    HAS_SEGMENTS,
    MISS_ADDRESS,
    MMU,
    Access,
    EntryReader,
    FaultInfo,
    Privilege,
    Walk,
    WalkFault,
    address_of,
    hookimpl,
)
from polymmu_ppc64 import mmu
from polymmu_ppc64.formats import (
    ACCESSED,
    DIRTY,
    EXEC,
    PRESENT,
    RW,
    USER,
    Ppc64Config,
    hashed_bit,
    layout_of,
    pfn_shift,
    pte_format,
    table_format,
)
from polymmu_ppc64.hashing import slb_esid, vsid_of
from polymmu_ppc64.walks import Mmu, Path, judged

DATA_STORAGE, INSTRUCTION_STORAGE = 0x300 << 32, 0x400 << 32
NO_HPTE, PROTECTED, NO_EXECUTE, STORE = 0x40000000, 0x08000000, 0x10000000, 0x02000000
PROBLEM_STATE = 0x4000
KERNEL_SEGMENTS = (0xC << 60, 0xD << 60)
HUGEPD_SHIFT, HUGE_TREE_SHIFT = 28, 33


def code_of(fault: WalkFault, access: Access, privilege: Privilege) -> int:
    """The interrupt's vector above 32 bits of DSISR (SRR1 at a fetch) with MSR.PR."""
    code = INSTRUCTION_STORAGE if access is Access.FETCH else DATA_STORAGE
    if fault is not WalkFault.NO_PERMISSION:
        code |= NO_HPTE
    else:
        code |= NO_EXECUTE if access is Access.FETCH else PROTECTED
    if access is Access.STORE:
        code |= STORE
    return code | (PROBLEM_STATE if privilege is Privilege.USER else 0)


FAULTS = {
    code_of(fault, access, privilege): FaultInfo(
        access=access.name.lower(),
        kind="protection" if fault is WalkFault.NO_PERMISSION else "not_present",
        user=privilege is Privilege.USER,
    )
    for fault in (WalkFault.NOT_PRESENT, WalkFault.NO_PERMISSION)
    for access in Access
    for privilege in Privilege
}


@hookimpl
def decode_fault(code: int) -> FaultInfo:
    return FAULTS[code]


@attrs.frozen(kw_only=True)
class HashMmu(Mmu):
    """The MMU of a machine that runs programs."""

    section: Ppc64Config
    huge_roots: dict[int, int] = attrs.field(factory=dict[int, int])
    """Of three levels: pgd -> the mm's tree of huge pages, which no register and no table leads to."""

    def install(self, words: Any) -> None:
        """Write the facts, and the kernel's two bolted segments."""
        section, layout = self.section, layout_of(self.section)
        three = section.levels == 3
        words[BASE_SHIFT] = layout.page_shift
        words[HAS_SEGMENTS] = 1
        # A store that is refused goes to the hash fault handler first, whose updatepp sends tlbie: so a page fault
        # that raises rights finds no entry left with the old ones.
        words[FAULT_DROPS] = 1 << WalkFault.NO_PERMISSION
        for fault in WalkFault:
            for access in Access:
                for privilege in Privilege:
                    words[CODES + (fault * 3 + access) * 2 + privilege] = code_of(fault, access, privilege)
        own = words[MMU : MMU + mmu.SLB + mmu.SLB_WORDS]
        own[mmu.CONTEXT_SHIFT] = 15 if three else 16
        own[mmu.BIG_SEGMENTS] = section.big_segments
        own[mmu.SEGMENT_KEYS] = 0xC00 if three else 0xC80  # Ks, Kp, and as of 2.6.14 the user's class
        own[mmu.HASHED] = hashed_bit(section)
        own[mmu.PFN_SHIFT] = pfn_shift(section)
        own[mmu.PAGE_SHIFT] = layout.page_shift
        own[mmu.HIGH_SHIFT] = 39 if three else 40
        own[mmu.HUGE_ROOT] = -1
        own[mmu.USER_BITS] = layout.va_bits
        own[mmu.NEXT_SLB] = mmu.FIRST_SLOT
        own[mmu.LAST_SLB] = mmu.FIRST_SLOT
        for level in range(layout.levels):
            row = mmu.LEVELS + 4 * level
            own[row : row + 4] = (
                layout.shift_of(level),
                layout.entries_of(level) - 1,
                layout.entry_bytes[level],
                level < layout.pte_level,
            )
        if three:
            own[mmu.HUGE_LEVELS : mmu.HUGE_LEVELS + 8] = (33, 0x3FF, 4, 1, 24, 0x1FF, 8, 0)
        for n, ea in enumerate(KERNEL_SEGMENTS):
            slot = mmu.SLB + 2 * n
            keys = 0x480 if three else 0x400
            own[slot] = slb_esid(ea, 28) - (1 << 64)
            own[slot + 1] = vsid_of(ea >> 28, 28) << 12 | keys
        words[MISS_ADDRESS] = address_of(mmu.ppc64_miss)

    def walk(
        self,
        ram: EntryReader,
        root: int,
        va: int,
        access: Access | None = None,
        privilege: Privilege = Privilege.SUPERVISOR,
        asid: int = 0,
    ) -> Walk:
        """What Linux's tables say."""
        layout, size = layout_of(self.section), self.page_shift
        level, place, path = 0, layout.entry_address(0, root, va), Path()
        tree = self.huge_roots.get(root, -1) + (va >> HUGE_TREE_SHIFT) * 4
        table = ram.read_entry(tree, 4, "big") if root in self.huge_roots and not va >> layout.va_bits else 0
        if table:
            path.append((layout.levels + 1, tree, table))
            level, size = layout.levels, mmu.HUGE_SHIFT
            place = (table << 12) + (va >> size & 0x1FF) * 8
        while True:
            nbytes = layout.entry_bytes[min(level, layout.pte_level)]
            if va >> layout.va_bits or not 0 <= place <= ram.size - nbytes:
                return Walk(va=va, fault=WalkFault.NOT_PRESENT, path=tuple(path))
            entry = ram.read_entry(place, nbytes, "big")
            path.append((level, place, entry))
            if not entry:
                return Walk(va=va, fault=WalkFault.NOT_PRESENT, path=tuple(path))
            if level >= layout.pte_level:
                break
            if nbytes == 8 and entry >> 63 == 0:  # a hugepd
                level, size = layout.levels, entry & 63
                place = (entry & mmu.ADDRESS & -64) + (va % (1 << HUGEPD_SHIFT) >> size) * 8
            else:
                level += 1
                place = layout.entry_address(level, table_format(self.section, level - 1).table_of(entry), va)
        if not entry & PRESENT:
            return Walk(va=va, fault=WalkFault.NOT_PRESENT, path=tuple(path))
        user = bool(entry & USER)
        rights = (user, user and bool(entry & RW), user and bool(entry & EXEC))
        noted = {"accessed": bool(entry & ACCESSED), "dirty": bool(entry & DIRTY)}
        frame = pte_format(self.section).frame_of(entry)
        return judged(va, frame, size, rights, user, access, path, **noted)


def hash_mmu(section: Ppc64Config) -> HashMmu:
    """The MMU of a machine that this section describes."""
    layout = layout_of(section)
    return HashMmu(
        section=section,
        page_shift=layout.page_shift,
        page_shifts=(layout.page_shift, mmu.HUGE_SHIFT),
        path_steps=(*zip(layout.names, layout.entry_bytes, strict=True), ("huge", 8), ("hugepgd", 4)),
        event_costs={
            "slb_misses": section.slb_miss,
            "hash_faults": section.hash_fault,
            "hash_evictions": section.hash_eviction,
        },
    )
