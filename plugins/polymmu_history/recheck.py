"""What faults of a file checked before mapping what they had found (A1.8).

``bug-50`` (to July 2003): nothing. ``bug-52`` (what filled a pte from elsewhere, to 2005): that the page is still
cached, and not where the file ends by now.

``count`` (July 2003 to 2.6.22): whether any truncation of the file began meanwhile, by the number of the last one. It
covers what lies beyond the file's new end, for the size is written before the number; a fault in a page that is only
invalidated is not covered (54). ``page-lock`` (2.6.23 on): the page stays locked until it is mapped, and who takes it
out of the cache locks it too. A private copy is another page, which truncation then has to unmap a second time (55).
"""

from __future__ import annotations

from polymmu.description.model import KernelChoice
from polymmu.mm.pagecache import is_cached_at
from polymmu.mm.recheck import CacheRecheck
from polymmu.structs import File

__all__ = ["Bug050", "Bug052", "CountRecheck", "PageLockRecheck"]


class Bug050(CacheRecheck):
    """What was found is mapped."""

    since = "to 2003-07"
    wrong = "a truncation may have dropped it meanwhile"

    def may_map(self, file: File, index: int, cached: int, private: bool, begun: int) -> bool:
        return True


class Bug052(CacheRecheck):
    """Truncation has been here if the page is beyond the end, though it has not dropped it yet."""

    since = "to 2005-02, where a pte was filled by other means than a fault"
    wrong = "a page beyond the end of the file is mapped"

    def may_map(self, file: File, index: int, cached: int, private: bool, begun: int) -> bool:
        return is_cached_at(file.mapping, index, cached)


class CountRecheck(CacheRecheck):
    """Begin anew if any truncation of the file began meanwhile."""

    since = "2003-07"
    wrong = "54: a page that is only invalidated is mapped all the same (to 2.6.22)"

    @staticmethod
    def refuses(choice: KernelChoice) -> str:
        if choice.truncate == "mutex":
            return (
                "truncation with a mutex counts nothing that a fault could check; choose another `truncate`"
            )
        return ""

    def begin(self, file: File) -> int:
        return file.mapping.truncate_count

    def may_map(self, file: File, index: int, cached: int, private: bool, begun: int) -> bool:
        return begun == file.mapping.truncate_count


class PageLockRecheck(CacheRecheck):
    """A private copy is made from a page that is still cached; where the file ends is asked with the page locked, and
    not when the copy is mapped."""

    since = "2.6.23"
    wrong = ""

    @staticmethod
    def refuses(choice: KernelChoice) -> str:
        if choice.truncate in ("no-break", "restart-vma", "restart-count-2004"):
            return (
                f"`truncate: {choice.truncate}` unmaps once, and private copies made meanwhile would stay; "
                "choose a later `truncate`"
            )
        return ""

    def is_wanted(self, file: File, index: int) -> bool:
        """A truncation may have come and gone before the page was read, and is not to be undone."""
        return index * self.kernel.shape.layout.page_size < file.size

    def may_map(self, file: File, index: int, cached: int, private: bool, begun: int) -> bool:
        if private:
            return is_cached_at(file.mapping, index, cached)
        return super().may_map(file, index, cached, private, begun)
