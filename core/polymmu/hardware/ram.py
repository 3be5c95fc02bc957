"""Physical memory: one flat, sparse host mapping, and what is known about each frame.

A physical address is an index. The host gives pages when they are first written, so a machine with 64 GiB
starts in no time and costs what it uses. Page tables lie here in the architecture's own bits and byte
order, so any walker can read them.

Frames are struct-of-arrays: one ``int64`` table with a row per property, equally sparse. Compiled scans
take the table, Python takes the memoryview of one property (``frames.refcount[pfn]`` is a plain int).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polymmu.errors import PolymmuError, UserMistake

__all__ = [
    "COLUMNS",
    "FLAGS",
    "GENERATION",
    "INDEX",
    "LRU_NEXT",
    "LRU_PREV",
    "MAPCOUNT",
    "MAPPING",
    "NONZERO",
    "PRIVATE",
    "REFCOUNT",
    "BusError",
    "Frames",
    "Ram",
]

REFCOUNT, MAPCOUNT, FLAGS, MAPPING, INDEX, GENERATION, LRU_NEXT, LRU_PREV, PRIVATE = range(9)
COLUMNS = 9
NONZERO = 1 << 0
"""Flag of a frame: it may hold other bytes than zero. ``Cpu.store`` sets it, and so does whoever else
writes bytes into a frame; only the allocator clears it, when it zeroes the frame."""

NORESERVE = 0x4000  # MAP_NORESERVE of Linux; the mmap module names it from Python 3.13 on


class BusError(PolymmuError):
    """An access to a physical address where there is no memory."""


def sparse(nbytes: int, what: str) -> mmap.mmap:
    """Zeroed memory of which only the pages that are written exist."""
    if sys.byteorder != "little":  # pragma: no cover - the kernels read words in host order
        raise PolymmuError("polymmu needs a little-endian host")
    try:
        mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    except (OSError, OverflowError) as error:
        raise UserMistake(
            f"the host refuses {nbytes:#x} bytes of address space for {what}; choose less memory"
        ) from error
    # One touched byte must cost 4 KiB, not 2 MiB.
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a host kernel without transparent huge pages
            mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping


class Ram:
    """``size`` bytes of physical memory at physical address 0.

    ``bytes``, ``u64``, ``u32``: numpy views of all of it; ``words``: the same as ``int64``, for kernels;
    ``m8``, ``m32``, ``m64``: memoryviews, whose items are plain ints and cheap to get and set from Python.
    """

    def __init__(self, size_bytes: int) -> None:
        if size_bytes <= 0 or size_bytes % mmap.PAGESIZE:
            raise UserMistake(f"memory of {size_bytes} bytes: must be a positive multiple of {mmap.PAGESIZE}")
        self._hold(sparse(size_bytes, "physical memory"), size_bytes)

    @classmethod
    def from_file(cls, path: Path) -> Ram:
        """The bytes of a file at physical address 0; stores do not reach the file. OSError if it cannot be read."""
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size // mmap.PAGESIZE * mmap.PAGESIZE
            ram = cls.__new__(cls)
            ram._hold(mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY), size)
        return ram

    def _hold(self, mapping: mmap.mmap, size_bytes: int) -> None:
        self.size = size_bytes
        self._mapping = mapping
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self._mapping, dtype=np.uint8)
        self.u32: npt.NDArray[np.uint32] = self.bytes.view(np.uint32)
        self.u64: npt.NDArray[np.uint64] = self.bytes.view(np.uint64)
        self.words: npt.NDArray[np.int64] = self.bytes.view(np.int64)
        self.m8 = memoryview(self._mapping)
        self.m32 = self.m8.cast("I")
        self.m64 = self.m8.cast("Q")

    def _check(self, pa: int, nbytes: int) -> None:
        if pa < 0 or nbytes < 0 or pa + nbytes > self.size:
            raise BusError(f"no memory at physical {pa:#x}+{nbytes}: this machine has {self.size:#x} bytes")

    def read(self, pa: int, nbytes: int) -> bytes:
        """The ``nbytes`` bytes at physical address ``pa``; BusError outside memory."""
        self._check(pa, nbytes)
        return bytes(self.m8[pa : pa + nbytes])

    def write(self, pa: int, data: bytes) -> None:
        """Store ``data`` at ``pa``. Whoever does so marks the frame (``Frames.NONZERO``)."""
        self._check(pa, len(data))
        self.m8[pa : pa + len(data)] = data

    def read_entry(self, pa: int, nbytes: int, order: str) -> int:
        """The table entry of 4 or 8 bytes at ``pa`` (aligned), in byte order ``little`` or ``big``."""
        if not 0 <= pa <= self.size - nbytes:
            self._check(pa, nbytes)
        if order == "little":
            return self.m64[pa >> 3] if nbytes == 8 else self.m32[pa >> 2]
        return int.from_bytes(self.m8[pa : pa + nbytes], "big")

    def write_entry(self, pa: int, nbytes: int, order: str, entry: int) -> None:
        """Store a table entry of 4 or 8 bytes at ``pa`` (aligned)."""
        if not 0 <= pa <= self.size - nbytes:
            self._check(pa, nbytes)
        if order == "big":
            self.m8[pa : pa + nbytes] = entry.to_bytes(nbytes, "big")
        elif nbytes == 8:
            self.m64[pa >> 3] = entry
        else:
            self.m32[pa >> 2] = entry

    def close(self) -> None:
        """Give the host its memory back now. The object stays usable and reads as zeroes."""
        self._mapping.madvise(mmap.MADV_DONTNEED)


class Frames:
    """One row of the table per property, one column per page frame (``pfn`` = physical address / page size).

    ``mapcount`` 0: not mapped. ``generation`` moves on whenever a frame is freed. All zero at first; what
    the properties mean beyond that is the mm core's.
    """

    def __init__(self, count: int, page_size: int) -> None:
        self.count = count
        self.page_size = page_size
        self.page_shift = page_size.bit_length() - 1
        self._mapping = sparse(COLUMNS * count * 8, "page frames")
        self.table: npt.NDArray[np.int64] = np.frombuffer(self._mapping, dtype=np.int64).reshape(
            COLUMNS, count
        )
        rows = [memoryview(self.table[n]) for n in range(COLUMNS)]
        self.refcount: memoryview[int] = rows[REFCOUNT]
        self.mapcount: memoryview[int] = rows[MAPCOUNT]
        self.flags: memoryview[int] = rows[FLAGS]
        self.mapping: memoryview[int] = rows[MAPPING]
        self.index: memoryview[int] = rows[INDEX]
        self.generation: memoryview[int] = rows[GENERATION]
        self.lru_next: memoryview[int] = rows[LRU_NEXT]
        self.lru_prev: memoryview[int] = rows[LRU_PREV]
        self.private: memoryview[int] = rows[PRIVATE]
