"""A file's vmas as a radix priority search tree (A6.3), Linux 2.6.7 to 3.6.

A node stands for all vmas that map the same pages: its first vma and, behind it, the others (Linux: the vm_set).
Two orders hold at once. From the root down the last page mapped (``heap``) never grows; of equal ones the node that
begins earlier is above. And a node at depth d lies left or right below its ancestors by the bits of its first page
(``radix``), highest of ``index_bits`` first; below that depth all begin alike and are told apart by their size, over
the full width of a word (by ``index_bits`` too until 2004-11: what had been placed by fewer bits was not found again
after the tree had expanded).

``index_bits`` suffices for the last page of all and only grows, until the tree is empty: then it is 1 again.

First reading: ``overlapping``, ``_place``; then ``_expand``.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from polymmu.hooks import ArchKernel
from polymmu.mm.variant import Variant
from polymmu.mm.vma import last_index
from polymmu.structs import VmaTree, vm_area_struct

__all__ = ["PrioTree", "PrioTrees"]


@attrs.define(eq=False, slots=True)
class Node:
    """The ``vmas`` that map pages ``radix`` to ``heap``."""

    radix: int
    heap: int
    vmas: list[vm_area_struct]
    left: Node | None = None
    right: Node | None = None
    parent: Node | None = None

    def further_child(self) -> Node | None:
        """The child that reaches further, the left one of equals; None: there is none."""
        left, right = self.left, self.right
        if left is None or right is None:
            return left or right
        return left if left.heap >= right.heap else right

    def hang_left(self, child: Node) -> None:
        """``child`` becomes the left one."""
        self.left = child
        child.parent = self


class PrioTree:
    """See the top of the module, and ``VmaTree``. ``bits``: width of a page index (Linux: BITS_PER_LONG)."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.index_bits = 1
        self.root: Node | None = None
        self.visited = 0
        self._nodes: dict[int, Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, vma: vm_area_struct) -> bool:
        node = self._nodes.get(vma.slot)
        return (
            node is not None
            and vma in node.vmas
            and (node.radix, node.heap) == (vma.vm_pgoff, last_index(vma))
        )

    def __iter__(self) -> Iterator[vm_area_struct]:
        return self.overlapping(0, self.root.heap if self.root is not None else 0)

    def overlapping(self, first: int, last: int) -> Iterator[vm_area_struct]:
        """In pre-order, each node's vmas in theirs."""
        waiting: list[tuple[Node, int, int]] = []
        if self.root is not None and self.root.heap >= first:
            waiting.append((self.root, 0, self.index_bits - 1))
        while waiting:
            node, lowest, bit = waiting.pop()  # ``lowest``: the smallest radix possible from here down
            self.visited += 1
            if node.radix <= last:
                yield from node.vmas
            right, left = node.right, node.left
            if right is not None and right.heap >= first:
                possible = lowest | 1 << bit if bit >= 0 else lowest
                if possible <= last:
                    waiting.append((right, possible, bit - 1))
            if left is not None and left.heap >= first:
                waiting.append((left, lowest, bit - 1))

    # ------------------------------------------------------------------ vmas
    def insert(self, vma: vm_area_struct) -> None:
        """Last of those that map the same pages."""
        node = Node(vma.vm_pgoff, last_index(vma), [])
        node = self._place(node)
        node.vmas.append(vma)
        self._nodes[vma.slot] = node

    def insert_after(self, vma: vm_area_struct, prev: vm_area_struct) -> None:
        """Behind ``prev``, which maps the same pages; right behind it unless ``prev`` is the first of them."""
        node = self._nodes[prev.slot]
        at = node.vmas.index(prev)
        node.vmas.insert(at + 1 if at else len(node.vmas), vma)
        self._nodes[vma.slot] = node

    def remove(self, vma: vm_area_struct) -> None:
        """The next of those that map the same pages stands for them, if there is one."""
        node = self._nodes.pop(vma.slot)
        node.vmas.remove(vma)
        if not node.vmas:
            self._take_out(node)

    # ------------------------------------------------------------------ nodes
    def size_bits(self) -> int:
        """How many bits of the size tell those apart that begin alike."""
        return self.bits

    def _place(self, new: Node) -> Node:
        """Give ``new`` its place; the node that has its pages, which is another one if they were there already."""
        if self.root is None or new.heap >> self.index_bits:
            self._expand(new)
            return new
        node, above = new, self.root
        bit, by_size = self.index_bits - 1, False
        while True:
            if (above.radix, above.heap) == (node.radix, node.heap):
                return above
            if (above.heap, -above.radix) < (node.heap, -node.radix):
                self._replace(above, node)
                node, above = above, node  # what was there goes on looking for a place
            key = node.heap - node.radix if by_size else node.radix
            right = key >> bit & 1
            below = above.right if right else above.left
            if below is None:
                node.left = node.right = None
                node.parent = above
                if right:
                    above.right = node
                else:
                    above.left = node
                return new
            above = below
            bit -= 1
            if bit < 0:
                bit, by_size = self.size_bits() - 1, True

    def _expand(self, new: Node) -> None:
        """Put ``new``, which reaches further than the tree can tell, on top.

        Each bit more is a level more, to whose left everything lies, and one node has to fill it: ``new`` the first,
        then what reaches furthest of the rest.
        """
        if new.heap >> self.index_bits:
            self.index_bits += 1
        lowest = new
        while new.heap >> self.index_bits:
            self.index_bits += 1
            top = self.root
            if top is not None:
                self._take_out(top)
                lowest.hang_left(top)
                lowest = top
        if self.root is not None:
            lowest.hang_left(self.root)
        self.root = new

    def _take_out(self, node: Node) -> None:
        """Everything on the way down by the furthest reach moves up by one."""
        leaf = node
        while (below := leaf.further_child()) is not None:
            leaf = below
        self._link(leaf, None)
        if leaf.parent is None:
            self.index_bits = 1
        while leaf is not node:
            above = leaf.parent
            assert above is not None
            self._replace(above, leaf)
            leaf = above
        node.left = node.right = node.parent = None

    def _replace(self, old: Node, new: Node) -> None:
        """``new`` gets the place of ``old``, with what is below."""
        self._link(old, new)
        new.parent, new.left, new.right = old.parent, old.left, old.right
        for child in (new.left, new.right):
            if child is not None:
                child.parent = new

    def _link(self, old: Node, new: Node | None) -> None:
        """What leads to ``old`` leads to ``new`` from now on."""
        parent = old.parent
        if parent is None:
            self.root = new
        elif parent.left is old:
            parent.left = new
        else:
            parent.right = new


class PrioTrees(Variant):
    """A radix priority search tree: ordered by last page downwards and by the bits of the first page sideways."""

    since = "2.6.7, as here 2004-11"
    wrong = ""

    def __init__(self, kernel: ArchKernel) -> None:
        super().__init__(kernel)
        self.bits = 64 if kernel.shape.limits.va_bits > 32 else 32

    def new_tree(self) -> VmaTree:
        """A file's."""
        return PrioTree(self.bits)
