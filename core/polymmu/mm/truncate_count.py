"""How far a truncation has come, remembered in each vma: what ``vm_truncate_count`` means, who stores it (A1.4-A1.7).

A count says "done in that call", an address (its low bits are zero) "zapped up to here", 0 "scan it all". So the
numbers of a mapping's calls leap over those that would look like addresses, and when they begin again every vma's is
void. The restart point travels with the struct through splits and forks, so a struct that was freed and reused carries
no stale one; and whoever moves ptes or boundaries while a truncation has let go of the lock says here what that does
to the count. All of it happens below ``i_mmap_lock``.

First reading: ``vma_linked`` to ``vma_moved``.
"""

from __future__ import annotations

from polymmu.hooks import ArchKernel
from polymmu.mm.variant import Variant
from polymmu.structs import address_space, vm_area_struct

__all__ = ["TruncateCounts", "truncate_counts"]


class TruncateCounts(Variant):
    """The rules since Linux 2.6.38, and one more that Linux never had (``vma_resized``)."""

    def __init__(self, kernel: ArchKernel) -> None:
        super().__init__(kernel)
        choice = kernel.description.kernel
        self.numbers = 1 << choice.truncate_count_bits
        self.address_mask = (1 << (choice.truncate_restart_bits or kernel.shape.layout.page_shift)) - 1
        start = choice.truncate_count_start % self.numbers
        self.first_count = start + (start > 0 and self.leaps(start))
        """Where a new file's numbers begin; it has no vmas yet, so that 0 may be one."""

    # ------------------------------------------------------------------ numbers (A1.5)
    def is_restart_addr(self, count: int) -> bool:
        """Whether ``count`` is an address (or 0), not a call's number."""
        return not count & self.address_mask

    def next_count(self, mapping: address_space) -> int:
        """Number a call."""
        count = (mapping.truncate_count + 1) % self.numbers
        if not count:
            self.reset(mapping)
        if self.leaps(count):
            count += 1
        mapping.truncate_count = count
        return count

    def leaps(self, count: int) -> bool:
        """Whether no call may have this number."""
        return self.is_restart_addr(count)

    def reset(self, mapping: address_space) -> None:
        """The numbers begin again: those in the vmas are void."""
        for vma in (*mapping.i_mmap, *mapping.i_mmap_nonlinear.values()):
            vma.vm_truncate_count = 0

    # ------------------------------------------------------------------ what others do to vmas (A1.7)
    def vma_copied(self, copy: vm_area_struct, vma: vm_area_struct) -> None:
        """A struct was copied, without the lock: whoever links the copy stores its count."""

    def vma_linked(self, vma: vm_area_struct, mapping: address_space) -> None:
        """A new vma: there is nothing to scan yet, and later faults check the file's size."""
        vma.vm_truncate_count = mapping.truncate_count

    def vma_forked(self, child: vm_area_struct, parent: vm_area_struct) -> None:
        """A child's vma, linked behind its parent's: its ptes come afterwards, from what is left in the parent."""
        child.vm_truncate_count = parent.vm_truncate_count

    def vma_split(self, piece: vm_area_struct, vma: vm_area_struct) -> None:
        """``piece`` takes over ptes at their old addresses."""
        piece.vm_truncate_count = vma.vm_truncate_count

    def vma_imports(self, vma: vm_area_struct, giver: vm_area_struct) -> None:
        """``vma`` gets ptes of a neighbour: under another count, the truncation that owns either scans it again."""
        if giver.vm_truncate_count != vma.vm_truncate_count:
            vma.vm_truncate_count = 0

    def vma_resized(self, vma: vm_area_struct) -> None:
        """A restart address at or above the end says nothing of ``vma``, but the next call would believe it.

        Without this a piece that falls out of one truncation's range escapes the next one (A1.6, last paragraph).
        """
        restart = vma.vm_truncate_count
        if restart >= vma.vm_end and self.is_restart_addr(restart):
            vma.vm_truncate_count = 0

    def vma_moved(self, new_vma: vm_area_struct, vma: vm_area_struct) -> None:
        """Ptes are about to change address, from ``vma`` to ``new_vma``: no restart address holds for them (2011)."""
        new_vma.vm_truncate_count = 0


def truncate_counts(kernel: ArchKernel) -> TruncateCounts:
    """The machine's rules."""
    rules: TruncateCounts = kernel.variants.truncate
    return rules
