"""The machine file's section, and the MMU it makes: tables, trap numbers, facts for ``miss``, the walk in Python.

The tables are Linux's own; hardware knows none. pgd and pmd have 2048 entries, pages of ptes 1024, indexed by the plain
bits of the address (44:34, 33:23, 22:13), so the upper half of the address space uses the pgd's slots 1536 to 2047.
An upper entry is the next table's physical address, shifted right by 11 where it has 32 bits; 0 is none.

Sources: Linux 2.6.12 to 3.0 ``asm/pgtable_64.h``; UltraSPARC User's Manual ch. 6 (trap types).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from polymmu import arch
from polymmu.arch import Access, EntryFormat, Field, Privilege, RadixLayout, Walk, WalkFault, doc
from polymmu_sparc64 import miss
from polymmu_sparc64.tte import PAGE_SHIFT, SUN4U, SUN4U_VPTE, SUN4V, Tte

HUGE_PAGES = (64 << 10, 512 << 10, 4 << 20)
MISSES = (0x64, 0x68, 0x68)
REFUSALS = {WalkFault.NON_CANONICAL: (0x08, 0x30, 0x30), WalkFault.NO_PERMISSION: (0x64, 0x30, 0x6C)}
"""Trap types of a fetch, a load and a store, where they are not those of a miss. A store that a privileged page
refuses is told as one to a page without W; Linux makes no such ptes."""
CODES = {
    (fault, access, who): REFUSALS.get(fault, MISSES)[access] | access << 8 | who << 10 | fault << 12
    for fault in tuple(WalkFault)[1:]
    for access in Access
    for who in Privilege
}
"""What the fault handler is told: trap type 7:0, access 9:8, user 10, reason from 12 on."""
KINDS: dict[int, str] = {WalkFault.NO_PERMISSION: "protection", WalkFault.NON_CANONICAL: "non_canonical"}


def check_generation(section: Sparc64Config, attribute: object, generation: str) -> None:
    """The TSB came with sun4v, and both before the wider entries."""
    if generation == "vpte" and (section.cpu, section.upper_entries) != ("sun4u", 32):
        raise ValueError("vpte ended before sun4v and 64-bit upper entries; take tsb, or cpu sun4u with 32")


def option(default: Any, text: str, validator: Any = None, **facts: Any) -> Any:
    """A key of the section."""
    return attrs.field(default=default, validator=validator, metadata=doc(text, **facts))


@attrs.frozen(kw_only=True)
class Sparc64Config:
    """The ``sparc64`` section of a machine file."""

    cpu: str = option("sun4u", "sun4u (UltraSPARC I to IV) or sun4v (T1, T2)", choices=("sun4u", "sun4v"))
    upper_entries: int = option(
        32, "bits of a pgd or pmd entry: 32, or 64 as after 3.0 (tables then wait for RCU)", choices=(32, 64)
    )
    generation: str = option(
        "tsb",
        "miss handlers of Linux 2.6.17 to 3.0 (tsb) or to 2.6.16 (vpte)",
        check_generation,
        choices=("tsb", "vpte"),
    )
    huge_page: int = option(4 << 20, "the size of huge pages", unit="size", choices=HUGE_PAGES)
    context_bits: int = option(0, "bits of a context number; 0: 13 (tsb) or 10 (vpte)", minimum=0, maximum=13)
    frees_before_flush: bool = option(False, "free pages before their translations, as Linux to 2.6.29")
    trap_cycles: int = option(40, "cycles of a trap and its handler, memory aside", minimum=0, maximum=10**9)

    @property
    def has_tsb(self) -> bool:
        """Which generation."""
        return self.generation == "tsb"

    @property
    def tte(self) -> Tte:
        """What an entry looks like."""
        if self.cpu == "sun4v":
            return SUN4V
        return SUN4U if self.has_tsb else SUN4U_VPTE

    @property
    def layout(self) -> RadixLayout:
        """How an address splits."""
        upper = self.upper_entries // 8
        return RadixLayout(
            index_bits=(11, 11, 10),
            page_shift=PAGE_SHIFT,
            names=("pgd", "pmd", "pte"),
            entry_bytes=(upper, upper, 8),
            leaf_levels=frozenset({2}),
        )

    def format_of(self, level: int) -> EntryFormat:
        """The entries of ``level``; of an upper one whatever is not 0 is present."""
        if level == 2:
            return self.tte.entry_format
        return EntryFormat(
            present=Field(0, 0),
            frame_mask=0,
            table_mask=(1 << self.upper_entries) - 1,
            address_shift=11 if self.upper_entries == 32 else 0,
        )


@attrs.frozen
class Sparc64Translation:
    """A software-filled TLB and the tables its handler reads."""

    section: Sparc64Config

    page_shift = PAGE_SHIFT
    looks_ahead = False
    """The TSB remembers addresses."""

    @property
    def page_shifts(self) -> tuple[int, ...]:
        """What the TTE has codes for."""
        return self.section.tte.page_shifts

    @property
    def event_costs(self) -> Mapping[str, int]:
        """Traps, and what the handlers of each generation find."""
        cycles = self.section.trap_cycles
        if self.section.has_tsb:
            return {"traps": cycles, "tsb_hits": 0, "tsb_misses": 0}
        return {"traps": cycles, "vpte_misses": cycles}

    @property
    def path_steps(self) -> tuple[tuple[str, int], ...]:
        """The tables."""
        layout = self.section.layout
        return tuple(zip(layout.names, layout.entry_bytes, strict=True))

    def table_shifts(self) -> dict[int, tuple[int, int]]:
        """No paging-structure caches."""
        return {}

    def install(self, words: npt.NDArray[np.int64]) -> None:
        """See ``Translation.install``."""
        for (fault, access, privilege), code in CODES.items():
            words[arch.CODES + (fault * 3 + access) * 2 + privilege] = code
        words[arch.BASE_SHIFT] = PAGE_SHIFT
        section, tte = self.section, self.section.tte
        words[arch.MMU : arch.MMU + miss.M_WORDS] = [
            *(tte.address, tte.size_shift, tte.codes - 1, tte.execute, tte.privileged, tte.writable, tte.global_),
            *(section.upper_entries // 8, section.format_of(0).address_shift, section.huge_page.bit_length() - 1),
            *(-1, -1, section.has_tsb),
        ]  # fmt: skip
        words[arch.MISS_ADDRESS] = arch.address_of(miss.tlb_miss)

    def latch_root(self, ram: arch.EntryReader, root: int) -> tuple[int, ...]:
        """The root is a scratch register of the handler's; nothing is read."""
        return ()

    def walk(
        self,
        ram: arch.EntryReader,
        root: int,
        va: int,
        access: Access | None = None,
        privilege: Privilege = Privilege.SUPERVISOR,
        asid: int = 0,
    ) -> Walk:
        """See ``Translation.walk``: the tables, whatever TLB and TSB hold."""
        layout, tte = self.section.layout, self.section.tte
        found = Walk(va=va)

        def refused(fault: WalkFault) -> Walk:
            code = CODES[fault, Access.LOAD if access is None else access, privilege]
            return attrs.evolve(found, pa=None, fault=fault, code=code)

        if va >> miss.VA_TOP_BIT not in (0, (1 << 64 - miss.VA_TOP_BIT) - 1):
            return refused(WalkFault.NON_CANONICAL)
        table, entry, form = root, 0, tte.entry_format
        for level, nbytes in enumerate(layout.entry_bytes):
            place = layout.entry_address(level, table, va)
            if not 0 <= place <= ram.size - nbytes:
                return refused(WalkFault.TABLE_UNREADABLE)
            entry, form = ram.read_entry(place, nbytes, "big"), self.section.format_of(level)
            found = attrs.evolve(found, path=(*found.path, (level, place, entry)))
            if not (entry and form.present.test(entry)):
                return refused(WalkFault.NOT_PRESENT)
            table = form.table_of(entry)
        size = 1 << tte.page_shift_of(entry)
        found = attrs.evolve(
            found,
            pa=(entry & tte.address & -size) | va & (size - 1),
            page_size=size,
            readable=True,
            writable=bool(entry & tte.writable),
            executable=form.execute.test(entry),
            user=form.user.test(entry),
            accessed=bool(entry & tte.accessed),
            dirty=bool(entry & tte.modified),
            is_global=bool(entry & tte.global_) if tte.global_ else None,
        )
        may = {Access.FETCH: found.executable, Access.LOAD: True, Access.STORE: found.writable}
        if access is not None and not (may[access] and (found.user or privilege is Privilege.SUPERVISOR)):
            return refused(WalkFault.NO_PERMISSION)
        return found
