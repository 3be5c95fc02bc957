"""Page tables of real kernels translate as the machine emulator and the CPU engine said (``data/pagetables``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polymmu.hardware.entry import Access, Privilege, WalkFault
from polymmu.hardware.ram import Ram
from polymmu.hardware.walk import RadixTranslation, walk, walk_many
from tests.hardware.x86_formats import four_level, pae, two_level

IMAGES = Path(__file__).parents[1] / "data" / "pagetables"
NOT_MAPPED = (1 << 64) - 1
CAPTURES = {"i386": two_level(), "i386-pae": pae(), "x86_64": four_level()}


@pytest.fixture(params=CAPTURES, scope="module")
def capture(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Ram, RadixTranslation, int]:
    """One capture: its arrays, memory with its tables, the MMU and the root."""
    with np.load(IMAGES / f"{request.param}.npz") as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    meta = json.loads(str(arrays["meta"]))
    ram = Ram((int(arrays["table_pa"].max()) + 4096 + 0xFFFFF) & ~0xFFFFF)
    for pa, data in zip(arrays["table_pa"].tolist(), arrays["table_data"], strict=True):
        ram.write(pa, data.tobytes())
    cr3 = int(meta["registers"]["CR3"], 16)
    root = cr3 & (0xFFFFFFE0 if request.param == "i386-pae" else ~0xFFF)
    return arrays, ram, CAPTURES[request.param], root


Capture = tuple[dict[str, Any], Ram, RadixTranslation, int]


def test_every_address_goes_where_the_emulator_said(capture: Capture) -> None:
    arrays, ram, translation, root = capture
    pas, _, faults = walk_many(ram.words, translation, root, arrays["q_va"])
    assert np.array_equal(pas, arrays["q_pa"])
    assert np.array_equal(faults != 0, arrays["q_pa"] == NOT_MAPPED)


@pytest.mark.parametrize("bit", range(6))
def test_every_right_is_what_the_cpu_engine_said(capture: Capture, bit: int) -> None:
    arrays, ram, translation, root = capture
    access = (Access.LOAD, Access.STORE, Access.FETCH)[bit % 3]
    privilege = Privilege.SUPERVISOR if bit < 3 else Privilege.USER
    _, _, faults = walk_many(ram.words, translation, root, arrays["q_va"], access, privilege)
    allowed = arrays["perm"] >> bit & 1
    assert np.array_equal(faults == 0, allowed == 1)
    refused = arrays["q_pa"] != NOT_MAPPED
    assert set(faults[refused].tolist()) <= {WalkFault.NONE, WalkFault.NO_PERMISSION}


def test_every_leafs_flags_are_what_the_monitor_showed(capture: Capture) -> None:
    arrays, ram, translation, root = capture
    listed = np.flatnonzero(arrays["q_src"] == 0)
    for n in listed[:: max(1, len(listed) // 3000)].tolist():
        va, flags = int(arrays["q_va"][n]), int(arrays["q_flags"][n])
        found = walk(ram, translation, root, va)
        level, _, entry = found.path[-1]
        form = translation.formats[level]
        assert found.pa == int(arrays["q_pa"][n])
        # The monitor shows the leaf's own bits: X global large dirty accessed CD WT user writable.
        assert bool(flags >> 1 & 1) == found.is_global
        assert bool(flags >> 2 & 1) == (found.page_size > 4096)
        assert bool(flags >> 3 & 1) == found.dirty
        assert bool(flags >> 4 & 1) == found.accessed
        assert bool(flags >> 7 & 1) == form.user.test(entry)
        assert bool(flags >> 8 & 1) == form.write.test(entry)
        assert bool(flags & 1) == (not form.execute.test(entry))


def test_the_compiled_walker_and_the_one_in_python_agree(capture: Capture) -> None:
    arrays, ram, translation, root = capture
    some = arrays["q_va"][:: max(1, len(arrays["q_va"]) // 2000)]
    for access in Access:
        for privilege in Privilege:
            pas, sizes, faults = walk_many(ram.words, translation, root, some, access, privilege)
            for n, va in enumerate(some.tolist()):
                found = walk(ram, translation, root, va, access, privilege)
                assert found.fault == faults[n]
                assert (NOT_MAPPED if found.pa is None else found.pa) == pas[n]
                assert found.fault or found.page_size == sizes[n]


def test_the_processs_pages_are_the_ones_its_kernel_listed(capture: Capture) -> None:
    arrays, ram, translation, root = capture
    present = arrays["pm_raw"] >> np.uint64(63) == 1
    frames = (arrays["pm_raw"] & np.uint64((1 << 55) - 1)) << np.uint64(12)
    pas, _, _ = walk_many(ram.words, translation, root, arrays["pm_va"])
    assert np.array_equal(pas[present], frames[present])
    assert np.all(pas[~present] == np.uint64(NOT_MAPPED))
