"""The TTE: what a TLB holds, what the TSB holds, and at the same time Linux's pte. Two formats.

     sun4u  63 62:61 60  59 58:50  42:13  12   11  10  9   8    7     6  5  4  3 2 1 0
            V  size  NFO IE soft2  PA     EXEC MOD ACC RD  WR   PRES  L  CP CV E P W G
     sun4v  63 62  61  60  59 58 57:56  55:13  12 11 10 9  8 7    6 5    4    3 2:0
            V  NFO MOD ACC RD WR        PA     IE E  CP CV P EXEC W FILE PRES   size

V, P (privileged), W (writable), G (every context) and the size are the hardware's; MOD, ACC, RD, WR, PRES belong to
Linux, and EXEC too on sun4u, whose TLBs have no execute bit: the miss handler looks at it. Accessed and dirty are
software's alone. A page without ACC has no V, so the next touch misses and no table gives an answer; a page without
MOD has no W, so the first store traps. A page without rights has PRES and no V. Without PRES an entry is a page of a
file (FILE, which on sun4u is MOD's bit) or of the swap area.

Size code n stands for pages of 8 KiB << 3n; the address bits below the page's size are ignored.

Sources: UltraSPARC User's Manual ch. 6, SPARC JPS1 appendix F; Linux 2.6.11 to 3.0 ``asm/pgtable_64.h``.
"""

from __future__ import annotations

import attrs

from polymmu.arch import VM_EXEC, VM_READ, VM_SHARED, VM_WRITE, EntryFormat, Field, SoftEntry, step

PAGE_SHIFT = 13
V = 1 << 63
TAG_SHIFT = 22
"""A TSB entry's tag is the address from this bit on, whatever the page's size."""


@attrs.frozen(kw_only=True)
class Tte:
    """Where one format keeps what: masks, but for ``size_shift`` and ``codes``, the number of page sizes.

    ``common``: what every pte has. ``execute``: the bit that somebody asks at an instruction miss; 0: nobody does.
    """

    address: int
    size_shift: int
    codes: int
    common: int
    modified: int
    accessed: int
    read: int
    write: int
    execute: int
    present: int
    privileged: int
    writable: int
    global_: int
    file: int

    @property
    def page_shifts(self) -> tuple[int, ...]:
        """Log2 of every page size."""
        return tuple(PAGE_SHIFT + 3 * code for code in range(self.codes))

    def size_bits(self, size: int) -> int:
        """The size code of a page of ``size`` bytes, in place."""
        return self.page_shifts.index(size.bit_length() - 1) << self.size_shift

    def page_shift_of(self, tte: int) -> int:
        """Log2 of the page that ``tte`` maps."""
        return PAGE_SHIFT + 3 * (tte >> self.size_shift & (self.codes - 1))

    @property
    def entry_format(self) -> EntryFormat:
        """As the mm core reads it."""
        soft = V | self.present | self.file
        return EntryFormat(
            present=Field(V, V),
            frame_mask=self.address,
            write=Field(self.write, self.write, with_off=self.writable),
            user=Field(self.privileged, 0, self.privileged),
            execute=Field(self.execute, self.execute),
            accessed=Field(self.accessed, self.accessed, with_on=V, with_off=V),
            dirty=Field(self.modified, self.modified, with_on=self.writable, with_off=self.writable),
            global_=Field(self.global_, self.global_) if self.global_ else None,
            prot_none=Field(V | self.present, self.present),
            swap=SoftEntry(mask=soft, on=0, parts=(((13, 8),), ((21, 42),))),
            file=SoftEntry(mask=soft, on=self.file, parts=(((13, 50),),)),
        )

    @property
    def protections(self) -> tuple[int, ...]:
        """Bits of a present, young, clean pte by VM_READ | VM_WRITE | VM_EXEC | VM_SHARED."""
        values = []
        for flags in range(16):
            value = self.present | self.accessed | self.common
            if flags & (VM_READ | VM_WRITE | VM_EXEC):
                value |= V | self.read
            if flags & VM_WRITE and flags & VM_SHARED:
                value |= self.write
            if flags & VM_EXEC:
                value |= self.execute
            values.append(value)
        return tuple(values)


SUN4U = Tte(
    address=(1 << 43) - (1 << 13), size_shift=61, codes=4, common=3 << 4, global_=1 << 0,
    modified=1 << 11, accessed=1 << 10, read=1 << 9, write=1 << 8, execute=1 << 12, present=1 << 7,
    privileged=1 << 2, writable=1 << 1, file=1 << 11,
)  # fmt: skip
SUN4V = Tte(
    address=(1 << 56) - (1 << 13), size_shift=0, codes=8, common=3 << 9, global_=0,
    modified=1 << 61, accessed=1 << 60, read=1 << 59, write=1 << 58, execute=1 << 7, present=1 << 4,
    privileged=1 << 8, writable=1 << 6, file=1 << 5,
)  # fmt: skip
SUN4U_VPTE = attrs.evolve(SUN4U, execute=0, common=SUN4U.common | SUN4U.execute)
"""Before 2.6.17 nobody looked at EXEC."""


@step
def tsb_pointer(register: int, va: int, page_shift: int, half: int) -> int:
    """Where the TSB named by ``register`` (base 63:13, split 12, size code 2:0) keeps the entry for ``va``.

    512 << size entries of 16 bytes, direct mapped by the page number. The base's bits below the TSB's size do not
    count. A split register names two of them, of which the second (``half`` 1) serves the larger pages.
    """
    code = register & 7
    split = register >> 12 & 1
    base = register & -(1 << (13 + code + split))
    return base | (half * split) << (13 + code) | (va >> page_shift & ((512 << code) - 1)) << 4


@step
def tag_of(va: int) -> int:
    """A TSB entry's tag for ``va``, with the context's field 0 as Linux has it."""
    return va >> TAG_SHIFT & ((1 << 42) - 1)
