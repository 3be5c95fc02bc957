"""Lackey logs: accesses, calls, threads, and the traps of the format."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polymmu.errors import UserMistake
from polymmu.workload.model import AccessColumns, MmCall, ThreadSlice, Workload
from polymmu_lackey.log import LackeyParser
from tests.workload.samples import TRACES, read, trace_path

FETCH = "I  0401ab70,3\n"


def parse(tmp_path: Path, text: str | bytes) -> Workload:
    path = tmp_path / "log.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path)


def test_each_kind_of_access_has_its_op_address_and_size(tmp_path: Path) -> None:
    accesses = parse(
        tmp_path, "I  0401ab70,3\n L 1fff000768,8\n S 00000000,1\n M ffffffffffffff00,255\n"
    ).accesses
    assert isinstance(accesses, AccessColumns)
    assert accesses.op.tolist() == [0, 1, 2, 3]
    assert accesses.vaddr.tolist() == [0x0401AB70, 0x1FFF000768, 0, 0xFFFFFFFFFFFFFF00]
    assert accesses.size.tolist() == [3, 8, 1, 255]


@pytest.mark.parametrize("name", ["sort", "gzip"])
def test_log_and_npz_of_the_same_run_agree(name: str) -> None:
    """The npz was made from the whole log by another program; the sample is the log's beginning."""
    log, npz = read(TRACES / "raw" / f"{name}.lackey.head20k.txt.gz"), read(trace_path(name))
    assert isinstance(log.accesses, AccessColumns)
    assert isinstance(npz.accesses, AccessColumns)
    n = len(log.accesses)
    assert n == 19_992
    for column in ("op", "vaddr", "size"):
        np.testing.assert_array_equal(getattr(log.accesses, column), getattr(npz.accesses, column)[:n])
    first, same = log.calls[0], npz.calls[0]
    assert (first.pos, first.name, first.ret, first.args) == (same.pos, same.name, same.ret, same.args[:1])


def test_a_whole_run_of_true_has_its_calls_in_order() -> None:
    workload = read(TRACES / "raw" / "true.lackey.full.txt.gz")
    assert isinstance(workload.accesses, AccessColumns)
    assert len(workload.accesses) == 147_002
    assert [call.name for call in workload.calls[:7]] == [
        "brk", "openat", "mmap", "mmap", "mmap", "mmap", "mmap",
    ]  # fmt: skip
    opened = workload.calls[1]
    assert opened.path == "/usr/libexec/valgrind/vgpreload_core-amd64-linux.so"
    assert (opened.args, opened.ret) == ((-100, 0x4034BB0, 524288), 4)
    assert workload.calls[3].args == (0, 16400, 1, 2050, 4, 0)
    assert (workload.calls[-1].name, workload.calls[-1].ret) == ("exit_group", None)
    assert [call.pos for call in workload.calls] == sorted(call.pos for call in workload.calls)


def call(number: int, text: str, tid: int = 1, pid: int = 7) -> str:
    return f"SYSCALL[{pid},{tid}]({number}) {text}"


def test_the_result_of_an_async_call_belongs_to_the_thread_that_made_it(tmp_path: Path) -> None:
    text = (
        FETCH
        + call(257, "sys_openat ( 4294967196, 0x1(/a), 0 ) --> [async] ... \n")
        + call(257, "sys_openat ( 4294967196, 0x2(/b), 0 ) --> [async] ... \n", tid=2)
        + FETCH
        + call(257, "... [async] --> Success(0x3) \n", tid=2)
        + call(257, "... [async] --> Failure(0x2) \n")
    )
    assert parse(tmp_path, text).calls == (
        MmCall(2, 2, 1, "openat", (-100, 2, 0), 3, "/b"),
        MmCall(2, 1, 1, "openat", (-100, 1, 0), -2, "/a"),
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            call(9, "sys_mmap ( 0x0, 3221225472, 3, 34, 4294967295, 0 ) --> [pre-success] Success(0x4835000) \n"),
            ("mmap", (0, 3221225472, 3, 34, -1, 0), 0x4835000),  # 3 GiB stays 3 GiB, fd -1 becomes -1
        ),
        (call(11, "sys_munmap ( 0x4a2b000, 8192 )[sync] --> Success(0x0) \n"), ("munmap", (0x4A2B000, 8192), 0)),
        (
            call(56, "sys_clone ( 3d0f00, 0x5229f70, 0x522a990, 0x522a990, 0x522a6c0 ) --> [pre-success] "
                 "Success(0x13fa) --7--   SCHED[1]: releasing lock (VG_(vg_yield)) -> VgTs_Yielding\n"),
            ("clone", (0x3D0F00, 0x5229F70, 0x522A990, 0x522A990, 0x522A6C0), 0x13FA),
        ),
        (
            call(56, "sys_clone ( 1200011, 0x0, 0x0, 0x0, 0x0 )   clone(fork): process 7 created child 8\n"
                 " --> [pre-success] Success(0x8) --7--   SCHED[1]: releasing lock (x) -> y\n"),
            ("clone", (0x1200011, 0, 0, 0, 0), 8),
        ),
        (
            call(435, "unimplemented (by the kernel) syscall: 435! (ni_syscall)\n --> [pre-fail] Failure(0x26) \n"),
            ("clone3", (), -38),
        ),
        (call(231, "exit_group( 3 ) --> [pre-success] Success(0x0) \n"), ("exit_group", (3,), None)),
        (
            call(59, "sys_execve ( 0x1(/bin/true), 0x2, 0x3 )--7--   SCHED[1]:  acquired lock (x)\n"),
            ("execve", (1, 2, 3), None),
        ),
        (
            call(257, "sys_openat ( 4294967196, 0x9(/a (b), c\nI  00000000,1\n) --> Success(0x1), d), 0 )"
                 " --> [pre-success] Success(0x5) \n"),
            ("openat", (-100, 9, 0), 5),
        ),
    ],
)  # fmt: skip
def test_traps_of_call_lines(tmp_path: Path, line: str, expected: tuple[object, ...]) -> None:
    workload = parse(tmp_path, FETCH + line + FETCH)
    (made,) = workload.calls
    assert (made.name, made.args, made.ret) == expected
    assert workload.accesses is not None
    assert len(workload.accesses) == 2


def test_a_thread_switch_behind_a_call_is_not_lost(tmp_path: Path) -> None:
    text = (
        "--7--   SCHED[1]:  acquired lock (x)\n"
        + FETCH
        + call(1, "sys_write ( 1, 0x0, 3 ) --> [async] ... --7--   SCHED[2]:  acquired lock (y)\n")
        + FETCH
    )
    assert parse(tmp_path, text).threads == (ThreadSlice(0, 1), ThreadSlice(1, 2))


def test_lines_about_signals_say_nothing_about_memory(tmp_path: Path) -> None:
    workload = parse(tmp_path, FETCH + "SCHEDSETJMP(line 1211) tid 1, jumped=1476724588\n" + FETCH)
    assert workload.accesses is not None
    assert len(workload.accesses) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (FETCH + "hello world\n", "line 2: 'hello world' is not lackey's"),
        (FETCH + "I  0401ab70,0\n", "line 2: 'I  0401ab70,0' is not lackey's"),
        (FETCH + "I  401ab70,3\n", "line 2: "),
        (FETCH * 3 + "I  0401ab70,1", "line 4: breaks off"),
        (FETCH.encode() + b"\x00\xff\x00\n", r"line 2: '\x00\xff\x00' is not lackey's"),
        (FETCH + " L fffffffffffffffc,8\n", "vaddr[1]: 0xfffffffffffffffc + 8 bytes wraps"),
        (FETCH + call(12, "sys_brk ( what )[sync] --> Success(0x0) \n"), "line 2: the arguments of brk"),
        (
            FETCH + call(11, "sys_munmap ( 0x0, 1 )[sync] --> Success(0x0) \n") * 2
            + call(11, "sys_munmap ( 0x0, 1 )[sync] --> Success(0x0) \n", pid=8),
            "line 4: processes 7 and 8 share this log",
        ),
        (FETCH + " --> [pre-success] Success(0x0) \n", "line 2: a result without its call: a forked child"),
        ("==7== Lackey, an example Valgrind tool\n==7== \n", "holds no accesses; record with valgrind --trace-mem=yes"),
    ],
)  # fmt: skip
def test_a_broken_log_is_refused_with_its_line(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(UserMistake) as caught:
        parse(tmp_path, text)
    assert told in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def _keep_addresses(rows: list[int], op: Any, vaddr: Any, size: Any) -> None:
    assert len(op) == len(vaddr) == len(size)
    rows.extend(vaddr.tolist())


def test_pieces_may_end_anywhere() -> None:
    """Fed byte by byte, the parser says the same as fed at once."""
    text = (
        "==7== Lackey, an example Valgrind tool\n" + FETCH * 2
        + call(257, "sys_openat ( 4294967196, 0x9(/a\nb), 0 ) --> [async] ... \n") + FETCH
        + call(257, "... [async] --> Success(0x5) \n") + " S 1fff000768,8\n"
    ).encode()  # fmt: skip
    results = []
    for step in (1, 7, len(text)):
        rows: list[int] = []
        parser = LackeyParser("log", functools.partial(_keep_addresses, rows))
        for at in range(0, len(text), step):
            parser.feed(text[at : at + step])
        parser.finish()
        results.append((rows, parser.calls, parser.position))
    assert results[0] == results[1] == results[2]
    assert results[0][2] == 4
