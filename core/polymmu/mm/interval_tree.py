"""A file's vmas as an interval tree: a balanced tree by first page that knows how far each subtree reaches.

Linux's since 3.7. Iteration is by first page; of vmas that begin alike the one that came later follows, except that
``insert_after`` puts a vma right behind another one, as fork needs it for the child's (A7.5). Linux balances it by
colours; here it is by height, which gives the same order and a tree never higher.

First reading: ``overlapping``, ``insert``; skip ``_rebalance``.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from polymmu.mm.variant import Variant
from polymmu.mm.vma import last_index
from polymmu.structs import VmaTree, vm_area_struct

__all__ = ["IntervalTree", "IntervalTrees"]


@attrs.define(eq=False, slots=True)
class Node:
    """One vma, which maps pages ``start`` to ``last`` of the file; nothing below it maps one after
    ``subtree_last``."""

    vma: vm_area_struct
    start: int
    last: int
    subtree_last: int
    height: int = 1
    left: Node | None = None
    right: Node | None = None
    parent: Node | None = None


class IntervalTree:
    """See the top of the module, and ``VmaTree``."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.visited = 0
        self._nodes: dict[int, Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, vma: vm_area_struct) -> bool:
        node = self._nodes.get(vma.slot)
        return (
            node is not None
            and node.vma is vma
            and node.start == vma.vm_pgoff
            and node.last == last_index(vma)
        )

    def __iter__(self) -> Iterator[vm_area_struct]:
        return self.overlapping(0, self.root.subtree_last if self.root is not None else 0)

    def overlapping(self, first: int, last: int) -> Iterator[vm_area_struct]:
        waiting: list[Node] = []
        node = self.root
        while True:
            while node is not None and node.subtree_last >= first:
                self.visited += 1
                waiting.append(node)
                node = node.left
            if not waiting:
                return
            node = waiting.pop()
            if node.start > last:
                return
            if node.last >= first:
                yield node.vma
            node = node.right

    # ------------------------------------------------------------------ changes
    def insert(self, vma: vm_area_struct) -> None:
        node = self._new_node(vma)
        parent, below = None, self.root
        while below is not None:
            parent, below = below, below.left if node.start < below.start else below.right
        self._attach(node, parent, left=parent is not None and node.start < parent.start)

    def insert_after(self, vma: vm_area_struct, prev: vm_area_struct) -> None:
        parent = self._nodes[prev.slot]
        node = self._new_node(vma)
        if parent.right is None:
            self._attach(node, parent, left=False)
        else:
            self._attach(node, _leftmost(parent.right), left=True)

    def remove(self, vma: vm_area_struct) -> None:
        node = self._nodes.pop(vma.slot)
        leaves = node
        if node.left is not None and node.right is not None:
            leaves = _leftmost(node.right)
            node.vma, node.start, node.last = leaves.vma, leaves.start, leaves.last
            self._nodes[node.vma.slot] = node
        self._put_in_place_of(leaves, leaves.left or leaves.right)
        self._rebalance(leaves.parent)
        if leaves is not node:
            self._rebalance(node)

    def _new_node(self, vma: vm_area_struct) -> Node:
        last = last_index(vma)
        node = Node(vma, vma.vm_pgoff, last, last)
        self._nodes[vma.slot] = node
        return node

    def _attach(self, node: Node, parent: Node | None, *, left: bool) -> None:
        node.parent = parent
        if parent is None:
            self.root = node
        elif left:
            parent.left = node
        else:
            parent.right = node
        self._rebalance(parent)

    def _put_in_place_of(self, old: Node, new: Node | None) -> None:
        parent = old.parent
        if new is not None:
            new.parent = parent
        if parent is None:
            self.root = new
        elif parent.left is old:
            parent.left = new
        else:
            parent.right = new

    # ------------------------------------------------------------------ balance
    def _rebalance(self, node: Node | None) -> None:
        """Something below ``node`` changed, or itself: put heights and reach right from there on up."""
        while node is not None:
            left, right = node.left, node.right
            lean = (left.height if left is not None else 0) - (right.height if right is not None else 0)
            if lean > 1:
                assert node.left is not None
                if _height(node.left.left) < _height(node.left.right):
                    self._rotate_left(node.left)
                node = self._rotate_right(node)
            elif lean < -1:
                assert node.right is not None
                if _height(node.right.right) < _height(node.right.left):
                    self._rotate_right(node.right)
                node = self._rotate_left(node)
            elif not _update(node):
                return
            node = node.parent

    def _rotate_left(self, node: Node) -> Node:
        """The right child takes ``node``'s place, and ``node`` becomes its left one."""
        up = node.right
        assert up is not None
        self._put_in_place_of(node, up)
        node.right, up.left = up.left, node
        if node.right is not None:
            node.right.parent = node
        node.parent = up
        _update(node)
        _update(up)
        return up

    def _rotate_right(self, node: Node) -> Node:
        """The left child takes ``node``'s place, and ``node`` becomes its right one."""
        up = node.left
        assert up is not None
        self._put_in_place_of(node, up)
        node.left, up.right = up.right, node
        if node.left is not None:
            node.left.parent = node
        node.parent = up
        _update(node)
        _update(up)
        return up


def _leftmost(node: Node) -> Node:
    while node.left is not None:
        node = node.left
    return node


def _height(node: Node | None) -> int:
    return node.height if node is not None else 0


def _update(node: Node) -> bool:
    """Take height and reach from the children; whether they changed, which the parent must know."""
    left, right = node.left, node.right
    height, reach = 1, node.last
    if left is not None:
        height = left.height + 1
        reach = max(reach, left.subtree_last)
    if right is not None:
        if right.height >= height:
            height = right.height + 1
        reach = max(reach, right.subtree_last)
    changed = height != node.height or reach != node.subtree_last
    node.height, node.subtree_last = height, reach
    return changed


class IntervalTrees(Variant):
    """Balanced by first page; each subtree knows how far it reaches."""

    since = "3.7"
    wrong = ""

    def new_tree(self) -> VmaTree:
        """A file's."""
        return IntervalTree()
