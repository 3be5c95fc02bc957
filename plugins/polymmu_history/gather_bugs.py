"""Known bugs of gathering and zapping, each one step of today's left out or done wrong; by number in the gallery."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from polymmu.mm.frames import put_pages, put_run
from polymmu.mm.gather import LinkedGather, tables_need_rcu
from polymmu.mm.hugetlb import flush_huge_pages, order_in, take_huge_pages
from polymmu.mm.zap import ZapDetails, ZapWork
from polymmu.structs import mmu_gather, vm_area_struct
from polymmu_history.ops_bugs import users_of

__all__ = ["GATHER_BUGS", "ZAP_BUGS"]


class FlushesItsOwnOnly(LinkedGather):
    """24: what another gather has cleared and not flushed yet is no business of this one, which found nothing there."""

    since = "mended 4.13"
    wrong = "INV-TLB: a call returns, and its pages can still be reached"

    def flush_nested(self, tlb: mmu_gather, start: int, end: int) -> None:
        """Left out."""


class TablesAtOnce(LinkedGather):
    """25: with one user of the mm nobody else is thought to walk its tables, so that they go at once."""

    since = "3.0, mended 4.19"
    wrong = "INV-WALK: a CPU that keeps the mm lazily walks on"

    def tlb_remove_table(self, tlb: mmu_gather, level: int, table: int) -> None:
        if tables_need_rcu(tlb.mm) and users_of(tlb.mm) < 2:
            self.kernel.ops.table_free(tlb.mm, level, table)
        else:
            super().tlb_remove_table(tlb, level, table)


class TablesBeforeTheFlush(LinkedGather):
    """26: a full batch of tables waits for RCU, which stops walkers in software, and is then freed unflushed."""

    since = "3.0, mended 4.19"
    wrong = "INV-WALK: a walk cache leads to a freed table"

    def tlb_table_invalidate(self, tlb: mmu_gather) -> None:
        """Left out."""


class NoBatchNoFlush(LinkedGather):
    """27: without a page to queue a table in, all CPUs are interrupted, which empties no walk cache."""

    since = "4.19, mended 5.6"
    wrong = "INV-WALK: a walk cache leads to a freed table"

    def no_batch(self, tlb: mmu_gather, level: int, table: int) -> None:
        self.remove_table_one(tlb, level, table)


class NoBatching(LinkedGather):
    """29: pages are freed as they come, and flushed at the end."""

    since = "one architecture's to 2.6.38"
    wrong = "INV-TLB: a TLB leads to a freed page"

    def tlb_remove_pages(self, tlb: mmu_gather, pfns: NDArray[np.int64]) -> bool:
        put_run(self.kernel, pfns)
        return False


class DeviceFramesLate(LinkedGather):
    """37: a driver's frames have no count of ptes, so who looks for their mappings finds none once ptes are cleared and
    the vma has left the file, though the flush is still to come."""

    since = "mended 5.19"
    wrong = "INV-TLB: a TLB leads to memory that its driver has freed"

    def tlb_end_vma(self, tlb: mmu_gather, vma: vm_area_struct) -> None:
        """Left out."""


class FreesHugePagesFirst(ZapWork):
    """21: huge pages are freed as their entries go, and flushed at the end."""

    since = "mended 2.6.19"
    wrong = "INV-TLB: a TLB leads to a freed page"

    def unmap_huge(
        self, tlb: mmu_gather, vma: vm_area_struct, start: int, end: int, details: ZapDetails | None
    ) -> None:
        n = 0
        tlb.mm.page_table_lock.lock()
        for pfn in take_huge_pages(vma, start, end, details.check_mapping if details is not None else None):
            put_pages(self.kernel, pfn, order_in(vma))
            n += 1
        tlb.mm.page_table_lock.unlock()
        if n:
            flush_huge_pages(vma, start, end, n)


ZAP_BUGS: Mapping[str, type[ZapWork]] = {"bug-21": FreesHugePagesFirst}
GATHER_BUGS: Mapping[str, type[LinkedGather]] = {
    "bug-24": FlushesItsOwnOnly,
    "bug-25": TablesAtOnce,
    "bug-26": TablesBeforeTheFlush,
    "bug-27": NoBatchNoFlush,
    "bug-29": NoBatching,
    "bug-37": DeviceFramesLate,
}
