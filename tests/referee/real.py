"""Processes of the kernel this test runs on: what they are told, and what the kernel counts for them.

``Zygote`` is one bare process (see ``bare_process``) with nothing mapped but its own page. Every process of a test is a
fork of it, so each begins in the same state; ``Process.reading`` subtracts what that state is (measured, once, on a
fork that has done nothing): the tables of that page and the faults of finding it.

Readings are taken from outside, while the process waits for its next command: page-table bytes from
``/proc/PID/status`` (VmPTE: pud, pmd and pte tables, not the root), minor faults from ``/proc/PID/stat``.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import struct
import subprocess
import sys
from pathlib import Path

import attrs

from tests.referee import bare_process
from tests.referee.bare_process import CALL, FORK, LOAD, STORE, slot_address

__all__ = ["Process", "Reading", "Zygote", "too_old_for_the_rules", "why_not_here"]

NR_MUNMAP, NR_FORK, NR_EXIT_GROUP = 11, 57, 231
RULES_FROM = (6, 18)
VSYSCALL = 0xFFFF_FFFF_FF60_0000
"""A page of the kernel's that every process is shown to have."""

PIPES = 6
"""Processes that can live at a time, the zygote among them."""


@attrs.frozen
class Reading:
    """What a process has: ``table_bytes`` of page tables below the root; ``faults``, the minor ones so far."""

    table_bytes: int
    faults: int


def why_not_here() -> str:
    """Why this host cannot be the referee, or an empty string."""
    if sys.platform != "linux" or os.uname().machine != "x86_64" or sys.maxsize < 1 << 32:
        return "the referee is a Linux kernel on x86_64; this is another system"
    if "\nVmPTE:" not in Path("/proc/self/status").read_text():
        return "/proc/self/status has no VmPTE line: this kernel does not say how large page tables are"
    balancing = Path("/proc/sys/kernel/numa_balancing")
    if balancing.exists() and balancing.read_text().strip() != "0":
        return (
            "kernel.numa_balancing is on: the kernel takes rights away to sample accesses, which adds faults"
        )
    return ""


def too_old_for_the_rules() -> str:
    """Why generated programs would differ on this host for reasons nobody wrote down, or an empty string."""
    release = os.uname().release if hasattr(os, "uname") else ""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None or tuple(map(int, numbers.groups())) < RULES_FROM:
        return f"docs/referee.md gives the rules for Linux {RULES_FROM[0]}.{RULES_FROM[1]} on; this is '{release}'"
    return ""


class Process:
    """One bare process."""

    def __init__(self, zygote: Zygote, pid: int, slot: int) -> None:
        self.zygote = zygote
        self.pid = pid
        self.slot = slot
        self.status = os.open(f"/proc/{pid}/status", os.O_RDONLY)
        self.stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        self.death = os.pidfd_open(pid)
        self.origin = Reading(0, 0)

    def syscall(self, number: int, *arguments: int) -> int:
        """Make a system call; what it returned: -errno where it failed."""
        return self._command(CALL, number, *arguments)

    def load(self, addr: int) -> None:
        """Read a byte. The process must have the right to: nothing catches its SIGSEGV."""
        self._command(LOAD, 0, addr)

    def store(self, addr: int) -> None:
        """Write a byte; as ``load``."""
        self._command(STORE, 0, addr, 1)

    def fork(self) -> Process:
        """A child, waiting for commands."""
        slot = self.zygote.free_slots.pop()
        arguments = (0, 0, 0, 0, slot_address(slot), self.zygote.commands[slot][0])
        pid = (
            self._command(FORK, NR_FORK, *arguments) + self._reply()
        )  # one of the two replies is the child's 0
        assert pid > 0, os.strerror(-pid)
        child = Process(self.zygote, pid, slot)
        child.origin = self.zygote.origin
        return child

    def ready(self) -> None:
        """Wait for the reply that a new process begins with."""
        self._reply()

    def exit(self) -> None:
        """End the process and wait until it is gone."""
        self._send(CALL, NR_EXIT_GROUP)
        select.select([self.death], [], [])
        self.close()
        self.zygote.free_slots.append(self.slot)

    def close(self) -> None:
        """Let go of what this end holds."""
        for descriptor in (self.status, self.stat, self.death):
            os.close(descriptor)

    def reading(self) -> Reading:
        """What the kernel counts for it now, beyond what a fork of the zygote begins with."""
        status = os.pread(self.status, 8192, 0)
        table_kib = int(status[status.index(b"\nVmPTE:") + 7 :].split(None, 1)[0])
        # The name in the second field may hold blanks; the tenth field is minflt.
        faults = int(os.pread(self.stat, 4096, 0).rpartition(b")")[2].split()[7])
        return Reading(table_kib * 1024 - self.origin.table_bytes, faults - self.origin.faults)

    def mappings(self) -> list[tuple[int, int, str]]:
        """(start, end, rights) of every mapping but its own page, ascending."""
        found = []
        for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
            addresses, rights = line.split(None, 2)[:2]
            start, end = (int(word, 16) for word in addresses.split("-"))
            if start not in (bare_process.PAGE, VSYSCALL):
                found.append((start, end, rights[:3].replace("-", "")))
        return found

    def _command(self, what: int, number: int, *arguments: int) -> int:
        self._send(what, number, *arguments)
        return self._reply()

    def _reply(self) -> int:
        """The next reply. RuntimeError where the process died instead."""
        readable, _, _ = select.select([self.zygote.replies[0], self.death], [], [])
        if self.zygote.replies[0] not in readable:
            raise RuntimeError(f"process {self.pid} died instead of replying: an access that it may not do?")
        return int(struct.unpack("<q", os.read(self.zygote.replies[0], 8))[0])

    def _send(self, what: int, number: int, *arguments: int) -> None:
        words = (what, number, *arguments, *[0] * (6 - len(arguments)))
        os.write(
            self.zygote.commands[self.slot][1], struct.pack("<8Q", *(word & (1 << 64) - 1 for word in words))
        )


class Zygote:
    """The process that all others are forks of. A context manager: at its end all of them end."""

    def __enter__(self) -> Zygote:
        self.commands = [os.pipe() for _ in range(PIPES)]
        self.replies = os.pipe()
        self.free_slots = list(range(1, PIPES))
        theirs = [reader for reader, _ in self.commands] + [self.replies[1]]
        with contextlib.ExitStack() as undo:
            undo.callback(self._close)
            # glibc's restartable sequences would have the kernel write to memory that we unmap.
            environment = {**os.environ, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
            self.python = undo.enter_context(
                subprocess.Popen(
                    [sys.executable, "-I", bare_process.__file__, str(theirs[0]), str(theirs[-1])],
                    pass_fds=theirs,
                    env=environment,
                    start_new_session=True,
                )
            )
            undo.callback(self.python.kill)
            for reader in theirs:
                os.close(reader)
            self.process = Process(self, self.python.pid, 0)
            undo.callback(self.process.close)
            self.process.ready()
            self._unmap_python()
            self._measure_origin()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _unmap_python(self) -> None:
        """Leave the zygote nothing but its page."""
        for start, end, _ in self.process.mappings():
            self.process.syscall(NR_MUNMAP, start, end - start)

    def _measure_origin(self) -> None:
        self.origin = Reading(0, 0)
        first = self.process.fork()
        self.origin = first.reading()
        first.exit()

    def _close(self) -> None:
        os.close(self.replies[0])
        for _, writer in self.commands:
            os.close(writer)
