"""Traces in Parquet: the accesses as a table, everything else in the file's key-value metadata.

The table's columns are those of the npz formats (``op``, ``vaddr``, ``size``, or the five ``run_`` columns).
The metadata key ``mmtrace`` holds a JSON object: ``meta`` (as in the npz formats) and, each optional, the
small columns (``mm_pos`` ... ``vma_file``) as lists. Without that key the table is taken as ``mmtrace-npz``,
version 1, accesses alone. Needs the extra ``polymmu[parquet]``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polymmu.errors import UserMistake
from polymmu.workload.columns import ACCESS_FORMAT, COLUMNS, VERSION, workload_from_columns
from polymmu.workload.model import Workload
from polymmu.workload.source import file_sha256

__all__ = ["PARQUET_MAGIC", "read_parquet"]

PARQUET_MAGIC = b"PAR1"
_METADATA_KEY = b"mmtrace"


def read_parquet(path: Path) -> Workload:
    """The workload in a Parquet file; ``UserMistake`` for anything else, or when pyarrow is not installed."""
    place = str(path)
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError:
        raise UserMistake(
            "is a Parquet file and the pyarrow package is missing; pip install 'polymmu[parquet]'",
            place=place,
        ) from None
    sha256 = file_sha256(path)
    columns: dict[str, NDArray[Any]] = {}
    try:
        table: Any = pq.read_table(path, columns=None)
        for name in table.column_names:
            if name in COLUMNS:
                if table.column(name).null_count:
                    raise UserMistake(f"{name}: has empty rows; every access has a value", place=place)
                # A copy: kernels are compiled for arrays that may be written.
                columns[name] = np.array(table.column(name).to_numpy())
        extra = (table.schema.metadata or {}).get(_METADATA_KEY)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        if isinstance(error, UserMistake):
            raise
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserMistake(f"the file is damaged ({why}); copy or write it again", place=place) from None
    meta: object = {"format": ACCESS_FORMAT, "version": VERSION}
    if extra is not None:
        meta = _take_metadata(place, extra, columns)
    return workload_from_columns(place, columns, json.dumps(meta), name=path.name, sha256=sha256)


def _take_metadata(place: str, extra: bytes, columns: dict[str, NDArray[Any]]) -> object:
    """Put the small columns of the metadata into ``columns``; return its ``meta``."""
    try:
        found = json.loads(extra)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserMistake("metadata 'mmtrace': is not a JSON object; write the file again", place=place)
    for name in COLUMNS:
        if name in found and name not in columns:
            try:
                columns[name] = np.array(found[name], dtype=COLUMNS[name][0])
            except (ValueError, TypeError, OverflowError):
                raise UserMistake(
                    f"metadata 'mmtrace': {name} is not a list of {np.dtype(COLUMNS[name][0])}", place=place
                ) from None
    return found.get("meta")
