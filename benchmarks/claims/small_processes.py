"""What page tables cost small processes that come and go: three generations of freeing them (A3.1).

The sequences are those of lmbench's lat_proc in kind, not its programs: fork and exit; fork, exec and exit; a shell
that runs such a program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.claims.machines import clock_of, made
from benchmarks.claims.model import Claim, Effort, Row, Verdict
from polymmu.machine import FileHandle, Mm

__all__ = ["CLAIM"]

RELEASES = {
    "2.6.10": "clear_page_tables",
    "2.6.11": "clear_page_range",
    "2.6.12": "vma_list",
}
"""Whole releases, and how each frees page tables."""
NEWEST = list(RELEASES)[-1]
ENTRIES, FREEING, FLUSHES, CYCLES = "entries visited", "cycles of that", "gather flushes", "cycles in all"
LIBRARIES = 3


class Box:
    """A machine with a file of everything that programs are made of."""

    def __init__(self, name: str, release: str, preempt: bool) -> None:
        self.machine = made(
            name, f"kernel.release={release}", f"kernel.preempt={str(preempt).lower()}", driver="solo"
        )
        self.page = self.machine.page_size
        self.image: FileHandle = self.machine.new_file(64 * self.page)

    def program(self, old: Mm) -> Mm:
        """exec: text, data, heap, and for each library text and data; a page of each is used, some things unmapped."""
        page, cpu = self.page, self.machine.cpus[0]
        mm = old.exec(arguments=2, stack_shift=7 * page)
        cpu.switch_mm(mm)
        places = [
            mm.mmap(16 * page, prot, file=self.image) for _ in range(1 + LIBRARIES) for prot in ("rx", "rw")
        ]
        cache = mm.mmap(8 * page, "r", file=self.image)  # ld.so's cache: read and unmapped
        cpu.load(cache, 1)
        mm.munmap(cache, 8 * page)
        mm.brk(mm.brk() + 4 * page)
        for at in places[1::2]:
            cpu.store(at, b"x")
        for at in places[::2]:
            cpu.fetch(at, 1)
        cpu.store(self.machine.stack_top - 10 * page, b"x")
        return mm

    def fork(self, mm: Mm) -> Mm:
        """A child that runs, and writes to its stack."""
        child = mm.fork()
        self.machine.cpus[0].switch_mm(child)
        self.machine.cpus[0].store(self.machine.stack_top - 10 * self.page, b"c")
        return child

    def back(self, mm: Mm) -> None:
        """The parent runs again."""
        self.machine.cpus[0].switch_mm(mm)


def fork_exit(box: Box, mm: Mm) -> None:
    """A child that does next to nothing."""
    box.fork(mm).exit()
    box.back(mm)


def fork_exec_exit(box: Box, mm: Mm) -> None:
    """A child that becomes another program."""
    box.program(box.fork(mm)).exit()
    box.back(mm)


def shell(box: Box, mm: Mm) -> None:
    """A child that becomes a shell, whose child becomes another program."""
    sh = box.program(box.fork(mm))
    fork_exec_exit(box, sh)
    sh.exit()
    box.back(mm)


SEQUENCES: dict[str, Callable[[Box, Mm], None]] = {
    "fork, exit": fork_exit,
    "fork, exec, exit": fork_exec_exit,
    "sh": shell,
}


def ran(name: str, release: str, sequence: str, preempt: bool) -> dict[str, int]:
    """One round of ``sequence``, of which another round came before."""
    box = Box(name, release, preempt)
    machine = box.machine
    mm = box.program(machine.new_mm())
    work = SEQUENCES[sequence]
    work(box, mm)

    def now() -> dict[str, int]:
        return {
            ENTRIES: machine.counters.visited.get("free_pgtables", 0),
            FREEING: machine.kernel.sched.spent_on.get("free_pgtables", 0),
            FLUSHES: machine.counters.gather["flushes"],
            CYCLES: clock_of(machine, 0),
        }

    before = now()
    work(box, mm)
    return {figure: after - before[figure] for figure, after in now().items()}


def measure(name: str, effort: Effort) -> list[Row]:
    """Each sequence, without preemption and with it."""
    return [
        Row(
            f"{sequence}{'; preemption' if preempt else ''}",
            {
                (figure, release): value
                for release in RELEASES
                for figure, value in ran(name, release, sequence, preempt).items()
            },
        )
        for preempt in (False, True)
        for sequence in SEQUENCES
    ]


def judge(rows: Sequence[Row]) -> Verdict:
    """Without preemption: 2.6.11 must be slower than 2.6.10 somewhere and faster nowhere, 2.6.12 slower nowhere."""
    off, on = rows[: len(SEQUENCES)], rows[len(SEQUENCES) :]
    cycles = [[row.cells[CYCLES, release] for release in RELEASES] for row in off]
    lost = any(ranges > whole for whole, ranges, _ in cycles)
    holds = lost and all(ranges >= whole >= vmas for whole, ranges, vmas in cycles)
    last, blocks = off[-1].cells, on[-1].cells
    entries = ", ".join(f"{entries:,}" for entries in off[-1].of(ENTRIES, CLAIM.variants))
    took = ", ".join(f"{taken:,}" for taken in cycles[-1])
    flushes = f"{blocks[FLUSHES, NEWEST]:,} flushes instead of {last[FLUSHES, NEWEST]:,}"
    return Verdict(
        holds,
        f"{off[-1].case} visits {entries} entries by age and takes {took} cycles"
        f"{'' if lost else ', so 2.6.11 loses nothing here'}; with preemption {flushes}, and "
        f"{blocks[CYCLES, NEWEST] - last[CYCLES, NEWEST]:,} cycles more",
    )


CLAIM = Claim(
    name="small-processes",
    title="Small processes that come and go",
    statement="""
        Freeing page tables by address made fork, exec and exit of small processes slower in 2.6.11, as every exit
        walked all of user space and upper tables; going by the list of vmas (2.6.12) brings them back to where 2.6.10
        had them, or below. With preemption, blocks of 8 pages take some of that away again.
    """,
    method="""
        Whole releases: 2.6.10 frees by `clear_page_tables`, 2.6.11 by `clear_page_range`, 2.6.12 by `vma_list`. All
        three zap by address below the lock of all page tables, in blocks of 1,024 pages or, with preemption, 8, and
        flush after each. Second round of each sequence; a program has eight small mappings of a file, one that comes
        and goes, heap and stack. That every entry takes the same time is the model's, and so is what it makes of the
        caveat: beginning a block is free, and so is flushing an mm that no CPU runs any more, as at every exit here.
    """,
    variants=tuple(RELEASES),
    figures=(ENTRIES, FREEING, FLUSHES, CYCLES),
    measure=measure,
    judge=judge,
)
