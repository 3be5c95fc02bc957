"""Whole programs on 31-bit and 64-bit machines, through the machine's own handles."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from polymmu.errors import SegmentationFault, SyscallError
from polymmu.machine import Machine
from polymmu.mm.frames import lru_add_drain

PAGE = 4096
MIB = 1 << 20
MACHINES = {
    "three levels": ("s390", ()),
    "four levels": ("s390", ("s390.levels=4",)),
    "a 31-bit program": ("s390", ("s390.levels=2",)),
    "without IDTE": ("s390", ("s390.idte=false",)),
    "ESA/390": ("s390-31", ()),
    "z10": ("z10", ()),
}


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine with two CPUs at least, on which nothing is left when the test is over."""
    name, sets = MACHINES[request.param]
    machine = Machine.from_file(name, sets=("memory=64MiB", "cpus=2", *sets))
    kernel = machine.kernel
    before = kernel.free.free
    yield machine
    for cpu in kernel.cpus:
        kernel.sched.cpu = cpu
        lru_add_drain(kernel)
    assert (kernel.vmas.live, kernel.anon_vmas.live, kernel.mappings.live, kernel.mms.live) == (0, 0, 0, 1)
    assert kernel.free.free == before
    assert not np.count_nonzero(kernel.frames.table[8])  # no fragment is in use
    assert machine.counters.tables["live"] == 0
    assert machine.flushes.section()["missing"] == 0


def test_memory_is_what_was_stored_until_it_is_unmapped(machine: Machine) -> None:
    mm, cpu = machine.new_mm(), machine.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(4 * MIB)
    for n in range(0, 4 * MIB, 64 * PAGE):
        cpu.store(at + n, n.to_bytes(4, "big"))
    assert [cpu.load(at + n, 4) for n in range(0, 4 * MIB, 64 * PAGE)] == [
        n.to_bytes(4, "big") for n in range(0, 4 * MIB, 64 * PAGE)
    ]
    mm.munmap(at + MIB, MIB)
    with pytest.raises(SegmentationFault):
        cpu.load(at + MIB, 1)
    assert cpu.load(at + 2 * MIB, 4) == (2 * MIB).to_bytes(4, "big")
    mm.exit()


def test_a_child_and_its_parent_go_separate_ways(machine: Machine) -> None:
    mm, (one, two) = machine.new_mm(), machine.cpus[:2]
    one.switch_mm(mm)
    at = mm.mmap(2 * PAGE)
    secret = mm.mmap(PAGE, "r")
    one.store(at, b"old")
    mm.mprotect(secret, PAGE, "")
    child = mm.fork()
    two.switch_mm(child)
    one.store(at, b"new")
    assert two.load(at, 3) == b"old"
    two.store(at + PAGE, b"child")
    assert one.load(at + PAGE, 5) == bytes(5)
    child.mprotect(secret, PAGE, "r")
    assert two.load(secret, 1) == b"\0"
    with pytest.raises(SegmentationFault):
        one.load(secret, 1)
    mm.exit()
    assert two.load(at, 3) == b"old"
    child.exit()


def test_rights_that_are_taken_are_gone_on_every_cpu(machine: Machine) -> None:
    mm, cpus = machine.new_mm(), machine.cpus[:2]
    for cpu in cpus:
        cpu.switch_mm(mm)
    at = mm.mmap(64 * PAGE)
    for cpu in cpus:
        for page in range(64):
            cpu.store(at + page * PAGE, b"x")
    with cpus[0]:
        mm.mprotect(at, 32 * PAGE, "r")
        mm.mprotect(at + 32 * PAGE, 16 * PAGE, "")
    for cpu in cpus:
        assert cpu.load(at, 1) == b"x"
        for page, access in ((5, "store"), (40, "load")):
            with pytest.raises(SegmentationFault):
                cpu.store(at + page * PAGE, b"y") if access == "store" else cpu.load(at + page * PAGE, 1)
        cpu.store(at + 50 * PAGE, b"y")
    with cpus[1]:
        mm.mprotect(at, 64 * PAGE, "rwx")
    cpus[0].store(at + 40 * PAGE, b"z")
    assert cpus[1].fetch(at + 40 * PAGE, 1) == b"z"
    mm.exit()


def test_a_mapping_that_moves_takes_its_pages_along(machine: Machine) -> None:
    mm, (one, two) = machine.new_mm(), machine.cpus[:2]
    one.switch_mm(mm)
    two.switch_mm(mm)
    at = mm.mmap(3 * MIB)
    for n in range(0, 3 * MIB, MIB // 4):
        one.store(at + n, n.to_bytes(4, "big"))
        two.load(at + n, 1)
    wall = mm.mmap(PAGE, at=at + 3 * MIB)
    to = mm.mremap(at, 3 * MIB, 5 * MIB)
    assert to != at and wall
    for cpu in (one, two):
        for n in range(0, 3 * MIB, MIB // 4):
            assert cpu.load(to + n, 4) == n.to_bytes(4, "big")
        with pytest.raises(SegmentationFault):
            cpu.load(at, 1)
    mm.exit()


def test_files_are_shared_and_copied_as_asked(machine: Machine) -> None:
    file = machine.new_file(8 * PAGE)
    writer, reader = machine.new_mm(), machine.new_mm()
    one, two = machine.cpus[:2]
    one.switch_mm(writer)
    two.switch_mm(reader)
    shared = writer.mmap(8 * PAGE, file=file, shared=True)
    private = reader.mmap(8 * PAGE, file=file)
    one.store(shared + PAGE, b"all")
    assert two.load(private + PAGE, 3) == b"all"
    two.store(private + PAGE, b"own")
    assert one.load(shared + PAGE, 3) == b"all"
    file.truncate(PAGE)
    for cpu, at in ((one, shared), (two, private)):
        with pytest.raises(SegmentationFault):
            cpu.load(at + PAGE, 1)
    writer.exit()
    reader.exit()
    file.close()


def test_a_batch_counts_the_same_with_and_without_pages_mapped_ahead(machine: Machine) -> None:
    """Fresh memory is mapped ahead of its first touch; one access at a time it is not."""
    pages = 300
    counts = []
    for batch in (True, False):
        mm, cpu = machine.new_mm(), machine.cpus[0]
        cpu.switch_mm(mm)
        at = mm.mmap(pages * PAGE, "rw")
        vas = np.arange(at, at + pages * PAGE, PAGE, dtype=np.uint64)
        ops, sizes = np.full(pages, 2, dtype=np.uint8), np.ones(pages, dtype=np.uint8)
        cpu.cpu.reset_counters()
        steps = [(0, pages)] if batch else list(pairwise(range(pages + 1)))
        for start, stop in steps:
            cpu.replay(ops, vas, sizes, start, stop)
        counted = cpu.cpu.counters()
        counts.append((counted["walk"], counted["accesses"]))
        mm.exit()
    assert counts[0] == counts[1]


def test_a_new_program_takes_the_place_of_the_old(machine: Machine) -> None:
    mm, cpu = machine.new_mm(), machine.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(PAGE)
    cpu.store(at, b"old")
    new = mm.exec()
    with pytest.raises(SegmentationFault):
        cpu.load(at, 1)
    cpu.store(machine.stack_top - PAGE, b"new")
    new.exit()


def test_memory_that_runs_out_leaves_a_working_program(machine: Machine) -> None:
    mm, cpu = machine.new_mm(), machine.cpus[0]
    cpu.switch_mm(mm)
    at = mm.mmap(80 * MIB)
    with pytest.raises(SyscallError):
        for n in range(0, 80 * MIB, PAGE):
            cpu.store(at + n, b"x")
    assert cpu.load(at, 1) == b"x"
    mm.exit()
