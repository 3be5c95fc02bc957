"""Dynamic address translation as data and in plain Python; ``dat_kernels`` does the same on behalf of a CPU.

z/Architecture walks from whatever table the ASCE designates (region-first, -second, -third or segment table) down
to ptes; ESA/390 from a segment table named by an STD. What the two emulators known to their guests (KVM's guest
access, QEMU) leave to each other is an option: ``strict``.

PoP ch. 3. Not modelled: access-register mode, prefixing (a table's addresses are taken as absolute), storage-key
controlled protection, the access-control part of large pages.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np
import numpy.typing as npt

from polymmu.arch import (
    BASE_SHIFT,
    CODES,
    FAULT_DROPS,
    LEVELS,
    MISS_ADDRESS,
    MMU,
    R_SHIFT,
    ROW,
    ROWS,
    Access,
    EntryReader,
    Privilege,
    Walk,
    WalkFault,
    address_of,
)
from polymmu_s390 import dat_kernels as at

Path = list[tuple[int, int, int]]
"""(level, physical address, value) of each entry read."""

TRANSLATION_CODES = (0x39, 0x3A, 0x3B, at.SEGMENT_TRANSLATION, at.PAGE_TRANSLATION)
"""By z/Architecture level: region-first, -second, -third, segment and page translation."""


class Refusal(Exception):
    """DAT recognised an exception: what kind, and its program-interruption code."""

    def __init__(self, fault: WalkFault, code: int) -> None:
        super().__init__(fault, code)
        self.fault = fault
        self.code = code


@attrs.frozen(kw_only=True)
class Dat:
    """One CPU's DAT. ``edat``: 0, 1 or 2 (large segments, large regions), as CR0 and the facilities allow;
    ``iep``: instruction-execution protection is on. ``strict``: bits 52 and 55 of a pte must be right even where
    the pte is invalid, and bit 55 is refused where neither IEP nor EDAT gives it a meaning."""

    esa: bool
    edat: int = 0
    iep: bool = False
    strict: bool = False

    page_shift = at.PAGE
    looks_ahead = True
    event_costs: Mapping[str, int] = {}

    @property
    def page_shifts(self) -> tuple[int, ...]:
        """Log2 of every page size, ascending."""
        return (at.PAGE, at.MIB, at.GIB_2)[: 1 + self.edat]

    @property
    def path_steps(self) -> tuple[tuple[str, int], ...]:
        """The manual's tables, top first; a walk begins at the one that is designated."""
        names = ("region1", "region2", "region3", "segment", "page")
        return tuple((name, 4 if self.esa else 8) for name in names)

    def table_shifts(self) -> dict[int, tuple[int, int]]:
        """CRST entries: cached region and segment entries."""
        levels = range(at.SEGMENT_LEVEL if self.esa else 0, at.PAGE_LEVEL)
        return {at.PAGE_LEVEL - level: (level, 53 - 11 * level) for level in levels}

    def install(self, words: npt.NDArray[np.int64]) -> None:
        """See ``Translation.install``. No fault drops anything: invalid entries are not cached, and whoever
        changes a valid one purges it."""
        words[BASE_SHIFT] = at.PAGE
        words[LEVELS] = len(self.path_steps)
        words[ROWS + R_SHIFT + at.PAGE_LEVEL * ROW] = at.PAGE
        for level, shift in self.table_shifts().values():
            words[ROWS + R_SHIFT + level * ROW] = shift
        for access in Access:
            for privilege in Privilege:
                place = CODES + (at.NO_PERMISSION * 3 + access) * 2 + privilege
                words[place] = fault_code(at.PROTECTION, access, privilege)
        words[FAULT_DROPS] = 0
        words[MMU : MMU + at.NR_KEYS] = self.esa, self.edat, self.iep, self.strict
        words[MISS_ADDRESS] = address_of(at.dat_miss)

    def latch_root(self, ram: EntryReader, root: int) -> tuple[int, ...]:
        """Any designation can be loaded; it is looked at when it is used."""
        return ()

    def walk(
        self,
        ram: EntryReader,
        root: int,
        va: int,
        access: Access | None = None,
        privilege: Privilege = Privilege.SUPERVISOR,
        asid: int = 0,
    ) -> Walk:
        """See ``Translation.walk``. ``root``: the ASCE or STD."""
        path: Path = []
        try:
            frame, shift, writable, executable = self._page(ram, root, va, path)
        except Refusal as refusal:
            code = fault_code(refusal.code, access, privilege)
            return Walk(va=va, fault=refusal.fault, code=code, path=tuple(path))
        refused = (access is Access.STORE and not writable) or (access is Access.FETCH and not executable)
        return Walk(
            va=va,
            pa=None if refused else frame + va % (1 << shift),
            page_size=1 << shift,
            fault=WalkFault.NO_PERMISSION if refused else WalkFault.NONE,
            code=fault_code(at.PROTECTION, access, privilege) if refused else 0,
            path=tuple(path),
            readable=True,
            writable=writable,
            executable=executable,
            user=True,
        )

    def _page(self, ram: EntryReader, root: int, va: int, path: Path) -> tuple[int, int, bool, bool]:
        """The steps of "Translation Process": address and log2 of the bytes of a page, whether it may be written and
        executed."""
        esa, edat = self.esa, self.edat
        if root < 0 or (not esa and root & at.REAL_SPACE and va >= ram.size):
            raise Refusal(WalkFault.TABLE_UNREADABLE, at.ADDRESSING)
        if not esa and root & at.REAL_SPACE:
            return va & at.ORIGIN, at.PAGE, True, True
        if esa and va >> 31:
            raise Refusal(WalkFault.NON_CANONICAL, at.SEGMENT_TRANSLATION)
        if esa:
            level, table = at.SEGMENT_LEVEL, root & at.STD_ORIGIN
            check_length(va >> 24, 0, root & at.STD_LENGTH, level)
        else:
            level, table = at.SEGMENT_LEVEL - (root >> 2 & 3), root & at.ORIGIN
            if va >> (64 - 11 * level):
                raise Refusal(WalkFault.NON_CANONICAL, at.ASCE_TYPE)
            check_length(va >> (62 - 11 * level), 0, root & 3, level)
        writable = True
        while level < at.PAGE_LEVEL:
            entry = self._fetch(ram, table, va >> (53 - 11 * level) & 0x7FF, level, path)
            if entry & at.ENTRY_INVALID:
                raise Refusal(WalkFault.NOT_PRESENT, TRANSLATION_CODES[level])
            is_segment, is_large_region = (
                level == at.SEGMENT_LEVEL,
                level == at.SEGMENT_LEVEL - 1 and edat >= 2,
            )
            is_wrong = entry >> 31 if esa else entry >> 2 & 3 != at.SEGMENT_LEVEL - level
            is_foreign = entry & at.COMMON and root & at.DESIGNATION_PRIVATE
            if is_wrong or (is_foreign and (is_segment or is_large_region)):
                raise Refusal(WalkFault.RESERVED_BIT, at.SPECIFICATION)
            if entry & at.PROTECT and not esa and (is_segment or edat):
                writable = False
            if entry & at.LARGE and ((is_segment and edat) or is_large_region):
                shift = at.MIB if is_segment else at.GIB_2
                return entry >> shift << shift, shift, writable, not (self.iep and entry & at.BIT_55)
            level += 1
            if esa:
                table = entry & at.STE_ORIGIN
                check_length(va >> 16 & 0xF, 0, entry & at.PTL, level)
            elif is_segment:
                table = entry & -0x800
            else:
                table = entry & at.ORIGIN
                check_length(va >> (62 - 11 * level) & 3, entry >> 6 & 3, entry & 3, level)
        pte = self._fetch(ram, table, va >> at.PAGE & 0xFF, level, path)
        zero = at.BIT_52 | (1 << 31 | at.BIT_55 if esa else 0)
        if self.strict and not self.iep and not edat:
            zero |= at.BIT_55
        if pte & at.PTE_INVALID and not (self.strict and pte & zero):
            raise Refusal(WalkFault.NOT_PRESENT, at.PAGE_TRANSLATION)
        if pte & zero:
            raise Refusal(WalkFault.RESERVED_BIT, at.SPECIFICATION)
        writable = writable and not pte & at.PROTECT
        return pte & at.ORIGIN, at.PAGE, writable, not (self.iep and pte & at.BIT_55)

    def _fetch(self, ram: EntryReader, table: int, index: int, level: int, path: Path) -> int:
        """Read a table entry and note it."""
        nbytes = 4 if self.esa else 8
        place = table + index * nbytes
        if place + nbytes > ram.size:
            raise Refusal(WalkFault.TABLE_UNREADABLE, at.ADDRESSING)
        entry = ram.read_entry(place, nbytes, "big")
        path.append((level, place, entry))
        return entry


def check_length(block: int, first: int, last: int, level: int) -> None:
    """Whether the table of ``level`` has the block of entries that an address needs."""
    if not first <= block <= last:
        raise Refusal(WalkFault.NOT_PRESENT, TRANSLATION_CODES[level])


def fault_code(code: int, access: Access | None, privilege: Privilege) -> int:
    """An interruption code, and beside it what was asked and by whom."""
    return code | (1 if access is None else access) << at.ACCESS_SHIFT | privilege << at.USER_SHIFT
