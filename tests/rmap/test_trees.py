"""The two trees of a file's vmas (A6.3) against a look at every vma, and against their own rules."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from polymmu.mm.interval_tree import IntervalTree
from polymmu.mm.prio_tree import PrioTree
from polymmu.structs import vm_area_struct
from polymmu_history.vma_trees import NarrowPrioTree
from tests.rmap.vmas import check_interval, check_prio, overlap, pages_of, slots, vma_at

TREES: dict[str, Callable[[], Any]] = {
    "interval": IntervalTree,
    "prio": lambda: PrioTree(64),
    "prio32": lambda: PrioTree(32),
}
CHECKS = {"interval": check_interval, "prio": check_prio, "prio32": check_prio}


# ---------------------------------------------------------------------- against brute force
class Trees(RuleBasedStateMachine):
    """Random inserts (some reach far, so that the prio tree expands), twins, removals and queries."""

    @initialize(kind=st.sampled_from(sorted(TREES)))
    def start(self, kind: str) -> None:
        self.kind = kind
        self.tree = TREES[kind]()
        self.order: list[vm_area_struct] = []
        self.slot = 0

    def _new(self, first: int, last: int) -> vm_area_struct:
        self.slot += 1
        return vma_at(self.slot, first, last)

    @rule(bits=st.sampled_from((2, 3, 6, 31)), data=st.data())
    def insert(self, bits: int, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, (1 << bits) - 1))
        last = data.draw(st.integers(first, (1 << bits) - 1))
        vma = self._new(first, last)
        self.tree.insert(vma)
        self.order.append(vma)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(self.order))
        child = self._new(*pages_of(parent))
        self.tree.insert_after(child, parent)
        self.order.append(child)
        met = slots(self.tree)
        assert met.index(parent.slot) < met.index(child.slot)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        vma = data.draw(st.sampled_from(self.order))
        self.order.remove(vma)
        before = slots(self.tree)
        self.tree.remove(vma)
        assert vma not in self.tree
        if self.kind == "interval":
            assert slots(self.tree) == [slot for slot in before if slot != vma.slot]

    @rule(first=st.integers(0, 70), length=st.integers(0, 70))
    def query(self, first: int, length: int) -> None:
        last = first + length
        found = slots(self.tree.overlapping(first, last))
        assert sorted(found) == slots(vma for vma in self.order if overlap(vma, first, last))
        everybody = slots(self.tree)
        assert found == [slot for slot in everybody if slot in found]  # the same order

    @invariant()
    def keeps_its_rules(self) -> None:
        if hasattr(self, "tree"):
            CHECKS[self.kind](self.tree)
            assert sorted(slots(self.tree)) == slots(self.order)
            assert all(vma in self.tree for vma in self.order)


Trees.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTrees = Trees.TestCase


@pytest.mark.parametrize("kind", sorted(TREES))
def test_thousands_of_vmas_come_and_go_and_every_query_is_right(kind: str) -> None:
    chance = random.Random(kind)
    tree = TREES[kind]()
    live: dict[int, vm_area_struct] = {}
    for slot in range(3000):
        if live and chance.random() < 0.4:
            tree.remove(live.pop(chance.choice(sorted(live))))
        else:
            first = chance.randrange(1 << chance.choice((4, 10, 20)))
            live[slot] = vma_at(slot, first, first + chance.choice((0, 3, 100)))
            tree.insert(live[slot])
        if slot % 20 == 0:
            CHECKS[kind](tree)
            low = chance.randrange(1 << 10)
            high = low + chance.choice((0, 50))
            found = sorted(slots(tree.overlapping(low, high)))
            assert found == [slot for slot, vma in live.items() if overlap(vma, low, high)]


# ---------------------------------------------------------------------- order
def test_a_walk_over_the_interval_tree_goes_by_first_page_and_then_by_who_came_first() -> None:
    tree = IntervalTree()
    for slot, (first, last) in enumerate([(5, 9), (2, 2), (5, 5), (2, 8), (0, 1), (5, 7)]):
        tree.insert(vma_at(slot, first, last))
    assert slots(tree) == [4, 1, 3, 0, 2, 5]
    assert slots(tree.overlapping(6, 8)) == [3, 0, 5]


def test_a_child_of_the_interval_tree_stands_right_behind_its_parent() -> None:
    tree = IntervalTree()
    first, second = vma_at(0, 3, 5), vma_at(1, 3, 5)
    tree.insert(first)
    tree.insert(second)
    tree.insert_after(vma_at(2, 3, 5), first)
    tree.insert_after(vma_at(3, 3, 5), first)
    assert slots(tree) == [0, 3, 2, 1]


def test_a_walk_over_the_prio_tree_goes_from_the_furthest_reach_down_left_before_right() -> None:
    """By hand: 3 index bits. Root: heap 7, the smaller radix (0). Bit 2 of the radix then says left or right."""
    tree = PrioTree(32)
    for slot, (first, last) in enumerate([(0, 7), (4, 7), (1, 2), (6, 6), (3, 5)]):
        tree.insert(vma_at(slot, first, last))
    assert tree.index_bits == 3
    # Left of (0, 7): (3, 5), under it (1, 2). Right: (4, 7), under it (6, 6).
    assert slots(tree) == [0, 4, 2, 1, 3]
    assert slots(tree.overlapping(6, 6)) == [0, 1, 3]


def test_of_equal_reach_the_one_that_begins_earlier_is_above() -> None:
    tree = PrioTree(32)
    late, early = vma_at(0, 5, 7), vma_at(1, 2, 7)
    tree.insert(late)
    tree.insert(early)
    assert slots(tree) == [1, 0]


# ---------------------------------------------------------------------- vm_set
def test_twins_follow_the_one_in_the_tree_and_a_list_members_child_follows_it_directly() -> None:
    """A6.3, add twin: behind the tree node at the tail; behind a member right after it."""
    tree = PrioTree(64)
    vmas = [vma_at(slot, 4, 6) for slot in range(6)]
    tree.insert(vmas[0])
    tree.insert(vmas[1])  # becomes the head
    tree.insert_after(vmas[2], vmas[0])  # the tree node has a head: to the tail
    tree.insert_after(vmas[3], vmas[1])  # the head is a list member: right behind it
    tree.insert_after(vmas[4], vmas[2])
    tree.insert_after(vmas[5], vmas[3])
    assert slots(tree) == [0, 1, 3, 5, 2, 4]


def test_the_head_takes_the_place_of_a_tree_node_that_leaves() -> None:
    tree = PrioTree(64)
    vmas = [vma_at(slot, 4, 6) for slot in range(3)]
    other = vma_at(3, 0, 9)
    for vma in (*vmas, other):
        tree.insert(vma)
    assert slots(tree) == [3, 0, 1, 2]
    tree.remove(vmas[0])
    assert slots(tree) == [3, 1, 2]
    tree.remove(vmas[1])
    tree.remove(vmas[2])
    assert slots(tree) == [3]
    check_prio(tree)


# ---------------------------------------------------------------------- index bits
def test_index_bits_fit_the_furthest_page_never_shrink_and_start_again_when_the_tree_is_empty() -> None:
    tree = PrioTree(64)
    small, large = vma_at(0, 0, 1), vma_at(1, 3, 40)
    tree.insert(small)
    assert tree.index_bits == 1
    tree.insert(large)
    assert tree.index_bits == 6
    tree.remove(large)
    assert tree.index_bits == 6
    tree.remove(small)
    assert tree.index_bits == 1


def test_an_expansion_chains_the_roots_it_removes_to_the_left() -> None:
    """Three levels at once: the new node on top, then the two furthest of the old tree, then the rest of it."""
    tree = PrioTree(64)
    for slot, (first, last) in enumerate([(0, 1), (1, 1), (0, 0), (2, 3), (3, 3)]):
        tree.insert(vma_at(slot, first, last))
    assert tree.index_bits == 2
    tree.insert(vma_at(5, 30, 31))
    assert tree.index_bits == 5
    top = tree.root
    assert top is not None
    spine: list[tuple[int, int]] = []
    node = top.left
    while node is not None and len(spine) < 3:
        assert node.parent is not None
        spine.append((node.radix, node.heap))
        node = node.left
    assert spine == [(2, 3), (3, 3), (0, 1)]
    check_prio(tree)


def test_an_expansion_that_empties_the_tree_on_the_way_begins_with_one_bit_again() -> None:
    tree = PrioTree(64)
    tree.insert(vma_at(0, 0, 0))
    tree.insert(vma_at(1, 1, (1 << 40) - 1))
    assert tree.index_bits == 40
    assert slots(tree) == [1, 0]
    check_prio(tree)


@pytest.mark.parametrize("kind", [PrioTree, NarrowPrioTree])
def test_what_is_told_apart_by_size_is_found_again_after_an_expansion(kind: type[PrioTree]) -> None:
    """Corpus 60, the sibling of 2004-11. Four bits tell four vmas apart on the way to page 0; below them are those
    that begin there, by size: 10, 9 and 8 right of 11, for their bit 3 is set. After an expansion to five bits the
    narrow tree asks for bit 4 there, goes left, and enters the same pages a second time."""
    tree = kind(64)
    wanted = [(8, 15), (4, 14), (2, 13), (1, 12), (0, 11), (0, 10), (0, 9), (0, 8)]
    for slot, (first, last) in enumerate(wanted):
        tree.insert(vma_at(slot, first, last))
    assert tree.index_bits == 4
    tree.insert(vma_at(8, 0, 16))
    assert tree.index_bits == 5
    for slot, (first, last) in enumerate(wanted, start=10):
        tree.insert(vma_at(slot, first, last))
    nodes = [tree.root]
    for node in nodes:
        assert node is not None
        nodes += [child for child in (node.left, node.right) if child is not None]
    assert len(nodes) == (9 if kind is PrioTree else 12)


# ---------------------------------------------------------------------- height and width
@pytest.mark.parametrize("bits", [32, 64])
def test_the_whole_width_of_an_index_can_be_used(bits: int) -> None:
    tree = PrioTree(bits)
    top = (1 << bits) - 1
    wanted = [(0, top), (top, top), (top - 1, top - 1), (0, 0), (1 << bits - 1, top), (0, 1)]
    for slot, (first, last) in enumerate(wanted):
        tree.insert(vma_at(slot, first, last))
    assert tree.index_bits == bits
    check_prio(tree)
    assert sorted(slots(tree.overlapping(top, top))) == [0, 1, 4]
    assert sorted(slots(tree.overlapping(0, 0))) == [0, 3, 5]


def test_a_prio_tree_is_no_higher_than_its_bits_however_many_begin_alike() -> None:
    tree = PrioTree(32)
    for slot in range(2000):
        tree.insert(vma_at(slot, 0, slot))
    assert tree.index_bits == 11
    assert check_prio(tree) <= 11 + 32


def test_an_interval_tree_is_no_higher_than_a_red_black_tree_could_be() -> None:
    tree = IntervalTree()
    for slot in range(2000):
        tree.insert(vma_at(slot, slot, slot + 3))
    assert check_interval(tree) <= 2 * math.log2(2001)
    for slot in range(0, 2000, 2):
        tree.remove(next(tree.overlapping(slot + 3, slot + 3)))
    assert check_interval(tree) <= 2 * math.log2(1001)


def test_a_query_looks_at_few_vmas_of_many() -> None:
    for kind, make in TREES.items():
        tree = make()
        for slot in range(10_000):
            tree.insert(vma_at(slot, slot * 2, slot * 2))
        before = tree.visited
        assert slots(tree.overlapping(8_000, 8_001)) == [4_000]
        assert tree.visited - before < 64, kind


@pytest.mark.parametrize("kind", sorted(TREES))
def test_a_vma_whose_pages_changed_in_the_tree_is_not_in_it(kind: str) -> None:
    """A6.3: remove and reinsert, or the index is corrupt (the split race of 2003)."""
    tree = TREES[kind]()
    vma = vma_at(0, 4, 9)
    tree.insert(vma)
    assert vma in tree
    vma.vm_pgoff += 1
    assert vma not in tree
