"""anon_vmas: which vmas may map an anonymous page.

A page in use knows one ``anon_vma`` and its index (frame columns MAPPING, negative for these, and INDEX), set when it
is first mapped. Its family is everybody who can have got the page from there: the vma itself, what was split off it,
merged with it or moved from it, and forked children's copies. All of them are on the list of the family's eldest, the
``root``, in the order they came, a child after its parent (Linux 2.6.7 to 2.6.33 had one anon_vma for such a family;
its lock is the root's to this day).

A forked child's copies have an anon_vma of their own below the root all the same, for what may merge is told by it:
only vmas with the same one, and none that has no pages yet may come under an inherited one (Linux 3.0).

Life: a vma holds a reference of its anon_vma, that one of its root. Pages hold none: who comes from a page takes
``rmap.page_lock_anon_vma``. Lock order: i_mmap_lock, then ``anon_vma.lock``, then the page tables' (A0.1).

First reading: ``anon_vma_prepare``, ``anon_vma_fork``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polymmu.hardware.ram import INDEX, MAPPING
from polymmu.hooks import ArchKernel
from polymmu.mm.linear import linear_index, vma_pages
from polymmu.structs import VM_EXEC, VM_READ, VM_WRITE, anon_vma, vm_area_struct

__all__ = [
    "anon_vma_clone",
    "anon_vma_fork",
    "anon_vma_link",
    "anon_vma_prepare",
    "may_share",
    "page_add_anon_rmap",
    "page_add_anon_rmaps",
    "page_anon_vma",
    "put_anon_vma",
    "same_anon",
    "unlink_anon_vma",
]

Numbers = NDArray[np.int64]
VM_RIGHTS = VM_READ | VM_WRITE | VM_EXEC


def anon_vma_prepare(vma: vm_area_struct) -> None:
    """Called before the first anonymous page of ``vma``. May sleep.

    A neighbour's anon_vma is shared where only rights keep the two apart, so that they may merge later.
    """
    if vma.anon_vma is not None:
        return
    kernel: ArchKernel = vma.vm_mm.kernel
    for neighbour in (vma.vm_next, vma.vm_prev):
        if neighbour is not None and may_share(neighbour.anon_vma) and _could_join(vma, neighbour):
            anon_vma_clone(vma, neighbour)
            return
    anon = _new_anon_vma(kernel, None)
    anon.lock.lock()
    if vma.anon_vma is None:  # no other thread's fault was quicker
        anon_vma_link(vma, anon)
    anon.lock.unlock()
    put_anon_vma(kernel, anon)


def anon_vma_clone(vma: vm_area_struct, source: vm_area_struct) -> None:
    """Before ``vma`` gets pages of ``source``: it comes under the same anon_vma, unless it has one."""
    anon = source.anon_vma
    if vma.anon_vma is None and anon is not None:
        anon.root.lock.lock()
        if vma.anon_vma is None:
            anon_vma_link(vma, anon)
        anon.root.lock.unlock()


def anon_vma_link(vma: vm_area_struct, anon: anon_vma) -> None:
    """``vma``, which has none, comes under ``anon``. The caller holds the family's lock."""
    anon.references += 1
    anon.root.vmas[vma.slot] = vma
    vma.anon_vma = anon


def anon_vma_fork(vma: vm_area_struct) -> None:
    """A child's copy of a vma with anonymous pages gets an anon_vma of its own in the family, which no other joins."""
    parents = vma.anon_vma
    if parents is not None:
        anon = _new_anon_vma(vma.vm_mm.kernel, parents.root)
        unlink_anon_vma(vma)
        anon.root.lock.lock()
        anon_vma_link(vma, anon)
        anon.root.lock.unlock()
        put_anon_vma(vma.vm_mm.kernel, anon)


def unlink_anon_vma(vma: vm_area_struct) -> None:
    """Take ``vma`` off its family's list, if it is on one; no walk comes to it from then on."""
    anon = vma.anon_vma
    if anon is None:
        return
    anon.root.lock.lock()
    del anon.root.vmas[vma.slot]
    vma.anon_vma = None
    anon.root.lock.unlock()
    put_anon_vma(vma.vm_mm.kernel, anon)


def put_anon_vma(kernel: ArchKernel, anon: anon_vma) -> None:
    """One reference less; the last one frees it."""
    anon.references -= 1
    if not anon.references:
        kernel.anon_vmas.free(anon)
        if anon.root is not anon:
            put_anon_vma(kernel, anon.root)


def _new_anon_vma(kernel: ArchKernel, root: anon_vma | None) -> anon_vma:
    """With a reference, the caller's. ``root``: of the family it belongs to; None: its own."""
    anon = kernel.anon_vmas.alloc()
    anon.references = 1
    anon.root = anon if root is None else root
    if root is not None:
        root.references += 1
    return anon


# ------------------------------------------------------------------ pages
def page_add_anon_rmap(vma: vm_area_struct, addr: int, pfn: int) -> None:
    """``vma`` is about to map the anonymous page at ``addr``, which nothing maps, or only its family."""
    assert vma.anon_vma is not None
    frames = vma.vm_mm.kernel.frames
    frames.mapping[pfn] = -1 - vma.anon_vma.root.slot
    frames.index[pfn] = linear_index(vma, addr)


def page_add_anon_rmaps(vma: vm_area_struct, addr: int, slots: Numbers, pfns: Numbers) -> None:
    """``page_add_anon_rmap`` of many: page ``slots[n]``, counted from ``addr``, is ``pfns[n]``."""
    assert vma.anon_vma is not None
    table = vma.vm_mm.kernel.frames.table
    table[MAPPING][pfns] = -1 - vma.anon_vma.root.slot
    table[INDEX][pfns] = linear_index(vma, addr) + slots


def page_anon_vma(kernel: ArchKernel, pfn: int) -> anon_vma | None:
    """The anon_vma that MAPPING of a page names, which may be another family's by now; None: it names none."""
    mapping = kernel.frames.mapping[pfn]
    return kernel.anon_vmas.objects[-1 - mapping] if mapping < 0 else None


# ------------------------------------------------------------------ what may merge
def same_anon(one: anon_vma | None, other: anon_vma | None) -> bool:
    """Whether a vma with ``one`` may take in one with ``other``."""
    if one is None or other is None:
        return one is other or may_share(one or other)
    return one is other


def may_share(anon: anon_vma | None) -> bool:
    """Whether a vma without pages may come under ``anon``."""
    return anon is not None and anon.root is anon


def _could_join(vma: vm_area_struct, neighbour: vm_area_struct) -> bool:
    """Whether only rights keep two adjacent vmas apart (mprotect may make them equal later)."""
    low, high = (vma, neighbour) if vma.vm_start < neighbour.vm_start else (neighbour, vma)
    return (
        low.vm_end == high.vm_start
        and low.vm_file is high.vm_file
        and not (low.vm_flags ^ high.vm_flags) & ~VM_RIGHTS
        and low.vm_pgoff + vma_pages(low) == high.vm_pgoff
    )
