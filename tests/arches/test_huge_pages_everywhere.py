"""One program with huge pages on every installed machine that has them, whatever its MMU is."""

from __future__ import annotations

import pytest

from polymmu.description.load import installed_machines
from polymmu.errors import SegmentationFault, UserMistake
from polymmu.machine import CpuHandle, Machine, Mm
from polymmu.mm.frames import lru_add_drain

NAMES = [machine.name for machine in installed_machines() if machine.distribution == "polymmu"]


def running(name: str) -> tuple[Machine, Mm, CpuHandle, int]:
    """A program on CPU 0, and how many frames were free before it began."""
    made = Machine.from_file(name)
    free = made.kernel.free.free
    try:
        mm = made.new_mm()
    except UserMistake:
        pytest.skip("a machine that only translates")
    if not made.huge_page_sizes:
        pytest.skip("a machine without huge pages")
    cpu = made.cpus[0]
    cpu.switch_mm(mm)
    return made, mm, cpu, free


@pytest.mark.parametrize("name", NAMES)
def test_a_family_with_huge_and_small_pages_keeps_its_bytes_and_leaves_nothing(name: str) -> None:
    made, mm, cpu, free = running(name)
    size = made.huge_page_sizes[0]
    far = 5 * made.page_size + 7
    cpu.store(mm.mmap(made.page_size), b"a small page, so that the tables that small pages need are there")
    before = made.kernel.free.free
    at = mm.mmap(2 * size, huge=size)
    assert at % size == 0
    cpu.store(at + size - 3, b"hello!")
    assert before - made.kernel.free.free >= 2 * size // made.page_size
    child = mm.fork()
    cpu.store(at + far, b"parent")
    cpu.switch_mm(child)
    assert cpu.load(at + far, 6) == bytes(6)
    cpu.store(at + size, b"LO!xx")
    assert cpu.load(at + size - 3, 8) == b"helLO!xx"
    cpu.switch_mm(mm)
    assert cpu.load(at + size - 3, 6) == b"hello!"
    assert cpu.load(at + far, 6) == b"parent"
    mm.mprotect(at, size, "r")
    with pytest.raises(SegmentationFault, match="not writable"):
        cpu.store(at, b"x")
    assert cpu.load(at + far, 6) == b"parent"
    mm.munmap(at, size)
    with pytest.raises(SegmentationFault, match="no mapping"):
        cpu.load(at + far, 1)
    shared = mm.mmap(size, huge=size, shared=True)
    cpu.store(shared + far, b"to all")
    sibling = mm.fork()
    cpu.switch_mm(sibling)
    assert cpu.load(shared + far, 6) == b"to all"
    for each in (mm, child, sibling):
        each.exit()
    lru_add_drain(made.kernel)
    assert made.flushes.section()["missing"] == 0
    assert made.kernel.free.free == free
