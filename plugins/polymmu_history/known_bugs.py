"""Known bugs by their number in the gallery, each one step of a sound generation left out or done wrong.

Where a whole generation was wrong the bug has no name of its own: 1 is ``truncate: restart-vma``, 8, 9 and 98 are
``truncate: restart-count-2004``, 10 is ``mremap: one-page-unlocked``, 43 and 44 are ``mremap: extents-3.2``.
"""

from __future__ import annotations

import numpy as np

from polymmu.description.model import KernelChoice
from polymmu.hooks import ArchKernel
from polymmu.mm.move import Extents, hook_over
from polymmu.mm.pagecache import drop_page_cache
from polymmu.mm.swap import SwapIn
from polymmu.mm.tables import find_entry, read_pte
from polymmu.mm.truncate import RestartCount, Unmapping
from polymmu.sched.locks import Mutex, Spinlock
from polymmu.structs import PG_SWAPCACHE, address_space, mm_struct, vm_area_struct
from polymmu_history.mremap import OnePage

__all__ = ["MREMAP", "SWAP_IN", "TRUNCATE"]


# ------------------------------------------------------------------ truncation
class Bug002(RestartCount):
    """No vma is ever done: with somebody always waiting the first one is scanned for ever."""

    since = "mended 2004-10"
    wrong = "INV-PROG: no end while somebody waits"

    def is_done(self, call: Unmapping, vma: vm_area_struct) -> bool:
        return False


class Bug003(RestartCount):
    """No restart address inside a vma: a block of empty ptes is a block too, and what follows is never reached."""

    since = "mended 2004-10"
    wrong = "INV-PROG: no end while somebody waits"

    @staticmethod
    def refuses(choice: KernelChoice) -> str:
        if choice.unmap_vmas == "blocks":
            return ""
        return "where empty ptes hardly count every round gets further; add `unmap_vmas: blocks`"

    def remember(self, vma: vm_area_struct, reached: int) -> None:
        vma.vm_truncate_count = 0


class Bug004(RestartCount):
    """The numbers begin again, and old ones are taken for the new."""

    since = "mended 2004-10"
    wrong = "pages stay mapped"

    def reset(self, mapping: address_space) -> None:
        """Left out."""


class Bug005(RestartCount):
    """A number that looks like a restart address is used."""

    since = "mended 2004-10"
    wrong = "pages stay mapped"

    def leaps(self, count: int) -> bool:
        return not count


class Bug006(RestartCount):
    """List before tree: a vma that goes from the tree to the list meanwhile is never seen."""

    since = "mended 2004-10"
    wrong = "pages stay mapped"

    def passes(self, call: Unmapping) -> None:
        linear = call.details
        self.list_pass(call)
        call.details = linear
        self.tree_pass(call)


class Bug007a(RestartCount):
    """Ptes that are not scanned come into a vma that is done."""

    since = "mended 2004-10"
    wrong = "pages stay mapped"

    def vma_imports(self, vma: vm_area_struct, giver: vm_area_struct) -> None:
        """Left out."""


class Bug007b(RestartCount):
    """The same by mremap."""

    since = "mended 2004-10"
    wrong = "pages stay mapped"

    def vma_moved(self, new_vma: vm_area_struct, vma: vm_area_struct) -> None:
        """Left out."""


class Bug007c(RestartCount):
    """New vmas begin with an old number, and are scanned for nothing."""

    since = "mended 2004-10"
    wrong = "work for nothing"

    def vma_linked(self, vma: vm_area_struct, mapping: address_space) -> None:
        vma.vm_truncate_count = 0


class Bug007d(RestartCount):
    """What a copied struct brings along, read without the lock, is kept: it may have become void meanwhile."""

    since = "mended 2004-10"
    wrong = "pages stay mapped"

    def vma_copied(self, copy: vm_area_struct, vma: vm_area_struct) -> None:
        copy.vm_truncate_count = vma.vm_truncate_count

    def vma_split(self, piece: vm_area_struct, vma: vm_area_struct) -> None:
        """Left out."""

    def vma_forked(self, child: vm_area_struct, parent: vm_area_struct) -> None:
        """Left out."""


class Bug055(RestartCount):
    """No second unmap: private copies made between the first one and the end of the page stay."""

    since = "mended 2.6.23"
    wrong = "a private copy stays mapped"

    second_unmap = False

    @staticmethod
    def refuses(choice: KernelChoice) -> str:
        if choice.fault_recheck == "page-lock":
            return ""
        return "a fault that asks where the file ends makes no such copy; add `fault_recheck: page-lock`"


class Bug056(RestartCount):
    """What came into the cache while a hole was punched is dropped too, and nobody unmaps it."""

    since = "mended 2.6.21"
    wrong = "a page that is mapped leaves the cache"

    def punch(self, mapping: address_space, first: int, last: int) -> None:
        super().punch(mapping, first, last)
        mapping.hole = None
        self.kernel.sched.cond_resched()
        drop_page_cache(self.kernel, mapping, first, last)


class Bug100(RestartCount):
    """Who waited once asks for ever: the request is never cleared."""

    since = "mended 2005-03"
    wrong = "a break after every block"

    asked: frozenset[Mutex | Spinlock] = frozenset()

    def need_break(self, lock: Mutex | Spinlock) -> bool:
        if self.kernel.sched.need_lockbreak(lock):
            self.asked |= {lock}
        return lock in self.asked or self.kernel.sched.need_resched()


# ------------------------------------------------------------------ mremap
class Bug011a(OnePage):
    """The table is made, which may sleep, below i_mmap_lock."""

    since = "mended 2004-04"
    wrong = "INV-ATOMIC"

    def before_alloc(self, mm: mm_struct, mapping: address_space | None) -> None:
        """Left out."""

    def after_alloc(self, mm: mm_struct, mapping: address_space | None) -> None:
        """It is still held."""


class Bug011b(OnePage):
    """i_mmap_lock is taken back inside the page-table lock."""

    since = "mended 2004-04"
    wrong = "INV-LOCK"

    def after_alloc(self, mm: mm_struct, mapping: address_space | None) -> None:
        if mapping is not None:
            mapping.i_mmap_lock.lock()


class Bug011c(OnePage):
    """What was read before the locks were dropped is moved."""

    since = "mended 2004-04"
    wrong = "a stale pte"

    def __init__(self, kernel: ArchKernel) -> None:
        super().__init__(kernel)
        self.read: dict[int, int] = {}
        """By the mm's slot, whose mmap_lock is held."""

    def get_one_pte_map(self, mm: mm_struct, addr: int) -> int:
        src = super().get_one_pte_map(mm, addr)
        if src >= 0:
            self.read[mm.slot] = read_pte(mm, src)
        return src

    def again(self, mm: mm_struct, old: int) -> int:
        src = find_entry(mm, old)
        self.map(mm, src)
        return src

    def move(self, vma: vm_area_struct, old: int, src: int, new: int, dst: int) -> None:
        mm = vma.vm_mm
        self.kernel.ops.ptep_clear_flush(vma, old, src, 1)
        self.kernel.ops.set_pte(mm, new, dst, np.array([self.read[mm.slot]], dtype=np.uint64))


class Bug011d(OnePage):
    """The new table is unmapped although there is none."""

    since = "mended 2004-04"
    wrong = "maps of tables no longer balance"

    def unmap_nothing(self, mm: mm_struct) -> None:
        self.unmap(mm, 0)


class Bug045(Extents):
    """Whole tables move while walks from pages go on: one that has come down to the table by its old place clears a pte
    there, and flushes the address where the page no longer is."""

    since = "5.0, mended 5.14"
    wrong = "a page is freed that a TLB leads to from the new place"

    def move_table(
        self,
        mapping: address_space | None,
        vma: vm_area_struct,
        new_vma: vm_area_struct,
        level: int,
        old: int,
        new: int,
        into: int,
    ) -> bool:
        return hook_over(vma, level, old, new, into)


# ------------------------------------------------------------------ swap
class Bug086(SwapIn):
    """That it is in the swap cache is enough: it may be there for another slot by now, and its own be another's."""

    since = "mended 2.6.36"
    wrong = "another one's page is mapped"

    def is_page_of(self, pfn: int, slot: int) -> bool:
        return bool(self.kernel.frames.flags[pfn] & PG_SWAPCACHE)


TRUNCATE = {
    "bug-2": Bug002,
    "bug-3": Bug003,
    "bug-4": Bug004,
    "bug-5": Bug005,
    "bug-6": Bug006,
    "bug-7a": Bug007a,
    "bug-7b": Bug007b,
    "bug-7c": Bug007c,
    "bug-7d": Bug007d,
    "bug-55": Bug055,
    "bug-56": Bug056,
    "bug-100": Bug100,
}
MREMAP = {"bug-45": Bug045, "bug-11a": Bug011a, "bug-11b": Bug011b, "bug-11c": Bug011c, "bug-11d": Bug011d}
SWAP_IN = {"bug-86": Bug086}
