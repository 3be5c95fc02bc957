"""What a strace log says: the calls of every process, in an order in which they can be made again.

    8624  1795.2 clone3({flags=CLONE_VM|CLONE_VFORK, ...}, 88 <unfinished ...>
    8625  1795.2 execve("/bin/sh", ...) = 0
    8624  1795.2 <... clone3 resumed>) = 8625

A call took effect somewhere between its two lines. What ends things (munmap, exit) and what begins a process
counts from its first line, everything else from its last: so a child exists before its first call, and a
range is free before another thread is given it.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

import attrs

from polymmu.errors import UserMistake
from polymmu.workload.model import MmCall, Workload
from polymmu.workload.source import Source
from polymmu.workload.syscalls import CLONE_THREAD, FORKS, NUMBERS
from polymmu_strace.arguments import call_arguments

__all__ = ["looks_like_strace", "read_log"]

_PREFIX = (
    r"(?:\[pid +(?P<bracket>\d{1,10})\] +|(?P<pid>\d{1,10}) +)?"
    r"(?:(?:\d\d:\d\d:\d\d(?:\.\d+)?|\d+\.\d+)(?: \(\+ *[\d.]+\))? +)?"
)
_LINE = re.compile(_PREFIX + r"(?P<rest>.*)", re.DOTALL)
_WHOLE = re.compile(r"(\w+)\((.*)\) += (\?|-?\d+|0x[0-9a-f]+)(?: (E[A-Z0-9]+))?(?=\W|$)", re.DOTALL)
_BEGUN = re.compile(r"(\w+)\((.*) ?<(?:unfinished \.\.\.|detached \.\.\.)>(?:\) += \?)?$", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_KILLED = re.compile(r"\+\+\+ killed by ")
_NOISE = re.compile(r"---.*---|\+\+\+.*\+\+\+|strace: .*|<\.\.\. \?\?\? resumed>.*|\?\?\?\(.*", re.DOTALL)
_ALIASES = {
    "mmap2": "mmap",
    "ftruncate64": "ftruncate",
    "truncate64": "truncate",
    "fcntl64": "fcntl",
    "exit_thread": "exit",
}
_AT_ONCE = FORKS | {"munmap", "exit", "exit_group"}
_LONGEST_LINE = 1 << 20
_LONGEST_NUMBER = 24


@attrs.define
class _Slot:
    """A place in the order of calls, filled once the call's result is known; unfilled: the call never was."""

    call: MmCall | None = None


@attrs.define
class _Begun:
    name: str
    text: str
    slot: _Slot | None


class _Parser:
    """Takes lines, gathers calls."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.slots: list[_Slot] = []
        self.begun: dict[int, _Begun] = {}
        self.line = 0

    def mistake(self, what: str) -> UserMistake:
        return UserMistake(f"line {self.line}: {what}", place=self.place)

    def take(self, raw: bytes) -> None:
        self.line += 1
        text = raw.decode("utf-8", "replace").rstrip()
        if not text:
            return
        match = _LINE.match(text)
        assert match is not None  # every part is optional
        tid = int(match["bracket"] or match["pid"] or 1)
        rest = match["rest"]
        if (resumed := _RESUMED.match(rest)) is not None and resumed[1] != "???":
            self._resumed(tid, resumed[1], resumed[2])
        elif (begun := _BEGUN.match(rest)) is not None:
            self._begin(tid, begun[1], begun[2])
        elif (whole := _WHOLE.match(rest)) is not None:
            self._whole(tid, whole)
        elif _KILLED.match(rest):
            self.slots.append(_Slot(MmCall(0, tid, tid, "exit_group", (), None)))
        elif not _NOISE.match(rest):
            shown = ascii(text[:40])
            raise self.mistake(
                f"{shown} is not strace's; write the log to a file of its own with strace -o FILE"
            )

    def _begin(self, tid: int, name: str, text: str) -> None:
        name = _ALIASES.get(name, name)
        slot = None
        if name in _AT_ONCE:
            slot = _Slot()
            self.slots.append(slot)
            if name in ("exit", "exit_group"):
                slot.call = self._call(tid, name, text, None)
        self.begun[tid] = _Begun(name, text, slot)

    def _resumed(self, tid: int, name: str, text: str) -> None:
        begun = self.begun.pop(tid, None)
        if begun is None or begun.name != _ALIASES.get(name, name):
            return  # the log begins inside this call
        whole = _WHOLE.match(f"{begun.name}({begun.text.rstrip()}{text}")
        if whole is None:
            if "<unfinished" in text or "<detached" in text:
                self.begun[tid] = attrs.evolve(begun, text=begun.text + text.partition("<")[0])
                return
            raise self.mistake(f"the result of {begun.name} cannot be read; record the log again")
        self._whole(tid, whole, begun.slot)

    def _whole(self, tid: int, whole: re.Match[str], slot: _Slot | None = None) -> None:
        name = _ALIASES.get(whole[1], whole[1])
        if name not in NUMBERS or (slot is not None and slot.call is not None):
            return
        if len(whole[3]) > _LONGEST_NUMBER:
            raise self.mistake(f"the result of {name} is no 64-bit number; record the log again")
        result: int | None = None
        if whole[3] != "?":
            result = int(whole[3], 0)
            if whole[4] is not None and result == -1:
                result = -getattr(errno, whole[4], errno.EINVAL)
        elif name not in ("exit", "exit_group"):
            return  # interrupted; it did nothing, or it is told again
        if slot is None:
            slot = _Slot()
            self.slots.append(slot)
        slot.call = self._call(tid, name, whole[2], result)

    def _call(self, tid: int, name: str, text: str, result: int | None) -> MmCall | None:
        if name not in NUMBERS:
            return None
        args, path = call_arguments(name, text)
        if any(not -(1 << 63) <= value < 1 << 64 for value in (*args, result or 0)):
            raise self.mistake(f"an argument of {name} is no 64-bit number; record the log again")
        if name == "clone3":
            name = "clone"  # strace prints its flags, so they are the same call
        if name in ("mmap", "mremap", "munmap", "mprotect", "madvise") and not _fits(name, args, result):
            raise self.mistake(f"{name} of a range beyond 2**64; record the log again")
        return MmCall(0, tid, tid, name, args, result, path)

    def calls(self) -> tuple[MmCall, ...]:
        """All calls in order, each with the process its thread belongs to."""
        process: dict[int, int] = {}
        result: list[MmCall] = []
        for slot in self.slots:
            call = slot.call
            if call is None:
                continue
            own = process.setdefault(call.tid, call.tid)
            result.append(attrs.evolve(call, process=own))
            if call.name in FORKS and call.ret is not None and call.ret > 0:
                thread = call.name == "clone" and call.arg(0) & CLONE_THREAD
                process[call.ret] = own if thread else call.ret
        return tuple(result)


def _fits(name: str, args: tuple[int, ...], result: int | None) -> bool:
    """Whether the ranges a successful call names stay below 2**64, as a kernel would not allow otherwise."""
    if result is None or -4096 < result < 0:
        return True
    values = [*args, 0, 0, 0]
    start = result if name == "mmap" else values[0]
    ranges = [(start, values[1])] + ([(result, values[2])] if name == "mremap" else [])
    return all(low >= 0 and length >= 0 and low + length <= 1 << 64 for low, length in ranges)


def looks_like_strace(head: bytes) -> bool:
    """Whether the first line that is no noise is a call."""
    for line in head.split(b"\n")[:50]:
        text = line.decode("utf-8", "replace").rstrip()
        match = _LINE.match(text)
        rest = match["rest"] if match else ""
        if _BEGUN.match(rest) or _WHOLE.match(rest) or _RESUMED.match(rest):
            return True
        if rest and not _NOISE.match(rest):
            return False
    return False


def read_log(path: Path) -> Workload:
    """The workload in a strace log, plain or compressed."""
    source = Source(path)
    parser = _Parser(str(path))
    rest = b""
    for piece in source.chunks():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            parser.take(line)
        if len(rest) > _LONGEST_LINE:
            parser.line += 1
            raise parser.mistake("is longer than any line of a strace log; is this the right file?")
    if rest:
        parser.line += 1
        raise parser.mistake("breaks off in the middle; copy or record the log again")
    return Workload(name=path.name, sha256=source.sha256, format="strace", calls=parser.calls())
