"""try_to_unmap in nonlinear vmas, where no index says which pte maps a page (A6.1, steps 4 to 8).

The vmas are emptied a cluster of ptes at a time, whatever pages those map, until as many ptes went as mapped the page:
a measure for the effort, no more. Each vma has a cursor (``vm_private_data``), so that the next call goes on where this
one stopped, and no vma gets ahead of the others by more than a cluster. Pages used lately stay.

The lock of the list is offered to others after each round over it, never within: nothing that was found in the list
before is looked at afterwards (2004; before, the loop rescheduled after each cluster with the lock held).
"""

from __future__ import annotations

from polymmu.hooks import ArchKernel
from polymmu.mm.rmap import clear_young, unmap_one
from polymmu.mm.tables import entries_spanned, find_entry, pfn_of, pte_lock, pte_unlock, read_pte
from polymmu.mm.variant import Variant
from polymmu.structs import PG_ANON, PG_RESERVED, VM_PFNMAP, address_space, vm_area_struct

__all__ = ["ClusterScan"]

CLUSTER_PAGES = 32


class ClusterScan(Variant):
    """The list's lock is offered to others after each round over all vmas, never within one."""

    since = "2.6.7"
    wrong = ""

    def __init__(self, kernel: ArchKernel) -> None:
        super().__init__(kernel)
        layout = kernel.shape.layout
        self.cluster = min(CLUSTER_PAGES * layout.page_size, layout.span_of(layout.pmd_level))

    def unmap(self, mapping: address_space, effort: int) -> bool:
        """Unmap about ``effort`` pages from ``mapping``'s nonlinear vmas, whose lock is held; False: none may be
        looked at."""
        vmas = _usable(mapping)
        if not vmas:
            return False
        reach = max(vma.vm_private_data or 0 for vma in vmas) or self.cluster
        end = -(-max(map(self._span, vmas)) // self.cluster) * self.cluster
        self.between_rounds(mapping)
        # Invariant: every vma's cursor is at or below ``reach``, unless others changed it while we let go of the lock.
        while True:
            for vma in _usable(mapping):
                cursor = vma.vm_private_data or 0
                while vma.vm_mm.file_rss and cursor < min(reach, self._span(vma)):
                    effort -= self._unmap_cluster(vma, cursor)
                    self.after_cluster()
                    cursor += self.cluster
                    vma.vm_private_data = cursor
                    if effort <= 0:
                        return True
                vma.vm_private_data = reach
            self.between_rounds(mapping)
            reach += self.cluster
            if reach > end:
                break
        for vma in mapping.i_mmap_nonlinear.values():
            vma.vm_private_data = None
        return True

    def after_cluster(self) -> None:
        """The lock is held, and may be a spinlock."""

    def between_rounds(self, mapping: address_space) -> None:
        """Let those have the lock who wait for it (cond_resched_lock, A0.4)."""
        sched, lock = self.kernel.sched, mapping.i_mmap_lock
        if sched.need_lockbreak(lock) or sched.need_resched():
            lock.unlock()
            sched.cond_resched()
            lock.lock()

    def _span(self, vma: vm_area_struct) -> int:
        """Where cursors of ``vma`` end: they count from the cluster in which it begins, in part."""
        return vma.vm_end - (vma.vm_start & -self.cluster)

    def _unmap_cluster(self, vma: vm_area_struct, cursor: int) -> int:
        """Empty the cluster at ``cursor``, as far as it lies in ``vma``; how many pages went."""
        kernel, mm = self.kernel, vma.vm_mm
        shape, frames = kernel.shape, kernel.frames
        page_size = mm.layout.page_size
        first = (vma.vm_start & -self.cluster) + cursor
        addr, end = max(first, vma.vm_start), min(first + self.cluster, vma.vm_end)
        ptep = find_entry(mm, addr)
        if ptep < 0:
            return 0
        n = entries_spanned(addr, end, mm.layout.page_shift)
        kernel.events.entries_visited(mm, "rmap", n)
        kernel.sched.spend(kernel.description.costs.entry_update * n, "rmap")
        unmapped = 0
        pte_lock(mm, ptep)
        for place in range(n):
            at, entry = addr + place * page_size, ptep + place * mm.layout.entry_bytes[-1]
            value = read_pte(mm, entry)
            pfn = pfn_of(shape, value)
            if (
                shape.pte.is_mapped(value)
                and pfn < frames.count
                and not frames.flags[pfn] & (PG_RESERVED | PG_ANON)
                and not clear_young(vma, at, entry)
            ):
                unmap_one(vma, at, entry)
                unmapped += 1
        pte_unlock(mm, ptep)
        return unmapped


def _usable(mapping: address_space) -> list[vm_area_struct]:
    return [vma for vma in mapping.i_mmap_nonlinear.values() if not vma.vm_flags & VM_PFNMAP]
