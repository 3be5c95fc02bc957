"""An entry format as data: which bits of a table entry mean what.

One ``Field`` says how to ask a question of an entry and how to answer it yes or no, so that "writable"
is one bit set on x86 and one bit clear on s390 without a branch anywhere. A whole format is a row of
numbers that the compiled walker and the table scans read.
"""

from __future__ import annotations

import enum
import functools

import attrs
import numpy as np
import numpy.typing as npt

__all__ = ["Access", "EntryFormat", "Field", "Privilege", "SoftEntry", "WalkFault"]


class Access(enum.IntEnum):
    """What an access wants to do; the values are those of the trace format's ``op`` column."""

    FETCH = 0
    LOAD = 1
    STORE = 2


class Privilege(enum.IntEnum):
    """Who asks."""

    SUPERVISOR = 0
    USER = 1


class WalkFault(enum.IntEnum):
    """Why a translation was refused."""

    NONE = 0
    NOT_PRESENT = 1
    RESERVED_BIT = 2  # a bit that must be zero is set, or the entry's encoding is malformed
    NO_PERMISSION = 3
    NON_CANONICAL = 4  # the address itself is outside what the MMU can translate
    MISALIGNED = 5  # a large page's frame is not aligned to its size
    TABLE_UNREADABLE = 6  # the table lies outside RAM (or outside the image)
    NOT_ACCESSED = 7  # accessed or dirty bit clear on an MMU that leaves setting them to software


@attrs.frozen
class Field:
    """A property of an entry: it holds if ``entry & mask == on``; clearing it stores ``off``.

    ``with_on``: bits that hardware reads and that are set together with the property; ``with_off``: such bits
    that are cleared together with it (sparc64: a dirty page gets the hardware's write bit, a page that loses its
    write right or its dirty bit loses that bit too). They are never asked.
    """

    mask: int
    on: int
    off: int = 0
    with_on: int = 0
    with_off: int = 0

    def test(self, entry: int) -> bool:
        """Whether ``entry`` has the property."""
        return entry & self.mask == self.on

    def set(self, entry: int) -> int:
        """``entry`` with the property."""
        return entry & ~self.mask | self.on | self.with_on

    def clear(self, entry: int) -> int:
        """``entry`` without the property."""
        return entry & ~(self.mask | self.with_off) | self.off


ALWAYS = Field(0, 0, 0)
"""A property every entry has: the format does not restrict it at this level."""


@attrs.frozen(kw_only=True)
class SoftEntry:
    """A pte that maps no page and says where one is: ``entry & mask == on``, and it is not empty.

    ``parts``: the numbers it holds, each as the (lowest bit, how many) pieces of an entry that its bits stand in,
    lowest first. A swap entry has two, type and offset; a file pte one, the page of the file.
    """

    mask: int
    on: int
    parts: tuple[tuple[tuple[int, int], ...], ...]
    empty: int = 0

    def test(self, entry: int) -> bool:
        """Whether ``entry`` is one."""
        return entry & self.mask == self.on and entry != self.empty

    def found_in(self, entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """``test`` of each."""
        found: npt.NDArray[np.bool_] = (entries & np.uint64(self.mask) == np.uint64(self.on)) & (
            entries != np.uint64(self.empty)
        )
        return found

    def make(self, *numbers: int) -> int:
        """The entry that holds ``numbers``, none above its part of ``limits``."""
        entry = self.on
        for number, pieces in zip(numbers, self.parts, strict=True):
            at = 0
            for low, width in pieces:
                entry |= (number >> at & (1 << width) - 1) << low
                at += width
        return entry

    def split(self, entry: int) -> tuple[int, ...]:
        """The numbers that ``entry`` holds."""
        numbers = []
        for pieces in self.parts:
            number = at = 0
            for low, width in pieces:
                number |= (entry >> low & (1 << width) - 1) << at
                at += width
            numbers.append(number)
        return tuple(numbers)

    @property
    def limits(self) -> tuple[int, ...]:
        """The highest number that fits each part."""
        return tuple((1 << sum(width for _, width in pieces)) - 1 for pieces in self.parts)

    @property
    def max_offset(self) -> int:
        """The highest swap offset, or page of a file, that fits."""
        return self.limits[-1]


@attrs.frozen(kw_only=True)
class EntryFormat:
    """The entries of one level.

    For the hardware: ``present`` (walk goes on), ``leaf_mask`` (any bit set: this entry maps a page; ignored
    at the last level, where every entry does), ``table_mask`` / ``frame_mask`` (bits of the entry that are
    the next table's / the page's physical address), ``reserved_table`` / ``reserved_leaf`` (bits that must be
    zero in an entry of that kind), ``malformed`` ((mask, value) pairs that are refused as reserved),
    ``read``, ``write``, ``user``, ``execute`` (rights this level grants; ``ALWAYS`` where it does not restrict),
    ``accessed`` / ``dirty`` (None: no such bit at this level), ``global_`` (leaf may be used by every ASID),
    ``leaves_alone``: rights and the accessed bit are a leaf's alone; an entry that points to a table grants
    everything and is never marked (RISC-V),
    ``table_bits``: bits the mm core stores beside a table's address to make a table entry.
    ``high_frame_mask`` << ``high_frame_shift`` are further address bits of a leaf (x86 PSE-36).
    ``address_shift``: the address bits of table and leaf entries stand this much too low (RISC-V: 2); negative
    where they stand too high (only where no radix hardware reads the entry: ppc64).

    For the mm core: ``empty`` (value of a cleared entry), ``prot_none`` (the core counts the entry as mapping a
    page although hardware refuses it; None: no such entries), ``special`` (mapped without a struct page; None:
    no such bit), ``swap`` (the page is in a swap area: type, offset), ``file`` (the page is this one of the mapped
    file, wherever the vma would have it; None of the two: this level has no such entries).
    """

    present: Field
    frame_mask: int
    table_mask: int = 0
    leaf_mask: int = 0
    reserved_table: int = 0
    reserved_leaf: int = 0
    malformed: tuple[tuple[int, int], ...] = ()
    read: Field = ALWAYS
    write: Field = ALWAYS
    user: Field = ALWAYS
    execute: Field = ALWAYS
    accessed: Field | None = None
    dirty: Field | None = None
    global_: Field | None = None
    high_frame_mask: int = 0
    high_frame_shift: int = 0
    address_shift: int = 0
    leaves_alone: bool = False
    empty: int = 0
    table_bits: int = 0
    prot_none: Field | None = None
    special: Field | None = None
    swap: SoftEntry | None = None
    file: SoftEntry | None = None

    def is_none(self, entry: int) -> bool:
        """Whether the entry is as cleared (Linux: pte_none, ignoring A/D bits a racing walker may leave)."""
        return entry == self.empty

    def frame_of(self, entry: int) -> int:
        """Physical address of the page a leaf entry maps."""
        high = (entry & self.high_frame_mask) << self.high_frame_shift
        return shifted(entry & self.frame_mask, self.address_shift) | high

    def of_frame(self, frame: int) -> int:
        """The bits of a leaf entry that map the page at physical address ``frame``."""
        return shifted(frame, -self.address_shift)

    def table_of(self, entry: int) -> int:
        """Physical address of the table that ``entry`` points to."""
        return shifted(entry & self.table_mask, self.address_shift)

    def of_table(self, table: int) -> int:
        """The entry that points to the table at physical address ``table``."""
        return shifted(table, -self.address_shift) | self.table_bits

    def is_mapped(self, entry: int) -> bool:
        """Whether ``entry`` maps a page as far as the core is concerned (Linux: pte_present)."""
        return self.present.test(entry) or (self.prot_none is not None and self.prot_none.test(entry))

    def mapped_in(self, entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """``is_mapped`` of each."""
        mask, on, other_mask, other_on = self._mapped
        mapped: npt.NDArray[np.bool_] = entries & mask == on
        if self.prot_none is not None:
            mapped |= entries & other_mask == other_on
        return mapped

    @functools.cached_property
    def _mapped(self) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
        """Masks and values of what maps a page, as what entries are: to make them so takes longer than to compare."""
        one, other = self.present, self.prot_none or self.present
        return np.uint64(one.mask), np.uint64(one.on), np.uint64(other.mask), np.uint64(other.on)


def shifted(value: int, bits: int) -> int:
    """``value`` moved left by ``bits``, or right where they are negative."""
    return value << bits if bits >= 0 else value >> -bits
