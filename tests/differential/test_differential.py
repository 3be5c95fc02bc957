"""Whatever the architecture, the generation, the driver and the number of CPUs: a program ends with the same bytes,
rights and errors, which a dictionary of pages foretells; nothing is left, and the referee is silent.

Every architecture runs today's kernel and every release runs on some; the long run has them all with all.
Most of what the corpus says of releases cannot be seen here: it needs two threads at one page (10, 24, 43, 44, 55),
a driver's file (14, 37), or a truncation whose mapping is cut meanwhile (1, 9, 98); tasks that run at once
keep to pages and files of their own.
"""

from __future__ import annotations

import pytest

from polymmu.machine import Machine
from tests.differential.programs import Case, run, work
from tests.history.conftest import history  # noqa: F401  # the generations as they are in this tree

MACHINES = ("x86", "x86-pae", "x86_64", "ia64", "ppc64", "s390-31", "s390", "sparc64")
RELEASES = ("2.6.9", "2.6.10", "2.6.11", "2.6.12", "2.6.39", "3.0", "3.8", "3.15", "4.13", "6.13")
SWAP = "swap=16 MiB"
SMALL = ("kernel.gather_batch=8", "kernel.zap_block=8")
"""Gathers fill up and blocks end within what a program of a few pages does."""
HOW = (("solo", 1), ("timed", 4), ("solo", 4), ("timed", 1))


def excused_on(release: str | None) -> frozenset[str]:
    # Corpus 23: a full gather's flush leaves out the last page cleared.
    return frozenset({"INV-PERM", "INV-TLB"}) if release == "3.8" else frozenset()


FEW = [
    *(Case(name, (SWAP,), "timed", 4) for name in MACHINES),
    Case("x86_64", (), "solo", 1),
    *(
        Case(
            MACHINES[n % len(MACHINES)],
            (SWAP, *SMALL, f"kernel.release={release}"),
            *HOW[(n + 1) % 4],
            excused_on(release),
        )
        for n, release in enumerate(RELEASES)
    ),
]
ALL = [
    Case(
        name,
        (SWAP, *small, *([f"kernel.release={release}"] if release else [])),
        driver,
        cpus,
        excused_on(release),
    )
    for name in MACHINES
    for release in (None, *RELEASES)
    for driver, cpus in HOW
    for small in ((), SMALL)
]


@pytest.mark.parametrize("case", FEW, ids=str)
def test_programs_find_what_the_model_says(case: Case) -> None:
    run(case, examples=4, steps=20)


@pytest.mark.long
@pytest.mark.parametrize("case", ALL, ids=str)
def test_programs_find_what_the_model_says_on_all_with_all(case: Case) -> None:
    run(case, examples=25, steps=40)


def test_a_wrong_byte_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stores that go astray on one CPU of the machine."""
    boot = Machine.from_file

    def astray(*arguments: object, **named: object) -> Machine:
        made = boot(*arguments, **named)  # type: ignore[arg-type]
        store = made.cpus[0].store
        monkeypatch.setattr(made.cpus[0], "store", lambda va, data: store(va, bytes(len(data))))
        return made

    monkeypatch.setattr(Machine, "from_file", astray)
    with pytest.raises(AssertionError, match="and not"):
        run(Case("x86_64"), examples=5, steps=20, shrink=False)
    with pytest.raises(AssertionError, match="and not"):
        work(Case("x86_64"), seed=1, steps=60)
