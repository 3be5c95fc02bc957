"""What a lackey log says: accesses, and between them system calls and thread switches.

Access lines, nearly all of the text, go through the compiled ``parse_accesses``; every other line comes here:

    SYSCALL[PID,TID](9) sys_mmap ( 0x0, 8192, ... ) --> [pre-success] Success(0x4835000)
    SYSCALL[PID,TID](257) sys_openat ( ... ) --> [async] ...            its result comes later:
    SYSCALL[PID,TID](257) ... [async] --> Success(0x3)
    SYSCALL[PID,TID](56) sys_clone ( ... )   clone(fork): ...           its result is the next line:
     --> [pre-success] Success(0x13fb)
    --PID--   SCHED[TID]:  acquired lock (...)                          may follow a call on the same line
    SCHEDSETJMP(line 1211) tid 1, ...                                   a signal came; says nothing about memory

A path in a call may hold anything, line ends included. Any other line is refused with its number: a
program's own output mixed into the log would else pass for silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polymmu.errors import UserMistake
from polymmu.workload.columns import check_accesses
from polymmu.workload.model import AccessColumns, MmCall, ThreadSlice, Workload
from polymmu.workload.source import Source
from polymmu.workload.syscalls import NAMES, signed_fd
from polymmu_lackey.kernel import parse_accesses

__all__ = ["LackeyParser", "read_log"]

_SHORTEST_LINE = len("I  01234567,1\n")
_LONGEST_LINE = 1 << 20  # longer than any path: this is no text

_CALL = re.compile(rb"SYSCALL\[(\d+),(\d+)\]\( *(\d+)\) ?(.*)", re.DOTALL)
_RESULT = re.compile(
    rb"(.*)(?:\[sync\])? --> (?:\[[a-z-]+\] )?(Success|Failure)\((0x[0-9a-f]{1,16})\)", re.DOTALL
)
_PROMISE = re.compile(rb"(.*) --> \[async\] \.\.\. ?", re.DOTALL)
_ARGUMENTS = re.compile(rb"[^(]*\( ?([^()]*?) ?\)")
_ARGUMENTS_WITH_PATH = re.compile(rb"[^(]*\( ?([^()]*?0x[0-9a-f]+)\((.*)\)([^()]*?) ?\)", re.DOTALL)
_ACQUIRED = re.compile(rb"--(\d+)--   SCHED\[(\d+)\]:  acquired lock")
_BANNER = re.compile(rb"(?:==|--|\*\*)(\d+)(?:==|--|\*\*)")

Sink = Callable[[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint8]], object]


class LackeyParser:
    """Takes a log in pieces of any size; accesses go to ``sink`` as arrays, the rest gathers here.

    ``feed`` each piece, then ``finish``. Raises ``UserMistake`` with the line's number.
    """

    def __init__(self, place: str, sink: Sink) -> None:
        self.place = place
        self.position = 0
        self.calls: list[MmCall] = []
        self.threads: list[ThreadSlice] = []
        self._sink = sink
        self._line = 1
        self._rest = b""
        self._pid: bytes | None = None
        self._promised: dict[bytes, tuple[int, bytes]] = {}  # by thread: number and text of an [async] call
        self._open: tuple[bytes, int, bytes] | None = (
            None  # thread, number, text of a call without an arrow yet
        )
        self._broken_call = b""  # a call's line that ended inside a path

    def feed(self, piece: bytes) -> None:
        """Parse as much as ``piece`` completes."""
        text = self._rest + piece if self._rest else piece
        array = np.frombuffer(text, dtype=np.uint8)
        room = len(text) // _SHORTEST_LINE + 1
        op, vaddr, size = np.empty(room, np.uint8), np.empty(room, np.uint64), np.empty(room, np.uint8)
        at = n = done = 0
        first = self.position
        while True:
            if not self._broken_call:
                at, n = parse_accesses(array, at, op, vaddr, size, n)
                self._line += n - done
                self.position = first + n
                done = n
            end = text.find(b"\n", at)
            if end < 0:
                break
            self._other_line(text[at:end])
            self._line += 1
            at = end + 1
        self._rest = text[at:]
        if len(self._rest) > _LONGEST_LINE:
            raise self._mistake("is longer than any line of a lackey log; is this the right file?")
        if n:
            self._sink(op[:n], vaddr[:n], size[:n])

    def finish(self, *, cut_short: bool = False) -> None:
        """The log is over. ``cut_short``: its writer was stopped, so that half a line at its end is no
        mistake.
        """
        if not cut_short and (self._rest or self._broken_call):
            raise self._mistake("breaks off in the middle; copy or record the log again")
        self._drop_open()

    def _mistake(self, what: str) -> UserMistake:
        return UserMistake(f"line {self._line}: {what}", place=self.place)

    def _other_line(self, line: bytes) -> None:
        if self._broken_call:
            line = self._broken_call + b"\n" + line
            self._broken_call = b""
        call = _CALL.match(line)
        if call is not None:
            if len(line) > _LONGEST_LINE:
                raise self._mistake("a system call's text does not end; copy or record the log again")
            if not _is_whole(call[4]):
                self._broken_call = line
                return
            self._check_pid(call[1])
            self._call(call[2], int(call[3]), call[4])
        elif line.startswith(b" --> ") and self._open is None:
            raise self._mistake(
                "a result without its call: a forked child shares this log, and accesses do not say "
                "whose they are; record with --child-silent-after-fork=yes"
            )
        elif line.startswith(b" --> ") and self._open is not None:
            tid, number, text = self._open
            self._open = None
            self._call(tid, number, text + line)
        elif (banner := _BANNER.match(line)) is not None:
            self._check_pid(banner[1])
        elif line.strip() and _ACQUIRED.search(line) is None and not line.startswith(b"SCHEDSETJMP("):
            shown = repr(line[:40])[1:]  # binary garbage stays one printable line
            raise self._mistake(
                f"{shown} is not lackey's; keep the program's own output out with valgrind --log-file=FILE"
            )
        acquired = _ACQUIRED.search(line)
        if acquired is not None:
            self._switch(int(acquired[2]))

    def _check_pid(self, pid: bytes) -> None:
        if self._pid is None:
            self._pid = pid
        elif pid != self._pid:
            raise self._mistake(
                f"processes {self._pid.decode()} and {pid.decode()} share this log, and accesses "
                "do not say whose they are; record with --child-silent-after-fork=yes"
            )

    def _switch(self, tid: int) -> None:
        if self.threads and self.threads[-1].pos == self.position:
            self.threads.pop()
        if not self.threads or self.threads[-1].tid != tid:
            self.threads.append(ThreadSlice(self.position, tid))

    def _call(self, tid: bytes, number: int, text: bytes) -> None:
        self._drop_open()
        if text.startswith(b"..."):
            promised = self._promised.pop(tid, None)
            if promised is None or promised[0] != number:
                return  # the log begins between a call and its result
            text = promised[1] + text[3:].replace(b" [async]", b"", 1)
        result = _RESULT.match(text)
        if result is not None:
            value = int(result[3], 16)
            value -= 1 << 64 if value >> 63 else 0
            self._add(tid, number, result[1], value if result[2] == b"Success" else -value)
        elif (promise := _PROMISE.match(text)) is not None:
            self._promised[tid] = number, promise[1]
        else:
            self._open = tid, number, text

    def _drop_open(self) -> None:
        """A call whose result never came: it did not return. That is what exec and exit do."""
        if self._open is not None:
            tid, number, text = self._open
            self._open = None
            if NAMES.get(number) in ("execve", "exit", "exit_group"):
                self._add(tid, number, text, None)

    def _add(self, tid: bytes, number: int, text: bytes, ret: int | None) -> None:
        name = NAMES.get(number)
        if name is None:
            return
        args, path = self._arguments(name, text)
        if name in ("exit", "exit_group"):
            ret = None
        self.calls.append(MmCall(self.position, int(tid), 1, name, args, ret, path))

    def _arguments(self, name: str, text: bytes) -> tuple[tuple[int, ...], str]:
        if text.startswith(b"unimplemented"):  # valgrind answers ENOSYS itself and prints no arguments
            return (), ""
        path = b""
        match = _ARGUMENTS.match(text)
        if match is not None:
            words = match[1]
        else:
            match = _ARGUMENTS_WITH_PATH.match(text)
            if match is None:
                raise self._mistake(f"the arguments of {name} cannot be read; record the log again")
            words, path = match[1] + match[3], match[2]
        try:
            # clone alone prints its flags, the first argument, in hex without 0x.
            args = tuple(
                int(word, 16 if b"0x" in word or (name == "clone" and index == 0) else 10)
                for index, word in enumerate(words.split(b",") if words else ())
            )
        except ValueError:
            raise self._mistake(f"the arguments of {name} are not numbers; record the log again") from None
        return signed_fd(name, args), path.decode("utf-8", "replace")


def _is_whole(text: bytes) -> bool:
    """Whether a call's line ends behind its arguments, not inside a path with a line end in it."""
    return b"(" not in text or b" )" in text or b"-->" in text or text.startswith((b"...", b"unimplemented"))


def read_log(path: Path) -> Workload:
    """The workload in a lackey log, plain or compressed."""
    ops: list[NDArray[Any]] = []
    vaddrs: list[NDArray[Any]] = []
    sizes: list[NDArray[Any]] = []

    def keep(op: NDArray[np.uint8], vaddr: NDArray[np.uint64], size: NDArray[np.uint8]) -> None:
        ops.append(op)
        vaddrs.append(vaddr)
        sizes.append(size)

    source = Source(path)
    parser = LackeyParser(str(path), keep)
    for piece in source.chunks():
        parser.feed(piece)
    parser.finish()
    if not ops:
        raise UserMistake("holds no accesses; record with valgrind --trace-mem=yes", place=str(path))
    accesses = AccessColumns(np.concatenate(ops), np.concatenate(vaddrs), np.concatenate(sizes))
    check_accesses(str(path), accesses)
    return Workload(
        name=path.name,
        sha256=source.sha256,
        format="lackey",
        accesses=accesses,
        calls=tuple(parser.calls),
        threads=tuple(parser.threads),
    )
