"""What a machine file may say of an Itanium under Linux, and the geometry that follows from it.

Source: Linux 2.6.12 to 3.0, asm-ia64/{page,pgtable,processor}.h.
"""

from __future__ import annotations

import attrs
from attrs import field

from polymmu.arch import doc
from polymmu_ia64.entries import INSIDE, REGION_SHIFT

SIZES = {"4K": 12, "8K": 13, "16K": 14, "64K": 16}
USER_REGIONS, HUGE_REGION = 5, 4


@attrs.frozen(kw_only=True)
class Ia64Config:
    """The ``ia64`` section of a machine file."""

    page_size: str = field(default="16K", metadata=doc("base page", choices=tuple(SIZES)))
    hpage_shift: int = field(
        default=28, metadata=doc("log2 of a huge page's bytes (hugepagesz=)", minimum=14, maximum=28)
    )
    va_bits: int = field(
        default=61, metadata=doc("implemented address bits below the region number", minimum=51, maximum=61)
    )
    pa_bits: int = field(
        default=50, metadata=doc("implemented physical address bits", minimum=44, maximum=50)
    )
    rid_bits: int = field(
        default=18,
        metadata=doc("bits of a region identifier (architected: 18 at least)", minimum=18, maximum=24),
    )
    context_bits: int = field(
        default=0,
        metadata=doc("bits of a context number; 0: 3 less than a region identifier", minimum=0, maximum=21),
    )
    frees_tables_early: bool = field(
        default=True,
        metadata=doc("free tables of ptes before the purge, as Linux 2.6.12 to 3.0 did (2.6.11: after it)"),
    )
    vhpt_hit_cycles: int = field(
        default=5, metadata=doc("cycles of the VHPT walker beyond its reference", minimum=0)
    )
    vhpt_miss_cycles: int = field(
        default=60, metadata=doc("cycles of the VHPT miss handler beyond its references", minimum=0)
    )
    trap_cycles: int = field(
        default=40,
        metadata=doc(
            "cycles of the handlers that set A or D, or insert a page of the kernel's windows", minimum=0
        ),
    )
    ptc_ga_cycles: int = field(default=500, metadata=doc("cycles of one broadcast purge", minimum=0))

    @property
    def page_shift(self) -> int:
        """Log2 of the base page."""
        return SIZES[self.page_size]

    @property
    def map_shift(self) -> int:
        """Log2 of what a region's tables reach (Linux: RGN_MAP_SHIFT)."""
        return 4 * self.page_shift - 12

    @property
    def pgdir_size(self) -> int:
        """Bytes that one root entry covers."""
        return 1 << 3 * self.page_shift - 6

    def shift_in(self, region: int) -> int:
        """Log2 of the pages in a region of programs."""
        return self.hpage_shift if region == HUGE_REGION else self.page_shift

    def scaled(self, addr: int) -> int:
        """Where the tables keep a huge page's entry: the region, and the page number as if the page were small."""
        return addr & ~INSIDE | (addr & INSIDE) >> self.hpage_shift - self.page_shift

    def unscaled(self, addr: int) -> int:
        """The inverse of ``scaled``."""
        return addr & ~INSIDE | (addr & INSIDE) << self.hpage_shift - self.page_shift


def region_of(addr: int) -> int:
    """The region an address lies in."""
    return addr >> REGION_SHIFT
