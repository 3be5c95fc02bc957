"""Columns of arrays made into a workload, and refused where they cannot be one.

The npz and the Parquet reader find the same named columns in different containers; everything after that is
here, so that both refuse the same things in the same words. Checks are a few vectorised passes: minima and
maxima, no copies.

First reading: ``workload_from_columns``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polymmu.errors import UserMistake
from polymmu.workload.model import (
    AccessColumns,
    InitialMapping,
    MmCall,
    PageRuns,
    ThreadSlice,
    Workload,
)
from polymmu.workload.syscalls import NAMES, prot_letters, signed_fd

__all__ = ["ACCESS_FORMAT", "COLUMNS", "RUNS_FORMAT", "VERSION", "check_accesses", "workload_from_columns"]

ACCESS_FORMAT = "mmtrace-npz"
RUNS_FORMAT = "mmtrace-npz-runs"
VERSION = 1

Column = NDArray[Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    # every type a column may have; the first is what a writer uses
    "op": ("u1",),
    "vaddr": ("u8",),
    "size": ("u1",),
    "run_vpn": ("u8",),
    "run_data": ("u1",),
    "run_write": ("u1",),
    "run_count": ("u4", "u8"),
    "run_pos": ("u8", "u4"),
    "mm_pos": ("u8",),
    "mm_tid": ("u2", "u4"),
    "mm_nr": ("i4",),
    "mm_args": ("i8",),
    "mm_ret": ("i8",),
    "thr_pos": ("u8",),
    "thr_tid": ("u2", "u4"),
    "vma_start": ("u8",),
    "vma_end": ("u8",),
    "vma_prot": ("u1",),
    "vma_file": ("u1",),
}

_ACCESSES = ("op", "vaddr", "size")
_RUNS = ("run_vpn", "run_data", "run_write", "run_count", "run_pos")
_GROUPS = (
    _ACCESSES,
    _RUNS,
    ("mm_pos", "mm_tid", "mm_nr", "mm_args", "mm_ret"),
    ("thr_pos", "thr_tid"),
    ("vma_start", "vma_end", "vma_prot", "vma_file"),
)
_TOP = 1 << 64


def workload_from_columns(
    place: str, columns: Mapping[str, Column], meta_text: str, *, name: str, sha256: str
) -> Workload:
    """The workload that ``columns`` (only names from ``COLUMNS``) and the JSON text ``meta_text`` describe.

    Raises ``UserMistake`` naming ``place`` and the column for anything that is not a valid trace.
    """
    meta = _meta(place, meta_text)
    form = meta.get("format")
    needed = {ACCESS_FORMAT: _ACCESSES, RUNS_FORMAT: _RUNS}.get(form) if isinstance(form, str) else None
    if not isinstance(form, str) or needed is None:
        raise UserMistake(
            f"meta: format {form!r} is not known (known: {ACCESS_FORMAT}, {RUNS_FORMAT})", place=place
        )
    if meta.get("version") != VERSION or isinstance(meta.get("version"), bool):
        raise UserMistake(
            f"meta: version {meta.get('version')!r} of {form} is not known (known: {VERSION})", place=place
        )
    for column in needed:
        if column not in columns:
            raise UserMistake(
                f"{column}: the column is missing; {form} needs {', '.join(needed)}", place=place
            )
    _check_shapes(place, columns)
    accesses = _accesses(place, columns) if form == ACCESS_FORMAT else _runs(place, columns, meta)
    end = len(accesses) if isinstance(accesses, AccessColumns) else _runs_end(accesses)
    return Workload(
        name=name,
        sha256=sha256,
        format=form,
        accesses=accesses,
        calls=_calls(place, columns, end),
        threads=_threads(place, columns, end),
        initial=_initial(place, columns),
        meta=meta,
    )


def _meta(place: str, text: str) -> dict[str, Any]:
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        raise UserMistake("meta: is not JSON; record the trace again", place=place) from None
    if not isinstance(meta, dict):
        raise UserMistake("meta: is not a JSON object; record the trace again", place=place)
    return meta


def _check_shapes(place: str, columns: Mapping[str, Column]) -> None:
    for name, column in columns.items():
        allowed = COLUMNS[name]
        if column.dtype not in [np.dtype("<" + kind) for kind in allowed]:
            types = " or ".join(str(np.dtype(kind)) for kind in allowed)
            raise UserMistake(f"{name}: has type {column.dtype}, not {types}", place=place)
        shape = (len(column) if column.ndim else 0, 6) if name == "mm_args" else (column.size,)
        if column.shape != shape:
            wanted = "(calls, 6)" if name == "mm_args" else "one dimension"
            raise UserMistake(f"{name}: has shape {column.shape}, not {wanted}", place=place)
    for group in _GROUPS:
        present = [name for name in group if name in columns]
        if present and len(present) < len(group):
            missing = next(name for name in group if name not in columns)
            raise UserMistake(f"{missing}: the column is missing beside {present[0]}", place=place)
        for name in present[1:]:
            if len(columns[name]) != len(columns[present[0]]):
                raise UserMistake(
                    f"{name}: has {len(columns[name])} rows, {present[0]} has {len(columns[present[0]])}",
                    place=place,
                )


def _refuse_first(place: str, name: str, bad: NDArray[np.bool_], column: Column, why: str) -> None:
    """Raise for the first row where ``bad`` holds; called only when there is one."""
    row = int(np.argmax(bad))
    raise UserMistake(f"{name}[{row}]: {int(column[row])} {why}", place=place)


def check_accesses(place: str, accesses: AccessColumns) -> None:
    """Refuse accesses that no program can have made: unknown op, size 0, a range beyond 2**64."""
    op, vaddr, size = accesses.op, accesses.vaddr, accesses.size
    if not len(op):
        return
    if op.max() > 3:
        _refuse_first(place, "op", op > 3, op, "is no operation (0 fetch, 1 load, 2 store, 3 modify)")
    if size.min() == 0:
        _refuse_first(place, "size", size == 0, size, "bytes: an access has at least one")
    if int(vaddr.max()) + int(size.max()) > _TOP:
        last = vaddr + (size - np.uint8(1))
        if (last < vaddr).any():
            row = int(np.argmax(last < vaddr))
            raise UserMistake(
                f"vaddr[{row}]: {int(vaddr[row]):#x} + {int(size[row])} bytes wraps past 2**64", place=place
            )


def _accesses(place: str, columns: Mapping[str, Column]) -> AccessColumns:
    accesses = AccessColumns(columns["op"], columns["vaddr"], columns["size"])
    check_accesses(place, accesses)
    return accesses


def _runs(place: str, columns: Mapping[str, Column], meta: dict[str, Any]) -> PageRuns:
    shift = meta.get("page_shift")
    if not isinstance(shift, int) or isinstance(shift, bool) or not 10 <= shift <= 30:
        raise UserMistake(f"meta: page_shift {shift!r} is not a number from 10 to 30", place=place)
    vpn, data, write = columns["run_vpn"], columns["run_data"], columns["run_write"]
    count, pos = columns["run_count"], columns["run_pos"]
    if len(vpn):
        if int(vpn.max()) >= 1 << (64 - shift):
            _refuse_first(place, "run_vpn", vpn >= 1 << (64 - shift), vpn, "lies beyond 2**64")
        for name, column in (("run_data", data), ("run_write", write)):
            if column.max() > 1:
                _refuse_first(place, name, column > 1, column, "is neither 0 nor 1")
        if (write > data).any():
            _refuse_first(place, "run_write", write > data, write, "but the run is of fetches")
        if count.min() == 0:
            _refuse_first(place, "run_count", count == 0, count, "accesses: a run has at least one")
        if int(count.max()) >= 1 << 32:
            _refuse_first(place, "run_count", count >= 1 << 32, count, "accesses are too many for one run")
        _check_ascending(place, "run_pos", pos)
    return PageRuns(vpn, data, write, count.astype(np.uint32, copy=False), pos.astype(np.uint64), shift)


def _runs_end(runs: PageRuns) -> int:
    """An upper bound of positions: the last run holds at most its count."""
    return int(runs.pos[-1]) + int(runs.count.sum(dtype=np.uint64)) if len(runs) else 0


def _check_ascending(place: str, name: str, column: Column) -> None:
    descends = column[1:] < column[:-1]
    if descends.any():
        row = int(np.argmax(descends)) + 1
        raise UserMistake(
            f"{name}[{row}]: {int(column[row])} after {int(column[row - 1])}: positions must ascend",
            place=place,
        )


def _check_positions(place: str, name: str, column: Column, end: int) -> None:
    _check_ascending(place, name, column)
    if len(column) and int(column[-1]) > end:
        row = int(np.argmax(column > end))
        raise UserMistake(
            f"{name}[{row}]: {int(column[row])} lies beyond the last access, {end}", place=place
        )


def _calls(place: str, columns: Mapping[str, Column], end: int) -> tuple[MmCall, ...]:
    if "mm_pos" not in columns:
        return ()
    _check_positions(place, "mm_pos", columns["mm_pos"], end)
    rows = zip(
        columns["mm_pos"].tolist(),
        columns["mm_tid"].tolist(),
        columns["mm_nr"].tolist(),
        columns["mm_args"].tolist(),
        columns["mm_ret"].tolist(),
        strict=True,
    )
    return tuple(
        MmCall(pos, tid, 1, name, signed_fd(name, tuple(args)), ret)
        for pos, tid, number, args, ret in rows
        if (name := NAMES.get(number)) is not None
    )


def _threads(place: str, columns: Mapping[str, Column], end: int) -> tuple[ThreadSlice, ...]:
    if "thr_pos" not in columns:
        return ()
    _check_positions(place, "thr_pos", columns["thr_pos"], end)
    return tuple(map(ThreadSlice, columns["thr_pos"].tolist(), columns["thr_tid"].tolist()))


def _initial(place: str, columns: Mapping[str, Column]) -> tuple[InitialMapping, ...]:
    if "vma_start" not in columns:
        return ()
    mappings: list[InitialMapping] = []
    starts, ends = columns["vma_start"].tolist(), columns["vma_end"].tolist()
    prots, files = columns["vma_prot"].tolist(), columns["vma_file"].tolist()
    for row, (start, end, prot, is_file) in enumerate(zip(starts, ends, prots, files, strict=True)):
        if start >= end or (start | end) & 0xFFF:
            raise UserMistake(
                f"vma_start[{row}]: [{start:#x}, {end:#x}) is not a range of whole 4 KiB pages", place=place
            )
        if mappings and start < mappings[-1].end:
            raise UserMistake(
                f"vma_start[{row}]: {start:#x} lies below the end of the mapping before it, "
                f"{mappings[-1].end:#x}; mappings must ascend and not overlap",
                place=place,
            )
        if prot > 7 or is_file > 1:
            raise UserMistake(
                f"vma_prot[{row}]: {prot} with vma_file {is_file}: prot is at most 7, file 0 or 1",
                place=place,
            )
        mappings.append(InitialMapping(start, end, prot_letters(prot), bool(is_file)))
    return tuple(mappings)
