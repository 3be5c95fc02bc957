"""The translation storage buffer: a direct-mapped table in memory that the miss handler asks before it walks.

512 << code entries of 16 bytes, {tag, TTE}, big-endian, aligned to the whole size. Nothing keeps it in step with the
page tables but software: who changes a live pte takes its entry out (``tsb_flush``) before the TLBs forget the page.
It belongs to one mm and is read by every CPU that runs it, so only the CPU that changes the pte does this.

A buffer grows when the mm has more pages than three quarters of its entries.

Source: Linux 2.6.39 ``tsb.h``, ``tsb.c``.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from polymmu.arch import ArchKernel, Cpu, alloc_page, alloc_pages, free_page, free_pages, mm_struct
from polymmu_sparc64.miss import M_HUGE_TSB, M_TSB
from polymmu_sparc64.tte import PAGE_SHIFT, TAG_SHIFT

INVALID = 1 << 46
"""The tag of an entry that holds nothing: a bit that no address' tag has. (Bit 47 would lock the entry.)"""


@attrs.frozen
class Tsb:
    """One buffer at physical address ``base``, indexed by ``page_shift``."""

    base: int
    code: int
    page_shift: int = PAGE_SHIFT

    @property
    def entries(self) -> int:
        """How many translations it holds."""
        return 512 << self.code


def tsb_words(kernel: ArchKernel, tsb: Tsb) -> NDArray[Any]:
    """All entries, as rows of (tag, TTE), in place."""
    return kernel.ram.bytes[tsb.base : tsb.base + 16 * tsb.entries].view(">u8").reshape(-1, 2)


def tsb_alloc(kernel: ArchKernel, code: int = 0, page_shift: int = PAGE_SHIFT) -> Tsb | None:
    """A buffer that holds nothing; None where there is no memory, and then misses walk."""
    pfn = alloc_pages(kernel, code, "table", site="tsb") if code else alloc_page(kernel, "table", site="tsb")
    if pfn < 0:
        return None
    tsb = Tsb(pfn << PAGE_SHIFT, code, page_shift)
    tsb_words(kernel, tsb)[:, 0] = INVALID
    return tsb


def tsb_free(kernel: ArchKernel, tsb: Tsb) -> None:
    """Give a buffer's memory back; no CPU has it in its register any more."""
    if tsb.code:
        free_pages(kernel, tsb.base >> PAGE_SHIFT, tsb.code)
    else:
        free_page(kernel, tsb.base >> PAGE_SHIFT)


def tsb_flush(kernel: ArchKernel, tsb: Tsb, vaddrs: NDArray[np.uint64] | None) -> None:
    """Take the entries for these addresses out, where they are in; all entries for None."""
    tags = tsb_words(kernel, tsb)[:, 0]
    if vaddrs is None:
        tags[:] = INVALID
        return
    slots = (vaddrs >> np.uint64(tsb.page_shift)) & np.uint64(tsb.entries - 1)
    held = tags[slots] == vaddrs >> np.uint64(TAG_SHIFT)
    tags[slots[held]] = INVALID


def tsb_insert(kernel: ArchKernel, tsb: Tsb, addr: int, tte: int) -> None:
    """Enter the translation of ``addr`` in place of what its slot held."""
    slot = addr >> tsb.page_shift & (tsb.entries - 1)
    tsb_words(kernel, tsb)[slot] = addr >> TAG_SHIFT, tte


def tsb_copy(kernel: ArchKernel, old: Tsb, new: Tsb) -> None:
    """Enter what the smaller ``old`` holds into ``new``. A slot's number gives the address bits below the tag."""
    entries = tsb_words(kernel, old)
    slots = np.flatnonzero(entries[:, 0] != INVALID).astype(np.uint64)
    kept = entries[slots]
    low = TAG_SHIFT - PAGE_SHIFT
    pages = kept[:, 0].astype(np.uint64) << np.uint64(low) | slots & np.uint64((1 << low) - 1)
    tsb_words(kernel, new)[pages & np.uint64(new.entries - 1)] = kept


def load_tsbs(cpu: Cpu, mm: mm_struct) -> None:
    """Load the mm's two TSB registers, a base with the size code in its low bits; -1 where there is no buffer."""
    both: tuple[Tsb | None, Tsb | None] = (mm.context.tsb, mm.context.huge_tsb)
    cpu.mmu[M_TSB : M_HUGE_TSB + 1] = [-1 if tsb is None else tsb.base | tsb.code for tsb in both]


def load_tsbs_everywhere(mm: mm_struct) -> None:
    """Load them on the CPUs that run ``mm`` now; the others do when they come to it."""
    kernel: ArchKernel = mm.kernel
    running = sum(1 << cpu.index for cpu in kernel.cpus if kernel.active_mm[cpu.index] is mm)
    if running >> kernel.sched.cpu.index & 1:
        load_tsbs(kernel.sched.cpu, mm)

    def load(cpu: Cpu) -> None:
        if kernel.active_mm[cpu.index] is mm:  # it may have gone to another one before the interrupt came
            load_tsbs(cpu, mm)

    kernel.sched.ipi(running, load, kernel.description.costs.ipi)


def tsb_grow(mm: mm_struct) -> None:
    """Get the mm a buffer that is large enough for its pages; where there is no memory, it stays as it is."""
    old: Tsb = mm.context.tsb
    code = old.code
    while code < 7 and mm.anon_rss + mm.file_rss > (512 << code) * 3 // 4:
        code += 1
    new = tsb_alloc(mm.kernel, code) if code > old.code else None
    if new is not None:
        tsb_copy(mm.kernel, old, new)
        mm.context.tsb = new
        load_tsbs_everywhere(mm)
        tsb_free(mm.kernel, old)
