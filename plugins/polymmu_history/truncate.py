"""Truncation before Linux 2.6.38, and after (A1.3 to A1.6, A1.10).

``no-break`` (2.6.7 to 2.6.9): one walk, the spinlock held throughout. ``restart-vma`` (3 October 2004): the lock is
dropped when somebody wants it; the call remembers one vma by its address, and where it was in it.
``restart-count-2004`` (7 October 2004, in 2.6.11): each vma remembers that itself. ``mutex`` (3.0): the lock may be
slept on, and everything that was there to drop it has gone.

What each gets wrong is known by the number of a bug of the gallery: ``restart-vma`` takes a vma struct in its second
life for the one it stopped in (1); it and ``restart-count-2004`` miss ptes that mremap moves below a restart address
(8) and let two calls at once overwrite each other's (9); ``restart-count-2004`` leaves the restart address in a piece
that fell out of the range, where the next call finds it (98).
"""

from __future__ import annotations

import attrs

from polymmu.description.model import KernelChoice
from polymmu.mm.truncate import RestartCount, Unmapping
from polymmu.mm.zap import zap_page_range
from polymmu.structs import address_space, vm_area_struct

__all__ = ["MutexTruncate", "NoBreak", "RestartCount2004", "RestartVma"]

NEEDS_SPIN = "what it does about the lock it holds is for one that spins; add `i_mmap_lock: spin`"


def spins_or_why(choice: KernelChoice) -> str:
    """Why a generation for a spinlock does not go with this choice; empty where it does."""
    return "" if choice.i_mmap_lock == "spin" else NEEDS_SPIN


class RestartCount2004(RestartCount):
    """Each vma remembers how far it is: done in which call, or an address."""

    since = "2.6.11"
    wrong = (
        "8: equal restart addresses survive a move; 9: two calls at once overwrite each other's; 98: one"
        " is left over in a piece that was cut off"
    )

    second_unmap = False

    @staticmethod
    def refuses(choice: KernelChoice) -> str:
        return spins_or_why(choice)

    def unmap_mapping_range(self, mapping: address_space, first: int, last: int, even_cows: bool) -> None:
        self.unmap(self.call(mapping, first, last, even_cows))

    def looks(self) -> bool:
        """The loop of the time flushes at the end of each block, and is to do so alone, too."""
        return True

    def vma_resized(self, vma: vm_area_struct) -> None:
        """Nobody thought of it (98)."""

    def vma_moved(self, new_vma: vm_area_struct, vma: vm_area_struct) -> None:
        """A restart address was thought to need no care (8)."""
        if new_vma.vm_truncate_count not in (0, vma.vm_truncate_count):
            new_vma.vm_truncate_count = 0


@attrs.define(eq=False)
class RestartingCall(Unmapping):
    """Where the call was when it dropped the lock: in which vma, from where on, and which page of the file that is."""

    restart_vma: vm_area_struct | None = None
    restart_addr: int = 0
    restart_pgoff: int = 0


class RestartVma(RestartCount2004):
    """One restart point for the whole call; the vmas only know whether they are done."""

    since = "3 October 2004, never released"
    wrong = "1: a vma struct in its second life is taken for the one that was left; 8, for certain; 9"

    def leaps(self, count: int) -> bool:
        return not count

    def call(self, mapping: address_space, first: int, last: int, even_cows: bool) -> RestartingCall:
        call = super().call(mapping, first, last, even_cows)
        return RestartingCall(call.mapping, call.first, call.last, call.details)

    def unmap_vma(self, call: Unmapping, vma: vm_area_struct, start: int, end: int) -> bool:
        """A1.3."""
        assert isinstance(call, RestartingCall)
        if vma is call.restart_vma and start < call.restart_addr:
            start = call.restart_addr
            if linear_index(vma, start) != call.restart_pgoff or start >= end:
                # It must be a mapping of its own, made since, or have lost its top: so it was thought.
                vma.vm_truncate_count = call.count
                return False
        while True:
            reached = zap_page_range(vma, start, end - start, call.details)
            wanted = self.need_break(call.mapping.i_mmap_lock)
            complete = reached >= end
            if complete:
                vma.vm_truncate_count = call.count
            elif wanted:
                call.restart_vma, call.restart_addr = vma, reached
                call.restart_pgoff = linear_index(vma, reached)
            if wanted:
                self.give_way(call.mapping.i_mmap_lock)
                return True
            if complete:
                return False
            start = reached


def linear_index(vma: vm_area_struct, addr: int) -> int:
    """The page of its file that ``vma`` shows at ``addr``."""
    return vma.vm_pgoff + ((addr - vma.vm_start) >> vma.vm_mm.layout.page_shift)


class NoBreak(RestartCount2004):
    """One walk. Calls are numbered for the faults alone."""

    since = "2.6.7"
    wrong = "whoever wants i_mmap_lock waits for the whole walk"

    def call(self, mapping: address_space, first: int, last: int, even_cows: bool) -> Unmapping:
        call = super().call(mapping, first, last, even_cows)
        call.details = attrs.evolve(call.details, need_break=None)
        return call

    def leaps(self, count: int) -> bool:
        return False

    def reset(self, mapping: address_space) -> None:
        """No vma has a number."""

    def is_done(self, call: Unmapping, vma: vm_area_struct) -> bool:
        return False

    def unmap_vma(self, call: Unmapping, vma: vm_area_struct, start: int, end: int) -> bool:
        zap_page_range(vma, start, end - start, call.details)
        return False


class MutexTruncate(NoBreak):
    """One walk, which may sleep."""

    since = "3.0"
    wrong = "whoever wants i_mmap_lock waits for the whole walk, and for its holder's sleep"

    second_unmap = True

    @staticmethod
    def refuses(choice: KernelChoice) -> str:
        if choice.i_mmap_lock == "mutex":
            return ""
        return "it sleeps below i_mmap_lock; leave out `i_mmap_lock: spin`"

    def next_count(self, mapping: address_space) -> int:
        return mapping.truncate_count
