"""The state machine: a family of programs on the CPUs of one machine, one operation at a time and several at once.

Under the timed driver every operation is a task; a batch is several tasks at once, each on pages and with a file of
its own. After each step the mappings are what the model says, in the end all bytes too; then everything exits, and
nothing may be left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import attrs
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from polymmu.machine import Machine
from tests.differential.actor import FILE_PAGES, Actor
from tests.differential.model import Content, Known, Page, Space

__all__ = ["Case", "run", "work"]

WINDOW, HEAP, SLOT = 28, 8, 12
"""Pages of the window, of which the last may be heap, and of the place of each task of a batch."""
LARGEST = 16 << 20
"""Larger huge pages are not tried: there would be too few."""
TASKS = 4

BATCH = (
    *["mmap", "store", "load"] * 2,
    *("munmap", "mprotect", "madvise", "mremap", "remap_file_pages", "truncate", "swap_out", "reclaim"),
    *("gup_fast", "device_stores", "fork_and_look", "fetch", "nonsense"),
)
"""What a task of a batch does."""
CALLS = (
    *BATCH,
    "brk",
    "move_tables",
    "huge_map",
    "huge_use",
    "huge_use",
    "huge_truncate",
    "mremap",
    "mprotect",
)
"""What one program does at a time."""

numbers = st.integers(0, (1 << 16) - 1)
operations = st.tuples(st.sampled_from(BATCH), numbers, numbers, numbers)


@attrs.frozen
class Case:
    """A machine: its file, what is set in it, and who says what runs when. ``excused``: invariants that it
    is known to break."""

    machine: str
    sets: Sequence[str] = ()
    driver: str = "solo"
    cpus: int = 1
    excused: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return " ".join((self.machine, self.driver, str(self.cpus), *self.sets))


class Programs(RuleBasedStateMachine):
    case = Case("x86_64")

    @initialize()
    def boot(self) -> None:
        case = self.case
        sets = [f"cpus={case.cpus}", "memory=256 MiB", "costs.page_io=3000", *case.sets]
        self.machine = Machine.from_file(case.machine, sets=sets, driver=case.driver, sanitize=True)
        self.size = self.machine.page_size
        self.huge_size = next((size for size in self.machine.huge_page_sizes if size <= LARGEST), 0)
        self.files = [self.file() for _ in range(2)]
        self.huge_file = self.file(self.huge_size) if self.huge_size else None
        self.task_files = [self.file() for _ in range(TASKS)]
        self.spaces: list[Space] = []
        self.pins: list[int] = []
        self.current = self.cpu = 0
        self.first = mm = self.machine.new_mm()
        layout = self.machine.kernel.shape.layout
        span = layout.span_of(layout.pmd_level)
        # The window lies over the edge of a page table, where huge ranges and holes are far.
        room = mm.mmap(4 * span, "")
        mm.munmap(room, 4 * span)
        self.middle = -(-room // span + -1) * span // self.size
        self.window = range(self.middle - WINDOW // 2, self.middle + WINDOW // 2)
        self.add(Space(mm, 0, 0))
        for a, c in ((8, 0), (72, 3), (136, 4)):
            self.call("mmap", a + 1, 7, c)

    def file(self, huge: int = 0) -> Known:
        halves = 2 if huge else 2 * FILE_PAGES
        return Known(self.machine.new_file(halves * (huge or self.size) // 2, huge=huge), Content(halves))

    def add(self, space: Space) -> None:
        self.spaces.append(space)
        if not space.heap:
            space.heap = space.brk = self.window.stop - HEAP
            space.mm.set_brk_start(space.heap * self.size)

    @property
    def space(self) -> Space:
        return self.spaces[self.current]

    def run(self, *bodies: Callable[[], None]) -> None:
        """Each as a thread of the current program on a CPU of its own, beginning with this one, as far as they go."""
        machine = self.machine
        self.through = False
        for n, body in enumerate(bodies):
            cpu = (self.cpu + n) % len(machine.cpus)
            if machine.driver == "timed":
                machine.spawn(f"task {n}", cpu, self.space.mm, body)
            else:
                with machine.cpus[cpu] as handle:
                    handle.switch_mm(self.space.mm)
                    body()
        if machine.driver == "timed":
            machine.run_tasks()
        self.through = True

    def actor(self) -> Actor:
        cpu = self.machine.cpus[self.cpu]
        actor = Actor(self.machine, cpu, self.space, self.window, self.files, self.spaces)
        actor.huge_size, actor.huge_file, actor.pins = self.huge_size, self.huge_file, self.pins
        return actor

    # ------------------------------------------------------------------ steps
    @rule(which=numbers, cpu=numbers)
    def switch(self, which: int, cpu: int) -> None:
        self.current = which % len(self.spaces)
        self.cpu = cpu % len(self.machine.cpus)

    @rule(name=st.sampled_from(CALLS), a=numbers, b=numbers, c=numbers)
    def call(self, name: str, a: int, b: int, c: int) -> None:
        self.run(partial(self.actor().act, name, a, b, c))

    @rule(name=st.sampled_from(CALLS), a=numbers, b=numbers, c=numbers)
    def call_more(self, name: str, a: int, b: int, c: int) -> None:
        self.call(name, a, b, c)

    @rule(scripts=st.lists(st.lists(operations, min_size=3, max_size=10), min_size=2, max_size=TASKS))
    def batch(self, scripts: list[list[tuple[str, int, int, int]]]) -> None:
        """Several tasks at once, each on pages of its own; what they leave belongs to the program."""
        actors = []
        for n in range(len(scripts)):
            first = self.middle + WINDOW + n * (SLOT + 1)
            cpu = self.machine.cpus[(self.cpu + n) % len(self.machine.cpus)]
            window, files = range(first, first + SLOT), [self.task_files[n]]
            actors.append(Actor(self.machine, cpu, self.space, window, files, self.spaces, alone=False))

        def play(actor: Actor, script: list[tuple[str, int, int, int]]) -> None:
            for name, a, b, c in script:
                actor.act(name, a, b, c)
            while actor.pins:
                self.space.mm.put(actor.pins.pop())

        self.run(*(partial(play, actor, script) for actor, script in zip(actors, scripts, strict=True)))

    @precondition(lambda self: len(self.spaces) < 3)
    @rule()
    def fork(self) -> None:
        space, children = self.space, []
        self.run(lambda: children.append(space.mm.fork()))
        # The break is the program's, as its loader said it; the child has it too.
        self.add(Space(children[0], space.heap, space.brk, dict(space.pages), dict(space.huge)))

    @precondition(lambda self: len(self.spaces) > 1)
    @rule()
    def exit(self) -> None:
        space = self.spaces.pop(self.current)
        space.mm.exit() if self.machine.driver == "solo" else self._as_kernel_thread(space.mm.exit)
        self.current = 0

    def _as_kernel_thread(self, body: Callable[[], None]) -> None:
        self.machine.spawn("reaper", self.cpu, None, body)
        self.machine.run_tasks()

    @precondition(lambda self: len(self.spaces) > 1)
    @rule(arguments=st.integers(0, 2), shift=st.integers(0, 3))
    def exec(self, arguments: int, shift: int) -> None:
        space, handle = self.space, self.machine.cpus[self.cpu]

        def execs() -> None:
            space.mm = space.mm.exec(arguments=arguments, stack_shift=shift * self.size)
            handle.switch_mm(space.mm)

        self.run(execs)
        ((start, end, prot),) = space.mm.mappings()
        assert prot == "rw"
        assert end == self.machine.stack_top - shift * self.size
        space.pages = {n: Page("rw") for n in range(start // self.size, end // self.size)}
        space.huge = {}
        space.heap = space.brk = self.window.stop - HEAP
        space.mm.set_brk_start(space.heap * self.size)

    # ------------------------------------------------------------------ always
    @invariant()
    def mappings_are_what_was_asked_for(self) -> None:
        for space in getattr(self, "spaces", ()):
            mapped: dict[int, str] = {}
            for start, end, prot in space.mm.mappings():
                if start not in space.huge:
                    mapped |= dict.fromkeys(range(start // self.size, end // self.size), prot)
            assert mapped == {n: page.prot for n, page in space.pages.items()}
        if hasattr(self, "machine"):
            self.nothing_is_broken()

    def nothing_is_broken(self) -> None:
        referee = self.machine.sanitizer
        assert referee is not None
        found = [v for v in referee.violations if v.invariant not in self.case.excused]
        assert not found, str(found[0])

    def teardown(self) -> None:
        if not getattr(self, "through", False):
            return  # what failed is told already
        for which in range(len(self.spaces)):
            self.current = which
            self.run(self.look_at_all)
        while self.spaces:
            self.current = 0
            self.exit()
        kernel_thread = self._as_kernel_thread if self.machine.driver == "timed" else lambda body: body()
        kernel_thread(self.close)
        referee = self.machine.sanitizer
        assert referee is not None
        referee.finish()
        self.nothing_is_broken()
        left = referee.balance()
        assert not left, left

    def look_at_all(self) -> None:
        actor = self.actor()
        actor.huge_use(0, 0, 0)
        for n in sorted(self.space.pages):
            actor.look(n)
            actor._store(n, b"%c!" % self.current)

    def close(self) -> None:
        for pfn in self.pins:
            self.first.put(pfn)  # also when it has exited
        for known in (*self.files, *self.task_files, *([self.huge_file] if self.huge_file else [])):
            known.handle.close()


def run(case: Case, examples: int, steps: int, *, shrink: bool = True) -> None:
    """Random programs on one machine."""
    machine = type("ProgramsOn", (Programs,), {"case": case})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        ),
    )


def work(case: Case, seed: int, steps: int) -> None:
    """One random program without hypothesis's search: ``seed`` says it all, and steps are cheap. Nobody calls exec:
    pieces of its stack still grow where mremap or munmap left them, of which the model knows nothing."""
    chance, programs = random.Random(seed), type("ProgramsOn", (Programs,), {"case": case})()

    def numbers() -> tuple[int, int, int]:
        return chance.randrange(1 << 16), chance.randrange(1 << 16), chance.randrange(1 << 16)

    programs.boot()
    for _ in range(steps):
        which, family = chance.randrange(16), len(programs.spaces)
        if which == 0 and family < 3:
            programs.fork()
        elif which == 1 and family > 1:
            programs.exit()
        elif which < 4:
            programs.switch(*numbers()[:2])
        elif which < 6:
            programs.batch(
                [
                    [(chance.choice(BATCH), *numbers()) for _ in range(chance.randint(3, 10))]
                    for _ in range(chance.randint(2, TASKS))
                ]
            )
        else:
            programs.call(chance.choice(CALLS), *numbers())
        programs.mappings_are_what_was_asked_for()
    programs.teardown()
