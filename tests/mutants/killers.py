"""Who looks for what a mutant breaks: explorations, timed runs under the referee, and the conformance kit.

A killer says what it found, or nothing. On the code as it is none finds anything, which a test sees to. Names are
``explore/SCENARIO@MACHINE+SETTING`` (the general scenarios in ``tests/explore``), ``random/...`` (the same, by random
schedules, which also come upon what is no operation of the explorer), ``gallery/SCENARIO@MACHINE`` (the
fixed variants of known bugs), ``differential/MACHINE#SEED`` (random programs whose bytes, rights and errors a
dictionary of pages foretells), ``timed/MACHINE#SEED`` (random correct work),
``run/SCENARIO@MACHINE#SEED`` (the scenarios that ship) and ``kit/GROUP@MACHINE``.

Everything of polymmu is imported when a killer runs, after the mutant was put in its place.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from tests.mutants.overlay import ROOT, Row

__all__ = ["ALARMS", "SCENARIOS", "Endless", "find", "killers_of"]

GENERAL = ROOT / "tests" / "explore" / "general"
SCENARIOS = tuple(sorted(path.stem for path in GENERAL.glob("*.yaml")))
ALONE = (
    "table-by-table",
    "many-pages",
    "neighbours",
    "nonlinear-and-invalidate",
    "devices",
    "tsb-grows",
)
"""General scenarios of one execution."""
SHIPPED = ("device-under-munmap", "swap-out-under-mremap")
MACHINES = {
    "x86": ("x86", "x86-pae"),
    "x86_64": ("x86_64", "zen"),
    "ia64": ("ia64",),
    "ppc64": ("ppc64", "ppc64-64k"),
    "sparc64": ("sparc64", "ultrasparc3"),
    "s390": ("s390", "s390-31", "z10"),
}
"""Machines of each architecture, the plain one first."""

EARLY = "tables here go before the flush of the addresses where they are mapped, as in Linux"
ALARMS = {
    (scenario, "ia64"): EARLY
    for scenario in (
        "fragments",
        "lazy-and-tables",
        "move-a-table",
        "no-page-for-tables",
        "unmap-two-tables",
        "unmap-under-a-fault",
        "walk-and-unmap",
    )
}
"""What is told of on the code as it is: nobody is asked there."""

EXECUTIONS = {"explore": (8, 60), "random": (150, 150), "gallery": (150, 150)}
"""How many random executions, and how many altogether, an exploration makes."""
PROGRAM_STEPS, PROGRAM_SEEDS = 150, (1, 2, 3, 4, 5)
TIMED_STEPS = 60
PATIENCE_SECONDS = 8.0
"""CPU seconds after which a killer that a mutant made endless has found just that. All take a small part of it."""


class Endless(Exception):
    """A killer did not come to an end."""


@contextmanager
def patience() -> Iterator[None]:
    """End what does not end by itself."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Endless(f"no end within {PATIENCE_SECONDS:.0f} CPU seconds")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def killers_of(row: Row) -> list[str]:
    """Whom to ask, in this order: those that the row names, then whoever knows the architecture."""
    arches = {"": ("x86_64", "s390"), "x86": ("x86", "x86_64")}.get(row.arch, (row.arch,))
    names = list(row.by)
    for arch in arches:
        names += [f"explore/{each}@{machine}" for machine in MACHINES[arch] for each in ALONE]
    for arch in arches:
        names += [f"differential/{machine}#{seed}" for machine in MACHINES[arch] for seed in PROGRAM_SEEDS]
    for arch in arches:
        plain = MACHINES[arch][0]
        names += [f"explore/{each}@{plain}" for each in SCENARIOS if each not in ALONE]
        names += [f"timed/{plain}#{seed}" for seed in (1, 2)]
        names += [f"run/{each}@{plain}#1" for each in SHIPPED]
        names += [f"kit/{group}@{plain}" for group in kit_groups()]
    alarms = {f"explore/{scenario}@{machine}" for scenario, machine in ALARMS}
    return [name for name in dict.fromkeys(names) if name not in alarms]


def kit_groups() -> tuple[str, ...]:
    """The kit's groups by name, the quickest first. Not asked of the kit: nothing may be imported yet."""
    return (
        "TableFreeing", "Gather", "Faults", "Tlb", "Contexts", "Notes", "SoftEntries", "HugePages", "Sharing", "Exit",
        "RangeWalks", "Layout", "Walker", "Failures", "Races", "Explorations", "Programs",
    )  # fmt: skip


def find(name: str) -> str:
    """What killer ``name`` finds: an invariant or a check and what it says, or an empty string."""
    kind, what = name.split("/")
    case, _, machine = what.rpartition("@")
    machine, _, seed = machine.partition("#")
    try:
        with patience():
            if kind in EXECUTIONS:
                machine, *sets = machine.split("+")
                return _explored(kind, case, machine, sets)
            if kind == "differential":
                return _programmed(machine, int(seed))
            if kind == "timed":
                return _worked(machine, int(seed))
            if kind == "run":
                return _ran(case, machine, seed)
            return _checked(case, machine)
    except Exception as failure:
        return f"{type(failure).__name__}: {failure}".splitlines()[0]


def _explored(kind: str, scenario: str, machine: str, sets: Sequence[str]) -> str:
    from polymmu.description.load_scenario import load_scenario
    from polymmu.exploration.explorer import Limits, search
    from polymmu.exploration.scenario import Explored

    folder = GENERAL if kind != "gallery" else ROOT / "configs" / "polymmu_scenarios"
    file = load_scenario(str(folder / f"{scenario}.yaml"))
    arch = next(name for name, machines in MACHINES.items() if machine in machines)
    if file.scenario.arches and arch not in file.scenario.arches:
        return ""
    program = Explored(machine, file, sets=sets)
    random, executions = EXECUTIONS[kind]
    limits = Limits(random=random, executions=executions, seconds=3600, preemptions=-1)
    outcome = search(program, limits=limits).outcome
    return f"{outcome.invariant}: {outcome.finding}" if outcome is not None else ""


def _programmed(machine: str, seed: int) -> str:
    from tests.differential.programs import Case, work
    from tests.differential.test_differential import HOW, SMALL, SWAP

    work(Case(machine, (SWAP, *(SMALL if seed > 4 else ())), *HOW[seed % 4]), seed, PROGRAM_STEPS)
    return ""


def _worked(machine: str, seed: int) -> str:
    from tests.sanitize.random_work import AREA, finished, timed_run

    made = finished(timed_run(machine, seed, TIMED_STEPS, AREA if seed % 2 else ()))
    assert made.sanitizer is not None
    if made.sanitizer.violations:
        return str(made.sanitizer.violations[0])
    return "; ".join(map(str, made.sanitizer.balance()))


def _ran(scenario: str, machine: str, seed: str) -> str:
    from polymmu import Machine
    from polymmu.description.load_scenario import load_scenario

    file = load_scenario(str(ROOT / "configs" / "polymmu_scenarios" / f"{scenario}.yaml"))
    told = Machine.to_run(machine, file, sets=[f"seed={seed}", "memory=256 MiB"]).run(file).to_dict()
    broken = [f"{each['invariant']}: {each['message']}" for each in told["violations"]]
    return str(told.get("finding") or next(iter(broken), ""))


def _checked(group: str, machine: str) -> str:
    from polymmu import conformance
    from polymmu.conformance.bench import Bench
    from polymmu.description.load import installed_machines

    arch = next(row.arch for row in installed_machines() if row.name == machine)
    for outcome in conformance.run(Bench.of(arch, machine), [getattr(conformance, group)]):
        if outcome.status == "failed":
            return f"{outcome.check}: {outcome.reason}"
    return ""
