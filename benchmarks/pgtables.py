"""What freeing page tables costs small processes that come and go: three generations on every architecture (A3.1).

The sequences are those of lmbench's lat_proc in kind, not its programs: fork and exit; fork, exec and exit; a shell
that runs such a program. Every figure is counted, in the model's cycles, and the same on every computer.

Until 2.6.11 exit walked all of user space; free_pgtables looks where vmas were. The change's own caveat, that zapping 8
pages at a time with preemption lost more than that, needs the unmap loop of its time: today's takes no notice of
``zap_block`` but to look whether somebody waits, so its two rows are alike.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from benchmarks.arches import MACHINES
from benchmarks.measure import Row
from benchmarks.workloads import Lab
from polymmu.machine import FileHandle, Machine, Mm

__all__ = ["GENERATIONS", "SEQUENCES", "Figures", "pgtables", "run_sequence"]

GENERATIONS = ("vma_list", "clear_page_range", "clear_page_tables")
PREEMPT = {"off": 1024, "on": 8}
"""Pages zapped between two looks at whether somebody waits (ZAP_BLOCK_SIZE)."""
LIBRARIES = 3


@attrs.frozen
class Figures:
    """What a sequence cost."""

    entries: int
    """Table entries read to find tables to free."""
    freeing: int
    """Cycles of that."""
    cycles: int
    """Cycles of everything."""


class Box:
    """A machine with a file of everything that programs are made of."""

    def __init__(self, name: str, generation: str, zap_block: int) -> None:
        sets = [f"kernel.free_pgtables={generation}", f"kernel.zap_block={zap_block}", "memory=256 MiB"]
        self.machine = Machine.from_file(name, sets=sets)
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
    "fork + exit": fork_exit,
    "fork + exec + exit": fork_exec_exit,
    "sh": shell,
}


def run_sequence(name: str, generation: str, sequence: str, zap_block: int = PREEMPT["off"]) -> Figures:
    """One round of ``sequence`` on machine ``name``, of which another round came before."""
    box = Box(name, generation, zap_block)
    machine = box.machine
    sched = machine.kernel.sched
    mm = box.program(machine.new_mm())
    work = SEQUENCES[sequence]
    work(box, mm)

    def now() -> tuple[int, int, int]:
        entries = machine.counters.visited.get("free_pgtables", 0)
        return entries, sched.spent_on.get("free_pgtables", 0), sched.clock[0]

    before = now()
    work(box, mm)
    return Figures(*(after - start for start, after in zip(before, now(), strict=True)))


def pgtables(lab: Lab) -> list[Row]:
    """Rows in cycles of a sequence: by architecture and generation, and with preemption on one architecture."""
    rows: list[Row] = []
    for sequence in SEQUENCES:
        for name in MACHINES:
            now = run_sequence(name, GENERATIONS[0], sequence)
            for generation in GENERATIONS:
                figures = run_sequence(name, generation, sequence)
                rows.append(
                    row(f"{sequence}, {name}, {generation}", figures, now.cycles, f"{GENERATIONS[0]}'s")
                )
    for generation in GENERATIONS:
        for preempt, block in PREEMPT.items():
            figures = run_sequence(MACHINES[0], generation, "sh", block)
            off = run_sequence(MACHINES[0], generation, "sh").cycles
            rows.append(
                row(f"sh, {MACHINES[0]}, {generation}, preempt {preempt}", figures, off, "preempt off's")
            )
    return rows


def row(what: str, figures: Figures, against: int, reference: str) -> Row:
    """A row of the table."""
    return Row(
        group="pgtables",
        what=what,
        figure=figures.cycles,
        unit="cycles",
        ratio=figures.cycles / against,
        reference=reference,
        note=f"{figures.entries:,} entries visited, {figures.freeing:,} cycles of it",
    )
