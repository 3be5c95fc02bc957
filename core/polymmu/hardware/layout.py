"""A radix page table's shape as data: how an address is split, top level first.

Level 0 is the root (Linux's pgd), the last level holds the ptes. Both the hardware's walker and the
mm core's range walks read their geometry from here; nobody else knows a shift or a table size.
"""

from __future__ import annotations

import functools

import attrs

__all__ = ["RadixLayout"]

ADDRESS_BITS = 64


@attrs.frozen(slots=False)  # cached_property needs a __dict__
class RadixLayout:
    """How one MMU (or one kernel's view of it) splits a virtual address.

    ``index_bits``: bits of the index at each level, root first. ``entry_bytes``: bytes of one entry at
    each level. ``page_shift``: bits of the page offset. ``leaf_levels``: levels whose entries may map a
    page; the last level always may. ``names``: Linux's word for each level (``pgd``, ``pud``, ``pmd``,
    ``pte``, ...). ``regions``: how many top address bits choose a part of the root table; they are the top
    bits of its index, and the bits between them and the rest of the index are not translated. Sources: Intel
    SDM vol. 3A "Paging", z/Architecture PoP ch. 3, Linux asm/pgtable.h.
    """

    index_bits: tuple[int, ...]
    page_shift: int
    names: tuple[str, ...]
    entry_bytes: tuple[int, ...]
    leaf_levels: frozenset[int]
    regions: int = 0

    def __attrs_post_init__(self) -> None:
        levels = len(self.index_bits)
        if not levels or len(self.names) != levels or len(self.entry_bytes) != levels:
            raise ValueError("index_bits, names and entry_bytes must have one item per level")
        if levels - 1 not in self.leaf_levels or any(not 0 <= n < levels for n in self.leaf_levels):
            raise ValueError("leaf_levels must be levels of this layout and include the last one")
        if not 0 <= self.regions <= self.index_bits[0]:
            raise ValueError("regions must be some of the root's index bits")

    @functools.cached_property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.index_bits)

    @functools.cached_property
    def pte_level(self) -> int:
        """The last level."""
        return len(self.index_bits) - 1

    @functools.cached_property
    def pmd_level(self) -> int:
        """The level whose entries point to pte tables; 0 where only two levels exist."""
        return len(self.index_bits) - 2

    @functools.cached_property
    def page_size(self) -> int:
        """Bytes of the base page."""
        return 1 << self.page_shift

    @functools.cached_property
    def pte_table_mask(self) -> int:
        """Of a pte's address, the bits that say in which table it is; tables are aligned to their size."""
        return -self.table_bytes_of(self.pte_level)

    @functools.cached_property
    def shifts(self) -> tuple[int, ...]:
        """For each level, the number of address bits below its index."""
        return tuple(
            self.page_shift + sum(self.index_bits[level + 1 :]) for level in range(len(self.index_bits))
        )

    @property
    def va_bits(self) -> int:
        """An address has no more bits than these that the walk looks at."""
        return ADDRESS_BITS if self.regions else self.shifts[0] + self.index_bits[0]

    def folded(self, va: int) -> int:
        """``va`` with the bits that choose a region moved down to the rest of the root's index.

        Every level's index of it can be had by shift and mask. Itself where there are no regions.
        """
        if not self.regions:
            return va
        inside = self.shifts[0] + self.index_bits[0] - self.regions
        return va >> (ADDRESS_BITS - self.regions) << inside | va & ((1 << inside) - 1)

    def shift_of(self, level: int) -> int:
        """Bits below the index of ``level``; level 0 is the root."""
        return self.shifts[level]

    def span_of(self, level: int) -> int:
        """Bytes that one entry of ``level`` covers (PMD_SIZE, PGDIR_SIZE, ...)."""
        return 1 << self.shifts[level]

    def entries_of(self, level: int) -> int:
        """Entries in a table of ``level``."""
        return 1 << self.index_bits[level]

    def table_bytes_of(self, level: int) -> int:
        """Bytes of a table of ``level``."""
        return self.entry_bytes[level] << self.index_bits[level]

    def index_of(self, level: int, va: int) -> int:
        """The index of ``va`` in the table of ``level``."""
        if self.regions:
            va = self.folded(va)
        return (va >> self.shifts[level]) & ((1 << self.index_bits[level]) - 1)

    def entry_address(self, level: int, table: int, va: int) -> int:
        """Physical address of the entry for ``va`` in the table of ``level`` at physical address ``table``."""
        return table + self.index_of(level, va) * self.entry_bytes[level]
