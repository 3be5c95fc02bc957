"""Programs on every RISC-V machine: what stands in their entries, what they read, and what is left of them."""

from __future__ import annotations

import pytest

import polymmu
from polymmu_riscv.entries import A, D, G, R, U, V, W, X

MACHINES = ("riscv64", "riscv64-sv39", "riscv64-sv57", "sifive-u74")
PAGE = 4096
MIB = 1 << 20
OPTIONS: tuple[tuple[str, ...], ...] = (
    (),
    ("riscv.ad_bits=svadu",),
    ("riscv.svvptc=true", "riscv.asid_bits=0"),
)


def started(name: str, *sets: str) -> tuple[polymmu.Machine, polymmu.Mm, polymmu.CpuHandle]:
    machine = polymmu.Machine.from_file(name, sets=sets)
    mm = machine.new_mm()
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    return machine, mm, cpu


def entry(machine: polymmu.Machine, va: int) -> int:
    """The last entry of the walk for ``va`` in the tables that CPU 0 has loaded."""
    return machine.translate(va).path[-1][2]


@pytest.mark.parametrize("sets", OPTIONS, ids=["plain", "svadu", "svvptc, no ASIDs"])
@pytest.mark.parametrize("name", MACHINES)
def test_a_program_runs_forks_and_leaves_nothing_behind(name: str, sets: tuple[str, ...]) -> None:
    machine, mm, cpu = started(name, *sets)
    free = machine.kernel.free.free
    va = mm.mmap(6 * MIB, "rw")
    for page in range(0, 6 * MIB, 64 * PAGE):
        cpu.store(va + page, page.to_bytes(4, "little"))
    child = mm.fork()
    cpu.store(va, b"parent")
    cpu.switch_mm(child)
    assert cpu.load(va, 4) == bytes(4)
    cpu.store(va, b"child!")
    cpu.switch_mm(mm)
    assert cpu.load(va, 6) == b"parent"
    to = mm.mremap(va, 6 * MIB, 8 * MIB)
    assert cpu.load(to, 6) == b"parent"
    mm.mprotect(to, PAGE, "r")
    with pytest.raises(polymmu.SegmentationFault):
        cpu.store(to, b"no")
    mm.munmap(to + MIB, 3 * MIB)
    with pytest.raises(polymmu.SegmentationFault):
        cpu.load(to + MIB, 1)
    child.exit()
    other = machine.new_mm()
    cpu.switch_mm(other)
    mm.exit()
    report = machine.report().to_dict()
    assert report["flushes"]["missing"] == 0
    other.exit()
    assert machine.kernel.free.free >= free - 2, (
        "two roots at most: of the mm that ran last, and of the kernel"
    )


def test_a_fault_enters_what_linux_would() -> None:
    machine, mm, cpu = started("riscv64")
    va = mm.mmap(4 * PAGE, "rw")
    cpu.load(va, 1)
    assert entry(machine, va) & 0xFF == V | R | U | A, "the zero page"
    cpu.store(va + PAGE, b"x")
    assert entry(machine, va + PAGE) & 0xFF == V | R | W | U | A | D
    code = mm.mmap(PAGE, "rx")
    cpu.fetch(code, 4)
    assert entry(machine, code) & 0xFF == V | R | X | U | A


def test_a_pointer_has_no_bit_but_v() -> None:
    machine, mm, cpu = started("riscv64-sv57", "riscv.ad_bits=svadu")
    va = mm.mmap(PAGE, "rw")
    cpu.store(va, b"x")
    path = machine.translate(va).path
    assert [name for name, _, _ in path] == ["pgd", "p4d", "pud", "pmd", "pte"]
    assert all(value & 0x3FF == V for _, _, value in path[:-1])


def test_the_first_store_to_a_shared_page_that_was_read_sets_dirty_by_a_fault_or_by_hardware() -> None:
    for ad_bits, faults, updates in (("svade", 2, 0), ("svadu", 1, 1)):
        machine, mm, cpu = started("riscv64", f"riscv.ad_bits={ad_bits}")
        file = machine.new_file(PAGE)
        va = mm.mmap(PAGE, "rw", shared=True, file=file)
        cpu.load(va, 1)
        assert not entry(machine, va) & D
        cpu.store(va, b"x")
        assert entry(machine, va) & D
        report = machine.report().to_dict()
        assert sum(report["faults"].values()) - report["faults"].get("total", 0) == faults
        assert report["walk"]["ad_updates"] == updates


def test_fork_takes_the_write_right_from_both() -> None:
    machine, mm, cpu = started("riscv64")
    va = mm.mmap(PAGE, "rw")
    cpu.store(va, b"x")
    child = mm.fork()
    assert entry(machine, va) & 0xFF == V | R | U | A | D
    cpu.switch_mm(child)
    assert not entry(machine, va) & W


def test_a_page_that_loses_every_right_keeps_its_frame_in_an_entry_that_is_not_valid() -> None:
    machine, mm, cpu = started("riscv64")
    va = mm.mmap(PAGE, "rw")
    cpu.store(va, b"kept")
    frame = entry(machine, va) >> 10
    mm.mprotect(va, PAGE, "")
    assert entry(machine, va) & (V | G) == G
    assert entry(machine, va) >> 10 == frame
    with pytest.raises(polymmu.SegmentationFault):
        cpu.load(va, 1)
    mm.mprotect(va, PAGE, "r")
    assert cpu.load(va, 4) == b"kept"


def test_an_address_that_is_not_canonical_is_a_segmentation_fault() -> None:
    _, _, cpu = started("riscv64-sv39")
    for va in (1 << 38, 1 << 39, 1 << 63, (1 << 64) - PAGE):
        with pytest.raises(polymmu.SegmentationFault):
            cpu.load(va, 1)


@pytest.mark.parametrize(("size", "level"), [(2 * MIB, "pmd"), (1024 * MIB, "pud")])
def test_a_huge_page_is_a_leaf_above_the_ptes(size: int, level: str) -> None:
    machine, mm, cpu = started("riscv64")
    va = mm.mmap(size, "rw", huge=size)
    cpu.store(va + size - PAGE, b"huge")
    answer = machine.translate(va + size - PAGE)
    name, _, value = answer.path[-1]
    assert (name, answer.page_size) == (level, size)
    assert value & 0xFF == V | R | W | U | A | D
    assert (value >> 10 << 12) % size == 0
    mm.mprotect(va, size, "r")
    assert entry(machine, va) & (V | R | W | X) == V | R
    mm.munmap(va, size)
    assert len(machine.translate(va).path) == 1, "no table of it is left"
