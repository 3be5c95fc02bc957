"""Who must forget a translation, and how each architecture reaches them: a table, worked out from the sheets.

CPU 0 flushes. CPU 1 has not run the mm (``never``), runs it (``runs``), ran it and has left for another one (``left``),
or keeps it lazily (``lazy``). What is counted: interrupts, flushes that stayed local, broadcasts.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polymmu.machine import Machine, Mm
from polymmu.mm.mm import enter_lazy_tlb

Asked = tuple[int, int, int]
"""Interrupts, local flushes, broadcasts."""
LOCAL, IPI, BROADCAST = (0, 1, 0), (1, 0, 0), (0, 0, 1)


def twice(asked: Asked) -> Asked:
    ipis, local, broadcast = asked
    return 2 * ipis, 2 * local, 2 * broadcast


def unmap_a_page(machine: Machine, mm: Mm, at: int) -> None:
    mm.munmap(at, machine.page_size)


def unmap_with_tables(machine: Machine, mm: Mm, at: int) -> None:
    mm.munmap(at, 16 * machine.page_size)


def protect_a_page(machine: Machine, mm: Mm, at: int) -> None:
    mm.mprotect(at, machine.page_size, "r")


def flush_the_mm(machine: Machine, mm: Mm, at: int) -> None:
    machine.kernel.ops.flush_tlb_mm(mm.struct)


Row = tuple[str, str, Callable[[Machine, Mm, int], None], dict[str, Asked]]

TABLE: list[Row] = [
    # x86, 4.13 on: by interrupt to the CPUs whose CR3 points there; lazy ones compare when they come back, unless
    # tables go (A8.5).
    ("x86_64", "", unmap_a_page, {"never": LOCAL, "runs": IPI, "left": LOCAL, "lazy": LOCAL}),
    ("x86_64", "", protect_a_page, {"never": LOCAL, "runs": IPI, "left": LOCAL, "lazy": LOCAL}),
    ("x86_64", "", unmap_with_tables, {"never": LOCAL, "runs": IPI, "left": LOCAL, "lazy": IPI}),
    ("x86_64", "", flush_the_mm, {"never": LOCAL, "runs": IPI, "left": LOCAL, "lazy": IPI}),
    ("x86", "", unmap_a_page, {"never": LOCAL, "runs": IPI, "left": LOCAL, "lazy": LOCAL}),
    # x86, 2.6: a lazy CPU is in the mask until it was interrupted once (A8.4).
    (
        "x86",
        "x86.shootdown=lazy-mask",
        unmap_a_page,
        {"never": LOCAL, "runs": IPI, "left": LOCAL, "lazy": IPI},
    ),
    # ia64, 2.6.17 on: ptc.l where the mm is active here and ran on one CPU only, else ptc.ga; an unmap purges the pages
    # and the VHPT range that mapped them. A whole mm gets another number, which CPUs that run it must load.
    (
        "ia64",
        "",
        unmap_a_page,
        {
            "never": twice(LOCAL),
            "runs": twice(BROADCAST),
            "left": twice(BROADCAST),
            "lazy": twice(BROADCAST),
        },
    ),
    ("ia64", "", protect_a_page, {"never": LOCAL, "runs": BROADCAST, "left": BROADCAST, "lazy": BROADCAST}),
    ("ia64", "", flush_the_mm, {"never": LOCAL, "runs": IPI, "left": IPI, "lazy": IPI}),
    # ppc64: a batch left under the table lock; tlbiel where the mask is this CPU alone, and bits are never cleared.
    # flush_tlb_mm is empty (2.6.22 on).
    ("ppc64", "", unmap_a_page, {"never": LOCAL, "runs": BROADCAST, "left": BROADCAST, "lazy": BROADCAST}),
    ("ppc64", "", protect_a_page, {"never": LOCAL, "runs": BROADCAST, "left": BROADCAST, "lazy": BROADCAST}),
    ("ppc64", "", flush_the_mm, dict.fromkeys(("never", "runs", "left", "lazy"), (0, 0, 0))),
    # s390: in a gather each pte goes by IPTE, which acts on all CPUs. Elsewhere IPTE unless the mm is attached here
    # alone (2.6.36: attach_count, which a CPU that left no longer counts in); then flush_tlb_range pays what is owed:
    # IDTE, or without it PTLB where the mm only ever ran here, else CSP.
    ("s390", "s390.idte=true", unmap_a_page, dict.fromkeys(("never", "runs", "left", "lazy"), BROADCAST)),
    (
        "s390",
        "s390.idte=true",
        protect_a_page,
        {"never": BROADCAST, "runs": twice(BROADCAST), "left": BROADCAST, "lazy": twice(BROADCAST)},
    ),
    (
        "s390",
        "s390.idte=false",
        protect_a_page,
        {"never": LOCAL, "runs": twice(BROADCAST), "left": BROADCAST, "lazy": twice(BROADCAST)},
    ),
    # sparc64: cross-calls to the mask; where the mm has no other user the mask shrinks to this CPU, and the others
    # demap the context when they come back.
    ("sparc64", "", unmap_a_page, {"never": LOCAL, "runs": IPI, "left": LOCAL, "lazy": LOCAL}),
    ("sparc64", "", protect_a_page, {"never": LOCAL, "runs": IPI, "left": LOCAL, "lazy": LOCAL}),
]


def asked(name: str, setting: str, call: Callable[[Machine, Mm, int], None], other: str) -> Asked:
    sets = ["memory=128 MiB", "cpus=3", *([setting] if setting else [])]
    machine = Machine.from_file(name, sets=sets, sanitize=True)
    mm, another = machine.new_mm(), machine.new_mm()
    page = machine.page_size
    at = mm.mmap(16 * page, at=1 << 28, fixed=True)
    if other != "never":
        machine.cpus[1].switch_mm(mm)
        machine.cpus[1].store(at, b"x")
    if other == "left":
        machine.cpus[1].switch_mm(another)
    if other == "lazy":
        enter_lazy_tlb(machine.kernel, machine.kernel.cpus[1])
    machine.cpus[0].switch_mm(mm)
    machine.cpus[0].store(at, b"x")
    before = dict(machine.counters.shootdowns)
    with machine.cpus[0]:
        call(machine, mm, at)
    after = machine.counters.shootdowns
    told = (
        after["ipis"] - before["ipis"],
        after["local"] - before["local"],
        after["broadcast"] - before["broadcast"],
    )
    # Whoever comes back must not find what is gone.
    machine.cpus[1].switch_mm(mm)
    machine.cpus[1].load(at + 15 * page, 1) if call is not unmap_with_tables else None
    assert not machine.sanitizer.violations  # type: ignore[union-attr]
    mm.exit()
    another.exit()
    assert machine.sanitizer.balance() == []  # type: ignore[union-attr]
    return told


@pytest.mark.parametrize("other", ["never", "runs", "left", "lazy"])
@pytest.mark.parametrize(
    ("name", "setting", "call", "expected"),
    TABLE,
    ids=[" ".join(filter(None, (row[0], row[1], row[2].__name__))) for row in TABLE],
)
def test_who_is_asked(
    name: str,
    setting: str,
    call: Callable[[Machine, Mm, int], None],
    expected: dict[str, Asked],
    other: str,
) -> None:
    assert asked(name, setting, call, other) == expected[other]


def test_a_lazy_cpu_that_flushes_is_no_user_of_the_mm_on_sparc64() -> None:
    """Current->mm, not active_mm: a kernel thread that truncates must not take the mm for its own (2.6.39)."""
    machine = Machine.from_file("sparc64", sets=["memory=128 MiB", "cpus=3"], sanitize=True)
    mm, page = machine.new_mm(), machine.page_size
    file = machine.new_file(4 * page)
    at = mm.mmap(4 * page, file=file, shared=True, at=1 << 28, fixed=True)
    for cpu in (0, 1):
        machine.cpus[cpu].switch_mm(mm)
        machine.cpus[cpu].store(at, b"x")
    enter_lazy_tlb(machine.kernel, machine.kernel.cpus[1])
    machine.kernel.sched.cpu = machine.kernel.cpus[1]
    before = machine.counters.shootdowns["ipis"]
    file.truncate(0)
    assert machine.counters.shootdowns["ipis"] == before + 1
    assert mm.struct.cpu_mask == 0b11
    assert not machine.sanitizer.violations  # type: ignore[union-attr]


def test_outside_lazy_mode_a_hashed_pte_goes_by_a_global_tlbie_even_if_the_mm_only_ran_here() -> None:
    """Ppc64, 3.5: not active: at once, one page, global."""
    machine = Machine.from_file("ppc64", sets=["memory=128 MiB", "cpus=3"])
    mm = machine.new_mm()
    machine.cpus[0].switch_mm(mm)
    at = mm.mmap(machine.page_size, at=1 << 28, fixed=True)
    machine.cpus[0].store(at, b"x")
    child = mm.fork()
    before = dict(machine.counters.shootdowns)
    machine.cpus[0].store(at, b"y")  # copy-on-write: ptep_clear_flush
    after = machine.counters.shootdowns
    assert after["local"] == before["local"]
    assert after["broadcast"] > before["broadcast"]
    child.exit()
