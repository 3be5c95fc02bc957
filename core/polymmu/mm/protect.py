"""Give the present ptes of a range other rights (mprotect).

Each entry keeps its frame and what hardware noted in it; all else comes from the new protection. A private
writable mapping's protection has no write right, so its pages fault once more at their next store.
"""

from __future__ import annotations

import numpy as np

from polymmu.hardware.entry import EntryFormat
from polymmu.hooks import ArchKernel
from polymmu.mm.tables import pte_lock, pte_unlock, table_runs
from polymmu.structs import EntryRun, vm_area_struct

__all__ = ["change_protection", "kept_bits", "loses_right"]


def change_protection(vma: vm_area_struct, start: int, end: int, prot: int) -> None:
    """Present ptes of [start, end) in ``vma`` get the rights of ``prot``. The caller flushes the TLB afterwards."""
    mm = vma.vm_mm
    kernel: ArchKernel = mm.kernel
    ops = kernel.ops
    pte = kernel.shape.pte
    keep = kept_bits(pte)
    put = prot & ~keep
    ops.flush_cache_range(vma, start, end)
    for ptep, addr, stop in table_runs(mm, start, end):
        n = (stop - addr) >> mm.layout.page_shift
        kernel.events.entries_visited(mm, "protect", n)
        kernel.sched.spend(kernel.description.costs.entry_update * n, "protect")
        pte_lock(mm, ptep)
        ops.enter_lazy_mmu(mm)
        old = ops.ptep_get_and_clear(mm, addr, ptep, n, None)
        present = pte.mapped_in(old)
        ops.set_pte(mm, addr, ptep, np.where(present, old & np.uint64(keep) | np.uint64(put), old))
        ops.leave_lazy_mmu(mm)
        pte_unlock(mm, ptep)
        if loses_right(pte, old[present] & ~np.uint64(keep), put):
            kernel.events.entries_changed(mm, addr, stop, n, "wrprotect")
        kernel.sched.cond_resched()


def kept_bits(pte: EntryFormat) -> int:
    """What a change of rights leaves in an entry: its frame, and what hardware noted."""
    keep = pte.frame_mask | pte.high_frame_mask
    for noted in (pte.accessed, pte.dirty):
        keep |= noted.mask if noted is not None else 0
    return keep


def loses_right(pte: EntryFormat, had: EntryRun, has: int) -> bool:
    """Whether any entry with the rights ``had`` allowed something that one with ``has`` does not."""
    fields = (pte.present, pte.read, pte.write, pte.user, pte.execute)
    return any(
        field.test(bits) and not field.test(has) for bits in np.unique(had).tolist() for field in fields
    )
