"""The npz traces: what is read, and what is refused with place, value and way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polymmu.errors import UserMistake
from polymmu.workload.model import AccessColumns, InitialMapping, MmCall, PageRuns, ThreadSlice
from polymmu.workload.npz import write_npz
from tests.workload.samples import read, save, small_columns, small_runs, trace_path


def test_every_column_comes_out_as_it_went_in(tmp_path: Path) -> None:
    workload = read(save(tmp_path / "t.npz", small_columns()))
    assert isinstance(workload.accesses, AccessColumns)
    assert workload.accesses.op.tolist() == [0, 1, 3]
    assert workload.accesses.vaddr.tolist() == [0x400000, 0x7000_0000_0000, 0x7000_0000_0FFC]
    assert workload.calls == (MmCall(1, 1, 1, "mmap", (0, 8192, 3, 34, -1, 0), 0x7000_0000_0000),)
    assert workload.threads == (ThreadSlice(0, 1),)
    assert workload.initial == (InitialMapping(0x400000, 0x401000, "rx", True),)
    assert workload.meta["program"] == "by hand"
    assert workload.name == "t.npz"


@pytest.mark.parametrize(
    ("name", "rows", "calls", "slices"),
    [("sort", 2_335_789, 44, 1), ("threads", 5_000_000, 274, 10), ("numpy_runs", 2_600_000, 684, 0)],
)
def test_real_recordings_have_the_rows_their_makers_state(
    name: str, rows: int, calls: int, slices: int
) -> None:
    workload = read(trace_path(name))
    assert workload.accesses is not None
    assert (len(workload.accesses), len(workload.calls), len(workload.threads)) == (rows, calls, slices)


def test_arrays_may_be_written_so_that_kernels_compile_once(tmp_path: Path) -> None:
    workload = read(save(tmp_path / "t.npz", small_columns()))
    assert isinstance(workload.accesses, AccessColumns)
    assert workload.accesses.vaddr.flags.writeable
    assert workload.accesses.vaddr.flags.c_contiguous


def test_page_runs_are_read_with_their_shift(tmp_path: Path) -> None:
    runs = read(save(tmp_path / "r.npz", small_runs())).accesses
    assert isinstance(runs, PageRuns)
    assert (runs.page_shift, runs.pos.tolist(), runs.count.dtype) == (12, [0, 3], np.dtype(np.uint32))


def test_failed_calls_are_recognised_by_the_range_of_errno() -> None:
    assert MmCall(0, 1, 1, "mmap", (), -12).failed
    assert not MmCall(0, 1, 1, "mmap", (), -4096).failed  # an address near the top
    assert not MmCall(0, 1, 1, "exit", (), None).failed


def _meta(**changes: Any) -> Any:
    return np.array(json.dumps({"format": "mmtrace-npz", "version": 1} | changes))


U8, U64 = np.uint8, np.uint64


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"op": np.array([0, 1, 9], U8)}, "op[2]: 9 is no operation"),
        ({"size": np.array([1, 0, 1], U8)}, "size[1]: 0 bytes"),
        (
            {"vaddr": np.array([0, 2**64 - 4, 0], U64)},
            "vaddr[1]: 0xfffffffffffffffc + 8 bytes wraps past 2**64",
        ),
        ({"vaddr": np.array([1.5, 2, 3])}, "vaddr: has type float64, not uint64"),
        ({"vaddr": np.array([1, 2, 3], ">u8")}, "vaddr: has type >u8, not uint64"),
        ({"op": np.zeros((3, 1), U8)}, "op: has shape (3, 1), not one dimension"),
        ({"size": np.ones(4, U8)}, "size: has 4 rows, op has 3"),
        ({"mm_args": np.zeros((1, 5), np.int64)}, "mm_args: has shape (1, 5), not (calls, 6)"),
        ({"mm_pos": np.array([4], U64)}, "mm_pos[0]: 4 lies beyond the last access, 3"),
        ({"thr_pos": np.array([2, 1], U64), "thr_tid": np.ones(2, np.uint16)}, "thr_pos[1]: 1 after 2"),
        ({"mm_ret": None}, "mm_ret: the column is missing beside mm_pos"),
        ({"vaddr": None}, "vaddr: the column is missing; mmtrace-npz needs op, vaddr, size"),
        (
            {"vma_end": np.array([0x400800], U64)},
            "vma_start[0]: [0x400000, 0x400800) is not a range of whole",
        ),
        ({"vma_prot": np.array([9], U8)}, "vma_prot[0]: 9"),
        ({"meta": _meta(format="mmtrace-xyz")}, "meta: format 'mmtrace-xyz' is not known"),
        ({"meta": _meta(version=2)}, "meta: version 2 of mmtrace-npz is not known (known: 1)"),
        ({"meta": np.array("{")}, "meta: is not JSON"),
        ({"meta": np.array("[]")}, "meta: is not a JSON object"),
        ({"meta": None}, "without a 'meta' string: not a trace"),
    ],
)
def test_a_malformed_trace_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    columns = {name: column for name, column in (small_columns() | changes).items() if column is not None}
    path = save(tmp_path / "bad.npz", columns)
    with pytest.raises(UserMistake) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"run_write": np.array([1, 0], U8)}, "run_write[0]: 1 but the run is of fetches"),
        ({"run_count": np.array([0, 1], np.uint32)}, "run_count[0]: 0 accesses"),
        ({"run_vpn": np.array([1, 2**60], U64)}, "run_vpn[1]: 1152921504606846976 lies beyond 2**64"),
        ({"run_pos": np.array([3, 0], np.uint32)}, "run_pos[1]: 0 after 3"),
        ({"run_data": np.array([0, 7], U8)}, "run_data[1]: 7 is neither 0 nor 1"),
        ({"meta": _meta(format="mmtrace-npz-runs", page_shift="12")}, "page_shift '12' is not a number"),
    ],
)
def test_malformed_page_runs_are_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserMistake) as caught:
        read(save(tmp_path / "bad.npz", small_runs() | changes))
    assert told in str(caught.value)


def test_the_last_byte_below_2_to_the_64_may_be_accessed(tmp_path: Path) -> None:
    vaddr = np.array([0, 2**64 - 8, 2**64 - 1], np.uint64)
    columns = small_columns() | {"vaddr": vaddr, "size": np.array([1, 8, 1], np.uint8)}
    accesses = read(save(tmp_path / "t.npz", columns)).accesses
    assert isinstance(accesses, AccessColumns)
    assert accesses.vaddr.tolist() == vaddr.tolist()


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"op: the archive is damaged"):
        read(save(tmp_path / "t.npz", small_columns() | {"op": np.array([print], dtype=object)}))


def test_what_is_written_reads_back_and_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    small = small_columns()
    streams = {
        name: (3, [small[name][:1].tobytes(), small[name][1:].tobytes()]) for name in ("op", "vaddr", "size")
    }
    rest = {name: small[name] for name in small if name not in streams and name != "meta"}
    meta = {"format": "mmtrace-npz", "version": 1, "program": "by hand"}
    write_npz(tmp_path / "a.npz", streams, rest, meta)
    write_npz(tmp_path / "b.npz", streams, rest, meta)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again, first = read(tmp_path / "a.npz"), read(save(tmp_path / "t.npz", small))
    assert (again.calls, again.threads, again.initial, again.meta) == (
        first.calls,
        first.threads,
        first.initial,
        first.meta,
    )
    with np.load(tmp_path / "a.npz") as plain:
        assert plain["vaddr"].tolist() == small["vaddr"].tolist()
