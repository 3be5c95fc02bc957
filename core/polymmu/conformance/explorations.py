"""``Explorations``: small races in every interleaving, by the explorer, watched by the sanitizer.

What random runs may miss is covered here up to the order of steps that commute: a walker without locks against the
table that it reads, pages against TLBs that still lead to them, and CPUs that change address spaces meanwhile.
A search that is larger on some architecture than ``LIMITS`` allow covers what it can.
"""

from __future__ import annotations

import attrs

from polymmu.conformance.bench import Bench, NotApplicable, require
from polymmu.conformance.checks import Checks
from polymmu.description.load_scenario import ScenarioFile, load_scenario_text
from polymmu.exploration.columns import told_text
from polymmu.exploration.explorer import Limits, search
from polymmu.exploration.handover import hand_over
from polymmu.exploration.scenario import Explored

__all__ = ["Explorations"]

LIMITS = Limits(random=4, executions=400, seconds=3600, preemptions=1)

ONE_PAGE = """
scenario: 1
name: {name}
setup:
  - mm: a
  - mmap: {{mm: a, at: 16p, length: 1p}}
  - touch: {{mm: a, at: 16p, length: 1p}}
  - mm: b
  - mmap: {{mm: b, at: 16p, length: 1p}}
  - touch: {{mm: b, at: 16p, length: 1p}}
cpus:
{cpus}"""


def scenario(name: str, *cpus: str) -> ScenarioFile:
    """Two mms, ``a`` and ``b``, of one page each at the same place; and what ``cpus`` do."""
    text = ONE_PAGE.format(name=name, cpus="".join(f"  {cpu}\n" for cpu in cpus))
    return load_scenario_text(text, filename=f"the kit's scenario '{name}'")


def explore(bench: Bench, file: ScenarioFile) -> None:
    """Nothing is wrong in any interleaving, else the shortest that breaks something is shown."""
    program = Explored((attrs.evolve(bench.description, cpus=2), bench.arch), file)
    verdict = search(program, limits=LIMITS)
    if verdict.schedule is not None:
        told = hand_over(program, verdict, LIMITS.shrink).told
        require(False, "\n".join([told.outcome.finding, "", *told_text(told)]))


class Explorations(Checks):
    """In every order."""

    def test_no_table_is_freed_under_a_lockless_walk_in_any_order(self, bench: Bench) -> None:
        world = bench.world()
        if not bench.arch.ops.gup_fast_begin(world.kernel.cpus[0], world.machine.new_mm().struct):
            raise NotApplicable("nobody walks its tables without a lock (gup_fast_begin answers no)")
        self._free_tables(bench)
        explore(
            bench,
            scenario(
                "walker",
                "0: {mm: a, do: [{munmap: {at: 16p, length: 1p}}]}",
                "1: {mm: a, do: [{gup_fast: {at: 16p, may: segv}}]}",
            ),
        )

    def test_no_page_is_freed_before_every_cpu_has_forgotten_it_in_any_order(self, bench: Bench) -> None:
        if "pages_freed_early" in bench.deviations:
            raise NotApplicable("it declares that pages are freed early")
        explore(
            bench,
            scenario(
                "dontneed",
                "0: {mm: a, do: [{madvise: {at: 16p, length: 1p, advice: dontneed}}, {load: {at: 16p}}]}",
                "1: {mm: a, do: [{store: {at: 16p}}]}",
            ),
        )

    def test_no_table_is_freed_while_a_cpu_may_walk_it_in_any_order(self, bench: Bench) -> None:
        self._free_tables(bench)
        explore(
            bench,
            scenario(
                "munmap",
                "0: {mm: a, do: [{munmap: {at: 16p, length: 1p}}]}",
                "1: {mm: a, do: [{store: {at: 16p, may: segv}}]}",
            ),
        )

    def test_a_right_that_was_taken_is_used_by_nobody_in_any_order(self, bench: Bench) -> None:
        explore(
            bench,
            scenario(
                "mprotect",
                "0: {mm: a, do: [{mprotect: {at: 16p, length: 1p, prot: r}}, {load: {at: 16p}}]}",
                "1: {mm: a, do: [{store: {at: 16p, may: segv}}]}",
            ),
        )

    def test_a_cpu_that_changes_address_spaces_is_flushed_all_the_same_in_any_order(
        self, bench: Bench
    ) -> None:
        explore(
            bench,
            scenario(
                "switch",
                "0: {mm: a, do: [{mprotect: {at: 16p, length: 1p, prot: r}}]}",
                "1: {mm: a, do: [{store: {mm: b, at: 16p}}, {store: {at: 16p, may: segv}}]}",
            ),
        )

    @staticmethod
    def _free_tables(bench: Bench) -> None:
        if "tables_freed_early" in bench.deviations:
            raise NotApplicable("it declares that tables are freed early")
