"""Page tables of a running s390x kernel (QEMU), and random ones, address by address, in both walkers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from polymmu.hardware.entry import Access
from polymmu.machine import Machine
from polymmu.translation import translate
from polymmu_s390.formats import CR0_EDAT, CR0_IEP
from tests.arches.captured import DATA, NOT_MAPPED, load
from tests.arches.s390.bench import MIB, Bench

FILE = "s390x.npz"
SPACES = {1: "primary", 2: "home"}
RIGHTS = tuple((user, access) for user in ("supervisor", "user") for access in ("load", "store", "fetch"))


@pytest.fixture(scope="module")
def captured() -> dict[str, Any]:
    return load(FILE)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.from_file("s390")


@pytest.mark.parametrize("source", SPACES)
def test_every_address_of_both_spaces_translates_as_qemu_says(
    captured: dict[str, Any], machine: Machine, source: int
) -> None:
    asked = captured["q_src"] == source
    vas, pas = captured["q_va"][asked].tolist(), captured["q_pa"][asked].tolist()
    found = translate(machine, vas, DATA / FILE, space=SPACES[source])
    assert [NOT_MAPPED if answer.pa is None else answer.pa for answer in found] == pas
    assert len(vas) > 1000


def test_the_primary_space_is_asked_when_none_is_named(captured: dict[str, Any], machine: Machine) -> None:
    vas = captured["q_va"][captured["q_src"] == 1][:50].tolist()
    assert translate(machine, vas, DATA / FILE) == translate(machine, vas, DATA / FILE, space="primary")


@pytest.mark.parametrize("source", SPACES)
def test_every_right_is_the_one_unicorn_grants(
    captured: dict[str, Any], machine: Machine, source: int
) -> None:
    asked = captured["q_src"] == source
    vas, perm = captured["q_va"][asked].tolist(), captured["perm"][asked]
    for bit, (privilege, access) in enumerate(RIGHTS):
        found = translate(machine, vas, DATA / FILE, access=access, privilege=privilege, space=SPACES[source])
        assert [answer.pa is not None for answer in found] == (perm >> bit & 1).astype(bool).tolist()


def test_every_pagemap_word_agrees_but_for_the_pages_that_linux_keeps_as_old(
    captured: dict[str, Any], machine: Machine
) -> None:
    """A later kernel than those modelled keeps an old page invalid, with bit 0x001 for present."""
    found = translate(machine, captured["pm_va"].tolist(), DATA / FILE)
    old = 0
    for answer, word in zip(found, captured["pm_raw"].tolist(), strict=True):
        if word >> 63 and answer.pa is None:
            assert answer.path[-1][2] & 0x401 == 0x401
            old += 1
        else:
            assert answer.pa == ((word & (1 << 55) - 1) * 4096 if word >> 63 else None)
    assert old == 2


@pytest.mark.parametrize("source", SPACES)
def test_the_compiled_walker_agrees_on_the_captured_tables(captured: dict[str, Any], source: int) -> None:
    bench = Bench.new(memory=640 * MIB, iep=True)
    for pa, block in zip(captured["table_pa"].tolist(), captured["table_data"], strict=True):
        bench.ram.write(pa, block.tobytes())
    root = int(captured["meta"]["registers"]["cr1" if source == 1 else "cr13"], 16)
    asked = captured["q_src"] == source
    for bit, access in enumerate((Access.LOAD, Access.STORE, Access.FETCH)):
        for va, pa, perm in zip(
            captured["q_va"][asked].tolist(),
            captured["q_pa"][asked].tolist(),
            captured["perm"][asked].tolist(),
            strict=True,
        ):
            assert bench.answer(root, va, access)[0] == (pa if perm >> bit & 1 else None)


SYNTHETIC = json.loads((DATA / "s390x-synthetic.json").read_text())


@pytest.mark.parametrize("number", range(len(SYNTHETIC["tables"])))
@pytest.mark.parametrize("tlb", [False, True], ids=["walks alone", "with TLB and walk caches"])
def test_every_probe_of_the_random_tables_is_answered_as_qemu_does(number: int, tlb: bool) -> None:
    assert SYNTHETIC["cr0"] & (CR0_EDAT | CR0_IEP) == CR0_IEP
    case = SYNTHETIC["tables"][number]
    bench = Bench.new(iep=True, tlb=tlb)
    for place, count, value in case["tables"]:
        bench.put(place, *[value] * count)
    for place, value in case["entries"]:
        bench.put(place, value)
    for va, real in case["probes"]:
        assert bench.answer(case["asce"], va)[0] == real, hex(va)
