"""The MMU as the core and ``translate`` see it: facts for the miss routine, trap numbers, and the walk in Python.

The tables are Linux's own; hardware knows none. pgd and pmd have 2048 entries, pages of ptes 1024, indexed by the plain
bits of the address (44:34, 33:23, 22:13), so the upper half of the address space uses the pgd's slots 1536 to 2047.
An upper entry is the next table's physical address, shifted right by 11 where it has 32 bits.

Sources: Linux 2.6.12 to 3.0 ``asm/pgtable_64.h``; UltraSPARC User's Manual ch. 6 (trap types).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import attrs
import numpy as np
import numpy.typing as npt

from polymmu import arch
from polymmu.arch import Access, Privilege, Walk, WalkFault
from polymmu_sparc64 import miss
from polymmu_sparc64.tte import PAGE_SHIFT, Tte, V, bits

INSTRUCTION_MISS, DATA_MISS, DATA_PROTECTION = 0x64, 0x68, 0x6C
INSTRUCTION_EXCEPTION, DATA_EXCEPTION = 0x08, 0x30
KINDS = {WalkFault.NO_PERMISSION: "protection", WalkFault.NON_CANONICAL: "non_canonical"}


def fault_code(fault: WalkFault, access: Access, privilege: Privilege) -> int:
    """What the fault handler is told: trap type 7:0, access 9:8, user 10, reason from 12 on.

    A store that a privileged page refuses is told as one to a page without W; Linux makes no such ptes.
    """
    fetch = access is Access.FETCH
    if fault is WalkFault.NON_CANONICAL:
        trap = INSTRUCTION_EXCEPTION if fetch else DATA_EXCEPTION
    elif fault is WalkFault.NO_PERMISSION and not fetch:
        trap = DATA_PROTECTION if access is Access.STORE else DATA_EXCEPTION
    else:
        trap = INSTRUCTION_MISS if fetch else DATA_MISS
    return trap | access << 8 | privilege << 10 | fault << 12


REFUSALS = tuple(itertools.product(tuple(WalkFault)[1:], Access, Privilege))
FAULTS = {
    fault_code(fault, access, who): arch.FaultInfo(
        access=access.name.lower(), kind=KINDS.get(fault, "not_present"), user=who is Privilege.USER
    )
    for fault, access, who in REFUSALS
}


def layout_of(upper_bytes: int) -> arch.RadixLayout:
    """The tables, with upper entries of 4 or 8 bytes."""
    return arch.RadixLayout(
        index_bits=(11, 11, 10),
        page_shift=PAGE_SHIFT,
        names=("pgd", "pmd", "pte"),
        entry_bytes=(upper_bytes, upper_bytes, 8),
        leaf_levels=frozenset({2}),
    )


@attrs.frozen(kw_only=True)
class Sparc64Translation:
    """A software-filled TLB and the tables its handler reads.

    ``has_tsb``: which generation of handlers; only the newer one looks at EXEC. ``huge_shift``: log2 of the size
    that the second TSB is for. ``event_costs`` in cycles.
    """

    tte: Tte
    upper_bytes: int
    has_tsb: bool
    huge_shift: int
    event_costs: Mapping[str, int]

    page_shift = PAGE_SHIFT
    looks_ahead = False
    """The TSB remembers addresses."""

    @property
    def page_shifts(self) -> tuple[int, ...]:
        """What the TTE has codes for."""
        return self.tte.page_shifts

    @property
    def path_steps(self) -> tuple[tuple[str, int], ...]:
        """The tables."""
        return (("pgd", self.upper_bytes), ("pmd", self.upper_bytes), ("pte", 8))

    @property
    def upper_shift(self) -> int:
        """How far an upper entry's address is shifted right."""
        return 11 if self.upper_bytes == 4 else 0

    def table_shifts(self) -> dict[int, tuple[int, int]]:
        """No paging-structure caches."""
        return {}

    def install(self, words: npt.NDArray[np.int64]) -> None:
        """See ``Translation.install``."""
        for fault, access, privilege in REFUSALS:
            place = arch.CODES + (fault * 3 + access) * 2 + privilege
            words[place] = fault_code(fault, access, privilege)
        words[arch.BASE_SHIFT] = PAGE_SHIFT
        tte, execute = self.tte, self.tte.execute if self.has_tsb else 0
        words[arch.MMU : arch.MMU + 7] = [
            *(tte.address, tte.size_shift, tte.codes - 1),
            *(execute, tte.privileged, tte.writable, tte.global_),
        ]
        words[arch.MMU + 7 : arch.MMU + 12] = self.upper_bytes, self.upper_shift, self.huge_shift, -1, -1
        words[arch.MISS_ADDRESS] = arch.address_of(miss.tsb_miss if self.has_tsb else miss.vpte_miss)

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
        layout, tte = layout_of(self.upper_bytes), self.tte
        found = Walk(va=va)

        def refused(fault: WalkFault) -> Walk:
            code = fault_code(fault, Access.LOAD if access is None else access, privilege)
            return attrs.evolve(found, pa=None, fault=fault, code=code)

        if va >> miss.VA_TOP_BIT not in (0, bits(20, 0)):
            return refused(WalkFault.NON_CANONICAL)
        table, entry = root, 0
        for level, (_, nbytes) in enumerate(self.path_steps):
            place = layout.entry_address(level, table, va)
            if not 0 <= place <= ram.size - nbytes:
                return refused(WalkFault.TABLE_UNREADABLE)
            entry = ram.read_entry(place, nbytes, "big")
            found = attrs.evolve(found, path=(*found.path, (level, place, entry)))
            if not (entry & V if level == layout.pte_level else entry):
                return refused(WalkFault.NOT_PRESENT)
            table = entry << self.upper_shift
        size = 1 << tte.page_shift_of(entry)
        form = tte.entry_format(self.has_tsb)
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
