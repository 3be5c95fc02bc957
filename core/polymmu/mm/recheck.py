"""Whether a page of a file that a fault has found may still be mapped, looked at below the table lock (A1.8).

Between finding the page and mapping it the fault may sleep, and a truncation may come and go. Truncation writes the
size, unmaps, then takes the page out of the cache. So a page that is inside the file and in its cache may be mapped:
truncation has yet to come this way. Who punches a hole does the same with ``mapping.hole`` in place of the size.
"""

from __future__ import annotations

from polymmu.hooks import ArchKernel
from polymmu.mm.pagecache import is_cached_at
from polymmu.mm.variant import Variant
from polymmu.structs import File

__all__ = ["CacheRecheck", "recheck_of"]


class CacheRecheck(Variant):
    """Ask the cache and the file's size."""

    since = "never in Linux: what a page lock held by the fault comes to"
    wrong = ""

    def begin(self, file: File) -> int:
        """Before the fault reads the file's size: what ``may_map`` will want to know. Waits until no hole is being
        punched; may sleep."""
        mapping = file.mapping
        if mapping.hole is not None:
            mapping.invalidate_lock.down_read()
            mapping.invalidate_lock.up_read()
        return 0

    def is_wanted(self, file: File, index: int) -> bool:
        """With the page found or read: whether to go on. ``may_map`` asks all that there is to ask."""
        return True

    def may_map(self, file: File, index: int, cached: int, private: bool, begun: int) -> bool:
        """With the table lock held: whether page ``index``, found as frame ``cached``, or its ``private`` copy may be
        mapped. False: the fault begins anew."""
        inside = index * self.kernel.shape.layout.page_size < file.size
        hole = file.mapping.hole
        punched = hole is not None and hole[0] <= index <= hole[1]
        return inside and not punched and is_cached_at(file.mapping, index, cached)


def recheck_of(kernel: ArchKernel) -> CacheRecheck:
    """The machine's."""
    strategy: CacheRecheck = kernel.variants.fault_recheck
    return strategy
