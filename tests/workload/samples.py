"""Recordings of real programs, and small traces made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import polymmu_lackey
import polymmu_strace
from polymmu.workload.model import Workload
from polymmu.workload.readers import open_workload

TRACES = Path(__file__).parent.parent / "data" / "traces"
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PLUGINS = (("lackey", polymmu_lackey), ("strace", polymmu_strace))

# Distinct 4 KiB pages as counted by the people who recorded, independently of this project.
DISTINCT_PAGES = {
    "sort": 231,
    "gzip": 206,
    "sqlite": 232,
    "cc1": 1230,
    "cc1_part2": 582,
    "python": 789,
    "threads": 978,
    "numpy_runs": 2842,
}


def read(path: Path) -> Workload:
    """As the command line reads it, whether or not the plugins are installed."""
    return open_workload(path, PLUGINS)


def trace_path(name: str) -> Path:
    return EXAMPLES / "sort.npz" if name == "sort" else TRACES / f"{name}.npz"


def small_columns() -> dict[str, Any]:
    """Three accesses, one mmap before the second, one initial mapping."""
    return {
        "op": np.array([0, 1, 3], np.uint8),
        "vaddr": np.array([0x400000, 0x7000_0000_0000, 0x7000_0000_0FFC], np.uint64),
        "size": np.array([3, 8, 8], np.uint8),
        "mm_pos": np.array([1], np.uint64),
        "mm_tid": np.array([1], np.uint16),
        "mm_nr": np.array([9], np.int32),
        "mm_args": np.array([[0, 8192, 3, 34, 0xFFFFFFFF, 0]], np.int64),
        "mm_ret": np.array([0x7000_0000_0000], np.int64),
        "thr_pos": np.array([0], np.uint64),
        "thr_tid": np.array([1], np.uint16),
        "vma_start": np.array([0x400000], np.uint64),
        "vma_end": np.array([0x401000], np.uint64),
        "vma_prot": np.array([5], np.uint8),
        "vma_file": np.array([1], np.uint8),
        "meta": np.array(json.dumps({"format": "mmtrace-npz", "version": 1, "program": "by hand"})),
    }


def small_runs() -> dict[str, Any]:
    """Two page runs."""
    return {
        "run_vpn": np.array([0x400, 0x7000_0000], np.uint64),
        "run_data": np.array([0, 1], np.uint8),
        "run_write": np.array([0, 1], np.uint8),
        "run_count": np.array([5, 2], np.uint32),
        "run_pos": np.array([0, 3], np.uint32),
        "meta": np.array(json.dumps({"format": "mmtrace-npz-runs", "version": 1, "page_shift": 12})),
    }


def save(path: Path, columns: dict[str, Any]) -> Path:
    with path.open("wb") as stream:
        np.savez_compressed(stream, **columns)
    return path
