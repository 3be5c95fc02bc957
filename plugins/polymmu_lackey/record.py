"""Record a program: run it under lackey, and turn the log into a compact trace while it is written.

The log comes through a pipe of its own, so the program keeps its stdin, stdout and stderr. Nothing grows
with the run but three compressed columns in a temporary directory beside the output; the trace appears under
its name only when it is complete, so a failed recording leaves an older one alone.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import platform
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polymmu.errors import UserMistake
from polymmu.workload.columns import ACCESS_FORMAT, VERSION
from polymmu.workload.model import InitialMapping
from polymmu.workload.npz import write_npz
from polymmu.workload.syscalls import NUMBERS
from polymmu_lackey.layout import initial_mappings
from polymmu_lackey.log import LackeyParser

__all__ = ["record"]

_OPTIONS = ("--tool=lackey", "--trace-mem=yes", "--trace-syscalls=yes", "--trace-sched=yes")
_COLUMNS = ("op", "vaddr", "size")
_PIECE = 1 << 20
_PROT = {"r": 1, "w": 2, "x": 4}


class _Spool:
    """The large columns on disk, lightly compressed, until the trace is put together."""

    def __init__(self, directory: Path) -> None:
        self._paths = {name: directory / name for name in _COLUMNS}
        self._streams = {
            name: gzip.GzipFile(path, "wb", compresslevel=1) for name, path in self._paths.items()
        }

    def __call__(self, op: NDArray[np.uint8], vaddr: NDArray[np.uint64], size: NDArray[np.uint8]) -> None:
        columns: tuple[NDArray[Any], ...] = (op, vaddr, size)
        for name, column in zip(_COLUMNS, columns, strict=True):
            self._streams[name].write(column.tobytes())

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()

    def pieces(self, name: str) -> Iterator[bytes]:
        """Column ``name`` as bytes, after ``close``."""
        with gzip.open(self._paths[name], "rb") as stream:
            while piece := stream.read(_PIECE):
                yield piece


def record(out: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Run ``argv`` and write its trace to ``out``; returns the trace's ``meta``.

    Children that the program forks are not traced (a parent's own calls tell when they begin and end).
    Ctrl-C ends the program and keeps what there is, with ``"partial": true``. Raises ``UserMistake`` where
    valgrind or the program is missing, or nothing could be recorded.
    """
    valgrind = _find(argv)
    if not out.parent.is_dir():
        raise UserMistake("has no directory to lie in; create it first", place=str(out))
    initial = initial_mappings(valgrind, argv)
    with tempfile.TemporaryDirectory(prefix=".polymmu-", dir=out.parent) as directory:
        spool = _Spool(Path(directory))
        parser = LackeyParser(f"valgrind's log of {argv[0]}", spool)
        status, partial = _run(valgrind, argv, parser)
        spool.close()
        if not parser.position:
            raise UserMistake(
                f"made no access under valgrind (exit status {status}); does it run?", place=argv[0]
            )
        version = subprocess.run([valgrind, "--version"], capture_output=True, text=True, check=False).stdout
        meta: dict[str, Any] = {
            "format": ACCESS_FORMAT,
            "version": VERSION,
            "program": Path(argv[0]).name,
            "command": shlex.join(argv),
            "tool": f"{version.strip().replace('-', ' ', 1)} {' '.join(_OPTIONS)}",
            "host": "x86_64 Linux, 4 KiB pages",
            "window_start": 0,
            "window_len": parser.position,
            "whole_run": not partial,
            "total_accesses": -1 if partial else parser.position,
            "exit_status": status,
        }
        if partial:
            meta["partial"] = True
        finished = Path(directory) / "trace"
        streams = {name: (parser.position, spool.pieces(name)) for name in _COLUMNS}
        write_npz(finished, streams, _small_columns(parser, initial), meta)
        finished.replace(out)
    return meta


def _find(argv: Sequence[str]) -> str:
    if not argv:
        raise UserMistake("no program to record; give it after --")
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        raise UserMistake(f"recording works on x86-64 Linux only, not on {platform.machine()} {sys.platform}")
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise UserMistake(
            "recording needs valgrind, which is not installed; apt install valgrind (Debian, Ubuntu), "
            "dnf install valgrind (Fedora)"
        )
    if shutil.which(argv[0]) is None:
        raise UserMistake("no such program, or not executable; check the name", place=argv[0])
    return valgrind


def _run(valgrind: str, argv: Sequence[str], parser: LackeyParser) -> tuple[int, bool]:
    """Feed ``parser`` with the log of one run. Returns the exit status and whether Ctrl-C ended it."""
    log, log_writer = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                [valgrind, *_OPTIONS, "--child-silent-after-fork=yes", f"--log-fd={log_writer}", *argv],
                pass_fds=[log_writer],
            )
        finally:
            os.close(log_writer)
        try:
            with _noting_ctrl_c() as pressed:
                _pump(log, process, parser, pressed)
            interrupted = bool(pressed)
        except BaseException:
            process.kill()
            process.wait()
            raise
        status = _wait(process, interrupted)
    finally:
        os.close(log)
    parser.finish(cut_short=interrupted or status < 0)
    return status, interrupted


@contextlib.contextmanager
def _noting_ctrl_c() -> Iterator[list[int]]:
    """Ctrl-C only makes a note, so that nothing is left half written: an exception might arrive between the bytes that
    a compressed column takes and its checksum."""
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed  # signals never arrive here
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _pump(log: int, process: subprocess.Popen[bytes], parser: LackeyParser, pressed: list[int]) -> None:
    """Read the log to its end: no more writers, valgrind gone while an orphan holds the pipe open, or Ctrl-C."""
    shown, show = time.monotonic(), sys.stderr.isatty()
    with selectors.DefaultSelector() as selector:
        selector.register(log, selectors.EVENT_READ)
        while not pressed:
            gone = process.poll() is not None
            if not selector.select(timeout=0.2):
                if gone:
                    break
                continue
            piece = os.read(log, _PIECE)
            if not piece:
                break
            parser.feed(piece)
            if show and time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                sys.stderr.write(f"\rrecording: {parser.position:,} accesses")
                sys.stderr.flush()
    if show:
        sys.stderr.write("\r\033[K")


def _wait(process: subprocess.Popen[bytes], interrupted: bool) -> int:
    """The program's exit status; minus the signal's number if one killed it."""
    if interrupted:
        # The terminal sent the program the same Ctrl-C; one that goes on regardless is ended.
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    return process.wait()


def _small_columns(parser: LackeyParser, initial: Sequence[InitialMapping]) -> dict[str, NDArray[Any]]:
    calls = parser.calls
    args = np.zeros((len(calls), 6), np.int64)
    for row, call in enumerate(calls):
        values = [value - (1 << 64) if value >> 63 == 1 else value for value in call.args[:6]]
        args[row, : len(values)] = values
    return {
        "mm_pos": np.array([call.pos for call in calls], np.uint64),
        "mm_tid": np.array([call.tid for call in calls], np.uint16),
        "mm_nr": np.array([NUMBERS[call.name] for call in calls], np.int32),
        "mm_args": args,
        "mm_ret": np.array([call.ret or 0 for call in calls], np.int64),
        "thr_pos": np.array([part.pos for part in parser.threads], np.uint64),
        "thr_tid": np.array([part.tid for part in parser.threads], np.uint16),
        "vma_start": np.array([m.start for m in initial], np.uint64),
        "vma_end": np.array([m.end for m in initial], np.uint64),
        "vma_prot": np.array([sum(_PROT[letter] for letter in m.prot) for m in initial], np.uint8),
        "vma_file": np.array([m.is_file for m in initial], np.uint8),
    }
