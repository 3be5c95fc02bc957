"""Depth-first search over the interleavings of a program that can be run again and again.

A node is a moment at which somebody had to be picked. The search runs the program along the picks of its stack, lets
it go on by the default schedule (stay with who runs), and adds nodes as it goes; then it backs up to the last node
with something left to try. What is left to try is what the kinds of search differ in:

* ``naive``: everybody who could go on;
* ``sleep``: likewise, but nobody whose operation was tried at a node and has met nothing since that it does not
  commute with (sleep sets);
* ``dpor``: source sets and sleep sets (Abdulla, Aronis, Jonsson and Sagonas, 2014): only a task whose operation raced
  with what was done instead;
* ``bounded``: everybody, as long as no more than ``preemptions`` times a task was left that could have gone on. Never
  with sleep sets, which would not be sound.

Outcomes of choices are tried one after another at their node.

Nodes at the bottom of the stack may be somebody else's (``frozen``): the search stays below them, and asks where it
finds that something is to be tried at one (``requests``).

First reading: ``Search.pick``, ``Search.back_up``; then ``_race``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from polymmu.exploration.happens_before import Trace
from polymmu.exploration.schedule import default_pick
from polymmu.sched.access import Access, commute
from polymmu.sched.picker import Diverged, Halt, Picker

__all__ = ["STRATEGIES", "Blocked", "Later", "Node", "Request", "Search"]

LOOK_AGAIN = 64
"""One of so many executions compares each step with what it was before."""
STRATEGIES = ("dpor", "sleep", "naive", "bounded")


class Blocked(Halt):
    """Everybody who could go on sleeps: what follows was seen elsewhere."""


@attrs.define(eq=False, slots=True)
class Node:
    """One pick. ``tried``: tasks whose turn here is over, with what they did; ``sleep``: the same from above."""

    current: int
    able: tuple[int, ...]
    sleep: dict[int, tuple[Access, ...]]
    chosen: int
    to_try: list[int]
    before: int = 0
    """Preemptions until here."""
    kind: str = ""
    value: int = 0
    options: int = 1
    did: tuple[Access, ...] = ()
    tried: dict[int, tuple[Access, ...]] = attrs.field(factory=dict)
    began: int = 0
    """Executions when the present branch was begun."""
    sizes: list[int] = attrs.field(factory=list)
    """Executions of each branch that is done."""

    @property
    def preemptions(self) -> int:
        """Until here, with this pick."""
        return self.before + (self.chosen != self.current and self.current in self.able)

    @property
    def untried(self) -> int:
        """How many branches are left, as far as is known."""
        tasks = sum(task not in self.tried and task != self.chosen for task in self.to_try)
        return tasks + self.options - self.value - 1


class Later:
    """How large the later branches of nodes are beside the first: sums over branches of nodes that are done.

    Whoever is tried later has more tasks asleep below, so it makes a difference.
    """

    def __init__(self, sums: Iterable[float] = (0, 0, 0, 0, 0)) -> None:
        self.size, self.first, self.size_squared, self.product, self.first_squared = sums

    @property
    def sums(self) -> list[float]:
        """For a file."""
        return [self.size, self.first, self.size_squared, self.product, self.first_squared]

    def note(self, sizes: Sequence[int]) -> None:
        """Branches of one node, in order."""
        first = sizes[0]
        for size in sizes[1:]:
            self.size += size
            self.first += first
            self.size_squared += size * size
            self.product += size * first
            self.first_squared += first * first

    @property
    def ratio(self) -> tuple[float, float]:
        """Of a later branch to the first, and the variance of that; of nothing, 1 and 1."""
        if not self.first:
            return 1.0, 1.0
        ratio = self.size / self.first
        missed = self.size_squared - 2 * ratio * self.product + ratio**2 * self.first_squared
        return ratio, max(missed, 0.0) / self.first_squared


Request = tuple[int, tuple[int, ...], int]
"""At this node, unless one of these tasks is tried there anyway, try this one."""


class Search(Picker):
    """A picker that covers everything, one execution after another; ``back_up`` between two."""

    def __init__(self, strategy: str = "dpor", preemptions: int = 0) -> None:
        assert strategy in STRATEGIES
        self.strategy = strategy
        self.bound = preemptions
        self.stack: list[Node] = []
        self.executions = 0
        self.blocked = 0
        self.frozen = 0
        self.requests: dict[Request, None] = {}
        self.later = Later()
        self.sleeps = strategy in ("dpor", "sleep")
        self._trace = Trace()
        self._depth = 0
        self.begin()

    def begin(self) -> None:
        """Be ready for an execution along the stack."""
        self._known = len(self.stack) - 1
        """Steps that come again; their races were seen."""
        self._kept = min(self._known, self._depth or -1)
        """Those of them that were done here, not only heard of."""
        self._depth = 0
        self._ran_into_sleep = False
        self._trace.go_back(max(self._kept, 0))

    # ------------------------------------------------------------------ during an execution
    def comes_again(self) -> Sequence[Node]:
        """See ``Picker``. Now and then everything is looked at again: it must be what it was."""
        if self._kept <= 0 or not self.executions % LOOK_AGAIN:
            return ()
        self._depth = self._kept
        return self.stack[: self._kept]

    def spawned(self, task: int) -> None:
        """See ``Picker``."""
        if self.strategy == "dpor" and self._depth > self._kept:
            self._trace.spawn(task)

    def pick(self, current: int, able: Sequence[int]) -> int:
        """See ``Picker``."""
        if self._depth < len(self.stack):
            node = self.stack[self._depth]
            if node.able != tuple(able):
                raise Diverged(f"step {self._depth}: {node.able} could go on, now {tuple(able)}")
        else:
            node = self._new_node(current, able)
            self.stack.append(node)
        self._depth += 1
        return node.chosen

    def _new_node(self, current: int, able: Sequence[int]) -> Node:
        sleep: dict[int, tuple[Access, ...]] = {}
        parent = self.stack[-1] if self.stack else None
        if parent is not None and self.sleeps:
            for asleep in (parent.sleep, parent.tried):
                for task, accesses in asleep.items():
                    if task != parent.chosen and commute(accesses, parent.did):
                        sleep[task] = accesses
        awake = [task for task in able if task not in sleep]
        if not awake:
            self._ran_into_sleep = True
            raise Blocked("everybody sleeps")
        chosen = default_pick(current, awake)
        used = parent.preemptions if parent is not None else 0
        to_try = [chosen]
        if self.strategy in ("naive", "sleep") or (
            self.strategy == "bounded" and (current not in able or used < self.bound)
        ):
            to_try += [task for task in awake if task != chosen]
        return Node(current, tuple(able), sleep, chosen, to_try, used, began=self.executions)

    def choose(self, options: int) -> int:
        """See ``Picker``."""
        node = self.stack[self._depth - 1]
        if node.options not in (1, options):
            raise Diverged(f"step {self._depth}: a choice of {node.options} has {options} outcomes now")
        node.options = options
        return node.value

    def happened(self, task: int, kind: str, what: object, accesses: Sequence[Access]) -> None:
        """See ``Picker``."""
        node = self.stack[self._depth - 1]
        if node.kind and (node.kind, node.chosen) != (kind, task):
            raise Diverged(f"step {self._depth}: task {node.chosen} did '{node.kind}', now {task} '{kind}'")
        did = tuple(accesses)
        if self._depth <= self._kept:
            if node.did != did:
                raise Diverged(
                    f"step {self._depth}: '{kind}' of task {task} touched other things than before"
                )
            return
        node.kind = kind
        node.did = did
        if self.strategy == "dpor":
            index = len(self._trace)
            races = self._trace.add(task, did)
            for earlier in races if index >= self._known else ():
                self._race(earlier, index, task)

    def stuck(self, blocked: Sequence[tuple[int, Sequence[Access]]]) -> None:
        """See ``Picker``."""
        if self.strategy == "dpor":
            for task, accesses in blocked:
                for earlier in self._trace.blocked(task, accesses):
                    self._race(earlier, len(self._trace), task)

    def _race(self, earlier: int, later: int, task: int) -> None:
        """Step ``later`` of ``task`` could have come before step ``earlier``: see that it will.

        That takes one of the tasks that can begin such an order. If one of them is to be tried there anyway, or was
        tried above, the order is covered.
        """
        trace, node = self._trace, self.stack[earlier]
        first: list[int] = []
        between: list[int] = []
        for step in range(earlier + 1, later):
            if trace.before(earlier, step):
                continue
            owner = trace.tasks[step]
            if owner not in first and not any(trace.before(other, step) for other in between):
                first.append(owner)
            between.append(step)
        if task not in first and not any(self._leads_to(step, later, task) for step in between):
            first.append(task)
        if any(who in node.to_try or who in node.sleep for who in first):
            return
        wanted = task if task in first else first[0]
        # Where its CPU was another's, who could not be made to give it up, its turn was before that one took it.
        at = earlier
        while wanted not in node.able and at:
            at -= 1
            node = self.stack[at]
        if wanted in node.to_try or wanted in node.sleep:
            return
        if at >= self.frozen:
            node.to_try.append(wanted)
        else:  # what is asked for is no promise: it covers nothing yet
            self.requests[at, tuple(first) if at == earlier else (), wanted] = None

    def _leads_to(self, step: int, later: int, task: int) -> bool:
        """Whether ``step`` had to come before step ``later`` of ``task`` (which may never happen)."""
        trace = self._trace
        if later < len(trace):
            return trace.before(step, later)
        return trace.in_past(step, task)

    # ------------------------------------------------------------------ between executions
    def back_up(self) -> bool:
        """Prepare the next execution; False: everything was covered."""
        self.executions += 1
        self.blocked += self._ran_into_sleep
        more = self._next_branch()
        self.begin()
        return more

    def _next_branch(self) -> bool:
        while len(self.stack) > self.frozen:
            node = self.stack[-1]
            node.sizes.append(self.executions - node.began)
            node.began = self.executions
            if node.value + 1 < node.options:
                node.value += 1
                node.tried[node.chosen] = node.tried.get(node.chosen, ()) + node.did
                return True
            node.tried[node.chosen] = node.tried.get(node.chosen, ()) + node.did
            for task in node.to_try:
                if task not in node.tried and task not in node.sleep:
                    node.chosen, node.value, node.options, node.kind = task, 0, 1, ""
                    return True
            self.later.note(node.sizes)
            self.stack.pop()
        return False
