"""A real Debian kernel's hash table and radix tables, and random hash tables, against QEMU's answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polymmu.errors import UserMistake
from polymmu.hardware.entry import Access, Privilege
from polymmu.hardware.ram import Ram
from polymmu.machine import Machine
from polymmu.translation import translate
from polymmu_ppc64.images import HashImage, read_image
from tests.arches.captured import DATA, NOT_MAPPED, load

CAPTURED = (("ppc64le-hash.npz", "ppc64-64k", 276), ("ppc64le-radix.npz", "power9-radix", 9425))


@pytest.mark.parametrize(("file", "name", "count"), CAPTURED)
def test_every_address_translates_as_qemu_says_for_a_load_in_its_mode(
    file: str, name: str, count: int
) -> None:
    data, machine = load(file), Machine.from_file(name)
    asked = 0
    for source, privilege in ((1, "user"), (2, "supervisor")):
        chosen = data["q_src"] == source
        found = translate(
            machine, data["q_va"][chosen].tolist(), DATA / file, access="load", privilege=privilege
        )
        ours = np.array([NOT_MAPPED if answer.pa is None else answer.pa for answer in found], dtype=np.uint64)
        wrong = np.flatnonzero(ours != data["q_pa"][chosen])
        assert not len(wrong), hex(data["q_va"][chosen][wrong[0]])
        asked += len(ours)
    assert asked == count


@pytest.mark.parametrize(("file", "name", "count"), CAPTURED)
def test_every_pagemap_word_agrees(file: str, name: str, count: int) -> None:
    data, machine = load(file), Machine.from_file(name)
    page = data["meta"]["page_size"]
    found = translate(machine, data["pm_va"].tolist(), DATA / file)
    for answer, word in zip(found, data["pm_raw"].tolist(), strict=True):
        assert answer.pa == ((word & (1 << 55) - 1) * page if word >> 63 else None), hex(answer.va)
    assert len(found) == 146


def test_random_hash_tables_answer_every_probe_in_both_modes() -> None:
    document = json.loads((DATA / "ppc64-hash-synthetic.json").read_text())
    probes = 0
    for table in document["tables"]:
        sdr1 = table["sdr1"]
        base = sdr1 & ~0x3FFFF
        ram = Ram(base + (1 << 18 + (sdr1 & 31)))
        for index, first, second in table["hpte"]:
            ram.write_entry(base + index * 16, 8, "big", first)
            ram.write_entry(base + index * 16 + 8, 8, "big", second)
        mmu = HashImage(segments=tuple((esid | 0x8000000, word) for _, esid, word in table["slb"]))
        for ea, supervisor, user in table["probes"]:
            for privilege, expected in ((Privilege.SUPERVISOR, supervisor), (Privilege.USER, user)):
                assert mmu.walk(ram, sdr1, ea, Access.LOAD, privilege).pa == expected, hex(ea)
                probes += 1
    assert probes == 3966


REGISTERS = {"sdr1": 1 << 20, "slb.5.0": 0x58000000, "slb.5.1": 0x123456789C00}


def test_a_hash_table_in_plain_memory_is_read_with_the_registers_given() -> None:
    """The segment of EA 0x55678abc has VSID 0x123456789: page 0x5678, so hash 0x1234531f1 and group 0x1f1."""
    ram = Ram(4 << 20)
    place = (1 << 20) + 0x1F1 * 128 + 3 * 16
    ram.write_entry(place, 8, "big", (0x123456789 << 5 | 0x5678ABC >> 23) << 7 | 1)
    ram.write_entry(place + 8, 8, "big", 0x3ABCD002)
    machine = Machine.from_file("ppc64")
    (found,) = translate(machine, [0x55678ABC], ram, REGISTERS, access="store", privilege="user")
    assert found.pa == 0x3ABCDABC
    assert found.path == (
        ("v", place, (0x123456789 << 5 | 0x5678ABC >> 23) << 7 | 1),
        ("r", place + 8, 0x3ABCD002),
    )


@pytest.mark.parametrize(
    ("registers", "why"),
    [({}, "no sdr1; give --register sdr1=VALUE"), ({"sdr1": 0, "slb": 5}, "give slb=INDEX:ESID:VSID")],
)
def test_missing_or_misspelt_registers_are_a_users_mistake(registers: dict[str, int], why: str) -> None:
    with pytest.raises(UserMistake, match=why):
        translate(Machine.from_file("ppc64"), [0], Ram(1 << 20), registers)


def test_an_image_without_its_tables_place_is_a_users_mistake() -> None:
    entries = {"hpte_index": np.array([0], dtype=np.uint32), "hpte": np.zeros((1, 16), dtype=np.uint8)}
    with pytest.raises(UserMistake, match="htab_size"):
        read_image({"registers": {}}, entries)
