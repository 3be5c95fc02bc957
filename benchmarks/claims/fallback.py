"""No page for a batch: what unmapping costs then (A4.1, A4.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.claims.machines import BASE, RCU_AGE, clock_of, made, sched_of
from benchmarks.claims.model import Claim, Effort, Row, Verdict

__all__ = ["CLAIM"]

ALONE, FLUSHES, CYCLES, INTERRUPTS = (
    "failed batches",
    "gather flushes",
    "cycles a munmap",
    "cycles in interrupts",
)
FAILS = {"none": 0, "1 in 4": 4, "1 in 2": 2, "all": 1}
TABLES, ROUNDS = 16, 8


class EveryNth:
    """Fails each ``nth`` allocation for ``what``; counts those it failed."""

    def __init__(self, what: str, nth: int) -> None:
        self.what, self.nth = what, nth
        self.asked = self.failed = 0

    def __call__(self, what: str) -> bool:
        if what != self.what or not self.nth:
            return False
        self.asked += 1
        fails = self.asked % self.nth == 0
        self.failed += fails
        return fails


def unmapping(name: str, what: str, nth: int, pages: int) -> dict[str, int]:
    """Several munmaps, the mm on four CPUs: of so many pages in a row, or (``pages`` 0) of one page in each table."""
    machine = made(name, *RCU_AGE.get(name, ()), "kernel.table_free=rcu", cpus=4)
    sched, layout = sched_of(machine), machine.kernel.shape.layout
    step = machine.page_size if pages else layout.span_of(layout.pmd_level)
    length = (pages or TABLES) * step
    mm = machine.new_mm()
    fails = EveryNth(what, nth)
    found = dict.fromkeys((ALONE, FLUSHES, CYCLES, INTERRUPTS), 0)
    rounds: list[int] = []

    def unmaps() -> None:
        machine.kernel.free.fail_next = fails
        for round_ in range(ROUNDS):
            mm.mmap(length, at=BASE, fixed=True, populate=bool(pages))
            for at in () if pages else range(BASE, BASE + length, step):
                machine.cpus[0].store(at, b"x")
            began, interrupts = clock_of(machine, 0), sched.spent_on.get("ipi", 0)
            mm.munmap(BASE, length)
            found[CYCLES] += (clock_of(machine, 0) - began) // ROUNDS
            found[INTERRUPTS] += (sched.spent_on.get("ipi", 0) - interrupts) // ROUNDS
            rounds.append(round_)

    def computes() -> None:
        while len(rounds) < ROUNDS:
            machine.work(500)

    machine.spawn("unmaps", 0, mm, unmaps)
    for cpu in (1, 2, 3):
        machine.spawn(f"computes {cpu}", cpu, mm, computes)
    machine.run_tasks()
    mm.exit()
    return {**found, ALONE: fails.failed, FLUSHES: machine.counters.gather["flushes"]}


def measure(name: str, effort: Effort) -> list[Row]:
    """Batches of tables, then batches of pages."""
    cases: dict[str, Callable[[int], dict[str, int]]] = {
        f"{TABLES} tables": lambda nth: unmapping(name, "table_batch", nth, 0),
        f"{effort.pages[0]:,} pages": partial(
            lambda pages, nth: unmapping(name, "gather", nth, pages), effort.pages[0]
        ),
    }
    return [
        Row(case, {(figure, how): value for how, nth in FAILS.items() for figure, value in run(nth).items()})
        for case, run in cases.items()
    ]


def judge(rows: Sequence[Row]) -> Verdict:
    """The unmapping must go through, and cost more the more often a batch is refused."""
    tables, pages = rows
    least, most = CLAIM.variants[0], CLAIM.variants[-1]
    cost = list(tables.of(CYCLES, CLAIM.variants))
    if not tables.cells[ALONE, most]:
        return Verdict(False, "no page for a batch of tables is ever asked for: tables do not wait here")
    said = (
        f"{TABLES} tables cost {cost[0]:,} cycles with a batch and {cost[-1]:,} without; "
        f"{pages.case} cost {pages.cells[CYCLES, least]:,} and {pages.cells[CYCLES, most]:,}"
    )
    return Verdict(
        cost == sorted(cost) and cost[0] < cost[-1] and tables.cells[ALONE, most] >= TABLES * ROUNDS, said
    )


CLAIM = Claim(
    name="fallback",
    title="When there is no page for a batch",
    statement="""
        Unmapping never needs memory: a table without a batch is freed alone once every CPU has answered an
        interrupt, and pages without a batch are flushed eight at a time. It is dear, and dearer the more often it
        happens, but the cost is bounded by one interrupt for each table.
    """,
    method=f"""
        {ROUNDS} munmaps on CPU 0 of four, three others computing in the same mm; tables wait for RCU. *tables*: one
        page in each, and of the pages that batches of tables ask for none is refused, one in four, one in two, all.
        *pages*: so it is with batches of pages. Cycles in interrupts are all CPUs' together, the sender's waiting
        included.
    """,
    variants=tuple(FAILS),
    figures=(ALONE, FLUSHES, CYCLES, INTERRUPTS),
    measure=measure,
    judge=judge,
)
