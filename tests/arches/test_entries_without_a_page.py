"""Swap entries and file ptes of every architecture: bits worked out by hand from the fact sheets."""

from __future__ import annotations

import numpy as np
import pytest

from polymmu.boot import shape_of
from polymmu.hardware.entry import EntryFormat
from polymmu.machine import Machine

MACHINES = ("x86", "x86-pae", "x86_64", "ia64", "ppc64", "ppc64-64k", "sparc64", "s390", "s390-31")

SWAP = {
    # type 2, offset 0x1234: 2.6.39's places, type in bits 5:1 and offset from bit 9
    "x86": (2, 0x1234, 2 << 1 | 0x1234 << 9),
    "x86_64": (2, 0x1234, 0x246804),
    # the sheet's vector: all of it in the high word
    "x86-pae": (2, 0x1234, 0x00024682_00000000),
    "ia64": (3, 0x1000, 0x20000C),
    "ppc64": (3, 0x1000, (3 << 1 | 0x1000 << 8) << 17),
    "ppc64-64k": (3, 0x1000, (3 << 1 | 0x1000 << 8) << 30),
    "sparc64": (3, 0x1000, 0x200006000),
    # 0x403, type from bit 2, the offset's lowest bit at 7 and the others from 12 (as in the sheet's 0x600 vector)
    "s390": (2, 0x1235, 0x403 | 2 << 2 | 1 << 7 | 0x1234 << 11),
    "s390-31": (2, 0x1235, 0x403 | 2 << 2 | 1 << 7 | 0x1234 << 11),
}
FILE = {
    # 2.6.39: bits 5:1, 7 and 31:9 around FILE (6) and PROT_NONE (8)
    "x86": (0x123, 0x40 | 0x03 << 1 | (0x123 >> 5 & 1) << 7 | 0x123 >> 6 << 9),
    "x86-pae": (0x12345678, 0x12345678_00000040),
    "x86_64": (0x55, 0x55040),
    "ia64": (0x55, 0x156),
    "ppc64": (0x55, 0x55 << 17 | 2),
    "ppc64-64k": (0x55, 0x55 << 30 | 2),
    "sparc64": (0x55, 0xAA800),
    # seven bits from bit 1, the others from 12, around 0x601
    "s390": (0x155, 0x601 | 0x55 << 1 | 2 << 12),
    "s390-31": (0x155, 0x601 | 0x55 << 1 | 2 << 12),
}
CAPACITY = {
    # swap offsets and file pages that fit, in bits
    "x86": (23, 29),
    "x86-pae": (27, 32),
    "x86_64": (55, 32),
    "ia64": (54, 61),
    "ppc64": (39, 47),
    "ppc64-64k": (26, 34),
    "sparc64": (42, 50),
    "s390": (53, 59),
    "s390-31": (20, 26),
}


def pte_of(machine: str) -> EntryFormat:
    description, arch = Machine.describe(machine)
    return shape_of(arch, description.section).pte


@pytest.mark.parametrize("machine", MACHINES)
def test_a_swap_entry_has_its_bits_where_the_sheet_says(machine: str) -> None:
    type_, offset, entry = SWAP[machine]
    swap = pte_of(machine).swap
    assert swap is not None
    assert swap.make(type_, offset) == entry
    assert swap.split(entry) == (type_, offset)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_file_pte_has_its_bits_where_the_sheet_says(machine: str) -> None:
    page, entry = FILE[machine]
    file = pte_of(machine).file
    assert file is not None
    assert file.make(page) == entry
    assert file.split(entry) == (page,)


def test_sun4v_keeps_the_mark_of_a_file_pte_elsewhere() -> None:
    description, arch = Machine.describe("ultrasparc-t1")
    file = shape_of(arch, description.section).pte.file
    assert file is not None
    assert file.make(0x55) == 0xAA020


@pytest.mark.parametrize("machine", MACHINES)
def test_the_highest_numbers_fit_and_are_known(machine: str) -> None:
    pte = pte_of(machine)
    assert pte.swap is not None
    assert pte.file is not None
    swap_bits, file_bits = CAPACITY[machine]
    assert pte.swap.max_offset == (1 << swap_bits) - 1
    assert pte.file.max_offset == (1 << file_bits) - 1
    assert pte.swap.split(pte.swap.make(1, pte.swap.max_offset)) == (1, pte.swap.max_offset)
    assert pte.file.split(pte.file.make(pte.file.max_offset)) == (pte.file.max_offset,)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_whole_table_is_told_apart_as_each_entry_is(machine: str) -> None:
    description, arch = Machine.describe(machine)
    shape = shape_of(arch, description.section)
    pte = shape.pte
    assert pte.swap is not None
    assert pte.file is not None
    page = shape.protections[1] | 3 << shape.pfn_shift
    hidden = shape.protections[0] | 3 << shape.pfn_shift
    values = [
        pte.empty,
        page,
        hidden,
        pte.swap.make(0, 1),
        pte.swap.make(1, 6),
        pte.file.make(0),
        pte.file.make(9),
    ]
    run = np.array(values, dtype=np.uint64)
    assert pte.mapped_in(run).tolist() == [False, True, True, False, False, False, False]
    assert pte.swap.found_in(run).tolist() == [False, False, False, True, True, False, False]
    assert pte.file.found_in(run).tolist() == [False, False, False, False, False, True, True]
    assert [pte.swap.test(value) for value in values] == pte.swap.found_in(run).tolist()
    assert [pte.file.test(value) for value in values] == pte.file.found_in(run).tolist()
