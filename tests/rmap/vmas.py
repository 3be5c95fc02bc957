"""Vmas that map nothing, for trees to hold, and what a tree must answer, by looking at every vma."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

from polymmu.structs import mm_struct, vm_area_struct

MM = cast(mm_struct, SimpleNamespace(layout=SimpleNamespace(page_shift=12)))


def vma_at(slot: int, first: int, last: int) -> vm_area_struct:
    """A vma that maps pages ``first`` to ``last``."""
    return vm_area_struct(slot=slot, vm_mm=MM, vm_start=0, vm_end=last - first + 1 << 12, vm_pgoff=first)


def pages_of(vma: vm_area_struct) -> tuple[int, int]:
    return vma.vm_pgoff, vma.vm_pgoff + (vma.vm_end - vma.vm_start >> 12) - 1


def slots(vmas: Iterable[vm_area_struct]) -> list[int]:
    return [vma.slot for vma in vmas]


def overlap(vma: vm_area_struct, first: int, last: int) -> bool:
    low, high = pages_of(vma)
    return low <= last and first <= high


def check_prio(tree: Any) -> int:
    """The invariants of A6.3, every node; how high the tree is: steps from the root to the lowest node."""
    if tree.root is None:
        assert tree.index_bits == 1
        assert not len(tree)
        return 0
    assert tree.root.parent is None
    seen: set[tuple[int, int]] = set()
    vmas = 0
    highest = 0
    # Of each node: the radix bits that its place says (in overflow: size bits), and how deep it lies.
    todo = [(tree.root, 0, 0, 0)]
    while todo:
        node, depth, radix, size = todo.pop()
        highest = max(highest, depth)
        assert (node.radix, node.heap) not in seen
        seen.add((node.radix, node.heap))
        assert node.heap < 1 << tree.index_bits
        assert node.vmas
        vmas += len(node.vmas)
        assert all(pages_of(vma) == (node.radix, node.heap) for vma in node.vmas)
        known = min(depth, tree.index_bits)
        assert node.radix >> tree.index_bits - known == radix
        over = depth - known
        assert node.heap - node.radix >> tree.bits - over == size
        for right, child in enumerate((node.left, node.right)):
            if child is not None:
                assert child.parent is node
                assert (child.heap, -child.radix) < (node.heap, -node.radix)
                in_radix = depth < tree.index_bits
                todo.append(
                    (
                        child,
                        depth + 1,
                        radix << 1 | right if in_radix else radix,
                        size if in_radix else size << 1 | right,
                    )
                )
    assert vmas == len(tree)
    assert highest <= tree.index_bits + tree.bits
    return highest


def check_interval(tree: Any) -> int:
    """Order, balance and reach of every node; how high the tree is."""

    def check(node: Any, parent: Any) -> tuple[int, int, list[int]]:
        if node is None:
            return 0, -1, []
        assert node.parent is parent
        assert (node.start, node.last) == pages_of(node.vma)
        left_height, left_last, left_starts = check(node.left, node)
        right_height, right_last, right_starts = check(node.right, node)
        assert abs(left_height - right_height) <= 1
        assert node.height == max(left_height, right_height) + 1
        assert node.subtree_last == max(left_last, right_last, node.last)
        return node.height, node.subtree_last, [*left_starts, node.start, *right_starts]

    height, _, starts = check(tree.root, None)
    assert starts == sorted(starts)
    assert len(starts) == len(tree)
    return height
