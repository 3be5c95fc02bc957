"""Holes in files, writing back, and what a debugger stores: each by its rule, on every architecture."""

from __future__ import annotations

import pytest

from polymmu.errors import SegmentationFault, SyscallError, UserMistake
from polymmu.machine import FileHandle, Machine, Mm

ARCHES = ("ia64", "ppc64", "s390", "sparc64", "x86", "x86_64")


@pytest.fixture(params=ARCHES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine.from_file(request.param, sets=["cpus=2"], sanitize=True)


def mapped(machine: Machine, pages: int, *, shared: bool, prot: str = "rw") -> tuple[FileHandle, Mm, int]:
    """A file of zeroes, and where a program that runs on CPU 0 has it."""
    page = machine.page_size
    file, mm = machine.new_file(pages * page, "f"), machine.new_mm()
    va = mm.mmap(pages * page, prot, at=16 * page, fixed=True, shared=shared, file=file)
    machine.cpus[0].switch_mm(mm)
    return file, mm, va


def end(machine: Machine) -> None:
    assert machine.sanitizer is not None
    machine.sanitizer.finish()
    assert not machine.sanitizer.violations


def test_what_was_in_a_hole_reads_as_zeroes_and_its_neighbours_stay(machine: Machine) -> None:
    page, cpu = machine.page_size, machine.cpus[0]
    file, _, va = mapped(machine, 4, shared=True)
    for n in range(4):
        cpu.store(va + n * page, b"x")
    file.sync()
    file.punch_hole(page, 2 * page)
    assert sorted(file.file.mapping.pages) == [0, 3]
    assert [cpu.load(va + n * page, 1) for n in range(4)] == [b"x", b"\0", b"\0", b"x"]
    assert file.size == 4 * page
    end(machine)


def test_a_private_copy_outlives_the_hole_below_it(machine: Machine) -> None:
    cpu = machine.cpus[0]
    file, _, va = mapped(machine, 1, shared=False)
    cpu.store(va, b"x")
    file.punch_hole(0, machine.page_size)
    assert cpu.load(va, 1) == b"x"
    end(machine)


@pytest.mark.parametrize(("start", "length"), [(1, 4096), (0, 100), (0, 0), (-65536, 65536)])
def test_a_hole_has_whole_pages(start: int, length: int) -> None:
    file, _, _ = mapped(Machine.from_file("x86_64"), 2, shared=True)
    with pytest.raises(SyscallError):
        file.punch_hole(start, length)


def test_only_what_was_stored_since_the_last_time_is_written(machine: Machine) -> None:
    page, cpu = machine.page_size, machine.cpus[0]
    file, _, va = mapped(machine, 3, shared=True)
    for n in range(3):
        cpu.load(va + n * page, 1)
    assert file.sync() == 0
    cpu.store(va, b"a")
    cpu.store(va + 2 * page, b"c")
    assert file.sync() == 2
    assert {n: data[:1] for n, data in file.file.written.items()} == {0: b"a", 2: b"c"}
    assert file.sync() == 0
    cpu.store(va, b"b")  # through a TLB that let it before
    assert file.sync() == 1
    assert file.file.written[0][:1] == b"b"
    end(machine)


def test_every_mapping_of_a_page_is_cleaned_with_it(machine: Machine) -> None:
    cpus, page = machine.cpus, machine.page_size
    file, _, va = mapped(machine, 1, shared=True)
    other = machine.new_mm()
    there = other.mmap(page, "rw", shared=True, file=file)
    cpus[1].switch_mm(other)
    cpus[0].store(va, b"a")
    cpus[1].store(there, b"b")
    assert file.sync() == 1
    cpus[1].store(there, b"c")
    assert file.sync() == 1
    assert file.file.written[0][:1] == b"c"
    end(machine)


def test_a_debugger_stores_into_a_copy_where_the_program_may_not(machine: Machine) -> None:
    cpu, page = machine.cpus[0], machine.page_size
    file, mm, va = mapped(machine, 2, shared=False, prot="r")
    cpu.load(va, 1)
    for n in range(2):  # one page is mapped, the other is not there yet
        mm.poke(va + n * page + 5, b"xy")
        assert cpu.load(va + n * page + 5, 2) == b"xy"
        with pytest.raises(SegmentationFault):
            cpu.store(va + n * page, b"z")
    other = machine.new_mm()
    there = other.mmap(2 * page, "r", file=file)
    cpu.switch_mm(other)
    assert cpu.load(there + 5, 2) == cpu.load(there + page + 5, 2) == b"\0\0"
    end(machine)


def test_a_debugger_stores_nothing_where_all_would_see_it() -> None:
    machine = Machine.from_file("x86_64")
    _, mm, va = mapped(machine, 1, shared=True, prot="r")
    with pytest.raises(SegmentationFault):
        mm.poke(va, b"x")
    with pytest.raises(UserMistake, match="page by page"):
        mm.poke(va + machine.page_size - 1, b"xy")


def test_what_a_debugger_stored_is_the_parents_alone_after_a_fork(machine: Machine) -> None:
    cpu = machine.cpus[0]
    _, mm, va = mapped(machine, 1, shared=False, prot="r")
    mm.poke(va, b"p")
    child = mm.fork()
    mm.poke(va, b"q")
    assert cpu.load(va, 1) == b"q"
    cpu.switch_mm(child)
    assert cpu.load(va, 1) == b"p"
    end(machine)
