"""Where an address space's mappings are: looking vmas up, linking them, moving their boundaries.

Every vma is reachable in four ways that must agree at all times: ``mm.vmas`` by start address, the
``vm_next``/``vm_prev`` list from ``mm.mmap`` on, ``mm.mmap_cache`` (the last answer of ``find_vma``), and,
where it maps a file, the file's ``i_mmap`` or ``i_mmap_nonlinear``. Nobody outside this module changes these or a
boundary.

Guard: the mm's mmap_lock held for writing. What a walker from the file's side reads (i_mmap, and the
boundaries and ``vm_truncate_count`` of the vmas in it) changes only below ``i_mmap_lock``.

First reading: ``find_vma``, ``vma_adjust``, ``split_vma``; skip the cases of ``vma_merge``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from polymmu.errors import syscall_error
from polymmu.hooks import ArchKernel
from polymmu.mm.anon_vma import (
    VM_RIGHTS,
    anon_vma_clone,
    anon_vma_fork,
    anon_vma_link,
    anon_vma_prepare,
    same_anon,
    unlink_anon_vma,
)
from polymmu.mm.linear import last_index, linear_index, vma_pages
from polymmu.mm.pagecache import get_file, put_file
from polymmu.mm.truncate_count import truncate_counts
from polymmu.structs import (
    VM_DONTEXPAND,
    VM_HUGETLB,
    VM_NONLINEAR,
    VM_PFNMAP,
    VM_SHARED,
    File,
    address_space,
    anon_vma,
    mm_struct,
    vm_area_struct,
)

__all__ = [
    "VM_RIGHTS",
    "anon_vma_clone",
    "anon_vma_fork",
    "anon_vma_prepare",
    "detach_vmas",
    "find_vma",
    "find_vma_intersection",
    "find_vma_prev",
    "last_index",
    "linear_index",
    "remove_vma",
    "set_vma_flags",
    "split_vma",
    "unlink_anon_vma",
    "unlink_file_vma",
    "vma_adjust",
    "vma_alloc",
    "vma_copy",
    "vma_grow_down",
    "vma_link",
    "vma_make_nonlinear",
    "vma_merge",
    "vma_pages",
    "vmas_of",
]

PROTECTION_INDEX = VM_RIGHTS | VM_SHARED
UNMERGEABLE = VM_PFNMAP | VM_DONTEXPAND | VM_HUGETLB
"""A driver or a huge page's alignment stands behind these: each mapping stays what it was made."""


# ------------------------------------------------------------------- look-up
def find_vma(mm: mm_struct, addr: int) -> vm_area_struct | None:
    """The first vma that ends above ``addr``: the one holding it, or the next one up; None at the end."""
    vma = mm.mmap_cache
    if vma is not None and vma.vm_start <= addr < vma.vm_end:
        return vma
    index = mm.vmas.bisect_right(addr)
    if not index:
        return mm.mmap
    below: vm_area_struct = mm.vmas.peekitem(index - 1)[1]
    if addr < below.vm_end:
        mm.mmap_cache = below
        return below
    return below.vm_next


def find_vma_prev(mm: mm_struct, addr: int) -> tuple[vm_area_struct | None, vm_area_struct | None]:
    """``find_vma(mm, addr)`` and the vma before it: the last of all where nothing ends above ``addr``."""
    vma = find_vma(mm, addr)
    if vma is not None:
        return vma, vma.vm_prev
    return None, mm.vmas.peekitem(-1)[1] if mm.vmas else None


def find_vma_intersection(mm: mm_struct, start: int, end: int) -> vm_area_struct | None:
    """The first vma that shares an address with [start, end)."""
    vma = find_vma(mm, start)
    return vma if vma is not None and vma.vm_start < end else None


def vmas_of(vma: vm_area_struct | None) -> Iterator[vm_area_struct]:
    """``vma`` and all after it on its list; the one handed out may be freed before the next is asked for."""
    while vma is not None:
        following = vma.vm_next
        yield vma
        vma = following


# ------------------------------------------------------- birth, copies, death
def vma_alloc(
    mm: mm_struct,
    start: int,
    end: int,
    vm_flags: int,
    *,
    file: File | None = None,
    pgoff: int | None = None,
    huge_size: int = 0,
) -> vm_area_struct:
    """A vma for [start, end), not linked anywhere. It takes a reference of ``file``.

    ``pgoff`` defaults to what an anonymous vma has: the number of its first virtual page. ``huge_size``: its
    pages are huge ones of so many bytes.
    """
    vma = mm.kernel.vmas.alloc()
    vma.vm_mm = mm
    vma.vm_start = start
    vma.vm_end = end
    vma.huge_size = huge_size
    vma.vm_pgoff = start >> mm.layout.page_shift if pgoff is None else pgoff
    vma.vm_file = get_file(file) if file is not None else None
    vma.anon_vma = None
    vma.vm_truncate_count = 0
    vma.vm_private_data = None
    vma.vm_next = None
    vma.vm_prev = None
    set_vma_flags(vma, vm_flags | VM_HUGETLB if huge_size else vm_flags)
    return vma


def vma_copy(vma: vm_area_struct, mm: mm_struct) -> vm_area_struct:
    """A vma of ``mm`` like ``vma``, not linked: for fork, split and mremap. Takes references of its own.

    The truncate count is not copied: a struct copy holds no lock, so whoever links the copy stores it (A1.7).
    """
    copy = vma_alloc(
        mm,
        vma.vm_start,
        vma.vm_end,
        vma.vm_flags,
        file=vma.vm_file,
        pgoff=vma.vm_pgoff,
        huge_size=vma.huge_size,
    )
    copy.vm_private_data = vma.vm_private_data
    copy.vm_page_prot = vma.vm_page_prot
    anon_vma_clone(copy, vma)
    truncate_counts(mm.kernel).vma_copied(copy, vma)
    return copy


def set_vma_flags(vma: vm_area_struct, vm_flags: int) -> None:
    """Change what ``vma`` allows; its ptes are the caller's business."""
    shape = vma.vm_mm.kernel.shape
    protections = shape.huge_protections[vma.huge_size] if vma.huge_size else shape.protections
    vma.vm_flags = vm_flags
    vma.vm_page_prot = protections[vm_flags & PROTECTION_INDEX]


def remove_vma(vma: vm_area_struct) -> None:
    """Free an unlinked vma and drop what it holds. May sleep: the last put of a file frees its pages."""
    unlink_anon_vma(vma)
    file = vma.vm_file
    vma.vm_file = None
    kernel: ArchKernel = vma.vm_mm.kernel
    kernel.vmas.free(vma)
    if file is not None:
        put_file(kernel, file)


# ------------------------------------------------------------------- linking
def vma_link(
    vma: vm_area_struct, prev: vm_area_struct | None, *, parent: vm_area_struct | None = None
) -> None:
    """Make ``vma``, which overlaps no other, part of its mm, behind ``prev`` (None: first of all).

    ``parent``: the vma that a fork will copy its ptes from; a walk from the file's side meets the child later.
    """
    _link(vma, prev)
    vma.vm_mm.map_count += 1
    mapping = _mapping_of(vma)
    if mapping is not None:
        mapping.i_mmap_lock.lock()
        counts = truncate_counts(vma.vm_mm.kernel)
        if parent is None:
            counts.vma_linked(vma, mapping)
        else:
            counts.vma_forked(vma, parent)
        _link_file(mapping, vma, parent)
        mapping.i_mmap_lock.unlock()


def detach_vmas(mm: mm_struct, first: vm_area_struct, end: int) -> None:
    """Take ``first`` and all after it that begin below ``end`` out of the mm: no fault finds them any more.

    They stay linked to each other (``first`` ... ``vm_next`` None), and their file still finds them until
    their ptes are gone.
    """
    prev = first.vm_prev
    last = first
    for vma in vmas_of(first):
        if vma.vm_start >= end:
            break
        _unlink(vma)
        mm.map_count -= 1
        vma.vm_prev = last if vma is not first else prev
        last = vma
    last.vm_next = None


def unlink_file_vma(vma: vm_area_struct) -> None:
    """Take ``vma`` out of its file's i_mmap; afterwards its page tables may go (A3.2 step 2)."""
    mapping = _mapping_of(vma)
    if mapping is not None:
        mapping.i_mmap_lock.lock()
        _unlink_file(mapping, vma)
        mapping.i_mmap_lock.unlock()


def vma_make_nonlinear(vma: vm_area_struct) -> None:
    """``vma``, which maps a file, may show its pages in any order from now on: to the list, for good (A1.2 step 5)."""
    mapping = _mapping_of(vma)
    assert mapping is not None
    mapping.i_mmap_lock.lock()
    _unlink_file(mapping, vma)
    vma.vm_flags |= VM_NONLINEAR
    _link_file(mapping, vma)
    mapping.i_mmap_lock.unlock()


def _link_file(mapping: address_space, vma: vm_area_struct, after: vm_area_struct | None = None) -> None:
    """``after``: one that maps the same pages, and comes before it."""
    if vma.vm_flags & VM_NONLINEAR:
        mapping.i_mmap_nonlinear[vma.slot] = vma
    elif after is None:
        mapping.i_mmap.insert(vma)
    else:
        mapping.i_mmap.insert_after(vma, after)


def _unlink_file(mapping: address_space, vma: vm_area_struct) -> None:
    if vma.vm_flags & VM_NONLINEAR:
        del mapping.i_mmap_nonlinear[vma.slot]
    else:
        mapping.i_mmap.remove(vma)


def _mapping_of(vma: vm_area_struct) -> address_space | None:
    return vma.vm_file.mapping if vma.vm_file is not None else None


def _link(vma: vm_area_struct, prev: vm_area_struct | None) -> None:
    mm = vma.vm_mm
    following = prev.vm_next if prev is not None else mm.mmap
    vma.vm_prev = prev
    vma.vm_next = following
    if prev is not None:
        prev.vm_next = vma
    else:
        mm.mmap = vma
    if following is not None:
        following.vm_prev = vma
    mm.vmas[vma.vm_start] = vma


def _unlink(vma: vm_area_struct) -> None:
    mm = vma.vm_mm
    prev, following = vma.vm_prev, vma.vm_next
    if prev is not None:
        prev.vm_next = following
    else:
        mm.mmap = following
    if following is not None:
        following.vm_prev = prev
    del mm.vmas[vma.vm_start]
    if mm.mmap_cache is vma:
        mm.mmap_cache = None


# -------------------------------------------------------- boundaries (A7.4)
def vma_adjust(
    mm: mm_struct,
    ranges: Sequence[tuple[vm_area_struct, int, int]],
    *,
    insert: vm_area_struct | None = None,
    remove: Sequence[vm_area_struct] = (),
) -> None:
    """Move boundaries, all at once as a walker from the file's side sees it.

    ``ranges``: (vma, new start, new end); ``vm_pgoff`` follows the start. ``insert``: a new vma that takes
    what the first of them gives up. ``remove``: vmas whose whole range another one takes; they are freed. All
    of them map the same file, or none.
    """
    changed = [vma for vma, _, _ in ranges]
    mapping = _mapping_of(changed[0])
    anon = next((vma.anon_vma for vma in (*changed, *remove) if vma.anon_vma is not None), None)
    counts = truncate_counts(mm.kernel)
    if mapping is not None:
        mapping.i_mmap_lock.lock()
    if insert is not None:
        counts.vma_split(insert, changed[0])
        if mapping is not None:
            _link_file(mapping, insert)
    if anon is not None:
        anon.root.lock.lock()
    growing = [vma for vma, start, end in ranges if start < vma.vm_start or vma.vm_end < end]
    givers = [*remove, *(vma for vma in changed if vma not in growing)]
    for vma in growing:
        for giver in givers:
            counts.vma_imports(vma, giver)
            if vma.anon_vma is None and giver.anon_vma is not None:
                anon_vma_link(vma, giver.anon_vma)  # before the first page of the giver belongs to it
    if mapping is not None:
        for vma in (*changed, *remove):
            _unlink_file(mapping, vma)
    for vma in remove:
        _unlink(vma)
    moved = [vma for vma, start, _ in ranges if start != vma.vm_start]
    for vma in moved:
        del mm.vmas[vma.vm_start]
    for vma, start, end in ranges:
        vma.vm_pgoff += (start - vma.vm_start) >> mm.layout.page_shift
        vma.vm_start, vma.vm_end = start, end
        if mapping is not None:
            _link_file(mapping, vma)
    for vma in moved:
        mm.vmas[vma.vm_start] = vma
    for vma in (*changed, insert) if insert is not None else changed:
        counts.vma_resized(vma)
    if insert is not None:
        below = insert.vm_start < changed[0].vm_start
        _link(insert, changed[0].vm_prev if below else changed[0])
    if anon is not None:
        anon.root.lock.unlock()
    if mapping is not None:
        mapping.i_mmap_lock.unlock()
    mm.map_count += (insert is not None) - len(remove)
    for vma in remove:
        remove_vma(vma)


def vma_grow_down(vma: vm_area_struct, start: int) -> None:
    """Let a stack begin at ``start``, below where it does; for a fault, which has mmap_lock for reading only.

    The caller holds the lock of the stack's family, which is what keeps other faults out.
    """
    mm = vma.vm_mm
    del mm.vmas[vma.vm_start]
    vma.vm_pgoff -= (vma.vm_start - start) >> mm.layout.page_shift
    vma.vm_start = start
    mm.vmas[start] = vma


def split_vma(vma: vm_area_struct, addr: int, *, new_below: bool) -> vm_area_struct:
    """Cut ``vma`` at ``addr`` and return the new piece; ``new_below``: the new struct is the lower one.

    Which piece keeps the struct matters to who holds a pointer to it. Raises EINVAL inside a huge page, ENOMEM at
    the limit of mappings.
    """
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    if vma.huge_size and addr % vma.huge_size:
        raise syscall_error(errno.EINVAL, f"{addr:#x} lies inside a huge page of {vma.huge_size:#x} bytes")
    if mm.map_count >= kernel.description.kernel.vm_max_map_count:
        raise syscall_error(errno.ENOMEM, f"no more than {mm.map_count} mappings in one address space")
    piece = vma_copy(vma, mm)
    if new_below:
        piece.vm_end = addr
        kept = (vma, addr, vma.vm_end)
    else:
        piece.vm_start = addr
        piece.vm_pgoff += (addr - vma.vm_start) >> mm.layout.page_shift
        kept = (vma, vma.vm_start, addr)
    vma_adjust(mm, [kept], insert=piece)
    return piece


# ---------------------------------------------------------------------- merge
def vma_merge(
    mm: mm_struct,
    prev: vm_area_struct | None,
    start: int,
    end: int,
    vm_flags: int,
    *,
    anon: anon_vma | None = None,
    file: File | None = None,
    pgoff: int,
    growing: bool = False,
) -> vm_area_struct | None:
    """Cover [start, end) by growing a neighbour, if one is just like it. The vma that now holds it, or None.

    [start, end) is a hole, or one vma's part that is about to get ``vm_flags`` (mprotect); that vma is the
    first above ``prev``, or ``prev`` itself where ``start`` lies inside. P, A, N: prev, the vma being
    changed, next:

        hole         PPP....NNN  ->  PPPPPPPPPP (1)  PPPPPPPNNN (2)  PPPNNNNNNN (3)
        part of prev PPPPPPPNNN  ->  PPPNNNNNNN (4)
        part of A    PPPAAAAAAA  ->  PPPPPPPAAA (5)
        all of A     PPPAAAANNN  ->  PPPPPPPPPP (6)  PPPPPPPNNN (7)  PPPNNNNNNN (8)

    ``growing``: the hole is one that ``prev`` itself grows into; even one with an inherited anon_vma may then take in
    a mapping above that has no pages.
    """
    if vm_flags & UNMERGEABLE:
        return None
    pages = (end - start) >> mm.layout.page_shift
    above = prev.vm_next if prev is not None else mm.mmap
    area = above if above is not None and above.vm_start < end else None
    after = above
    if area is not None:
        after = area.vm_next if area.vm_end == end else None

    def alike(vma: vm_area_struct) -> bool:
        return (
            vma.vm_flags == vm_flags
            and vma.vm_file is file
            and vma.vm_private_data is None
            and (same_anon(anon, vma.anon_vma) or (growing and vma.anon_vma is None))
        )

    low = high = None
    if prev is not None and prev.vm_end == start and prev.vm_pgoff + vma_pages(prev) == pgoff and alike(prev):
        low = prev
    if after is not None and after.vm_start == end and after.vm_pgoff == pgoff + pages and alike(after):
        high = after
    whole = [area] if area is not None and area.vm_end == end else []
    if low and high and (low.anon_vma is high.anon_vma or None in (low.anon_vma, high.anon_vma)):  # 1, 6
        vma_adjust(mm, [(low, low.vm_start, high.vm_end)], remove=[*whole, high])
        return low
    if low is not None:
        if area is not None and not whole:  # 5
            vma_adjust(mm, [(low, low.vm_start, end), (area, end, area.vm_end)])
        else:  # 2, 7
            vma_adjust(mm, [(low, low.vm_start, end)], remove=whole)
        return low
    if high is not None:
        if prev is not None and start < prev.vm_end:  # 4
            vma_adjust(mm, [(high, start, high.vm_end), (prev, prev.vm_start, start)])
        else:  # 3, 8
            vma_adjust(mm, [(high, start, high.vm_end)], remove=whole)
        return high
    return None
