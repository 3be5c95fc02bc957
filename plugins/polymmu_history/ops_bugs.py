"""Known bugs in an architecture's own steps, by their numbers in the gallery: each one hook's answer, replaced."""

from __future__ import annotations

from collections.abc import Mapping

from polymmu.hooks import ArchKernel
from polymmu.mm.own_ops import OwnOps
from polymmu.mm.vma import find_vma
from polymmu.structs import EntryRun, mm_struct, mmu_gather, vm_area_struct

__all__ = ["OPS_BUGS", "users_of"]


class LeavesTheHashBatch(OwnOps):
    """28: before a gather frees its pages, ptes that this CPU's batch still holds stay in the hash table."""

    since = "mended 2.6.22"
    wrong = "INV-TLB: a TLB leads to a freed page"
    arches = ("ppc64",)

    def tlb_flush(self, tlb: mmu_gather) -> None:
        """Left out."""


class AsksForTheActiveMm(OwnOps):
    """32: who has the only user's mm loaded is taken for that user, although it may be a kernel thread's CPU."""

    since = "mended 2.6.30"
    wrong = "INV-TLB: the user's own CPU is not told of a flush"
    arches = ("sparc64",)

    def tlb_flush(self, tlb: mmu_gather) -> None:
        here = self.kernel.sched.cpu.index
        if self.kernel.active_mm[here] is tlb.mm and users_of(tlb.mm) == 1:
            tlb.mm.cpu_mask = 1 << here
        self.own.tlb_flush(tlb)


class FlushesBySoManyUsers(OwnOps):
    """33: with one user ptes change by plain stores and a flush comes later; who counts then may find two."""

    since = "mended 2.6.37"
    wrong = "INV-PERM: neither the store nor the flush reached the TLB"
    arches = ("s390",)

    def ptep_get_and_clear(
        self, mm: mm_struct, addr: int, ptep: int, n: int, tlb: mmu_gather | None
    ) -> EntryRun:
        vma = find_vma(mm, addr)
        if tlb is None and vma is not None and users_of(mm) > 1:
            return self.own.ptep_clear_flush(vma, addr, ptep, n)
        return self.own.ptep_get_and_clear(mm, addr, ptep, n, tlb)

    def flush_tlb_mm(self, mm: mm_struct) -> None:
        if users_of(mm) < 2:
            self.own.flush_tlb_mm(mm)

    def flush_tlb_range(self, vma: vm_area_struct) -> None:
        self.flush_tlb_mm(vma.vm_mm)


def users_of(mm: mm_struct) -> int:
    """The users of ``mm`` now; others come and go."""
    kernel: ArchKernel = mm.kernel
    kernel.sched.point("read", ("mm_users", mm.slot))
    return mm.mm_users


OPS_BUGS: Mapping[str, type[OwnOps]] = {
    "bug-28": LeavesTheHashBatch,
    "bug-32": AsksForTheActiveMm,
    "bug-33": FlushesBySoManyUsers,
}
