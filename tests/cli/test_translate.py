"""``translate`` on raw images, ELF cores and sparse sets; the same tables give the same answers."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polymmu
from polymmu.cli.main import main
from polymmu.errors import UserMistake
from polymmu.images import open_image
from polymmu.machine import Machine
from polymmu.translation import translate
from tests.arches.captured import DATA

# A page directory at 0x1000 whose entry 32 points to a table at 0x2000; entry 72 of that maps frame 0x12345.
# 0x08048000 = directory entry 32, table entry 72. Written by hand after the SDM.
PDE, PTE = 0x2067, 0x12345025


def raw_image() -> bytearray:
    image = bytearray(0x3000)
    struct.pack_into("<I", image, 0x1000 + 4 * 32, PDE)
    struct.pack_into("<I", image, 0x2000 + 4 * 72, PTE)
    return image


def elf_core(segments: list[tuple[int, bytes]]) -> bytes:
    """A 64-bit little-endian core with one PT_LOAD per (physical address, bytes)."""
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    offset = 64 + 56 * len(segments)
    table, body = b"", b""
    for paddr, data in segments:
        table += struct.pack("<IIQQQQQQ", 1, 0, offset + len(body), 0, paddr, len(data), len(data), 0)
        body += data
    return header + table + body


def ask(file: Path, *more: str, capsys: pytest.CaptureFixture[str], machine: str = "x86") -> tuple[int, Any]:
    status = main(["translate", machine, "--memory", str(file), "--format", "json", *more])
    out = capsys.readouterr().out
    return status, json.loads(out) if out else None


def test_raw_image_translates_as_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "memory"
    file.write_bytes(raw_image())
    status, value = ask(file, "--register", "cr3=0x1000", "0x08048abc", capsys=capsys)
    assert status == 0
    assert value["results"] == [
        {
            "va": "0x8048abc",
            "pa": "0x12345abc",
            "page_size": 4096,
            "flags": {
                "read": True,
                "write": False,
                "execute": True,
                "user": True,
                "accessed": True,
                "dirty": False,
                "global": False,
            },
            "fault": None,
            "path": [
                {"level": "pgd", "entry_pa": "0x1080", "entry": "0x2067"},
                {"level": "pte", "entry_pa": "0x2120", "entry": "0x12345025"},
            ],
        }
    ]


def test_store_to_a_read_only_page_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "memory"
    file.write_bytes(raw_image())
    status, value = ask(
        file,
        "--register",
        "cr3=0x1000",
        "--access",
        "store",
        "--privilege",
        "user",
        "0x08048000",
        capsys=capsys,
    )
    assert status == 1
    assert value["results"][0]["fault"] == "NO_PERMISSION"
    assert value["results"][0]["pa"] is None


def test_elf_core_is_read_by_physical_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = raw_image()
    file = tmp_path / "core"
    file.write_bytes(elf_core([(0x2000, bytes(image[0x2000:])), (0x1000, bytes(image[0x1000:0x2000]))]))
    status, value = ask(file, "--register", "cr3=0x1000", "0x08048abc", "0x0", capsys=capsys)
    assert status == 1
    assert [(r["pa"], r["fault"]) for r in value["results"]] == [("0x12345abc", None), (None, "NOT_PRESENT")]


def test_table_outside_the_image_is_not_an_empty_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "core"
    file.write_bytes(elf_core([(0x1000, bytes(raw_image()[0x1000:0x2000]))]))
    _, value = ask(file, "--register", "cr3=0x1000", "0x08048000", capsys=capsys)
    assert value["results"][0]["fault"] == "TABLE_UNREADABLE"


def test_sparse_set_brings_its_own_registers(capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(DATA / "x86_64.npz") as data:
        mapped = np.flatnonzero(data["q_pa"] != (1 << 64) - 1)[:3]
        vas, pas = data["q_va"][mapped].tolist(), data["q_pa"][mapped].tolist()
    status, value = ask(DATA / "x86_64.npz", *map(hex, vas), capsys=capsys, machine="x86_64")
    assert status == 0
    assert [r["pa"] for r in value["results"]] == [hex(pa) for pa in pas]


def test_addresses_come_from_stdin_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory"
    file.write_bytes(raw_image())
    monkeypatch.setattr("sys.stdin", io.StringIO("0x08048000\n0x08048004\n"))
    _, value = ask(file, "--register", "cr3=0x1000", capsys=capsys)
    assert [r["pa"] for r in value["results"]] == ["0x12345000", "0x12345004"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"short", "too short"),
        (b"\x7fELF\x02\x01" + bytes(4), "cut short"),
        (elf_core([(0x1000, bytes(64))])[:-1], "cut short"),
        (elf_core([]), "no memory"),
        (elf_core([(1 << 60, bytes(64))]), "physical address"),
        (b"PK\x03\x04 not a zip", "cannot read as .npz"),
    ],
)
def test_bad_image_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "image"
    file.write_bytes(content)
    with pytest.raises(UserMistake, match=message) as caught:
        open_image(file)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 255))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_damaged_core_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, at: int, byte: int
) -> None:
    data = bytearray(elf_core([(0x1000, bytes(64) + tail)]))
    data[at % len(data)] = byte
    file = tmp_path_factory.mktemp("core") / "core"
    file.write_bytes(data)
    try:
        open_image(file)
    except UserMistake as mistake:
        assert "\n" not in str(mistake)


def test_python_translates_one_address_or_many() -> None:
    machine = polymmu.Machine.from_file("x86")
    with np.load(DATA / "i386.npz") as data:
        some = np.flatnonzero(data["q_pa"] != (1 << 64) - 1)[::500]
        vas, pas = data["q_va"][some], data["q_pa"][some].tolist()
    assert [found.pa for found in machine.translate(vas, memory=DATA / "i386.npz")] == pas
    assert machine.translate(int(vas[0]), memory=DATA / "i386.npz").pa == pas[0]
    assert machine.translate(int(vas[0]), memory=DATA / "i386.npz", access="load").path[-1][0] in (
        "pgd",
        "pte",
    )


def test_unknown_names_are_refused_with_what_is_known() -> None:
    machine = polymmu.Machine.from_file("x86")
    with pytest.raises(UserMistake, match="known: load, store, fetch"):
        machine.translate(0, memory=DATA / "i386.npz", access="lod")
    with pytest.raises(UserMistake, match="known: user, supervisor"):
        machine.translate(0, memory=DATA / "i386.npz", privilege="root")
    with pytest.raises(UserMistake, match="unknown address space 'home'"):
        machine.translate(0, memory=DATA / "i386.npz", space="home")


def test_own_tables_translate_where_the_program_runs() -> None:
    machine = Machine.from_file("x86_64")
    mm = machine.new_mm()
    at = mm.mmap(4096)
    cpu = machine.cpus[0]
    cpu.switch_mm(mm)
    cpu.store(at, b"findme")
    (found,) = translate(machine, [at])
    assert found.pa is not None
    assert machine.kernel.ram.read(found.pa, 6) == b"findme"
