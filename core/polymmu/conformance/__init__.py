"""The conformance kit: what every architecture must do, as checks that an author's tests subclass.

    from polymmu import conformance

    class TestMine(conformance.Suite):
        arch = "riscv"
        machines = ["riscv64", "riscv64-sv39"]

Groups can be subclassed one by one. ``polymmu conformance ARCH`` runs the same checks without pytest;
``polymmu.conformance.mutations`` breaks an arch's hooks in turn and says which check notices.
"""

from polymmu.conformance.bench import Bench, NotApplicable, World, require
from polymmu.conformance.caches import Contexts, Tlb
from polymmu.conformance.checks import Checks, checks_of
from polymmu.conformance.explorations import Explorations
from polymmu.conformance.failures import Failures
from polymmu.conformance.freeing import Gather, TableFreeing
from polymmu.conformance.geometry import Entries, Layout, RangeWalks
from polymmu.conformance.hardware import Faults, Walker
from polymmu.conformance.huge import HugePages
from polymmu.conformance.leftovers import Exit
from polymmu.conformance.programs import Notes, Sharing
from polymmu.conformance.races import Races
from polymmu.conformance.random_programs import Programs
from polymmu.conformance.run import Outcome, run
from polymmu.conformance.soft import SoftEntries

__all__ = [
    "GROUPS",
    "Bench",
    "Checks",
    "Contexts",
    "Entries",
    "Exit",
    "Explorations",
    "Failures",
    "Faults",
    "Gather",
    "HugePages",
    "Layout",
    "NotApplicable",
    "Notes",
    "Outcome",
    "Programs",
    "Races",
    "RangeWalks",
    "Sharing",
    "SoftEntries",
    "Suite",
    "TableFreeing",
    "Tlb",
    "Walker",
    "World",
    "checks_of",
    "require",
    "run",
]

GROUPS: tuple[type[Checks], ...] = (
    Layout,
    Entries,
    RangeWalks,
    Walker,
    Faults,
    Tlb,
    Contexts,
    Gather,
    TableFreeing,
    Sharing,
    Notes,
    HugePages,
    Exit,
    Programs,
    SoftEntries,
    Races,
    Explorations,
    Failures,
)
"""Every group, in the order of the ladder that an author climbs."""


class Suite(*GROUPS):  # type: ignore[misc]  # a class of all the groups
    """All groups in one."""
