"""Known bugs in an architecture's own steps, by their numbers in the gallery: each one hook's answer, replaced."""

from __future__ import annotations

from collections.abc import Mapping

from polymmu.mm.own_ops import OwnOps
from polymmu.structs import mmu_gather

__all__ = ["OPS_BUGS"]


class LeavesTheHashBatch(OwnOps):
    """28: before a gather frees its pages, ptes that this CPU's batch still holds stay in the hash table."""

    since = "mended 2.6.22"
    wrong = "INV-TLB: a TLB leads to a freed page"
    arches = ("ppc64",)

    def tlb_flush(self, tlb: mmu_gather) -> None:
        """Left out."""


OPS_BUGS: Mapping[str, type[OwnOps]] = {
    "bug-28": LeavesTheHashBatch,
}
