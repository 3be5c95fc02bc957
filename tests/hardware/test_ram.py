"""Physical memory and frames."""

from __future__ import annotations

import resource
import time

import pytest

from polymmu.errors import UserMistake
from polymmu.hardware.ram import BusError, Frames, Ram
from tests.hardware.x86_formats import GIB, MIB


def test_64_gib_of_memory_and_its_frames_start_at_once_and_cost_nothing() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ram = Ram(64 * GIB)
    frames = Frames(64 * GIB // 4096, 4096)
    ram.write(64 * GIB - 8, b"the end.")
    frames.refcount[frames.count - 1] = 1
    assert time.perf_counter() - started < 0.1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    assert ram.read(64 * GIB - 8, 8) == b"the end."


def test_entries_have_the_byte_order_that_was_asked_for() -> None:
    ram = Ram(MIB)
    ram.write_entry(8, 8, "big", 0x0102030405060708)
    ram.write_entry(16, 4, "big", 0x01020304)
    ram.write_entry(20, 4, "little", 0x01020304)
    assert ram.read(8, 16) == bytes([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 4, 3, 2, 1])
    assert ram.read_entry(8, 8, "big") == 0x0102030405060708
    assert ram.read_entry(8, 8, "little") == 0x0807060504030201
    assert ram.read_entry(20, 4, "little") == ram.read_entry(16, 4, "big") == 0x01020304
    assert ram.m64[1] == 0x0807060504030201


@pytest.mark.parametrize(("pa", "nbytes"), [(MIB, 1), (MIB - 1, 2), (-1, 1)])
def test_memory_ends_where_it_ends(pa: int, nbytes: int) -> None:
    ram = Ram(MIB)
    with pytest.raises(BusError, match="no memory at physical"):
        ram.read(pa, nbytes)
    with pytest.raises(BusError):
        ram.write(pa, bytes(nbytes))


@pytest.mark.parametrize("size", [0, -4096, 4097])
def test_a_size_that_is_no_memory_is_refused(size: int) -> None:
    with pytest.raises(UserMistake, match="positive multiple"):
        Ram(size)


def test_closed_memory_is_given_back() -> None:
    ram = Ram(MIB)
    ram.write(0, b"x")
    ram.close()
    assert ram.read(0, 1) == b"\0"
