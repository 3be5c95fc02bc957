"""How a file's vmas were kept before (``rmap_tree``).

``list``, until Linux 2.6.6: each walk from a page looks at all of them. ``prio-narrow``, 2.6.7 to 2004-11: the priority
search tree that told those beginning alike apart by as many bits of the size as the index had. After an expansion
the same pages are looked for elsewhere, and get a second node instead of joining their equals.
"""

from __future__ import annotations

from collections.abc import Iterator

from polymmu.description.model import KernelChoice
from polymmu.hooks import ArchKernel
from polymmu.mm.linear import last_index
from polymmu.mm.prio_tree import PrioTree, PrioTrees
from polymmu.structs import VmaTree, vm_area_struct

__all__ = ["NarrowPrioTree", "NarrowPrioTrees", "VmaList", "VmaLists"]


class VmaList:
    """In the order they came."""

    def __init__(self) -> None:
        self.visited = 0
        self._vmas: dict[int, vm_area_struct] = {}

    def __len__(self) -> int:
        return len(self._vmas)

    def __contains__(self, vma: vm_area_struct) -> bool:
        return self._vmas.get(vma.slot) is vma

    def __iter__(self) -> Iterator[vm_area_struct]:
        return iter(self._vmas.values())

    def overlapping(self, first: int, last: int) -> Iterator[vm_area_struct]:
        for vma in self._vmas.values():
            self.visited += 1
            if vma.vm_pgoff <= last and last_index(vma) >= first:
                yield vma

    def insert(self, vma: vm_area_struct) -> None:
        self._vmas[vma.slot] = vma

    def insert_after(self, vma: vm_area_struct, prev: vm_area_struct) -> None:
        self._vmas[vma.slot] = vma

    def remove(self, vma: vm_area_struct) -> None:
        del self._vmas[vma.slot]


class VmaLists:
    """A list, in the order the vmas came."""

    since = "to 2.6.6"
    wrong = "each walk looks at every vma of the file"

    def __init__(self, kernel: ArchKernel) -> None:
        pass

    @staticmethod
    def refuses(choice: KernelChoice) -> str:
        return ""

    def new_tree(self) -> VmaTree:
        """A file's."""
        return VmaList()


class NarrowPrioTree(PrioTree):
    """See the top of the module."""

    def size_bits(self) -> int:
        return self.index_bits


class NarrowPrioTrees(PrioTrees):
    """The priority search tree, with as many bits of the size as the index had."""

    since = "2.6.7, to 2004-11"
    wrong = "after the tree has grown, equals are not found again and get a second node"

    def new_tree(self) -> VmaTree:
        return NarrowPrioTree(self.bits)
