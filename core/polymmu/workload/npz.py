"""The ``.npz`` trace formats, ``mmtrace-npz`` and ``mmtrace-npz-runs``: reading and writing.

A trace is a zip of NumPy arrays, so any NumPy reads it with one call. Reading never unpickles. Writing takes
the large columns as streams of bytes, because a recording may not fit in memory.
"""

from __future__ import annotations

import json
import lzma
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polymmu.errors import UserMistake
from polymmu.workload.columns import COLUMNS, workload_from_columns
from polymmu.workload.model import Workload
from polymmu.workload.source import file_sha256

__all__ = ["NPZ_MAGIC", "read_npz", "write_npz"]

NPZ_MAGIC = b"PK\x03\x04"

# What zipfile, its decompressors and numpy's header parser raise on damaged files; each was met by fuzzing or
# is documented.
_DAMAGE = (
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path) -> Workload:
    """The workload in an ``.npz`` trace; ``UserMistake`` for anything else."""
    sha256 = file_sha256(path)
    place = str(path)
    where = ""
    columns: dict[str, NDArray[Any]] = {}
    meta: NDArray[Any] | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy warns of headers it had to repair
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                for name in archive.files:
                    where = f"{name}: "
                    if name == "meta":
                        meta = archive[name]
                    elif name in COLUMNS:
                        columns[name] = archive[name]
    except _DAMAGE as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserMistake(
            f"{where}the archive is damaged ({why}); copy or record it again", place=place
        ) from None
    if not isinstance(meta, np.ndarray) or meta.dtype.kind != "U" or meta.ndim:
        raise UserMistake(
            "is a zip or npz file without a 'meta' string: not a trace; record one with polymmu record",
            place=place,
        )
    strange = next((name for name, column in columns.items() if not isinstance(column, np.ndarray)), None)
    if strange is not None:
        raise UserMistake(f"{strange}: is not an array; record the trace again", place=place)
    return workload_from_columns(place, columns, str(meta), name=path.name, sha256=sha256)


def write_npz(
    path: Path,
    streams: Mapping[str, tuple[int, Iterable[bytes]]],
    columns: Mapping[str, NDArray[Any]],
    meta: Mapping[str, Any],
) -> None:
    """Write a trace. ``streams``: for each large column its rows and its bytes in pieces; ``columns``: the
    rest.

    Deflate, not LZMA: loads as fast, and compresses twenty times as fast for twice the size. The file is
    the same bytes every time: no clock goes into it.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        for name, (rows, pieces) in streams.items():
            header = {"descr": "<" + COLUMNS[name][0], "fortran_order": False, "shape": (rows,)}
            with archive.open(_member(name), "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for piece in pieces:
                    member.write(piece)
        small = {name: np.asarray(column, "<" + COLUMNS[name][0]) for name, column in columns.items()}
        small["meta"] = np.array(json.dumps(dict(meta), sort_keys=True))
        for name, array in small.items():
            with archive.open(_member(name), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
