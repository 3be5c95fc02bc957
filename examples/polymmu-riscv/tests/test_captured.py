"""Page tables of a real Debian kernel (6.12, Sv57) under QEMU, address by address.

Answers: ``q_pa`` from QEMU's ``gva2gpa``, asked in user mode (``q_src`` 1) or supervisor mode (2); ``mem_*`` from its
``info mem``; ``perm`` from the Unicorn engine on the same tables, with SUM set; ``pm_raw`` from the guest's own
/proc/PID/pagemap.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polymmu

IMAGE = Path(__file__).parent / "data" / "riscv64.npz"
NOT_MAPPED = (1 << 64) - 1
SUM = 1 << 18
RIGHTS = tuple((who, what) for who in ("supervisor", "user") for what in ("load", "store", "fetch"))
R, W, X, U, G, A, D = (1 << n for n in range(7))
"""Bits of ``mem_attr``."""


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    with np.load(IMAGE) as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture(scope="module")
def machine() -> polymmu.Machine:
    return polymmu.Machine.from_file("riscv64-sv57")


def test_every_address_translates_as_qemu_says(data: dict[str, Any], machine: polymmu.Machine) -> None:
    for source, who in ((1, "user"), (2, "supervisor")):
        asked = data["q_src"] == source
        found = machine.translate(data["q_va"][asked].tolist(), memory=IMAGE, access="load", privilege=who)
        ours = [NOT_MAPPED if answer.pa is None else answer.pa for answer in found]
        assert ours == data["q_pa"][asked].tolist()


@pytest.mark.parametrize("bit", range(6), ids=[" ".join(each) for each in RIGHTS])
def test_every_right_is_the_one_unicorn_grants(
    data: dict[str, Any], machine: polymmu.Machine, bit: int
) -> None:
    who, what = RIGHTS[bit]
    registers = {"sstatus": SUM}
    found = machine.translate(
        data["q_va"].tolist(), memory=IMAGE, registers=registers, access=what, privilege=who
    )
    ours = np.array([answer.pa is not None for answer in found])
    assert (ours == (data["perm"] >> bit & 1).astype(bool)).all()


def test_every_pagemap_word_agrees(data: dict[str, Any], machine: polymmu.Machine) -> None:
    page = json.loads(str(data["meta"]))["page_size"]
    found = machine.translate(data["pm_va"].tolist(), memory=IMAGE)
    for answer, word in zip(found, data["pm_raw"].tolist(), strict=True):
        present = word >> 63
        assert (answer.pa is not None) == bool(present), hex(answer.va)
        assert not present or answer.pa == (word & (1 << 55) - 1) * page


def test_every_range_of_info_mem_is_there_with_its_attributes(
    data: dict[str, Any], machine: polymmu.Machine
) -> None:
    """Each page of a range; of the long ones, which are large pages, one in every 2 MiB and the last."""
    asked: list[tuple[int, int, int]] = []
    ranges = [data[name].tolist() for name in ("mem_va", "mem_pa", "mem_size", "mem_attr")]
    for start, pa, length, attr in zip(*ranges, strict=True):
        step = 1 << 21 if length > 1 << 21 else 1 << 12
        offsets = [*range(0, length, step), length - (1 << 12)]
        asked += [(start + offset, pa + offset, attr) for offset in offsets]
    found = machine.translate([va for va, _, _ in asked], memory=IMAGE)
    names = {"read": R, "write": W, "execute": X, "user": U, "global": G, "accessed": A, "dirty": D}
    for answer, (va, pa, attr) in zip(found, asked, strict=True):
        assert answer.pa == pa, hex(va)
        assert answer.flags == {name: bool(attr & bit) for name, bit in names.items()}, hex(va)
    assert {answer.page_size for answer in found} == {1 << 12, 1 << 21}
