"""Known bugs of taking a page out of its ptes (``try_to_unmap``), named by their numbers in the corpus."""

from __future__ import annotations

from polymmu.mm.rmap import FlushEach
from polymmu.structs import PG_ANON, mm_struct

__all__ = ["TRY_TO_UNMAP"]


class Bug097(FlushEach):
    """The page is counted in once more, not out."""

    since = "mended 2005-05"
    wrong = "INV-REF"

    def uncount(self, mm: mm_struct, pfn: int) -> None:
        if self.kernel.frames.flags[pfn] & PG_ANON:
            mm.anon_rss += 1
        else:
            mm.file_rss += 1


TRY_TO_UNMAP = {"bug-97": Bug097}
